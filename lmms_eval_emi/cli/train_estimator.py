"""``lmms-eval-emi train-estimator``: an estimator for data of one's own."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lmms_eval_emi.cli.score import add_encoder_arguments, add_study_arguments, check_writable, join_responses
from lmms_eval_emi.studies.catalogue import StudyError

log = logging.getLogger("lmms_eval_emi")


class _WithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of options that have one and do not say it themselves."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False) or "default:" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "train-estimator",
        help="train an estimator of mutual information on answers of your own",
        description="Train on the pairs (input, response) and (input, reference) of all splits, hold out some images, and write a safetensors file with its card. The defaults are those of Oh et al. (ICML 2025).",
        formatter_class=_WithDefaults,
    )
    add_study_arguments(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="where to write the estimator, .safetensors"
    )
    parser.add_argument("--name", help="of the estimator; the file's name if none is given")
    parser.add_argument(
        "--kind", choices=("club", "infonce"), default="club", help="CLUB (upper bound) or InfoNCE (lower bound)"
    )
    parser.add_argument("--iterations", type=int, default=5000, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=1024, help="pairs a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of AdamW")
    parser.add_argument("--hidden", type=int, default=250, help="width of the networks")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the held-out part and the batches")
    parser.add_argument(
        "--held-out", type=float, default=0.1, metavar="SHARE", help="share of the images that training never sees"
    )
    parser.add_argument(
        "--keep", choices=("best", "last"), default="best", help="the state with the best held-out score, or the last"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint of an interrupted training")
    add_encoder_arguments(parser, batch_size="--encoder-batch-size")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Embed, train, write."""
    if args.output.suffix != ".safetensors":
        raise StudyError(f"output: expected a .safetensors file, got {args.output}.")
    check_writable(args.output)
    from lmms_eval_emi.encoders import load_encoders
    from lmms_eval_emi.estimators import TEXT_ONLY
    from lmms_eval_emi.estimators.training import TrainingOptions, train_estimator
    from lmms_eval_emi.samples import embed_splits, without_images
    from lmms_eval_emi.settings import override_settings
    from lmms_eval_emi.studies.catalogue import load_study

    options = TrainingOptions(
        kind=args.kind,
        iterations=args.iterations,
        batch_size=args.batch_size,
        lr=args.lr,
        hidden=args.hidden,
        seed=args.seed,
        held_out=args.held_out,
        keep=args.keep,
    )
    given = {name: getattr(args, name) for name in ("vision_encoder", "text_encoder", "device")}
    settings = override_settings({**given, "batch_size": args.encoder_batch_size})
    study = load_study(args.study or args.shift)
    answered = join_responses(args, study, list(study.splits))
    encoders = load_encoders(settings.vision_encoder, settings.text_encoder, settings.device)
    samples = {f"{model.model}: {name}": rows for model in answered for name, rows in model.samples.items()}
    text_only = without_images(samples)
    checkpoint = args.output.with_suffix(".checkpoint")
    estimator = train_estimator(
        embed_splits(samples, encoders, batch_size=settings.batch_size),
        options,
        name=args.name or args.output.stem,
        about={
            "encoders": {
                "vision": TEXT_ONLY if text_only else encoders.vision.signature,
                "text": encoders.text.signature,
            },
            "study": study.name,
            "models": [model.model for model in answered],
        },
        checkpoint=checkpoint,
        resume=args.resume,
    )
    estimator.save(args.output)
    checkpoint.unlink(missing_ok=True)
    card = estimator.card
    kept = (
        next(entry for entry in card["history"] if entry["iteration"] == card["kept_iteration"])
        if card["history"]
        else {}
    )
    print(
        f"{args.output}: {args.kind}, {card['data']['pairs']} pairs of {card['data']['images']} images or rows, iteration {card['kept_iteration']} of {args.iterations}"
    )
    print(
        f"loss {kept.get('loss', float('nan')):.4g}"
        + (
            f", held-out score {kept['held_out']:.4g} nats of {card['data']['held_out_pairs']} pairs"
            if "held_out" in kept
            else ""
        )
    )
    print(f"use it with: --estimator {args.output}   or   export LMMS_EVAL_EMI_ESTIMATOR={args.output}")
    return 0
