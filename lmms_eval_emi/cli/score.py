"""``lmms-eval-emi score``: figures of answers that exist."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from lmms_eval_emi.files import check_folder_writable
from lmms_eval_emi.studies.catalogue import BUILT_IN, Study, StudyError

log = logging.getLogger("lmms_eval_emi")
SHOWN_PROBLEMS = 10


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "score",
        help="EMI, EMID and bound of answers that exist",
        description="Read answers (LLaVA-style files, or what lmms-eval --log_samples wrote), compute EMI of every split and EMID and the RJSD bound of every shift, print a table and write JSON.",
        epilog="Options that are not given here are read from LMMS_EVAL_EMI_* variables; see the README.",
    )
    add_study_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the figures as JSON")
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="score this split, and the ID split that it is compared with; may be repeated (default: all)",
    )
    parser.add_argument(
        "--estimator",
        action="append",
        metavar="NAME|PATH",
        help="registered estimator, or a .safetensors or .pt file; several give a column each (default: club-global)",
    )
    parser.add_argument(
        "--allow-other-encoders",
        action="store_true",
        default=None,
        help="use an estimator although other encoders made the embeddings that it was trained on",
    )
    parser.add_argument(
        "--convention", choices=("published", "equal_weight"), help="convention of the RJSD (default: published)"
    )
    parser.add_argument(
        "--entropy",
        type=float,
        metavar="NATS",
        help="entropy scale: give the theorem's bound instead of the scaled index",
    )
    add_encoder_arguments(parser)
    parser.set_defaults(run=run)


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which answers of which study."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--shift", choices=BUILT_IN, help="which built-in family of splits the answers belong to")
    which.add_argument("--study", metavar="NAME|FILE", help="the same, or a study file of your own")
    parser.add_argument(
        "--responses",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders of answers: {split}.jsonl or {split}_{model}.jsonl, JSON lines with question_id and text; or an --output_path of lmms-eval --log_samples (default: the files that the study names)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="name of the model in table and JSON; where a folder holds several, which to take (default: what the files say)",
    )
    parser.add_argument("--allow-missing", action="store_true", help="use what is there, and say what was left out")


def add_encoder_arguments(parser: argparse.ArgumentParser, batch_size: str = "--batch-size") -> None:
    """Options that say how to embed."""
    parser.add_argument(
        "--vision-encoder", metavar="NAME|PATH", help="CLIP checkpoint (default: openai/clip-vit-base-patch32)"
    )
    parser.add_argument("--text-encoder", metavar="NAME|PATH", help="XLM-R checkpoint (default: xlm-roberta-base)")
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    parser.add_argument(batch_size, type=int, metavar="N", help="items a forward pass of an encoder (default: 64)")


def run(args: argparse.Namespace) -> int:
    """Score, print, write."""
    from lmms_eval_emi.settings import override_settings
    from lmms_eval_emi.studies.catalogue import load_study

    given = ("allow_other_encoders", "convention", "entropy", "vision_encoder", "text_encoder", "device", "batch_size")
    settings = override_settings({name: getattr(args, name) for name in given})
    study = load_study(args.study or args.shift)
    names = chosen_splits(study, args.split)
    if args.output:
        check_writable(args.output)

    from lmms_eval_emi.encoders import load_encoders
    from lmms_eval_emi.estimators import check_encoders, load_estimator
    from lmms_eval_emi.files import write_atomically
    from lmms_eval_emi.report.lost_rows import find_lost_rows, write_lost_rows
    from lmms_eval_emi.samples import embed_splits, without_images
    from lmms_eval_emi.studies.scoring import notes_on_samples, score_study
    from lmms_eval_emi.studies.table import results_to_table

    estimators = [load_estimator(source) for source in args.estimator or [settings.estimator]]
    answered = join_responses(args, study, names)
    encoders = load_encoders(settings.vision_encoder, settings.text_encoder, settings.device)
    text_only = all(without_images(model.samples) for model in answered)
    for estimator in estimators:
        check_encoders(estimator, encoders, text_only=text_only, allow_other=settings.allow_other_encoders)
    together = {f"{model.model}: {name}": rows for model in answered for name, rows in model.samples.items()}
    embedded = embed_splits(together, encoders, batch_size=settings.batch_size)
    notes = {model.model: notes_on_samples(model.samples) for model in answered}
    results = [
        score_study(
            study,
            {name: embedded[f"{model.model}: {name}"] for name in model.samples},
            estimator,
            model=model.model,
            convention=settings.convention,
            entropy=settings.entropy,
            left_out=model.left_out,
            notes=notes[model.model],
        )
        for model in answered
        for estimator in estimators
    ]
    if args.output:
        content = results[0].to_dict() if len(results) == 1 else {"results": [result.to_dict() for result in results]}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        log.info("figures written to %s", write_atomically(args.output, text + "\n"))
        if args.output.is_file():
            lost = [
                (result, find_lost_rows(result, model.samples))
                for result, model in zip(results, (model for model in answered for _ in estimators), strict=True)
            ]
            write_lost_rows(args.output, lost)
    print(results_to_table(results))
    for model in answered:
        for reasons in model.left_out.values():
            for reason in reasons[:SHOWN_PROBLEMS]:
                log.warning("%s: left out: %s", model.model, reason)
        for name, remarks in notes[model.model].items():
            log.warning("%s, split %s: %s.", model.model, name, "; ".join(remarks))
        if study.id_split not in model.samples:
            log.warning(
                "%s: The ID split %s was not scored, so EMID and the bound are left out. Add its answers as %s.jsonl.",
                model.model,
                study.id_split,
                study.id_split,
            )
    return 0


def join_responses(args: argparse.Namespace, study: Study, names: list[str]) -> list:
    """The samples of all answers that the options of :func:`add_study_arguments` name, a model an entry."""
    from lmms_eval_emi.answers import AnswersError, answers_of_study, find_answers
    from lmms_eval_emi.studies.joining import join_answers

    if not args.responses:
        if args.shift or study.source in BUILT_IN:
            raise AnswersError(f"responses: expected a folder with the answers of {study.name}: --responses DIR.")
        models = [answers_of_study(study, args.model)]
        return join_answers(study, models, names, label=study.name, allow_missing=args.allow_missing)
    answered = []
    for folder in args.responses:
        models = find_answers(folder, study, args.model)
        label = folder.resolve().name
        answered += join_answers(study, models, names, label=label, allow_missing=args.allow_missing)
    seen: dict[str, int] = {}
    for entry in answered:  # two folders may hold runs of one model
        seen[entry.model] = seen.get(entry.model, 0) + 1
        if seen[entry.model] > 1:
            entry.model = f"{entry.model} ({seen[entry.model]})"
    return answered


def chosen_splits(study: Study, chosen: list[str] | None) -> list[str]:
    """The splits to work on: all, or the chosen ones and the ID split."""
    if not chosen:
        return list(study.splits)
    wanted = {study.id_split, *(study.split(name).name for name in chosen)}
    return [name for name in study.splits if name in wanted]


def check_writable(path: Path) -> None:
    """Find out before the work whether a file can be written after it.

    Raises:
        StudyError: the path is a folder.
        OSError: the file cannot be written.
    """
    if path.is_dir():
        raise StudyError(
            f"output: expected a file, got the folder {path}. Add a file name, such as {path / 'results.json'}."
        )
    path = path.resolve()
    if path.exists() and not path.is_file():
        return  # a device or a pipe
    check_folder_writable(path.parent)
