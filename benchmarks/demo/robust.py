"""Whether robust training helps the demo's model: ``cd benchmarks && python -m demo.robust --output robust``.

Every run continues the training of the shipped model on fresh training scenes. The task's loss sees clean images only.

    baseline   the loss of the task
    degraded   the same, with half of the images blurred, hazy or grainy: plain augmentation, as a control of ``index``
    index      the loss of the task, plus a weight times the shift index between clean images and such degraded ones
    vittle-f   Vittle's bottleneck with a fixed prior
    vittle-l   Vittle's bottleneck with a learned prior

Degraded images are those of ``build.of_any_quality``, not made by the operators of the shifts. Runs of one seed see the same
scenes in the same order. The responses of each model to the demo's test scenes and shifts are scored by every measure.
An interrupted command continues with the runs that are missing; ``--table`` only prints.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo.build import (
    ASSETS,
    MEAN,
    STD,
    _optimiser,
    _step,
    of_any_quality,
    pixels,
    questions_of,
    rows_to_parquet,
    write_answers,
)
from demo.scenes import DEVELOPMENT_SEED, KINDS, ask, training_scenes
from scipy import special
from tabulate import tabulate
from tqdm import tqdm

from lmms_eval_emi.core.jackknife import Jackknife, combine, difference
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.functional import shift_index
from lmms_eval_emi.robust_training import IGNORED, Bottleneck

ARMS = ("baseline", "degraded", "index", "vittle-f", "vittle-l")
LAYER = 2  # of 4 blocks, from 0: three quarters of them come before the bottleneck, as in the published 24 of 32
RATE, STEPS, BATCH = 1e-3, 60, 16
INDEX_WEIGHT = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Train, answer, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the responses and scores")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="what to train (default: all)")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of a run (default: %(default)s)")
    parser.add_argument("--development", action="store_true", help="only print accuracy on the development scenes")
    parser.add_argument("--table", action="store_true", help="only print the tables of the output")
    parser.add_argument("--figure", type=Path, help="also write the figure of the tables, as SVG")
    args = parser.parse_args(argv)
    for seed in [] if args.table else range(args.seeds):
        for arm in args.arms:
            folder = args.output.resolve() / f"{arm}-{seed}"
            if not (folder / "scores.json").exists():
                model, bottleneck = train(arm, seed, args.steps)
                if args.development:
                    print(arm, seed, development_accuracy(model, folder), flush=True)
                else:
                    evaluate(model, folder)
                    if bottleneck:
                        bottleneck.save(folder)
    if not args.development:
        runs = {arm: [args.output / f"{arm}-{seed}" for seed in range(args.seeds)] for arm in args.arms}
        print("\n\n".join(tables(runs, args.figure)))
    return 0


# --- training -------------------------------------------------------------------------------------------------------


def train(arm: str, seed: int, steps: int) -> tuple[Any, Bottleneck | None]:
    """Continue the training of the shipped model.

    Args:
        arm: one of ``ARMS``.
        seed: seed of the scenes, and of the bottleneck's weights.
        steps: number of optimiser steps of ``BATCH`` scenes.

    Returns:
        The model in evaluation mode, and its bottleneck if it has one.
    """
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    model = LlavaForConditionalGeneration.from_pretrained(ASSETS / "model", dtype=torch.float32).train()
    model.model.vision_tower.eval().requires_grad_(False)
    bottleneck = None
    if arm.startswith("vittle"):
        bottleneck = Bottleneck.for_model(model, LAYER, learned_prior=arm == "vittle-l")
    trained = [one for one in model.parameters() if one.requires_grad]
    trained += [one for one in bottleneck.parameters() if one.requires_grad] if bottleneck else []
    optimiser, schedule = _optimiser(trained, RATE, steps)
    rng, scenes = random.Random(1000 + seed), training_scenes(BATCH * steps, seed=2000 + seed)
    bar = tqdm(range(steps), desc=f"{arm}, seed {seed}")
    for step in bar:
        drawn = [next(scenes) for _ in range(BATCH)]
        clean = pixels(drawn)
        batch = tokens_of([ask(one, rng.choice(KINDS), rng) for one in drawn], tokenizer, model.config)
        if arm == "degraded":
            seen = torch.cat([clean[: BATCH // 2], of_any_quality(clean)[BATCH // 2 :]])
        else:
            seen = clean
        if bottleneck:
            bottleneck.set_progress(step / steps)
        outputs = model(**batch, pixel_values=seen, output_hidden_states=arm == "index")
        loss = outputs.loss
        if bottleneck:
            loss = loss + bottleneck.loss
        if arm == "index":
            other = model(**batch, pixel_values=of_any_quality(clean), output_hidden_states=True)
            loss = loss + INDEX_WEIGHT * index_of(outputs, other, batch, model)
        _step(optimiser, schedule, loss, trained)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    if bottleneck:
        bottleneck.eval()
    return model.eval(), bottleneck


def tokens_of(questions: Sequence[Any], tokenizer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Prompts with their answers as (B, L) tokens, padded on the right; labels leave out the prompt."""
    image = tokenizer.convert_ids_to_tokens(config.image_token_index) * config.image_seq_length
    rows = []
    for one in questions:
        prompt = tokenizer(f"USER: {image}\n{one.question} ASSISTANT:", add_special_tokens=False)["input_ids"]
        answer = tokenizer(f" {one.reference}</s>", add_special_tokens=False)["input_ids"]
        rows.append((prompt, answer))
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), IGNORED)
    attended = torch.zeros((len(rows), length), dtype=torch.long)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
        attended[row, :end] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": attended}


