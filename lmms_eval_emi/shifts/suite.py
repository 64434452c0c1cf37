"""Writes a suite of shifts of any dataset: a dataset with a split a shift, its study file, and its tasks.

    DEST/
      README.md           the dataset's card, which says where the splits are
      study.yaml          for lmms-eval-emi score
      tasks/              for lmms-eval --include_path
      splits/NAME/metadata.parquet    rows, with the paths of their images
      images/VARIANT/     images, once per variant, however many splits and rows have them
      preview.png         a row under every shift
      unshifted.jsonl     rows that an operator left as they were, and why

Rows are shifted in chunks, each of which is on disk when it is done, so that a run that was stopped goes on
where it was, and neither the rows nor the images of more than a few chunks are in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
import yaml
from filelock import FileLock, Timeout
from PIL import Image

from lmms_eval_emi.files import check_folder_writable, write_atomically
from lmms_eval_emi.shifts.images import encoded_image, open_image
from lmms_eval_emi.shifts.operators import Refused, ShiftError
from lmms_eval_emi.shifts.recipes import ID_SPLIT, Recipe, Step, shift_image, shift_text
from lmms_eval_emi.shifts.textual.words import TextOptions
from lmms_eval_emi.shifts.twins import ID_COLUMNS
from lmms_eval_emi.studies.catalogue import Columns, parse_study
from lmms_eval_emi.version import __version__

if TYPE_CHECKING:
    import datasets
    import pyarrow

logger = logging.getLogger(__name__)
CHUNK = 32  # rows
ROWS_OF_A_GROUP, OPEN_FILES = 128 * CHUNK, 64
STATE, PARTS, LOCK = "shift.json", "parts", ".lock"
OWN = {"README.md", "study.yaml", "tasks", "splits", "images", "preview.png", "unshifted.jsonl", STATE, PARTS}


@dataclass(frozen=True)
class Suite:
    """What is to be written.

    Attributes:
        name: of the study, and, in lower case, of its group of tasks.
        source: what the rows are from, for the card.
        recipes: of the splits, the ID split first.
        columns: of the rows; ``image`` is ``None`` where there are none.
        seed: of all randomness.
        options: of textual operators.
        folder: which relative paths of images are relative to.
    """

    name: str
    source: str
    recipes: tuple[Recipe, ...]
    columns: Columns
    seed: int = 0
    options: TextOptions = field(default_factory=TextOptions)
    folder: str = "."

    @property
    def visual(self) -> list[Step]:
        """Steps for images, each once."""
        return list(dict.fromkeys(recipe.visual for recipe in self.recipes if recipe.visual))

    @property
    def textual(self) -> list[Step]:
        """Steps for texts, each once."""
        return list(dict.fromkeys(recipe.textual for recipe in self.recipes if recipe.textual))


@dataclass(frozen=True)
class Written:
    """What came of it."""

    rows: int
    left: Counter  # rows that a step left as they were, by its name
    resumed: int  # rows that an earlier run had done


def choose_columns(
    rows: datasets.Dataset, image: str | None, question: str | None, reference: str | None, id: str | None
) -> tuple[datasets.Dataset, Columns]:
    """The columns to use, where ``None`` means the usual names, and the rows with an id of each.

    Raises:
        ShiftError: a column is missing, or not of a kind that can be shifted.
    """
    from datasets import Image as ImageFeature
    from datasets import Value

    def pick(given: str | None, usual: tuple[str, ...], option: str) -> str:
        found = next((name for name in ([given] if given else usual) if name in rows.column_names), None)
        if found is None:
            raise ShiftError(
                f"{option}: expected a column {given or ' or '.join(usual)}; the rows have {', '.join(rows.column_names)}. Name one with {option}."
            )
        return found

    texts = {
        "--question-column": pick(question, ("question", "prompt", "query"), "--question-column"),
        "--reference-column": pick(
            reference, ("reference_answer", "answer", "reference", "gpt_answer"), "--reference-column"
        ),
    }
    for option, name in texts.items():
        feature = rows.features[name]
        if not isinstance(feature, Value):
            raise ShiftError(
                f"{option}: expected a column of texts, {name} holds {feature}. Name another, or write one text a row first."
            )
        if feature.dtype not in ("string", "large_string"):
            rows = rows.cast_column(name, Value("string"))
    images = [name for name, feature in rows.features.items() if isinstance(feature, ImageFeature)]
    if image not in (None, "none") and image not in rows.column_names:
        pick(image, (), "--image-column")
    column = (
        None
        if image == "none"
        else image or next((name for name in ("image", *images) if name in rows.column_names), None)
    )
    if (
        column is not None
        and column not in images
        and rows.features[column] not in (Value("string"), Value("large_string"))
    ):
        raise ShiftError(
            f"--image-column: expected a column with an image or the path of one a row, {column} holds {rows.features[column]}."
        )
    if id is not None:
        pick(id, (), "--id-column")
        different = _distinct(rows, id)
        if different != len(rows):
            raise ShiftError(
                f"--id-column: expected an id of its own in every row, {id} has {different} in {len(rows)} rows. Leave the option out to number the rows."
            )
    else:
        id = next((name for name in ID_COLUMNS if _is_id(rows, name)), None)
    if id is None:
        id = _free("row_id", rows)
        rows = rows.add_column(id, list(range(len(rows))))
    names = {"id": id, "question": texts["--question-column"], "reference": texts["--reference-column"]}
    # The loader of image folders takes columns of such names for paths of images.
    for name in rows.column_names:
        if name != column and name.endswith(("file_name", "file_names")):
            new = _free(f"{name}_", rows)
            rows = rows.rename_column(name, new)
            names = {use: new if chosen == name else chosen for use, chosen in names.items()}
    return rows, Columns(image=column, **names)


def _free(name: str, rows: datasets.Dataset) -> str:
    """A name that no column has, the given one if it is free."""
    return name if name not in rows.column_names else _free(f"{name}_", rows)


def _is_id(rows: datasets.Dataset, name: str) -> bool:
    from datasets import Value

    return name in rows.column_names and isinstance(rows.features[name], Value) and _distinct(rows, name) == len(rows)


def _distinct(rows: datasets.Dataset, column: str) -> int:
    import pyarrow.compute

    return pyarrow.compute.count_distinct(rows.select_columns([column]).data.column(column), mode="all").as_py()


def write_suite(
    rows: datasets.Dataset,
    suite: Suite,
    destination: Path,
    *,
    processes: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> Written:
    """Shift all rows and write the suite.

    Args:
        rows: of the ID split, with the suite's columns.
        suite: what to write.
        destination: its folder, which may hold what an earlier run of the same suite has done.
        processes: how many shift rows.
        overwrite: remove what another suite has left there.
        progress: called with the number of rows just done.

    Raises:
        ShiftError: the folder holds something else, or an operator lacks what it needs, or a worker was killed.
    """
    if not len(rows):
        raise ShiftError(f"expected rows to shift, {suite.source} has none.")
    destination = destination.resolve()
    state = _state(rows, suite)
    check_folder_writable(destination)
    try:
        with FileLock(destination / LOCK, timeout=0):
            try:
                return _write(rows, suite, destination, state, processes, overwrite, progress)
            finally:
                (destination / LOCK).unlink(missing_ok=True)
    except Timeout as error:
        raise ShiftError(f"DEST: another run is writing to {destination}; wait for it, or stop it.") from error


def _write(
    rows: datasets.Dataset,
    suite: Suite,
    destination: Path,
    state: dict[str, Any],
    processes: int,
    overwrite: bool,
    progress: Callable[[int], object],
) -> Written:
    _prepare(destination, state, overwrite)
    done = json.loads((destination / STATE).read_text(encoding="utf-8"))
    if done.get("complete"):
        progress(len(rows))
        return Written(len(rows), Counter(done["left"]), len(rows))
    rows = plain_rows(rows, suite.columns.image)
    todo = [start for start in range(0, len(rows), CHUNK) if not _part(destination, start).exists()]
    resumed = len(rows) - sum(min(CHUNK, len(rows) - start) for start in todo)
    progress(resumed)
    for size in _shift_all(rows, suite, destination, todo, processes):
        progress(size)
    left = _assemble(rows, suite, destination)
    _describe(rows, suite, destination, left)
    write_atomically(destination / STATE, json.dumps({**state, "complete": True, "left": left}, indent=1))
    shutil.rmtree(destination / PARTS)
    return Written(len(rows), left, resumed)


def _state(rows: datasets.Dataset, suite: Suite) -> dict[str, Any]:
    """All that decides what is written; two runs that agree in it may go on with each other's work."""
    options = {**vars(suite.options)}
    synonyms = suite.options.synonyms
    options["synonyms"] = hashlib.sha256(synonyms.read_bytes()).hexdigest() if synonyms else ""
    return {
        "version": __version__,
        "name": suite.name,
        "source": suite.source,
        "rows": len(rows),
        "columns": suite.columns.model_dump(),
        "content of the rows": _content(rows, suite.columns),
        "seed": suite.seed,
        "splits": [recipe.name for recipe in suite.recipes],
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()},
    }


