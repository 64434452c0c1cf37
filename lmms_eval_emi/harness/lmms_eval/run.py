"""State of the runs of lmms-eval in this process: tasks, responses and scores.

lmms-eval aggregates task after task, each with its own values only, and EMID needs two tasks. So a
run remembers the dataset of each task that was loaded and every response that was processed or,
on rank 0, received from other ranks. State belongs to a *task of a run*: two tasks on one split, two
runs in one process and any number of threads never share it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from loguru import logger

from lmms_eval_emi.data.images import encoded_image
from lmms_eval_emi.data.responses.lmms_eval import PARTS, samples_name
from lmms_eval_emi.data.rows import check_columns, image_roots, stale_cache
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.errors import ImageError, StudyError
from lmms_eval_emi.harness.lmms_eval.compat import evaluation, launch
from lmms_eval_emi.harness.lmms_eval.preflight import RunStopped, check_environment
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.util.files import check_folder_writable, encodable

if TYPE_CHECKING:
    import datasets

    from lmms_eval_emi.scoring.result import SplitResult, StudyResult

_needed = True
MOST_RUNS = 16  # runs kept in memory; a server may start any number
# Runs are found by their task objects, or else by the thread that loaded them.
_runs: list[Run] = []
_run_of_thread: dict[int, Run] = {}
_run_of_task: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


@contextmanager
def without_partial_responses() -> Iterator[None]:
    """Disable partial response files inside the block, because a journal keeps the responses."""
    global _needed
    _needed = False
    try:
        yield
    finally:
        _needed = True


class Item(dict[str, Any]):
    """Item that a row contributes to one metric: JSON for the samples file, which registers itself where it is unpickled.

    The harness gathers the values of each task to rank 0 before the first aggregation, so rank 0
    knows all responses by then.

    Attributes:
        run: the run that it belongs to in this process, if it is known here.
        task: name of the task.
        row: number of the row.
        metric: metric that it is given to. Items of two metrics are two objects, for each gets an error of its own.
    """

    run: Run | None
    task: str
    row: int
    metric: str

    @classmethod
    def of(cls, run: Run | None, task: str, row: int, metric: str, content: dict[str, Any]) -> Item:
        """Return an item of a run."""
        item = cls(content)
        item.run, item.task, item.row, item.metric = run, task, row, metric
        return item

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.task, self.row, self.metric, dict(self))

    def __copy__(self) -> Item:
        return Item.of(self.run, self.task, self.row, self.metric, dict(self))

    def __deepcopy__(self, memo: Any) -> Item:
        return self.__copy__()


def _received(task: str, row: int, metric: str, content: dict[str, Any]) -> Item:
    """Return the item that another rank sent; the same object if it arrives several times."""
    run = find_run(task)
    if run is None:
        return Item.of(None, task, row, metric, content)
    if "answer" in content:
        run.receive(task, row, content["answer"])
    return run.items.setdefault((task, row, metric), Item.of(run, task, row, metric, content))


@dataclass
class TaskOfRun:
    """One task of a run."""

    name: str  # name of the task
    study: Study  # study that it belongs to
    split: str  # split whose rows it asks
    row_name: str  # what its results are called: the split, or the task where it is a variant of ours
    dataset: datasets.Dataset  # its rows
    responses: dict[int, str] = field(default_factory=dict)  # responses by row number
    task: Any = None  # the harness's own object, if it is known

    def wants_scores(self) -> bool:
        """Return whether the run is to score it, and not only to generate its responses."""
        return not evaluation.only_generates(self.task)


class Run:
    """State of one call of ``simple_evaluate`` in this process."""

    def __init__(self, number: int) -> None:
        self.evaluation = number
        self.tasks: dict[str, TaskOfRun] = {}
        self.items: dict[tuple[str, int, str], Item] = {}
        self.begun = False
        self.results: dict[str, StudyResult] | None = None  # results by study, once scored
        self.influence: dict[tuple[str, str], dict[int, float]] = {}  # psi by row, of every study and split
        self.lock = threading.RLock()
        self.parts = PartialResponses(evaluation.arguments_of_evaluation())
        self.unwritten: set[str] = set()  # studies whose results could not be written
        self.seconds = dict.fromkeys(
            ("loading", "responses", "scoring"), 0.0
        )  # time spent by this package on this rank
        self.payload = 0  # most bytes that a row gives the harness beyond its response

    def open_task(self, name: str, study: Study, split: str, dataset: datasets.Dataset) -> TaskOfRun:
        """Remember a task that was loaded. The first one checks whatever the run will need.

        Raises:
            RunStopped: something is missing, or the rows are those of other files.
        """
        if not self.tasks:
            check_environment()
        other = next((task.study for task in self.tasks.values() if task.study.name == study.name), study)
        if other.source != study.source:
            raise RunStopped(
                f"lmms_eval_emi: two studies of this run are named {study.name}: {other.source} and {study.source}. Rename one."
            )
        if launch.is_main_process():
            _check_rows(study, split, dataset)
        others = (task for other, task in self.tasks.items() if other != name)
        taken = {task.row_name for task in others if task.study.name == study.name} | set(study.splits)
        row_name = split if name == study.task_name(split) else _free(re.sub(r"\W+", "_", name) or "variant", taken)
        task = self.tasks[name] = TaskOfRun(name, study, split, row_name, dataset)
        return task

    def lacking(self) -> list[str]:
        """Return tasks of which a score is missing, once the run is over."""
        return [name for name, task in self.tasks.items() if task.wants_scores() and not self._is_complete(task)]

    def _is_complete(self, task_of_run: TaskOfRun) -> bool:
        """Return whether a task has the scores that this run can give it, in a file."""
        scores = self._scores_of(task_of_run)
        if scores is None or task_of_run.study.name in self.unwritten:
            return False
        wants_emid = task_of_run.row_name != task_of_run.study.id_split and self.has_split(
            task_of_run.study.name, task_of_run.study.id_split
        )
        return scores.emid is not None or not wants_emid

    def _scores_of(self, task_of_run: TaskOfRun) -> SplitResult | None:
        result = (self.results or {}).get(task_of_run.study.name)
        return result.splits.get(task_of_run.row_name) if result else None

    def has_split(self, study: str, split: str) -> bool:
        """Return whether the task of a split itself, not only a variant of it, is part of the run."""
        return any(task.study.name == study and task.row_name == split for task in self.tasks.values())

    def begin(self) -> None:
        """Warn once, when all tasks are loaded, about shifts whose ID split is not part of the run."""
        if self.begun:
            return
        with self.lock:
            if self.begun:
                return
            self.begun = True
        if not launch.is_main_process():
            return
        for study in {task.study.name: task.study for task in self.tasks.values()}.values():
            if not self.has_split(study.name, study.id_split):
                logger.warning(
                    f"EMID and its index need the ID split {study.id_split}, which is not part of this run: they are left out, and EMI is given. Add its task: --tasks {study.task_name(study.id_split)},..."
                )

    def receive(self, task: str, row: int, response: str) -> None:
        """Keep the first response of a row."""
        self.tasks[task].responses.setdefault(row, response)

    def respond(self, task: str, row: int, response: Any) -> Item:
        """Register the response of a row, and return what the harness passes on."""
        text = encodable(response if isinstance(response, str) else "" if response is None else str(response))
        self.receive(task, row, text)
        self.parts.write(task, row, text)
        return Item.of(self, task, row, "emi", {"row": self.row_key(task, row), "answer": text})

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the time inside the block as ours."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start

    def weigh(self, values: Mapping[str, Any], response: str) -> None:
        """Remember what a row's values weigh where they are sent from rank to rank, beyond its response."""
        if self.payload == 0:  # rows differ by their response alone
            self.payload = len(pickle.dumps(dict(values))) - len(pickle.dumps(response))

    def share_line(self) -> str:
        """Return a line on the time and disk space that this package took of the run."""
        parts = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in self.seconds.items())
        payload = f"; {self.payload} bytes a row beyond its response" if self.payload else ""
        return f"time       {sum(self.seconds.values()):.1f} s of this run are lmms_eval_emi's: {parts}{payload}"

    def row_key(self, task: str, row: int) -> str:
        """Return the identity of a row in a samples file: a text, because the harness averages numbers."""
        task_of_run = self.tasks[task]
        return f"{task_of_run.study.name}:{task_of_run.row_name}:{row}"

    def scores(self, task: str, finish: Callable[[Run], dict[str, StudyResult]]) -> SplitResult | None:
        """Return scores of a task, or ``None`` if there are none. Never raises.

        Args:
            task: its name.
            finish: saves and scores all tasks of the run; called once.
        """
        with self.lock:
            if self.results is None:
                self.results = {}
                try:
                    self.results = finish(self)
                except Exception as error:
                    logger.opt(exception=error).debug("EMI could not be computed")
                    logger.error(f"EMI could not be computed: {error}")
        task_of_run = self.tasks.get(task)
        return self._scores_of(task_of_run) if task_of_run else None


