"""What a run of lmms-eval has loaded, answered and scored.

lmms-eval aggregates task after task, each with its own values only, and EMID needs two tasks. So a
process remembers the dataset of every task that was loaded and every answer that was processed or,
on rank 0, received from other ranks; the first aggregation then scores all splits at once, and the
others look their figures up.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from loguru import logger

from lmms_eval_emi.encoders import resolve_device
from lmms_eval_emi.files import check_folder_writable
from lmms_eval_emi.samples import encodable
from lmms_eval_emi.settings import Settings, SettingsError, cache_folder, load_settings
from lmms_eval_emi.studies.catalogue import SplitSpec, Study, StudyError

if TYPE_CHECKING:
    import datasets

    from lmms_eval_emi.samples import Sample
    from lmms_eval_emi.studies.scoring import SplitFigures, StudyResult

T = TypeVar("T")
SplitKey = tuple[str, str]  # name of the study, name of the split


class PreflightError(SystemExit):
    """What a run needs is missing. It ends the process: lmms-eval retries and swallows other errors."""


class Answer(dict):
    """A row's answer: JSON for the samples file, and a registration wherever it is unpickled.

    The harness gathers the values of every task to rank 0 before the first aggregation, so rank 0
    knows all answers by then.
    """

    @classmethod
    def of(cls, study: str, split: str, row: int, answer: Any) -> Answer:
        """Register the answer of a row, and return it for the harness to pass on."""
        text = encodable(answer if isinstance(answer, str) else "" if answer is None else str(answer))
        RUN.receive((study, split), row, text)
        return cls(row=row_key(study, split, row), answer=text)

    def __reduce__(self) -> tuple:
        study, split, row = _parse_row_key(self["row"])
        return Answer.of, (study, split, row, self["answer"])


def row_key(study: str, split: str, row: int) -> str:
    """Identifies a row in a run. A text, because the harness averages numbers."""
    return f"{study}:{split}:{row}"


def _parse_row_key(key: str) -> tuple[str, str, int]:
    study_and_split, _, row = key.rpartition(":")
    study, _, split = study_and_split.rpartition(":")
    return study, split, int(row)


def split_of(items: Sequence[Answer | str]) -> SplitKey:
    """Study and split of the values of one task."""
    first = items[0]
    study, split, _ = _parse_row_key(first["row"] if isinstance(first, Answer) else first)
    return study, split


@dataclass
class RunState:
    """What is known of the run in this process; loading tasks after answers were processed begins another run."""

    studies: dict[str, Study] = field(default_factory=dict)
    loaded: dict[SplitKey, datasets.Dataset] = field(default_factory=dict)
    answers: dict[SplitKey, dict[int, str]] = field(default_factory=dict)
    results: dict[str, StudyResult] | None = None
    begun: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def open_split(self, study: Study, split: str, dataset: datasets.Dataset) -> None:
        """A task of this split was loaded. The first one checks whatever the run will need.

        Raises:
            PreflightError: something is missing, or the rows are those of other files.
        """
        with self.lock:
            if self.begun or (study.name, split) in self.loaded:
                self._reset()  # another run of this process
            if not self.loaded:
                preflight()
            known = self.studies.setdefault(study.name, study)
            if known.source != study.source:
                raise PreflightError(
                    f"lmms_eval_emi: two studies of this run are named {study.name}: {known.source} and {study.source}. Rename one."
                )
            if is_main_process():
                _check_rows(study, split, dataset)
            self.loaded[study.name, split] = dataset
            self.answers[study.name, split] = {}

    def _reset(self) -> None:
        self.studies, self.loaded, self.answers, self.results, self.begun = {}, {}, {}, None, False

    def has_split(self, study: str, split: str) -> bool:
        """Whether a task of this split is part of the run."""
        return (study, split) in self.loaded

    def begin(self) -> None:
        """All tasks are loaded: warn, once, about shifts whose ID split is not part of the run."""
        if self.begun:
            return
        with self.lock:
            if self.begun:
                return
            self.begun = True
        if not is_main_process():
            return
        for study in self.studies.values():
            if not self.has_split(study.name, study.id_split):
                logger.warning(
                    f"EMID and its bound need the ID split {study.id_split}, which is not part of this run: they are left out, and EMI is given all the same. Add its task: --tasks {study.task_name(study.id_split)},..."
                )

    def receive(self, key: SplitKey, row: int, answer: str) -> None:
        """Keep the first answer of a row."""
        self.answers.setdefault(key, {}).setdefault(row, answer)

    def figures(self, key: SplitKey, args: Any) -> SplitFigures | None:
        """Figures of a split, or ``None`` where there are none; the first call scores all. Never raises."""
        with self.lock:
            if self.results is None:
                self.results = {}
                try:
                    _score(self, args)
                except Exception as error:
                    logger.error(f"EMI could not be computed: {error}")
                    logger.debug(traceback.format_exc())
            result = self.results.get(key[0])
        return result.splits.get(key[1]) if result else None

    def id_figures(self) -> list[float]:
        """EMI of every ID split of the run, the very objects that the aggregations returned."""
        results = (self.results or {}).values()
        return [
            result.splits[result.study.id_split].emi.value
            for result in results
            if result.study.id_split in result.splits
        ]


RUN = RunState()
_FOOTERS: list[str] = []


@atexit.register
def _print_footers() -> None:
    """The harness prints its table last of all, with four decimals; this stands under it."""
    for footer in _FOOTERS:
        print(footer, flush=True)


def is_main_process() -> bool:
    """Whether this is rank 0 of the run, or its only process."""
    return os.environ.get("RANK", "0") == "0"


def preflight() -> None:
    """Check, before the first answer is generated, whatever the scores will need.

    Rank 0 computes all scores, so it checks estimator, encoders and cache; every rank checks the
    settings.

    Raises:
        PreflightError: with everything that is missing, and its remedy.
    """
    try:
        settings = load_settings()
    except SettingsError as error:
        raise PreflightError(f"lmms_eval_emi: {error}") from error
    if not settings.preflight or not is_main_process():
        return
    problems: list[str] = []
    try:
        check_folder_writable(cache_folder())
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is not there
        problems.append(
            f"The cache {settings.cache} is not writable: {error}\nPoint to one that is: export LMMS_EVAL_EMI_CACHE=/path/to/folder"
        )
    try:
        resolve_device(settings.device)
    except ValueError as error:
        problems.append(str(error))
    problems += _check_models(settings)
    if problems:
        raise PreflightError(
            "lmms_eval_emi: this run could not be scored, so it is stopped before anything is generated.\n\n"
            + "\n\n".join(problems)
            + "\n\nTo generate now and score later: LMMS_EVAL_EMI_PREFLIGHT=0"
        )


def _check_rows(study: Study, split: str, dataset: datasets.Dataset) -> None:
    from lmms_eval_emi.studies.rows import check_columns, stale_cache

    spec = study.split(split).dataset
    try:
        check_columns(dataset, spec.columns, f"{spec.path}, split {split}")
    except StudyError as error:
        raise PreflightError(f"lmms_eval_emi: {error}") from error
    stale = stale_cache(spec.path, dataset)
    if stale:
        raise PreflightError(
            f"lmms_eval_emi: the rows of {spec.path} are not those of the folder {Path(spec.path).resolve()}, but of another folder of that name, or of files that changed since: the cache of datasets tells neither apart.\nRemove that cache and start again:\n  rm -r {stale}"
        )


def _check_models(settings: Settings) -> list[str]:
    """What is wrong with estimator and encoders: each is loaded, and both encoders encode something."""
    from PIL import Image

    from lmms_eval_emi.encoders import Encoders, load_text_encoder, load_vision_encoder
    from lmms_eval_emi.estimators import TEXT_ONLY, check_encoders, load_estimator

    problems: list[str] = []

    def attempt(work: Callable[[], T]) -> T | None:
        try:
            return work()
        except (RuntimeError, ValueError, OSError) as error:
            problems.append(str(error))
            return None

    estimator = attempt(lambda: load_estimator(settings.estimator))
    vision = attempt(lambda: load_vision_encoder(settings.vision_encoder, "cpu"))
    text = attempt(lambda: load_text_encoder(settings.text_encoder, "cpu"))
    if estimator and vision and text:
        # Whether the run has images is not known yet; an estimator of text alone is checked with the answers.
        text_only = estimator.vision_encoder == TEXT_ONLY
        allow = settings.allow_other_encoders
        attempt(lambda: check_encoders(estimator, Encoders(vision, text), text_only=text_only, allow_other=allow))
        image_width = vision.encode([Image.new("RGB", (8, 8))]).shape[1]
        text_width = text.encode(["text"]).shape[1]
        for name, width, expected in (
            ("vision", image_width, estimator.input_dimension),
            ("text", text_width, estimator.input_dimension),
            ("text", text_width, estimator.output_dimension),
        ):
            if expected is not None and width != expected:
                problems.append(
                    f"The estimator {estimator.name} takes embeddings of dimension {expected}, and the {name} encoder gives {width}. Set the encoders that it was trained with."
                )
    return list(dict.fromkeys(problems))


def _score(run: RunState, args: Any) -> None:
    """Save all answers, then score all splits, write the figures and prepare the footer."""
    folder, stamp, model = _run_files(args)
    answers_folder = _unused(folder / f"{stamp}_emi_answers")
    samples: dict[str, dict[str, list[Sample]]] = {}
    for (name, split), answers in run.answers.items():
        if answers and (name, split) in run.loaded:
            spec = run.studies[name].split(split)
            try:
                rows = _save_answers(answers_folder / name, spec, run.loaded[name, split], answers, model)
                samples.setdefault(name, {})[split] = rows
            except Exception as error:  # one split must not cost the others
                logger.error(
                    f"{name}, split {split}: its answers could not be saved or joined with their rows: {error}"
                )
    logger.info(f"Answers saved in {answers_folder}")
    try:
        from lmms_eval_emi.encoders import load_encoders
        from lmms_eval_emi.estimators import check_encoders, load_estimator
        from lmms_eval_emi.samples import embed_splits, without_images
        from lmms_eval_emi.studies.scoring import notes_on_samples, score_study
        from lmms_eval_emi.studies.table import legend, summary_to_table

        settings = load_settings()
        estimator = load_estimator(settings.estimator)
        encoders = load_encoders(settings.vision_encoder, settings.text_encoder, settings.device)
        text_only = all(map(without_images, samples.values()))
        check_encoders(estimator, encoders, text_only=text_only, allow_other=settings.allow_other_encoders)
        together = embed_splits(
            {f"{name}:{split}": rows for name, splits in samples.items() for split, rows in splits.items()},
            encoders,
            batch_size=settings.batch_size,
        )
        for name, splits in samples.items():
            embeddings = {split: together[f"{name}:{split}"] for split in splits}
            result = score_study(
                run.studies[name],
                embeddings,
                estimator,
                model=model,
                convention=settings.convention,
                entropy=settings.entropy,
                notes=notes_on_samples(splits),
            )
            run.results = {**(run.results or {}), name: result}
            for split, reasons in result.left_out.items():
                logger.error(f"{name}, split {split}: {'; '.join(reasons)}")
            for split, notes in result.notes.items():
                logger.warning(f"{name}, split {split}: {'; '.join(notes)}")
            path = result.write(_unused(folder / f"{stamp}_emi_{name}.json"))
            shown = _show(result, splits, path, report=settings.report)
            _FOOTERS.append(
                "\n".join(
                    (
                        f"\n{result.study.title}, {model}",
                        summary_to_table(result),
                        legend(result),
                        f"figures    {path}",
                        f"answers    {answers_folder / name}",
                        *shown,
                    )
                )
            )
    except Exception as error:
        commands = "\n".join(
            f"  lmms-eval-emi score --study {run.studies[name].source} --responses {answers_folder / name} --allow-missing --output {name}.json"
            for name in samples
        )
        raise RuntimeError(
            f"{error}\nNo answer is lost: they are in {answers_folder}. Once this is mended, score them with\n{commands}"
        ) from error


def _show(result: StudyResult, samples: Mapping[str, Sequence[Sample]], path: Path, *, report: bool) -> list[str]:
    """Write a result's report and log it to wandb; what goes wrong there costs no figure. Returns lines to print."""
    lines = []
    try:
        from lmms_eval_emi.report.lost_rows import find_lost_rows, write_lost_rows

        write_lost_rows(path, [(result, find_lost_rows(result, samples))])
        if report:
            from lmms_eval_emi.report.page import write_report
            from lmms_eval_emi.report.reading import read_results

            page = path.with_name(path.name.replace("_emi_", "_emi_report_")).with_suffix(".html")
            write_report(read_results([path]), page)
            lines.append(f"report     {page}")
        _log_to_wandb(result)
    except Exception as error:
        logger.error(f"The report of {path} could not be written: {error}. Write it with: lmms-eval-emi report {path}")
        logger.debug(traceback.format_exc())
    return lines


