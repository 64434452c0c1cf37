"""Files: atomic and durable writes, validated reads with clear errors, and hashes of contents.

For what is written as JSON, one pydantic model is the object in memory, the file and its schema (:class:`Document`).
A field that is not set is left out of the file; one that is set to ``None`` is null there.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import xxhash
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lmms_eval_emi.errors import InputError, OutputError, ResultsError

RECOVERED = "recovered"  # folder of the results that a run's journal gave
Item = TypeVar("Item")
FORMAT_VERSION = 1  # version of all documents; readers refuse newer ones
SHOWN_PROBLEMS = 3
Model = TypeVar("Model", bound="Plain")


def encodable(text: str) -> str:
    """Return the text with ``?`` for lone surrogates, which models with byte tokens may emit and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object], *, durable: bool = True) -> Path:
    """Write a file as a whole or not at all: into a temporary file that is then renamed. Devices and pipes are written directly.

    Args:
        path: file to write.
        content: text, which is encoded as UTF-8; bytes; or a function that writes to the path it is given.
        durable: flush file and folder, so that the file survives a power failure. This takes milliseconds.

    Returns:
        The path with symbolic links resolved.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        _write(path, content)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    os.close(handle)
    temporary = Path(name)
    try:
        _write(temporary, content)
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        if durable:
            flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _write(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens folders
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def to_json(content: Any) -> str:
    """Return the text of a JSON file: indented, readable in any script, and without NaN or infinity.

    Raises:
        ValueError: the content holds NaN or infinity.
    """
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def threads(count: int, begin: Callable[[], object] | None = None) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of threads that drops waiting work when the block ends with an error or an interruption.

    Args:
        count: number of the threads.
        begin: called in each of them first.
    """
    pool = ThreadPoolExecutor(count, initializer=begin)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def parse_json(text: str) -> Any:
    """Return Parse JSON as plain data, strictly: no key twice in one object, and texts that any file can hold.

    Raises:
        ValueError: the text is not JSON, a key occurs twice in one object (of which readers keep the last in silence), or it is
            nested too deeply.
    """
    try:
        return _encodable_data(json.loads(text, object_pairs_hook=_pairs_once))
    except RecursionError as error:
        raise InputError("it is nested too deeply") from error


def _pairs_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"the key {key[:100]!r} stands twice in one object")
        found[key] = value
    return found


def _encodable_data(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable(key): _encodable_data(item) for key, item in value.items()}
    return [_encodable_data(item) for item in value] if isinstance(value, list) else value


def newer_version(file: object, version: object, newest: int) -> str:
    """Return the message for a file whose ``format_version`` is newer than this package reads."""
    return f"{file}: its format_version is {version!r}, and this version of lmms_eval_emi reads up to {newest}. Update it: pip install --upgrade lmms_eval_emi"


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Return the consecutive items, ``size`` at a time, as slices of what they are in."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def read_json(path: Path) -> Any:
    """Return the JSON of a regular file, as :func:`parse_json` reads it.

    Raises:
        ValueError: the path is not a regular file (a pipe would wait forever), the text is not UTF-8, or as :func:`parse_json`.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        raise InputError("it is not a regular file" if path.exists() else "it is not there")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"it is not UTF-8 text: {error}") from error
    return parse_json(text)


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return files below a folder by a pattern of their names, sorted.

    Left out is what programs leave beside them: hidden files and folders (``._*``, ``.ipynb_checkpoints``), those of
    archives of a Mac, and results that were recovered from a part of the run in this very folder.
    """

    def is_shown(part: str) -> bool:
        return not part.startswith(".") and part not in ("__MACOSX", RECOVERED)

    return sorted(path for path in folder.rglob(pattern) if all(map(is_shown, path.relative_to(folder).parts)))


def check_folder_writable(folder: Path) -> None:
    """Make a folder if it is not there, and find out whether files can be written there.

    Raises:
        OSError: files cannot be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, probe = tempfile.mkstemp(dir=folder, prefix=".probe-")
    os.close(handle)
    Path(probe).unlink()


def check_output(
    path: Path, inputs: Iterable[str | Path | None] = (), *, overwrite: bool = False, example: str = "results.json"
) -> None:
    """Find out before the work whether a file can be written after it, and may be.

    Args:
        path: path to be written. A device or a pipe is always accepted.
        inputs: files that the command reads, which it must not replace. Folders: nothing below them that
            exists is replaced without ``overwrite``.
        overwrite: whether a file that is there may be replaced.
        example: file name for the message about a folder.

    Raises:
        OutputError: the path is a folder, one of the inputs, or exists already.
        OSError: the file cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"output: expected a file, got the folder {path}. Add a file name, such as {path / example}.")
    resolved = path.resolve()
    if resolved.exists() and not resolved.is_file():
        return
    if resolved in {Path(given).expanduser().resolve() for given in inputs if given}:
        raise OutputError(f"output: {path} is one of the files that this command reads. Name another file.")
    if resolved.exists() and not overwrite:
        raise OutputError(f"output: {path} exists. Name another file, or pass --overwrite to replace it.")
    check_folder_writable(resolved.parent)


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


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Interval = Annotated[tuple[float, float], BeforeValidator(_to_tuple)]


class Plain(BaseModel):
    """Strict types; no NaN or infinity. Unknown keys, as of later versions, are ignored when a file is read."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)

    def to_data(self) -> dict[str, Any]:
        """Return plain data for JSON: what is set, under the names that the file has."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


class Document(Plain):
    """Base of the documents in JSON files; each subclass has its own value of ``kind``."""

    format_version: int = FORMAT_VERSION
    kind: str

    def to_data(self) -> dict[str, Any]:
        """Return plain data for JSON, with the version of the format and the kind of file first."""
        return {"format_version": self.format_version, "kind": self.kind} | super().to_data()

    def write(self, path: str | Path) -> Path:
        """Write the JSON file, all of it or nothing."""
        return write_atomically(Path(path), to_json(self.to_data()))


def parse_model(model: type[Model], content: Any, source: object, *, what: str, exact: bool = False) -> Model:
    """Return a model of JSON data.

    Args:
        model: model to make.
        content: content of the file, as plain data.
        source: name of the file, for messages.
        what: what the file should hold, such as ``results of lmms-eval-emi score``.
        exact: refuse unknown keys as well.

    Raises:
        ResultsError: the file is of a newer version, or damaged; with the places that are.
    """
    version = content.get("format_version", 1) if isinstance(content, Mapping) else 1
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT_VERSION:
        raise ResultsError(
            f"{source}: its format_version is {version!r}, and this version of lmms_eval_emi reads up to {FORMAT_VERSION}. Update it: pip install --upgrade lmms_eval_emi"
        )
    try:
        return model.model_validate(content, extra="forbid" if exact else None)
    except (ValidationError, RecursionError) as error:
        problems = problems_of(error) if isinstance(error, ValidationError) else ["it is nested too deeply"]
        more = f" and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise ResultsError(
            f"{source}: expected {what}, got damaged content: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}. Make the file again."
        ) from error


def read_document(path: Path, what: str) -> Any:
    """Return the plain data of a JSON file.

    Raises:
        ResultsError: the file cannot be read, or is not JSON.
    """
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: expected a JSON file with {what}: {error}") from error


def problems_of(error: ValidationError) -> list[str]:
    """Return the problems of invalid data with their places, a line for each."""
    return [
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}, got {_shown(problem['input'])}"
        for problem in error.errors()
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "an integer of more than 20 digits"
    return repr(value)[:60]
