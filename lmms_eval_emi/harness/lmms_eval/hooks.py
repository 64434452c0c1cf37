"""The functions that our task and group files name. Their state is in ``run``.

They are plain functions, not methods, because lmms-eval deep-copies what a task file names.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.rows import with_encoded_images
from lmms_eval_emi.data.study import Columns, Study, load_study
from lmms_eval_emi.errors import StudyError
from lmms_eval_emi.harness.common import group_scores, image_of, with_suffix
from lmms_eval_emi.harness.lmms_eval import finish
from lmms_eval_emi.harness.lmms_eval.compat import task_index
from lmms_eval_emi.harness.lmms_eval.compat.task_index import NO_SCORE, SCORE_KEY
from lmms_eval_emi.harness.lmms_eval.run import Item, find_run, open_task
from lmms_eval_emi.scoring.result import SplitResult
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.shifts.at_load import shift_at_load

if TYPE_CHECKING:
    import datasets
    from PIL import Image

SPLIT_COLUMN, ROW_COLUMN, TASK_COLUMN = "emi_split", "emi_row", "emi_task"


@lru_cache(maxsize=32)
def study_hooks(study_source: str) -> SimpleNamespace:
    """Return the functions that the task files of a study name, under the harness's names.

    Args:
        study_source: built-in name, or path of a study file.
    """
    study = load_study(study_source).trust()  # beside code of its own, which the harness runs

    def process_docs_of(name: str | None = None) -> Callable[..., Any]:
        """Return the hook that announces a task and numbers its rows; default: the split as the dataset names it."""

        def process_docs(dataset: datasets.Dataset) -> datasets.Dataset:
            return _announce(study, name or _split_of_dataset(study, str(dataset.split)), dataset)

        return process_docs

    def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
        """Return the image as RGB, or none where the study or the row has none."""
        run = find_run(doc.get(TASK_COLUMN))
        if run:
            run.begin()
        image = image_of(study, doc[SPLIT_COLUMN], doc)
        return [] if image is None else [image]

    def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
        """Return the question as the model is asked: with the prompt's suffix, unless it ends so already."""
        options = lmms_eval_specific_kwargs or {}
        question = with_suffix(doc[_columns_of(study, doc).question], options.get("post_prompt", ""))
        return f"{options.get('pre_prompt', '')}{question}"

    def doc_to_target(doc: dict[str, Any]) -> str:
        """Return the reference."""
        return doc[_columns_of(study, doc).reference]

    def process_results(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """Return the response and its row as ``emi``; as ``emid`` and ``emid_bound`` too where the ID split runs."""
        return _take_response(study, doc, results)

    return SimpleNamespace(
        process_docs=process_docs_of(),
        process_docs_of=process_docs_of,
        doc_to_visual=doc_to_visual,
        doc_to_text=doc_to_text,
        doc_to_target=doc_to_target,
        process_results=process_results,
        emi=emi,
        emid=emid,
        emid_bound=emid_bound,
    )


def _announce(study: Study, split: str, dataset: datasets.Dataset) -> datasets.Dataset:
    """Shift the rows of a task if the study says so, open the task in its run, and number the rows."""
    start = time.perf_counter()
    dataset = shift_at_load(study, study.split(split), dataset, load_settings())
    dataset = with_encoded_images(dataset, study.split(split).dataset.columns.image)
    task = open_task(study, split, dataset)
    numbered = dataset.add_column(SPLIT_COLUMN, [split] * len(dataset))
    numbered = numbered.add_column(TASK_COLUMN, [task.name] * len(dataset))
    numbered = numbered.add_column(ROW_COLUMN, list(range(len(dataset))))
    run = find_run(task.name)
    if run:
        run.seconds["loading"] += time.perf_counter() - start + task_index.take_loading_time()
    return numbered


def _columns_of(study: Study, doc: dict[str, Any]) -> Columns:
    return study.splits[doc[SPLIT_COLUMN]].dataset.columns


def _take_response(study: Study, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Add a response to the run, and return the items that the harness aggregates, by metric."""
    task, row = doc[TASK_COLUMN], doc[ROW_COLUMN]
    run = find_run(task)
    if run is None:  # the rows were loaded by a process that is gone
        raise RuntimeError(f"lmms_eval_emi: the task {task} was not loaded in this process.")
    run.begin()
    with run.timed("responses"):
        item = run.respond(task, row, results[0] if results else "")
        values: dict[str, Any] = {"emi": item}
        if run.tasks[task].row_name != study.id_split and run.has_split(study.name, study.id_split):
            values |= {
                metric: Item.of(run, task, row, metric, {"row": item["row"]}) for metric in ("emid", "emid_bound")
            }
            run.weigh(values, item["answer"])
    return values


def _metric(name: str, *, with_error: bool = True) -> Callable[..., float | str]:
    """Return the hook that gives a score of the task whose rows' values it gets, for the harness's table."""

    def aggregate(items: list[Item], args: Any = None) -> float | str:
        scores = _scores(items, args)
        value = getattr(scores, name, None)
        if scores is None or value is None:
            return NO_SCORE
        if with_error:
            _show_error(items, value, getattr(scores, f"{name}_stderr"))
        return value

    aggregate.__name__ = name
    return aggregate


emi, emid = _metric("emi"), _metric("emid")
emid_bound = _metric("emid_bound", with_error=False)  # a divergence is no mean of rows


def _scores(items: Sequence[Item], args: Any) -> SplitResult | None:
    first = items[0]
    return first.run.scores(first.task, lambda run: finish.finish(run, args)) if first.run else None


def _show_error(items: Sequence[Item], value: float, stderr: float | None) -> None:
    """Let the harness's own columns show our standard error.

    It computes std(score) / sqrt(n) over the items, and adds cross terms of items of one cluster. So every
    item gets the influence of its row, scaled such that this is our error, and is a cluster by itself.
    """
    run = items[0].run
    if run is None or stderr is None:
        return
    task_of_run = run.tasks[items[0].task]
    influence = run.influence.get((task_of_run.study.name, task_of_run.row_name), {})
    known = {item.row: influence[item.row] for item in items if item.row in influence}
    spread = statistics.stdev(known.values()) if len(known) > 1 else 0.0
    if not spread:
        return
    scale = stderr * math.sqrt(len(known)) / spread
    for item in items:
        if item.row in known:
            item[SCORE_KEY] = value + scale * known[item.row]


def _split_of_dataset(study: Study, dataset_split: str) -> str:
    """Return the split of a study that a dataset's split is."""
    names = [
        name
        for name, split in study.splits.items()
        if split.dataset_split == dataset_split and split.variant_of is None
    ]
    if len(names) != 1:
        raise StudyError(
            f"{study.source}: expected one split whose dataset split is {dataset_split!r}, got {names or 'none'}. Write the task files again: lmms-eval-emi tasks write {study.source} DIR"
        )
    return names[0]


def group_mean(studies: Sequence[str], modality: str | None, metric: str) -> Callable[..., Any]:
    """Return the score of a group: the plain mean over its shifts, looked up by name in the results of the run.

    Args:
        studies: names of the studies whose shifts the group has.
        modality: modality of the shifts; ``None`` for all.
        metric: ``emi``, ``emid`` or ``emid_bound``.
    """

    def mean_over_shifts(metrics: Sequence[float | str], sizes: Sequence[int], weight_by_size: bool) -> float | str:
        return _group_scores(studies, modality)[metric]

    mean_over_shifts.__name__ = f"{metric}_over_shifts"
    return mean_over_shifts


def postprocess_group(described: dict[str, Any], *args: Any, **context: Any) -> dict[str, float]:
    """Return the scores of a group for lmms-eval's group hook, where it has one.

    Args:
        described: the group's ``studies`` and ``modality``, from its metadata.
        args: whatever the harness gives the hook.
        context: whatever the harness gives the hook.

    Returns:
        Means over the group's shifts, and Pearson's r of EMID and index, by ``metric,filter``.
    """
    scores = _group_scores(described["studies"], described.get("modality"))
    return {f"{name},none": value for name, value in scores.items() if isinstance(value, float)}


def _group_scores(studies: Iterable[str], modality: str | None) -> dict[str, float | str]:
    run = find_run()
    results = [run.results[name] for name in studies if run and run.results and name in run.results]
    values = {name: value for name, value in group_scores(results, modality).items() if name != "emid_stderr"}
    return {name: NO_SCORE if value is None else value for name, value in values.items()}
