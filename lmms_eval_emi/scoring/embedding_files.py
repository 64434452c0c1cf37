"""Embeddings in parquet files: read a part at a time, so that a split may be larger than memory.

A split is ``{split}.parquet``, or a folder ``{split}/`` of parquet files; or all splits are one parquet file with a
column ``split``. Columns ``v``, ``t``, ``y_hat`` and ``y`` hold lists of numbers (no ``v`` for text alone); ``id``,
``reference`` and ``group`` are optional. ``embeddings.json`` beside them may say which encoders made them and whose
responses they are of. docs/scale.md has the lines that write such files from ``.npy`` or ``.safetensors``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.data.rows import row_key
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.errors import InputError, ResultsError
from lmms_eval_emi.util.files import read_json, to_json, write_atomically

FORMAT_VERSION = 1
DESCRIPTION = "embeddings.json"
MATRICES = ("v", "t", "y_hat", "y")
PART_ROWS = 2048  # rows that are read, or written, at a time: 25 MB of 768 dimensions


@dataclass(frozen=True)
class SplitFiles:
    """The embeddings of a split, in parquet files."""

    name: str  # name of the split
    n: int  # number of rows
    files: tuple[Path, ...]  # files that hold them
    encoders: str | None = None  # encoders that made them, if that is known
    shared: bool = False  # whether the files hold several splits, named by the column ``split``

    def load(self) -> Embeddings:
        """Read all rows at once."""
        return concatenate(list(self.parts(0, self.n)))

    def parts(self, start: int, stop: int) -> Iterator[Embeddings]:
        """Yield the rows from ``start`` to ``stop``, a part at a time."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        place = 0
        for path in self.files:
            with pq.ParquetFile(path) as file:
                if not self.shared and (place + file.metadata.num_rows <= start or place >= stop):
                    place += file.metadata.num_rows
                    continue
                present = file.schema_arrow.names
                columns = [name for name in (*MATRICES, "id", "reference", "group", "split") if name in present]
                for batch in file.iter_batches(PART_ROWS, columns=columns):
                    if self.shared:
                        batch = batch.filter(pc.equal(batch["split"], self.name))
                    first, last = max(start - place, 0), min(stop - place, batch.num_rows)
                    place += batch.num_rows
                    if first < last:
                        yield from_batch(batch.slice(first, last - first), self.encoders)


@dataclass(frozen=True)
class StoredEmbeddings:
    """Embeddings by split, in files."""

    path: Path  # path of the file or folder
    splits: Mapping[str, SplitFiles]  # splits by name
    encoders: str | None  # encoders that made them, as signatures name them; ``None`` if that is not known
    model: str  # model whose responses they are of


def open_embeddings(path: Path, study: Study) -> StoredEmbeddings:
    """Open the splits of a study that a file or folder has.

    Raises:
        ResultsError: there are no embeddings, or a file cannot be read.
    """
    if not path.exists():
        raise ResultsError(f"{path}: expected a parquet file or a folder of them, which is not there.")
    about: dict[str, Any] = {}
    beside = (path if path.is_dir() else path.parent) / DESCRIPTION
    if beside.is_file():
        try:
            about = read_json(beside)
            if not isinstance(about, dict) or about.get("format_version", 1) not in (1,):
                raise InputError(f"expected an object of format_version {FORMAT_VERSION}")
        except (OSError, InputError) as error:
            raise ResultsError(f"{beside}: {error}") from error
    try:
        opened = {name: _open_split(path, name, about.get("encoders")) for name in study.splits}
    except (OSError, ValueError) as error:  # pyarrow's errors are either
        raise ResultsError(f"{path}: its embeddings cannot be read: {error}") from error
    found = {name: split for name, split in opened.items() if split}
    if not found:
        present = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) if path.is_dir() else "none of them"
        raise ResultsError(
            f"{path}: expected embeddings of splits of {study.name} as parquet, such as {study.id_split}.parquet; found {present or 'nothing'}. docs/scale.md says how to make parquet of .npy or .safetensors."
        )
    return StoredEmbeddings(path, found, about.get("encoders"), str(about.get("model") or path.stem))


