"""The one reader of images: allowed folders, decoding, and the key by which equal images are one.

Everything that reads an image (scores, shifts, tasks, reports) reads it here, so one rule holds
everywhere: turned as its EXIF data say, transparent parts on white, RGB, no file that is cut off, no
format but raster ones, nothing outside the folders of its source. This module imports neither torch nor transformers.
"""

from __future__ import annotations

import base64
import contextlib
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import xxhash
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from lmms_eval_emi.errors import ImageError
from lmms_eval_emi.util.printing import one_line

if TYPE_CHECKING:
    import datasets

ImageSource = Union[Image.Image, bytes, str, Path, "DatasetImage"]

# Above this an image is refused before its pixels are read; a small file may claim a huge size.
MOST_PIXELS = 150_000_000
OVERSHOOT = 2  # sums and sharpening exceed the end of a scale, by less than this factor
LOWEST_OF_16_BITS = 4096  # a maximum between 255 * OVERSHOOT and this may be of either scale
TRANSPARENCY = "alpha-on-white"  # how signatures call the rule of to_rgb
LARGE_PIXELS = 16_000_000  # images with more are decoded one at a time, which bounds the memory of a run
# Pillow chooses a reader by content, and its other readers start programs (EPS) or take vectors apart.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "TGA", "AVIF")
SHORTEST_BASE64 = 64  # characters
BASE64_STARTS = (
    "iVBOR",
    "/9j/",
    "UklGR",
    "R0lGOD",
    "Qk",
    "SUkq",
    "TU0A",
    "AAAA",
)  # of PNG, JPEG, WebP, GIF, BMP, TIFF...
PNG_START, PNG_TEXT = b"\x89PNG\r\n\x1a\n", {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # chunks that hold no pixel


@dataclass(frozen=True)
class DatasetImage:
    """An image that stays in its dataset, encoded, until it is needed."""

    dataset: datasets.Dataset  # its image column is not decoded
    row: int  # number of the row
    column: str  # name of the column
    roots: tuple[Path, ...] = ()  # folders that the paths in the column are relative to, and that they must lie in

    def encoded(self) -> bytes:
        """Return the content of the image file."""
        encoded = encoded_image(self.dataset[self.row][self.column], self.roots)
        if encoded is None:
            raise ImageError("it has no image")
        return encoded


def encoded_image(value: Any, roots: Sequence[Path]) -> bytes | None:
    """Return the content of the image file that a dataset's cell contains or names.

    Args:
        value: ``{"bytes": ..., "path": ...}`` as ``datasets`` has it, bytes, base64 text as VLMEvalKit's tables have
            it, a path, or ``None``.
        roots: folders that a relative path may be relative to. A path must lie in one of them, so
            that no dataset can name other files of the machine that reads it.

    Returns:
        The bytes, or ``None`` where the cell is empty.

    Raises:
        ImageError: the path is not there, or lies outside the folders.
    """
    if isinstance(value, bytes):
        return value or None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
    if value is None or value == "":
        return None
    if isinstance(value, str) and (decoded := _from_base64(value)):
        return decoded
    if not isinstance(value, str | Path):
        raise ImageError(f"expected the bytes or the path of an image, got {type(value).__name__}")
    return _read_below(Path(value), [Path(root) for root in roots])


def _from_base64(text: str) -> bytes | None:
    """Return the image that a base64 text or data URL holds; ``None`` for other texts, such as paths."""
    if text.startswith("data:image/"):
        text = text.partition(",")[2]
    elif len(text) < SHORTEST_BASE64 or not text.startswith(BASE64_STARTS):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def _read_below(path: Path, roots: Sequence[Path]) -> bytes:
    tried, shown = " or ".join(map(str, roots)) or "no folder", one_line(str(path), 120)
    try:
        for root in roots:
            candidate = root / path
            if not candidate.exists():
                continue
            resolved = candidate.resolve()
            if not any(resolved.is_relative_to(allowed.resolve()) for allowed in roots):
                break
            if not resolved.is_file():
                raise ImageError(f"{shown} is not a regular file")
            return resolved.read_bytes()
        else:
            raise ImageError(f"{shown} is not there; looked in {tried}")
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{shown} cannot be read: {one_line(str(error), 200)}") from error
    raise ImageError(
        f"{shown} lies outside the folders of its source ({tried}). "
        "Move it there, or allow its folder with LMMS_EVAL_EMI_IMAGES"
    )


def open_image(source: ImageSource | None, most_pixels: int = MOST_PIXELS, at_least: int | None = None) -> Image.Image:
    """Return the decoded image, turned as its EXIF orientation says.

    Args:
        source: a Pillow image, encoded bytes, a path, or a cell of a dataset.
        most_pixels: a larger image is refused before it is decoded.
        at_least: sides that are enough, for a JPEG is decoded faster at a half, a quarter or an eighth of its size.

    Raises:
        ImageError: the image is missing, cannot be decoded, is truncated, has no pixels, or too many.
    """
    if source is None:
        raise ImageError("it has no image")
    try:
        image = source if isinstance(source, Image.Image) else open_encoded(_encoded(source))
        check_size(image, most_pixels)
        if at_least:
            image.draft("RGB", (at_least, at_least))
        large = image.width * image.height > LARGE_PIXELS
        with _complete_images(), _one_large_image if large else contextlib.nullcontext():
            image.load()
            return _turned(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises whatever its many decoders happen to raise
        raise ImageError(f"its image cannot be read: {error}") from error


def open_encoded(content: bytes) -> Image.Image:
    """Return an encoded image that is not decoded yet.

    Raises:
        ImageError: the format is not one of the raster formats that are read.
    """
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # builds of Pillow differ
    try:
        return Image.open(io.BytesIO(_without_text(content)), formats=known)
    except UnidentifiedImageError as error:
        start = content[:8].decode("latin-1").encode("ascii", "backslashreplace").decode()
        raise ImageError(
            f"its image cannot be read: expected one of {', '.join(known)}, got a file that begins with {start!r}"
        ) from error


def _without_text(content: bytes) -> bytes:
    """Return a PNG without its chunks of text and colour profile, of which large ones are refused or fill the memory."""
    if not content.startswith(PNG_START):
        return content
    parts, place = [content[: len(PNG_START)]], len(PNG_START)
    while place + 8 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        if kind not in PNG_TEXT:
            parts.append(content[place : place + length + 12])
        place += length + 12
    return b"".join(parts)


def _turned(image: Image.Image) -> Image.Image:
    """Return the image rotated as its EXIF orientation says; damaged other tags do not matter."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        try:
            turn = TURNS.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
        except Exception:
            turn = None
        return image if turn is None else image.transpose(turn)


def check_size(image: Image.Image, most_pixels: int, longest_side: int | None = None) -> None:
    """Raise ``ImageError`` unless an image has pixels, and not too many."""
    width, height = image.size
    if image.format == "JPEG2000":  # its decoder needs several times the memory of others
        most_pixels //= 2
    if min(width, height) < 1:
        raise ImageError(f"its image has no pixels: its size is {width} x {height}")
    if width * height > most_pixels or (longest_side and max(width, height) > longest_side):
        sides = f"sides of at most {longest_side} and " if longest_side else ""
        raise ImageError(f"its image has {width} x {height} pixels; expected {sides}at most {most_pixels:,} pixels")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB: transparent parts are laid on white, and 16 bits are scaled to 8.

    Floats and 32-bit integers are read on the scale 0 to 1 (floats alone), 0 to 255 or 0 to 65535. Up to twice the end of
    a scale is its overshoot, and clipped.

    Raises:
        ImageError: its values are of no known scale, or of two.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in {"La", "RGBa"}:  # premultiplied modes convert to their plain twin only
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        is_16_bit = image.mode.startswith("I;16") or image.format == "PNG"
        ambiguous = 255 * OVERSHOOT < high < LOWEST_OF_16_BITS and not is_16_bit
        if not (low >= 0 and high <= 65535) or ambiguous:
            expected = "0 to 1, 0 to 255 or 0 to 65535" if image.mode == "F" else "8 or 16 bits a channel"
            raise ImageError(
                f"its image has mode {image.mode} and values from {low:g} to {high:g}; expected {expected}. Convert it first"
            )
        transparent = image.info.get("transparency")
        if image.mode == "F" and high <= OVERSHOOT:
            scaled = values * 255
        elif image.mode.startswith("I;16") or high > (255 if is_16_bit else 255 * OVERSHOOT):
            scaled = values / 257
        else:
            scaled = values
        image = Image.fromarray(np.rint(np.minimum(scaled, 255)).astype(np.uint8))
        if isinstance(transparent, int):
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def content_key(source: ImageSource) -> str:
    """Return a key of an image's content that needs no decoding where the image is encoded.

    Equal for equal files, and for equal pixels of Pillow images. One image in two files has two keys; see
    :func:`pixel_key`.

    Raises:
        ImageError: the image cannot be read.
    """
    if isinstance(source, Image.Image):
        return pixel_key(source)
    return xxhash.xxh3_128_hexdigest(_encoded(source))


def pixel_key(source: ImageSource) -> str:
    """Return a key that is equal for images that look the same: of the RGB pixels, however they are stored.

    Raises:
        ImageError: the image cannot be read.
    """
    pixels = to_rgb(open_image(source))
    return f"{pixels.size}{xxhash.xxh3_128_hexdigest(pixels.tobytes())}"


def _encoded(source: bytes | str | Path | DatasetImage) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, DatasetImage):
        return source.encoded()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise ImageError(f"its image cannot be read: {error}") from error


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # transposition by EXIF orientation
_one_large_image = threading.Lock()
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
