"""The JSON files that the commands write: their schemas, and whether a file keeps to its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lmms_eval_emi.errors import InputError, ResultsError
from lmms_eval_emi.util.documents import Plain, parse_model
from lmms_eval_emi.util.files import parse_json

# Where the model of each kind of file stands. Those of one kind of result are looked for before those of several.
MODELS = {
    "result": "lmms_eval_emi.scoring.result:StudyResult",
    "rows": "lmms_eval_emi.scoring.rows:RowsDocument",
    "results": "lmms_eval_emi.scoring.rows:ResultsDocument",
    "differences": "lmms_eval_emi.scoring.compare:ComparisonDocument",
    "agreement": "lmms_eval_emi.scoring.agreement:AgreementDocument",
    "audit": "lmms_eval_emi.scoring.audit:AuditDocument",
    "verdict": "lmms_eval_emi.slices.judge.verdicts:Verdict",
    "preference": "lmms_eval_emi.slices.judge.preference:PreferenceDocument",
    "robustness": "lmms_eval_emi.slices.robustness.comparison:RobustnessDocument",
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
        ResultsError: it is none of the files that the commands write, or departs from its schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.split("\n") if line.strip()] if path.suffix == ".jsonl" else [text]
        contents = [parse_json(line) for line in lines]
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: expected JSON: {error}") from error
    kinds = {
        _check(content, f"{path}, line {number}" if len(contents) > 1 else str(path))
        for number, content in enumerate(contents, 1)
    }
    if len(kinds) != 1:
        raise ResultsError(f"{path}: expected content of one kind, got {', '.join(sorted(kinds)) or 'none'}.")
    return kinds.pop()


def _check(content: Any, source: str) -> str:
    kind = _kind_of(content)
    if kind is None:
        raise ResultsError(f"{source}: it is none of the files that the commands write.")
    parse_model(load_model(kind), content, source, what=f"content of the kind {kind}", exact=True)
    return kind


def _kind_of(content: Any) -> str | None:
    """The kind whose keys the content has; of two kinds with the same keys, the one whose entries it holds."""
    if not isinstance(content, dict):
        return None
    if "kind" in content:
        return content["kind"] if content["kind"] in MODELS else None
    if isinstance(entries := content.get("results"), list):
        return "results" if any(isinstance(one, dict) and "signature" in one for one in entries) else "rows"
    best, most = None, 0.0
    for kind in MODELS:
        fields = set(load_model(kind).model_fields) - {"format_version"}
        share = len(fields & content.keys()) / len(fields | content.keys())
        if share > most:
            best, most = kind, share
    return best if most > 0.3 else None
