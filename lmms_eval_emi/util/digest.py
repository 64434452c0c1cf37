"""Content hashes: 128 bits of XXH3, for cache keys and identities. Not for anything a stranger may forge."""

from __future__ import annotations

import hashlib
from pathlib import Path

import xxhash


def content_digest(content: str | bytes) -> bytes:
    """Return 16 bytes that identify a text or some bytes."""
    return xxhash.xxh3_128_digest(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


def content_hexdigest(content: str | bytes) -> str:
    """Return :func:`content_digest` in hexadecimal."""
    return content_digest(content).hex()


def file_hexdigest(path: Path) -> str:
    """Return the SHA-256 of a whole file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
