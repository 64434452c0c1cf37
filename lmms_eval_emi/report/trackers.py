"""Experiment trackers: results go to a run that is active, and nowhere if there is none."""

from __future__ import annotations

import sys
from typing import Any

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.scoring.result import StudyResult

COLUMNS = ("split", "n", "emi", "mi_response", "mi_reference", "emid", "emid_bound", *EXPONENTS)


def log_result(result: StudyResult) -> None:
    """Log the summary and a table of all scores to the active runs of wandb and trackio, which has wandb's functions."""
    for tracker, run in _active():
        name = result.shift
        rows = [[split, *(getattr(scores, key) for key in COLUMNS[1:])] for split, scores in result.splits.items()]
        keys = ("n_shifts", "mean_emi", "mean_emid", "mean_bound", "pearson_r")
        values = {key: getattr(result.summary, key) for key in keys}
        summary = {f"emi/{name}/{key}": value for key, value in values.items() if value is not None}
        run.log({**summary, f"emi/{name}/figures": _table(tracker, rows)})


def _active() -> list[tuple[Any, Any]]:
    """Return the trackers that are imported, each with its active run."""
    found = []
    wandb, trackio = (sys.modules.get(name) for name in ("wandb", "trackio"))
    if wandb is not None and getattr(wandb, "run", None) is not None:
        found.append((wandb, wandb.run))
    current = getattr(getattr(trackio, "context_vars", None), "current_run", None)
    run = current.get() if current is not None else None
    if trackio is not None and run is not None:
        found.append((trackio, run))
    return found


def _table(tracker: Any, rows: list[list[Any]]) -> Any:
    """Return a table as a tracker takes it; trackio's is made of a data frame alone."""
    if getattr(tracker, "__name__", "") == "trackio":
        import pandas

        return tracker.Table(dataframe=pandas.DataFrame(rows, columns=list(COLUMNS)))
    return tracker.Table(columns=list(COLUMNS), data=rows)
