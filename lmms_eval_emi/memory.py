"""Memory of this process that the system can have back: what was freed, and pages of files that can be read again."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

MAPPED_BYTES = 2**24  # of mapped files that are read before their pages are let go of
ARENA_MAX = -8  # M_ARENA_MAX of malloc.h
AREAS = 2  # of memory that threads share; each keeps what is freed in it, which are 100 MB of a scoring run


def share_areas() -> None:
    """Let all threads share two areas of memory, where the C library knows this; a setting of the whole process."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, AREAS)


def give_back() -> None:
    """Give what was freed back to the system, which small blocks in between may keep the C library from doing."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class MappedColumns:
    """Columns of Arrow tables that are read, whose pages are let go of after every 16 MB.

    They count as memory of this process as long as their file is mapped, which it is to the end of it. They are read
    again when they are needed.
    """

    def __init__(self) -> None:
        self._columns: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._bytes = 0
        self._lock = threading.Lock()

    def was_read(self, column: Any, count: int) -> None:
        """Note that so many bytes of a column were read."""
        with self._lock:
            self._columns[id(column)] = column
            self._bytes += count
            if self._bytes < MAPPED_BYTES:
                return
            columns, self._bytes = list(self._columns.values()), 0
            self._columns.clear()
        release_pages(columns)


def release_pages(columns: Sequence[Any]) -> None:
    """Let go of the pages of mapped Arrow files that some columns lie in; nothing where the system knows no such thing."""
    try:
        advise, files = ctypes.CDLL(None).madvise, _mapped_files()
        for chunk in (chunk for column in columns for chunk in column.chunks):
            for buffer in chunk.buffers():
                if buffer is None or buffer.is_mutable:
                    continue
                start = -(-buffer.address // mmap.PAGESIZE) * mmap.PAGESIZE
                stop = buffer.address + buffer.size
                if any(first <= start and stop <= last for first, last in files):
                    advise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
    except (AttributeError, OSError, ValueError):  # another system
        return


def _mapped_files() -> list[tuple[int, int]]:
    """First and last address of every Arrow file that is mapped, whose pages can be had again."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".arrow"):
            first, last = line.split(maxsplit=1)[0].split("-")
            found.append((int(first, 16), int(last, 16)))
    return found