def index_of(clean: Any, degraded: Any, batch: Mapping[str, torch.Tensor], model: Any) -> torch.Tensor:
    """The shift index between mean hidden states of a batch and of its degraded copy; a float64 scalar.

    Images, questions and responses are the means of their tokens' states behind block ``LAYER``. References are the means of
    the input embeddings of the responses' tokens, the same for both.
    """
    images = batch["input_ids"] == model.config.image_token_index
    answers = batch["labels"] != IGNORED
    questions = batch["attention_mask"].bool() & ~images & ~answers

    def mean(states: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        weights = where[..., None].to(states)
        return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)

    one, other = clean.hidden_states[LAYER + 1], degraded.hidden_states[LAYER + 1]
    references = mean(clean.hidden_states[0], answers).detach()
    return shift_index(
        (mean(one, images), mean(other, images)),
        (mean(one, questions), mean(other, questions)),
        (mean(one, answers), references),
        (mean(other, answers), references),
    )


# --- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(model: Any, folder: Path) -> None:
    """Write a model's responses to the demo's splits, and their scores by every measure, into a folder."""
    from lmms_eval_emi.scoring.pipeline import score_samples
    from lmms_eval_emi.scoring.rows import write_results
    from lmms_eval_emi.settings import load_settings
    from lmms_eval_emi.slices.demo.command import STUDY, UNTRAINED, collect_with_controls

    folder.mkdir(parents=True, exist_ok=True)
    write_answers(load_study(STUDY), model, folder)
    encoders = {f"{name}_encoder": str(ASSETS / f"{name}_encoder") for name in ("vision", "text")}
    settings = load_settings(resamples=0, **encoders)
    entry = collect_with_controls(folder)
    write_results(
        folder / "scores.json",
        score_samples([entry], settings, estimators=[STUDY, *UNTRAINED, "reference-r2"], allow_missing=True),
    )


