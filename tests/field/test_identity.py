"""What makes two models, two rows or two tasks the same, and nothing else."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch

from lmms_eval_emi import Embeddings, emid, load_estimator
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.harness.lmms_eval.resume.journaled_model import identity
from lmms_eval_emi.harness.lmms_eval.write_tasks import task_files


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1_000_000))
    (folder / "adapter" / "adapter.safetensors").write_bytes(b"a")
    return folder


def named(folder, more=""):
    return identity("llava_hf", f"pretrained={folder}{more}")


@pytest.mark.parametrize("changed", ["middle", "adapter", "new file", "config"])
def test_a_change_anywhere_in_a_checkpoint_makes_another_model(checkpoint, changed):
    before = named(checkpoint)
    if changed == "middle":
        content = bytearray((checkpoint / "model.safetensors").read_bytes())
        content[500_000] = 1
        (checkpoint / "model.safetensors").write_bytes(content)
    elif changed == "adapter":
        (checkpoint / "adapter" / "adapter.safetensors").write_bytes(b"b")
    elif changed == "new file":
        (checkpoint / "tokenizer.json").write_text("{}")
    else:
        (checkpoint / "config.json").write_text("[]")
    assert named(checkpoint) != before


def test_a_checkpoint_may_be_one_file(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a")
    before = named(path)
    path.write_bytes(b"b")
    assert named(path) != before


@pytest.mark.parametrize("name", ["image_token", "vision_token", "pad_token", "eos_token", "cls_token", "mm_secret"])
def test_what_only_sounds_like_a_secret_counts(checkpoint, name):
    assert named(checkpoint, f",{name}=A") != named(checkpoint, f",{name}=B")


@pytest.mark.parametrize("name", ["api_key", "openai_api_key", "openai_key", "hf_token", "token"])
def test_keys_do_not_count(checkpoint, name):
    assert named(checkpoint, f",{name}=A") == named(checkpoint, f",{name}=B")


@pytest.mark.parametrize("place", ["sub/model.safetensors", "tokenizer.json", "model.h5", "linked/weights.bin"])
def test_a_folder_may_hold_what_it_loads_in_many_places(tmp_path, place):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "linked").symlink_to(tmp_path / "elsewhere")
    path = tmp_path / "model" / place
    path.write_bytes(b"a")
    before = named(tmp_path / "model")
    path.write_bytes(b"b")
    assert named(tmp_path / "model") != before


def test_a_folder_of_caches_is_no_checkpoint(checkpoint, tmp_path):
    cache = tmp_path / "cache"
    (cache / "models").mkdir(parents=True)
    before = named(checkpoint, f",cache_dir={cache}")
    (cache / "models" / "x.safetensors").write_bytes(b"x")
    assert named(checkpoint, f",cache_dir={cache}") == before


def test_rounding_is_no_finding():
    """The same rows in another order give an EMID of exactly 0, with an error of 0 and p of 1."""
    rng = np.random.default_rng(0)
    names = ("v", "t", "y_hat", "y")
    rows = {name: torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(48, 8)))) for name in names}
    first = Embeddings(**rows, ids=[(row,) for row in range(48)])
    second = first.select(list(rng.permutation(48)))
    for kind in ("dcor", "hsic", "cosine"):
        found = emid(first, second, load_estimator(kind))
        assert (found.value, found.jackknife.corrected, found.jackknife.stderr, found.p_value) == (0, 0, 0, 1), kind


def test_tasks_of_changed_rows_have_other_metadata(tmp_path):
    """lmms-eval's cache of replies knows the prompt and the metadata, but not the image."""
    columns = "{id: id, question: question, reference: answer, image: image}"
    text = (
        f"name: mine\nid_split: clean\ndataset: {{path: rows.parquet, columns: {columns}}}\nsplits: {{clean: {{}}}}\n"
    )
    (tmp_path / "study.yaml").write_text(text)

    def digest(image):
        rows = [{"id": 0, "question": "q", "answer": "a", "image": {"bytes": image, "path": None}}]
        pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
        files = task_files([load_study(str(tmp_path / "study.yaml"))])
        return re.search(r"emi_rows: '?(\w+)", "".join(files.values()))[1]

    first = digest(b"one")
    assert first == digest(b"one") != digest(b"two")
