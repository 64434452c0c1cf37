"""Finding the task and the evaluation that call a hook, by the frames of the call, because lmms-eval passes neither."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


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
    """Return whether a model is asked for one round of a document that takes several, which every rank does in its own number.

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
