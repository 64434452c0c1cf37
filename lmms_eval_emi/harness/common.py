"""Functions shared by the tasks of all harnesses: groups and their means, generation, a row's image, experiment trackers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.data.images import encoded_image, open_image, to_rgb
from lmms_eval_emi.data.rows import image_roots
from lmms_eval_emi.data.study import SHIFT_MODALITIES, Study
from lmms_eval_emi.errors import UnavailableError
from lmms_eval_emi.scoring.result import ModalitySummary, StudyResult
from lmms_eval_emi.settings import load_settings

if TYPE_CHECKING:
    from PIL import Image

    from lmms_eval_emi.scoring.rows import Scored

SUITE = "llavabench_shift"
GENERATION = {"until": ["ASSISTANT:"], "max_new_tokens": 1024, "do_sample": False, "temperature": 0}
COLUMNS = ("split", "n", "emi", "mi_response", "mi_reference", "emid", "emid_bound", *EXPONENTS)


def groups(studies: Sequence[Study], suite: str | None = SUITE) -> dict[str, list[str]]:
    """Return the members of each group by its name; each group of shifts has its ID split first.

    Args:
        studies: studies whose tasks are grouped.
        suite: name of the group of all studies, or ``None`` for no such group.
    """
    members = {suite: [study.group for study in studies]} if suite else {}
    for study in studies:
        members[study.group] = [
            study.task_name(split) for split in (study.id_split, *study.shifts(), *study.controls())
        ]
        for modality in SHIFT_MODALITIES:
            shifts = study.shifts(modality)
            if shifts:
                members[f"{study.group}_{modality}"] = [study.task_name(split) for split in (study.id_split, *shifts)]
    return members


def group_owners(name: str, studies: Sequence[Study], suite: str | None) -> tuple[list[str], str | None]:
    """Return the names of the studies whose shifts a group has, and their modality; ``None`` for all."""
    if name == suite:
        return [study.name for study in studies], None
    owners = [study for study in studies if name == study.group or name.startswith(f"{study.group}_")]
    owner = max(owners, key=lambda study: len(study.group))
    return [owner.name], name.removeprefix(f"{owner.group}_") if name != owner.group else None


def group_scores(results: Iterable[StudyResult], modality: str | None) -> dict[str, float | None]:
    """Return the means over the shifts of some results, and Pearson's r of EMID and index, by the metric's name.

    Args:
        results: results of the studies of the group.
        modality: modality of the shifts; ``None`` for all.
    """
    results = list(results)
    summary = ModalitySummary.of(split for result in results for split in result.shifts(modality).values())
    found = {
        "emi": summary.mean_emi,
        "emid": summary.mean_emid,
        "emid_bound": summary.mean_bound,
        "emid_pearson_r": summary.pearson_r,
    }
    if len(results) == 1:  # errors of several studies share images, and are not known together
        summarised = results[0].summary if modality is None else results[0].summary.by_modality.get(modality)
        found["emid_stderr"] = summarised.mean_emid_stderr if summarised else None
    return found


def write_outcome(scored: Scored, path: Path) -> Iterator[str]:
    """Write a result, its rows and its report; yield what a harness prints of them under its table, a part at a time."""
    from lmms_eval_emi.report.page import write_report
    from lmms_eval_emi.report.reading import ReportedResult
    from lmms_eval_emi.scoring.rows import write_results
    from lmms_eval_emi.scoring.table import legend, summary_to_table

    result = scored.result
    yield f"\n{result.title}, {result.model}\n{summary_to_table(result)}\n{legend(result)}"
    write_results(path, [scored])
    yield f"results    {path}"
    if load_settings().report:
        page = path.with_name(path.name.replace("_emi_", "_emi_report_")).with_suffix(".html")
        try:
            write_report([ReportedResult.of(result, source=str(path), rows=scored.rows)], page)
            yield f"report     {page}"
        except UnavailableError as error:  # the extra is not installed; the results are all there
            yield f"no report  {error}; then: lmms-eval-emi report {path}"


def with_suffix(question: str, suffix: str) -> str:
    """Return a question with the suffix of its prompt, unless it ends so already."""
    return question if suffix.strip() and question.rstrip().endswith(suffix.strip()) else f"{question}{suffix}"


def image_of(study: Study, split: str, row: Mapping[str, Any]) -> Image.Image | None:
    """Return the image of a row as RGB, or ``None`` where the study or the row has none."""
    spec = study.split(split).dataset
    value = row[spec.columns.image] if spec.columns.image else None
    if value is None:
        return None
    if isinstance(value, str | dict):  # a path, which is relative to the dataset or study file, or encoded bytes
        value = open_image(encoded_image(value, image_roots(study, spec, load_settings().images)))
    return to_rgb(value)


def log_result(result: StudyResult) -> None:
    """Log the summary and a table of all scores to the active runs of wandb and trackio, which has wandb's functions."""
    for tracker, run in _active():
        name = result.shift
        rows = [[split, *(getattr(scores, key) for key in COLUMNS[1:])] for split, scores in result.splits.items()]
        keys = ("n_shifts", "mean_emi", "mean_emid", "mean_bound", "pearson_r")
        values = {key: getattr(result.summary, key) for key in keys}
        summary = {f"emi/{name}/{key}": value for key, value in values.items() if value is not None}
        run.log({**summary, f"emi/{name}/figures": _table(tracker, rows)})


def _active() -> list[tuple[Any, Any]]:
    """Return the trackers that are imported, each with its active run."""
    found = []
    wandb, trackio = (sys.modules.get(name) for name in ("wandb", "trackio"))
    if wandb is not None and getattr(wandb, "run", None) is not None:
        found.append((wandb, wandb.run))
    current = getattr(getattr(trackio, "context_vars", None), "current_run", None)
    run = current.get() if current is not None else None
    if trackio is not None and run is not None:
        found.append((trackio, run))
    return found


def _table(tracker: Any, rows: list[list[Any]]) -> Any:
    """Return a table as a tracker takes it; trackio's is made of a data frame alone."""
    if getattr(tracker, "__name__", "") == "trackio":
        import pandas

        return tracker.Table(dataframe=pandas.DataFrame(rows, columns=list(COLUMNS)))
    return tracker.Table(columns=list(COLUMNS), data=rows)
