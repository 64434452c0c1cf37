"""Embeddings on disk, so that no image or text is encoded twice.

Every run that encodes something writes one file of rows. Files are written under a temporary name and renamed, so
several processes may read and write at once, on a network file system too. Every row has its own checksum: a damaged
row is encoded again and never becomes a score. The folder is trusted: whoever can write to it can change scores.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash

from lmms_eval_emi.errors import InputError
from lmms_eval_emi.util.files import content_hexdigest, write_atomically

log = logging.getLogger("lmms_eval_emi")

KEY_BYTES = 16
MAX_FILES = 32  # files of one encoder, which are merged above this number
SUFFIX = ".safetensors"


class EmbeddingCache:
    """Rows of one encoder by the content they were made from.

    Args:
        folder: folder of the embeddings of all encoders.
        encoder: everything that a row depends on apart from its item, as ``Encoder.cache_key`` gives it.
        limit: bytes that the folder may take; 0 keeps nothing.
    """

    def __init__(self, folder: Path, encoder: str, limit: int) -> None:
        self.root, self.encoder, self.limit = folder, encoder, limit
        self.folder = folder / content_hexdigest(encoder)

    def find(self, keys: Sequence[bytes], dimension: int) -> dict[bytes, np.ndarray]:
        """Return the known rows by key.

        Args:
            keys: 16-byte digests of the items.
            dimension: D, the width of a row.
        """
        if not self.limit or not keys:
            return {}
        wanted = np.unique(np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}").view("V16"))
        found: dict[bytes, np.ndarray] = {}
        for path in self._files():
            rows = self._read_or_remove(path, wanted, dimension)
            if rows:
                found |= rows
                with contextlib.suppress(OSError):
                    os.utime(path)
            if len(found) >= len(wanted):
                break
        return found

    def add(self, rows: Mapping[bytes, np.ndarray]) -> None:
        """Keep rows by key. Write failures are logged and ignored."""
        if not self.limit or not rows:
            return
        try:
            self._write(rows)
            self._merge_files()
            self._remove_oldest()
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("embeddings are not kept in %s: %s", self.folder, error)

    def _read_or_remove(self, path: Path, wanted: np.ndarray | None, dimension: int | None) -> dict[bytes, np.ndarray]:
        """Return the wanted rows of a file; a file that cannot be read counts as a miss and is removed."""
        try:
            return _read(path, wanted, dimension)
        except FileNotFoundError:  # another process has cleaned up
            return {}
        except Exception as error:  # safetensors raises its own class for a damaged header
            log.debug("%s cannot be used, and is removed: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return {}

    def _write(self, rows: Mapping[bytes, np.ndarray]) -> None:
        from safetensors.numpy import save_file

        matrix = np.stack([np.ascontiguousarray(row, dtype=np.float32) for row in rows.values()])
        keys = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, KEY_BYTES)
        sums = np.array([_checksum(key, row) for key, row in zip(rows, matrix, strict=True)], dtype=np.uint64)
        content: dict[str, np.ndarray] = {"keys": keys, "sums": sums, "rows": matrix}
        write_atomically(
            self.folder / f"{uuid.uuid4().hex}{SUFFIX}",
            lambda path: save_file(content, path, {"encoder": self.encoder}),
            durable=False,
        )

    def _files(self) -> list[Path]:
        """Return files of the encoder, the latest first."""
        return [path for path, _, _ in sorted(_statuses(self.folder), key=lambda status: -status[2])]

    def _merge_files(self) -> None:
        paths = self._files()
        if len(paths) <= MAX_FILES:
            return
        merged: dict[bytes, np.ndarray] = {}
        for path in paths:
            merged |= self._read_or_remove(path, None, None)
        self._write(merged)
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()

    def _remove_oldest(self) -> None:
        """Remove the least recently used files until the folder is within its limit."""
        statuses = [status for folder in self.root.iterdir() if folder.is_dir() for status in _statuses(folder)]
        excess = sum(size for _, size, _ in statuses) - self.limit
        for path, size, _ in sorted(statuses, key=lambda status: status[2]):
            if excess <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            excess -= size


def _statuses(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield the path, size and time of last use of every cache file of a folder."""
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
    """Return rows of a file whose checksums are right: the wanted ones, or all of them."""
    from safetensors import safe_open

    if not path.is_file():
        raise FileNotFoundError(path) if not path.exists() else InputError("it is not a regular file")
    with safe_open(path, "numpy") as file:
        keys, sums, matrix = (file.get_tensor(name) for name in ("keys", "sums", "rows"))
    count, width = matrix.shape
    if (
        keys.shape != (count, KEY_BYTES)
        or sums.shape != (count,)
        or (dimension is not None and width != dimension)
        or matrix.dtype != np.float32
        or keys.dtype != np.uint8
    ):
        raise InputError("inconsistent shapes")
    places: Iterable[int] = range(count)
    if wanted is not None:
        places = np.flatnonzero(np.isin(np.ascontiguousarray(keys).view("V16").reshape(-1), wanted)).tolist()
    found = {}
    for place in places:
        key, row = keys[place].tobytes(), matrix[place].copy()
        if _checksum(key, row) == int(sums[place]):
            found[key] = row
    return found
