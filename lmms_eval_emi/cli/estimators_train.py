"""``lmms-eval-emi estimators train``: train an estimator on your own data."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.cli.options import (
    add_overwrite,
    add_settings,
    add_study_arguments,
    new_parser,
    renamed_models,
    resolve_sources,
    settings_of,
)
from lmms_eval_emi.errors import StudyError

if TYPE_CHECKING:
    from lmms_eval_emi.core.embeddings import Embeddings
    from lmms_eval_emi.data.study import Study
    from lmms_eval_emi.settings import Settings

log = logging.getLogger("lmms_eval_emi")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=("lmms-eval-emi estimators train --study my_study.yaml --output mine.safetensors",),
        description="Train on the pairs (input, response) and (input, reference) of all splits, and write a safetensors file with its card. For each of --folds sets of images a network is trained that does not see them, and rows of these data are scored by that one. Optimiser and widths are those of Oh et al. (ICML 2025), who trained one network (--folds 1 --held-out 0 --keep last).",
    )
    add_study_arguments(parser, several="several are pooled")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="where to write the estimator, .safetensors"
    )
    add_overwrite(parser)
    parser.add_argument("--name", help="of the estimator; the file's name if none is given")
    parser.add_argument(
        "--kind",
        default="club",
        help="club (as published), club-free (CLUB in whitened spaces with a free variance), infonce (lower bound), or one of another package",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=5,
        metavar="K",
        help="sets of images, each of which one network does not see; 1 for one network that sees all",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="S",
        help="train as many times, from --seed on; their spread is the estimator's own error",
    )
    parser.add_argument("--iterations", type=int, default=5000, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=1024, help="pairs per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of AdamW")
    parser.add_argument("--hidden", type=int, default=250, help="width of the networks")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the held-out part and the batches")
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of a network's images that tell when to stop",
    )
    parser.add_argument(
        "--patience",
        type=int,
        default=1000,
        metavar="STEPS",
        help="stop a network whose held-out score has not improved for so many steps; 0 for never (default: %(default)s)",
    )
    parser.add_argument(
        "--keep", choices=("best", "last"), default="best", help="the state with the best held-out score, or the last"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint of an interrupted training")
    add_settings(parser, "vision_encoder", "text_encoder", "device", "images", batch_size="encoder_batch_size")
    return parser


def run(args: argparse.Namespace) -> int:
    """Embed responses, train an estimator on them, and write it."""
    if args.output.suffix != ".safetensors":
        raise StudyError(f"output: expected a .safetensors file, got {args.output}.")
    settings = settings_of(args)
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.util.files import check_output

    resolve_sources(args, several=True)
    studies = [load_study(name) for name in args.study]
    check_output(args.output, [study.source for study in studies], overwrite=args.overwrite, example="mine.safetensors")
    from lmms_eval_emi.encoders import resolve_device
    from lmms_eval_emi.estimators.training import TrainingOptions, train_estimator

    options = TrainingOptions(
        **{field.name: getattr(args, field.name) for field in fields(TrainingOptions) if hasattr(args, field.name)}
    )
    splits, about = _training_data(args, studies, settings)
    checkpoint = args.output.with_suffix(".checkpoint")
    try:
        estimator = train_estimator(
            splits,
            options,
            name=args.name or args.output.stem,
            about=about,
            checkpoint=checkpoint,
            resume=args.resume,
            device=resolve_device(settings.device),
        )
    except KeyboardInterrupt:
        if checkpoint.exists():
            log.warning(
                "Interrupted. What was trained so far is in %s; the same command with --resume continues.", checkpoint
            )
        raise
    estimator.save(args.output)
    checkpoint.unlink(missing_ok=True)
    print("\n".join(_card_to_lines(estimator.card, args.output)))
    return 0


def _training_data(
    args: argparse.Namespace, studies: Sequence[Study], settings: Settings
) -> tuple[dict[str, Embeddings], dict[str, Any]]:
    """Return the embeddings of all splits by label, and what the estimator's card says of encoders, studies and models."""
    from lmms_eval_emi.data.rows import without_images
    from lmms_eval_emi.estimators import TEXT_ONLY
    from lmms_eval_emi.scoring.embed import embedding_cache
    from lmms_eval_emi.scoring.join import collect_samples
    from lmms_eval_emi.scoring.pipeline import embed_samples, load_instruments

    entries = [
        entry
        for study in studies
        for entry in collect_samples(
            study,
            args.responses,
            settings,
            models=args.only_model,
            renamed=renamed_models(args.model_name),
            allow_missing=args.allow_missing,
        )
    ]
    text_only = all(without_images(entry.samples) for entry in entries)
    instruments = load_instruments(settings, None, text_only=text_only)
    embedded = embed_samples(
        entries,
        instruments,
        batch_size=settings.batch_size,
        allow_missing=args.allow_missing,
        cache=embedding_cache(settings),
    )
    several = len(studies) > 1
    splits = {
        f"{f'{entry.study.name}, ' if several else ''}{entry.model}: {name}": split
        for entry, by_split in embedded
        for name, split in by_split.items()
    }
    vision, text = instruments.encoders.vision, instruments.encoders.text
    about = {
        "encoders": {"vision": vision.signature if vision else TEXT_ONLY, "text": text.signature},
        "study": " + ".join(study.name for study in studies),
        "models": list(dict.fromkeys(entry.model for entry in entries)),
    }
    return splits, about


def _card_to_lines(card: dict[str, Any], path: Path) -> list[str]:
    """Return the lines that the command prints about a trained estimator: its networks, and how to use it."""
    options, data = card["options"], card["data"]
    sets = f", {options['folds']} folds" * (options["folds"] > 1) + f", {options['seeds']} seeds" * (
        options["seeds"] > 1
    )
    lines = [f"{path}: {card['kind']}{sets}, {data['pairs']} pairs of {data['images']} images or rows"]
    for number, network in enumerate(card["networks"]):
        kept = next(entry for entry in network["history"] if entry["iteration"] == network["kept_iteration"])
        held = f", held-out score {kept.get('held_out', 0):.4g} nats of {network['held_out_pairs']} pairs"
        lines.append(
            f"network {number + 1}: iteration {network['kept_iteration']} of {network['iterations']}, loss {kept['loss']:.4g}{held if 'held_out' in kept else ''}"
        )
    return [*lines, f"use it with: --estimator {path}   or   export LMMS_EVAL_EMI_ESTIMATOR={path}"]
