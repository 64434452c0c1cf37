"""Makes lmms-eval find our tasks after a plain ``pip install``.

lmms-eval has an entry-point group for models and none for tasks. It loads that group before any
task index is built, so the entry point adds our folder to what the index reads. The one model is a variant of ``llava_hf``.
"""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Sequence
from typing import Any

from lmms_eval_emi.harness.lmms_eval.compat import launch, task_index


def register() -> list[Any]:
    """Add our tasks to every task index built later; the entry point of ``lmms_eval.models``.

    Tasks of lmms-eval and of ``--include_path`` win a clash of names, as the index keeps the first.
    Never raises: lmms-eval itself must go on working.

    Returns:
        The manifest of ``llava_hf_bottleneck``.
    """
    try:
        task_index.add_tasks_to_index()
        task_index.share_datasets()
        task_index.check_before_the_model(_check_run)
        task_index.add_group_hook(_postprocess_group)
        atexit.register(launch.exit_status_of_missing_scores)
    except Exception as error:
        warnings.warn(
            f"lmms_eval_emi cannot add its tasks to this lmms-eval ({error}). {task_index.remedy()}", stacklevel=2
        )
    return launch.model_manifests()


def _check_run(files: Sequence[str], model: str) -> None:
    from lmms_eval_emi.harness.lmms_eval.preflight import check

    check(files, model)


def _postprocess_group(*args: Any, **options: Any) -> Any:
    from lmms_eval_emi.harness.lmms_eval.hooks import postprocess_group

    return postprocess_group(*args, **options)
