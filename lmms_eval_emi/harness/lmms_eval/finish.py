"""The end of a run: save the responses, score them, write and show the results.

Responses come first, on the disk and under a name that needs nothing of the harness; whatever fails
after that costs no response.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from loguru import logger

from lmms_eval_emi.data.response_text import is_failed_request
from lmms_eval_emi.data.responses.llava import SAVED, write_response_file
from lmms_eval_emi.data.responses.lmms_eval import samples_name
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.errors import RunError
from lmms_eval_emi.harness.common import write_outcome
from lmms_eval_emi.harness.lmms_eval.compat import evaluation
from lmms_eval_emi.harness.lmms_eval.run import writable_folder
from lmms_eval_emi.harness.lmms_eval.write_tasks import portable_study
from lmms_eval_emi.scoring.join import StudySamples, add_rows
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.util.files import check_folder_writable, flush_folder, write_atomically
from lmms_eval_emi.util.printing import printable

if TYPE_CHECKING:
    from lmms_eval_emi.harness.lmms_eval.run import Run, TaskOfRun
    from lmms_eval_emi.scoring.result import StudyResult
    from lmms_eval_emi.scoring.rows import Scored

footers: list[str] = []


@atexit.register
def _print_footers() -> None:
    """Print our summary under the harness's table, which is printed last, with four decimals."""
    for footer in footers:
        print(printable(footer), flush=True)


def finish(run: Run, args: object) -> dict[str, StudyResult]:
    """Save all responses, then score all tasks, write the results and prepare what is printed.

    Returns:
        Results by study.

    Raises:
        RuntimeError: the studies could not be scored; the message says where the responses are and how to continue.
    """
    model = evaluation.model_name(args)
    saved, entries = save_responses(run, args, model)
    folder, stamp = saved.parent, saved.name.removesuffix(f"_{SAVED}")
    try:
        named, stamp_of_run = folder_of_run(args), evaluation.run_stamp(args)
        target = _unused(named / f"{stamp_of_run}_{SAVED}")
        saved.rename(target)
        flush_folder(target.parent)
        saved, folder, stamp = target, named, stamp_of_run
    except Exception as error:
        logger.warning(f"The files of this run could not be named as the harness names its own: {error}")
    run.parts.remove()
    logger.info(f"Responses saved in {saved}")
    try:
        with run.timed("scoring"):
            results = score_studies(run, entries, folder, stamp, saved)
        footers.append(run.share_line())
        return results
    except Exception as error:
        commands = "\n".join(f"  {score_command(entry.study, saved)}" for entry in entries)
        raise RunError(
            f"{error}\nNo response is lost: they are in {saved}. Once this is fixed, score them with\n{commands}"
        ) from error


def save_responses(run: Run, args: object, model: str) -> tuple[Path, list[StudySamples]]:
    """Write the responses of each task to the disk, and join them with their rows.

    Returns:
        Their folder, and the samples of each study.
    """
    folder = writable_folder(args) / f"{time.strftime('%Y%m%d_%H%M%S')}-{os.getpid()}-{id(run) % 10_000}_{SAVED}"
    entries: dict[str, StudySamples] = {}
    for task in list(run.tasks.values()):
        if not task.responses:
            continue
        name = task.study.name
        if name not in entries:
            entries[name] = StudySamples(_study_with_variants(run, task.study), model)
        entry = entries[name]
        try:
            # With --limit the other rows were never asked, so they are not missing.
            add_rows(entry, task.row_name, task.dataset, task.responses, load_settings(), asked=task.responses)
            samples = entry.samples.get(task.row_name, [])
            if len(task.responses) < len(task.dataset):
                note = f"{len(task.responses)} of its {len(task.dataset)} rows have a response: the others were not asked, or not yet"
                entry.notes.setdefault(task.row_name, []).append(note)
            # As they were given, so that scoring the file counts the same thoughts.
            rows = (
                (
                    sample.id,
                    sample.question,
                    task.responses.get(-1 if sample.row is None else sample.row, sample.response),
                )
                for sample in samples
            )
            write_response_file(folder / name / f"{task.row_name}.jsonl", rows, model)
            if len(samples) < sum(not is_failed_request(text) for text in task.responses.values()):
                _write_by_row(folder / name, task)
        except Exception as error:  # one task must not cost the others
            entry.samples.pop(task.row_name, None)
            entry.leave_out(
                task.row_name, f"split {task.row_name}: its responses could not be joined with their rows: {error}"
            )
            logger.error(f"{task.name}: its responses could not be joined with their rows: {error}")
            _write_by_row(folder / name, task)
    for entry in entries.values():
        if entry.study.variants():
            text = yaml.safe_dump(portable_study(entry.study), sort_keys=False, allow_unicode=True)
            write_atomically(folder / entry.study.name / "study.yaml", text)
    return folder, list(entries.values())


