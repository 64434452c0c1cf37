"""Experiment trackers: results go to a run that is active, and nowhere if there is none."""

from __future__ import annotations

import sys

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.scoring.results import StudyResult

COLUMNS = ("split", "n", "emi", "mi_response", "mi_reference", "emid", "emid_bound", *EXPONENTS)


def log_result(result: StudyResult) -> None:
    """Log the summary and a table of all scores to the active wandb run, if there is one."""
    wandb = sys.modules.get("wandb")
    if wandb is None or getattr(wandb, "run", None) is None:
        return
    name = result.study.name
    scores = {split: values.to_dict() for split, values in result.splits.items()}
    table = wandb.Table(
        columns=list(COLUMNS),
        data=[[split, *(values.get(key) for key in COLUMNS[1:])] for split, values in scores.items()],
    )
    summary = {f"emi/{name}/{key}": value for key, value in vars(result.summary()).items() if value is not None}
    wandb.run.log({**summary, f"emi/{name}/figures": table})
