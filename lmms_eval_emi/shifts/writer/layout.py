"""The files of a suite: its splits, study file, card and preview."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lmms_eval_emi.data.images import encoded_image, open_image
from lmms_eval_emi.data.study import Study, parse_study
from lmms_eval_emi.errors import ImageError
from lmms_eval_emi.shifts.apply import ID_SPLIT, Recipe
from lmms_eval_emi.shifts.writer.journal import Suite, part_of
from lmms_eval_emi.shifts.writer.workers import CHUNK
from lmms_eval_emi.util.files import write_atomically
from lmms_eval_emi.version import __version__

if TYPE_CHECKING:
    import datasets
    import pyarrow

ROWS_OF_A_GROUP, OPEN_FILES = 128 * CHUNK, 64


def assemble(rows: datasets.Dataset, suite: Suite, destination: Path) -> Counter[str]:
    """Write every split from the chunks, some splits at a time; returns how many rows each step left as they were."""
    image = suite.columns.image
    texts = rows.remove_columns([image]).with_format("arrow") if image else rows.with_format("arrow")

    def groups() -> Iterator[tuple[pyarrow.Table, list[dict[str, Any]]]]:
        for start in range(0, len(rows), ROWS_OF_A_GROUP):
            stop = min(start + ROWS_OF_A_GROUP, len(rows))
            parts = [part_of(destination, chunk).read_text(encoding="utf-8") for chunk in range(start, stop, CHUNK)]
            yield texts[start:stop], [record for part in parts for record in json.loads(part)]

    left: Counter[str] = Counter()
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


def _table(table: pyarrow.Table, records: list[dict[str, Any]], recipe: Recipe, suite: Suite) -> pyarrow.Table:
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


def describe(rows: datasets.Dataset, suite: Suite, destination: Path, left: Counter[str]) -> Study:
    """Write the card, the study file and the preview; returns the study."""
    from lmms_eval_emi.shifts.contact_sheet import contact_sheet

    fields = {
        "name": suite.name,
        "title": f"{suite.name}: {Path(suite.source).name} under {len(suite.recipes) - 1} shifts",
        "id_split": ID_SPLIT,
        "dataset": {"path": ".", "columns": suite.columns.model_dump()},
        "splits": {recipe.name: _split_fields(recipe) for recipe in suite.recipes},
    }
    text = f"# Written by lmms-eval-emi shifts apply. Score responses: lmms-eval-emi score study.yaml RESPONSES\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}"
    write_atomically(destination / "study.yaml", text)
    first, image = rows[0], None
    with contextlib.suppress(ImageError):
        if suite.columns.image:
            image = open_image(encoded_image(first[suite.columns.image], [Path(root) for root in suite.roots]))
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
    return parse_study(text, str(destination / "study.yaml"))


def _split_fields(recipe: Recipe) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if recipe.steps:
        fields["task"] = recipe.task
        fields["shifts"] = [step.shift.model_dump(exclude_none=True) for step in recipe.steps]
    suffix = recipe.textual.operator.prompt_suffix if recipe.textual else ""
    return {**fields, **({"prompt_suffix": suffix} if suffix else {})}


def _card(count: int, suite: Suite, left: Counter[str]) -> str:
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
        f"\n\n```\n{suite.run_with + chr(10) if suite.run_with else ''}lmms-eval-emi score study.yaml RESPONSES\npython -c \"import datasets; print(datasets.load_dataset('.'))\"\n```"
        "\n\nImages are stored once and reached through links (`splits/*/images`), which `cp -a`, `rsync -a` and `tar` keep. "
        "After moving the folder, write the tasks again: `lmms-eval-emi tasks write study.yaml tasks`. "
        "To publish it with the images inside: `datasets.load_dataset('.').push_to_hub(...)`.",
    ]
    return "\n".join(lines) + "\n"
