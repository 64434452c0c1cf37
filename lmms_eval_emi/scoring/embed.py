"""From samples to embeddings: each distinct image and text is encoded once, and a bad row loses only itself.

With a process group, each rank encodes its shard, and every rank gets the whole.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from scipy.spatial import cKDTree
from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.streaming import SplitStatistics
from lmms_eval_emi.data.images import ImageSource, content_key, open_image, pixel_key
from lmms_eval_emi.data.rows import Sample, without_images
from lmms_eval_emi.encoders.base import Encoder, encode_batches
from lmms_eval_emi.encoders.cache import EmbeddingCache
from lmms_eval_emi.errors import EMIError, ImageError, InputError, RunError, SampleError
from lmms_eval_emi.settings import Settings
from lmms_eval_emi.util.files import content_digest

if TYPE_CHECKING:
    from lmms_eval_emi.encoders import Encoders

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
CacheFactory = Callable[[Encoder], EmbeddingCache]
READERS = 2  # threads that decode images
AHEAD = 64  # decoded images that wait for the encoder: 10 MB of CLIP's
SHOWN_ROWS = 10  # rows named in an error message
COMPARED_COLUMNS = 16  # columns of embeddings that are compared to find equal images
NEXT_TO_EQUAL = 1e-4  # distance of such rows; batches of another size change the seventh digit


class _Group:
    """State of the process group, if all ranks score together; in a harness run rank 0 scores alone."""

    open = False


def rank() -> int:
    """Return the number of this process in its group; 0 without one."""
    return dist.get_rank() if _Group.open else 0


def world_size() -> int:
    """Return the number of processes of the group; 1 without one."""
    return dist.get_world_size() if _Group.open else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that a launcher (accelerate launch, torchrun) has set up, if there is one.

    Ranks exchange numbers over the CPU's network (gloo). Each rank uses the GPU of its local number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo")
    _Group.open = True
    try:
        yield
    finally:
        _Group.open = False
        dist.destroy_process_group()


def broadcast_from_rank0(compute: Callable[[], Any]) -> Any:
    """Compute something on rank 0 and return it on every rank."""
    if world_size() == 1:
        return compute()
    box: list[Any] = [_attempt(compute) if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return _result(box[0], 0)


def gather_results(compute: Callable[[], Any]) -> list[Any]:
    """Compute something on every rank and return all results on every rank; if one rank fails, all raise."""
    if world_size() == 1:
        return [compute()]
    return [_result(outcome, number) for number, outcome in enumerate(_gather(_attempt(compute)))]


def shard(items: Sequence[Item]) -> list[Item]:
    """Return this rank's round-robin shard."""
    return list(items[rank() :: world_size()])


def row_range(n: int) -> tuple[int, int]:
    """Return this rank's first row of ``n``, and the one behind its last."""
    return n * rank() // world_size(), n * (rank() + 1) // world_size()


def merge_statistics(statistics: SplitStatistics) -> SplitStatistics:
    """Return the statistics of the rows of all ranks, the same on each of them."""
    if world_size() == 1:
        return statistics
    total, *others = _gather(statistics.bare())
    for other in others:
        total.merge(other)
    total.estimator = statistics.estimator
    return total


