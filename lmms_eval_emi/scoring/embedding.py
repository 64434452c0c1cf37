"""From samples to embeddings: each distinct image and text once, and a bad row costs only itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.workers import here, workers
from lmms_eval_emi.encoders.base import CheckpointEncoder, Encoder, encode_all
from lmms_eval_emi.encoders.cache import EmbeddingCache, content_digest
from lmms_eval_emi.files import threads
from lmms_eval_emi.images import DatasetImage, ImageError, ImageSource, content_key, open_image
from lmms_eval_emi.samples import Sample, SampleError
from lmms_eval_emi.scoring.ranks import cores, from_first, over_ranks, own_part, ranks
from lmms_eval_emi.settings import Settings

if TYPE_CHECKING:
    from lmms_eval_emi.encoders import Encoders

Item = TypeVar("Item")
CacheOf = Callable[[Encoder], EmbeddingCache]

FEWEST_AT_ONCE = 8  # images of a batch
READERS = 2  # threads that decode images
AHEAD = 64  # decoded images that wait to be encoded: 10 MB of CLIP's
KEPT_BYTES = 2**26  # of encoded images that are kept from hashing to decoding, so that each is read once


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


def cache_of_embeddings(settings: Settings) -> CacheOf | None:
    """Where the embeddings of earlier runs are, by encoder; ``None`` where none are kept."""
    if not settings.cache_limit:
        return None
    folder, limit = settings.cache.expanduser() / "embeddings", int(settings.cache_limit * 1e9)
    return lambda encoder: EmbeddingCache(folder, encoder.cache_key, limit)


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
    cache: CacheOf | None = None,
    release: bool = False,
) -> tuple[dict[str, Embeddings], list[BadRow]]:
    """As :func:`embed_splits`, with the rows that cannot be embedded returned beside the others.

    Args:
        splits: samples by split.
        encoders: of images and texts.
        batch_size: items per forward pass.
        strict: raise if there is a bad row, as soon as it is met, with all of them.
        cache: gives the rows of an encoder that are known; default: everything is encoded.
        release: drop each encoder from memory when all of its items are encoded.

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
    if bad and strict and len(bad) == sum(map(len, splits.values())):
        raise SampleError(_listed(bad, splits))
    texts = {
        name: [text for sample in samples for text in (sample.question, sample.response, sample.reference)]
        for name, samples in splits.items()
    }
    encoding: list[Future[dict[str, torch.Tensor]]] = []
    with workers(1) as beside:  # texts in one thread, beside the images in all

        def begin() -> None:
            if not encoding:
                encoding.append(beside.submit(_encode_texts, texts, encoders.text, batch_size, cache, release))

        vision = None
        if with_images:
            # What ranks say to each other has to be said in one order, so their texts come after their images.
            at_once = begin if ranks() == 1 else lambda: None
            vision = _encode_images(
                images, encoders.vision, batch_size, cache, at_once, stop_at_bad=strict, release=release
            )
            bad += _rows_of_bad_images(splits, images)
            order = {name: position for position, name in enumerate(splits)}
            bad.sort(key=lambda one: (order[one.split], one.row))
        if bad and strict:
            raise SampleError(_listed(bad, splits))
        begin()
        text_rows = encoding[0].result()
    excluded = {(one.split, one.row) for one in bad}
    kept = {
        name: [row for row in range(len(samples)) if (name, row) not in excluded] for name, samples in splits.items()
    }
    kept = {name: rows for name, rows in kept.items() if rows}
    embedded = {}
    for name, rows in kept.items():
        own = text_rows[name].view(len(splits[name]), 3, -1)
        own = own if len(own) == len(rows) else own[torch.tensor(rows)]
        question, response, reference = (one.contiguous() for one in own.unbind(dim=1))
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
    kept_bytes = 0
    for name, samples in splits.items():
        numbers = images.numbers[name] = [None] * len(samples)
        for row, sample in enumerate(samples):
            try:
                if sample.image is None:
                    raise ImageError("it has no image")
                source = sample.image
                if isinstance(source, DatasetImage):
                    source = source.encoded()
                key = content_key(source)
            except ImageError as error:
                bad.append(BadRow(name, row, sample.id, str(error)))
                continue
            if key not in number_of:
                number_of[key] = len(images.sources)
                if isinstance(source, bytes) and not isinstance(sample.image, bytes):
                    kept_bytes += len(source)
                images.sources.append(source if kept_bytes <= KEPT_BYTES else sample.image)
                images.keys.append(key)
            numbers[row] = number_of[key]
    return images, bad


