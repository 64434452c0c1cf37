"""What twins need to know of the harness's tasks: which tasks exist, and which columns their prompts use."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.columns import find_image_columns, holds_text
from lmms_eval_emi.errors import ShiftError, StudyError
from lmms_eval_emi.harness.lmms_eval.compat import task_index
from lmms_eval_emi.shifts import twins
from lmms_eval_emi.util.printing import suggest

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("lmms_eval_emi")

LOOKED_AT = 8  # rows by which a prompt's columns are found
FEWEST_LETTERS = 4  # letters of the shortest text that counts as part of the prompt
# What holds options or what is right, which stay unchanged.
LEFT_ALONE = re.compile(
    r"[a-j]|(?:option|choice|candidate|ending|answer|target|gold|label|reference|solution|ground_?truth|explanation|rationale|lecture)s?(?:[_ ].*)?|.*_(?:answer|label|id|idx)s?|(?:question_)?(?:id|qid|index|type|category|split|source|subject|subset|topic)|.*(?:path|url|file_?name)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TaskFile:
    """A task that has a file."""

    name: str  # name of the task
    path: Path  # path of its file
    own: bool = False  # whether it lies in a folder of the user's own

    @property
    def plain(self) -> Mapping[str, Any]:
        """Its fields and those that it includes, with none of their functions loaded."""
        return _config(self.path, False)

    @property
    def config(self) -> Mapping[str, Any]:
        """Its fields with their functions.

        Raises:
            StudyError: the task itself cannot be loaded.
        """
        try:
            return _config(self.path, True)
        except Exception as error:  # its modules may raise anything
            raise StudyError(
                f"{self.name}: the task itself cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    @property
    def eval_split(self) -> str | None:
        """The split of the dataset that it asks."""
        found = self.plain.get("test_split") or self.plain.get("validation_split")
        return str(found) if found else None


@lru_cache(maxsize=256)
def _config(path: Path, functions: bool) -> Mapping[str, Any]:
    return task_index.task_config(path, functions=functions)


def resolve(names: Sequence[str], include_path: Path | None = None) -> dict[str, list[TaskFile]]:
    """Return the tasks of some tasks, groups and tags, by the name that was asked for.

    Raises:
        StudyError: a task is unknown, includes a missing task, or is defined in Python only.
    """
    index = task_index.task_index(include_path)
    ours = str(task_index.tasks_folder())

    def leaves(name: str, seen: tuple[str, ...]) -> dict[str, TaskFile]:
        if name not in index:
            hint = suggest(name, index) or " lmms-eval tasks list shows all."
            raise StudyError(f"{name!r} is not a task of lmms-eval.{hint}")
        entry = index[name]
        if name in seen:
            return {}
        if entry["type"] == "python_task":
            raise StudyError(f"{name}: it is made by Python code alone, and has no file that a twin could include.")
        path = str(entry["yaml_path"])
        if entry["type"] == "task":
            if path.startswith(ours):
                raise StudyError(f"{name}: it is one of this package's own splits, which are shifted already.")
            is_included = include_path is not None and Path(path).resolve().is_relative_to(include_path.resolve())
            return {name: TaskFile(name, Path(path).resolve(), is_included)}
        members = entry["task"]
        if members == -1:
            members = _config(Path(path), False)["task"]
        return walk(members, (*seen, name))

    def walk(members: Any, seen: tuple[str, ...]) -> dict[str, TaskFile]:
        found: dict[str, TaskFile] = {}
        for member in [members] if isinstance(members, str) else members:
            if isinstance(member, str):
                found |= leaves(member, seen)
            elif isinstance(member["task"], list):
                found |= walk(member["task"], seen)
            else:
                found |= leaves(member["task"], seen)
        return found

    return {name: list(leaves(name, ()).values()) for name in names}


def twin_of(
    path: str,
    *specifications: str,
    question: str | Sequence[str] | None = None,
    image: str | Sequence[str] | None = None,
    seed: int = 0,
    keep: Sequence[str] = (),
) -> Callable[[datasets.Dataset], datasets.Dataset]:
    """Return the ``process_docs`` hook of a twin of the task in a file.

    The task's own hook runs first. Which texts to shift is found by asking the task: those columns whose text stands
    in its prompt, and changes it.

    Args:
        path: path of the task's file.
        specifications: as for :func:`lmms_eval_emi.shifts.twins.twin`.
        image: as for :func:`lmms_eval_emi.shifts.twins.twin`.
        seed: as for :func:`lmms_eval_emi.shifts.twins.twin`.
        keep: as for :func:`lmms_eval_emi.shifts.twins.twin`.
        question: columns of text to shift; default: what the prompt is made of, without options.
    """
    task = TaskFile(Path(path).stem, Path(path))

    def hook(dataset: datasets.Dataset) -> datasets.Dataset:
        try:
            made = twins.twin(
                *specifications,
                question=question or (lambda rows: prompt_columns(task, rows)),
                image=image,
                seed=seed,
                keep=keep,
                process_docs=task.config.get("process_docs"),
                splits=[task.eval_split] if task.eval_split else [],
            )
            return made(dataset)
        except (
            ShiftError
        ) as error:  # the harness loads the dataset five times before it says so, and not in these words
            log.error("%s", error)
            raise

    hook.__name__ = hook.__qualname__ = "_".join(specification.replace(":", "_") for specification in specifications)
    return hook


def prompt_columns(task: TaskFile, rows: datasets.Dataset) -> list[str]:
    """Return the columns of text that a task's prompt is made of, without options and answers.

    A column is one if its text stands in the prompt, in whatever case, and the prompt changes with it.

    Raises:
        ShiftError: no column changes the prompt, as in captioning tasks with a constant prompt.
    """
    candidates = [name for name in rows.column_names if holds_text(rows, name) and not LEFT_ALONE.fullmatch(name)]
    pictures = set(find_image_columns(rows, lists=True))
    texts = rows.select_columns([name for name in rows.column_names if name not in pictures])
    found: list[str] = []
    for row in (dict(texts[number]) for number in range(min(LOOKED_AT, len(texts)))):
        prompt = prompt_of(task, row)
        for name in candidates:
            value = row.get(name)
            if name in found or not isinstance(value, str) or sum(map(str.isalpha, value)) < FEWEST_LETTERS:
                continue
            question = twins.split_question(value)[0].strip()
            stands = question.casefold() in prompt.casefold()
            if stands and prompt_of(task, {**row, name: f"Zq {value}"}) != prompt:
                found.append(name)
    if not found:
        raise ShiftError(
            f"{task.name}: no column of its rows is a part of its prompt, so a textual shift would change nothing. Its columns of text are {', '.join(candidates) or 'none'}. Leave --textual out, or name columns with --question-column."
        )
    return found


def prompt_of(task: TaskFile, row: Mapping[str, Any]) -> str:
    """Return the prompt that a task makes of a row.

    Relies on: ``doc_to_text`` is a function of the row, and of ``lmms_eval_specific_kwargs`` where the task has them;
    or the name of a column; or a template.

    Raises:
        StudyError: the prompt cannot be made without the row's images.
    """
    ask = task.config.get("doc_to_text")
    kwargs = task.config.get("lmms_eval_specific_kwargs")
    if isinstance(kwargs, Mapping):
        kwargs = kwargs.get("default", kwargs) or {}
    try:
        if callable(ask):
            return str(ask(dict(row), kwargs) if kwargs is not None else ask(dict(row)))
        if isinstance(ask, str) and ask in row:
            return str(row[ask])
        return task_index.fill_template(str(ask), row)
    except Exception as error:  # a task's own code may raise anything
        raise StudyError(f"{task.name}: its prompt cannot be made: {type(error).__name__}: {error}") from error


def load_rows(task: TaskFile) -> datasets.Dataset:
    """Return the rows that a task asks, after its own hook.

    Raises:
        StudyError: the rows cannot be loaded.
    """
    import datasets

    config = task.plain
    arguments = {
        key: value
        for key, value in (config.get("dataset_kwargs") or {}).items()
        if key in {"data_files", "data_dir", "revision"}
    }
    try:
        loaded = datasets.load_dataset(config["dataset_path"], config.get("dataset_name"), **arguments)
        rows = loaded[task.eval_split]
    except Exception as error:  # datasets raises a dozen kinds
        raise StudyError(
            f"{task.name}: its dataset {config.get('dataset_path')} cannot be loaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    process_docs = task.config.get("process_docs")
    return process_docs(rows) if process_docs else rows
