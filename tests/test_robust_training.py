"""Vittle's bottleneck: its formulas, what it does to a real LLaVA class, and the example's training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from lmms_eval_emi.errors import InputError, UnavailableError
from lmms_eval_emi.robust_training import Bottleneck

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def llava(tinyhub):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = tinyhub / "tiny-llava"
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    batch = processor(images=image, text="<image>describe the star", return_tensors="pt")
    return model, dict(batch)


def test_the_kl_is_that_of_torch(llava):
    from torch.distributions import Normal, kl_divergence

    model, batch = llava
    bottleneck = Bottleneck.for_model(model, 0, learned_prior=True)
    with torch.no_grad():
        bottleneck.prior.copy_(torch.randn(2, 2, 16) / 3)
    labels = batch["input_ids"].clone()
    labels[0, :-2] = -100  # the last two are the response, which has no KL
    seen = {}
    bottleneck.image.register_forward_hook(lambda _, args, output: seen.update(image=output))
    bottleneck.text.register_forward_hook(lambda _, args, output: seen.update(text=output))
    model(**batch, labels=labels)
    expected = 0.0
    for number, kind in enumerate(("image", "text")):
        mean, log_variance = seen[kind] if kind == "image" else (part[:-2] for part in seen[kind])
        prior = Normal(bottleneck.prior[number, 0], (bottleneck.prior[number, 1] / 2).exp())
        expected += kl_divergence(Normal(mean, (log_variance / 2).exp()), prior).mean()
    assert float(bottleneck.loss.detach()) == pytest.approx(0.1 * float(expected), rel=1e-5)


def test_tokens_of_images_and_of_text_go_through_their_own_part(llava):
    model, batch = llava
    plain = model(**batch).logits
    bottleneck = Bottleneck.for_model(model, 0)
    changed = model(**batch).logits
    assert not torch.allclose(plain, changed)
    assert torch.equal(changed, model(**batch).logits), "evaluation takes the mean and draws nothing"
    bottleneck.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits), "training draws"
    count = int((batch["input_ids"] == model.config.image_token_id).sum())
    rows = {}
    bottleneck.image.register_forward_hook(lambda _, args, output: rows.update(image=len(args[0])))
    bottleneck.text.register_forward_hook(lambda _, args, output: rows.update(text=len(args[0])))
    model(**batch)
    assert rows == {"image": count, "text": batch["input_ids"].shape[1] - count}
    bottleneck.detach()
    assert torch.equal(model(**batch).logits, plain)


def test_it_generates_with_a_cache_as_without(llava):
    model, batch = llava
    Bottleneck.for_model(model, 0).eval()
    options = {"max_new_tokens": 5, "do_sample": False}
    with_cache = model.generate(**batch, **options)
    assert torch.equal(with_cache, model.generate(**batch, **options, use_cache=False))


def test_alpha_rises_and_a_share_of_zero_changes_nothing(llava):
    model, batch = llava
    plain = model(**batch).logits
    bottleneck = Bottleneck.for_model(model, 0).train()
    bottleneck.set_progress(0.0)
    start = bottleneck.alpha
    bottleneck.set_progress(0.5)
    assert bottleneck.alpha == pytest.approx(0.25) and start == pytest.approx(0.5 / (1 + np.exp(5)))
    bottleneck.alpha = 0.0
    assert torch.allclose(model(**batch).logits, plain, atol=1e-6)


def test_it_is_saved_beside_a_checkpoint_and_gives_the_same(llava, tmp_path):
    model, batch = llava
    bottleneck = Bottleneck.for_model(model, 0, learned_prior=True, beta=0.2).eval()
    expected = model(**batch).logits
    bottleneck.save(tmp_path)
    bottleneck.detach()
    again = Bottleneck.load(tmp_path, model)
    assert torch.equal(model(**batch).logits, expected) and again.beta == 0.2
    (tmp_path / "bottleneck.json").write_text("{}")
    with pytest.raises(UnavailableError, match=r"expected bottleneck\.json"):
        Bottleneck.load(tmp_path, model)


def test_what_cannot_be_is_told(llava):
    model, batch = llava
    with pytest.raises(InputError, match="expected a block below 1, got 3"):
        Bottleneck.for_model(model, 3)
    with pytest.raises(InputError, match="expected a vision-language model"):
        Bottleneck.for_model(torch.nn.Linear(2, 2), 0)
    with pytest.raises(InputError, match="final_alpha"):
        Bottleneck(8, 0, final_alpha=2.0)
    with pytest.raises(InputError, match="call the model first"):
        _ = Bottleneck(8, 0).loss
    Bottleneck.for_model(model, 0)
    with pytest.raises(InputError, match="needs input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(batch["input_ids"]))


def _tiny_qwen():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256},
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    vision = {
        **{"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32},
        **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56},
        "fullatt_block_indexes": [0],
    }
    tokens = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    ids = torch.tensor([[1, 62, *[60] * 4, 63, 2, 3, 4]])
    images = {"pixel_values": torch.randn(16, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    return model, {"input_ids": ids, "mm_token_type_ids": (ids == 60).long(), **images}


def _tiny_llava_next():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=28, patch_size=14)
    text = LlamaConfig(**sizes, vocab_size=64, num_hidden_layers=4)
    grid = {"image_token_index": 60, "image_grid_pinpoints": [[28, 28], [28, 56]], "image_seq_length": 4}
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(vision_config=vision, text_config=text, **grid))
    ids = torch.tensor([[1, *[60] * 10, 2, 3]])
    return model, {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 2, 3, 28, 28),
        "image_sizes": torch.tensor([[28, 28]]),
    }


@pytest.mark.parametrize("make", [_tiny_qwen, _tiny_llava_next])
def test_other_models_take_the_bottleneck_as_well(make):
    torch.manual_seed(0)
    model, batch = make()
    model.eval()
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    plain = model(**batch).logits
    bottleneck = Bottleneck.for_model(model)
    seen = []
    bottleneck.image.register_forward_hook(lambda _, args, output: seen.append(len(args[0])))
    changed = model(**batch).logits
    assert bottleneck.layer == 3 and seen == [int((batch["input_ids"] == 60).sum())]
    assert not torch.allclose(plain, changed) and float(bottleneck.loss.detach()) > 0


@pytest.mark.parametrize("prior", [[], ["--learned-prior"], ["--lora-rank", "2"]], ids=["F", "L", "LoRA"])
def test_the_example_trains_model_and_bottleneck(tinyhub, tmp_path, prior):
    if "--lora-rank" in prior:
        pytest.importorskip("peft")
    from safetensors.torch import load_file

    rng = np.random.default_rng(0)
    rows = {
        "image": [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(4)],
        "question": ["describe the star"] * 4,
        "response": ["a red star", "a blue star", "a small star", "a green star"],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "response": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    command = [sys.executable, str(ROOT / "examples" / "vittle" / "train.py"), str(tinyhub / "tiny-llava")]
    command += [
        str(tmp_path / "rows.parquet"),
        str(tmp_path / "out"),
        "--steps",
        "3",
        "--batch-size",
        "2",
        "--lr",
        "1e-2",
        *prior,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = load_file(tmp_path / "out" / "bottleneck.safetensors")
    assert bool(weights["prior"].abs().sum() > 0) == ("--learned-prior" in prior), (
        "a learned prior moves, a fixed one does not"
    )
    fresh = Bottleneck(16, 0)
    assert all(value.isfinite().all() for value in weights.values())
    assert weights.keys() == fresh.state_dict().keys() and (tmp_path / "out" / "model.safetensors").is_file()
