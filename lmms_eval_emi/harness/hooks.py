"""The functions that our task and group files name. What they have to remember is in ``run_state``.

They are plain functions, not methods, because lmms-eval deep-copies what a task file names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.harness.run_state import RUN, Answer, row_key, split_of
from lmms_eval_emi.studies.catalogue import Columns, Study, StudyError, load_study
from lmms_eval_emi.studies.rows import shift_at_load
from lmms_eval_emi.studies.scoring import mean

if TYPE_CHECKING:
    import datasets

SPLIT_COLUMN, ROW_COLUMN = "emi_split", "emi_row"
# What stands in place of a figure that could not be computed. The harness writes the same for a
# standard error that it does not have; None would break means, and NaN the results file.
NO_FIGURE = "N/A"


@dataclass(frozen=True)
class Hooks:
    """What a task file of one study names, by the harness's names."""

    process_docs: Callable
    process_docs_of: Callable
    doc_to_visual: Callable
    doc_to_text: Callable
    doc_to_target: Callable
    process_results: Callable
    emi: Callable
    emid: Callable
    emid_bound: Callable


@lru_cache(maxsize=32)
def study_hooks(study_source: str) -> Hooks:
    """The hooks of one study, a built-in name or the path of a study file."""
    study = load_study(study_source)

    def process_docs_of(name: str | None = None) -> Callable:
        """The hook that announces a split and numbers its rows; default: the split as the dataset names it."""

        def process_docs(dataset: datasets.Dataset) -> datasets.Dataset:
            split = name or _split_of_dataset(study, str(dataset.split))
            dataset = shift_at_load(study, study.split(split), dataset)
            RUN.open_split(study, split, dataset)
            numbered = dataset.add_column(SPLIT_COLUMN, [split] * len(dataset))
            return numbered.add_column(ROW_COLUMN, list(range(len(dataset))))

        return process_docs

    def columns_of(doc: dict) -> Columns:
        return study.splits[doc[SPLIT_COLUMN]].dataset.columns

    def doc_to_visual(doc: dict) -> list:
        """The image as RGB, or none where the study or the row has none."""
        from lmms_eval_emi.encoders.clip import to_rgb

        RUN.begin()
        column = columns_of(doc).image
        return [to_rgb(doc[column])] if column and doc[column] is not None else []

    def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
        """The question as the model is asked: with the prompt's suffix, unless it ends so already."""
        options = lmms_eval_specific_kwargs or {}
        question, suffix = doc[columns_of(doc).question], options.get("post_prompt", "")
        if suffix.strip() and question.rstrip().endswith(suffix.strip()):
            suffix = ""
        return f"{options.get('pre_prompt', '')}{question}{suffix}"

    def doc_to_target(doc: dict) -> str:
        """The reference answer."""
        return doc[columns_of(doc).reference]

    def process_results(doc: dict, results: Sequence[Any]) -> dict[str, Any]:
        """The answer and the row that it belongs to; EMID and bound only where the ID split runs too."""
        RUN.begin()
        split, row = doc[SPLIT_COLUMN], doc[ROW_COLUMN]
        values: dict[str, Any] = {"emi": Answer.of(study.name, split, row, results[0] if results else "")}
        if split != study.id_split and RUN.has_split(study.name, study.id_split):
            values |= {metric: row_key(study.name, split, row) for metric in ("emid", "emid_bound")}
        return values

    def emi(items: list[Answer], args: Any = None) -> float | str:
        """EMI of the split whose answers are given, in nats."""
        figures = RUN.figures(split_of(items), args)
        return figures.emi.value if figures else NO_FIGURE

    def emid(items: list[str], args: Any = None) -> float | str:
        """EMID of the split's shift, in nats."""
        figures = RUN.figures(split_of(items), args)
        return figures.emid.value if figures and figures.emid else NO_FIGURE

    def emid_bound(items: list[str], args: Any = None) -> float | str:
        """RJSD bound on the EMID of the split's shift."""
        figures = RUN.figures(split_of(items), args)
        return figures.bound.value if figures and figures.bound else NO_FIGURE

    return Hooks(
        process_docs_of(),
        process_docs_of,
        doc_to_visual,
        doc_to_text,
        doc_to_target,
        process_results,
        emi,
        emid,
        emid_bound,
    )


def _split_of_dataset(study: Study, dataset_split: str) -> str:
    """The split of a study that a dataset's split is."""
    names = [name for name, split in study.splits.items() if split.dataset_split == dataset_split]
    if len(names) != 1:
        raise StudyError(
            f"{study.source}: expected one split whose dataset split is {dataset_split!r}, got {names or 'none'}. Write the task files again: lmms-eval-emi tasks --from-study {study.source} --output DIR"
        )
    return names[0]


def mean_over_shifts(metrics: Sequence[float | str], sizes: Sequence[int], weight_by_size: bool) -> float | str:
    """A group's figure: the plain mean over its shifts, without the ID split and what has no figure.

    The harness gives the subtasks' figures without their names; the ID split's are told by identity.
    """
    id_figures = RUN.id_figures()
    shifts = [
        figure
        for figure in metrics
        if isinstance(figure, float) and not any(figure is id_figure for id_figure in id_figures)
    ]
    average = mean(shifts)
    return NO_FIGURE if average is None else average
