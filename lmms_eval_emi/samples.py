"""Samples, and how the samples of many splits become embeddings, each distinct image and text once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
import xxhash
from PIL import Image, ImageOps

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.encoders.base import encode_distinct
from lmms_eval_emi.encoders.clip import to_rgb

if TYPE_CHECKING:
    import datasets

    from lmms_eval_emi.encoders import Encoders

ImageSource = Union[Image.Image, bytes, str, Path, "DatasetImage"]


class SampleError(ValueError):
    """A sample cannot be used; the message says which one and why."""


@dataclass(frozen=True)
class DatasetImage:
    """An image that stays in its dataset, encoded, until it is needed."""

    dataset: datasets.Dataset  # its image column is not decoded
    row: int
    column: str

    def read(self) -> dict[str, Any]:
        """The encoded image: ``{"bytes": ..., "path": ...}``."""
        encoded = self.dataset[self.row][self.column]
        if not encoded or not (encoded.get("bytes") or encoded.get("path")):
            raise SampleError("it has no image")
        return encoded


@dataclass(frozen=True)
class Sample:
    """One row of a split.

    Args:
        image: a Pillow image, encoded bytes, a path, or a row of a dataset; ``None`` for text alone.
        question: as the model was asked, without any instruction about its answer.
        response: of the model.
        reference: answer.
        id: identifies the row in its split.
    """

    image: ImageSource | None
    question: str
    response: str
    reference: str
    id: Any = None

    def __post_init__(self) -> None:
        for name in ("question", "response", "reference"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise SampleError(f"row {self.id}: expected text in {name}, got {type(text).__name__}.")
            object.__setattr__(self, name, encodable(text))
        if self.image is not None and not isinstance(self.image, Image.Image | bytes | str | Path | DatasetImage):
            raise SampleError(
                f"row {self.id}: expected a Pillow image, encoded bytes or a path in image, got {type(self.image).__name__}. Convert with PIL.Image.fromarray or .open."
            )


def without_images(splits: Mapping[str, Sequence[Sample]]) -> bool:
    """Whether the samples of all splits are text alone."""
    return all(sample.image is None for samples in splits.values() for sample in samples)


def encodable(text: str) -> str:
    """The text with ``?`` for lone surrogates, which models with byte tokens may emit and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def image_key(source: ImageSource) -> str:
    """A key of an image's content: equal for equal encoded files, or for equal pixels."""
    if isinstance(source, Image.Image):
        pixels = to_rgb(open_image(source))
        return f"{pixels.size}{xxhash.xxh3_128_hexdigest(pixels.tobytes())}"
    return xxhash.xxh3_128_hexdigest(_encoded(source))


def open_image(source: ImageSource) -> Image.Image:
    """The decoded image, turned as its EXIF data say, as ``datasets`` does.

    Raises:
        SampleError: it cannot be decoded, or has no pixels.
    """
    from datasets import Image as ImageFeature

    try:
        if isinstance(source, Image.Image):
            image = ImageOps.exif_transpose(source)
        else:
            image = ImageFeature().decode_example({"bytes": _encoded(source), "path": None})
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError(f"its image cannot be read: {error}") from error
    if 0 in image.size:
        raise SampleError(f"its image has no pixels: its size is {image.width} x {image.height}")
    return image


def _encoded(source: bytes | str | Path | DatasetImage) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, DatasetImage):
        encoded = source.read()
        return encoded["bytes"] or Path(encoded["path"]).read_bytes()
    return Path(source).read_bytes()


class _LazyImages:
    """The sequence of a run's images, decoded only when an encoder asks for them."""

    def __init__(self, sources: Sequence[ImageSource], labels: Sequence[str]) -> None:
        self.sources, self.labels = sources, labels

    def __getitem__(self, position: int) -> Image.Image:
        try:
            return open_image(self.sources[position])
        except SampleError as error:
            raise SampleError(f"{self.labels[position]}: {error}") from error


def embed_splits(
    splits: Mapping[str, Sequence[Sample]], encoders: Encoders, *, batch_size: int = 64
) -> dict[str, Embeddings]:
    """Embed the samples of many splits.

    Each distinct image and text of all splits together is encoded once, by content.

    Args:
        splits: samples of every split, in the order that the rows shall have.
        encoders: of images and texts.
        batch_size: items a forward pass.

    Returns:
        :class:`Embeddings` of every split; its ``groups`` number the distinct images. A split whose
        samples have no image is embedded by its text alone.

    Raises:
        SampleError: an image cannot be read, with its split and row; or only some of a split's
            samples have one.
        ValueError: a split has no samples.
    """
    if not splits:
        raise ValueError("splits: expected at least one split, got none.")
    for name, samples in splits.items():
        if not samples:
            raise ValueError(f"split {name}: expected at least one sample, got none.")
        without = [sample.id for sample in samples if sample.image is None]
        if 0 < len(without) < len(samples):
            raise SampleError(
                f"split {name}: expected an image in every row or in none, got {len(without)} of {len(samples)} rows without, such as row {without[0]}."
            )
    keys, images, labels = _distinct_images(splits)
    vision = None
    if images:
        vision = encode_distinct(
            encoders.vision,
            _LazyImages(images, labels),
            list(range(len(images))),
            batch_size=batch_size,
            label="Encoding images",
        )
    texts = [
        text
        for samples in splits.values()
        for sample in samples
        for text in (sample.question, sample.response, sample.reference)
    ]
    text = encode_distinct(encoders.text, texts, texts, batch_size=batch_size, label="Encoding texts", size=len)

    embedded, start = {}, 0
    for name, samples in splits.items():
        stop = start + len(samples)
        question, response, reference = text[3 * start : 3 * stop].view(len(samples), 3, -1).unbind(dim=1)
        numbers = keys[name]
        embedded[name] = Embeddings(
            v=vision[torch.tensor(numbers)] if vision is not None and numbers else None,
            t=question,
            y_hat=response,
            y=reference,
            ids=[sample.id for sample in samples],
            groups=numbers or None,
            encoders=encoders.signature if numbers else encoders.text_signature,
        )
        start = stop
    return embedded


def _distinct_images(
    splits: Mapping[str, Sequence[Sample]],
) -> tuple[dict[str, list[int]], list[ImageSource], list[str]]:
    """The number of every sample's image by split, and the distinct images with the row that each is first seen in."""
    number_of: dict[str, int] = {}
    numbers: dict[str, list[int]] = {name: [] for name in splits}
    images: list[ImageSource] = []
    labels: list[str] = []
    for name, samples in splits.items():
        for sample in samples:
            if sample.image is None:
                continue
            label = f"split {name}, row {sample.id}"
            try:
                key = image_key(sample.image)
            except (SampleError, OSError) as error:
                raise SampleError(f"{label}: {error}") from error
            if key not in number_of:
                number_of[key] = len(images)
                images.append(sample.image)
                labels.append(label)
            numbers[name].append(number_of[key])
    return numbers, images, labels
