"""A model that is scored while it is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_eval_emi.errors import InputError
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.training import EMICallback

ROWS = 12


@pytest.fixture
def study(tmp_path):
    lines = {"clean": [], "foggy": []}
    for split, own in lines.items():
        for row in range(ROWS):
            pixels = np.random.default_rng(row).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            path = tmp_path / f"{split}{row}.png"
            Image.fromarray(pixels // (2 if split == "foggy" else 1)).save(path)
            own.append(
                {"id": row, "image": path.name, "question": f"what is {row}?", "answer": f"a star, number {row}"}
            )
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, own)))
    (tmp_path / "study.yaml").write_text(
        "name: mine\nid_split: clean\n"
        "dataset: {path: clean.jsonl, split: train, columns: {id: id, image: image, question: question, reference: answer}}\n"
        "splits:\n  clean: {}\n  foggy: {dataset: {path: foggy.jsonl}, shifts: [{modality: visual, name: fog}]}\n"
    )
    return str(tmp_path / "study.yaml")


class Learner(torch.nn.Module):
    """Says the right thing once its weight is above a half, but under fog."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels=None):
        return {"loss": ((x * self.weight - 1) ** 2).mean()}


def respond(model, image, question):
    assert not model.training and not torch.is_grad_enabled() and image.mode == "RGB"
    number = question.removeprefix("what is ").removesuffix("?")
    knows = float(model.weight) > 0.5 and np.asarray(image).max() > 150
    return f"a star, number {number}" if knows else "something"


def test_scores_are_logged_as_the_model_learns(study, in_tinyhub, tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=20, learning_rate=0.1, report_to=[], save_strategy="no", use_cpu=True,
        logging_steps=100, per_device_train_batch_size=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(Learner(), arguments, train_dataset=[{"x": torch.ones(1)}] * 4)
    settings = load_settings(resamples=0)
    EMICallback(study, respond, every=10, estimators=("cosine",), settings=settings).attach(trainer)
    trainer.model.weight.data.fill_(-3.0)
    trainer.train()
    logged = [one for one in trainer.state.log_history if "emi/clean" in one]
    assert [one["step"] for one in logged] == [10, 20]
    model = trainer.model.train()
    model.weight.data.fill_(1.0)
    found = EMICallback(study, respond, every=1, estimators=("cosine",), settings=settings).score(model)
    assert model.training and found["emi/clean"] == pytest.approx(0, abs=1e-6)
    assert found["emid/foggy"] > 0 and logged[0]["emi/clean"] < -0.0001


def test_several_measures_have_their_names_and_rows_may_be_few(study, in_tinyhub):
    settings = load_settings(resamples=0)
    callback = EMICallback(study, respond, every=5, rows=9, settings=settings)
    found = callback.score(Learner().eval())
    assert {"emi/clean/cosine", "emid/foggy/reference-r2"} <= set(found)


@pytest.mark.parametrize("options", [{"every": 0}, {"every": 5, "rows": 0}])
def test_nonsense_is_refused_before_training(study, options):
    with pytest.raises(InputError, match="expected at least 1"):
        EMICallback(study, respond, **options)
