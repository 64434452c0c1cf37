"""Samples, and the rows they come from: of a study's splits and of any dataset, from the hub, its cache, folders or files."""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lmms_eval_emi.data.images import DatasetImage, ImageSource
from lmms_eval_emi.data.study import Columns, DatasetSpec, SplitSpec, Study
from lmms_eval_emi.data.tables import TEXT_FORMATS, read_table
from lmms_eval_emi.errors import MissingDatasetError, SampleError, StudyError
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.util.files import check_folder_writable, content_hexdigest, encodable
from lmms_eval_emi.util.hub import go_offline_unless_reachable
from lmms_eval_emi.util.printing import one_line

if TYPE_CHECKING:
    import datasets

BYTE_ORDER_MARK = "\ufeff"
WHOLE_NUMBER = re.compile(r"-?\d+\.0+")
RowKey = tuple[str, str]  # return type of row_key
HUB_NAME_PARTS = 2
FILE_SPLIT = "train"  # split name that datasets gives the rows of a file
SAVED = "dataset_dict.json"  # file that marks a folder of save_to_disk with several splits
SAVED_ALONE = "state.json"  # file that marks a folder with a single, unnamed split
FILE_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One row of a split.

    Args:
        image: a Pillow image, encoded bytes, a path, or a cell of a dataset; ``None`` for text alone.
        question: as the model was asked, without any instruction about its response.
        response: response of the model.
        reference: what the response is compared with.
        id: identifies the row in its split.
        row: number of the row in its split, where it comes from a dataset.
        translation: the reference in the language of the response, where that is another one.

    Raises:
        SampleError: a field has another type.
    """

    image: ImageSource | None
    question: str
    response: str
    reference: str
    id: Any = None
    row: int | None = None
    translation: str | None = None

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

    @property
    def key(self) -> RowKey:
        """Tells the row from all others of a study, and is the same for its shifted twins; see :func:`row_key`."""
        return row_key(self.id, self.reference)


def id_text(row_id: object) -> str:
    """Return a row's id as text; 3, "3", "3 ", 3.0 and "3.0", which pandas makes of it, are one, and so are Unicode's forms."""
    if isinstance(row_id, bytes):
        row_id = row_id.decode("utf-8", "replace")
    if isinstance(row_id, str):
        row_id = unicodedata.normalize("NFC", row_id).strip()
    if isinstance(row_id, float | np.floating) and float(row_id).is_integer():
        return str(int(row_id))
    if isinstance(row_id, str) and WHOLE_NUMBER.fullmatch(row_id):
        return row_id.partition(".")[0]
    return f"{row_id:d}" if type(row_id) is int and abs(row_id) < 10**1000 else str(row_id)


def row_key(row_id: object, reference: object) -> RowKey:
    """Return the key that a row shares with its shifted copies and with no other row: id and reference.

    Ids alone do not tell rows apart: question 7 of one image set is not question 7 of another. Space, line ends and
    Unicode forms, which programs change when they write a file, do not count.
    """
    return id_text(row_id), " ".join(unicodedata.normalize("NFC", str(reference)).strip(BYTE_ORDER_MARK).split())


def without_images(splits: Mapping[Any, Sequence[Sample]]) -> bool:
    """Return whether the samples of all splits are text alone."""
    return all(sample.image is None for samples in splits.values() for sample in samples)


def load_stored_splits(
    study: Study, names: Iterable[str] | None = None, images: Path | None = None
) -> dict[str, datasets.Dataset]:
    """Load the rows of a study's splits as their datasets hold them.

    Args:
        study: study whose splits.
        names: names of the splits; default: all.
        images: another folder that the study may name, as the setting ``images``.

    Returns:
        Rows by split. A dataset that several splits share is loaded once.

    Raises:
        StudyError: a dataset is not there, lies outside the study's folder, or lacks a split or columns.
    """
    loaded: dict[tuple[str, str | None], Any] = {}
    rows = {}
    for name in names or study.splits:
        split = study.split(name)
        spec = split.dataset
        key = (spec.path, spec.config)
        if key not in loaded:
            if (local := study.local_path(spec)) is not None:
                check_place(study, local, images)
            loaded[key] = _load(spec, local, f"The dataset {spec.path!r} of the study {study.name}")
        dataset_split = split_of_dataset(study, split)
        if dataset_split not in loaded[key]:
            raise StudyError(
                f"{spec.path}: expected the split {dataset_split}, which is missing; it has {', '.join(loaded[key])}. Name another one under dataset: split: in the study file."
            )
        check_columns(loaded[key][dataset_split], spec.columns, f"{spec.path}, split {dataset_split}")
        rows[name] = loaded[key][dataset_split]
    return rows


def check_place(study: Study, path: Path, images: Path | None) -> Path:
    """Return a path that a study file names, if it lies in a folder that the file may name.

    A study file may be a stranger's, also in a folder of the caller's own, such as a clone. By itself it names its own
    folder, the current folder if it lies below it, and copies of a hub's datasets below the current folder.

    Args:
        study: study with the path.
        path: file or folder.
        images: another folder that the user allows, as the setting ``images``.

    Raises:
        StudyError: the path lies elsewhere.
    """
    allowed = _own_folders(study, images)
    if study.is_trusted or _is_hub_folder(path) or any(path.resolve().is_relative_to(folder) for folder in allowed):
        return path
    raise StudyError(
        f"{study.source} names {one_line(str(path), 200)}, which lies outside its folder ({' or '.join(map(str, allowed))}). "
        f"If that is what you want, allow the folder: --images {one_line(str(path.resolve().parent), 200)}, or export LMMS_EVAL_EMI_IMAGES."
    )


def _is_hub_folder(path: Path) -> bool:
    """Return whether a path is a copy of a hub's dataset, ``OWNER/NAME``, below the current folder."""
    return path.is_dir() and not path.is_absolute() and len(path.parts) == HUB_NAME_PARTS and ".." not in path.parts


