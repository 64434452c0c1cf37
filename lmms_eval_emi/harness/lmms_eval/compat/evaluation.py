"""The evaluation that calls a hook: its task, which lmms-eval does not pass, its command line, and the names of its files."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger("lmms_eval_emi")


@dataclass(frozen=True)
class CallingTask:
    """The task whose hook is being called, and the call of ``simple_evaluate`` that loaded it."""

    name: str
    task: Any
    evaluation: int  # tells one call of simple_evaluate from another; 0 outside of any


def calling_task() -> CallingTask | None:
    """Return the task that calls the hook that calls this function, or ``None`` if lmms-eval calls hooks in another way.

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


def arguments_of_evaluation() -> Any:
    """Return the command line's namespace of the evaluation that calls this. Relies on: ``simple_evaluate`` has ``cli_args``."""
    for frame in _callers():
        if frame.f_code.co_name == "simple_evaluate":
            return frame.f_locals.get("cli_args")
    return None


def is_call_of_one_round() -> bool:
    """Return whether a call is one round of a multi-round document; ranks differ in how many such calls they make.

    Relies on: ``_run_generate_until_agentic`` calls the model itself, request by request.
    """
    return any(frame.f_code.co_name == "_run_generate_until_agentic" for frame in _callers())


def run_stamp(args: Any) -> str:
    """Return the time stamp that the harness gives this run's files.

    Relies on: ``simple_evaluate`` has it in its variable ``datetime_str``, and the files have ``-`` for its
    colons. Elsewhere a stamp of the same form is made.
    """
    from lmms_eval.utils import get_datetime_str

    for frame in _callers():
        if frame.f_code.co_name == "simple_evaluate" and isinstance(frame.f_locals.get("datetime_str"), str):
            return str(frame.f_locals["datetime_str"]).replace(":", "-")
    return str(get_datetime_str(timezone=getattr(args, "timezone", None) or "Asia/Singapore")).replace(":", "-")


def only_generates(task: Any) -> bool:
    """Return whether a task's metrics were replaced, as ``--predict_only`` does. Relies on: ``override_metric("bypass")``."""
    return "bypass" in (getattr(task, "_metric_fn_list", None) or {})


def arguments_of(task: Any) -> Any:
    """Return the command line's namespace if a task holds it. Relies on: ``evaluate`` sets ``task.args``."""
    return getattr(task, "args", None)


def harness_version() -> str:
    """Return the version of the installed lmms-eval."""
    from importlib.metadata import version

    return version("lmms_eval")


def is_file_of_a_run(name: str) -> bool:
    """Return whether a file is named as the harness names results and samples: with a time stamp first."""
    return re.fullmatch(r"\d{8}_\d{6}_(results\.json|samples_.+\.jsonl)", name) is not None


def output_path(args: Any) -> Path | None:
    """Return the ``--output_path`` of a run. Relies on: aggregations are given the command line's namespace."""
    path = getattr(args, "output_path", None)
    return Path(path) if isinstance(path, str | os.PathLike) and str(path) else None


def model_name(args: Any) -> str:
    """Return the model's name as the harness has it; never raises.

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
    """Return the folder that the harness makes for a model below ``--output_path``.

    Relies on: ``lmms_eval.utils.sanitize_model_name`` of what ``GeneralConfigTracker`` takes for the name.
    """
    from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker
    from lmms_eval.utils import sanitize_model_name

    arguments = str(getattr(args, "model_args", None) or "")
    return str(sanitize_model_name(GeneralConfigTracker._get_model_name(arguments)))
