"""Embeddings in files: read a part at a time, so that a split may be larger than memory, and written as parquet.

A store is a folder with an entry for each split, or one file of several splits:

- ``{split}.parquet``, or a folder ``{split}/`` of parquet files: columns ``v``, ``t``, ``y_hat`` and ``y`` of lists of
  numbers (no ``v`` for text alone), and where there are any ``id``, ``reference`` and ``group``;
- a folder ``{split}/`` of ``v.npy``, ``t.npy``, ``y_hat.npy``, ``y.npy`` and where there are any ``ids.npy`` and
  ``groups.npy``;
- ``{split}.safetensors`` with these names as tensors;
- one parquet file with a column ``split`` beside them, or one safetensors file with tensors ``{split}.v`` and so on.

``embeddings.json`` beside them may say which encoders made them and whose responses they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.encoders.checkpoint import TensorInFile, tensors_of_safetensors
from lmms_eval_emi.util.files import read_json, to_json, write_atomically
from lmms_eval_emi.data.study import Study

FORMAT_VERSION = 1
DESCRIPTION = "embeddings.json"
MATRICES = ("v", "t", "y_hat", "y")
PART = 2048  # rows that are read at a time: 25 MB of 768 dimensions, and as much again for each copy in float64
ROW_GROUP = 2048  # rows of a parquet file that are written at a time


class StoreError(ValueError):
    """A store of embeddings is not there or cannot be read; the message says what was expected."""


@dataclass(frozen=True)
class SplitStore:
    """The embeddings of a split, in a file.

    Attributes:
        name: of the split.
        n: number of rows.
        parts: gives the rows from one to another, a part at a time.
        files: parquet files that hold these rows and no others; empty for others.
        encoders: that made them, where that is known.
    """

    name: str
    n: int
    parts: Callable[[int, int], Iterator[Embeddings]] = field(repr=False)
    files: tuple[Path, ...] = ()
    encoders: str | None = None

    def load(self) -> Embeddings:
        """All rows at once."""
        return concatenated(list(self.parts(0, self.n)))


@dataclass(frozen=True)
class Store:
    """Embeddings by split.

    Attributes:
        path: of the file or folder.
        splits: by name.
        encoders: that made them, as signatures name them; ``None`` where that is not known.
        model: whose responses they are of.
    """

    path: Path
    splits: Mapping[str, SplitStore]
    encoders: str | None
    model: str


def open_store(path: Path, study: Study) -> Store:
    """The splits of a study that a store has.

    Raises:
        StoreError: there is none, or a file of it cannot be read.
    """
    if not path.exists():
        raise StoreError(f"{path}: expected a file or folder of embeddings, which is not there.")
    about: dict[str, Any] = {}
    beside = (path if path.is_dir() else path.parent) / DESCRIPTION
    if beside.is_file():
        try:
            about = read_json(beside)
            if not isinstance(about, dict) or about.get("format_version", 1) not in (1,):
                raise ValueError(f"expected an object of format_version {FORMAT_VERSION}")
        except (OSError, ValueError) as error:
            raise StoreError(f"{beside}: {error}") from error
    encoders = about.get("encoders")
    try:
        opened = {name: _open(path, name, encoders) for name in study.splits}
        found = {
            name: SplitStore(name, *one, files=_files(path, name), encoders=encoders)
            for name, one in opened.items()
            if one
        }
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: its embeddings cannot be read: {error}") from error
    if not found:
        raise StoreError(
            f"{path}: expected embeddings of splits of {study.name}, such as {study.id_split}.parquet or a folder {study.id_split}/ with t.npy; found {(', '.join(sorted(one.name for one in path.iterdir())[:5]) or 'nothing') if path.is_dir() else 'none of them'}."
        )
    return Store(path, found, encoders, str(about.get("model") or path.stem))


def write_store(folder: Path, embeddings: Mapping[str, Embeddings], *, model: str, studies: Sequence[str]) -> None:
    """Write embeddings as a store of parquet files, each all or nothing.

    Args:
        folder: of the store.
        embeddings: by split.
        model: whose responses they are of.
        studies: that the splits are of.
    """
    for name, split in embeddings.items():
        write_atomically(folder / f"{name}.parquet", to_parquet(split), durable=False)
    encoders = next((split.encoders for split in embeddings.values()), None)
    describe_store(folder, encoders=encoders, model=model, studies=studies)


def describe_store(folder: Path, *, encoders: str | None, model: str, studies: Sequence[str]) -> None:
    """Write beside the embeddings what made them; see :func:`write_store`."""
    about = {"format_version": FORMAT_VERSION, "encoders": encoders, "model": model, "studies": list(studies)}
    write_atomically(folder / DESCRIPTION, to_json(about))


def to_parquet(split: Embeddings) -> bytes:
    """A split as the content of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    # Numbers of embeddings have nothing to compress.
    pq.write_table(to_table(split), sink, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def to_table(split: Embeddings) -> Any:
    """A split as an Arrow table."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in MATRICES:
        matrix = getattr(split, name)
        if matrix is not None:
            values = matrix.float().cpu().contiguous().numpy()
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    if split.ids is not None:
        pairs = [one if isinstance(one, tuple) and len(one) == 2 else (one, None) for one in split.ids]
        columns["id"] = pa.array([str(first) for first, _ in pairs])
        if any(second is not None for _, second in pairs):
            columns["reference"] = pa.array([None if second is None else str(second) for _, second in pairs])
    if split.groups is not None:
        columns["group"] = pa.array([str(one) for one in split.groups])
    return pa.table(columns)


def from_columns(columns: Mapping[str, Any], encoders: str | None = None) -> Embeddings:
    """Embeddings of named columns: matrices, and ``id``, ``reference`` and ``group`` where there are any.

    Raises:
        ValueError: as :class:`~lmms_eval_emi.Embeddings`.
    """
    ids = columns.get("id")
    if ids is not None and columns.get("reference") is not None:
        ids = list(zip(map(str, ids), columns["reference"], strict=True))
    matrices = {name: torch.from_numpy(np.asarray(columns[name])) for name in MATRICES if columns.get(name) is not None}
    lacking = [name for name in MATRICES[1:] if name not in matrices]
    if lacking:
        raise ValueError(f"expected {', '.join(MATRICES)}, of which {', '.join(lacking)} are missing")
    return Embeddings(
        v=matrices.get("v"),
        t=matrices["t"],
        y_hat=matrices["y_hat"],
        y=matrices["y"],
        ids=list(ids) if ids is not None else None,
        groups=list(columns["group"]) if columns.get("group") is not None else None,
        encoders=encoders,
    )


def concatenated(parts: Sequence[Embeddings]) -> Embeddings:
    """The rows of several parts as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if any(value is None for value in values):
            return None
        return torch.cat(values) if isinstance(values[0], torch.Tensor) else [one for own in values for one in own]

    return Embeddings(**{name: joined(name) for name in (*MATRICES, "ids", "groups")}, encoders=first.encoders)


Opened = tuple[int, Callable[[int, int], Iterator[Embeddings]]]


def _open(path: Path, name: str, encoders: str | None) -> Opened | None:
    if path.is_file():
        if path.suffix == ".parquet":
            return _parquet([path], encoders, name)
        if path.suffix == ".safetensors":
            return _tensors(path, f"{name}.", encoders)
        raise ValueError(f"expected .parquet or .safetensors, got {path.suffix or 'no suffix'}")
    if (path / f"{name}.parquet").is_file():
        return _parquet([path / f"{name}.parquet"], encoders)
    if (path / f"{name}.safetensors").is_file():
        return _tensors(path / f"{name}.safetensors", "", encoders)
    own = path / name
    if not own.is_dir():
        return None
    if (own / "t.npy").is_file():
        return _arrays(own, encoders)
    files = sorted(own.rglob("*.parquet"))
    return _parquet(files, encoders) if files else None


def _files(path: Path, name: str) -> tuple[Path, ...]:
    """Parquet files of one split alone."""
    if path.is_file():
        return ()
    single = path / f"{name}.parquet"
    return (single,) if single.is_file() else tuple(sorted((path / name).rglob("*.parquet")))


def _parquet(files: Sequence[Path], encoders: str | None, split: str | None = None) -> Opened | None:
    import pyarrow.parquet as pq

    opened = []
    for file in files:
        try:
            opened.append(pq.ParquetFile(file, pre_buffer=False))  # which would keep all that was read
        except (OSError, ValueError) as error:
            raise ValueError(f"{file.name}: {error}") from error
    if split is None:
        sizes = [one.metadata.num_rows for one in opened]
        total = sum(sizes)
    else:
        import pyarrow.compute as pc

        if "split" not in opened[0].schema_arrow.names:
            raise ValueError(f"{files[0]}: expected a column split")
        total = sum(int(pc.sum(pc.equal(batch["split"], split)).as_py() or 0) for one in opened for batch in one.iter_batches(columns=["split"]))  # fmt: skip
        sizes = []
    if not total:
        return None

    def parts(start: int, stop: int) -> Iterator[Embeddings]:
        place = 0
        for number, file in enumerate(opened):
            if split is None and (place + sizes[number] <= start or place >= stop):
                place += sizes[number]
                continue
            names = [one for one in (*MATRICES, "id", "reference", "group") if one in file.schema_arrow.names]
            for batch in file.iter_batches(PART, columns=[*names, *(["split"] if split else [])]):
                if split is not None:
                    batch = batch.filter(pc.equal(batch["split"], split))
                first, last = max(start - place, 0), min(stop - place, batch.num_rows)
                place += batch.num_rows
                if first < last:
                    yield from_batch(batch.slice(first, last - first), encoders)

    return total, parts


def from_batch(batch: Any, encoders: str | None = None) -> Embeddings:
    """Embeddings of an Arrow batch with the columns of a store.

    Raises:
        ValueError: as :func:`from_columns`, or lists of unequal length.
    """
    return from_columns(_batch_to_columns(batch), encoders)


def _batch_to_columns(batch: Any) -> dict[str, Any]:
    """The columns of an Arrow batch, lists of numbers as matrices.

    Raises:
        ValueError: lists of unequal length.
    """
    columns: dict[str, Any] = {}
    for name in batch.schema.names:
        column = batch[name]
        if name in MATRICES:
            lists = getattr(column, "storage", column)  # of a tensor type, as Ray Data makes of lists
            values = lists.flatten().to_numpy(zero_copy_only=False)
            if len(values) % len(column) or column.null_count:
                raise ValueError(f"{name}: expected lists of one length and no nulls")
            matrix = values.reshape(len(column), -1)
            columns[name] = matrix.copy() if matrix.dtype.kind == "f" else matrix.astype(np.float32)
        elif name != "split":
            columns[name] = column.to_pylist()
    return columns


def _arrays(folder: Path, encoders: str | None) -> Opened:
    arrays = {name: _Rows.of_npy(folder / f"{name}.npy") for name in MATRICES if (folder / f"{name}.npy").is_file()}
    beside = {
        key: np.load(folder / f"{file}.npy", allow_pickle=False)
        for key, file in (("id", "ids"), ("group", "groups"))
        if (folder / f"{file}.npy").is_file()
    }
    return _by_rows(arrays, beside, encoders)


def _tensors(path: Path, prefix: str, encoders: str | None) -> Opened | None:
    tensors = tensors_of_safetensors(path)
    arrays = {name: _Rows.of_tensor(tensors[prefix + name]) for name in MATRICES if prefix + name in tensors}
    beside = {
        key: tensors[prefix + name].read_as(np.int64)
        for key, name in (("id", "ids"), ("group", "groups"))
        if prefix + name in tensors
    }
    return _by_rows(arrays, beside, encoders) if arrays else None


def _by_rows(arrays: Mapping[str, _Rows], beside: Mapping[str, np.ndarray], encoders: str | None) -> Opened:
    sizes = {name: one.n for name, one in arrays.items()} | {name: len(one) for name, one in beside.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"expected as many rows in all, got {sizes}")

    def parts(start: int, stop: int) -> Iterator[Embeddings]:
        for first in range(start, stop, PART):
            last = min(first + PART, stop)
            columns: dict[str, Any] = {name: one.read(first, last) for name, one in arrays.items()}
            columns |= {name: one[first:last].tolist() for name, one in beside.items()}
            yield from_columns(columns, encoders)

    return next(iter(sizes.values())), parts


@dataclass(frozen=True)
class _Rows:
    """The rows of a matrix in a file, of which those that are read are in memory and no others."""

    path: Path
    begin: int
    dtype: np.dtype
    n: int
    columns: int

    @classmethod
    def of_npy(cls, path: Path) -> _Rows:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if (
            not isinstance(array, np.memmap)
            or array.ndim != 2
            or not array.flags.c_contiguous
            or array.dtype.kind != "f"
        ):
            raise ValueError(f"{path}: expected a matrix of floating-point numbers, a row after another")
        return cls(path, int(array.offset), array.dtype, *array.shape)

    @classmethod
    def of_tensor(cls, tensor: TensorInFile) -> _Rows:
        kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
        if tensor.kind not in kinds or len(tensor.shape) != 2:
            raise ValueError(
                f"{tensor.path}: expected matrices of {', '.join(kinds)}, got {tensor.kind} of shape {tensor.shape}"
            )
        return cls(tensor.path, tensor.begin, np.dtype(kinds[tensor.kind]), *tensor.shape)

    def read(self, first: int, last: int) -> np.ndarray:
        count = (last - first) * self.columns
        found = np.fromfile(
            self.path, self.dtype, count, offset=self.begin + first * self.columns * self.dtype.itemsize
        )
        if len(found) != count:
            raise ValueError(f"{self.path} is cut off")
        return found.reshape(-1, self.columns)