def _own_folders(study: Study, images: Path | None) -> list[Path]:
    of_study, here = study.folder.resolve(), Path().resolve()
    folders = [of_study, *([here] if of_study.is_relative_to(here) else []), *([images.resolve()] if images else [])]
    return list(dict.fromkeys(folders))


def split_of_dataset(study: Study, split: SplitSpec) -> str:
    """Return the name of the dataset's split that contains a split's rows; a file has one only."""
    path = study.local_path(split.dataset)
    return FILE_SPLIT if path is not None and path.is_file() else split.dataset_split


def load_dataset_arguments(spec: DatasetSpec, path: Path | None) -> dict[str, Any]:
    """Return the arguments of ``datasets.load_dataset`` for a dataset at a local path, or of a hub.

    Raises:
        StudyError: a file of an unknown format.
    """
    if path is not None and path.is_file():
        if path.suffix not in FILE_FORMATS:
            raise StudyError(
                f"{path}: expected a dataset folder or a file of {', '.join(FILE_FORMATS)}, got {path.suffix or 'no suffix'}."
            )
        return {"path": FILE_FORMATS[path.suffix], "data_files": {FILE_SPLIT: str(path)}}
    # A folder below the current one is found by its name, which keeps caches and logs the same everywhere.
    use_name = path is None or path == Path(spec.path)
    return {"path": spec.path if use_name else str(path), **({"name": spec.config} if spec.config else {})}


def is_saved(folder: Path) -> bool:
    """Return whether a folder is one of ``save_to_disk``, which only ``load_from_disk`` reads rightly."""
    return any((folder / name).is_file() for name in (SAVED, SAVED_ALONE))


def load_source(path: str, config: str | None = None) -> Mapping[str, datasets.Dataset]:
    """Return the splits of any dataset: a hub name, a folder (``save_to_disk``'s too) or a file.

    Raises:
        StudyError: the dataset is missing or cannot be read.
    """
    folder = Path(path).expanduser()
    local = folder if folder.exists() else None
    if local is None and folder.suffix in FILE_FORMATS:
        raise StudyError(f"The dataset {path!r} is not there: expected a file at {folder.resolve()}.")
    spec = DatasetSpec(path=path, config=config)
    return _load(spec, local, f"The dataset {path!r}")


def source_roots(path: str, images: Path | None = None) -> tuple[Path, ...]:
    """Return the folders in which images of a dataset given by path or name may lie; see :func:`image_roots`."""
    local = Path(path).expanduser()
    folder = local.resolve().parent if local.is_file() else local.resolve() if local.is_dir() else None
    return _roots([folder, images], from_hub=folder is None)


