"""The scorer in inspect_ai's own evaluation, with its mock model; and its logs as ``score`` reads them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from lmms_eval_emi.cli import main

inspect_ai = pytest.importorskip("inspect_ai")
WORDS = "a red blue small large square circle star left right above below".split()


@pytest.fixture
def evaluate(in_tinyhub, tmp_path, monkeypatch):
    """Evaluate samples of two splits; twins have one reference, and an image each or none."""
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    from lmms_eval_emi.harness.inspect_ai import emi

    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LMMS_EVAL_EMI_DEVICE", "cpu")

    def run(rows=10, images=True, epochs=1, form="json", **options):
        rng = np.random.default_rng(0)
        samples = []
        for row in range(rows):
            reference = " ".join(rng.choice(WORDS, 5))
            for split in ("clean", "fog"):
                path = tmp_path / f"{split}-{row}.png"
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
                text = f"What is number {row}?"
                content = [ContentText(text=text), ContentImage(image=str(path))] if images else text
                message = [ChatMessageUser(content=content)]
                samples.append(Sample(id=f"{split}-{row}", input=message, target=reference, metadata={"shift": split}))

        def outputs():
            answers = np.random.default_rng(1)
            while True:
                output = ModelOutput.from_content("mockllm/model", " ".join(answers.choice(WORDS, 4)))
                output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
                yield output

        task = Task(
            dataset=MemoryDataset(samples), solver=generate(), scorer=[includes(), emi(**options)], epochs=epochs
        )
        model = get_model("mockllm/model", custom_outputs=outputs())
        (found,) = inspect_ai.eval(
            task, model=model, log_dir=str(tmp_path / "logs"), log_format=form, display="none", max_connections=1
        )
        assert found.status == "success", found.error
        metrics = {
            name: one.value
            for score in found.results.scores
            if score.name == "emi"
            for name, one in score.metrics.items()
        }
        return metrics, found

    return run


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("form", ["json", "eval"])
def test_the_evaluation_shows_what_score_gives_for_its_log(evaluate, tmp_path, images, form):
    metrics, log = evaluate(images=images, form=form, id_split="clean")
    path = log.location.removeprefix("file://")
    arguments = ["score", path, "--split-by", "metadata.shift", "--id-split", "clean", "--estimator", "cosine"]
    assert main([*arguments, "--output", str(tmp_path / "r.json")]) == 0
    splits = json.loads((tmp_path / "r.json").read_text())["splits"]
    for name, key in (("emi_clean", "emi"), ("emi_stderr_clean", "emi_stderr")):
        assert metrics[name] == pytest.approx(splits["clean"][key], abs=1e-9)
    for name, key in (("emid_fog", "emid"), ("emid_stderr_fog", "emid_stderr")):
        assert metrics[name] == pytest.approx(splits["fog"][key], abs=1e-9)


def test_epochs_are_repeats_and_no_new_observations(evaluate):
    """Every response twice: the error must stay as it is, and not shrink by the root of two."""
    from lmms_eval_emi.harness.inspect_ai import KEPT, values_of_splits

    _, log = evaluate(images=False, id_split="clean")
    kept = [sample.scores["emi"].metadata[KEPT] for sample in log.samples]
    twice = [*kept, *({**one, "id": f"{one['id']}#2"} for one in kept)]
    once, repeated = values_of_splits(kept), values_of_splits(twice)
    assert once.keys() == repeated.keys()
    for name, value in once.items():
        assert repeated[name] == pytest.approx(value, rel=1e-6), name


def test_without_a_split_in_distribution_there_is_one_emi(evaluate):
    metrics, _ = evaluate()
    assert set(metrics) == {"emi", "emi_stderr"} and math.isfinite(metrics["emi"])


def test_a_failure_never_ends_the_evaluation(evaluate, monkeypatch):
    metrics, log = evaluate(id_split="clean", estimator="no-such-estimator")
    assert log.status == "success" and math.isnan(metrics["emi"])


def test_inspect_ai_finds_the_scorer_by_its_entry_point():
    from importlib.metadata import entry_points

    (found,) = [one for one in entry_points(group="inspect_ai") if one.name == "lmms_eval_emi"]
    assert found.value == "lmms_eval_emi.harness.inspect_ai"


def test_the_command_shows_emi_beside_accuracy(in_tinyhub, tmp_path):
    """``inspect eval`` of a task file whose only change is one more scorer."""
    import os
    import subprocess
    import sys

    (tmp_path / "my_task.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import MemoryDataset, Sample\n"
        "from inspect_ai.model import ModelOutput, ModelUsage, get_model\n"
        "from inspect_ai.scorer import includes\n"
        "from inspect_ai.solver import generate\n"
        "from lmms_eval_emi.harness.inspect_ai import emi\n\n\n"
        "@task\n"
        "def my_task():\n"
        "    samples = [\n"
        "        Sample(id=f'{split}-{row}', input=f'What is number {row}?', target=f'a red circle {row}', metadata={'shift': split})\n"
        "        for split in ('clean', 'fog') for row in range(10)\n"
        "    ]\n"
        "    output = ModelOutput.from_content('mockllm/model', 'a red circle')\n"
        "    output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)  # or a tokenizer is fetched\n"
        "    model = get_model('mockllm/model', custom_outputs=[output] * len(samples))\n"
        "    scorers = [includes(), emi(id_split='clean')]\n"
        "    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=scorers, model=model)\n"
    )
    variables = {
        **os.environ,
        **{"LMMS_EVAL_EMI_CACHE": str(tmp_path / "cache"), "LMMS_EVAL_EMI_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"},
        "LMMS_EVAL_EMI_TEXT_ENCODER": str(in_tinyhub / "xlm-roberta-base"),
    }
    command = [sys.executable, "-m", "inspect_ai", "eval", "my_task.py", "--model", "mockllm/model"]
    options = ["--log-dir", str(tmp_path / "logs"), "--log-format", "json", "--display", "plain"]
    done = subprocess.run([*command, *options], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = (tmp_path / "logs").glob("*.json")
    log = json.loads(path.read_text())
    assert log["status"] == "success", log["error"]
    shown = {(one["name"], name) for one in log["results"]["scores"] for name in one["metrics"]}
    assert {("includes", "accuracy"), ("emi", "emi_clean"), ("emi", "emi_stderr_clean"), ("emi", "emid_fog")} <= shown
