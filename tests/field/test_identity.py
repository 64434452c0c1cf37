"""What makes two models two: their arguments and every byte of their files, and nothing else."""

from __future__ import annotations

import pytest

from lmms_eval_emi.harness.lmms_eval.resume.journaled_model import identity


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


def test_a_folder_of_caches_is_no_checkpoint(checkpoint, tmp_path):
    cache = tmp_path / "cache"
    (cache / "models").mkdir(parents=True)
    before = named(checkpoint, f",cache_dir={cache}")
    (cache / "models" / "x.safetensors").write_bytes(b"x")
    assert named(checkpoint, f",cache_dir={cache}") == before
