"""The one reader of images: where they may lie, how they are decoded, and what tells two of them apart.

Everything that reads an image (scores, shifts, tasks, reports) reads it here, so one rule holds
everywhere: turned as its EXIF data say, RGB, no file that is cut off, nothing outside the folders of
its source. This module imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import xxhash
from PIL import Image, ImageFile, ImageOps

from lmms_eval_emi.errors import ImageError

if TYPE_CHECKING:
    import datasets

ImageSource = Union[Image.Image, bytes, str, Path, "DatasetImage"]

# Above this an image is refused before its pixels are read; a small file may claim a huge size.
MOST_PIXELS = 150_000_000


@dataclass(frozen=True)
class DatasetImage:
    """An image that stays in its dataset, encoded, until it is needed.

    Attributes:
        dataset: its image column is not decoded.
        row: number of the row.
        column: name of the column.
        roots: folders that the paths in the column are relative to, and that they must lie in.
    """

    dataset: datasets.Dataset
    row: int
    column: str
    roots: tuple[Path, ...] = ()

    def encoded(self) -> bytes:
        """Content of the image file."""
        encoded = encoded_image(self.dataset[self.row][self.column], self.roots)
        if encoded is None:
            raise ImageError("it has no image")
        return encoded


def encoded_image(value: Any, roots: Sequence[Path]) -> bytes | None:
    """Content of the image file that a dataset's cell holds or names.

    Args:
        value: ``{"bytes": ..., "path": ...}`` as ``datasets`` has it, a path, or ``None``.
        roots: folders that a relative path may be relative to. A path must lie in one of them, so
            that no dataset can name other files of the machine that reads it.

    Returns:
        The bytes, or ``None`` where the cell is empty.

    Raises:
        ImageError: the path is not there, or lies outside the folders.
    """
    if isinstance(value, dict):
        if value.get("bytes"):
            return value["bytes"]
        value = value.get("path")
    if value is None or value == "":
        return None
    if not isinstance(value, str | Path):
        raise ImageError(f"expected the bytes or the path of an image, got {type(value).__name__}")
    return _read_below(Path(value), [Path(root) for root in roots])


def _read_below(path: Path, roots: Sequence[Path]) -> bytes:
    tried = " or ".join(map(str, roots)) or "no folder"
    try:
        for root in roots:
            candidate = root / path
            if not candidate.exists():
                continue
            resolved = candidate.resolve()
            if not any(resolved.is_relative_to(allowed.resolve()) for allowed in roots):
                break
            if not resolved.is_file():
                raise ImageError(f"{path} is not a regular file")
            return resolved.read_bytes()
        else:
            raise ImageError(f"{path} is not there; looked in {tried}")
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path} cannot be read: {error}") from error
    raise ImageError(
        f"{path} lies outside the folders of its source ({tried}). "
        "Move it there, or allow its folder with LMMS_EVAL_EMI_IMAGES"
    )


def open_image(source: ImageSource | None, most_pixels: int = MOST_PIXELS, at_least: int | None = None) -> Image.Image:
    """The decoded image, turned as its EXIF orientation says.

    Args:
        source: a Pillow image, encoded bytes, a path, or a cell of a dataset.
        most_pixels: a larger image is refused before it is decoded.
        at_least: sides that are enough, for a JPEG is decoded faster at a half, a quarter or an eighth of its size.

    Raises:
        ImageError: there is none, it cannot be decoded, is cut off, has no pixels, or too many.
    """
    if source is None:
        raise ImageError("it has no image")
    try:
        image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(_encoded(source)))
        check_size(image, most_pixels)
        if at_least:
            image.draft("RGB", (at_least, at_least))
        with _complete_images():
            image.load()
        return ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises whatever its many decoders happen to raise
        raise ImageError(f"its image cannot be read: {error}") from error


def check_size(image: Image.Image, most_pixels: int, longest_side: int | None = None) -> None:
    """Raise ``ImageError`` unless an image has pixels, and not too many."""
    width, height = image.size
    if min(width, height) < 1:
        raise ImageError(f"its image has no pixels: its size is {width} x {height}")
    if width * height > most_pixels or (longest_side and max(width, height) > longest_side):
        sides = f"sides of at most {longest_side} and " if longest_side else ""
        raise ImageError(f"its image has {width} x {height} pixels; expected {sides}at most {most_pixels:,} pixels")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; an alpha channel is dropped, not blended, and 16 bits are scaled to 8.

    Raises:
        ImageError: its values have no scale that is known, as in 32-bit images.
    """
    if image.mode == "RGB":
        return image
    if image.mode in {"La", "RGBa"}:  # premultiplied modes convert to their plain twin only
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not (low >= 0 and high <= 65535):
            raise ImageError(
                f"its image has mode {image.mode} and values from {low:g} to {high:g}; expected 8 or 16 bits a channel. Convert it first"
            )
        if image.mode.startswith("I;16") or high > 255:
            values = values / 257
        image = Image.fromarray(np.rint(values).astype(np.uint8))
    return image.convert("RGB")


def content_key(source: ImageSource) -> str:
    """A key of an image's content: equal for equal encoded files, or for equal pixels.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(source, Image.Image):
        pixels = to_rgb(open_image(source))
        return f"{pixels.size}{xxhash.xxh3_128_hexdigest(pixels.tobytes())}"
    return xxhash.xxh3_128_hexdigest(_encoded(source))


def _encoded(source: bytes | str | Path | DatasetImage) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, DatasetImage):
        return source.encoded()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise ImageError(f"its image cannot be read: {error}") from error


_readers, _lock = 0, threading.Lock()
_allowed_before = False


@contextlib.contextmanager
def _complete_images() -> Iterator[None]:
    """Keep Pillow from filling up files that are cut off, as some libraries ask it to for the whole process."""
    global _readers, _allowed_before
    with _lock:
        if _readers == 0:
            _allowed_before = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _allowed_before
