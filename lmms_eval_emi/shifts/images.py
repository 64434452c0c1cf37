"""Reading images from rows, whatever a row holds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, ImageOps

from lmms_eval_emi.encoders.clip import to_rgb
from lmms_eval_emi.shifts.operators import Refused

LONGEST_SIDE, MOST_PIXELS = 8192, 25_000_000  # operators need up to 100 bytes a pixel


def encoded_image(value: Any, folder: Path) -> bytes | None:
    """The file's content of an image of a row: bytes, or a path that may be relative to a folder; ``None`` if there is none.

    Raises:
        Refused: there is no such file.
    """
    if value is None:
        return None
    try:
        encoded = value.get("bytes") if isinstance(value, dict) else None
        if encoded is None:
            path = Path(value["path"] if isinstance(value, dict) else value)
            encoded = (path if path.is_absolute() or not (folder / path).exists() else folder / path).read_bytes()
        return encoded
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise Refused(f"the image cannot be read: {error}") from error


def open_image(encoded: bytes | None) -> Image.Image:
    """An image from its file's content, loaded.

    Raises:
        Refused: there is none, or it cannot be read.
    """
    if encoded is None:
        raise Refused("the row has no image")
    try:
        image = Image.open(io.BytesIO(encoded))
        if _is_too_large(image):  # before its pixels are read
            raise Refused(_size_reason(image))
        # Some libraries let Pillow fill up files that are cut off, and so a result would hang on what is imported.
        with _without_truncated_images():
            image.load()
    except Refused:
        raise
    except Exception as error:  # Pillow raises what its many decoders happen to raise
        raise Refused(f"the image cannot be read: {error}") from error
    return image


@contextlib.contextmanager
def _without_truncated_images() -> Iterator[None]:
    allowed, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = allowed


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image of any 8-bit mode as RGB, turned as its EXIF orientation says, as ``datasets`` reads it.

    Raises:
        Refused: it is too large or has more than 8 bits a channel, or its pixels cannot be read.
    """
    if _is_too_large(image):
        raise Refused(_size_reason(image))
    try:
        if image.mode.startswith("I") and image.getextrema()[1] > 255:  # type: ignore[operator]
            raise Refused(
                f"the image has more than 8 bits a channel (mode {image.mode}), which models would be shown as white; convert it first"
            )
        return to_rgb(ImageOps.exif_transpose(image))
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"the image cannot be read: {error}") from error


def _is_too_large(image: Image.Image) -> bool:
    return min(image.size) < 1 or max(image.size) > LONGEST_SIDE or image.width * image.height > MOST_PIXELS


def _size_reason(image: Image.Image) -> str:
    return f"the image has {image.width} x {image.height} pixels; expected sides of 1 to {LONGEST_SIDE} and at most {MOST_PIXELS:,} pixels"
