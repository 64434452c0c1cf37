"""Responses in the samples files of ``lmms-eval --output_path DIR --log_samples``.

A sample's ``doc_id`` is its row in the split. It is all that identifies the row after
``--predict_only``; the response is in ``filtered_resps``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval_emi.data.responses import ModelResponses, SplitResponses, collect
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.util.files import visible_files

log = logging.getLogger("lmms_eval_emi")

PARTS = ".emi_parts"  # suffix of folders with files of several ranks


def samples_name(time: str, task: str) -> str:
    """Return the name of the samples file of a task, as lmms-eval 0.7.3 writes it."""
    return f"{time}_samples_{task}.jsonl"


def parse_samples_name(name: str) -> str | None:
    """Return the task of a samples file, or ``None`` if that is not the name of one."""
    match = re.fullmatch(r".+?_samples_(?P<task>.+)\.jsonl", name)
    return match["task"] if match else None


def reads(record: dict[str, Any]) -> bool:
    """Return whether a record is one of a samples file."""
    return "doc_id" in record and "filtered_resps" in record


def expected_file(study: Study, split: str) -> str:
    """Return the name of the samples file of a split."""
    return samples_name("*", study.task_name(split))


def find_models(folder: Path, study: Study) -> list[ModelResponses]:
    """Return the responses of each model below a folder, of its latest run of each task; none if there are none."""
    split_of = {study.task_name(split): split for split in study.splits}
    found: dict[Path, dict[str, list[Path]]] = {}
    for path in visible_files(folder, samples_name("*", "*")):
        task = parse_samples_name(path.name)
        if task in split_of:
            found.setdefault(path.parent, {}).setdefault(split_of[task], []).append(path)
    models = []
    for parent, files in found.items():
        if parent.name.endswith(PARTS):  # what the ranks of one run had, which was not saved at its end
            splits = {split: _together([read_file(path)[None] for path in paths]) for split, paths in files.items()}
        else:
            older = sum(len(paths) - 1 for paths in files.values())
            if older:
                log.info("%s: using the latest of several runs; %d older samples files are ignored.", parent, older)
            splits = {split: read_file(paths[-1])[None] for split, paths in files.items()}
        models.append(ModelResponses(parent.name.removesuffix(PARTS), splits))
    return models


def _together(parts: Sequence[SplitResponses]) -> SplitResponses:
    """Return the responses of several ranks to the rows of one split."""
    texts = {row: text for part in parts for row, text in part.texts.items()}
    return SplitResponses(parts[0].path, texts, "row", tuple(problem for part in parts for problem in part.problems))


def read_file(path: Path) -> dict[str | None, SplitResponses]:
    """Read a samples file, whose lines name no model.

    A file that cannot be read at all has no responses, and its problem says why.
    """
    texts, problems = collect(path, "doc_id", "filtered_resps", text_of=_first_response, key_of=_row_number)
    return {None: SplitResponses(path, texts.get(None, {}), "row", problems)}


def _row_number(doc_id: Any) -> int | None:
    return doc_id if isinstance(doc_id, int) and not isinstance(doc_id, bool) else None


def _first_response(response: Any) -> str | None:
    """Return the first of a sample's responses, stripped as the harness strips what a task is given."""
    while isinstance(response, list):
        response = response[0] if response else None
    return response.strip() if isinstance(response, str) else None
