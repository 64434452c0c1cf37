"""Makes lmms-eval find our tasks after a plain ``pip install``.

lmms-eval has an entry-point group for models and none for tasks. It loads that group before any
task index is built, so the entry point adds our folder to what the index reads, and no model.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

from lmms_eval_emi.harness.task_files import tasks_folder


def register() -> list[Any]:
    """Add our tasks to every task index that is built from now on; the entry point of ``lmms_eval.models``.

    Tasks of lmms-eval and of ``--include_path`` win a clash of names, as the index keeps the first.

    Returns:
        No model manifests.
    """
    try:
        from lmms_eval.tasks import TaskManager

        build_index = TaskManager.initialize_tasks
    except (ImportError, AttributeError) as error:  # lmms-eval itself must go on working
        warnings.warn(
            f"lmms_eval_emi cannot add its tasks to this lmms-eval ({error}). Use lmms-eval --include_path {tasks_folder()}",
            stacklevel=2,
        )
        return []
    if not hasattr(build_index, "adds_lmms_eval_emi"):

        @functools.wraps(build_index)
        def initialize_tasks(
            self: Any, include_path: str | list[str] | None = None, include_defaults: bool = True
        ) -> Any:
            if include_defaults:
                given = [include_path] if isinstance(include_path, str) else list(include_path or [])
                include_path = [*given, str(tasks_folder())]
            return build_index(self, include_path=include_path, include_defaults=include_defaults)

        initialize_tasks.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
        TaskManager.initialize_tasks = initialize_tasks
    return []