def _rows_of_bad_images(splits: Mapping[str, Sequence[Sample]], images: _Images) -> list[BadRow]:
    return [
        BadRow(name, row, samples[row].id, images.bad[number])
        for name, samples in splits.items()
        for row, number in enumerate(images.numbers[name])
        if number is not None and number in images.bad
    ]


def _encode_images(
    images: _Images,
    encoder: Encoder,
    batch_size: int,
    cache: CacheOf | None,
    begin: Callable[[], object],
    *,
    stop_at_bad: bool,
    release: bool,
) -> torch.Tensor:
    """(number of images, D) rows; those of images that cannot be read are zero.

    Images are decoded by threads while others are encoded, each once. If one cannot be read and that is to stop
    the run, nothing more is encoded, and the others are looked at for the message. Ranks have their part each.
    """
    digests = [content_digest(key) for key in images.keys]
    rows, missing = _known_rows(encoder, digests, cache)

    def encode() -> tuple[list[int], torch.Tensor, dict[int, str]]:
        own = _encode_own_images(images, encoder, batch_size, cache, digests, missing, rows, begin, stop_at_bad)
        return own, rows[torch.tensor(own, dtype=torch.long)], images.bad

    for own, found, bad in over_ranks(encode):
        rows[torch.tensor(own, dtype=torch.long)] = found
        images.bad |= bad
    _done_with(encoder, release)
    return rows


def _done_with(encoder: Encoder, release: bool) -> None:
    if release and isinstance(encoder, CheckpointEncoder):
        encoder.release()


def _known_rows(encoder: Encoder, digests: Sequence[bytes], cache: CacheOf | None) -> tuple[torch.Tensor, list[int]]:
    """Rows of all items, those that the cache lacks zero, and the numbers of these that are this rank's.

    Rank 0 looks into the cache for all.
    """
    known = from_first(lambda: cache(encoder).find(digests, encoder.dimension)) if cache else {}
    rows = torch.zeros(len(digests), encoder.dimension)
    for number, digest in enumerate(digests):
        if digest in known:
            rows[number] = torch.from_numpy(known[digest])
    return rows, own_part([number for number, digest in enumerate(digests) if digest not in known])


