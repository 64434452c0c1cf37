"""From samples to embeddings: each distinct image and text once, and a bad row costs only itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.encoders.base import encode_all
from lmms_eval_emi.files import blocks_of, threads
from lmms_eval_emi.images import ImageError, ImageSource, content_key, open_image
from lmms_eval_emi.samples import Sample, SampleError

if TYPE_CHECKING:
    from lmms_eval_emi.encoders import Encoders

READERS = 4  # threads that decode images
# Prepared images that are kept from the check, so that an image is decoded once: about 150 MB of CLIP's.
KEPT_IMAGES = 1024


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be embedded."""

    split: str
    row: int
    id: Any
    reason: str

    def __str__(self) -> str:
        return f"split {self.split}, row {self.id}: {self.reason}"


@dataclass
class _Images:
    """The distinct images of a run, with the number of each by content and the rows that cannot be read."""

    sources: list[ImageSource] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    numbers: dict[str, list[int | None]] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)  # reason by number of an image
    prepared: dict[int, Any] = field(default_factory=dict)


def embed_splits(
    splits: Mapping[str, Sequence[Sample]], encoders: Encoders, *, batch_size: int = 64
) -> dict[str, Embeddings]:
    """Embed the samples of many splits.

    Each distinct image and text of all splits together is encoded once, by content.

    Args:
        splits: samples of every split, in the order that the rows shall have.
        encoders: of images and texts.
        batch_size: items per forward pass.

    Returns:
        :class:`Embeddings` of every split; its ``ids`` are the keys of the samples, and its ``groups``
        the content keys of their images. Where no sample of
        any split has an image, they are embedded by their text alone.

    Raises:
        SampleError: rows whose image is missing or cannot be read, each with its split.
        ValueError: a split has no samples.
    """
    embedded, bad = embed_good_rows(splits, encoders, batch_size=batch_size, strict=True)
    assert not bad
    return embedded


def embed_good_rows(
    splits: Mapping[str, Sequence[Sample]],
    encoders: Encoders,
    *,
    batch_size: int = 64,
    strict: bool = False,
) -> tuple[dict[str, Embeddings], list[BadRow]]:
    """As :func:`embed_splits`, with the rows that cannot be embedded returned beside the others.

    Args:
        splits: samples by split.
        encoders: of images and texts.
        batch_size: items per forward pass.
        strict: raise before anything is encoded if there is a bad row.

    Returns:
        Embeddings by split, of the good rows in their order, and the bad rows. A split without a good
        row has no embeddings.
    """
    if not splits:
        raise ValueError("splits: expected at least one split, got none.")
    for name, samples in splits.items():
        if not samples:
            raise ValueError(f"split {name}: expected at least one sample, got none.")
    with_images = any(sample.image is not None for samples in splits.values() for sample in samples)
    images, bad = _distinct_images(splits) if with_images else (_Images(), [])
    if with_images:
        _prepare_all(images, encoders)
        bad += _rows_of_bad_images(splits, images)
        order = {name: position for position, name in enumerate(splits)}
        bad.sort(key=lambda one: (order[one.split], one.row))
    if bad and strict:
        raise SampleError(_listed(bad, splits))
    excluded = {(one.split, one.row) for one in bad}
    kept = {
        name: [row for row in range(len(samples)) if (name, row) not in excluded] for name, samples in splits.items()
    }
    kept = {name: rows for name, rows in kept.items() if rows}
    if not kept:
        return {}, bad
    vision = _encode_images(images, kept, encoders, batch_size) if with_images else None
    texts = {
        name: [
            text
            for row in rows
            for text in (splits[name][row].question, splits[name][row].response, splits[name][row].reference)
        ]
        for name, rows in kept.items()
    }
    text_rows = _encode_texts(texts, encoders, batch_size)
    embedded = {}
    for name, rows in kept.items():
        question, response, reference = text_rows[name].view(len(rows), 3, -1).unbind(dim=1)
        numbers = [images.numbers[name][row] for row in rows] if with_images else None
        embedded[name] = Embeddings(
            v=vision[torch.tensor(numbers)] if vision is not None else None,
            t=question,
            y_hat=response,
            y=reference,
            ids=[splits[name][row].key for row in rows],
            groups=[images.keys[number] for number in numbers if number is not None] if numbers else None,
            encoders=encoders.signature if with_images else encoders.text_signature,
        )
    return embedded, bad


