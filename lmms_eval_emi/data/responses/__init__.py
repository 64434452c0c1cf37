"""Existing responses: finding their files and reading them. One module for each file format.

A format is a module with the functions of :class:`lmms_eval_emi.data.responses.Format`, registered
under the entry-point group ``lmms_eval_emi.responses``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from lmms_eval_emi.data.rows import check_place, id_text
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.errors import ResponsesError
from lmms_eval_emi.util.files import parse_json

log = logging.getLogger("lmms_eval_emi")
__all__ = [
    "Format",
    "ModelResponses",
    "ResponsesError",
    "SplitResponses",
    "choose_models",
    "expected_files",
    "find_responses",
    "read_responses",
    "responses_of_study",
]
GROUP = "lmms_eval_emi.responses"
ALL = "all"


@dataclass(frozen=True)
class SplitResponses:
    """The responses of one model in one file."""

    path: Path  # path of the file
    texts: dict[Any, str] = field(repr=False)  # response by question id, as text, or by row number
    keyed_by: str  # ``id`` or ``row``
    problems: tuple[str, ...] = ()  # lines that cannot be used, with the reason; they are no part of ``texts``

    def by_row(self, ids: Sequence[object]) -> dict[int, str]:
        """Return responses by row number, for a split whose rows have these ids."""
        keys = range(len(ids)) if self.keyed_by == "row" else [id_text(question_id) for question_id in ids]
        return {row: self.texts[key] for row, key in enumerate(keys) if key in self.texts}


@dataclass(frozen=True)
class ModelResponses:
    """The responses of one model: its name, as its files or their places say, and a file for each split."""

    model: str | None
    splits: dict[str, SplitResponses]
    aliases: tuple[str, ...] = ()  # other names by which it may be chosen, such as the suffix of its files


class Format(Protocol):
    """One format of response files: a module with these functions, registered as an entry point."""

    def find_models(self, folder: Path, study: Study) -> list[ModelResponses]:
        """Return the responses of each model below a folder; none where it has no files of this format."""
        ...

    def reads(self, record: dict[str, Any]) -> bool:
        """Return whether a line of JSON is of this format."""
        ...

    def read_file(self, path: Path) -> dict[str | None, SplitResponses]:
        """Return the responses of one file by model."""
        ...

    def expected_file(self, study: Study, split: str) -> str:
        """Return the name of the file of a split, for messages."""
        ...


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Return the lines of a text file that are not blank, with their numbers.

    Raises:
        ResponsesError: the file cannot be read.
    """
    try:
        if not path.is_file():
            raise OSError("it is not a regular file" if path.exists() else "it is not there")
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut a response at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise ResponsesError(f"{path}: expected a UTF-8 file of JSON lines: {error}") from error
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def first_record(path: Path) -> dict[str, Any]:
    """Return the first line of a file that is a JSON object, or an empty one; also where the file cannot be read."""
    try:
        for _, line in read_lines(path):
            try:
                record = parse_json(line)
            except ValueError:
                continue
            return record if isinstance(record, dict) else {}
    except ResponsesError:
        pass  # whoever reads it says why
    return {}


def collect(
    path: Path,
    key_name: str,
    text_name: str,
    *,
    text_of: Callable[[Any], Any] = lambda text: text,
    key_of: Callable[[Any], Any] = id_text,
    model_name: str | None = None,
) -> tuple[dict[str | None, dict[Any, str]], tuple[str, ...]]:
    """Return responses of a file of JSON lines, by model and key, and the lines that cannot be used; or why the file cannot be.

    Args:
        path: path of the file.
        key_name: name of the record's field that identifies its row.
        text_name: name of the record's field with the response.
        text_of: what to make of that field; anything but a text is a problem.
        key_of: what to make of the key; ``None`` is a problem.
        model_name: name of the record's field that names the model.
    """
    texts: dict[str | None, dict[Any, str]] = {}
    seen: dict[Any, dict[str | None, int]] = {}  # line by model by key
    doubled: set[tuple[str | None, Any]] = set()
    repeated = 0  # lines that say again what an earlier one said
    problems = []
    try:
        lines = read_lines(path)
    except ResponsesError as error:
        return {}, (str(error),)
    for number, line in lines:
        try:
            model, key, text = _parse(line, key_name, text_name, text_of, key_of, model_name)
        except ResponsesError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        earlier = seen.setdefault(key, {})
        # A line that names no model may be of any.
        same = [other for other in earlier if other == model or other is None or model is None]
        if same and texts[same[0]].get(key) == text:
            repeated += 1
        elif same:
            problems.append(
                f"{path}:{number}: {key_name} {key} is in line {earlier[same[0]]} already. Keep one of the two."
            )
            doubled |= {(other, key) for other in same}
        else:
            earlier[model] = number
            texts.setdefault(model, {})[key] = text
    for model, key in doubled:
        del texts[model][key]
    if repeated:
        log.warning("%s: %d lines repeat an earlier line, and are left out.", path, repeated)
    return texts, tuple(problems)


