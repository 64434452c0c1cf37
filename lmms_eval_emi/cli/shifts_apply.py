"""``lmms-eval-emi shifts apply``: a suite of shifts of any dataset."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.cli.engine import add_engine, engine_of, opened_engine
from lmms_eval_emi.cli.options import add_settings, new_parser, settings_of
from lmms_eval_emi.errors import ImageError, ShiftError

if TYPE_CHECKING:
    import datasets

    from lmms_eval_emi.data.study import Columns
    from lmms_eval_emi.shifts.apply import Step
    from lmms_eval_emi.shifts.operators import ShiftOptions

PREVIEW_QUESTION = "What are the people in this picture doing, and what might have happened before it was taken?"


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi shifts apply my_rows.parquet my_suite --visual defocus_blur:1,3,5 --textual keyboard:1,3 --joint",
            "lmms-eval-emi shifts list",
            "lmms-eval-emi shifts apply --preview photo.jpg",
        ),
        description=(
            "Shift the images and questions of a dataset. DEST becomes a dataset with one split per shift, its card, a study file for "
            "lmms-eval-emi score, and the tasks for lmms-eval --include_path DEST --tasks NAME. An interrupted command continues where it stopped."
        ),
        epilog="An operator without levels, such as --visual defocus_blur, is taken at all of them.",
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="dataset: a hub name, a folder, or a parquet, json, jsonl, csv or arrow file",
    )
    parser.add_argument("dest", nargs="?", type=Path, metavar="DEST", help="folder to write")
    parser.add_argument(
        "--visual",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:LEVELS",
        help="shifts of the images, such as defocus_blur:1,3,5 frost",
    )
    parser.add_argument(
        "--textual",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:LEVELS",
        help="shifts of the questions, such as keyboard:1,3 translation:German",
    )
    parser.add_argument("--joint", action="store_true", help="add every pair of a visual and a textual shift")
    parser.add_argument(
        "--name",
        help="name of the suite; its group of tasks is the name in lower case (default: DEST's own name and _shifts)",
    )
    _add_row_options(parser)
    _add_how_options(parser)
    _add_preview_options(parser)
    return parser


def _add_row_options(parser: argparse.ArgumentParser) -> None:
    rows = parser.add_argument_group("rows")
    rows.add_argument("--config", help="configuration of the dataset")
    rows.add_argument("--split", help="split of the dataset (default: its only one, or test)")
    rows.add_argument(
        "--image-column", metavar="COLUMN", help="default: image, or the first that holds images; none: text alone"
    )
    rows.add_argument(
        "--question-column", metavar="COLUMN", help="default: question, prompt, query, instruction, problem or text"
    )
    rows.add_argument(
        "--reference-column", metavar="COLUMN", help="default: reference_answer, answer, reference or gpt_answer"
    )
    rows.add_argument(
        "--id-column",
        metavar="COLUMN",
        help="default: question_id, id, qid, index or data_id where unique, else the rows are numbered",
    )
    rows.add_argument("--limit", type=int, metavar="N", help="only the first N rows")


def _add_how_options(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how")
    how.add_argument(
        "--seed", type=int, default=0, help="seed, row id and operator decide all randomness (default: %(default)s)"
    )
    how.add_argument(
        "--keep",
        nargs="+",
        action="extend",
        default=[],
        metavar="WORD",
        help="words and phrases that no textual shift touches; numbers and tokens such as <image> never are",
    )
    how.add_argument("--keep-file", type=Path, metavar="FILE", help="a file of such words, one per line")
    add_settings(how, "synonyms", "frost", "wordnet", "endpoint", "endpoint_model")
    how.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="default: one per core, %(default)s here",
    )
    add_engine(how)
    how.add_argument(
        "--overwrite", action="store_true", help="replace the suite that DEST holds, or the sheet that --preview wrote"
    )


def _add_preview_options(parser: argparse.ArgumentParser) -> None:
    look = parser.add_argument_group("look")
    look.add_argument(
        "--preview",
        metavar="IMAGE_OR_ROW",
        help="write a contact sheet of an image file, or of a row of SOURCE by number, under all operators or those named, and stop",
    )
    look.add_argument(
        "--output",
        type=Path,
        default=Path("shift_preview.png"),
        metavar="FILE",
        help="where to write it (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Shift the rows of a dataset and write them as a suite, or draw the shifts of one row."""
    from lmms_eval_emi.shifts.apply import parse_steps
    from lmms_eval_emi.shifts.operators import ShiftOptions

    _take_positionals(args)
    visual = [step for specification in args.visual for step in parse_steps("visual", specification)]
    textual = [step for specification in args.textual for step in parse_steps("text", specification)]
    options = ShiftOptions.from_settings(settings_of(args), keep=_keep(args))
    if args.preview:
        return _preview(args, visual, textual, options)
    if not (args.source and args.dest):
        raise ShiftError("expected SOURCE and DEST, or --preview IMAGE.")
    return _write(args, visual, textual, options)


