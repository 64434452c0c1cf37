"""Hash of the content of a request: a deterministic model gives requests with equal hashes the same response.

The harness's own cache knows the text of a prompt and not its image. Here whatever the model is given counts: texts,
generation arguments, and the pixels, samples or files that the task's functions give for the document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import ExifTags, Image

from lmms_eval_emi.util.journal import Request

BLOCK = 1 << 22  # bytes of a file that are read at a time
LONGEST_PATH = 4096  # a longer text is no path


@dataclass(frozen=True)
class Described:
    """A request as a journal knows it."""

    request: Request  # what identifies it
    shared: bool  # whether another request of the same content may have its response


class Contents:
    """Describes the requests of one call of a model.

    Args:
        documents: gives the row of a task, split and document number, as the model will see it.
        method: method of the model, such as ``generate_until``.
        seed: seed of what is drawn, which is part of the content of a request whose response is.
        seen: how many requests of each document there were before; kept up to date.
    """

    def __init__(
        self,
        documents: Callable[[str, str, int], Any],
        method: str,
        seed: str = "",
        seen: dict[tuple[str, int], int] | None = None,
    ) -> None:
        self.documents = documents
        self.method = method
        self.seed = seed
        self._seen = {} if seen is None else seen  # requests of a document so far
        self._asked: set[tuple[str, int, str]] = set()
        self._given: tuple[Any, dict[str, str | None]] = (None, {})  # what the latest document's functions gave

    def describe(self, instance: Any) -> Described:
        """Describe the next request; its arguments are left unchanged."""
        task, document = str(instance.task_name), int(instance.doc_id)
        number = self._seen.get((task, document), 0)
        self._seen[task, document] = number + 1
        content, whole = self._content(instance, task, document)
        # Repeats of one document are there to see how far its responses differ.
        again = (task, document, content) in self._asked
        self._asked.add((task, document, content))
        shared = whole and not again and (self.method == "loglikelihood" or is_greedy(instance.args))
        return Described(Request(task, document, number, content), shared)

    def _content(self, instance: Any, task: str, document: int) -> tuple[str, bool]:
        """Return the hash, and whether it covers all that the model is given."""
        arguments = instance.args
        split = arguments[-1] if len(arguments) > 3 and isinstance(arguments[-1], str) else ""
        # The last three are the document's number, the task and the split, which say where it is asked and not what.
        asked = arguments[:-3] if len(arguments) > 3 else arguments
        digest, whole = xxhash.xxh3_128(self.method.encode()), True
        for place, argument in enumerate(asked):
            found = (
                self._given_by(argument, place, task, split, document) if callable(argument) else content_hash(argument)
            )
            whole = whole and found is not None
            digest.update(f"\0{place}:{found}".encode())
        if self.seed and self.method != "loglikelihood" and not is_greedy(arguments):
            digest.update(f"\0seed {self.seed}".encode())
        if not whole:  # some argument has no content to hash, so the request is identified by its place
            digest.update(f"\0{task}\0{split}\0{document}".encode())
        return digest.hexdigest(), whole

    def _given_by(self, function: Callable[..., Any], place: int, task: str, split: str, document: int) -> str | None:
        """Return the hash of what a task's function gives for the document."""
        at = (task, split, document)
        if self._given[0] != at:
            self._given = (at, {})
        name = f"{place}:{getattr(function, '__qualname__', type(function).__name__)}:{id(function)}"
        known = self._given[1]
        if name not in known:
            try:
                known[name] = content_hash(function(self.documents(task, split, document)))
            except Exception:  # the model will meet it too, and says more about it
                known[name] = None
        return known[name]


def is_greedy(arguments: Sequence[Any]) -> bool:
    """Return whether the generation arguments say that nothing is drawn. A model may draw where they say nothing."""
    options = next((argument for argument in arguments if isinstance(argument, Mapping)), {})
    temperature = options.get("temperature")
    return options.get("do_sample") is False or (
        temperature is not None and not options.get("do_sample") and temperature == 0
    )


def content_hash(value: Any) -> str | None:
    """Return a hash of a value's content, independent of its address; ``None`` for types without a known content."""
    digest = xxhash.xxh3_128()
    return digest.hexdigest() if _feed(digest, value) else None


def _feed(digest: Any, value: Any) -> bool:
    """Feed a value into a digest; returns whether it is known how."""
    if isinstance(value, torch.Tensor):
        value = [str(value.dtype), value.detach().cpu().float().numpy()]
    elif isinstance(value, Path):
        value = str(value)
    elif isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if isinstance(value, Image.Image):
        # As a model sees it: a palette is part of the pixels, and some models rotate by the EXIF tag. RGBA has no room
        # for more than 8 bits per channel, and premultiplied modes convert to it by way of their plain mode alone.
        plain = value.convert("LA") if value.mode == "La" else value
        seen = plain if plain.mode.startswith(("I", "F")) else plain.convert("RGBA")
        turn = value.getexif().get(ExifTags.Base.Orientation, 1)
        digest.update(f"image:{seen.mode}:{seen.size}:{turn}:".encode() + seen.tobytes())
    elif isinstance(value, str):
        digest.update(f"text:{len(value)}:".encode() + value.encode("utf-8", "surrogatepass"))
        digest.update(_state_of_file(value))
    elif isinstance(value, bytes | bytearray):
        digest.update(f"bytes:{len(value)}:".encode() + bytes(value))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"array:{value.dtype}:{value.shape}:".encode() + np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, bool | int | float | np.generic):
        digest.update(f"{type(value).__name__}:{json.dumps(value, default=str)};".encode())
    elif isinstance(value, Mapping):
        digest.update(f"mapping:{len(value)}:".encode())
        return all(_feed(digest, str(key)) and _feed(digest, value[key]) for key in sorted(value, key=str))
    elif isinstance(value, list | tuple):
        digest.update(f"sequence:{len(value)}:".encode())
        return all(_feed(digest, item) for item in value)
    else:
        return False
    return True


def _state_of_file(text: str) -> bytes:
    """Return the state of the file or folder that a text names, such as a video or its frames; nothing for other texts."""
    text = text.removeprefix("file://")
    if not 0 < len(text) < LONGEST_PATH or "\n" in text or "\0" in text:
        return b""
    try:
        path = Path(text)
        if path.is_file():
            return f"file:{file_hash(path)}".encode()
        frames = sorted(path.iterdir()) if "/" in text and path.is_dir() else []
        return "".join(f"{frame.name}:{file_hash(frame)};" for frame in frames if frame.is_file()).encode()
    except (OSError, ValueError):
        return b""


def file_hash(path: Path) -> str:
    """Return the hash of all bytes of a file. A file is read once as long as its size and time stay."""
    state = path.stat()
    return _hash_of_state(str(path.resolve()), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_of_state(path: str, size: int, time: int) -> str:
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
