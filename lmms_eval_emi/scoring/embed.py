"""From samples to embeddings: each distinct image and text once, and a bad row costs only itself."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.workers import here, workers
from lmms_eval_emi.encoders.base import CheckpointEncoder, Encoder, encode_all, encode_parts
from lmms_eval_emi.encoders.cache import EmbeddingCache, content_digest
from lmms_eval_emi.util.files import threads
from lmms_eval_emi.data.images import DatasetImage, ImageError, ImageSource, content_key, open_image
from lmms_eval_emi.data.sample import Sample, SampleError, without_images
from lmms_eval_emi.scoring.distributed import cores, from_first, over_ranks, own_part, ranks
from lmms_eval_emi.settings import Settings

if TYPE_CHECKING:
    from lmms_eval_emi.encoders import Encoders

Item = TypeVar("Item")
CacheOf = Callable[[Encoder], EmbeddingCache]
TextsReady = Callable[[int, Mapping[str, Embeddings]], object]

FEWEST_AT_ONCE = 8  # images of a batch
READERS = 2  # threads that decode images
AHEAD = 64  # decoded images that wait to be encoded: 10 MB of CLIP's
MOST_WAIT = 5  # seconds for a batch of texts to end
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
    """The distinct images of a run, with the number of each by content and the rows that cannot be read.

    Attributes:
        sources: what each is read from.
        keys: of their content.
        numbers: of the images of every split's rows.
        bad: reasons of those that cannot be read, by number.
        waiting: numbers of those that are not encoded yet.
        rows: (number of images, D) what those are that are.
    """

    sources: list[ImageSource] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    numbers: dict[str, list[int | None]] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    rows: torch.Tensor | None = None

    def are_ready(self, splits: Iterable[str]) -> bool:
        """Whether no image of some splits waits to be encoded."""
        return self.waiting.isdisjoint(number for name in splits for number in self.numbers[name])


class _Shared:
    """Matrices of some of the rows of one. Where two have the same rows, as references of many splits do, they are one."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self._made: dict[tuple[int, ...], torch.Tensor] = {}

    def of(self, numbers: Iterable[int]) -> torch.Tensor:
        """(N, D) rows with these N numbers."""
        key = tuple(numbers)
        if key not in self._made:
            self._made[key] = self.rows[torch.tensor(key)]
        return self._made[key]