def _log_to_wandb(result: StudyResult) -> None:
    """Log the summary and a table of all figures to the run that lmms-eval's --wandb_args started, if it did."""
    wandb = sys.modules.get("wandb")
    if wandb is None or getattr(wandb, "run", None) is None:
        return
    name = result.study.name
    figures = {split: values.to_dict() for split, values in result.splits.items()}
    columns = [
        "split",
        "n",
        "emi",
        "mi_response",
        "mi_reference",
        "emid",
        "emid_bound",
        "jsd_v",
        "jsd_t",
        "jsd_id_response",
        "jsd_ood_response",
    ]
    table = wandb.Table(
        columns=columns, data=[[split, *(values.get(key) for key in columns[1:])] for split, values in figures.items()]
    )
    summary = {f"emi/{name}/{key}": value for key, value in vars(result.summary()).items() if value is not None}
    wandb.run.log({**summary, f"emi/{name}/figures": table})


def _save_answers(
    folder: Path, split: SplitSpec, dataset: datasets.Dataset, answers: dict[int, str], model: str
) -> list[Sample]:
    from lmms_eval_emi.answers.llava import write_answer_file
    from lmms_eval_emi.studies.rows import to_samples

    samples = to_samples(dataset, split.dataset.columns, answers)
    write_answer_file(
        folder / f"{split.name}.jsonl", ((sample.id, sample.question, sample.response) for sample in samples), model
    )
    return samples


