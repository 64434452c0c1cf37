"""Everything that this package assumes about lmms-eval. Nothing else imports, patches or inspects it.

Each function says what it relies on (measured on 0.7.3). ``tests/harness/test_contract.py`` has a test
for each, whose failure says what moved upstream.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger("lmms_eval_emi")

# Relies on: the results file and the table take this text for a value that there is none of, as the harness
# itself does for a missing standard error. None breaks its group means, NaN its results file.
NO_SCORE = "N/A"

# Relies on: Stderr_CLT is std(score) / sqrt(n) over items that are dicts with this key, and Stderr_Clustered
# adds the cross terms of items with the same value under the task's cluster_key.
SCORE_KEY, CLUSTER_KEY = "score", "row"

# Relies on: GroupConfig of upstream pull request 1528 has this field, and calls it with keywords.
GROUP_HOOK = "postprocess_results"
OURS = "emi_studies"  # in the metadata of our group files


def tasks_folder() -> Path:
    """The folder of the installed task files, for ``--include_path``."""
    return Path(str(resources.files("lmms_eval_emi.tasks")))


def remedy() -> str:
    """What to type where lmms-eval does not find our tasks by itself."""
    return f"Pass the folder of the tasks yourself: lmms-eval --include_path {tasks_folder()} ..."


# Task index


def add_tasks_to_index() -> None:
    """Make every task index that is built from now on hold our tasks.

    Relies on: ``TaskManager.initialize_tasks`` builds the index, and has the parameters ``include_path``
    (a path, a list of paths or ``None``) and ``include_defaults``. Whatever else it is called with is
    passed through. If anything of ours fails, the original is called as if we were not there.
    """
    from lmms_eval.tasks import TaskManager

    build_index = TaskManager.initialize_tasks
    if hasattr(build_index, "adds_lmms_eval_emi"):
        return
    TaskManager.initialize_tasks = with_our_tasks(build_index)


def with_our_tasks(build_index: Callable) -> Callable:
    """``TaskManager.initialize_tasks`` with our folder among its include paths."""

    @functools.wraps(build_index)
    def initialize_tasks(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = inspect.signature(build_index).bind(*args, **kwargs)
            bound.apply_defaults()
            if not bound.arguments["include_defaults"]:
                return build_index(*args, **kwargs)
            given = bound.arguments["include_path"]
            paths = [given] if isinstance(given, str | os.PathLike) else list(given or [])
            bound.arguments["include_path"] = [*map(str, paths), str(tasks_folder())]
            return build_index(*bound.args, **bound.kwargs)
        except Exception as error:
            problem = error
        index = build_index(*args, **kwargs)  # raises whatever is not our fault
        warnings.warn(
            f"lmms_eval_emi cannot add its tasks to this lmms-eval ({type(problem).__name__}: {problem}). {remedy()}",
            stacklevel=2,
        )
        return index

    initialize_tasks.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
    return initialize_tasks


def add_group_hook() -> bool:
    """Where lmms-eval has a group hook (upstream pull request 1528), let our groups use it.

    Relies on: ``GroupConfig`` is a dataclass whose ``__post_init__`` runs for every group. Groups of others
    are left as they are: ours are told by their metadata.

    Returns:
        Whether this lmms-eval has the hook.
    """
    from lmms_eval.api.group import GroupConfig

    if GROUP_HOOK not in getattr(GroupConfig, "__dataclass_fields__", {}):
        return False
    complete = GroupConfig.__post_init__
    if not hasattr(complete, "adds_lmms_eval_emi"):

        @functools.wraps(complete)
        def post_init(self: Any) -> None:
            metadata = getattr(self, "metadata", None)
            if isinstance(metadata, dict) and OURS in metadata and not getattr(self, GROUP_HOOK, None):
                setattr(self, GROUP_HOOK, functools.partial(_postprocess_group, metadata[OURS]))
            complete(self)

        post_init.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
        GroupConfig.__post_init__ = post_init
    return True


def _postprocess_group(described: dict[str, Any], *args: Any, **context: Any) -> Any:
    """Our hook, imported when it is called: every lmms-eval command with this package installed comes by here."""
    hooks = importlib.import_module("lmms_eval_emi.harness.lmms_eval.hooks")
    return hooks.postprocess_group(described, *args, **context)


def task_names() -> frozenset[str]:
    """Names of all tasks and groups that lmms-eval has, ours included.

    Relies on: ``TaskManager().all_tasks``; and that its log goes through loguru under its own name.
    """
    from lmms_eval.tasks import TaskManager
    from loguru import logger as harness_logger

    add_tasks_to_index()
    harness_logger.disable("lmms_eval")  # it tells of every file that is not a task
    try:
        return frozenset(TaskManager().all_tasks)
    finally:
        harness_logger.enable("lmms_eval")


def broken_entry_points() -> dict[str, str]:
    """Plugins of lmms-eval that cannot be loaded, with the reason.

    Relies on: lmms-eval 0.7.3 loads the entry-point group ``lmms_eval.models`` in one ``try``, so that one
    broken plugin before ours keeps ours from being loaded.
    """
    from importlib.metadata import entry_points

    broken = {}
    for entry in entry_points(group="lmms_eval.models"):
        try:
            entry.load()
        except Exception as error:
            broken[entry.name] = f"{type(error).__name__}: {error}"
    return broken


# The task that calls a hook


@dataclass(frozen=True)
class CallingTask:
    """The task whose hook is being called, and the call of ``simple_evaluate`` that loaded it."""

    name: str
    task: Any
    evaluation: int  # tells one call of simple_evaluate from another; 0 outside of any


def calling_task() -> CallingTask | None:
    """The task that calls the hook that calls this function, or ``None`` if lmms-eval calls hooks in another way.

    Relies on: hooks are called from methods of ``lmms_eval.api.task.Task``, whose ``self.config.task`` is
    the task's name; and tasks are loaded below a function called ``simple_evaluate``.
    """
    found: tuple[str, Any] | None = None
    evaluation = 0
    for frame in _callers():
        if found is None:
            owner = frame.f_locals.get("self")
            name = getattr(getattr(owner, "config", None), "task", None)
            if isinstance(name, str) and any(
                base.__module__.startswith("lmms_eval.") and base.__name__ == "Task" for base in type(owner).__mro__
            ):
                found = (name, owner)
        if frame.f_code.co_name == "simple_evaluate":
            evaluation = id(frame)
            break
    return CallingTask(*found, evaluation) if found else None


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_main_process() -> bool:
    """Whether this is rank 0 of the run, or its only process. Relies on: launchers set ``RANK``."""
    return os.environ.get("RANK", "0") == "0"


# Files of a run


def samples_name(time: str, task: str) -> str:
    """What the samples file of a task is called. Relies on: ``EvaluationTracker.save_results_samples``."""
    return f"{time}_samples_{task}.jsonl"


def parse_samples_name(name: str) -> str | None:
    """The task of a samples file, or ``None`` if that is not the name of one."""
    match = re.fullmatch(r".+?_samples_(?P<task>.+)\.jsonl", name)
    return match["task"] if match else None


def output_path(args: Any) -> Path | None:
    """The ``--output_path`` of a run. Relies on: aggregations are given the command line's namespace."""
    path = getattr(args, "output_path", None)
    return Path(path) if isinstance(path, str | os.PathLike) and str(path) else None


