"""Tensors read from a checkpoint's files are those that transformers reads, in any precision and any number of files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lmms_eval_emi.encoders.base import fingerprint
from lmms_eval_emi.encoders.checkpoint import Checkpoint, EncoderUnavailable, tensors_below


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
def test_tensors_rows_and_fingerprint(tmp_path, suffix, shards, dtype):
    state = write(tmp_path, dtype, shards, suffix)
    checkpoint = Checkpoint(str(tmp_path))
    names = tensors_below(checkpoint, ("other.", "below."), ["a", "b"])
    assert torch.equal(checkpoint.tensor(names["a"]), state["below.a"].float())
    chosen = np.array([6, 0, 0, 3])
    assert np.array_equal(checkpoint.rows(names["a"], chosen), state["below.a"].float().numpy()[chosen])
    whole = torch.nn.Module()
    whole.register_buffer("a", state["below.a"].float())
    whole.register_buffer("b", state["below.b"].float())
    assert checkpoint.fingerprint(names) == fingerprint(whole)


def test_a_tower_and_an_embedding_layer_have_the_fingerprints_of_transformers_modules(in_tinyhub):
    from transformers import CLIPVisionModel, XLMRobertaModel

    from lmms_eval_emi.encoders import load_text_encoder, load_vision_encoder

    tower = CLIPVisionModel.from_pretrained("openai/clip-vit-base-patch32")
    layer = XLMRobertaModel.from_pretrained("xlm-roberta-base", num_hidden_layers=0, add_pooling_layer=False)
    for module, encoder in (
        (tower, load_vision_encoder("openai/clip-vit-base-patch32", "cpu")),
        (layer, load_text_encoder("xlm-roberta-base", "cpu")),
    ):
        assert f"#{fingerprint(module)}/" in encoder.signature


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(EncoderUnavailable, match=r"lacks 1 of the weights that the encoder uses, such as c\."):
        tensors_below(Checkpoint(str(tmp_path)), ("below.",), ["a", "c"])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"holds none of model\.safetensors"):
        Checkpoint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    with pytest.raises(OSError, match="is no safetensors file"):
        _ = "a" in Checkpoint(str(tmp_path))


def test_a_tower_on_another_device_holds_its_weights(in_tinyhub):
    from PIL import Image

    from lmms_eval_emi.encoders import load_vision_encoder

    encoder = load_vision_encoder("openai/clip-vit-base-patch32", "cpu")
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "white")]
    expected = encoder.encode(pictures)
    encoder.model.hold(list(encoder._names))
    encoder.checkpoint.tensor = lambda key: pytest.fail("read again")
    assert torch.equal(encoder.encode(pictures), expected)