def _take_positionals(args: argparse.Namespace) -> None:
    """Find SOURCE and DEST among the values of --visual and --textual, which take all words that follow."""
    import difflib

    from lmms_eval_emi.shifts.operators import operators

    known = [*operators("visual"), *operators("text")]
    wanted = 2 - sum(path is not None for path in (args.source, args.dest))
    for given in (args.visual, args.textual):
        found: list[str] = []
        while given and len(found) < wanted and given[-1].partition(":")[0] not in known:
            if difflib.get_close_matches(given[-1].partition(":")[0], known, n=1, cutoff=0.8):
                break  # a slip of the pen, which is told as one
            found.insert(0, given.pop())
        if found and not (args.preview and args.source):
            places = [*([args.source] if args.source else []), *found, *([str(args.dest)] if args.dest else [])]
            args.source, args.dest = places[0], Path(places[1]) if len(places) > 1 else None
            return


def _keep(args: argparse.Namespace) -> tuple[str, ...]:
    words = list(args.keep)
    if args.keep_file:
        try:
            words += args.keep_file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ShiftError(f"--keep-file: expected a UTF-8 file of words, one per line: {error}") from error
    return tuple(dict.fromkeys(word.strip() for word in words if word.strip()))


def _rows(args: argparse.Namespace) -> datasets.Dataset:
    """Return the rows of SOURCE."""
    import datasets

    from lmms_eval_emi.data.rows import load_source

    splits = load_source(args.source, args.config)
    name = args.split or (next(iter(splits)) if len(splits) == 1 else "test")
    if name not in splits:
        raise ShiftError(
            f"--split: expected one of the splits of {args.source}, {', '.join(splits)}; {'got ' + name if args.split else 'name one'}."
        )
    rows = splits[name]
    assert isinstance(rows, datasets.Dataset)
    return rows


def _rows_and_columns(args: argparse.Namespace) -> tuple[datasets.Dataset, Columns]:
    from lmms_eval_emi.shifts.writer import choose_columns

    return choose_columns(_rows(args), args.image_column, args.question_column, args.reference_column, args.id_column)


def _write(args: argparse.Namespace, visual: list[Step], textual: list[Step], options: ShiftOptions) -> int:
    from tqdm import tqdm

    from lmms_eval_emi.data.rows import source_roots
    from lmms_eval_emi.harness.lmms_eval.compat.launch import command_line
    from lmms_eval_emi.harness.lmms_eval.write_tasks import write_task_files
    from lmms_eval_emi.shifts.apply import recipes
    from lmms_eval_emi.shifts.writer import Suite, write_suite
    from lmms_eval_emi.shifts.writer.workers import shift_all

    made = recipes(visual, textual, args.joint)
    name = args.name or _name_of(args.dest)
    check_name(name)
    if name.lower() == args.dest.resolve().name:
        raise ShiftError(
            f"--name: expected another name than DEST's own, for lmms-eval takes --tasks {name.lower()} for a folder where there is one of that name."
        )
    if args.processes < 1:
        raise ShiftError(f"--processes: expected 1 or more, got {args.processes}.")
    _try_operators(visual, textual, options)
    if args.limit is not None and args.limit < 1:
        raise ShiftError(f"--limit: expected 1 or more rows, got {args.limit}.")
    rows, columns = _rows_and_columns(args)
    if args.limit:
        rows = rows.select(range(min(args.limit, len(rows))))
    if visual and columns.image is None:
        raise ShiftError(
            f"--visual: expected a column of images; the rows have {', '.join(rows.column_names)}. Name one with --image-column."
        )
    roots = tuple(map(str, source_roots(args.source, settings_of(args).images)))
    group = name.lower()
    run_with = command_line(group, "tasks")
    suite = Suite(name, args.source, tuple(made), columns, args.seed, options, roots, run_with)
    engine = engine_of(args)
    with opened_engine(args), tqdm(total=len(rows), desc="shifting", unit="row") as bar:
        written = write_suite(
            rows,
            suite,
            args.dest,
            overwrite=args.overwrite,
            progress=bar.update,
            write_tasks=lambda study, folder: write_task_files(folder, [study], suite=None),
            shift=engine.shift_chunks if engine else partial(shift_all, processes=args.processes),
        )
    kept = f", {written.resumed:,} of them from an earlier run" if written.resumed else ""
    print(f"{written.rows:,} rows under {len(made) - 1} shifts{kept}: {args.dest}")
    for step, count in sorted(written.left.items()):
        print(f"  {step}: {count:,} rows left as they were, see {args.dest / 'unshifted.jsonl'}")
    print(f"look:  {args.dest / 'preview.png'}")
    print(f"run:   {command_line(group, args.dest)}")
    print(f"score: lmms-eval-emi score {args.dest / 'study.yaml'} RESPONSES")
    nothing = sorted(step for step, count in written.left.items() if count == written.rows)
    if nothing:
        raise ShiftError(
            f"{', '.join(nothing)} shifted no row, so its split is the clean one and its EMID would be 0. {args.dest / 'unshifted.jsonl'} says why; the other shifts are complete."
        )
    return 0