def model_name(args: Any) -> str:
    """The model's name as the harness has it; never raises.

    Relies on: ``GeneralConfigTracker._get_model_name`` takes it from the model arguments.
    """
    arguments = str(getattr(args, "model_args", None) or "")
    try:
        from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker

        found = GeneralConfigTracker._get_model_name(arguments)
    except Exception as error:
        log.debug("the model's name is taken from its arguments: %s", error)
        match = re.search(r"(?:^|,)(?:pretrained|model|model_name|path)=([^,]+)", arguments)
        found = match[1] if match else ""
    return str(found or getattr(args, "model", None) or "model")


def run_folder(args: Any) -> str:
    """The folder that the harness makes for a model below ``--output_path``.

    Relies on: ``lmms_eval.utils.sanitize_model_name`` of what ``GeneralConfigTracker`` takes for the name.
    """
    from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker
    from lmms_eval.utils import sanitize_model_name

    arguments = str(getattr(args, "model_args", None) or "")
    return str(sanitize_model_name(GeneralConfigTracker._get_model_name(arguments)))


def run_stamp(args: Any) -> str:
    """The time stamp that the harness gives this run's files.

    Relies on: ``simple_evaluate`` has it in its variable ``datetime_str``, and the files have ``-`` for its
    colons. Elsewhere a stamp of the same form is made.
    """
    from lmms_eval.utils import get_datetime_str

    for frame in _callers():
        if frame.f_code.co_name == "simple_evaluate" and isinstance(frame.f_locals.get("datetime_str"), str):
            return str(frame.f_locals["datetime_str"]).replace(":", "-")
    return str(get_datetime_str(timezone=getattr(args, "timezone", None) or "Asia/Singapore")).replace(":", "-")


# Command lines


def command_line(tasks: str, include_path: Path | str | None = None) -> str:
    """The command that runs some tasks, for messages and cards."""
    include = f" --include_path {include_path}" if include_path else ""
    return f"lmms-eval{include} --tasks {tasks} --model ..."


def command_of(
    model: str, model_args: str, tasks: str, output: Path, processes: int
) -> tuple[dict[str, str], list[str]]:
    """Variables and command of a run on the CPU. Relies on: the harness's options, and torchrun for several ranks."""
    arguments = [
        *("--model", model, "--model_args", model_args),
        *("--device", "cpu", "--tasks", tasks, "--output_path", str(output), "--log_samples"),
    ]
    if processes == 1:
        return {}, ["lmms-eval", *arguments]
    variables = {"ACCELERATE_USE_CPU": "true"}
    return variables, ["torchrun", "--nproc_per_node", str(processes), "-m", "lmms_eval", *arguments]


def as_module(command: list[str]) -> list[str]:
    """A command of :func:`command_of` through this interpreter, for the commands' folder may not be on the path."""
    modules = {"lmms-eval": ["-m", "lmms_eval"], "torchrun": ["-m", "torch.distributed.run"]}
    return [sys.executable, *modules[command[0]], *command[1:]]
