"""LLaVA's response files: JSON lines with ``question_id``, ``text`` and ``model_id``, one file for each split."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmms_eval_emi.data.responses import ModelResponses, SplitResponses, by_model, collect
from lmms_eval_emi.data.study import BUILT_IN, Study, load_study
from lmms_eval_emi.errors import ResponsesError
from lmms_eval_emi.util.files import visible_files, write_atomically
from lmms_eval_emi.util.printing import shorten

SAVED = "emi_responses"  # how the folder ends in which a run of a harness saves its responses


def reads(record: dict[str, Any]) -> bool:
    """Return whether a record is one of LLaVA's."""
    return "question_id" in record and "text" in record


def expected_file(study: Study, split: str) -> str:
    """Return the name of the response file of a split."""
    return " or ".join(f"{stem}.jsonl" for stem in study.split(split).response_stems)


def read_file(path: Path) -> dict[str | None, SplitResponses]:
    """Return responses of one file by the model that its lines name.

    A file that cannot be read at all has no responses, and its problem says why.
    """
    texts, problems = collect(path, "question_id", "text", model_name="model_id")
    return {model: SplitResponses(path, by_id, "id", problems) for model, by_id in (texts or {None: {}}).items()}


def find_models(folder: Path, study: Study) -> list[ModelResponses]:
    """Return the responses of each model in a folder.

    The file of a split is ``{split}.jsonl`` or ``{split}_{model}.jsonl``; a split whose study entry
    names a stem under ``responses`` may take the file of that stem instead. A file belongs to the
    longest name that it begins with, so that ``llava_bench_coco_frost_1.jsonl`` is not the file of
    ``llava_bench_coco``. Files with the same suffix are of one model unless their lines name several;
    a model is called what its lines say, or else what its files' suffix says.

    A folder without such files may be the ``--output_path`` of runs of a harness, whose responses are found below it.

    Raises:
        ResponsesError: the folder has no such file, or one that cannot be read.
    """
    read = lru_cache(maxsize=None)(read_file)  # files of several splits are read once
    found = [
        model
        for suffix, files in _files_by_suffix(folder, study).items()
        for model in by_model(files, read, suffix or None, (suffix,) if suffix else ())
    ]
    if not found:
        found = [model for below in _of_harness_runs(folder, study.name) for model in find_models(below, study)]
    if not found:
        present = [path.name for path in sorted(folder.glob("*"))]
        raise ResponsesError(
            f"{folder}: expected response files such as {study.id_split}.jsonl or {study.id_split}_MODEL.jsonl, found {shorten(present, 5) or 'nothing'}."
        )
    return found


def _of_harness_runs(folder: Path, study: str) -> list[Path]:
    """Return the folders with the responses of the latest run of each model below the output folder of a harness."""
    latest = {path.parent.parent: path for path in visible_files(folder, study) if path.parent.name.endswith(SAVED)}
    return list(latest.values())


def _files_by_suffix(folder: Path, study: Study) -> dict[str, dict[str, Path]]:
    """Return the files of splits by the suffix that follows the split's name."""
    stems = {
        stem
        for known in (study, *map(load_study, BUILT_IN))
        for split in known.splits.values()
        for stem in split.response_stems
    }
    by_stem: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("[!.]*.jsonl")):
        stem = path.name.removesuffix(".jsonl")
        owner = max((known for known in stems if stem == known or stem.startswith(f"{known}_")), key=len, default=None)
        if owner:
            by_stem.setdefault(owner, {})[stem[len(owner) + 1 :]] = path
    wanted = [stem for split in study.splits.values() for stem in split.response_stems]
    suffixes = dict.fromkeys(suffix for stem in wanted for suffix in by_stem.get(stem, {}))
    files: dict[str, dict[str, Path]] = {suffix: {} for suffix in sorted(suffixes)}
    for suffix, file in files.items():
        for name, split in study.splits.items():
            own_stem = next((known for known in split.response_stems if suffix in by_stem.get(known, {})), None)
            if own_stem:
                file[name] = by_stem[own_stem][suffix]
    return files


def write_response_file(path: Path, rows: Iterable[tuple[object, str, str]], model: str) -> Path:
    """Write ``(question_id, prompt, text)`` rows in the format that :func:`read_file` reads, all of it or nothing."""
    lines = [
        json.dumps(
            {"question_id": question_id, "prompt": prompt, "text": text, "model_id": model},
            ensure_ascii=False,
            default=str,
        )
        for question_id, prompt, text in rows
    ]
    return write_atomically(path, "".join(f"{line}\n" for line in lines))