def image_roots(study: Study, spec: DatasetSpec, images: Path | None = None) -> tuple[Path, ...]:
    """Return the folders that image paths of a dataset are relative to, and must lie in.

    These are the folder of the dataset, the folder of the study file, one that the study names under ``dataset:
    images:`` (see :func:`check_place`), the caches of a dataset from the hub, and a folder that the user allows.

    Args:
        study: study with the dataset.
        spec: specification of the dataset.
        images: the folder that the user allows, as the setting ``images``.
    """
    local = study.local_path(spec)
    local_folder = None if local is None else local.resolve().parent if local.is_file() else local.resolve()
    base = study.folder.resolve() if str(study.folder) not in ("", ".") else None
    named = (study.folder / spec.images).resolve() if spec.images else None
    if (
        named is not None
        and not study.is_trusted
        and not any(named.is_relative_to(folder) for folder in _own_folders(study, images))
    ):
        named = None
    return _roots([local_folder, named, base, images], from_hub=local_folder is None)


def _roots(folders: Iterable[Path | None], *, from_hub: bool) -> tuple[Path, ...]:
    found = [folder for folder in folders if folder is not None]
    if from_hub:
        import datasets
        from huggingface_hub import constants

        caches = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
        found[:0] = [Path(cache) for cache in caches]
    return tuple(dict.fromkeys(folder.resolve() for folder in found))


