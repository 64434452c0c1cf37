"""Description of a suite of shifted splits, and the state of its folder, from which an interrupted run continues."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from lmms_eval_emi.data.study import Columns
from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.shifts.apply import Recipe, Step
from lmms_eval_emi.shifts.operators import ShiftOptions
from lmms_eval_emi.util.files import write_atomically
from lmms_eval_emi.version import __version__

if TYPE_CHECKING:
    import datasets

STATE, PARTS, LOCK = "shift.json", "parts", ".lock"
OWN = {"README.md", "study.yaml", "tasks", "splits", "images", "preview.png", "unshifted.jsonl", STATE, PARTS}


@dataclass(frozen=True)
class Suite:
    """Description of a suite that is to be written."""

    name: str  # name of the study, and, in lower case, of its group of tasks
    source: str  # what the rows are from, for the card
    recipes: tuple[Recipe, ...]  # recipes of the splits, the ID split first
    columns: Columns  # columns of the rows; ``image`` is ``None`` if there are none
    seed: int = 0  # seed of all randomness
    options: ShiftOptions = field(default_factory=ShiftOptions)  # options of textual operators
    roots: tuple[str, ...] = ()  # folders that paths of images are relative to, and that they must lie in
    run_with: str = ""  # command that runs the tasks, for the card

    @property
    def visual(self) -> list[Step]:
        """Steps for images, each once."""
        return list(dict.fromkeys(recipe.visual for recipe in self.recipes if recipe.visual))

    @property
    def textual(self) -> list[Step]:
        """Steps for texts, each once."""
        return list(dict.fromkeys(recipe.textual for recipe in self.recipes if recipe.textual))


@dataclass(frozen=True)
class Written:
    """Counts of a suite that was written."""

    rows: int
    left: Counter[str]  # rows that a step left as they were, by its name
    resumed: int  # rows that an earlier run had done


def state_of(rows: datasets.Dataset, suite: Suite) -> dict[str, Any]:
    """Return everything that the written suite depends on; a run with the same state continues the work of another."""
    given = suite.options
    synonyms = hashlib.sha256(given.synonyms.read_bytes()).hexdigest() if given.synonyms else ""
    return {
        "version": __version__,
        "name": suite.name,
        "source": suite.source,
        "rows": len(rows),
        "columns": suite.columns.model_dump(),
        "content of the rows": _content(rows, suite.columns),
        "seed": suite.seed,
        "splits": [recipe.name for recipe in suite.recipes],
        "options": {"keep": list(given.keep), "synonyms": synonyms, "endpoint": given.endpoint, "model": given.model},
        "resources": {
            step.operator.name: step.operator.resources(suite.options)
            for step in (*suite.visual, *suite.textual)
            if step.operator.resources
        },
    }


def _content(rows: datasets.Dataset, columns: Columns) -> str:
    """Return a hash of the rows' texts, and of the files that the rows with their images are from."""
    import pyarrow

    digest = xxhash.xxh3_128(repr(sorted(file["filename"] for file in rows.cache_files)).encode())
    texts = rows.select_columns(list(dict.fromkeys((columns.id, columns.question, columns.reference))))
    for table in texts.with_format("arrow").iter(batch_size=1000):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()


def prepare(destination: Path, state: dict[str, Any], overwrite: bool) -> None:
    """Make the folder ready, or find out why it may not be written to."""
    present = {path.name for path in destination.iterdir()} - {LOCK}
    for name in [name for name in present if _is_leftover(name)]:
        (destination / name).unlink()
        present.discard(name)
    try:
        earlier = json.loads((destination / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    if not present <= OWN or (present and STATE not in present and present != {PARTS}):
        others = sorted(present - OWN) or sorted(present)
        raise ShiftError(
            f"DEST: expected a new or empty folder, or one of an earlier run; {destination} holds {', '.join(others[:5])}."
        )
    different = [key for key, value in state.items() if earlier.get(key) != value]
    if earlier and not different and not overwrite:
        (destination / PARTS).mkdir(exist_ok=True)
        return
    if earlier and not overwrite and not earlier.get("is being replaced"):
        was, now = (str(fields.get(different[0]))[:120] for fields in (earlier, state))
        raise ShiftError(
            f"DEST: {destination} holds a suite with another {different[0]}: {was}, now {now}. Choose another folder, or --overwrite to lose that one."
        )
    if present:  # the state goes last, so that a folder that is half removed is known for what it is
        write_atomically(destination / STATE, json.dumps({"is being replaced": True}))
        for name in sorted(present - {STATE}):
            path = destination / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomically(destination / STATE, json.dumps(state, indent=1))
    (destination / PARTS).mkdir(exist_ok=True)


def _is_leftover(name: str) -> bool:
    """Return whether a file is a leftover of a killed run."""
    return name.startswith(".probe-") or any(name.startswith(f".{file}.") for file in OWN)


def part_of(destination: Path, start: int) -> Path:
    """Return where the chunk that begins at a row is kept until the suite is complete."""
    return destination / PARTS / f"{start:010d}.json"
