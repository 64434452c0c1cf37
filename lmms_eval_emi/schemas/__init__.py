"""JSON Schemas of every file that the commands write, and checking files by them."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from lmms_eval_emi.util.files import parse_json, read_json

SUFFIX = ".schema.json"
MOST = 10  # problems that are told
# What a file is known by: a key at its top, or in its first entry.
KEYS = {"findings": "audit", "comparisons": "differences", "reproductions": "reproduction", "splits": "results"}


@lru_cache(maxsize=1)
def schema_names() -> tuple[str, ...]:
    """Names of all schemas."""
    folder = resources.files("lmms_eval_emi.schemas")
    return tuple(sorted(one.name.removesuffix(SUFFIX) for one in folder.iterdir() if one.name.endswith(SUFFIX)))


@lru_cache(maxsize=16)
def load_schema(name: str) -> dict[str, Any]:
    """A schema by name."""
    return json.loads(resources.files("lmms_eval_emi.schemas").joinpath(f"{name}{SUFFIX}").read_text(encoding="utf-8"))


def kind_of(content: Any) -> str | None:
    """Which schema a file's content is meant to follow; ``None`` for one that no command writes."""
    if not isinstance(content, dict):
        return None
    if content.get("kind") in schema_names():
        return str(content["kind"])
    if isinstance(content.get("results"), list):
        first = next((one for one in content["results"] if isinstance(one, dict)), {})
        return "rows" if "without_each_image" in first else "results"
    return next((kind for key, kind in KEYS.items() if key in content), None)


def problems_of(path: Path) -> tuple[str | None, list[str]]:
    """The kind of a file and where it departs from its schema; JSON lines are a judge's verdicts.

    Raises:
        OSError, ValueError: it cannot be read, or is no JSON.
    """
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        found = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                found += [f"line {number}, {one}" for one in _problems("verdict", parse_json(line))]
        return "verdict", found[:MOST]
    content = read_json(path)
    kind = kind_of(content)
    return kind, _problems(kind, content)[:MOST] if kind else []


def _problems(kind: str, content: Any) -> list[str]:
    import jsonschema

    schema = load_schema(kind)
    if kind == "results":  # one of two forms, of which the file's own is looked at, for better messages
        schema = schema["oneOf"][1 if "results" in content else 0]
    validator = jsonschema.Draft202012Validator(schema)
    return [
        f"{'.'.join(map(str, error.absolute_path)) or 'the whole'}: {error.message[:300]}"
        for error in sorted(validator.iter_errors(content), key=lambda one: list(map(str, one.absolute_path)))
    ]