def open_task(study: Study, split: str, dataset: datasets.Dataset) -> TaskOfRun:
    """Add the task of a split to the current run of this thread, or to a new run if that one has begun.

    Raises:
        RunStopped: as :meth:`Run.open_task`.
    """
    caller = evaluation.calling_task()
    name = caller.name if caller else study.task_name(split)
    number = caller.evaluation if caller else 0
    launch.note_loaded()
    with _lock:
        run = _run_of_thread.get(threading.get_ident())
        # A task that is asked for by its name and in a group is loaded twice, and is one task of the run.
        again = run is not None and name in run.tasks and not number
        if run is None or run.begun or again or run.evaluation != number:
            run = Run(number)
            _run_of_thread[threading.get_ident()] = run
            _runs.append(run)
            del _runs[:-MOST_RUNS]
            for thread in [thread for thread, run in _run_of_thread.items() if run not in _runs]:
                del _run_of_thread[thread]
        task = run.open_task(name, study, split, dataset)
        if caller:
            task.task = caller.task
            _run_of_task[caller.task] = run
        return task


def find_run(task: str | None = None) -> Run | None:
    """Return the run whose hook is being called: of the calling task, of this thread, or the latest with such a task."""
    caller = evaluation.calling_task()
    if caller is not None and caller.task in _run_of_task:
        return _run_of_task[caller.task]
    known_run = _run_of_thread.get(threading.get_ident())
    for run in (*([known_run] if known_run else []), *reversed(_runs)):
        if task is None or task in run.tasks:
            return run
    return None


