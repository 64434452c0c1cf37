"""State of one evaluation of lm_eval in this process: tasks, responses and scores.

lm_eval builds the requests of all tasks before any is answered, and gathers the values of all ranks in one call before it
aggregates the first metric. So the first aggregation on rank 0 knows the responses of all splits.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.responses.llava import SAVED, write_response_file
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.harness.common import write_outcome
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
