"""``lmms-eval-emi score``: figures of answers that exist."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.studies.catalogue import BUILT_IN, Study, StudyError

if TYPE_CHECKING:
    import datasets

    from lmms_eval_emi.samples import Sample

log = logging.getLogger("lmms_eval_emi")
SHOWN_PROBLEMS = 10


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "score",
        help="EMI, EMID and bound of answers that exist",
        description="Read LLaVA-style answer files, compute EMI of every split and EMID and the RJSD bound of every shift, print a table and write JSON.",
        epilog="Options that are not given here are read from LMMS_EVAL_EMI_* variables; see the README.",
    )
    parser.add_argument("--shift", required=True, choices=BUILT_IN, help="which family of splits the answers belong to")
    parser.add_argument(
        "--responses",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of answer files, {split}.jsonl or {split}_{model}.jsonl, JSON lines with question_id and text",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the figures as JSON")
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="score this split, and the ID split that it is compared with; may be repeated (default: all)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="name of the model in table and JSON; where the folder holds several, which {split}_{model}.jsonl to take (default: the files' model_id)",
    )
    parser.add_argument(
        "--estimator",
        metavar="NAME|PATH",
        help="registered estimator, or a .safetensors or .pt file (default: club-global)",
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
    parser.add_argument(
        "--vision-encoder", metavar="NAME|PATH", help="CLIP checkpoint (default: openai/clip-vit-base-patch32)"
    )
    parser.add_argument("--text-encoder", metavar="NAME|PATH", help="XLM-R checkpoint (default: xlm-roberta-base)")
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="items a forward pass (default: 64)")
    parser.add_argument("--allow-missing", action="store_true", help="score what is there, and say what was left out")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score, print, write."""
    from lmms_eval_emi.settings import override_settings
    from lmms_eval_emi.studies.catalogue import load_study

    given = ("estimator", "convention", "entropy", "vision_encoder", "text_encoder", "device", "batch_size")
    settings = override_settings({name: getattr(args, name) for name in given})
    study = load_study(args.shift)
    names = _chosen_splits(study, args.split)
    if args.output:
        _check_writable(args.output)

    from lmms_eval_emi.encoders import load_encoders
    from lmms_eval_emi.estimators import load_estimator
    from lmms_eval_emi.samples import embed_splits
    from lmms_eval_emi.studies.rows import load_splits
    from lmms_eval_emi.studies.scoring import score_study
    from lmms_eval_emi.studies.table import result_to_table

    reader = _AnswerReader(study, args.responses, args.model, allow_missing=args.allow_missing)
    reader.find(names)
    estimator = load_estimator(settings.estimator)
    samples = reader.read(load_splits(study))
    encoders = load_encoders(settings.vision_encoder, settings.text_encoder, settings.device)
    result = score_study(
        study,
        embed_splits(samples, encoders, batch_size=settings.batch_size),
        estimator,
        model=reader.model_name(),
        convention=settings.convention,
        entropy=settings.entropy,
        left_out=reader.left_out,
    )
    print(result_to_table(result))
    for name, reasons in result.left_out.items():
        for reason in reasons[:SHOWN_PROBLEMS]:
            log.warning("left out of %s: %s", name, reason)
    if study.id_split not in result.splits:
        log.warning(
            "The ID split %s was not scored, so EMID and the bound are left out. Add its answers as %s.jsonl.",
            study.id_split,
            study.id_split,
        )
    if args.output:
        log.info("figures written to %s", result.write(args.output))
    return 0


def _chosen_splits(study: Study, chosen: list[str] | None) -> list[str]:
    if not chosen:
        return list(study.splits)
    wanted = {study.id_split, *(study.split(name).name for name in chosen)}
    return [name for name in study.splits if name in wanted]


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise StudyError(
            f"output: expected a file, got the folder {path}. Add a file name, such as {path / 'results.json'}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = path.with_name(f".{path.name}.probe")
    probe.touch()
    probe.unlink()


class _AnswerReader:
    """Finds and reads the answers of a study's splits, and joins them with its rows by question id."""

    def __init__(self, study: Study, folder: Path, model: str | None, *, allow_missing: bool) -> None:
        self.study, self.folder, self.model, self.allow_missing = study, folder, model, allow_missing
        self.left_out: dict[str, list[str]] = {}
        self._files: dict[str, Path] = {}
        self._models: Counter[str] = Counter()

    def find(self, names: list[str]) -> None:
        """Find the answer file of every named split.

        Raises:
            AnswersError: a file is missing, and that is not allowed.
        """
        from lmms_eval_emi.answers.llava import find_answer_files

        found = find_answer_files(self.folder, self.study, self.model)
        for name in names:
            if name in found:
                self._files[name] = found[name]
            else:
                stems = " or ".join(f"{stem}.jsonl" for stem in self.study.splits[name].answer_stems)
                self.left_out[name] = [f"{self.folder}: no answers of the split {name}. Expected {stems}."]
        self._raise_unless_allowed()

    def read(self, splits: datasets.DatasetDict) -> dict[str, list[Sample]]:
        """Samples of every split that has answers.

        Raises:
            AnswersError: an answer is missing or cannot be read, and that is not allowed.
            StudyError: the dataset lacks a split.
        """
        from lmms_eval_emi.answers.llava import AnswersError, read_answer_file
        from lmms_eval_emi.studies.rows import question_ids, to_samples

        columns = self.study.dataset.columns
        files = {path: read_answer_file(path) for path in dict.fromkeys(self._files.values())}
        samples: dict[str, list[Sample]] = {}
        rows: dict[str, dict[int, str]] = {}
        for name, path in self._files.items():
            if name not in splits:
                raise StudyError(
                    f"{self.study.dataset.path}: expected the split {name}, which is missing; it has {', '.join(splits)}."
                )
            file = files[path]
            ids = [str(question_id) for question_id in question_ids(splits[name], columns)]
            rows[name] = {
                row: file.texts[question_id] for row, question_id in enumerate(ids) if question_id in file.texts
            }
            problems = list(file.problems)
            missing = [question_id for question_id in ids if question_id not in file.texts]
            if missing:
                shown = ", ".join(missing[:SHOWN_PROBLEMS]) + (", ..." if len(missing) > SHOWN_PROBLEMS else "")
                problems.append(
                    f"{path}: {len(missing)} of the {len(ids)} questions of {name} have no usable answer: question_id {shown}. Add the answers."
                )
            if problems:
                self.left_out[name] = problems
            if file.model:
                self._models[file.model] += 1
        self._raise_unless_allowed()
        for name, answers in rows.items():
            if answers:
                samples[name] = to_samples(splits[name], columns, answers)
        if not samples:
            raise AnswersError(f"{self.folder}: none of the answers can be used.")
        return samples

    def model_name(self) -> str:
        """The model that was named, or that of the files, or the folder's name."""
        return self.model or (self._models.most_common(1)[0][0] if self._models else self.folder.resolve().name)

    def _raise_unless_allowed(self) -> None:
        from lmms_eval_emi.answers.llava import AnswersError

        problems = list(dict.fromkeys(problem for reasons in self.left_out.values() for problem in reasons))
        if problems and not self.allow_missing:
            shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])
            more = f"\n  and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
            raise AnswersError(
                f"the answers are not complete:\n{shown}{more}\nMend them, or score what is there with --allow-missing."
            )