def _parse(
    line: str,
    key_name: str,
    text_name: str,
    text_of: Callable[[Any], Any],
    key_of: Callable[[Any], Any],
    model_name: str | None,
) -> tuple[str | None, Any, str]:
    """Return model, key and response of a line; the arguments are those of :func:`collect`.

    Raises:
        ResponsesError: the line is not a record with these fields; the message lacks file and line number.
    """
    try:
        record = parse_json(line)
    except ValueError as error:
        hint = " The file seems to be one JSON array: write one object per line." if line.strip() == "[" else ""
        raise ResponsesError(f"not a line of JSON ({error}). Fix or remove the line.{hint}") from error
    known = isinstance(record, dict) and isinstance(record.get(key_name), str | int | float)
    text = text_of(record.get(text_name)) if known else None
    key = key_of(record[key_name]) if known else None
    if not isinstance(text, str) or key is None:
        keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise ResponsesError(
            f"expected an object with {key_name} and {text_name} (a text), got {keys or 'an empty object'}. Fix or remove the line."
        )
    model = record.get(model_name) if model_name else None
    if model is not None and not isinstance(model, str | int | float):
        raise ResponsesError(
            f"expected a name under {model_name}, got a {type(model).__name__}. Fix or remove the line."
        )
    return str(model) if model else None, key, text


def by_model(
    files: Mapping[str, Path],
    read: Callable[[Path], Mapping[str | None, SplitResponses]],
    fallback: str | None = None,
    aliases: tuple[str, ...] = (),
) -> list[ModelResponses]:
    """Return the responses of some files by the models that their lines name.

    Args:
        files: files by split.
        read: gives a file's responses by model.
        fallback: name of the model of lines that name none, unless all others name one and the same.
        aliases: aliases of each model.
    """
    content = {path: read(path) for path in dict.fromkeys(files.values())}
    names = list(dict.fromkeys(name for by_name in content.values() for name in by_name if name is not None))
    default = names[0] if len(names) == 1 else fallback
    models = []
    for name in dict.fromkeys([*names, default]):
        splits = {}
        for split, path in files.items():
            parts = [
                content[path][key] for key in ((name, None) if name == default else (name,)) if key in content[path]
            ]
            if name is None:
                parts = parts[:1]
            if parts:
                texts = {key: text for part in parts for key, text in part.texts.items()}
                splits[split] = replace(parts[0], texts=texts)
        if splits:
            models.append(ModelResponses(name, splits, aliases))
    return models


def rename(models: Sequence[ModelResponses], names: Mapping[str, str]) -> list[ModelResponses]:
    """Return the models under new names; those that get the same name become one.

    Raises:
        ResponsesError: two of them that get the same name have responses of the same split.
    """
    merged: dict[str | None, ModelResponses] = {}
    for entry in models:
        name = names.get(entry.model or "", entry.model)
        if name not in merged:
            merged[name] = ModelResponses(name, dict(entry.splits), entry.aliases)
            continue
        both = sorted(merged[name].splits.keys() & entry.splits.keys())
        if both:
            raise ResponsesError(
                f"--model-name: {name} would have two files of the split {both[0]}: {merged[name].splits[both[0]].path} and {entry.splits[both[0]].path}."
            )
        merged[name].splits.update(entry.splits)
    return list(merged.values())


