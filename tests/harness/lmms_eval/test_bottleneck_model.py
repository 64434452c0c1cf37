"""A model with a saved bottleneck is evaluated through the harness's own command."""

from __future__ import annotations

import json

from conftest import ID, lmms_eval, only

from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.robust_training import Bottleneck

TASK = load_study("natural").task_name(ID)


def test_the_harness_evaluates_a_model_with_its_bottleneck(tinyhub, tmp_path):
    import torch
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(tinyhub / "tiny-llava")
    Bottleneck.for_model(model, 0, final_alpha=1.0).save(tmp_path / "bottleneck")

    def responses(name: str, *arguments: str) -> list[str]:
        done = lmms_eval(tinyhub, TASK, *arguments, "--output_path", str(tmp_path / name))
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line)["text"] for line in only(tmp_path / name, f"{ID}.jsonl").read_text().splitlines()]

    options = f"pretrained=tiny-llava,device_map=cpu,bottleneck={tmp_path / 'bottleneck'}"
    changed = responses("bottleneck-run", "--model", "llava_hf_bottleneck", "--model_args", options)
    assert changed != responses("plain-run")


def test_a_checkpoint_without_a_bottleneck_is_refused_by_name(tinyhub):
    options = "pretrained=tiny-llava,device_map=cpu"
    done = lmms_eval(tinyhub, TASK, "--model", "llava_hf_bottleneck", "--model_args", options)
    assert done.returncode != 0 and "expected bottleneck.json and bottleneck.safetensors" in done.stderr + done.stdout
