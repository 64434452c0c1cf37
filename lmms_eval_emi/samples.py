"""Samples, and how the samples of many splits become embeddings, each distinct image and text once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import xxhash
from PIL import Image, UnidentifiedImageError

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.encoders.base import encode_distinct

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
        image: a Pillow image, encoded bytes, a path, or a row of a dataset.
        question: as the model was asked, without any instruction about its answer.
        response: of the model.
        reference: answer.
        id: identifies the row in its split.
    """

    image: ImageSource
    question: str
    response: str
    reference: str
    id: Any = None

    def __post_init__(self) -> None:
        for name in ("question", "response", "reference"):
            if not isinstance(getattr(self, name), str):
                raise SampleError(f"row {self.id}: expected text in {name}, got {type(getattr(self, name)).__name__}.")


def image_key(source: ImageSource) -> str:
    """A key of an image's content: equal for equal encoded files, or for equal pixels."""
    if isinstance(source, Image.Image):
        return f"{source.mode}{source.size}{xxhash.xxh3_128_hexdigest(source.tobytes())}"
    return xxhash.xxh3_128_hexdigest(_encoded(source))


def open_image(source: ImageSource) -> Image.Image:
    """The decoded image, turned as its EXIF data say, as ``datasets`` does."""
    if isinstance(source, Image.Image):
        return source
    from datasets import Image as ImageFeature

    try:
        return ImageFeature().decode_example({"bytes": _encoded(source), "path": None})
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise SampleError(f"its image cannot be read: {error}") from error


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
        :class:`Embeddings` of every split; its ``groups`` number the distinct images.

    Raises:
        SampleError: an image cannot be read, with its split and row.
        ValueError: a split has no samples.
    """
    for name, samples in splits.items():
        if not samples:
            raise ValueError(f"split {name}: expected at least one sample, got none.")
    everything = [(name, sample) for name, samples in splits.items() for sample in samples]
    labels = [f"split {name}, row {sample.id}" for name, sample in everything]
    images = [sample.image for _, sample in everything]
    keys = []
    for source, label in zip(images, labels, strict=True):
        try:
            keys.append(image_key(source))
        except (SampleError, OSError) as error:
            raise SampleError(f"{label}: {error}") from error
    vision = encode_distinct(
        encoders.vision, _LazyImages(images, labels), keys, batch_size=batch_size, label="Encoding images"
    )
    texts = [text for _, sample in everything for text in (sample.question, sample.response, sample.reference)]
    text = encode_distinct(encoders.text, texts, texts, batch_size=batch_size, label="Encoding texts", size=len)
    number = {key: index for index, key in enumerate(dict.fromkeys(keys))}

    embedded, start = {}, 0
    for name, samples in splits.items():
        stop = start + len(samples)
        question, response, reference = text[3 * start : 3 * stop].view(len(samples), 3, -1).unbind(dim=1)
        embedded[name] = Embeddings(
            v=vision[start:stop],
            t=question,
            y_hat=response,
            y=reference,
            ids=[sample.id for sample in samples],
            groups=[number[key] for key in keys[start:stop]],
            encoders=encoders.signature,
        )
        start = stop
    return embedded
