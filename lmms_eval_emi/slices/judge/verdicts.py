"""The file of verdicts: one JSON object a line, on the disk as soon as a reply is there."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError, ValidationInfo, field_serializer, field_validator

from lmms_eval_emi.errors import EndpointError, InputError
from lmms_eval_emi.slices.judge.prompt import Order
from lmms_eval_emi.util.files import Plain, check_folder_writable, encodable, parse_json, problems_of
from lmms_eval_emi.util.lock import Lock, LockedError

log = logging.getLogger("lmms_eval_emi")


class Key(NamedTuple):
    """Identity of a verdict in a file."""

    model: str
    split: str
    row: int
    order: Order
    repeat: int


class Scores(NamedTuple):
    """Scores that a judge gave, 1 to 10."""

    reference: float
    model: float


class Tokens(NamedTuple):
    """Tokens of prompts and replies; 0 where the endpoint does not count them."""

    prompt: int = 0
    completion: int = 0


class Verdict(Plain):
    """Verdict of a judge on one response, a line of the verdicts file.

    Attributes:
        model, split, row, order, repeat: identify the verdict in its file.
        question_id: ID of the row, as text.
        scores: scores of the reference and of the model; ``None`` for a verdict that is missing.
        reply: reply of the judge, the last one if it was asked again.
        judge: name of the judge model.
        request: hash of all that the reply depends on beside chance.
        tries: how often the judge was asked.
        tokens: tokens of prompts and replies.
        missing: why there are no scores.
    """

    model: str
    split: str
    row: int
    order: Order
    repeat: int
    question_id: str
    scores: Scores | None
    reply: str = ""
    judge: str = ""
    request: str = ""
    tries: int = 1
    tokens: Tokens = Tokens()
    missing: str = ""

    @classmethod
    def of(cls, key: Key, question_id: str, scores: tuple[float, float] | None, **others: Any) -> Verdict:
        """Make the verdict for a key from its scores and the reply that they were read from."""
        pair = Scores(*scores) if scores is not None else None
        return cls(**key._asdict(), question_id=question_id, scores=pair, **others)

    @property
    def key(self) -> Key:
        """Identity of the verdict in its file."""
        return Key(self.model, self.split, self.row, self.order, self.repeat)

    @field_validator("scores", "tokens", mode="before")
    @classmethod
    def _from_object(cls, value: Any, info: ValidationInfo) -> Any:
        kind = Scores if info.field_name == "scores" else Tokens
        if not isinstance(value, dict):
            return value
        if value.keys() != set(kind._fields):
            raise InputError(f"expected {' and '.join(kind._fields)}, got {', '.join(map(str, value))}")
        return kind(**value)

    @field_serializer("scores", "tokens")
    def _to_object(self, value: Any) -> Any:
        return None if value is None else value._asdict()


def read_verdicts(path: Path) -> list[Verdict]:
    """Return the verdicts of a file, the last of each key; lines that cannot be read are left out, and told.

    Raises:
        EndpointError: the file is missing, or has no verdicts.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EndpointError(f"{path}: expected a file of lmms-eval-emi judge ask: {error}") from error
    found: dict[Key, Verdict] = {}
    damaged = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            verdict = Verdict.model_validate(parse_json(line.decode("utf-8")))
        except ValidationError as error:
            damaged.append(f"line {number}: it is not a verdict: {problems_of(error)[0]}")
            continue
        except ValueError as error:
            damaged.append(f"line {number}: {error}")
            continue
        found[verdict.key] = verdict
    if damaged and not found:
        raise EndpointError(f"{path}: expected verdicts of lmms-eval-emi judge ask; {damaged[0]}.")
    if damaged:
        log.warning("%s: %d lines cannot be read, and are left out: %s.", path, len(damaged), damaged[0])
    return list(found.values())


class VerdictFile:
    """A file that verdicts are appended to, one at a time, by many threads.

    Args:
        path: path of the file.
        fresh: start over. Verdicts go beside the file, and take its place with the first that has scores, so that an
            endpoint that gives none costs no earlier verdicts.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self._lock = threading.Lock()
        self._path = path
        self._beside = path.with_name(path.name + ".new") if fresh else None
        self._file = path.open("ab", buffering=0) if self._beside is None else self._beside.open("wb", buffering=0)
        self.count = 0
        if self._beside is None and path.stat().st_size:
            with path.open("rb") as before:
                before.seek(-1, os.SEEK_END)
                torn = before.read(1) != b"\n"
            if torn:  # what a kill left of a line stays one of its own, and is not read
                self._file.write(b"\n")

    def append(self, verdict: Verdict) -> None:
        """Write one verdict to the disk.

        Raises:
            EndpointError: the file cannot be written.
        """
        text = json.dumps({key: _clean(value) for key, value in verdict.to_data().items()}, ensure_ascii=False)
        line = text.encode("utf-8") + b"\n"
        with self._lock:
            try:
                if self._file.write(line) != len(line):
                    raise OSError("the disk is full")
                os.fsync(self._file.fileno())
                self.count += 1
                if self._beside is not None and verdict.scores is not None:
                    self._beside.replace(self._path)
                    self._beside = None
            except OSError as error:
                raise EndpointError(
                    f"a verdict cannot be written: {error}. The same command goes on from here."
                ) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()
            if self._beside is not None:
                self._beside.unlink(missing_ok=True)


@contextmanager
def opened(path: Path, fresh: bool = False) -> Iterator[VerdictFile]:
    """Open a file of verdicts that only this process appends to, or replaces if ``fresh``.

    Raises:
        EndpointError: another process does, or it cannot be written.
    """
    check_folder_writable(path.resolve().parent)
    try:
        lock = Lock(path.with_name(path.name + ".lock"))
    except LockedError as error:
        raise EndpointError(f"{path}: another process is writing to it. Wait for it, or name another file.") from error
    try:
        file = VerdictFile(path, fresh)
        try:
            yield file
        finally:
            file.close()
    except OSError as error:
        raise EndpointError(f"{path}: it cannot be written: {error}") from error
    finally:
        lock.release()  # the lock's file stays: whoever removes it may remove the lock of another


def group_verdicts(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], list[Verdict]]:
    """Return verdicts by model and split."""
    found: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault((verdict.key.model, verdict.key.split), []).append(verdict)
    return found


def _clean(value: Any) -> Any:
    return encodable(value) if isinstance(value, str) else value