def _name_of(dest: Path) -> str:
    """Return a name for tasks from a folder's, ``my-suite`` becoming ``my_suite_shifts``."""
    import re

    name = re.sub(r"[^A-Za-z0-9]+", "_", dest.resolve().name).strip("_")
    return f"{name}_shifts" if name[:1].isalpha() else f"suite_{name}_shifts"


def check_name(name: str) -> None:
    """Raise ``ShiftError`` unless tasks may have the name: the harness prefers its own on a clash."""
    import re

    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ShiftError(f"--name: expected a letter and then letters, digits and _, got {name!r}.")
    from lmms_eval_emi.harness.lmms_eval.compat.task_index import task_names

    if name.lower() in task_names():
        raise ShiftError(
            f"--name: lmms-eval has a task or group {name.lower()!r} of its own, which would be run instead. Choose another name."
        )


def _try_operators(visual: list[Step], textual: list[Step], options: ShiftOptions) -> None:
    """Find out what an operator lacks before the work rather than in it."""
    from PIL import Image

    from lmms_eval_emi.shifts.apply import shift_image, shift_text
    from lmms_eval_emi.shifts.operators import RefusedError

    probe = Image.new("RGB", (32, 32), "grey")
    for step in {step.operator.name: step for step in visual}.values():
        shift_image(probe, step.operator.name, step.level)  # type: ignore[arg-type]
    for step in {step.operator.name: step for step in textual}.values():
        try:
            shift_text("What is the colour of this large picture?", step.operator.name, step.level, options=options)
        except RefusedError:
            continue


def _preview(args: argparse.Namespace, visual: list[Step], textual: list[Step], options: ShiftOptions) -> int:
    import io

    from PIL import Image

    from lmms_eval_emi.data.images import encoded_image, open_image
    from lmms_eval_emi.data.rows import source_roots
    from lmms_eval_emi.shifts.apply import parse_steps
    from lmms_eval_emi.shifts.contact_sheet import contact_sheet
    from lmms_eval_emi.shifts.operators import operators
    from lmms_eval_emi.shifts.writer import plain_rows
    from lmms_eval_emi.util.files import check_output, write_atomically

    kind = Image.registered_extensions().get(args.output.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP", "TIFF", "PDF"):
        raise ShiftError(f"--output: expected a .png, .jpg, .webp, .tif or .pdf file, got {args.output}.")
    if not visual and not textual:
        visual = [step for name in operators("visual") for step in parse_steps("visual", name)]
        textual = [
            step
            for name, operator in operators("text").items()
            if operator.group != "sentence" or options.endpoint
            for step in parse_steps("text", f"{name}:German" if operator.level_name else name)
        ]
    row_id: object = 0
    if args.source and args.preview.isdigit():
        rows, columns = _rows_and_columns(args)
        number = int(args.preview)
        if number >= len(rows):
            raise ShiftError(f"--preview: expected a row of 0 to {len(rows) - 1}, got {number}.")
        row = plain_rows(rows, columns.image)[number]
        row_id, text = row[columns.id], row[columns.question] or ""
        roots = source_roots(args.source, settings_of(args).images)
        image = open_image(encoded_image(row[columns.image], roots)) if columns.image else None
    else:
        path, text = Path(args.preview), PREVIEW_QUESTION
        if not path.is_file():
            more = " A row's number needs SOURCE before it." if args.preview.isdigit() else ""
            raise ShiftError(
                f"--preview: expected an image file, or SOURCE and the number of one of its rows, got {args.preview!r}.{more}"
            )
        try:
            image = open_image(path)
        except ImageError as error:
            raise ShiftError(f"--preview: {path}: {error}") from error
    check_output(args.output, [args.preview, args.source], overwrite=args.overwrite, example="preview.png")
    sheet = contact_sheet(image, text, visual, textual, seed=args.seed, row_id=row_id, options=options)
    file = io.BytesIO()
    sheet.save(file, kind)
    print(f"{write_atomically(args.output, file.getvalue())}")
    return 0
