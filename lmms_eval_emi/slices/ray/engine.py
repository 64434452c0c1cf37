"""Encoding, scoring and shifting on a Ray cluster, with Ray Data.

- Responses are encoded in actors that hold the encoders, some rows at a time, read where they are encoded. Every
  part is written as parquet before it counts as done, under a name made of its content, so a run that is started
  again, or whose worker is lost, continues with the parts that are missing.
- Statistics of embeddings are accumulated block by block where the blocks are, and merged
  (:mod:`lmms_eval_emi.core.streaming`) by an aggregation of Ray Data.
- Chunks of a suite of shifts are shifted in actors; each is a file when it is done.

Datasets, encoders and outputs are named by paths that all machines must see: the hub, or a shared file system.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmms_eval_emi.core.streaming import Partners, SplitStatistics
from lmms_eval_emi.data.rows import image_roots, to_samples
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.errors import ResultsError, UnavailableError
from lmms_eval_emi.estimators import Estimator
from lmms_eval_emi.scoring.embed import BadRow, embed_good_rows, embedding_cache
from lmms_eval_emi.scoring.embedding_files import (
    PART_ROWS,
    SplitFiles,
    StoredEmbeddings,
    describe_embeddings,
    from_batch,
    open_embeddings,
    to_parquet,
)
from lmms_eval_emi.scoring.join import StudySamples
from lmms_eval_emi.scoring.pipeline import load_instruments
from lmms_eval_emi.settings import PREFIX, Settings
from lmms_eval_emi.shifts.at_load import load_splits
from lmms_eval_emi.util.files import content_hexdigest

if TYPE_CHECKING:
    import datasets

    from lmms_eval_emi.shifts.writer.journal import Suite

PART_OF_ROWS = 256  # rows that are encoded at a time, and lost with a worker


@contextmanager
def cluster(address: str | None = None) -> Iterator[None]:
    """Connect to a Ray cluster, or start a local one, until the block ends.

    Args:
        address: address such as ``auto`` or ``ray://host:10001``; default: that of RAY_ADDRESS, or a local cluster.

    Raises:
        UnavailableError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UnavailableError("--engine ray needs Ray Data: pip install 'lmms_eval_emi[ray]'") from error
    if ray.is_initialized():
        yield
        return
    names = (PREFIX, "HF_", "OMP_", "HUGGINGFACE_")
    variables = {name: value for name, value in os.environ.items() if name.startswith(names)}
    try:
        is_local = not (address or os.environ.get("RAY_ADDRESS"))
        ray.init(
            address=address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            include_dashboard=False if is_local else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"--ray-address: no cluster answers at {address or 'the address of RAY_ADDRESS'}: {error}"
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


def _workers() -> dict[str, Any]:
    """Return how many actors, and of what: a GPU each where there are any, or else a core each."""
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    count = gpus or max(1, int(resources.get("CPU", 1)))
    return {"concurrency": (1, count), "num_gpus": 1 if gpus else 0, "num_cpus": 0 if gpus else 1}


# Embeddings of responses


def encode(entry: StudySamples, settings: Settings, folder: Path, *, allow_missing: bool = False) -> StoredEmbeddings:
    """Encode the samples of a model into a store of parquet parts, those that are not there yet.

    Args:
        entry: entry whose rows come from the study's datasets.
        settings: settings of encoders and device.
        folder: folder of the store, which all machines see.
        allow_missing: leave out rows whose image cannot be read; ``entry`` then says which.

    Returns:
        The store, of all parts.

    Raises:
        UnavailableError: rows have no dataset to be read from.
        ResultsError: rows cannot be encoded.
    """
    import ray.data

    text_only = all(sample.image is None for rows in entry.samples.values() for sample in rows)
    encoders = load_instruments(settings, None, text_only=text_only, device="cpu").encoders
    signature = encoders.text_signature if text_only else encoders.signature
    todo, parts = [], {}
    for name, samples in entry.samples.items():
        for start in range(0, len(samples), PART_OF_ROWS):
            block = samples[start : start + PART_OF_ROWS]
            if any(sample.row is None for sample in block):
                raise UnavailableError(f"split {name}: expected rows of a dataset that workers can read themselves.")
            content = repr([(sample.key, sample.question, sample.response) for sample in block]) + signature
            path = folder / name / f"{start:09d}-{content_hexdigest(content)[:16]}.parquet"
            parts[path] = name
            if not path.exists():
                responses = {sample.row: sample.response for sample in block}
                todo.append({"split": name, "path": str(path), "responses": pickle.dumps(responses)})
    total = sum(map(len, entry.samples.values()))
    bad: list[BadRow] = []
    with tqdm(total=len(parts), initial=len(parts) - len(todo), desc="Encoding", unit="part", leave=False) as bar:
        if todo:
            done = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
                _Encoder,
                batch_size=1,
                fn_constructor_args=(entry.study, settings, signature, str(Path.cwd())),
                **_workers(),
            )
            for row in done.iter_rows():
                bad += pickle.loads(row["bad"])
                bar.update()
    if bad and not allow_missing:
        listed = "\n".join(f"  split {row.split}, row {row.id}: {row.reason}" for row in bad[:10])
        raise ResultsError(
            f"{len(bad)} of {total} rows cannot be embedded:\n{listed}\nFix their images, or pass --allow-missing."
        )
    for lost in bad:
        entry.leave_out(lost.split, f"split {lost.split}, row {lost.id}: {lost.reason}")
    for name in entry.samples:  # parts of earlier responses are of no use, and would be read with the others
        for path in (folder / name).glob("*.parquet"):
            if path not in parts:
                path.unlink()
    describe_embeddings(folder, encoders=signature, model=entry.model, studies=[entry.study.name])
    return open_embeddings(folder, entry.study)


