"""The JSON files that the commands write: their schemas, and whether a file keeps to its own."""

from __future__ import annotations

import importlib
from pathlib import Path

from lmms_eval_emi.errors import InputError, ResultsError
from lmms_eval_emi.util.documents import Plain, parse_model
from lmms_eval_emi.util.files import parse_json

# Where the model of each kind of file stands.
MODELS = {
    "result": "lmms_eval_emi.scoring.result:StudyResult",
    "rows": "lmms_eval_emi.scoring.rows:RowsDocument",
    "results": "lmms_eval_emi.scoring.rows:ResultsDocument",
    "differences": "lmms_eval_emi.scoring.compare:ComparisonDocument",
    "ranks": "lmms_eval_emi.scoring.compare:RanksDocument",
    "agreement": "lmms_eval_emi.scoring.agreement:AgreementDocument",
    "audit": "lmms_eval_emi.scoring.audit:AuditDocument",
    "verdict": "lmms_eval_emi.slices.judge.verdicts:Verdict",
    "preference": "lmms_eval_emi.slices.judge.preference:PreferenceDocument",
    "robustness": "lmms_eval_emi.slices.robustness.results:RobustnessDocument",
    "reproduction": "lmms_eval_emi.slices.reproduce.reproduction:ReproductionDocument",
}


def load_model(kind: str) -> type[Plain]:
    """Return the model of a kind of file.

    Raises:
        InputError: there is no such kind.
    """
    if kind not in MODELS:
        raise InputError(f"--schema: expected one of {', '.join(MODELS)}, got {kind!r}.")
    module, _, name = MODELS[kind].partition(":")
    model: type[Plain] = getattr(importlib.import_module(module), name)
    return model


def check_file(path: Path) -> str:
    """Return the kind of a file that keeps to its schema, key for key.

    Args:
        path: a JSON file, or JSON lines of ``judge ask``.

    Raises:
        ResultsError: the file is not one that the commands write, or does not match its schema.
    """
    lines = path.suffix == ".jsonl"
    try:
        text = path.read_text(encoding="utf-8")
        contents = [parse_json(line) for line in (text.splitlines() if lines else [text])]
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: expected JSON: {error}") from error
    kind = "verdict" if lines else contents[0].get("kind") if isinstance(contents[0], dict) else None
    if kind not in MODELS or not contents:
        raise ResultsError(f"{path}: it is none of the files that the commands write.")
    for number, content in enumerate(contents, 1):
        source = f"{path}, line {number}" if lines else path
        parse_model(load_model(kind), content, source, what=f"content of the kind {kind}", exact=True)
    return str(kind)
