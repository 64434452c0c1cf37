"""Makes lmms-eval find our tasks after a plain ``pip install``.

lmms-eval has an entry-point group for models and none for tasks. It loads that group before any
task index is built, so the entry point adds our folder to what the index reads, and no model.
"""

from __future__ import annotations

import atexit
import warnings
from typing import Any

from lmms_eval_emi.harness.lmms_eval import compat


def register() -> list[Any]:
    """Add our tasks to every task index that is built from now on; the entry point of ``lmms_eval.models``.

    Tasks of lmms-eval and of ``--include_path`` win a clash of names, as the index keeps the first.
    Never raises: lmms-eval itself must go on working.

    Returns:
        No model manifests.
    """
    try:
        compat.add_tasks_to_index()
        compat.share_datasets()
        compat.check_before_the_model()
        compat.add_group_hook()
        atexit.register(compat.exit_status_of_missing_scores)
    except Exception as error:
        warnings.warn(
            f"lmms_eval_emi cannot add its tasks to this lmms-eval ({error}). {compat.remedy()}", stacklevel=2
        )
    return []
