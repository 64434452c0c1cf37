"""Names of models, folders and files of a run of lmms-eval, and the command line as its tasks know it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("lmms_eval_emi")


def only_generates(task: Any) -> bool:
    """Return whether a task's metrics were replaced, as ``--predict_only`` does. Relies on: ``override_metric("bypass")``."""
    return "bypass" in (getattr(task, "_metric_fn_list", None) or {})


def arguments_of(task: Any) -> Any:
    """Return the command line's namespace, as far as a task has it. Relies on: ``evaluate`` sets ``task.args``."""
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