def _write_by_row(folder: Path, task: TaskOfRun) -> None:
    """Write the responses of a task by row number, in the harness's own format, without reading the rows."""
    lines = [
        json.dumps({"doc_id": row, "filtered_resps": text}, ensure_ascii=False)
        for row, text in sorted(task.responses.items())
    ]
    write_atomically(folder / samples_name("unjoined", task.name), "".join(f"{line}\n" for line in lines))


def _study_with_variants(run: Run, study: Study) -> Study:
    for task in run.tasks.values():
        if task.study.name == study.name and task.row_name != task.split:
            study = study.with_variant(task.row_name, task.split)
    return study


def folder_of_run(args: object) -> Path:
    """Return the folder in which the harness has its files of this run, or one in the cache."""
    output, below = evaluation.output_path(args), evaluation.run_folder(args)
    for folder in (*([output / below] if output else []), load_settings().cache / "runs" / (below or "model")):
        try:
            check_folder_writable(folder)
            return folder
        except OSError as error:
            logger.error(f"{folder} cannot be written: {error}")
    raise OSError("no folder for the files of this run can be written")


def score_studies(
    run: Run, entries: list[StudySamples], folder: Path, stamp: str, saved: Path
) -> dict[str, StudyResult]:
    """Score the studies of a run, write results and page, and return the results by study."""
    from lmms_eval_emi.scoring.pipeline import score_samples
    from lmms_eval_emi.scoring.table import fit_to_warnings, notes_to_lines

    settings = load_settings()
    results: dict[str, StudyResult] = {}
    for scored in score_samples(entries, settings, allow_missing=True):
        result = scored.result
        name = result.shift
        results[name] = result
        for split, scores in result.scores.items():
            rows = scored.samples.samples[split]
            run.influence[name, split] = {
                sample.row: float(psi)
                for sample, psi in zip(rows, scores.emi.influence, strict=True)
                if sample.row is not None
            }
        for reasons in result.left_out.values():
            for reason in reasons:
                logger.error("{}", printable(f"{name}: left out: {reason}"))
        for line in notes_to_lines(result):
            logger.warning("{}", printable(f"{name}, {line}"))
        for line in fit_to_warnings(result):
            logger.warning("{}", printable(f"{name}: {line}"))
        footers.append(_show(run, scored, folder, stamp, saved / name))
    return results


def _show(run: Run, scored: Scored, folder: Path, stamp: str, responses: Path) -> str:
    """Write a result and its report; what goes wrong here costs no score. Returns what is printed under the table."""
    from lmms_eval_emi.harness.common import log_result

    name, lines = scored.result.shift, []
    try:
        for line in write_outcome(scored, _unused(folder / f"{stamp}_emi_{name}.json")):
            lines.append(line)  # what was said before an error is said
        log_result(scored.result)
    except Exception as error:
        logger.opt(exception=error).debug("the results could not be written")
        run.unwritten.add(name)
        logger.error(
            f"The results of {name} could not be written: {error}. Score the responses again: {score_command(scored.samples.study, responses.parent)}"
        )
    return "\n".join((*lines, f"responses  {responses}"))


def score_command(study: Study, saved: Path) -> str:
    """Return the command that scores the saved responses of a study, for messages."""
    folder = saved / study.name
    source = folder / "study.yaml" if study.variants() else study.source
    command = f"lmms-eval-emi score {source} {folder} --allow-missing --output {study.name}.json"
    local = {study.local_path(split.dataset) for split in study.splits.values()}
    places = {path.resolve().parent for path in local if path is not None}
    if (source == study.source and study.is_bundled) or not places:
        return command
    return f"{command} --images {os.path.commonpath(places)}"  # the file names its data by absolute paths


def _unused(path: Path) -> Path:
    """Return the path, or a numbered one if another run of the same second uses it."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return candidate