def tasks_without_scores() -> list[str]:
    """Return tasks of this process of which a score is missing, now that everything is over."""
    if not launch.is_main_process():
        return []
    return [name for run in _runs if run.evaluation for name in run.lacking()]  # others were loaded to be looked at


def forget_runs() -> None:
    """Forget everything, as a new process would."""
    with _lock:
        _runs.clear()
        _run_of_thread.clear()
        _run_of_task.clear()


def _free(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _check_rows(study: Study, split: str, dataset: datasets.Dataset) -> None:
    spec = study.split(split).dataset
    try:
        check_columns(dataset, spec.columns, f"{spec.path}, split {split}")
    except StudyError as error:
        raise RunStopped(f"lmms_eval_emi: {error}") from error
    stale = stale_cache(spec.path, dataset)
    if stale:
        raise RunStopped(
            f"lmms_eval_emi: the rows of {spec.path} are not those of the folder {Path(spec.path).resolve()}, but of another folder of that name, or of files that changed since: the cache of datasets tells neither apart.\nRemove that cache and start again:\n  rm -r {stale}"
        )
    column = spec.columns.image
    if column and getattr(dataset.features[column], "dtype", None) in ("string", "large_string"):
        roots = image_roots(study, spec, load_settings().images)
        for row, path in enumerate(dataset[column]):
            try:
                encoded_image(path, roots)
            except ImageError as error:
                raise RunStopped(f"lmms_eval_emi: {spec.path}, split {split}, row {row}: {error}") from error


launch.add_score_check(tasks_without_scores)


class PartialResponses:
    """Files to which each rank of a plain run writes responses as they arrive, until the run saves them itself.

    They lie in ``{output_path}/{run}.emi_parts/``, as samples files that ``score`` reads. The end of a run that got that
    far writes all responses elsewhere, and removes them.

    Args:
        args: the command line's namespace, if it is known when the run begins.
    """

    def __init__(self, args: object = None) -> None:
        self.folder: Path | None = None
        self._files: dict[str, IO[str]] = {}
        self._lock = threading.Lock()
        self._stamp = time.strftime("%Y%m%d_%H%M%S")
        self._failed = False
        if args is not None and launch.ranks() > 1 and launch.is_main_process():
            self._set_aside(args)

    def _set_aside(self, args: object) -> None:
        """Rename files of an earlier run of the same name before the other ranks begin."""
        output = evaluation.output_path(args)
        folder = output / f"{self._name()}{PARTS}" if output else None
        try:
            if folder is not None and folder.is_dir():
                folder.rename(folder.with_name(f"{self._stamp}-{os.getpid()}-earlier{PARTS}"))
        except OSError as error:
            self._failed = True
            logger.warning(
                f"{folder} of an earlier run cannot be set aside: {error}. Responses are saved at the end of the run."
            )

    def write(self, task: str, row: int, response: str) -> None:
        """Add a response. Never raises: what cannot be written costs no run."""
        if not _needed or self._failed:
            return
        with self._lock:
            try:
                file = self._files.get(task) or self._open(task)
                file.write(json.dumps({"doc_id": row, "filtered_resps": response}, ensure_ascii=False) + "\n")
                file.flush()
            except Exception as error:
                self._failed = True
                logger.warning(
                    f"Responses cannot be written as they come in: {error}. They are saved at the end of the run."
                )

    def _open(self, task: str) -> IO[str]:
        if self.folder is None:
            caller = evaluation.calling_task()
            self.folder = (
                writable_folder(evaluation.arguments_of(caller.task) if caller else None) / f"{self._name()}{PARTS}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        name = samples_name(f"rank-{launch.rank():05d}", task)
        self._files[task] = (self.folder / name).open("a", encoding="utf-8")
        return self._files[task]

    def _name(self) -> str:
        """Return one name on all ranks, which share the address of their launcher and the number of their job."""
        if launch.ranks() == 1:
            return f"{self._stamp}-{os.getpid()}"
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
        known = [value for name in names if (value := os.environ.get(name))]
        return "-".join(["ranks", *(re.sub(r"[^\w.]+", "_", value) for value in known)])

    def remove(self) -> None:
        """Remove the parts once all responses of the run are saved elsewhere."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
            if self.folder is not None and launch.is_main_process():
                shutil.rmtree(self.folder, ignore_errors=True)


def writable_folder(args: object) -> Path:
    """Return the output folder of the run, or else the cache, or else a temporary folder."""
    output = evaluation.output_path(args)
    for choose in (lambda: output, lambda: load_settings().cache / "runs"):
        try:
            folder = choose()  # type: ignore[no-untyped-call]
            if folder is None:
                continue
            check_folder_writable(folder)
            return folder
        except Exception as error:
            logger.error(f"The files of this run cannot be written where they belong: {error}")
    return Path(tempfile.mkdtemp(prefix="lmms_eval_emi-"))
