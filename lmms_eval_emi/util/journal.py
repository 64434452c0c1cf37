"""A journal of responses: what was acknowledged is on the disk, whatever happens next.

A folder has one file for each rank, of records that are only ever appended:

    16 hexadecimal digits (XXH3 of the rest of the line), a space, one JSON object, a newline

A record is written by one call and flushed to the disk before :meth:`Journal.append` returns. A line that a kill or a full
disk has torn does not fit its checksum, is never read, and is cut off when its rank opens the journal again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from lmms_eval_emi.errors import RunError
from lmms_eval_emi.util.files import (
    check_folder_writable,
    encodable,
    flush_folder,
    newer_version,
    read_json,
    to_json,
    write_atomically,
)
from lmms_eval_emi.util.lock import Lock, LockedError, is_locked

log = logging.getLogger("lmms_eval_emi")

FORMAT_VERSION = 1
FOLDER, MANIFEST = "journal", "run.json"
DIGITS = 16  # digits of a checksum


class Request(NamedTuple):
    """Identity of a request in a run."""

    task: str  # its name
    document: int  # number of its row
    number: int  # counts the requests of one document, such as the choices of a question, and repeats of one request
    content: str  # hash of whatever the response depends on beside the model


@dataclass
class Answers:
    """Responses by request, of one model with one set of arguments.

    Attributes:
        by_request: responses by the whole of a request.
        by_content: responses by what was asked alone, for requests whose response does not depend on chance.
    """

    by_request: dict[Request, Any] = field(default_factory=dict)
    by_content: dict[str, Any] = field(default_factory=dict)

    def add(self, request: Request, response: Any) -> None:
        """Take a response; the first of a request stays, unless it is empty."""
        if is_empty(self.by_request.get(request, "")):
            self.by_request[request] = response
        if is_empty(self.by_content.get(request.content, "")):
            self.by_content[request.content] = response

    def without_empty(self, strip: Callable[[str], str] = str.strip) -> Answers:
        """Return the responses that are not empty.

        Args:
            strip: function that removes what is no answer from a text, such as thoughts.
        """
        return Answers(
            {request: response for request, response in self.by_request.items() if not is_empty(response, strip)},
            {content: response for content, response in self.by_content.items() if not is_empty(response, strip)},
        )

    def has(self, request: Request, *, shared: bool) -> bool:
        """Return whether a request is answered; ``shared`` ones also by one of the same content."""
        return request in self.by_request or (shared and request.content in self.by_content)

    def of(self, request: Request, *, shared: bool) -> Any:
        """Return the response to a request.

        Raises:
            KeyError: the request has no response.
        """
        if request in self.by_request or not shared:
            return self.by_request[request]
        return self.by_content[request.content]


def is_empty(response: Any, strip: Callable[[str], str] = str.strip) -> bool:
    """Return whether a journaled response is empty or white space."""
    if isinstance(response, dict):
        ((_, content),) = response.items()
        response = content[0] if isinstance(content, list) and content else content
        if response is None:
            return True
    return isinstance(response, str) and not strip(response).strip()


@dataclass(frozen=True)
class JournalContents:
    """Contents of the files of a journal."""

    records: tuple[Mapping[str, Any], ...]  # records in the order of each rank's file, rank by rank
    damaged: int = 0  # lines that do not fit their checksum, of which a kill leaves at most one at the end of a file

    def answers(self, run: str) -> Answers:
        """Return the responses of the blocks of a run."""
        found = Answers()
        for record in self.records:
            if record["kind"] == "block" and record["run"] == run:
                for *request, response in record["requests"]:
                    found.add(Request(*request), response)
        return found

    def plan(self, command: str) -> dict[Request, bool]:
        """Return every request that any rank has planned for a command, in order, and whether its response may be shared.

        Where a later start asked something else in the same place, the later one counts.
        """
        places: dict[tuple[str, int, int], tuple[Request, bool]] = {}
        plans = [
            record
            for record in self.records
            if record["kind"] == "plan" and record.get("command", record["run"]) == command
        ]
        for record in sorted(plans, key=_start_of):
            for *fields, shared in record["requests"]:
                request = Request(*fields)
                places[request[:3]] = (request, bool(shared))
        return dict(places.values())

    @property
    def starts(self) -> int:
        """Number of times that runs of the folder were started and planned requests."""
        return max((_start_of(record) for record in self.records if record["kind"] == "plan"), default=0)


def _start_of(record: Mapping[str, Any]) -> int:
    start = record.get("start", 0)
    return start if type(start) is int else 0


class Journal:
    """The journal of a folder, opened for appending by one rank of a run.

    Args:
        folder: folder of the run; files lie in ``journal/`` below it.
        rank: rank of this process.

    Raises:
        RunError: another run has it open, it cannot be written, or it is of a newer version.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder / FOLDER
        self.rank = rank
        self.path = self.folder / rank_file(rank)
        try:
            check_folder_writable(self.folder)
        except OSError as error:
            raise RunError(f"{self.folder} cannot be written: {error}. Choose another --output_path.") from error
        try:
            self._lock = Lock(self.path.with_suffix(".lock"))
        except LockedError as error:
            raise RunError(
                f"{folder}: another run is writing there. Wait for it, stop it, or choose another --output_path."
            ) from error
        except OSError as error:
            raise RunError(f"{self.folder} cannot be locked: {error}. Choose another --output_path.") from error
        try:
            self.contents = read_journal(folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            self._handle = os.open(self.path, flags, 0o644)
            self._cut_torn_end()
            if self._end == 0:
                self.append({"kind": "journal", "format_version": FORMAT_VERSION})
                flush_folder(self.folder)
        except OSError as error:
            self._lock.release()
            raise RunError(f"{self.path} cannot be written: {error}") from error
        except BaseException:
            self._lock.release()
            raise

    def _cut_torn_end(self) -> None:
        """Cut off the torn record that a kill left after the last newline; it is moved to a file next to the journal."""
        content = self.path.read_bytes()
        self._end = content.rfind(b"\n") + 1
        rest = content[self._end :]
        if rest and from_line(rest.removesuffix(b"\r")) is not None:  # whole but for its newline
            self._end = len(content) + os.write(self._handle, b"\n")
        elif rest:
            torn = self.path.with_suffix(".torn")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            with os.fdopen(os.open(torn, flags, 0o644), "ab") as file:
                file.write(rest + b"\n")
            log.warning(
                "%s: its last record was not written to the end, and is in %s now; its requests are generated again.",
                self.path,
                torn.name,
            )
            os.ftruncate(self._handle, self._end)
            os.fsync(self._handle)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record; it is on the disk when this returns.

        Raises:
            RunError: the record could not be written, so it is not acknowledged. Earlier records are unchanged.
        """
        line = to_line(record)
        try:
            opened = os.fstat(self._handle)
            if opened.st_size != self._end or not os.path.samestat(opened, self.path.lstat()):
                raise RunError(
                    f"{self.path} is not as this run left it: another process writes there, or moved it. Stop one of the two; every response that was acknowledged is in the journal."
                )
            written = 0
            while written < len(line):
                written += os.write(self._handle, line[written:])
            os.fsync(self._handle)
        except OSError as error:
            with contextlib.suppress(OSError):  # otherwise the checksum tells that it is torn
                os.ftruncate(self._handle, self._end)
            raise RunError(
                f"{self.path} cannot be written: {error}. Every response that was acknowledged is in the journal; make room and start again."
            ) from error
        self._end += len(line)

    def close(self) -> None:
        """Let other runs write to the folder."""
        os.close(self._handle)
        self._lock.release()


def rank_file(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank-{rank:05d}.jsonl"


def to_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as it is written."""
    text = json.dumps(record, ensure_ascii=True, allow_nan=True, separators=(",", ":")).encode("ascii")
    return _checksum(text) + b" " + text + b"\n"


def from_line(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line without its newline, or ``None`` if it does not fit its checksum or is no record."""
    checksum, _, text = line.partition(b" ")
    if len(checksum) != DIGITS or checksum != _checksum(text):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _is_record(record) else None


def _checksum(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode("ascii")


def _is_record(record: Mapping[str, Any]) -> bool:
    """Return whether a record has what its kind must have. Unknown kinds pass, and are left alone."""
    kind = record.get("kind")
    if kind not in ("plan", "block"):
        return isinstance(kind, str)
    requests = record.get("requests")
    return (
        isinstance(record.get("run"), str)
        and isinstance(requests, list)
        and all(
            isinstance(request, list)
            and len(request) == len(Request._fields) + 1
            and isinstance(request[0], str)
            and type(request[1]) is int
            and type(request[2]) is int
            and isinstance(request[3], str)
            for request in requests
        )
    )


def read_journal(folder: Path) -> JournalContents:
    """Return the content of a folder's journal, of all ranks; empty if there is none.

    Raises:
        RunError: a file cannot be read, or is of a newer version.
    """
    records: list[Mapping[str, Any]] = []
    damaged = 0
    for path in sorted((folder / FOLDER).glob("rank-*.jsonl")):
        if path.is_symlink() or not path.is_file():
            raise RunError(f"{path}: expected a regular file. Remove it.")
        try:
            with path.open("rb") as file:
                for line in file:
                    record = from_line(line.removesuffix(b"\n").removesuffix(b"\r"))
                    if record is None:
                        damaged += 1
                        continue
                    version = (
                        record.get("format_version", FORMAT_VERSION) if record["kind"] == "journal" else FORMAT_VERSION
                    )
                    if not isinstance(version, int) or version > FORMAT_VERSION:
                        raise RunError(newer_version(path, version, FORMAT_VERSION))
                    records.append(record)
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error}") from error
    return JournalContents(tuple(records), damaged)


# The manifest: which runs a folder has


def write_manifest(folder: Path, command: str, described: Mapping[str, Any]) -> None:
    """Describe a run in the folder's manifest, by the identity of its command, as its latest.

    Raises:
        RunError: the manifest is damaged or of a newer version, or cannot be written.
    """
    runs = {name: run for name, run in read_manifest(folder).items() if name != command}
    content = {"format_version": FORMAT_VERSION, "runs": {**runs, command: dict(described)}}
    try:
        write_atomically(folder / FOLDER / MANIFEST, encodable(to_json(content)))
    except OSError as error:
        raise RunError(f"{folder / FOLDER / MANIFEST} cannot be written: {error}") from error


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the runs of a folder by the identity of their command, the latest last; none where there is no journal.

    Raises:
        RunError: the manifest is damaged, or of a newer version.
    """
    path = folder / FOLDER / MANIFEST
    if path.is_symlink():
        raise RunError(f"{path}: expected a regular file, got a link. Remove it and start the run again.")
    if not path.exists():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: expected JSON: {error}. Remove it and start the run again; responses are kept."
        ) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise RunError(newer_version(path, version, FORMAT_VERSION))
    runs = content.get("runs") if isinstance(content, dict) else None
    if type(version) is not int or not isinstance(runs, dict) or not all(map(_is_described, runs.values())):
        raise RunError(
            f"{path}: expected a description of runs. Remove it and start the run again; responses are kept."
        )
    return runs


def _is_described(run: Any) -> bool:
    """Return whether the fields that an entry of a manifest has are of the right types."""
    types: dict[str, type] = {"arguments": list, "settings": dict, "folder": str}
    return isinstance(run, dict) and all(
        isinstance(run[name], kind) for name, kind in types.items() if run.get(name) is not None
    )


def is_running(folder: Path) -> bool:
    """Return whether a process has the journal of a folder open."""
    return any(is_locked(path) for path in (folder / FOLDER).glob("rank-*.lock"))
