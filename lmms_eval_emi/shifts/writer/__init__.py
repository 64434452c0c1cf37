"""Writes a suite of shifts of any dataset: a dataset with one split per shift, its study file, and its tasks.

    DEST/
      README.md           the dataset's card, which says where the splits are
      study.yaml          for lmms-eval-emi score
      tasks/              for lmms-eval --include_path
      splits/NAME/metadata.parquet    rows, with the paths of their images
      images/VARIANT/     images, once per variant, however many splits and rows have them
      preview.png         a row under every shift
      unshifted.jsonl     rows that an operator left as they were, and why

Rows are shifted in chunks, each of which is on disk when it is done, so that a run that was stopped continues
where it was, and neither the rows nor the images of more than a few chunks are in memory.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.data.columns import choose_columns, plain_rows
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.shifts.writer.journal import LOCK, PARTS, STATE, Suite, Written, part_of, prepare, state_of
from lmms_eval_emi.shifts.writer.layout import assemble, describe
from lmms_eval_emi.shifts.writer.workers import CHUNK, shift_all
from lmms_eval_emi.util.files import check_folder_writable, write_atomically
from lmms_eval_emi.util.lock import Lock, LockedError

if TYPE_CHECKING:
    import datasets

# Shifts chunks of the rows of a suite that begin at some rows, and yields the number of rows of each as it is done.
ShiftChunks = Callable[["datasets.Dataset", Suite, Path, list[int]], Iterator[int]]

__all__ = ["ShiftChunks", "Suite", "Written", "choose_columns", "plain_rows", "write_suite"]


def write_suite(
    rows: datasets.Dataset,
    suite: Suite,
    destination: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda done: None,
    write_tasks: Callable[[Study, Path], object] = lambda study, folder: None,
    shift: ShiftChunks = shift_all,
) -> Written:
    """Shift all rows and write the suite.

    Args:
        rows: rows of the ID split, with the suite's columns.
        suite: suite to write.
        destination: folder of the suite, which may contain what an earlier run of the same suite has done.
        overwrite: whether to remove another suite that is there.
        progress: function that is called with the number of rows just done.
        write_tasks: function that writes the tasks of a study into a folder, for a harness.
        shift: function that shifts chunks of rows; default: one process of this machine.

    Raises:
        ShiftError: the folder contains something else, or an operator lacks what it needs, or a worker was killed.
    """
    if not len(rows):
        raise ShiftError(f"expected rows to shift, {suite.source} has none.")
    destination = destination.resolve()
    state = state_of(rows, suite)
    check_folder_writable(destination)
    with _locked(destination):
        prepare(destination, state, overwrite)
        done = json.loads((destination / STATE).read_text(encoding="utf-8"))
        if done.get("complete"):
            progress(len(rows))
            return Written(len(rows), Counter(done["left"]), len(rows))
        rows = plain_rows(rows, suite.columns.image)
        todo = [start for start in range(0, len(rows), CHUNK) if not part_of(destination, start).exists()]
        resumed = len(rows) - sum(min(CHUNK, len(rows) - start) for start in todo)
        progress(resumed)
        for size in shift(rows, suite, destination, todo):
            progress(size)
        left = assemble(rows, suite, destination)
        write_tasks(describe(rows, suite, destination, left), destination / "tasks")
        write_atomically(destination / STATE, json.dumps({**state, "complete": True, "left": left}, indent=1))
        shutil.rmtree(destination / PARTS)
        return Written(len(rows), left, resumed)


@contextmanager
def _locked(destination: Path) -> Iterator[None]:
    """Keep other runs from writing to the folder."""
    try:
        lock = Lock(destination / LOCK)
    except LockedError as error:
        raise ShiftError(f"DEST: another run is writing to {destination}; wait for it, or stop it.") from error
    try:
        yield
    finally:
        (destination / LOCK).unlink(missing_ok=True)
        lock.release()
