"""A study from rows of plain tables and logs: its splits, their shifts, and their samples."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.data.flat import is_image_table, read_rows, with_images_of
from lmms_eval_emi.data.images import content_key
from lmms_eval_emi.data.rows import Sample, id_text
from lmms_eval_emi.data.study import Columns, DatasetSpec, Shift, SplitSpec, Study
from lmms_eval_emi.errors import ImageError, ResponsesError
from lmms_eval_emi.scoring.join import StudySamples, add_rows, refuse_unless
from lmms_eval_emi.settings import Settings

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("lmms_eval_emi")

CHUNK = re.compile(r"(\d+)_(\d+)")  # LLaVA's number of chunks, and of this one
COLUMNS = Columns(id="id", image="image", question="question", reference="reference")


def collect_flat(
    paths: Sequence[Path],
    id_split: str,
    settings: Settings,
    *,
    split_by: str | None = None,
    allow_missing: bool = False,
) -> list[StudySamples]:
    """Return the samples of tables or logs, by model.

    What shifts a split is told by its rows: those whose questions, or images, differ from their partners of the ID split.

    Args:
        paths: paths of files that :func:`lmms_eval_emi.data.flat.read_rows` reads. Without a column of splits, each is a split
            of its own, called as the file.
        id_split: name of the split in distribution.
        settings: settings with the folder of images or a benchmark's table of them, and what to do with thoughts.
        split_by: as in :func:`lmms_eval_emi.data.flat.read_rows`.
        allow_missing: leave out rows that cannot be used, and say which.

    Raises:
        ResponsesError: a file cannot be read or lacks a column, the ID split is not there, or rows cannot be used.
    """
    parts: dict[tuple[str, str], tuple[Path, datasets.Dataset]] = {}
    for path, plain in _merged_chunks(paths, split_by):
        table = settings.images if is_image_table(settings.images) else None
        read = plain if table is None else with_images_of(plain, table)
        for model, split, rows in _by_model_and_split(path, read):
            if (model, split) in parts:
                raise ResponsesError(f"{path}: {split} of {model} is in {parts[model, split][0]} already.")
            parts[model, split] = (path, rows)
    names = list(dict.fromkeys(split for _, split in parts))
    if id_split not in names:
        raise ResponsesError(f"--id-split: expected one of {', '.join(names)}, got {id_split!r}.")
    entries = []
    for model in dict.fromkeys(model for model, _ in parts):
        of_model = {split: found for (name, split), found in parts.items() if name == model}
        if id_split not in of_model:
            raise ResponsesError(f"{paths[0]}: {model} has no rows of the ID split {id_split}.")
        order = sorted(of_model, key=lambda split: split != id_split)
        entries.append(join_tables(model, paths[0], {split: of_model[split] for split in order}, settings))
    refuse_unless(allow_missing, entries)
    return entries


def _merged_chunks(paths: Sequence[Path], split_by: str | None) -> list[tuple[Path, datasets.Dataset]]:
    """Return the rows of each file; files such as ``2_0.jsonl`` and ``2_1.jsonl``, LLaVA's chunks of a split, are one.

    Raises:
        ResponsesError: a chunk is missing.
    """
    import datasets

    found: dict[Path, datasets.Dataset] = {}
    chunks: dict[tuple[Path, int], dict[int, Path]] = {}
    for path in paths:
        numbers = CHUNK.fullmatch(path.stem)
        if numbers and int(numbers[2]) < int(numbers[1]):
            chunks.setdefault((path.parent, int(numbers[1])), {})[int(numbers[2])] = path
        else:
            found[path] = read_rows(path, split_by)
    for (folder, count), chunk in chunks.items():
        missing = sorted(set(range(count)) - chunk.keys())
        if missing:
            raise ResponsesError(
                f"{folder}: expected {count} chunks, {', '.join(f'{count}_{number}' for number in missing[:5])} are missing. Give all of them."
            )
        parts = [read_rows(chunk[number], split_by) for number in sorted(chunk)]
        found[folder / f"{folder.name}{chunk[0].suffix}"] = datasets.concatenate_datasets(parts)
    return list(found.items())


def join_tables(
    model: str, source: Path, parts: Mapping[str, tuple[Path, datasets.Dataset]], settings: Settings
) -> StudySamples:
    """Return the samples of one model.

    Args:
        model: its name.
        source: source of the rows, after which the study is called.
        parts: file and rows of each split, under the names of :data:`COLUMNS` and ``response``; the first split is
            the one in distribution.
        settings: settings with the folder of images, and what to do with thoughts.
    """
    splits: dict[str, SplitSpec] = {}
    read: list[StudySamples] = []
    for name, (path, rows) in parts.items():
        image = "image" if "image" in rows.column_names else None
        spec = DatasetSpec(path=path.name, columns=COLUMNS.model_copy(update={"image": image}))
        split = SplitSpec(name=_slug(name), task=_slug(name).lower(), modality="id", dataset=spec)
        if split.name in splits:
            raise ResponsesError(f"{path}: two splits would be called {split.name}, one of them {name!r}. Rename one.")
        entry = StudySamples(_study(source, {split.name: split}, split.name), model)
        by_row = {row: text for row, text in enumerate(rows["response"]) if isinstance(text, str)}
        if len(by_row) < len(rows):
            entry.leave_out(
                split.name, f"{path}: {len(rows) - len(by_row)} of {len(rows)} rows of {name} have no response."
            )
        add_rows(entry, split.name, rows, by_row, settings)
        if read:
            clean = next(iter(read[0].samples.values()), [])
            shifts = _shifts(name, clean, entry.samples.get(split.name, []))
            modality = "joint" if len(shifts) > 1 else shifts[0].modality
            split = split.model_copy(update={"shifts": shifts, "modality": modality})
        splits[split.name] = split
        read.append(entry)
    whole = StudySamples(_study(source, splits, next(iter(splits))), model)
    for entry in read:
        whole.samples |= entry.samples
        whole.left_out |= entry.left_out
        whole.lost |= entry.lost
        whole.notes |= entry.notes
    return whole


def _study(path: Path, splits: dict[str, SplitSpec], id_split: str) -> Study:
    name = _slug(path.stem)
    return Study(name=name, title=path.name, group=name.lower(), id_split=id_split, source=str(path), splits=splits)


def _by_model_and_split(path: Path, rows: datasets.Dataset) -> list[tuple[str, str, datasets.Dataset]]:
    """Return the rows of a file by model and split, each with an id that is its own."""
    names = rows.column_names
    models = rows["model"] if "model" in names else ["model"] * len(rows)
    splits = rows["split"] if "split" in names else [path.stem] * len(rows)
    places: dict[tuple[str, str], list[int]] = {}
    for place, key in enumerate(zip(map(str, models), map(str, splits), strict=True)):
        places.setdefault(key, []).append(place)
    found = []
    for (model, split), numbers in places.items():
        part = rows.select(numbers)
        ids = [id_text(value) for value in part["id"]] if "id" in names else []
        # Ids such as clean-7 and fog-7 name the split as well, which keeps partners apart.
        plain = [row_id.removeprefix(f"{split}-").removeprefix(f"{split}_") for row_id in ids]
        ids = plain if len(set(plain)) == len(plain) else ids
        if len(set(ids)) < len(numbers):
            if ids:
                log.warning("%s: ids of %s are not distinct; rows are numbered.", path, split)
            ids = [str(number) for number in range(len(numbers))]
        part = part.remove_columns(["id"]) if "id" in names else part
        found.append((model, split, part.add_column("id", ids)))
    return found


def _shifts(name: str, clean: Sequence[Sample], shifted: Sequence[Sample]) -> tuple[Shift, ...]:
    """Return the shifts of a split: whether images, questions or both differ in most rows from those of the ID split."""
    partners = {sample.key: sample for sample in clean}
    moved: Counter[str] = Counter()
    for sample in shifted:
        partner = partners.get(sample.key)
        moved["text"] += partner is not None and partner.question != sample.question
        moved["visual"] += partner is None or _content(partner) != _content(sample)
    found = [modality for modality in ("visual", "text") if 2 * moved[modality] > len(shifted)]
    return tuple(Shift(modality=modality, name=_slug(name)) for modality in found or ["visual"])


def _content(sample: Sample) -> str:
    try:
        return content_key(sample.image) if sample.image is not None else ""
    except ImageError:
        return ""


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "split"
