"""State of one evaluation of lm_eval in this process: tasks, responses and scores.

lm_eval builds the requests of all tasks before any is answered, and gathers the values of all ranks in one call before it
aggregates the first metric. So the first aggregation on rank 0 knows the responses of all splits.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig
from lm_eval.tasks import TaskManager

from lmms_eval_emi.data.responses.llava import SAVED, write_response_file
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.harness.common import group_scores, write_outcome
from lmms_eval_emi.scoring.join import StudySamples, add_rows
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.util.printing import printable

if TYPE_CHECKING:
    import datasets

    from lmms_eval_emi.scoring.result import SplitResult, StudyResult
    from lmms_eval_emi.scoring.rows import Scored

log = logging.getLogger("lmms_eval_emi")
_local = threading.local()
_run_of_task: dict[str, Run] = {}  # for what other ranks send
_footers: list[str] = []
METRICS = ("emi", "emid", "emid_bound")


@atexit.register
def _print_footers() -> None:
    """Print our summary under lm_eval's table, which is printed last."""
    for footer in _footers:
        print(printable(footer), flush=True)


@dataclass
class OwnTask:
    """A task of a run: a split, its rows and the responses by row."""

    study: Study
    split: str
    rows: datasets.Dataset
    responses: dict[int, str] = field(default_factory=dict)


@dataclass
class Run:
    """The tasks of ours in one evaluation."""

    model: str = "model"  # name of the model, as the harness was given it
    tasks: dict[str, OwnTask] = field(default_factory=dict)  # tasks by name
    answered: bool = False  # whether a response was processed; a task that is enrolled later belongs to the next run
    results: dict[str, StudyResult] | None = None  # results of each study, once scored; ``None`` before
    scored: list[Scored] = field(default_factory=list)  # the same with their rows
    folder: Path | None = None  # where responses were saved

    def has_id_split(self, study: Study) -> bool:
        """Return whether the ID split of a study is among the tasks."""
        return any(task.study.name == study.name and task.split == study.id_split for task in self.tasks.values())

    def score(self, task: str) -> SplitResult | None:
        """Return the scores of a task; ``None`` if there are none, and on ranks that are not the first.

        Everything is saved and scored at the first call. Nothing is raised: lm_eval would end without saving anything.
        """
        if int(os.environ.get("LOCAL_RANK", "0")):  # without data parallelism every process of lm_eval is rank 0
            return None
        if self.results is None:
            self.results = {}
            try:
                self._finish()
            except Exception as error:  # whatever it is, the responses are saved
                log.exception("no scores")
                _footers.append(f"lmms_eval_emi: no scores: {error}\nThe responses are in {self.folder}.")
        task_of_run = self.tasks[task]
        result = self.results.get(task_of_run.study.name)
        return result.splits.get(task_of_run.split) if result else None

    def _finish(self) -> None:
        from lmms_eval_emi.scoring.pipeline import score_samples

        settings = load_settings()
        self.folder = settings.cache / "runs" / "lm_eval" / f"{time.strftime('%Y%m%d_%H%M%S')}-{os.getpid()}_{SAVED}"
        entries = self._save(self.folder)
        self.scored = score_samples(entries, settings, allow_missing=True)
        self.results = {scored.result.shift: scored.result for scored in self.scored}

    def _save(self, folder: Path) -> list[StudySamples]:
        """Write the responses of each task, and return them joined with their rows."""
        entries: dict[str, StudySamples] = {}
        for task in self.tasks.values():
            if not task.responses:
                continue
            entry = entries.setdefault(task.study.name, StudySamples(task.study, self.model))
            by_row = dict(sorted(task.responses.items()))
            add_rows(entry, task.split, task.rows, by_row, load_settings(), asked=by_row)
            lines = (
                (sample.id, sample.question, by_row.get(-1 if sample.row is None else sample.row, sample.response))
                for sample in entry.samples.get(task.split, [])
            )
            write_response_file(folder / task.study.name / f"{task.split}.jsonl", lines, self.model)
        return list(entries.values())

    def write_beside(self, folder: Path, stamp: str) -> None:
        """Move the responses beside the files of lm_eval, and write results and reports there.

        Args:
            folder: folder with the results of lm_eval.
            stamp: its time in their names.
        """
        if self.folder is not None and self.folder.exists():
            target = folder / f"{stamp}_{SAVED}"
            self.folder = Path(shutil.move(self.folder, target))  # the cache may be on another disk
        for scored in self.scored:
            lines = write_outcome(scored, folder / f"{stamp}_emi_{scored.result.shift}.json")
            _footers.append("\n".join((*lines, f"responses  {self.folder}")))


