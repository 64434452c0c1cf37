"""Writes the files of shifted twins of the harness's tasks: a folder that is complete for ``--include_path``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval_emi.data.columns import find_image_columns
from lmms_eval_emi.errors import StudyError
from lmms_eval_emi.harness.lmms_eval.twin_tasks import TaskFile, load_rows, prompt_columns, prompt_of
from lmms_eval_emi.harness.lmms_eval.write_tasks import MARK, dump, function
from lmms_eval_emi.shifts import twins
from lmms_eval_emi.shifts.apply import Recipe
from lmms_eval_emi.util.files import write_atomically

HEADER = f"{MARK} twins; write it again to change it.\n"
TWIN = "emi_twin"  # what a twin's metadata say of its origin
PICTURES = "pictures.parquet"  # images of a suite of domains, next to its tasks
LONGEST_SHOWN = 300


@dataclass(frozen=True)
class TwinOptions:
    """Options of the shifts of rows."""

    seed: int = 0  # seed of all operators
    keep: tuple[str, ...] = ()  # words that textual operators leave alone
    question: tuple[str, ...] = ()  # columns of text; default: those of the prompt
    image: tuple[str, ...] = ()  # columns of images; default: all


def twin_name(task: str, recipe: Recipe) -> str:
    """Return the name of a shifted task, made of the name of the clean task and of its shifts."""
    return f"{task}_{recipe.task}"


def twin_files(
    tasks: Mapping[str, Sequence[TaskFile]], recipes: Sequence[Recipe], options: TwinOptions
) -> dict[str, str]:
    """Return the text of each file by its path below the folder.

    Args:
        tasks: tasks by the name that was asked for, which gets a group ``NAME_robustness``.
        recipes: recipes of the twins.
        options: how rows are shifted.
    """
    files: dict[str, str] = {}
    for name, members in tasks.items():
        names: list[str] = []
        for task in members:
            names.append(task.name)
            folder = _plain(task.name)
            if f"{folder}/utils.py" not in files:
                files |= {f"{folder}/{path}": text for path, text in _task_files(task, recipes, options).items()}
            names += [twin_name(task.name, recipe) for recipe in recipes]
        group = f"{name}_robustness"
        files[f"{_plain(group)}.yaml"] = HEADER + dump({"group": group, "task": names})
    return files


def _task_files(task: TaskFile, recipes: Sequence[Recipe], options: TwinOptions) -> dict[str, str]:
    plain = task.plain
    lines = [f"{HEADER}from lmms_eval_emi.harness.lmms_eval.twin_tasks import twin_of\n", f"TASK = {str(task.path)!r}"]
    given: dict[str, Any] = {"seed": options.seed}
    given |= {key: list(value) for key, value in vars(options).items() if key != "seed" and value}
    arguments = "".join(f", {key}={value!r}" for key, value in given.items())
    files: dict[str, str] = {}
    for recipe in recipes:
        shifts = ", ".join(repr(twins.specification_of(step)) for step in recipe.steps)
        lines.append(f"{recipe.task} = twin_of(TASK, {shifts}{arguments})")
        fields: dict[str, Any] = {
            "include": str(task.path),
            "task": twin_name(task.name, recipe),
            "process_docs": function(f"utils.{recipe.task}"),
            # A dictionary, for a list would replace what the task says of itself in its place.
            "metadata": {**_metadata(plain), TWIN: {"of": task.name, **_shifts(recipe), "seed": options.seed}},
        }
        if "tag" in plain:  # the twins are not what the tag is for
            fields["tag"] = []
        files[f"{fields['task']}.yaml"] = HEADER + dump(fields)
    if task.own:  # the harness looks into one folder beside its own
        files[f"{task.name}.yaml"] = HEADER + dump({"include": str(task.path), "task": task.name})
    files["utils.py"] = "\n".join(lines) + "\n"
    return files


def _metadata(plain: Mapping[str, Any]) -> dict[str, Any]:
    found = plain.get("metadata")
    if isinstance(found, list):
        return {key: value for part in found if isinstance(part, Mapping) for key, value in part.items()}
    return dict(found) if isinstance(found, Mapping) else {}


def _shifts(recipe: Recipe) -> dict[str, Any]:
    named = {"visual": recipe.visual, "textual": recipe.textual}
    return {
        modality: {"name": step.operator.name, "level": step.level}
        for modality, step in named.items()
        if step is not None
    }


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


def write_twin_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write all files, and remove files of an earlier call that are no longer among them.

    Raises:
        StudyError: the folder is a file, or holds a file that is not ours.
    """
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"output: expected a folder, got the file {folder}.")
    foreign = [
        str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and not _is_ours(path)
    ]
    if foreign:
        raise StudyError(
            f"output: expected a new or empty folder, or one of earlier twins; {folder} holds {', '.join(foreign[:5])}."
        )
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in files and path.suffix in {".yaml", ".py"}:
            path.unlink()
    for name, text in files.items():
        write_atomically(folder / name, text, durable=False)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".pyc" or path.name == PICTURES or path.read_bytes().startswith(MARK.encode())


def preview(task: TaskFile, recipe: Recipe, options: TwinOptions, most: int = 20) -> list[str]:
    """Return the first row of a task whose prompt or images a shifted task changes, before and after, as lines.

    Raises:
        StudyError: the rows cannot be loaded, or the twin changes nothing that the model is shown.
    """
    rows = load_rows(task)
    rows = rows.select(range(min(most, len(rows))))
    made = twins.twin(
        *map(twins.specification_of, recipe.steps),
        question=list(options.question) or (lambda dataset: prompt_columns(task, dataset)),
        image=list(options.image) or None,
        seed=options.seed,
        keep=options.keep,
    )(rows)
    texts = (list(options.question) or prompt_columns(task, rows)) if recipe.textual else []
    images = (list(options.image) or find_image_columns(rows, lists=True)) if recipe.visual else []
    kept = [name for name in rows.column_names if name not in find_image_columns(rows, lists=True)]
    for number in range(len(rows)):
        clean, shifted = rows[number], made[number]
        before, after = (prompt_of(task, {key: row[key] for key in kept}) for row in (clean, shifted))
        moved = [name for name in images if _pixels(clean[name]) != _pixels(shifted[name])]
        if (texts and before == after) or (images and not moved):
            continue
        lines = [f"{twin_name(task.name, recipe)}, row {number}"]
        if images:
            lines.append(f"  images: {', '.join(moved)}")
        if texts:
            lines += [f"  texts: {', '.join(texts)}", f"  - {_short(before)}", f"  + {_short(after)}"]
        return lines
    raise StudyError(
        f"{twin_name(task.name, recipe)}: it changes nothing that the model is shown in the first {len(rows)} rows. Name columns with --question-column or --image-column."
    )


def _pixels(value: Any) -> Any:
    if isinstance(value, list):
        return [_pixels(item) for item in value]
    return value.convert("RGB").tobytes() if hasattr(value, "convert") else value


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " ..."
