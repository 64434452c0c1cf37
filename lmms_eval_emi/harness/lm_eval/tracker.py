"""The one function of lm_eval that is wrapped: only what saves its results knows where they are."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

from lmms_eval_emi.harness.lm_eval.run import current_run

log = logging.getLogger("lmms_eval_emi")


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
