"""Embeddings on the disk, so that no image or text is encoded twice.

A run that had to encode something writes one file of rows; files are written under a temporary name and renamed, so
several processes may read and write at once, on a network file system too. Every row has a checksum of its own: what
is damaged, cut off or gone is encoded again, and never becomes a score. Beyond the limit of the folder, what has
been unused longest goes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash

from lmms_eval_emi.encoders.checkpoint import tensors_of_safetensors
from lmms_eval_emi.util.files import write_atomically

log = logging.getLogger("lmms_eval_emi")

KEY = 16  # bytes
MOST_FILES = 32  # of one encoder; then they become one
SUFFIX = ".safetensors"


def content_digest(content: str | bytes) -> bytes:
    """Sixteen bytes that tell a text, or the key of an image, from all others."""
    return xxhash.xxh3_128_digest(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


class EmbeddingCache:
    """Rows by content, of one encoder.

    Args:
        folder: of the embeddings of all encoders.
        encoder: what its rows depend on: weights, pooling, preprocessing, precision.
        limit: bytes that the folder may take; 0 keeps nothing.
    """

    def __init__(self, folder: Path, encoder: str, limit: int) -> None:
        self.all, self.encoder, self.limit = folder, encoder, limit
        self.folder = folder / xxhash.xxh3_128_hexdigest(encoder.encode())

    def find(self, keys: Sequence[bytes], dimension: int) -> dict[bytes, np.ndarray]:
        """The rows that are known, by key.

        Args:
            keys: digests of what is to be encoded.
            dimension: D, the width of a row.
        """
        if not self.limit or not keys:
            return {}
        wanted = np.unique(np.frombuffer(b"".join(keys), dtype=f"S{KEY}").view("V16"))
        found: dict[bytes, np.ndarray] = {}
        for path in self._files():
            try:
                part = _read(path, wanted, dimension)
            except FileNotFoundError:  # another process has cleaned up
                continue
            except (OSError, ValueError, KeyError, IndexError, TypeError, MemoryError, OverflowError) as error:
                log.debug("%s cannot be used, and is removed: %s", path, error)
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            if part:
                found |= part
                with contextlib.suppress(OSError):
                    os.utime(path)
            if len(found) >= len(wanted):
                break
        return found

    def add(self, rows: Mapping[bytes, np.ndarray]) -> None:
        """Keep rows. A cache that cannot be written is none: a run goes on without it."""
        if not self.limit or not rows:
            return
        try:
            self._write(rows)
            self._merge()
            self._clean()
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("embeddings are not kept in %s: %s", self.folder, error)

    def _write(self, rows: Mapping[bytes, np.ndarray]) -> None:
        from safetensors.numpy import save_file

        matrix = np.stack([np.ascontiguousarray(row, dtype=np.float32) for row in rows.values()])
        keys = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, KEY)
        sums = np.array([_checksum(key, row) for key, row in zip(rows, matrix, strict=True)], dtype=np.uint64)
        content: dict[str, np.ndarray] = {"keys": keys, "sums": sums, "rows": matrix}
        write_atomically(
            self.folder / f"{uuid.uuid4().hex}{SUFFIX}",
            lambda path: save_file(content, path, {"encoder": self.encoder}),
            durable=False,
        )

    def _files(self) -> list[Path]:
        """Files of the encoder, the latest first."""
        return [path for path, _, _ in sorted(_statuses(self.folder), key=lambda one: -one[2])]

    def _merge(self) -> None:
        """Make one file of many small ones."""
        paths = self._files()
        if len(paths) <= MOST_FILES:
            return
        together: dict[bytes, np.ndarray] = {}
        for path in paths:
            with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError, MemoryError, OverflowError):
                together |= _read(path, None, None)
        self._write(together)
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()

    def _clean(self) -> None:
        """Remove what has been unused longest, until the folder is within its limit."""
        files = sorted((one for folder in self.all.iterdir() if folder.is_dir() for one in _statuses(folder)), key=lambda one: one[2])  # fmt: skip
        excess = sum(size for _, size, _ in files) - self.limit
        for path, size, _ in files:
            if excess <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            excess -= size


def _statuses(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Path, size and time of last use of every file of a folder."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                    status = entry.stat()
                    yield Path(entry.path), status.st_size, status.st_mtime_ns


def _checksum(key: bytes, row: np.ndarray) -> int:
    digest = xxhash.xxh3_64(key)
    digest.update(row.tobytes())
    return digest.intdigest()


def _read(path: Path, wanted: np.ndarray | None, dimension: int | None) -> dict[bytes, np.ndarray]:
    """The wanted rows of a file whose checksums are right; all of them if none are named."""
    tensors = tensors_of_safetensors(path)
    keys = tensors["keys"].read_as(np.uint8)
    sums = tensors["sums"].read_as(np.uint64)
    count, width = tensors["rows"].shape
    if keys.shape != (count, KEY) or len(sums) != count or (dimension is not None and width != dimension):
        raise ValueError("its parts do not fit each other")
    own = np.ascontiguousarray(keys).view("V16").reshape(-1)
    places = np.arange(count) if wanted is None else np.flatnonzero(np.isin(own, wanted))
    rows = tensors["rows"].rows(places)
    found = {}
    for place, row in zip(places, rows, strict=True):
        key = keys[place].tobytes()
        if _checksum(key, row) == int(sums[place]):
            found[key] = row
    return found
