"""Vittle on any LLaVA of transformers: ``python train.py llava-hf/llava-1.5-7b-hf rows.parquet out``.

``rows.parquet`` has the columns image, question and response. Saved are the checkpoint and the bottleneck beside it;
``Bottleneck.load(out, model)`` attaches it again.
"""

from __future__ import annotations

import argparse
from typing import Any

import datasets
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

from lmms_eval_emi.robust_training import IGNORED, Bottleneck


class BottleneckTrainer(Trainer):
    """Adds the KL term to the loss of the task, and raises alpha over the steps."""

    bottleneck: Bottleneck

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        """Return the loss of the task plus the weighted KL."""
        self.bottleneck.train(model.training)
        self.bottleneck.set_progress(self.state.global_step / max(1, self.state.max_steps))
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        loss = loss + self.bottleneck.loss.to(loss.dtype)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, *args: Any) -> Any:
        """Return an optimiser of the model and of the bottleneck."""
        optimizer = super().create_optimizer(*args)
        own = [one for one in self.bottleneck.parameters() if one.requires_grad]
        optimizer.add_param_group({"params": own, "weight_decay": 0.0})
        return optimizer


def collate(processor: Any, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Prompts with their responses; labels leave out the prompt."""
    prompts = [f"USER: <image>\n{row['question']} ASSISTANT:" for row in rows]
    texts = [f"{prompt} {row['response']}" for prompt, row in zip(prompts, rows, strict=True)]
    images = [row["image"].convert("RGB") for row in rows]
    batch = dict(processor(images=images, text=texts, padding=True, return_tensors="pt"))
    labels = batch["input_ids"].clone()
    for place, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        length = processor(images=image, text=prompt, return_tensors="pt")["input_ids"].shape[1]
        start = int(batch["attention_mask"][place].argmax())  # padding may be on the left
        labels[place, : start + length] = IGNORED
    labels[batch["attention_mask"] == 0] = IGNORED
    return batch | {"labels": labels}


def main() -> None:
    """Train, and save model, processor and bottleneck."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("output")
    parser.add_argument("--learned-prior", action="store_true", help="Vittle (L) instead of (F)")
    parser.add_argument("--beta", type=float, default=0.1, help="weight of the KL term (default: %(default)s)")
    parser.add_argument("--layer", type=int, help="block of the language model, from 0 (default: after three quarters)")
    parser.add_argument("--lora-rank", type=int, help="train low-rank adapters of this rank, merged at the end")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-5, help="learning rate (default: %(default)s)")
    args = parser.parse_args()

    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model)
    if args.lora_rank:
        from peft import LoraConfig, get_peft_model

        modules = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
        model = get_peft_model(model, LoraConfig(r=args.lora_rank, target_modules=modules))
    rows = datasets.load_dataset("parquet", data_files=args.rows, split="train").cast_column("image", datasets.Image())
    options = TrainingArguments(
        output_dir=args.output,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, args.steps * 3 // 100),
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        logging_steps=10,
    )
    trainer = BottleneckTrainer(
        model=model, args=options, train_dataset=rows, data_collator=lambda batch: collate(processor, batch)
    )
    trainer.bottleneck = Bottleneck.for_model(
        trainer.model, args.layer, learned_prior=args.learned_prior, beta=args.beta
    )
    trainer.train()
    trained = trainer.model.merge_and_unload() if args.lora_rank else trainer.model
    trained.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print(trainer.bottleneck.save(args.output))


if __name__ == "__main__":
    main()
