"""Tensors read from a checkpoint's files, in any precision and any number of files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from lmms_eval_emi.encoders.base import Checkpoint, fingerprint
from lmms_eval_emi.errors import UnavailableError


def write(folder, dtype=torch.float32, shards=1, suffix="safetensors"):
    torch.manual_seed(0)
    state = {"below.a": torch.randn(7, 5), "below.b": torch.randn(3), "below.number": torch.arange(4)}
    state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}.{suffix}"] if shards == 1 else [f"{stem}-{number}.{suffix}" for number in range(shards)]
    places = {key: names[number % shards] for number, key in enumerate(state)}
    for name in names:
        own = {key: tensor for key, tensor in state.items() if places[key] == name}
        if suffix == "safetensors":
            save_file(own, folder / name, metadata={"format": "pt"})
        else:
            torch.save(own, folder / name)
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
    return state


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_file_format_gives_the_same_tensors_and_fingerprint(tmp_path, suffix, shards, dtype):
    state = write(tmp_path / "other", dtype, shards, suffix)
    found = Checkpoint(str(tmp_path / "other")).select(("elsewhere.", "below."), ["a", "b"])
    assert torch.equal(found["a"], state["below.a"]) and torch.equal(found["b"], state["below.b"])
    write(tmp_path / "plain", dtype)
    assert fingerprint(found) == fingerprint(Checkpoint(str(tmp_path / "plain")).select(("below.",), ["a", "b"]))
    changed = found | {"b": found["b"] * 2}
    assert fingerprint(changed) != fingerprint(found) != fingerprint({"a": found["b"], "b": found["a"]})


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(UnavailableError, match=r"lacks 1 of the weights that the encoder uses, such as c\."):
        Checkpoint(str(tmp_path)).select(("below.",), ["a", "c"])
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    with pytest.raises(OSError, match="is damaged"):
        _ = Checkpoint(str(tmp_path)).tensors
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"holds none of model\.safetensors"):
        Checkpoint(str(tmp_path))