def _encode_own_images(
    images: _Images,
    encoder: Encoder,
    batch_size: int,
    cache: CacheOf | None,
    digests: Sequence[bytes],
    missing: Sequence[int],
    rows: torch.Tensor,
    begin: Callable[[], object],
    stop_at_bad: bool,
) -> list[int]:
    """Fill in the rows of some images; returns which were encoded. ``begin`` is called when the first batch is on its way."""
    encoded: list[int] = []

    def prepare(number: int) -> Any:
        try:
            prepared = encoder.prepare(open_image(images.sources[number]))
            images.sources[number] = b""  # its content is let go of
            return prepared
        except ImageError as error:
            images.bad[number] = str(error)
            return None

    # On the CPU several batches at once, in one thread each, keep its cores busier than one batch in several, unless
    # the encoder spreads one over them itself. That runs in this thread, which an interruption reaches.
    on_cpu = encoder.device.type == "cpu"
    together = getattr(encoder, "together", 0) if on_cpu else 0
    beside = cores() if on_cpu else 1
    size = batch_size
    pool_of: Callable[[], Any] = partial(workers if beside > 1 else threads, beside)
    if together:
        beside, pool_of = 0, here
        encoder.threads = cores()  # type: ignore[attr-defined]
        size = batch_size = min(together, max(FEWEST_AT_ONCE, -(-len(missing) // 2)))
    elif beside > 1:
        size = min(batch_size, max(FEWEST_AT_ONCE, -(-len(missing) // (4 * beside))))
    running: deque[tuple[list[int], Future[torch.Tensor]]] = deque()

    def take() -> None:
        own, future = running.popleft()
        rows[torch.tensor(own)] = future.result()
        encoded.extend(own)
        for bar in bars:
            bar.update(len(own))

    bars: list[tqdm] = []  # from the first batch on, for an image that cannot be read may be known before
    with threads(READERS) as readers, pool_of() as pool, ExitStack() as shown:
        waiting: list[tuple[int, Any]] = []
        try:
            for last, (number, prepared) in _with_last(zip(missing, _in_order(readers, prepare, missing), strict=True)):
                if prepared is not None:
                    waiting.append((number, prepared))
                if images.bad and stop_at_bad:
                    continue
                if waiting and (len(waiting) == size or last):
                    batch = [one for _, one in waiting]
                    run = partial(encode_all, encoder, len(batch), partial(_picked, batch), batch_size=batch_size)
                    if not bars:
                        bar = tqdm(total=len(missing), desc="Encoding images", unit="", leave=False, dynamic_ncols=True)
                        bars.append(shown.enter_context(bar))
                        begin()
                    running.append(([number for number, _ in waiting], pool.submit(run)))
                    waiting = []
                    if len(running) > beside:
                        take()
            while running:
                take()
        finally:  # what was encoded is kept, whatever ends the run
            if cache and encoded:
                cache(encoder).add({digests[number]: rows[number].numpy() for number in encoded})
    return encoded


def _picked(items: Sequence[Item], positions: range) -> list[Item]:
    return [items[position] for position in positions]


def _in_order(pool: ThreadPoolExecutor, work: Callable[[int], Any], numbers: Sequence[int]) -> Iterator[Any]:
    """Results in order, of which a limited number waits to be taken."""
    running: deque[Future[Any]] = deque()
    for number in numbers:
        running.append(pool.submit(work, number))
        if len(running) >= AHEAD:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _with_last(items: Iterable[Item]) -> Iterator[tuple[bool, Item]]:
    """Every item, and whether it is the last."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield False, item
            item = following
        yield True, item


def _encode_texts(
    texts: Mapping[str, Sequence[str]], encoder: Encoder, batch_size: int, cache: CacheOf | None, release: bool
) -> dict[str, torch.Tensor]:
    """Rows of the texts of every split. Batches hold texts of like length."""
    distinct = sorted({text for own in texts.values() for text in own}, key=lambda text: (len(text), text))
    digests = [content_digest(text) for text in distinct]
    rows, missing = _known_rows(encoder, digests, cache)

    def encode() -> tuple[list[int], torch.Tensor]:
        if not missing:
            return [], rows[:0]
        found = encode_all(
            encoder,
            len(missing),
            lambda positions: [encoder.prepare(distinct[missing[position]]) for position in positions],
            batch_size=batch_size,
            label="Encoding texts",
        )
        if cache:
            cache(encoder).add({digests[number]: row.numpy() for number, row in zip(missing, found, strict=True)})
        return missing, found

    for own, found in over_ranks(encode):
        rows[torch.tensor(own, dtype=torch.long)] = found
    _done_with(encoder, release)  # before every split gets a copy of its rows
    position = {text: number for number, text in enumerate(distinct)}
    return {name: rows[torch.tensor([position[text] for text in own])] for name, own in texts.items()}


def _listed(bad: Sequence[BadRow], splits: Mapping[str, Sequence[Sample]], most: int = 10) -> str:
    shown = "\n".join(f"  {one}" for one in bad[:most])
    more = f"\n  and {len(bad) - most} more" if len(bad) > most else ""
    total = sum(map(len, splits.values()))
    return (
        f"{len(bad)} of {total} rows cannot be embedded:\n{shown}{more}\n"
        "Fix their images, or pass --allow-missing to score the rest."
    )