class _Encoder:
    """An actor that holds the encoders, and encodes and writes a part at a time."""

    def __init__(self, study: Study, settings: Settings, signature: str, folder: str) -> None:
        with suppress(OSError):  # names may be those of folders below the driver's own
            os.chdir(folder)
        text_only = signature.startswith("text-only")
        self.study, self.settings = study, settings
        self.encoders = load_instruments(settings, None, text_only=text_only).encoders
        expected = self.encoders.text_signature if text_only else self.encoders.signature
        if expected != signature:
            raise UnavailableError(
                f"this worker has other encoders ({expected}) than the driver ({signature}). Give all machines the same."
            )
        self.rows: dict[str, datasets.Dataset] = {}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from lmms_eval_emi.util.files import write_atomically

        bad: list[bytes] = []
        for split, path, pickled in zip(batch["split"], batch["path"], batch["responses"], strict=True):
            name, responses = str(split), pickle.loads(pickled)
            if name not in self.rows:
                self.rows = load_splits(self.study, [name], self.settings)  # rows of one split at a time
            spec = self.study.split(name).dataset
            samples = to_samples(
                self.rows[name], spec.columns, responses, image_roots(self.study, spec, self.settings.images)
            )
            embedded, lost = embed_good_rows(
                {name: samples},
                self.encoders,
                batch_size=self.settings.batch_size,
                cache=embedding_cache(self.settings),
            )
            if name in embedded:
                write_atomically(Path(str(path)), to_parquet(embedded[name]))
            bad.append(pickle.dumps(lost))
        return {"path": list(batch["path"]), "bad": bad}


# Statistics of embeddings


def accumulate(study: Study, splits: Mapping[str, SplitFiles], estimator: Estimator) -> dict[str, SplitStatistics]:
    """Return the statistics of splits in parquet files, each read once, the ID split first, whose clusters its shifts share.

    Raises:
        UnavailableError: a split is not in parquet files.
    """
    import ray.data

    found: dict[str, SplitStatistics] = {}
    order = sorted(splits, key=lambda name: name != study.id_split)
    for name in tqdm(order, desc="Splits", unit="", leave=False, dynamic_ncols=True):
        if splits[name].shared:
            raise UnavailableError(
                f"split {name}: expected parquet files of its own for Ray Data. Write them with --save-embeddings."
            )
        id = found.get(study.id_split)
        aggregation = _aggregation(estimator, id.as_partners() if id else None, name == study.id_split)
        rows = ray.data.read_parquet([str(path) for path in splits[name].files])
        (merged,) = rows.aggregate(aggregation).values()
        found[name] = pickle.loads(merged)
        found[name].estimator = estimator
        found[name].encoders = splits[name].encoders
    return found


def _aggregation(estimator: Any, partners: Partners | None, keep_partners: bool) -> Any:
    import ray
    from ray.data.aggregate import AggregateFnV2
    from ray.data.block import BlockAccessor

    shared = ray.put((estimator, partners))

    class Statistics(AggregateFnV2):  # type: ignore[type-arg]
        """Sums of the rows of a block, which merge."""

        def __init__(self) -> None:
            super().__init__("statistics", zero_factory=lambda: b"", on=None, ignore_nulls=False)

        def aggregate_block(self, block: Any) -> bytes:
            target, known = ray.get(shared)
            statistics = SplitStatistics(target, partners=known, keep_partners=keep_partners)
            table = BlockAccessor.for_block(block).to_arrow()
            for batch in table.to_batches(PART_ROWS):
                for start in range(0, batch.num_rows, PART_ROWS):
                    statistics.add(from_batch(batch.slice(start, PART_ROWS)))
            return _sums(statistics)

        def combine(self, current_accumulator: bytes, new: bytes) -> bytes:
            if not current_accumulator or not new:
                return current_accumulator or new
            return _sums(pickle.loads(current_accumulator).merge(pickle.loads(new)))

    return Statistics()


def _sums(statistics: SplitStatistics) -> bytes:
    return pickle.dumps(statistics.bare(), protocol=5)


# Shifts


def shift_chunks(rows: datasets.Dataset, suite: Suite, destination: Path, todo: Sequence[int]) -> Iterator[int]:
    """Shift the chunks that begin at the given rows; yields the number of rows of each as it is done."""
    import ray.data

    if not todo:
        return
    items = [{"start": start} for start in todo]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Shifter,
        batch_size=1,
        fn_constructor_args=(rows, suite, destination),
        **(_workers() | {"num_gpus": 0, "num_cpus": 1}),
    )
    for row in done.iter_rows():
        yield int(row["rows"])


class _Shifter:
    """An actor that shifts chunks of a suite."""

    def __init__(self, rows: datasets.Dataset, suite: Suite, destination: Path) -> None:
        import cv2

        cv2.setNumThreads(1)
        self.work = rows, suite, destination

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from lmms_eval_emi.shifts.writer.workers import shift_chunk

        return {"rows": [shift_chunk(*self.work, int(start)) for start in batch["start"]]}
