"""Samples that lm-evaluation-harness logs: ``samples_{task}_{date}.jsonl``, of tasks that generate."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmms_eval_emi.data.responses import first_record, read_lines
from lmms_eval_emi.errors import ResponsesError

NAME = re.compile(r"samples_(?P<task>.+)_\d{4}-\d{2}-\d{2}T[\d.:-]+\.jsonl")


def reads(path: Path) -> bool:
    """Return whether a file of JSON lines is a log: each line has a document, its target and the arguments of its requests."""
    return path.suffix == ".jsonl" and {"doc_id", "doc", "target", "filtered_resps", "arguments"} <= set(
        first_record(path)
    )


def read(path: Path) -> list[dict[str, Any]]:
    """Return the samples of a log as rows; the split is the task, and the model the folder's name.

    Raises:
        ResponsesError: a line is no sample.
    """
    match = NAME.fullmatch(path.name)
    rows = []
    for number, line in read_lines(path):
        try:
            sample = json.loads(line)
            response = sample["filtered_resps"]
            while isinstance(response, list):
                response = response[0] if response else None
            rows.append(
                {
                    "id": sample["doc_id"],
                    "question": _prompt(sample["arguments"]),
                    "response": response if isinstance(response, str) else None,
                    "reference": str(sample["target"]),
                    "split": match["task"] if match else path.stem,
                    "model": path.parent.name or "model",
                }
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ResponsesError(f"{path}:{number}: expected a sample of lm-evaluation-harness: {error!r}") from error
    return rows


def _prompt(arguments: Any) -> str:
    """Return the text of the first request: under ``gen_args_0`` and ``arg_0``, or the first of a list."""
    while isinstance(arguments, Mapping | list) and arguments:
        arguments = next(iter(arguments.values())) if isinstance(arguments, Mapping) else arguments[0]
    return str(arguments)