def _content(rows: datasets.Dataset, columns: Columns) -> str:
    """A hash of the rows' texts, and of the files that the rows with their images are from."""
    import pyarrow

    digest = xxhash.xxh3_128(repr(sorted(file["filename"] for file in rows.cache_files)).encode())
    texts = rows.select_columns(list(dict.fromkeys((columns.id, columns.question, columns.reference))))
    for table in texts.with_format("arrow").iter(batch_size=1000):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _prepare(destination: Path, state: dict[str, Any], overwrite: bool) -> None:
    """Make the folder ready, or find out why it may not be written to."""
    present = {path.name for path in destination.iterdir()} - {LOCK}
    for name in [name for name in present if _is_leftover(name)]:
        (destination / name).unlink()
        present.discard(name)
    try:
        earlier = json.loads((destination / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    if not present <= OWN or (present and STATE not in present and present != {PARTS}):
        others = sorted(present - OWN) or sorted(present)
        raise ShiftError(
            f"DEST: expected a new or empty folder, or one of an earlier run; {destination} holds {', '.join(others[:5])}."
        )
    different = [key for key, value in state.items() if earlier.get(key) != value]
    if earlier and not different and not overwrite:
        (destination / PARTS).mkdir(exist_ok=True)
        return
    if earlier and not overwrite and not earlier.get("is being replaced"):
        was, now = (str(one.get(different[0]))[:120] for one in (earlier, state))
        raise ShiftError(
            f"DEST: {destination} holds a suite with another {different[0]}: {was}, now {now}. Choose another folder, or --overwrite to lose that one."
        )
    if present:  # the state goes last, so that a folder that is half removed is known for what it is
        write_atomically(destination / STATE, json.dumps({"is being replaced": True}))
        for name in sorted(present - {STATE}):
            path = destination / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomically(destination / STATE, json.dumps(state, indent=1))
    (destination / PARTS).mkdir(exist_ok=True)


def _is_leftover(name: str) -> bool:
    """Whether a file is what a killed run has left of a file of ours."""
    return name.startswith(".probe-") or any(name.startswith(f".{own}.") for own in OWN)


def plain_rows(rows: datasets.Dataset, image: str | None) -> datasets.Dataset:
    """The rows with their image still encoded, and of the other columns those that a table of text can hold."""
    from datasets import Image as ImageFeature
    from datasets import List, Value

    def plain(feature: Any) -> bool:
        return (
            isinstance(feature, Value)
            or type(feature).__name__ == "ClassLabel"
            or (isinstance(feature, List) and plain(feature.feature))
        )

    if image and isinstance(rows.features[image], ImageFeature):
        rows = rows.cast_column(image, ImageFeature(decode=False))
    dropped = [name for name, feature in rows.features.items() if name != image and not plain(feature)]
    if dropped:
        logger.info("left out of the suite: %s, which are no plain values", ", ".join(dropped))
        rows = rows.remove_columns(dropped)
    return rows


def _part(destination: Path, start: int) -> Path:
    return destination / PARTS / f"{start:010d}.json"


def _shift_all(
    rows: datasets.Dataset, suite: Suite, destination: Path, todo: list[int], processes: int
) -> Iterator[int]:
    """Shift the chunks that begin at the given rows; yields the number of rows of each as it is done."""
    if processes <= 1 or len(todo) <= 1:
        for start in todo:
            yield _shift_chunk(rows, suite, destination, start)
        return
    pool = ProcessPoolExecutor(
        min(processes, len(todo)), multiprocessing.get_context("spawn"), _start_worker, (rows, suite, destination)
    )
    try:
        waiting: set[Future] = set()
        starts = iter(todo)
        while True:
            ready = itertools.islice(starts, 4 * processes - len(waiting))
            waiting.update(pool.submit(_shift_chunk_of_worker, start) for start in ready)
            if not waiting:
                break
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise ShiftError(
            "a worker was killed, perhaps for want of memory. What is done is kept: run the same command again, with fewer --processes."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_WORKER: tuple[datasets.Dataset, Suite, Path] | None = None


def _start_worker(rows: datasets.Dataset, suite: Suite, destination: Path) -> None:
    import os
    import signal
    import threading
    from multiprocessing.connection import wait as wait_for

    import cv2

    global _WORKER
    _WORKER = (rows, suite, destination)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _shift_chunk_of_worker(start: int) -> int:
    assert _WORKER is not None
    return _shift_chunk(*_WORKER, start)


def _shift_chunk(rows: datasets.Dataset, suite: Suite, destination: Path, start: int) -> int:
    chunk = rows.select(range(start, min(start + CHUNK, len(rows))))
    records = [_shift_row(row, suite, destination) for row in chunk]
    write_atomically(_part(destination, start), json.dumps(records))
    return len(records)


def _shift_row(row: dict[str, Any], suite: Suite, destination: Path) -> dict[str, Any]:
    """Paths of a row's images by visual step, its texts by textual step, and why any step left it as it was."""
    row_id = row[suite.columns.id]
    record: dict[str, Any] = {"images": {}, "texts": {}, "left": {}}
    if suite.columns.image:
        encoded, image, reason = None, None, ""
        try:
            encoded = encoded_image(row[suite.columns.image], Path(suite.folder))
            image = open_image(encoded)
        except Refused as refusal:
            reason = str(refusal)
        clean = _store(encoded, destination, ID_SPLIT, _suffix(encoded)) if encoded else None
        record["images"][ID_SPLIT] = clean
        for step in suite.visual:
            try:
                if image is None:
                    raise Refused(reason)
                shifted = shift_image(image, step.operator.name, step.level, seed=suite.seed, row_id=row_id)  # type: ignore[arg-type]
                file = io.BytesIO()
                shifted.save(file, "PNG", compress_level=4)
                record["images"][step.name] = _store(file.getvalue(), destination, step.name, ".png")
            except Refused as refusal:
                record["images"][step.name] = clean
                record["left"][step.name] = str(refusal)
    question = row[suite.columns.question]
    for step in suite.textual:
        try:
            record["texts"][step.name] = shift_text(
                question or "", step.operator.name, step.level, seed=suite.seed, row_id=row_id, options=suite.options
            )
        except Refused as refusal:
            record["texts"][step.name] = question
            record["left"][step.name] = str(refusal)
    return record


def _suffix(encoded: bytes) -> str:
    with contextlib.suppress(Exception), Image.open(io.BytesIO(encoded)) as image:
        return {"JPEG": ".jpg"}.get(image.format or "", f".{(image.format or 'png').lower()}")
    return ".png"


def _store(encoded: bytes, destination: Path, variant: str, suffix: str) -> str:
    """Write an image under a name made of its content, once; returns its path below a split's folder."""
    digest = hashlib.blake2b(encoded, digest_size=16).hexdigest()
    relative = f"images/{variant}/{digest[:2]}/{digest}{suffix}"
    path = destination / relative
    if not path.exists():
        write_atomically(path, encoded)
    return relative


def _assemble(rows: datasets.Dataset, suite: Suite, destination: Path) -> Counter:
    """Write every split from the chunks, some splits at a time; returns how many rows each step left as they were."""
    image = suite.columns.image
    texts = rows.remove_columns([image]).with_format("arrow") if image else rows.with_format("arrow")

    def groups() -> Iterator[tuple[pyarrow.Table, list[dict]]]:
        for start in range(0, len(rows), ROWS_OF_A_GROUP):
            stop = min(start + ROWS_OF_A_GROUP, len(rows))
            parts = [_part(destination, chunk).read_text(encoding="utf-8") for chunk in range(start, stop, CHUNK)]
            yield texts[start:stop], [record for part in parts for record in json.loads(part)]

    left: Counter = Counter()
    with (destination / "unshifted.jsonl").open("w", encoding="utf-8") as unshifted:
        for table, records in groups():
            for row_id, record in zip(table[suite.columns.id].to_pylist(), records, strict=True):
                left.update(list(record["left"]))
                for step, reason in record["left"].items():
                    line = {"id": row_id, "shift": step, "reason": reason}
                    unshifted.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    for first in range(0, len(suite.recipes), OPEN_FILES):
        recipes = suite.recipes[first : first + OPEN_FILES]
        with contextlib.ExitStack() as stack:
            writers: dict[str, Any] = {}
            for table, records in groups():
                for recipe in recipes:
                    shifted = _table(table, records, recipe, suite)
                    if recipe.name not in writers:
                        writers[recipe.name] = stack.enter_context(_open_split(destination, recipe, image, shifted))
                    writers[recipe.name].write_table(shifted)
    return left


def _open_split(destination: Path, recipe: Recipe, image: str | None, table: pyarrow.Table) -> Any:
    import pyarrow.parquet

    folder = destination / "splits" / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    if image and not (folder / "images").is_symlink():
        (folder / "images").symlink_to("../../images")
    return pyarrow.parquet.ParquetWriter(folder / "metadata.parquet", table.schema)


def _table(table: pyarrow.Table, records: list[dict], recipe: Recipe, suite: Suite) -> pyarrow.Table:
    import pyarrow

    columns = suite.columns
    if recipe.textual:
        texts = pyarrow.array(
            [record["texts"][recipe.textual.name] for record in records], table.schema.field(columns.question).type
        )
        table = table.set_column(table.column_names.index(columns.question), columns.question, texts)
    if columns.image:
        variant = recipe.visual.name if recipe.visual else ID_SPLIT
        paths = pyarrow.array([record["images"][variant] for record in records], pyarrow.string())
        table = table.append_column("file_name" if columns.image == "image" else f"{columns.image}_file_name", paths)
    return table.replace_schema_metadata(None)


def _describe(rows: datasets.Dataset, suite: Suite, destination: Path, left: Counter) -> None:
    """Write the card, the study file, the tasks and the preview."""
    from lmms_eval_emi.harness.task_files import write_task_files
    from lmms_eval_emi.shifts.contact_sheet import contact_sheet

    study = {
        "name": suite.name,
        "title": f"{suite.name}: {Path(suite.source).name} under {len(suite.recipes) - 1} shifts",
        "id_split": ID_SPLIT,
        "dataset": {"path": ".", "columns": suite.columns.model_dump()},
        "splits": {recipe.name: _split_fields(recipe) for recipe in suite.recipes},
    }
    text = f"# Written by lmms-eval-emi shift. Score answers: lmms-eval-emi score --study study.yaml ...\n{yaml.safe_dump(study, sort_keys=False, allow_unicode=True)}"
    write_atomically(destination / "study.yaml", text)
    write_task_files(destination / "tasks", [parse_study(text, str(destination / "study.yaml"))], suite=None)
    first, image = rows[0], None
    with contextlib.suppress(Refused):
        if suite.columns.image:
            image = open_image(encoded_image(first[suite.columns.image], Path(suite.folder)))
    sheet = contact_sheet(
        image,
        first[suite.columns.question] or "",
        suite.visual,
        suite.textual,
        seed=suite.seed,
        row_id=first[suite.columns.id],
        options=suite.options,
    )
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    write_atomically(destination / "preview.png", file.getvalue())
    write_atomically(destination / "README.md", _card(len(rows), suite, left))


def _split_fields(recipe: Recipe) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if recipe.steps:
        fields["task"] = recipe.task
        fields["shifts"] = [step.shift.model_dump(exclude_none=True) for step in recipe.steps]
    suffix = recipe.textual.operator.prompt_suffix if recipe.textual else ""
    return {**fields, **({"prompt_suffix": suffix} if suffix else {})}


def _card(count: int, suite: Suite, left: Counter) -> str:
    files = ["preview.png"] if suite.columns.image else []  # tells datasets' loader that this is a folder of images
    front = {
        "pretty_name": suite.name,
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": recipe.name, "path": [f"splits/{recipe.name}/metadata.parquet", *files]}
                    for recipe in suite.recipes
                ],
            }
        ],
    }
    lines = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {suite.name}\n",
        f"{count:,} rows of `{suite.source}`, as they are and under {len(suite.recipes) - 1} shifts. Made by lmms_eval_emi {__version__}, seed {suite.seed}. The rows' licence is that of their source.\n",
        *(["![one row under every shift](preview.png)\n"] if files else []),
        "| split | shift | rows left as they were |",
        "|---|---|---|",
        *(
            f"| {recipe.name} | {' + '.join(str(step.shift) for step in recipe.steps) or 'none: the ID split'} | {sum(left[step.name] for step in recipe.steps) or ''} |"
            for recipe in suite.recipes
        ),
        "\nRows that an operator could not shift are in their split as they were; `unshifted.jsonl` says which and why."
        "\n\n```\nlmms-eval --include_path tasks --tasks "
        + suite.name.lower()
        + " --model ...\nlmms-eval-emi score --study study.yaml ...\npython -c \"import datasets; print(datasets.load_dataset('.'))\"\n```"
        "\n\nImages are stored once and reached through links (`splits/*/images`), which `cp -a`, `rsync -a` and `tar` keep. "
        "After moving the folder, write the tasks again: `lmms-eval-emi tasks --from-study study.yaml --output tasks`. "
        "To publish it with the images inside: `datasets.load_dataset('.').push_to_hub(...)`.",
    ]
    return "\n".join(lines) + "\n"