class Item(dict[str, Any]):
    """A row's value of a metric: plain data in the samples file, and a response received wherever it is unpickled."""

    task, row, metric = "", 0, ""

    @classmethod
    def of(cls, task: str, row: int, metric: str, content: dict[str, Any]) -> Item:
        """Return the value of a metric for one row of a task."""
        self = cls(content)
        self.task, self.row, self.metric = task, row, metric
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.task, self.row, self.metric, dict(self))


def _received(task: str, row: int, metric: str, content: dict[str, Any]) -> Item:
    run = _run_of_task.get(task)
    if run is not None and "response" in content:
        run.tasks[task].responses.setdefault(row, content["response"])
    return Item.of(task, row, metric, content)


def enrol(name: str, model: str, task_of_run: OwnTask) -> Run:
    """Add a task to the run whose requests are being built; a new run begins once the last one was answered."""
    run = getattr(_local, "run", None)
    if run is None or run.answered or name in run.tasks:
        run = _local.run = Run(model)
    run.tasks[name] = task_of_run
    _run_of_task[name] = run
    return run


def current_run() -> Run | None:
    """Return the run of this thread."""
    return getattr(_local, "run", None)


class StudyGroup(Group):  # type: ignore[misc]
    """Shows means over its shifts. lm_eval's own would take the shifts, which share the ID split, for independent.

    Args:
        config: fields of the group's YAML file; its metadata names members, studies and modality.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        metadata = dict(config["metadata"])
        super().__init__(
            name=config["task"],
            metadata=metadata,
            aggregate_metric_list=[AggMetricConfig(metric) for metric in METRICS],
        )
        fields = ("emi_members", "emi_studies", "emi_modality", "version", "config_source")
        given = {key: value for key, value in metadata.items() if key not in fields}
        folder = str(Path(metadata["config_source"]).parent)
        manager = TaskManager(include_path=folder, include_defaults=False, metadata=given)
        for task in manager.load(list(metadata["emi_members"]))["tasks"].values():
            self.add(task)

    def aggregate(self, task_metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the group's row of the table, from the results of our run.

        Args:
            task_metrics: metrics of all tasks by name, after every one was aggregated.
        """
        for name in self.child_names:  # an error of the error, which lm_eval adds
            for key in [key for key in task_metrics.get(name, {}) if "_stderr_stderr," in key]:
                del task_metrics[name][key]
        run, metadata = current_run(), self.metadata or {}
        results = [(run.results or {}).get(study) for study in metadata["emi_studies"]] if run else []
        scores = group_scores([result for result in results if result], metadata["emi_modality"])
        rows = sum(int(task_metrics.get(name, {}).get("sample_len", 0)) for name in self.child_names)
        found: dict[str, Any] = {"alias": self.name, "name": self.name, "sample_len": rows}
        for name, value in scores.items():
            if name.removesuffix("_stderr") in METRICS:
                found[f"{name},none"] = "N/A" if value is None else float(value)
        return found


def write_results_beside() -> None:
    """Let our files be written beside those of lm_eval.

    Relies on: ``EvaluationTracker.save_results_aggregated`` sets ``date_id`` and ``general_config_tracker`` has
    ``model_name_sanitized``, from which the names of its files are made.
    """
    from lm_eval.loggers import EvaluationTracker

    original = EvaluationTracker.save_results_aggregated
    if getattr(original, "adds_lmms_eval_emi", False):
        return

    @functools.wraps(original)
    def save(tracker: Any, *args: Any, **options: Any) -> Any:
        found = original(tracker, *args, **options)
        run = current_run()
        if run is None or run.results is None or not tracker.output_path or not hasattr(tracker, "date_id"):
            return found
        path = Path(tracker.output_path)
        name = str(tracker.general_config_tracker.model_name_sanitized)
        folder = path.parent if path.suffix == ".json" else path / name
        try:
            run.write_beside(folder, str(tracker.date_id))
        except OSError as error:
            log.error("the files of lmms_eval_emi could not be written to %s: %s", folder, error)
        return found

    save.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
    EvaluationTracker.save_results_aggregated = save
