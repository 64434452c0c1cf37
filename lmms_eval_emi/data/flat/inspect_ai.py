"""Logs of inspect_ai: ``.eval`` (a zip archive whose members are packed with Zstandard) and ``.json``."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmms_eval_emi.errors import ResponsesError

SUFFIXES = (".eval",)
ZSTANDARD = 93  # number of the method in zip archives, which zipfile does not unpack
LARGEST = 500_000_000  # bytes of a member when unpacked
ATTACHMENT = "attachment://"


def reads(path: Path) -> bool:
    """Return whether a file is a log: by its suffix, or by what a JSON object begins with."""
    if path.suffix == ".eval":
        return True
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return start.lstrip()[:1] == b"{" and b'"status"' in start and b'"eval"' in start


def read(path: Path, split_by: str | None = None) -> list[dict[str, Any]]:
    """Return the samples of a log as rows.

    Args:
        path: path of the log.
        split_by: keys of a sample, with points between, that name its split, such as ``metadata.shift``.

    Raises:
        ResponsesError: the file is not a log, has no samples, or a sample lacks the key.
    """
    try:
        header, samples = (_of_archive if path.suffix == ".eval" else _of_json)(path)
        rows = [_row(sample, header, split_by, path) for sample in samples]
    except ResponsesError:
        raise
    except Exception as error:  # zipfile, json, zstandard and struct have their own
        raise ResponsesError(f"{path}: expected a log of inspect_ai: {type(error).__name__}: {error}") from error
    if not rows:
        raise ResponsesError(f"{path}: expected samples, the log has none.")
    return rows


def _of_json(path: Path) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    log = json.loads(path.read_text(encoding="utf-8"))
    return log["eval"], log.get("samples") or []


def _of_archive(path: Path) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        start = members.get("header.json") or members["_journal/start.json"]
        header = json.loads(_unpacked(path, start))["eval"]
        names = sorted(name for name in members if name.startswith("samples/") and name.endswith(".json"))
        return header, [json.loads(_unpacked(path, members[name])) for name in names]


def _unpacked(path: Path, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > LARGEST:
        raise ResponsesError(f"{path}: {member.filename} has {member.file_size:,} bytes; expected at most {LARGEST:,}.")
    if member.compress_type != ZSTANDARD:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    import zstandard

    with path.open("rb") as file:
        file.seek(member.header_offset)
        name_length, extra_length = struct.unpack("<26xHH", file.read(30))
        file.seek(name_length + extra_length, 1)
        packed = file.read(member.compress_size)
    content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)).read(LARGEST + 1)
    if len(content) > LARGEST:  # whatever the archive says of it
        raise ResponsesError(f"{path}: {member.filename} has more than {LARGEST:,} bytes when unpacked.")
    return bytes(content)


def _row(sample: Mapping[str, Any], header: Mapping[str, Any], split_by: str | None, path: Path) -> dict[str, Any]:
    texts: list[str] = []
    images: list[str] = []
    for kind, content in _contents(sample["input"], sample.get("attachments") or {}):
        (images if kind == "image" else texts).append(content)
    target = sample.get("target")
    choices = (sample.get("output") or {}).get("choices") or []
    row = {
        "id": f"{sample['id']}" + (f"#{sample['epoch']}" if sample.get("epoch", 1) != 1 else ""),
        "question": "\n".join(texts),
        "response": (sample.get("output") or {}).get("completion") if choices and not sample.get("error") else None,
        "reference": target if isinstance(target, str) else "\n".join(map(str, target or [])),
        "image": images[0] if images else None,
        "model": str(header.get("model", "")),
    }
    if split_by is not None:
        row["split"] = _at(sample, split_by, path)
    return row


def _contents(given: Any, attachments: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield texts and images of a sample's input: a text, or messages of a user with parts."""
    if isinstance(given, str):
        yield "text", given
        return
    for message in given:
        if message.get("role") != "user":
            continue
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part.get("type")
            if kind in ("text", "image"):
                value = str(part[kind])
                yield kind, attachments.get(value.removeprefix(ATTACHMENT), value)


def _at(sample: Mapping[str, Any], keys: str, path: Path) -> str:
    found: Any = sample
    for key in keys.split("."):
        if not isinstance(found, Mapping) or key not in found:
            raise ResponsesError(
                f"--split-by: expected keys of a sample such as metadata.shift, got {keys!r}, which sample {sample.get('id')} of {path.name} lacks; its metadata has {', '.join(sample.get('metadata') or {}) or 'nothing'}."
            )
        found = found[key]
    return str(found)