def development_accuracy(model: Any, folder: Path) -> dict[str, float]:
    """Share of development questions whose response names every object asked about, clean and degraded."""
    from datasets import Dataset, load_dataset
    from demo.build import answer
    from PIL import Image

    path = folder.with_suffix(".parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows_to_parquet(questions_of(DEVELOPMENT_SEED), path)
    rows = load_dataset("parquet", data_files=str(path), split="train")
    found = {}
    for name in ("clean", "degraded"):
        if name == "degraded":
            torch.manual_seed(0)
            array = np.stack([np.asarray(image.convert("RGB").resize((112, 112))) for image in rows["image"]])
            seen = of_any_quality((torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD)
            back = ((seen * STD + MEAN) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            columns = rows.remove_columns("image").to_dict()
            rows = Dataset.from_dict(columns | {"image": [Image.fromarray(one) for one in back]}, rows.features)
        replies = answer(rows, model, name)
        found[name] = float(np.mean([all(n in r for n in a) for r, a in zip(replies, rows["asked"], strict=True)]))
    return found


# --- tables ---------------------------------------------------------------------------------------------------------


def tables(runs: Mapping[str, Sequence[Path]], figure: Path | None) -> list[str]:
    """Tables of accuracy and of EMID by every measure, as means over seeds and as differences from the baseline."""
    measured = {arm: [_scores(folder) for folder in folders] for arm, folders in runs.items()}
    shown, differences = [], {}
    for measure in measured["baseline"][0]:
        rows = []
        for split in measured["baseline"][0][measure]:
            base = [one[measure][split] for one in measured["baseline"]]
            cells = [f"{math.fsum(one.value for one in base) / len(base):.3f}"]
            for arm in runs:
                if arm == "baseline":
                    continue
                pairs = [difference(one[measure][split], own) for one, own in zip(measured[arm], base, strict=True)]
                differences[measure, split, arm] = value, reach = over_seeds(pairs)
                cells.append(f"{value:+.3f} ± {reach:.3f}")
            rows.append([split, *cells])
        headers = [
            f"{measure}, {len(runs['baseline'])} seeds",
            "baseline",
            *(f"{one} − baseline" for one in runs if one != "baseline"),
        ]
        shown.append(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))
    if figure:
        draw_figure(differences, [one for one in runs if one != "baseline"], figure)
    return shown


def _scores(folder: Path) -> dict[str, dict[str, Jackknife]]:
    """Accuracy by split, and EMID by shift of every measure, with and without each image."""
    from lmms_eval_emi.scoring.compare import read_compared
    from lmms_eval_emi.slices.demo.command import SHUFFLED, collect_with_controls, right_rows

    found: dict[str, dict[str, Jackknife]] = {"accuracy": {}}
    for split, rows in right_rows(collect_with_controls(folder)).items():
        if split == SHUFFLED:
            continue
        images: dict[str, list[bool]] = {}
        for key, right in rows.items():
            images.setdefault(str(key[0]).rpartition("-")[0], []).append(right)
        total, count = sum(map(sum, images.values())), sum(map(len, images.values()))
        without = {image: (total - sum(own)) / (count - len(own)) for image, own in images.items()}
        found["accuracy"][split] = Jackknife(total / count, (without,))
    for one in read_compared([folder / "scores.json"]):
        name = one.settings["estimator"].partition(",")[0].partition("#")[0]
        found[f"EMID, {name}"] = {split: own for split, own in one.emid.items() if split not in (SHUFFLED, "fresh")}
    return found


def over_seeds(pairs: Sequence[Jackknife]) -> tuple[float, float]:
    """Mean over seeds, and the reach of its 95 % interval over seeds and images.

    The variances over images (of the mean over seeds) and over seeds (on these images) are added, which counts their
    interaction twice and so errs on the wide side; the degrees of freedom are those of the smaller sample.
    """
    mean = combine(lambda values: math.fsum(values) / len(values), pairs)
    seeds = len(pairs)
    spread = float(np.var([one.value for one in pairs], ddof=1)) / seeds if seeds > 1 else 0.0
    error = math.sqrt((mean.stderr or 0.0) ** 2 + spread)
    df = min(mean.df, seeds - 1) if seeds > 1 else mean.df
    return mean.value, float(special.stdtrit(df, 0.975)) * error


def draw_figure(
    differences: Mapping[tuple[str, str, str], tuple[float, float]], arms: Sequence[str], path: Path
) -> None:
    """Accuracy of each arm less that of the baseline, by split, with intervals; an SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    splits = list(dict.fromkeys(split for measure, split, _ in differences if measure == "accuracy"))
    canvas, axes = pyplot.subplots(figsize=(7, 0.42 * len(splits) + 1))
    for number, arm in enumerate(arms):
        found = [differences["accuracy", split, arm] for split in splits]
        heights = np.arange(len(splits)) + 0.16 * (number - (len(arms) - 1) / 2)
        axes.errorbar([one[0] for one in found], heights, xerr=[one[1] for one in found], fmt="o", ms=4, label=arm)
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set_yticks(range(len(splits)), splits)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy less that of the baseline")
    axes.legend(frameon=False, fontsize="small")
    canvas.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
