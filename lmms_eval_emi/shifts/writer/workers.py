"""Shifting the rows of a suite, chunk by chunk, in one process or several."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.images import encoded_image, open_encoded, open_image
from lmms_eval_emi.errors import ImageError, ShiftError
from lmms_eval_emi.shifts.apply import ID_SPLIT, Step
from lmms_eval_emi.shifts.writer.journal import Suite, part_of
from lmms_eval_emi.util.files import write_atomically

if TYPE_CHECKING:
    import datasets

CHUNK = 32  # rows


def shift_all(
    rows: datasets.Dataset, suite: Suite, destination: Path, todo: list[int], processes: int = 1
) -> Iterator[int]:
    """Shift the chunks that begin at the given rows; yields the number of rows of each as it is done."""
    if processes <= 1 or len(todo) <= 1:
        for start in todo:
            yield shift_chunk(rows, suite, destination, start)
        return
    pool = ProcessPoolExecutor(
        min(processes, len(todo)), multiprocessing.get_context("spawn"), _start_worker, (rows, suite, destination)
    )
    try:
        yield from pool.map(_shift_chunk_of_worker, todo)
    except BrokenProcessPool as error:
        raise ShiftError(
            "a worker was killed, possibly out of memory. Finished rows are kept: run the same command again with fewer --processes."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_WORKER: tuple[datasets.Dataset, Suite, Path] | None = None


def _start_worker(rows: datasets.Dataset, suite: Suite, destination: Path) -> None:
    import os
    import signal
    import threading
    from multiprocessing.connection import wait as wait_for

    import cv2

    global _WORKER
    _WORKER = (rows, suite, destination)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _shift_chunk_of_worker(start: int) -> int:
    assert _WORKER is not None
    return shift_chunk(*_WORKER, start)


def shift_chunk(rows: datasets.Dataset, suite: Suite, destination: Path, start: int) -> int:
    """Shift the chunk that begins at a row, and write it; returns its number of rows."""
    chunk = rows.select(range(start, min(start + CHUNK, len(rows))))
    records = [shift_row(row, suite, destination) for row in chunk]
    write_atomically(part_of(destination, start), json.dumps(records), durable=False)
    return len(records)


def shift_row(row: dict[str, Any], suite: Suite, destination: Path) -> dict[str, Any]:
    """Return paths of a row's images by visual step, its texts by textual step, and why any step left it as it was."""
    row_id = row[suite.columns.id]
    record: dict[str, Any] = {"images": {}, "texts": {}, "left": {}}

    def left(step: Step) -> Callable[[str], object]:
        return lambda reason: record["left"].__setitem__(step.name, reason)

    apply = {"seed": suite.seed, "row_id": row_id, "options": suite.options}
    if suite.columns.image:
        encoded, image, reason = None, None, ""
        try:
            encoded = encoded_image(row[suite.columns.image], [Path(root) for root in suite.roots])
            image = open_image(encoded)
        except ImageError as error:
            reason = str(error)
        # Only what was decoded as an image is stored: a row may name any file.
        clean = _store(encoded, destination, ID_SPLIT, _suffix(encoded)) if encoded and image else None
        record["images"][ID_SPLIT] = clean
        for step in suite.visual:
            record["images"][step.name] = clean
            if image is None:
                left(step)(reason)
                continue
            shifted = step.apply_or_keep(image, left(step), **apply)
            if shifted is not image:
                file = io.BytesIO()
                shifted.save(file, "PNG", compress_level=4)
                record["images"][step.name] = _store(file.getvalue(), destination, step.name, ".png")
    question = row[suite.columns.question]
    for step in suite.textual:
        shifted = step.apply_or_keep(question or "", left(step), **apply)
        record["texts"][step.name] = question if step.name in record["left"] else shifted
    return record


def _suffix(encoded: bytes) -> str:
    with contextlib.suppress(Exception), open_encoded(encoded) as image:
        return {"JPEG": ".jpg"}.get(image.format or "", f".{(image.format or 'png').lower()}")
    return ".png"


def _store(encoded: bytes, destination: Path, variant: str, suffix: str) -> str:
    """Write an image under a name made of its content, once; returns its path below a split's folder."""
    digest = hashlib.blake2b(encoded, digest_size=16).hexdigest()
    relative = f"images/{variant}/{digest[:2]}/{digest}{suffix}"
    path = destination / relative
    if not path.exists():
        write_atomically(path, encoded, durable=False)
    return relative