def _open_split(path: Path, name: str, encoders: str | None) -> SplitFiles | None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if path.is_file():
        if path.suffix != ".parquet":
            raise InputError(f"expected .parquet, got {path.suffix or 'no suffix'}")
        with pq.ParquetFile(path) as file:
            if "split" not in file.schema_arrow.names:
                raise InputError("expected a column split")
            batches = file.iter_batches(columns=["split"])
            n = sum(int(pc.sum(pc.equal(batch["split"], name)).as_py() or 0) for batch in batches)
        return SplitFiles(name, n, (path,), encoders, shared=True) if n else None
    single = path / f"{name}.parquet"
    files = (single,) if single.is_file() else tuple(sorted((path / name).rglob("*.parquet")))
    n = sum(pq.read_metadata(file).num_rows for file in files)
    return SplitFiles(name, n, files, encoders) if n else None


def write_embeddings(folder: Path, embeddings: Mapping[str, Embeddings], *, model: str, studies: Sequence[str]) -> None:
    """Write embeddings as parquet files, each all or nothing, with their description.

    Args:
        folder: folder to write to.
        embeddings: embeddings by split.
        model: model whose responses they are of.
        studies: studies that the splits are of.
    """
    for name, split in embeddings.items():
        write_atomically(folder / f"{name}.parquet", to_parquet(split), durable=False)
    encoders = next((split.encoders for split in embeddings.values()), None)
    describe_embeddings(folder, encoders=encoders, model=model, studies=studies)


def describe_embeddings(folder: Path, *, encoders: str | None, model: str, studies: Sequence[str]) -> None:
    """Write beside embeddings what made them; see :func:`write_embeddings`."""
    about = {"format_version": FORMAT_VERSION, "encoders": encoders, "model": model, "studies": list(studies)}
    write_atomically(folder / DESCRIPTION, to_json(about))


def to_parquet(split: Embeddings) -> bytes:
    """Return a split as the content of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    # Embeddings do not compress.
    pq.write_table(to_table(split), sink, row_group_size=PART_ROWS, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def to_table(split: Embeddings) -> Any:
    """Return a split as an Arrow table."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in MATRICES:
        matrix = getattr(split, name)
        if matrix is not None:
            values = matrix.float().cpu().contiguous().numpy()
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    if split.ids is not None:
        pairs = [key if isinstance(key, tuple) and len(key) == 2 else (key, None) for key in split.ids]
        columns["id"] = pa.array([str(first) for first, _ in pairs])
        if any(second is not None for _, second in pairs):
            columns["reference"] = pa.array([None if second is None else str(second) for _, second in pairs])
    if split.groups is not None:
        columns["group"] = pa.array([str(group) for group in split.groups])
    return pa.table(columns)


def from_batch(batch: Any, encoders: str | None = None) -> Embeddings:
    """Return the embeddings of an Arrow batch with the columns of :func:`to_table`.

    Raises:
        InputError: a column is missing or holds lists of unequal length, or as :class:`~lmms_eval_emi.Embeddings`.
    """
    matrices: dict[str, torch.Tensor] = {}
    for name in MATRICES:
        if name in batch.schema.names:
            column = batch[name]
            lists = getattr(column, "storage", column)  # Ray Data makes tensor types of lists
            values = lists.flatten().to_numpy(zero_copy_only=False)
            if len(values) % len(column) or column.null_count:
                raise InputError(f"{name}: expected lists of one length and no nulls")
            matrix = values.reshape(len(column), -1)
            matrices[name] = torch.from_numpy(matrix.copy() if matrix.dtype.kind == "f" else matrix.astype(np.float32))
    lacking = [name for name in MATRICES[1:] if name not in matrices]
    if lacking:
        raise InputError(f"expected {', '.join(MATRICES)}, of which {', '.join(lacking)} are missing")
    ids, references, groups = (
        batch[name].to_pylist() if name in batch.schema.names else None for name in ("id", "reference", "group")
    )
    if ids is not None and references is not None:
        ids = [row_key(row_id, reference) for row_id, reference in zip(ids, references, strict=True)]
    return Embeddings(
        v=matrices.get("v"),
        t=matrices["t"],
        y_hat=matrices["y_hat"],
        y=matrices["y"],
        ids=ids,
        groups=groups,
        encoders=encoders,
    )


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """Return the rows of several parts as one."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if any(value is None for value in values):
            return None
        return torch.cat(values) if isinstance(values[0], torch.Tensor) else [row for value in values for row in value]

    return Embeddings(**{name: joined(name) for name in (*MATRICES, "ids", "groups")}, encoders=parts[0].encoders)