def _load(spec: DatasetSpec, local: Path | None, label: str) -> Mapping[str, datasets.Dataset]:
    import datasets

    if local is not None and local.is_file() and local.suffix in TEXT_FORMATS:
        return {FILE_SPLIT: read_table(local)}
    arguments = load_dataset_arguments(spec, local)
    try:
        with _quiet(bars=local is None):
            if local and is_saved(local):
                saved = datasets.load_from_disk(str(local))
                return saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or FILE_SPLIT): saved}
            # As load_dataset does, with the files of a local folder listed once. What the builder knows of an earlier
            # folder of that name is in the cache that it would have by itself.
            if local is None:
                go_offline_unless_reachable()
            # Rows of local files are kept in a folder of ours, and all where the cache of datasets cannot be written.
            ours = Path(datasets.config.HF_DATASETS_CACHE) / "lmms_eval_emi" if local else None
            fresh_cache = other_cache() or ours
            builder = datasets.load_dataset_builder(**arguments, cache_dir=str(fresh_cache) if fresh_cache else None)
            builder.download_and_prepare(output_dir=str(fresh_cache / _key_of_files(builder)) if fresh_cache else None)
            return builder.as_dataset()
    except Exception as error:  # datasets raises a dozen kinds, the hub's among them
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        try:
            check_folder_writable(cache)
        except OSError as problem:
            raise StudyError(
                f"The cache of datasets cannot be written, so {label[0].lower()}{label[1:]} cannot be loaded: {problem}\nPoint to a folder that can: export HF_DATASETS_CACHE=/path/to/folder"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if local or Path(spec.path).suffix in FILE_FORMATS:
            cause = f": {str(error.__cause__).splitlines()[0]}" if error.__cause__ else ""
            raise StudyError(
                f"{label} cannot be read: {reason}{cause}\nPaths are relative to the study file, or to the current folder."
            ) from error
        raise MissingDatasetError(
            f"{label} cannot be loaded: {reason}\n"
            f"Fetch it on a machine with a connection:\n  hf download --repo-type dataset {spec.path}\n"
            f"then copy the Hugging Face cache here, or have a folder {spec.path}/ below the current one."
        ) from error


def other_cache() -> Path | None:
    """Return a cache folder of ours where the one of datasets cannot be written, such as a shared one."""
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        if not cache.is_absolute():
            raise OSError("it is below a home folder that nobody has")
        check_folder_writable(cache)
    except OSError:
        return load_settings().cache / "datasets"
    return None


@contextlib.contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Keep messages of datasets from the user, and its bars where there is nothing to fetch; as before afterwards."""
    import datasets

    level, shown = datasets.logging.get_verbosity(), datasets.utils.logging.is_progress_bar_enabled()
    datasets.logging.set_verbosity_error()
    if not bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def _key_of_files(builder: datasets.DatasetBuilder) -> str:
    """Return the name of a cache folder for just these local files, as they are now.

    The key of datasets' own cache knows a local folder's name but neither its place nor its files,
    so that another folder of that name, or a changed file, would be answered with the old rows.
    """
    files = {
        split: (list(paths), list(paths.origin_metadata)) for split, paths in (builder.config.data_files or {}).items()
    }
    return content_hexdigest(repr([builder.cache_dir, files]))[:16]


def stale_cache(path: str, split: datasets.Dataset) -> Path | None:
    """Return the cache folder from which datasets read stale rows instead of a local folder's files, or ``None``.

    A harness that loads datasets itself does so through that cache; see :func:`_key_of_files`.
    """
    if not Path(path).is_dir() or is_saved(Path(path)):
        return None
    size, cache = _size_and_cache(path)
    return cache if split.info.download_size not in (None, size) else None


@lru_cache(maxsize=64)
def _size_and_cache(path: str) -> tuple[int, Path]:
    import datasets

    cache = other_cache()
    builder = datasets.load_dataset_builder(path, cache_dir=str(cache) if cache else None)
    files = {file for paths in (builder.config.data_files or {}).values() for file in paths}
    return sum(Path(file).stat().st_size for file in files), Path(builder.cache_dir)


def check_columns(split: datasets.Dataset, columns: Columns, label: str) -> None:
    """Raise ``StudyError`` unless a split has the columns that its study names."""
    wanted = {columns.id, columns.question, columns.reference, columns.image, columns.translation} - {None}
    missing = sorted(str(name) for name in wanted - set(split.column_names))
    if missing:
        raise StudyError(
            f"{label}: expected the columns {', '.join(missing)}, which are missing; it has {', '.join(split.column_names)}. Name them under dataset: columns: in the study file (image: null for text alone)."
        )


def to_samples(
    split: datasets.Dataset,
    columns: Columns,
    responses: Mapping[int, str],
    roots: tuple[Path, ...] = (),
    problems: dict[int, str] | None = None,
) -> list[Sample]:
    """Return samples of the rows that have a response, in the dataset's order.

    Args:
        split: one split of the dataset; its images may be decoded or not.
        columns: columns of the dataset.
        responses: response by row number.
        roots: folders that paths of images are relative to; see :func:`image_roots`.
        problems: takes the reason by row number of rows that cannot be used; without it they raise.

    Raises:
        SampleError: a question or reference is not a text.
    """
    images = dataset_images(split, columns.image, roots) if columns.image else [None] * len(split)
    ids, questions, references = (
        column_values(split, name) for name in (columns.id, columns.question, columns.reference)
    )
    translations = column_values(split, columns.translation) if columns.translation else [None] * len(split)
    samples = []
    for row in range(len(split)):
        if row not in responses:
            continue
        try:
            samples.append(
                Sample(
                    image=images[row],
                    question=_text_of_cell(questions[row]),
                    response=responses[row],
                    reference=_text_of_cell(references[row]),
                    id=ids[row],
                    row=row,
                    translation=translations[row] or None,
                )
            )
        except SampleError as error:
            if problems is None:
                raise
            problems[row] = str(error)
    return samples


def _text_of_cell(value: Any) -> Any:
    """Return a number as it is written, for a question or reference may be one; anything else unchanged."""
    return json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def dataset_images(split: datasets.Dataset, column: str, roots: tuple[Path, ...]) -> list[DatasetImage | None]:
    """Return the images of all rows, still in the dataset and encoded; ``None`` where a row has none."""
    if split._indices is None:
        cells: Any = _Cells(split.data.column(column), column)
        missing = cells.values.is_null().to_pylist()
    else:
        cells = undecoded(split, column).select_columns([column])
        missing = [image is None for image in cells[column]]
    return [None if absent else DatasetImage(cells, row, column, roots) for row, absent in enumerate(missing)]


def column_values(split: datasets.Dataset, column: str) -> list[Any]:
    """Return the values of a column that needs no decoding."""
    return split.data.column(column).to_pylist() if split._indices is None else list(split[column])


@dataclass(frozen=True)
class _Cells:
    """A column of a dataset as it is stored, of which a cell is read in microseconds."""

    values: Any
    name: str

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {self.name: self.values[row].as_py()}


def undecoded(split: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the split with a column of images, or of their paths, as ``{"bytes": ..., "path": ...}``."""
    from datasets import Image

    return split.cast_column(column, Image(decode=False))


def with_encoded_images(split: datasets.Dataset, column: str | None) -> datasets.Dataset:
    """Return the split with its images left encoded, so that only :func:`lmms_eval_emi.data.images.open_image` decodes them.

    Left to itself, ``datasets`` decodes by content, and Pillow starts a program for some formats.
    """
    from datasets import Image

    is_image = bool(column) and isinstance(split.features.get(column), Image)
    return undecoded(split, str(column)) if is_image else split