@dataclass
class _Readable:
    """Rows of some splits whose image is there to be read: their numbers and their embeddings by text, by split."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    by_text: dict[str, Embeddings] = field(default_factory=dict)


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
    ((embedded, bad),) = embed_groups(
        [splits], encoders, batch_size=batch_size, strict=strict, cache=cache, release=release
    )
    return embedded, bad


def embed_groups(
    groups: Sequence[Mapping[str, Sequence[Sample]]],
    encoders: Encoders,
    *,
    batch_size: int = 64,
    strict: bool = False,
    cache: CacheOf | None = None,
    release: bool = False,
    texts_ready: TextsReady | None = None,
) -> Generator[tuple[dict[str, Embeddings], list[BadRow]], None, None]:
    """As :func:`embed_good_rows`, for groups of splits, each as soon as its images are encoded.

    Each distinct image and text of all groups is encoded once. What is done with one group in another thread is done
    while images of the next are encoded.

    Args:
        groups: samples by split; no two splits have one name.
        encoders, batch_size, strict, cache, release: as there.
        texts_ready: called in another thread with the number of every group and its embeddings by text alone, as soon
            as all texts are encoded. What is computed of these is known of those that are yielded later, unless rows
            are left out because their image turns out to be damaged; see :meth:`Embeddings.with_images`.

    Yields:
        Embeddings and bad rows of every group, in their order.
    """
    splits = {name: samples for group in groups for name, samples in group.items()}
    if not splits:
        raise ValueError("splits: expected at least one split, got none.")
    for name, samples in splits.items():
        if not samples:
            raise ValueError(f"split {name}: expected at least one sample, got none.")
    with_images = any(sample.image is not None for samples in splits.values() for sample in samples)
    images, unread = _distinct_images(groups) if with_images else (_Images(), [])
    if unread and strict and len(unread) == sum(map(len, splits.values())):
        raise SampleError(_listed(unread, splits))
    encoding: list[Future[list[_Readable]]] = []
    stopped = threading.Event()
    waiting = deque(range(len(groups)))

    def texts() -> list[_Readable]:
        rows, numbers = _encode_texts(splits, encoders.text, batch_size, cache, release, stopped)
        shared = _Shared(rows)
        found = [_readable(group, images, unread, shared, numbers, encoders) for group in groups]
        if texts_ready:
            for number, one in enumerate(found):
                texts_ready(number, one.by_text)
        return found

    def embedded() -> tuple[dict[str, Embeddings], list[BadRow]]:
        number = waiting.popleft()
        bad, readable = _bad_rows(groups[number], images, unread), encoding[0].result()[number]
        with threadpool_limits(1):  # several threads would wait for each other here, for others are busy
            return _embedded(readable, bad, images, encoders), bad

    with workers(1) as beside:  # texts in one thread, beside the images in all

        def begin() -> None:
            if not encoding:
                encoding.append(beside.submit(texts))

        try:
            if with_images:
                # What ranks say to each other has to be said in one order, so their texts come after their images.
                at_once = begin if ranks() == 1 else lambda: None
                for _ in _encode_images(
                    images, encoders.vision, batch_size, cache, at_once, stop_at_bad=strict, release=release
                ):
                    while waiting and images.are_ready(groups[waiting[0]]) and not (strict and (unread or images.bad)):
                        yield embedded()
            bad = _bad_rows(splits, images, unread)
            if bad and strict:
                raise SampleError(_listed(bad, splits))
            begin()
            encoding[0].result()
        except BaseException:  # texts are not encoded to their end, and their bar is gone before an error is shown
            stopped.set()
            wait(encoding, timeout=MOST_WAIT)
            raise
    while waiting:
        yield embedded()


def _readable(
    group: Mapping[str, Sequence[Sample]],
    images: _Images,
    unread: Sequence[BadRow],
    rows_of: _Shared,
    numbers: Mapping[str, int],
    encoders: Encoders,
) -> _Readable:
    """The rows of some splits but those whose image is known to be unreadable, by their text."""
    excluded = {(one.split, one.row) for one in unread}
    found = _Readable()
    for name, samples in group.items():
        rows = [row for row in range(len(samples)) if (name, row) not in excluded]
        if not rows:
            continue
        found.rows[name] = rows
        own = images.numbers.get(name)
        found.by_text[name] = Embeddings(
            v=None,
            t=rows_of.of(numbers[samples[row].question] for row in rows),
            y_hat=rows_of.of(numbers[samples[row].response] for row in rows),
            y=rows_of.of(numbers[samples[row].reference] for row in rows),
            ids=[samples[row].key for row in rows],
            groups=[images.keys[number] for row in rows if (number := own[row]) is not None] if own else None,
            encoders=encoders.text_signature,
        )
    return found


def _embedded(readable: _Readable, bad: Sequence[BadRow], images: _Images, encoders: Encoders) -> dict[str, Embeddings]:
    """Embeddings of the good rows of some splits, whose images are encoded, if there are any."""
    if images.rows is None:
        return readable.by_text
    excluded = {(one.split, one.row) for one in bad}
    rows_of, embedded = _Shared(images.rows), {}
    for name, by_text in readable.by_text.items():
        places = [place for place, row in enumerate(readable.rows[name]) if (name, row) not in excluded]
        if places:
            numbers = (images.numbers[name][readable.rows[name][place]] for place in places)
            v = rows_of.of(number for number in numbers if number is not None)
            good = by_text if len(places) == by_text.n else by_text.select(places)
            embedded[name] = good.with_images(v, encoders.signature)
    return embedded


def _distinct_images(groups: Sequence[Mapping[str, Sequence[Sample]]]) -> tuple[_Images, list[BadRow]]:
    """The distinct images of all splits, and the rows that have none or whose file cannot be read at all."""
    images, bad = _Images(), []
    number_of: dict[str, int] = {}
    kept_bytes = 0
    alone = {name for group in groups if without_images(group) for name in group}
    for name, samples in (split for group in groups for split in group.items()):
        numbers = images.numbers[name] = [None] * len(samples)
        for row, sample in enumerate(samples):
            try:
                if sample.image is None:
                    raise ImageError(
                        "no row of its study has an image, and rows of others have; score it in a call of its own"
                        if name in alone
                        else "it has no image"
                    )
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


def _bad_rows(splits: Mapping[str, Sequence[Sample]], images: _Images, unread: Sequence[BadRow]) -> list[BadRow]:
    """The rows of some splits whose image is not there or cannot be read, in their order."""
    bad = [one for one in unread if one.split in splits]
    bad += [
        BadRow(name, row, samples[row].id, images.bad[number])
        for name, samples in splits.items()
        for row, number in enumerate(images.numbers.get(name, ()))
        if number is not None and number in images.bad
    ]
    order = {name: position for position, name in enumerate(splits)}
    return sorted(bad, key=lambda one: (order[one.split], one.row))


def _encode_images(
    images: _Images,
    encoder: Encoder,
    batch_size: int,
    cache: CacheOf | None,
    begin: Callable[[], object],
    *,
    stop_at_bad: bool,
    release: bool,
) -> Iterator[None]:
    """Fill in the rows of all images; those of images that cannot be read are zero. Between batches it yields.

    Images are decoded by threads while others are encoded, each once. If one cannot be read and that is to stop
    the run, nothing more is encoded, and the others are looked at for the message. Ranks have their part each, and
    what they encode is there at the end.
    """
    digests = [content_digest(key) for key in images.keys]
    images.rows, missing = _known_rows(encoder, digests, cache)
    own = own_part(missing)
    images.waiting = set(missing)
    encoding = _encode_own_images(images, encoder, batch_size, cache, digests, own, images.rows, begin, stop_at_bad)
    if ranks() == 1:
        yield from encoding
    else:

        def encode() -> tuple[list[int], torch.Tensor, dict[int, str]]:
            deque(encoding, maxlen=0)
            done = [number for number in own if number not in images.waiting]
            return done, rows[torch.tensor(done, dtype=torch.long)], images.bad

        rows = images.rows
        for done, found, bad in over_ranks(encode):
            rows[torch.tensor(done, dtype=torch.long)] = found
            images.bad |= bad
    images.waiting.clear()
    _done_with(encoder, release)


def _done_with(encoder: Encoder, release: bool) -> None:
    if release and isinstance(encoder, CheckpointEncoder):
        encoder.release()


def _known_rows(encoder: Encoder, digests: Sequence[bytes], cache: CacheOf | None) -> tuple[torch.Tensor, list[int]]:
    """Rows of all items, those that the cache lacks zero, and the numbers of these; rank 0 looks into the cache for all."""
    known = from_first(lambda: cache(encoder).find(digests, encoder.dimension)) if cache else {}
    rows = torch.zeros(len(digests), encoder.dimension)
    for number, digest in enumerate(digests):
        if digest in known:
            rows[number] = torch.from_numpy(known[digest])
    return rows, [number for number, digest in enumerate(digests) if digest not in known]


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
) -> Iterator[None]:
    """Fill in the rows of some images. ``begin`` is called when the first batch is on its way."""
    encoded: list[int] = []

    def prepare(number: int) -> Any:
        try:
            prepared = encoder.prepare(open_image(images.sources[number]))
            images.sources[number] = b""  # its content is let go of
            return prepared
        except ImageError as error:
            images.bad[number] = str(error)
            images.waiting.discard(number)
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
        images.waiting.difference_update(own)
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
                        if not last:
                            yield
            while running:
                take()
        finally:  # what was encoded is kept, whatever ends the run
            if cache and encoded:
                cache(encoder).add({digests[number]: rows[number].numpy() for number in encoded})


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
    splits: Mapping[str, Sequence[Sample]],
    encoder: Encoder,
    batch_size: int,
    cache: CacheOf | None,
    release: bool,
    stopped: threading.Event,
) -> tuple[torch.Tensor, dict[str, int]]:
    """Rows of the distinct texts of all splits, and the number of each text.

    Batches hold texts of like length; none begins after ``stopped`` is set.
    """
    distinct = sorted(
        {
            text
            for samples in splits.values()
            for sample in samples
            for text in (sample.question, sample.response, sample.reference)
        },
        key=lambda text: (len(text), text),
    )
    digests = [content_digest(text) for text in distinct]
    rows, missing = _known_rows(encoder, digests, cache)
    missing = own_part(missing)

    def prepared(positions: range) -> list[Any]:
        if stopped.is_set():
            raise RuntimeError("the images could not be encoded")
        return [encoder.prepare(distinct[missing[position]]) for position in positions]

    def encode() -> tuple[list[int], torch.Tensor]:
        found: list[torch.Tensor] = []
        try:
            found.extend(encode_parts(encoder, len(missing), prepared, batch_size=batch_size, label="Encoding texts"))
        finally:  # what was encoded is kept, whatever ends the run
            parts = torch.cat([rows[:0], *found])
            found.clear()
            if cache:
                cache(encoder).add({digests[number]: row.numpy() for number, row in zip(missing, parts, strict=False)})
        return missing, parts

    for own, found in over_ranks(encode):
        rows[torch.tensor(own, dtype=torch.long)] = found
    _done_with(encoder, release)
    return rows, {text: number for number, text in enumerate(distinct)}


def _listed(bad: Sequence[BadRow], splits: Mapping[str, Sequence[Sample]], most: int = 10) -> str:
    shown = "\n".join(f"  {one}" for one in bad[:most])
    more = f"\n  and {len(bad) - most} more" if len(bad) > most else ""
    total = sum(map(len, splits.values()))
    return (
        f"{len(bad)} of {total} rows cannot be embedded:\n{shown}{more}\n"
        "Fix their images, or pass --allow-missing to score the rest."
    )