def _distinct_images(splits: Mapping[str, Sequence[Sample]]) -> tuple[_Images, list[BadRow]]:
    """The distinct images of all splits, and the rows that have none or whose file cannot be read at all."""
    images, bad = _Images(), []
    number_of: dict[str, int] = {}
    for name, samples in splits.items():
        numbers = images.numbers[name] = [None] * len(samples)
        for row, sample in enumerate(samples):
            try:
                if sample.image is None:
                    raise ImageError("it has no image")
                key = content_key(sample.image)
            except ImageError as error:
                bad.append(BadRow(name, row, sample.id, str(error)))
                continue
            if key not in number_of:
                number_of[key] = len(images.sources)
                images.sources.append(sample.image)
                images.keys.append(key)
            numbers[row] = number_of[key]
    return images, bad


def _prepare_all(images: _Images, encoders: Encoders) -> None:
    """Decode every image once, so that one that cannot be read is known before anything is encoded."""

    def prepare(number: int) -> tuple[int, Any, str]:
        try:
            return number, encoders.vision.prepare(open_image(images.sources[number])), ""
        except ImageError as error:
            return number, None, str(error)

    with (
        threads(READERS) as pool,
        tqdm(total=len(images.sources), desc="Reading images", unit="", leave=False, dynamic_ncols=True) as bar,
    ):
        for numbers in blocks_of(range(len(images.sources)), 64):
            for number, prepared, reason in pool.map(prepare, numbers):
                if reason:
                    images.bad[number] = reason
                elif len(images.prepared) < KEPT_IMAGES:
                    images.prepared[number] = prepared
            bar.update(len(numbers))


def _rows_of_bad_images(splits: Mapping[str, Sequence[Sample]], images: _Images) -> list[BadRow]:
    return [
        BadRow(name, row, samples[row].id, images.bad[number])
        for name, samples in splits.items()
        for row, number in enumerate(images.numbers[name])
        if number is not None and number in images.bad
    ]


def _encode_images(
    images: _Images, kept: Mapping[str, Sequence[int]], encoders: Encoders, batch_size: int
) -> torch.Tensor:
    """(number of images, D) rows; those of images that no kept row has are zero."""
    used = list(
        dict.fromkeys(
            number for name, rows in kept.items() for row in rows if (number := images.numbers[name][row]) is not None
        )
    )

    with threads(READERS) as pool:

        def prepared(positions: range) -> list[Any]:
            def one(position: int) -> Any:
                number = used[position]
                ready = images.prepared.get(number)
                return ready if ready is not None else encoders.vision.prepare(open_image(images.sources[number]))

            return list(pool.map(one, positions))

        encoded = encode_all(encoders.vision, len(used), prepared, batch_size=batch_size, label="Encoding images")
    rows = torch.zeros(len(images.sources), encoded.shape[1])
    rows[torch.tensor(used)] = encoded
    return rows


def _encode_texts(texts: Mapping[str, Sequence[str]], encoders: Encoders, batch_size: int) -> dict[str, torch.Tensor]:
    """Rows of the texts of every split. Batches hold texts of like length."""
    distinct = sorted({text for own in texts.values() for text in own}, key=lambda text: (len(text), text))
    position = {text: number for number, text in enumerate(distinct)}
    encoded = encode_all(
        encoders.text,
        len(distinct),
        lambda positions: [encoders.text.prepare(distinct[number]) for number in positions],
        batch_size=batch_size,
        label="Encoding texts",
    )
    return {name: encoded[torch.tensor([position[text] for text in own])] for name, own in texts.items()}


def _listed(bad: Sequence[BadRow], splits: Mapping[str, Sequence[Sample]], most: int = 10) -> str:
    shown = "\n".join(f"  {one}" for one in bad[:most])
    more = f"\n  and {len(bad) - most} more" if len(bad) > most else ""
    total = sum(map(len, splits.values()))
    return (
        f"{len(bad)} of {total} rows cannot be embedded:\n{shown}{more}\n"
        "Fix their images, or pass --allow-missing to score the rest."
    )