def find_responses(folder: Path, study: Study) -> list[ModelResponses]:
    """Return the responses of each model in a folder: a harness run's samples, or LLaVA's response files.

    Args:
        folder: the output folder of a harness run or a folder below it, or a folder of response files.
        study: study whose splits are looked for.

    Raises:
        ResponsesError: the folder is not there or has no such files, or one that cannot be read.
    """
    if not folder.is_dir():
        state = "a file" if folder.exists() else "not there"
        raise ResponsesError(f"responses: expected a folder of response files, got {folder}, which is {state}.")
    found = (reader.find_models(folder, study) for reader in formats())
    return _with_unique_names(next(models for models in found if models), folder)


def _with_unique_names(models: list[ModelResponses], folder: Path) -> list[ModelResponses]:
    """Return the models; those of one name, such as one model in two experiments, are called by their folders."""
    counts = Counter(entry.model for entry in models)
    return [
        entry
        if counts[entry.model] == 1
        else replace(entry, model=str(next(iter(entry.splits.values())).path.parent.relative_to(folder)))
        for entry in models
    ]


def responses_of_study(study: Study, images: Path | None = None) -> list[ModelResponses]:
    """Return the responses in the files that a study file names itself, by model.

    Args:
        study: the study.
        images: another folder that the study may name, as the setting ``images``.

    Raises:
        ResponsesError: the study names none, or one that cannot be read.
        StudyError: a file lies outside the study's folder.
    """
    files = {name: path for name in study.splits if (path := study.response_file(name))}
    if not files:
        raise ResponsesError(
            f"{study.source}: no split names its responses. Add responses: FILE.jsonl to the splits, or give a folder with --responses."
        )
    return by_model({name: check_place(study, path, images) for name, path in files.items()}, read_responses)


def choose_models(
    found: Mapping[str, Sequence[ModelResponses]], wanted: Sequence[str] = (), renamed: Mapping[str, str] | None = None
) -> list[tuple[str, ModelResponses]]:
    """Return which models of some folders to use.

    Args:
        found: models by folder.
        wanted: names to take, wherever they are; ``all`` takes every one. Without any, each folder must
            hold one model.
        renamed: new name by old name. Models that get the same name become one.

    Returns:
        Pairs of folder and model.

    Raises:
        ResponsesError: a folder contains several models and none was chosen, or a wanted one is in no folder.
    """
    renamed = dict(renamed or {})
    known = {entry.model for models in found.values() for entry in models}
    unknown = [old for old in renamed if old not in known]
    if unknown:
        raise ResponsesError(
            f"--model-name: expected one of {', '.join(sorted(map(str, known)))} before the =, got {unknown[0]}."
        )
    chosen: list[tuple[str, ModelResponses]] = []
    missing = set(wanted) - {ALL}
    for folder, models in found.items():
        models = rename(models, renamed) if renamed else models
        if not wanted and len(models) > 1:
            names = ", ".join(sorted(str(entry.model) for entry in models))
            raise ResponsesError(
                f"{folder}: responses of several models ({names}). Choose with --only-model NAME, or take every one with --only-model all."
            )
        for entry in models:
            names_of = {entry.model, *entry.aliases}
            if not wanted or ALL in wanted or names_of & set(wanted):
                chosen.append((folder, entry))
                missing -= {name for name in names_of if name}
    if missing:
        listed = "; ".join(
            f"{folder} has {', '.join(sorted(str(entry.model) for entry in models))}"
            for folder, models in found.items()
        )
        raise ResponsesError(
            f"--only-model: expected a model that is there, got {', '.join(sorted(missing))}. {listed}."
        )
    return chosen


def read_responses(path: Path) -> dict[str | None, SplitResponses]:
    """Read a response file of any known format; responses by model.

    Raises:
        ResponsesError: the file cannot be read at all.
    """
    record = first_record(path)
    readers = formats()
    return next((reader for reader in readers if reader.reads(record)), readers[-1]).read_file(path)


def expected_files(study: Study, split: str) -> str:
    """Return the accepted names of the response file of a split, for messages."""
    return " or ".join(reader.expected_file(study, split) for reader in reversed(formats()))


@lru_cache(maxsize=1)
def formats() -> tuple[Format, ...]:
    """Return the formats in the order in which they are tried; LLaVA's is last, and its error is shown if none fits."""
    from lmms_eval_emi.data.responses import llava

    registered = {entry.name: entry for entry in entry_points(group=GROUP)}
    others = [entry.load() for name, entry in sorted(registered.items()) if name != "llava"]
    return (*others, llava)