def _run_files(args: Any) -> tuple[Path, str, str]:
    """Folder of the run's files, their time stamp, and the model's name, as the harness itself has them."""
    from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker
    from lmms_eval.utils import get_datetime_str

    tracker = GeneralConfigTracker()
    tracker.log_experiment_args(
        getattr(args, "model", None) or "", getattr(args, "model_args", None) or "", None, None, False
    )
    output = getattr(args, "output_path", None)
    fallback = cache_folder() / "runs" / (tracker.model_name_sanitized or "model")
    folder = Path(output) / tracker.model_name_sanitized if output else fallback
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.error(f"{folder} cannot be written ({error}); the files of this run go to {fallback}")
        folder = fallback
        folder.mkdir(parents=True, exist_ok=True)
    stamp = _stamp_of_run() or get_datetime_str(timezone=getattr(args, "timezone", None) or "Asia/Singapore")
    return folder, stamp.replace(":", "-"), tracker.model_name or getattr(args, "model", None) or "model"


def _stamp_of_run() -> str | None:
    """The time stamp that the harness gives this run's files, which only the frame of its caller knows."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code.co_name == "simple_evaluate" and isinstance(frame.f_locals.get("datetime_str"), str):
            return frame.f_locals["datetime_str"]
    return None


def _unused(path: Path) -> Path:
    """The path, or one beside it if another run of the same second has taken it."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return candidate