def _gather(value: Any) -> list[Any]:
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def _attempt(compute: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, compute()
    except Exception as error:
        return False, error


def _result(outcome: tuple[bool, Any], number: int) -> Any:
    done, value = outcome
    if not done:
        if number == rank():
            raise value
        kind = RunError if isinstance(value, EMIError | OSError) else RuntimeError
        raise kind(f"rank {number} failed: {type(value).__name__}: {value}")
    return value


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be embedded."""

    split: Any  # its key in the splits that were given
    row: int  # its position in the split
    id: Any  # ID of the sample
    reason: str  # reason in words


def embedding_cache(settings: Settings) -> CacheFactory | None:
    """Return the cache of an encoder's rows, as a function of the encoder; ``None`` if nothing is cached."""
    if not settings.cache_limit:
        return None
    folder, limit = settings.cache / "embeddings", int(settings.cache_limit * 1e9)
    return lambda encoder: EmbeddingCache(folder, encoder.cache_key, limit)


def embed_splits(
    splits: Mapping[str, Sequence[Sample]], encoders: Encoders, *, batch_size: int = 64
) -> dict[str, Embeddings]:
    """Embed the samples of many splits.

    Each distinct image and text of all splits together is encoded once, by content.

    Args:
        splits: samples of each split, in the order that the rows shall have.
        encoders: encoders of images and texts.
        batch_size: items per forward pass.

    Returns:
        :class:`Embeddings` of each split; its ``ids`` are the keys of the samples, and its ``groups`` the content
        keys of their images. If no sample of any split has an image, the text alone is embedded.

    Raises:
        SampleError: rows whose image is missing or cannot be read, each with its split.
        InputError: a split has no samples.
    """
    embedded, _ = embed_good_rows(splits, encoders, batch_size=batch_size, strict=True)
    return embedded


def embed_good_rows(
    splits: Mapping[Key, Sequence[Sample]],
    encoders: Encoders,
    *,
    batch_size: int = 64,
    strict: bool = False,
    cache: CacheFactory | None = None,
    release: bool = False,
    label: Callable[[Key], str] = str,
) -> tuple[dict[Key, Embeddings], list[BadRow]]:
    """Embed the samples of many splits as :func:`embed_splits`, and return the rows that cannot be embedded.

    Args:
        splits: samples by any key.
        encoders: encoders of images and texts.
        batch_size: items per forward pass.
        strict: raise if there is a bad row, with all of them.
        cache: the known rows of an encoder; default: everything is encoded.
        release: drop each encoder from memory when all of its items are encoded.
        label: name of a split in error messages.

    Returns:
        Embeddings of the good rows, in their order, and the bad rows. A split without a good row has no embeddings.

    Raises:
        SampleError: bad rows, if ``strict``.
        InputError: a split has no samples.
    """
    if not splits:
        raise InputError("splits: expected at least one split, got none.")
    for key, samples in splits.items():
        if not samples:
            raise InputError(f"split {label(key)}: expected at least one sample, got none.")
    bad: list[BadRow] = []
    images: dict[Key, list[str]] | None = None
    if not without_images(splits):
        images, sources, bad = _distinct_images(splits)
        if strict and len(bad) == sum(map(len, splits.values())):
            raise SampleError(_bad_rows_message(bad, splits, label))
    texts = _encode_texts(splits, encoders.text, batch_size, cache, release)
    image_rows: dict[str, torch.Tensor] = {}
    if images is not None:
        assert encoders.vision is not None, "loaded for text alone"
        image_rows, unreadable = _encode_images(sources, encoders.vision, batch_size, cache, strict, release)
        bad += _rows_with(unreadable, splits, images)
    order = {key: position for position, key in enumerate(splits)}
    bad.sort(key=lambda row: (order[row.split], row.row))
    if bad and strict:
        raise SampleError(_bad_rows_message(bad, splits, label))
    excluded = {(row.split, row.row) for row in bad}
    same = _same_pixels(image_rows, sources) if images is not None else {}
    embedded = {}
    for key, samples in splits.items():
        rows = [row for row in range(len(samples)) if (key, row) not in excluded]
        if rows:
            keys = [images[key][row] for row in rows] if images is not None else None
            embedded[key] = _to_embeddings([samples[row] for row in rows], keys, same, image_rows, texts, encoders)
    return embedded, bad


def _same_pixels(rows: Mapping[str, torch.Tensor], sources: Mapping[str, ImageSource]) -> dict[str, str]:
    """Map content keys to one key for images of equal pixels, such as one image in two compressions.

    Only images whose rows are next to equal are decoded for that.
    """
    keys = list(rows)
    if len(keys) < 2:
        return {}
    first_columns = torch.stack([rows[key][:COMPARED_COLUMNS] for key in keys]).nan_to_num().numpy()
    distances, _ = cKDTree(first_columns).query(first_columns, k=2)
    first: dict[str, str] = {}
    return {
        key: first.setdefault(pixel_key(sources[key]), key)
        for key, distance in zip(keys, distances[:, 1], strict=True)
        if distance < NEXT_TO_EQUAL
    }


def _to_embeddings(
    samples: Sequence[Sample],
    images: Sequence[str] | None,
    same: Mapping[str, str],
    image_rows: Mapping[str, torch.Tensor],
    texts: Mapping[str, torch.Tensor],
    encoders: Encoders,
) -> Embeddings:
    return Embeddings(
        v=torch.stack([image_rows[key] for key in images]) if images is not None else None,
        t=torch.stack([texts[sample.question] for sample in samples]),
        y_hat=torch.stack([texts[sample.response] for sample in samples]),
        y=torch.stack([texts[sample.reference] for sample in samples]),
        ids=[sample.key for sample in samples],
        groups=[same.get(key, key) for key in images] if images is not None else _repeated(samples),
        encoders=encoders.signature if images is not None else encoders.text_signature,
    )


def _repeated(samples: Sequence[Sample]) -> list[Hashable] | None:
    """Return clusters of text-only rows by question and reference, so that epochs are one cluster; ``None`` if all differ."""
    first: dict[tuple[str, str], Hashable] = {}
    keys = [first.setdefault((sample.question, sample.reference), sample.key) for sample in samples]
    return keys if len(first) < len(samples) else None


def _distinct_images(
    splits: Mapping[Key, Sequence[Sample]],
) -> tuple[dict[Key, list[str]], dict[str, ImageSource], list[BadRow]]:
    """Return the content key of each row's image ("" if it has none), one source for every key, and the rows without an image."""
    keys: dict[Key, list[str]] = {}
    sources: dict[str, ImageSource] = {}
    bad: list[BadRow] = []
    for split, samples in splits.items():
        keys[split] = []
        for row, sample in enumerate(samples):
            key = ""
            try:
                if sample.image is None:
                    raise ImageError("it has no image")
                key = content_key(sample.image)
                sources.setdefault(key, sample.image)
            except ImageError as error:
                bad.append(BadRow(split, row, sample.id, str(error)))
            keys[split].append(key)
    return keys, sources, bad


def _rows_with(
    unreadable: Mapping[str, str], splits: Mapping[Key, Sequence[Sample]], images: Mapping[Key, Sequence[str]]
) -> list[BadRow]:
    return [
        BadRow(split, row, splits[split][row].id, unreadable[key])
        for split, keys in images.items()
        for row, key in enumerate(keys)
        if key in unreadable
    ]


def _encode_images(
    sources: Mapping[str, ImageSource],
    encoder: Encoder,
    batch_size: int,
    cache: CacheFactory | None,
    strict: bool,
    release: bool,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Yield rows of distinct images by content key, and the reasons of those that cannot be read.

    With ``strict``, nothing is encoded after the first unreadable image; the others are only decoded, for the message.
    """
    unreadable: dict[str, str] = {}

    def batches(missing: Sequence[str]) -> Iterator[list[tuple[str, Any]]]:
        batch: list[tuple[str, Any]] = []
        for key, prepared in _decode_ahead(missing, sources, encoder):
            if isinstance(prepared, ImageError):
                unreadable[key] = str(prepared)
            elif not (strict and unreadable):
                batch.append((key, prepared))
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch and not (strict and unreadable):
            yield batch

    def compute(missing: Sequence[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        return _encode_missing(missing, batches(missing), encoder, batch_size, cache, "Encoding images"), unreadable

    known, missing = _known_rows(list(sources), encoder, cache)
    for rows, problems in gather_results(lambda: compute(shard(missing))):
        known |= rows
        unreadable |= problems
    _release(encoder, release)
    return known, unreadable


def _encode_texts(
    splits: Mapping[Key, Sequence[Sample]],
    encoder: Encoder,
    batch_size: int,
    cache: CacheFactory | None,
    release: bool,
) -> dict[str, torch.Tensor]:
    """Return rows of the distinct texts of all splits; batches hold texts of like length."""
    distinct = {text for samples in splits.values() for s in samples for text in (s.question, s.response, s.reference)}
    known, missing = _known_rows(sorted(distinct, key=lambda text: (len(text), text)), encoder, cache)

    def compute(missing: Sequence[str]) -> dict[str, torch.Tensor]:
        starts = range(0, len(missing), batch_size)
        batches = ([(text, encoder.prepare(text)) for text in missing[i : i + batch_size]] for i in starts)
        return _encode_missing(missing, batches, encoder, batch_size, cache, "Encoding texts")

    for rows in gather_results(lambda: compute(shard(missing))):
        known |= rows
    _release(encoder, release)
    return known


def _encode_missing(
    missing: Sequence[str],
    batches: Iterator[list[tuple[str, Any]]],
    encoder: Encoder,
    batch_size: int,
    cache: CacheFactory | None,
    title: str,
) -> dict[str, torch.Tensor]:
    """Encode batches of (key, prepared item); what was encoded is cached, whatever ends the run."""
    rows: dict[str, torch.Tensor] = {}
    try:
        with tqdm(total=len(missing), desc=title, unit="", leave=False, dynamic_ncols=True, disable=not missing) as bar:
            for batch in batches:
                encoded = torch.cat(list(encode_batches(encoder, [item for _, item in batch], batch_size)))
                rows |= zip((key for key, _ in batch), encoded, strict=True)
                bar.update(len(batch))
    finally:
        if cache and rows:
            cache(encoder).add({content_digest(key): row.numpy() for key, row in rows.items()})
    return rows


def _known_rows(
    keys: Sequence[str], encoder: Encoder, cache: CacheFactory | None
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the cached rows by key, and the keys of the others; rank 0 reads the cache for all ranks."""
    if cache is None:
        return {}, list(keys)
    digests = {key: content_digest(key) for key in keys}
    found = broadcast_from_rank0(lambda: cache(encoder).find(list(digests.values()), encoder.dimension))
    known = {key: torch.from_numpy(found[digest]) for key, digest in digests.items() if digest in found}
    return known, [key for key in keys if key not in known]


def _decode_ahead(
    keys: Sequence[str], sources: Mapping[str, ImageSource], encoder: Encoder
) -> Iterator[tuple[str, Any]]:
    """Yield every image prepared for the encoder, or its error, in order; threads decode ahead of the caller."""

    def decode(key: str) -> Any:
        try:
            return encoder.prepare(open_image(sources[key]))
        except ImageError as error:
            return error

    pool = ThreadPoolExecutor(READERS)
    waiting: deque[tuple[str, Future[Any]]] = deque()
    try:
        for key in keys:
            waiting.append((key, pool.submit(decode, key)))
            if len(waiting) >= AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for key, future in waiting:
            yield key, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _release(encoder: Encoder, release: bool) -> None:
    if release:
        encoder.release()


def _bad_rows_message(
    bad: Sequence[BadRow], splits: Mapping[Key, Sequence[Sample]], label: Callable[[Key], str]
) -> str:
    lines = [f"  split {label(row.split)}, row {row.id}: {row.reason}" for row in bad[:SHOWN_ROWS]]
    if len(bad) > SHOWN_ROWS:
        lines.append(f"  and {len(bad) - SHOWN_ROWS} more")
    shown = "\n".join(lines)
    return (
        f"{len(bad)} of {sum(map(len, splits.values()))} rows cannot be embedded:\n{shown}\n"
        "Fix their images, or pass --allow-missing to score the rest."
    )
