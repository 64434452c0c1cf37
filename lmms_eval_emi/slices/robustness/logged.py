"""Tasks as ``lmms-eval --log_samples --output_path DIR`` logged them, for comparing a task with its shifted twins.

Relies on: a line of ``{stamp}_samples_{task}.jsonl`` has ``doc_id``, ``target``, ``filtered_resps``, ``input``, and the metrics
of its row at its top level; it has no ``doc``. A task with several filters has a line for each, filter by filter within a row's
lines, and does not say which. ``{stamp}_results.json`` beside it has ``configs``, ``higher_is_better``, ``results`` and
``config``.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmms_eval_emi.data.response_text import is_failed_request, without_thoughts
from lmms_eval_emi.data.responses import read_lines
from lmms_eval_emi.data.responses.lmms_eval import parse_samples_name, samples_name
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.harness.lmms_eval.write_twins import TWIN
from lmms_eval_emi.shifts.twins import IMAGE_SUFFIX, recipe_of
from lmms_eval_emi.slices.robustness.comparison import ScoredTask, ShiftedTask, check_pair
from lmms_eval_emi.slices.robustness.metrics import RowMetric, read_row_metrics
from lmms_eval_emi.util.files import parse_json, read_json, visible_files

log = logging.getLogger("lmms_eval_emi")

NO_METRICS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash"}
NO_METRICS |= {"input_media", "input", "prompt_hash", "target_hash", "submission"}
CLUSTER_KEYS = ("image_id", "imageId", "image_source", "image", "docId", "question_id")
SETTINGS = ("limit", "offset", "gen_kwargs", "model_args", "num_fewshot")
NUMBER = r"-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf)"
LIKELIHOOD = re.compile(rf"\(({NUMBER}), (?:True|False)\)")
NEGATIVE = re.compile(r"-(?:\d+\.\d+(?:e[+-]?\d+)?|inf)")  # a log-likelihood without its flag
ROWS = re.compile(r"rows:0*([1-9]\d{0,8})")


def read_tasks(folder: Path, clusters: str | None = None) -> dict[str, dict[str, ScoredTask]]:
    """Return the latest run of each task below a folder, by model.

    Args:
        folder: ``--output_path`` of the harness.
        clusters: what rows of one image share: a key of the logged values, ``rows:N`` for N rows in a row, or a CSV
            file with doc_id and cluster; default: the images that a twin logs, or else a usual key.

    Raises:
        ResultsError: there are no samples, or a file cannot be read.
    """
    if not folder.is_dir():
        raise ResultsError(
            f"{folder}: expected a folder that lmms-eval --log_samples --output_path wrote; it is not there."
        )
    latest: dict[str, dict[str, Path]] = {}
    for path in sorted(
        visible_files(folder, samples_name("*", "*")), key=lambda path: (path.name, path)
    ):  # sorted by time stamp
        task = parse_samples_name(path.name)
        if task is not None:
            latest.setdefault(path.parent.name, {})[task] = path
    for model, paths in latest.items():
        folders = sorted({str(path.parent) for path in paths.values()})
        if len(folders) > 1:
            log.warning("%s: its tasks are in %s; the latest run of each is taken.", model, " and ".join(folders))
    run_of = lru_cache(_run_of)  # one file for all tasks of a run
    found = {
        model: {task: _read_task(path, task, clusters, run_of) for task, path in paths.items()}
        for model, paths in latest.items()
    }
    if not found:
        raise ResultsError(
            f"{folder}: expected *_samples_*.jsonl, found none. Run lmms-eval with --log_samples --output_path {folder}."
        )
    return {model: _with_clusters(tasks) for model, tasks in found.items()}


def _read_task(path: Path, name: str, clusters: str | None, run_of: Callable[[Path], Mapping[str, Any]]) -> ScoredTask:
    by_row: dict[int, list[Mapping[str, Any]]] = {}
    for number, line in read_lines(path):
        try:
            record = parse_json(line)
            by_row.setdefault(int(record["doc_id"]), []).append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path}, line {number}: expected a sample of lmms-eval: {error}") from error
    stamp = path.name[: -len(samples_name("", name))] if path.name.endswith(samples_name("", name)) else ""
    run = run_of(path.parent / f"{stamp}_results.json")
    config = _part(run, "configs", name)
    # The harness logs null for a metric whose task does not say it.
    stated = _part(run, "higher_is_better", name)
    better = {str(key): value is not False for key, value in stated.items()}
    unstated = {str(key) for key, value in stated.items() if value is None}
    results = _part(run, "results", name)
    filters = list(
        dict.fromkeys(key.partition(",")[2] for key in results if "," in key and "_stderr" not in key.partition(",")[0])
    )
    if all(len(lines) > 1 and lines.count(lines[0]) == len(lines) for lines in by_row.values()):
        log.warning("%s: every row stands there %d times, alike; one of each is taken.", path, len(by_row[min(by_row)]))
        by_row = {row: lines[:1] for row, lines in by_row.items()}
    count = max(map(len, by_row.values()), default=1)
    if count > 1 and len(set(map(len, by_row.values()))) > 1:
        log.warning("%s: some rows stand there more than once; the first of each is taken.", path)
        by_row, count = {row: lines[:1] for row, lines in by_row.items()}, 1
    names = filters if len(filters) == count and count > 1 else [str(place + 1) for place in range(count)]
    metrics: list[RowMetric] = []
    for place, label in enumerate(names):
        fields = {
            row: {key: value for key, value in lines[place].items() if key not in NO_METRICS}
            for row, lines in by_row.items()
            if place < len(lines)
        }
        found = read_row_metrics(fields, better, config.get("score_key"))
        found = [
            metric.noting("the task does not say whether higher is better; it is taken to be")
            if metric.name in unstated
            else metric
            for metric in found
        ]
        metrics += [replace(metric, name=f"{metric.name},{label}") for metric in found] if count > 1 else found
    first = {row: lines[0] for row, lines in by_row.items()}
    kind, responses = responses_of(first, str(config.get("output_type", "")))
    metadata = config.get("metadata")
    twin = metadata.get(TWIN) if isinstance(metadata, Mapping) else None
    return ScoredTask(
        name,
        path.parent.name,
        {row: str(line.get("target")) for row, line in first.items()},
        responses,
        {row: str(line.get("input")) for row, line in first.items()},
        _clusters(first, clusters),
        metrics,
        _reported(results, better, several=count > 1),
        {key: value for key in SETTINGS if (value := _part(run, "config").get(key)) is not None},
        kind,
        twin if isinstance(twin, Mapping) else {},
    )


def _run_of(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        log.warning("%s: it cannot be read, so what the task reports is not known: %s", path, error)
        return {}
    return found if isinstance(found, Mapping) else {}


def _part(run: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        found = run.get(key)
        run = found if isinstance(found, Mapping) else {}
    return run


def _reported(
    results: Mapping[str, Any], better: Mapping[str, bool], *, several: bool
) -> dict[str, tuple[float, bool]]:
    found = {}
    for key, value in results.items():
        metric = key.partition(",")[0]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if "," in key and "_stderr" not in metric and number:
            found[key if several else metric] = (float(value), better.get(metric, True))
    return found


def responses_of(
    lines: Mapping[int, Mapping[str, Any]], output_type: str
) -> tuple[Literal["text", "option", "none"], dict[int, str]]:
    """Return the response of each row, as text or as the likeliest option, and which of the two they are.

    Tasks that score a single continuation, and those of several rounds, have neither.
    """
    logged = {row: line.get("filtered_resps") for row, line in lines.items()}
    likelihoods = {row: _likelihoods(value) for row, value in logged.items()}
    if "loglikelihood" in output_type or output_type == "multiple_choice" or all(likelihoods.values()):
        chosen = {
            row: f"option {_chosen(found, output_type) + 1}" for row, found in likelihoods.items() if len(found) > 1
        }
        return ("option", chosen) if chosen else ("none", {})
    if "multi_round" in output_type:
        return "none", {}
    texts = {row: without_thoughts(_response(value)) for row, value in logged.items()}
    answered = {row: text for row, text in texts.items() if not is_failed_request(text)}
    if len(answered) < len(texts):
        log.warning(
            "%d of %d responses are the error message of a failed request.", len(texts) - len(answered), len(texts)
        )
    return "text", answered


def _chosen(values: Sequence[float], output_type: str) -> int:
    """Return the number of the option that the harness takes.

    Most of lmms-eval's models give losses instead of log-likelihoods, and its own ``multiple_choice`` takes the smallest
    value of either. Tasks with rules of their own get the smallest loss or the largest log-likelihood, by the sign.
    """
    losses = output_type == "multiple_choice" or max(values) > 0
    return int(np.argmin(values) if losses else np.argmax(values))


def _likelihoods(value: Any) -> list[float]:
    """Return the log-likelihoods of a row's options; none where it has a text.

    Each is a pair of the number and whether greedy decoding gives it, logged as JSON or as Python writes it; or, of several
    options, the number alone.
    """
    found = []
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    for item in value if isinstance(value, list) else [value]:
        while isinstance(item, list) and len(item) == 1:
            item = item[0]
        if isinstance(item, list) and len(item) == 2 and (isinstance(item[1], bool) or item[1] in ("True", "False")):
            found.append(float(item[0]))
        elif isinstance(item, str) and (match := LIKELIHOOD.fullmatch(item.strip())):
            found.append(float(match[1]))
        elif len(value) > 1 and isinstance(item, str) and NEGATIVE.fullmatch(item.strip()):
            found.append(float(item))
        else:
            return []
    return found


def _response(value: Any) -> str:
    while isinstance(value, list):
        value = value[0] if value else ""
    return str(value)


def _clusters(lines: Mapping[int, Mapping[str, Any]], given: str | None) -> dict[int, Hashable]:
    """Return the image of each row where the log identifies it."""
    if given is not None:
        rows = ROWS.fullmatch(given)
        if rows:
            return {row: ("rows", row // int(rows[1])) for row in lines}
        if Path(given).is_file():
            return _from_file(Path(given), lines)
        found: dict[int, Hashable] = {
            row: value for row, line in lines.items() if (value := _logged(line, given)) is not None
        }
        if len(found) < len(lines):
            raise ResultsError(
                f"--cluster: expected a key of the logged values, rows:N or a CSV file, got {given!r}, which {len(lines) - len(found)} of {len(lines)} rows lack."
            )
        return found
    images: dict[int, Hashable] = {row: image for row, line in lines.items() if (image := _image(line)) is not None}
    if images:
        return images
    for key in CLUSTER_KEYS:
        found = {row: value for row, line in lines.items() if (value := _logged(line, key)) is not None}
        if len(found) == len(lines) and len(set(found.values())) < len(found):
            return found
    return {}


def _image(line: Mapping[str, Any]) -> str | None:
    media = line.get("input_media")
    named = [item for item in media if isinstance(item, str)] if isinstance(media, list) else []
    return next((name for name in named if name.endswith(IMAGE_SUFFIX)), None)


def _logged(line: Mapping[str, Any], key: str) -> str | None:
    for value in (line, *(cell for name, cell in line.items() if name not in NO_METRICS)):
        if isinstance(value, Mapping) and isinstance(value.get(key), str | int):
            return str(value[key])
    return None


def _from_file(path: Path, lines: Mapping[int, Any]) -> dict[int, Hashable]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = {int(row["doc_id"]): row["cluster"] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: expected a CSV file with the columns doc_id and cluster: {error}") from error
    missing = [row for row in lines if row not in found]
    if missing:
        raise ResultsError(f"{path}: {len(missing)} rows have no cluster there, such as {missing[0]}.")
    return {row: found[row] for row in lines}


def _with_clusters(tasks: Mapping[str, ScoredTask]) -> dict[str, ScoredTask]:
    """Return tasks with the image keys of their twins: a twin logs them, and has the rows of the clean task."""
    known: dict[str, Mapping[int, Hashable]] = {}
    for task in tasks.values():
        origin = task.twin.get("of")
        if origin and any(str(value).endswith(IMAGE_SUFFIX) for value in task.clusters.values()):
            known.setdefault(str(origin), task.clusters)
    return {name: replace(task, clusters={**task.clusters, **known.get(name, {})}) for name, task in tasks.items()}


def find_pairs(
    tasks: Mapping[str, ScoredTask],
    *,
    only: Sequence[str] = (),
    pairs: Sequence[str] = (),
    other_rows: Sequence[str] = (),
) -> dict[str, list[ShiftedTask]]:
    """Return the shifted tasks of every clean one.

    Args:
        tasks: tasks of one model.
        only: clean tasks to take; default: all that have twins.
        pairs: ``CLEAN=SHIFTED`` of the same rows.
        other_rows: ``CLEAN=SHIFTED`` of different rows.

    Raises:
        ResultsError: a task is not there, or nothing is to be compared.
    """
    found: dict[str, list[ShiftedTask]] = {}
    for given, paired in [*((names, True) for names in pairs), *((names, False) for names in other_rows)]:
        clean, equals, shifted = given.partition("=")
        missing = [name for name in (clean, shifted) if name not in tasks]
        if not equals or missing:
            raise ResultsError(
                f"expected CLEAN=SHIFTED of tasks that were logged, got {given!r}; logged are {', '.join(sorted(tasks)[:20])}."
            )
        found.setdefault(clean, []).append(ShiftedTask(tasks[clean], tasks[shifted], shifted, paired=paired))
    taken = {pair.shifted.name for of_task in found.values() for pair in of_task}
    for name, task in tasks.items():
        origin, described = _origin(name, task, tasks)
        if not origin and task.twin.get("of"):
            log.warning("%s is left out: its clean task, %s, was not logged.", name, task.twin["of"])
        if origin and name not in taken:
            paired = not task.twin.get("other_rows", False)
            pair = ShiftedTask(tasks[origin], task, *described, paired=paired)
            try:
                if paired:
                    check_pair(pair)
            except ResultsError as error:  # one that nobody named costs itself alone
                log.warning("%s is left out: %s", name, error)
                continue
            found.setdefault(origin, []).append(pair)
    missing = [name for name in only if name not in found]
    if missing:
        raise ResultsError(
            f"--task: {', '.join(missing)} has no shifted twin among what was logged: {', '.join(sorted(tasks)[:20])}. Run it with its twins, or name two tasks with --pair."
        )
    chosen = {name: of_task for name, of_task in found.items() if not only or name in only}
    if not chosen:
        raise ResultsError(
            f"no task has a shifted twin among what was logged: {', '.join(sorted(tasks)[:20])}. Write twins with lmms-eval-emi shifts twins, or name two tasks with --pair CLEAN=SHIFTED."
        )
    for of_task in chosen.values():
        _warn_of_settings(of_task)
    return {name: sorted(of_task, key=_order) for name, of_task in chosen.items()}


def _origin(
    name: str, task: ScoredTask, tasks: Mapping[str, ScoredTask]
) -> tuple[str | None, tuple[str, dict[str, str], str]]:
    """Return the clean task of a twin, and its shift: in words, by modality, and the level."""
    steps: dict[str, tuple[str, Any]] = {}
    origin = str(task.twin.get("of", ""))
    if origin:
        for modality in ("visual", "textual"):
            step = task.twin.get(modality)
            if isinstance(step, Mapping):
                steps[modality] = str(step.get("name")), step.get("level")
        if "domain" in task.twin:
            steps["domain"] = str(task.twin["domain"]), None
    else:
        for candidate in sorted(tasks, key=len, reverse=True):
            if name.startswith(f"{candidate}_") and (read := _named(name.removeprefix(f"{candidate}_"))):
                origin, steps = candidate, read
                break
    if origin not in tasks or not steps:
        return None, ("", {}, "")
    words = " + ".join(f"{label} {level}" if level is not None else label for label, level in steps.values())
    levels = [str(level) for _, level in steps.values() if level is not None]
    return origin, (words, {modality: label for modality, (label, _) in steps.items()}, "/".join(levels))


def _named(text: str) -> dict[str, tuple[str, Any]]:
    """Return steps from the end of a twin's name: ``defocus_blur_3_keyboard_1``."""
    recipe = recipe_of(text)
    named = {"visual": recipe.visual, "textual": recipe.textual} if recipe else {}
    return {modality: (step.operator.name, step.level) for modality, step in named.items() if step}


def _order(pair: ShiftedTask) -> tuple[Any, ...]:
    return ("visual" not in pair.operators, len(pair.operators), pair.group, pair.level, pair.shift)


def _warn_of_settings(pairs: Sequence[ShiftedTask]) -> None:
    for pair in pairs:
        differ = sorted(
            key
            for key in {*pair.clean.settings, *pair.shifted.settings}
            if pair.clean.settings.get(key) != pair.shifted.settings.get(key)
        )
        if differ:
            log.warning(
                "%s and %s were run with different %s, so they may differ by that as well.",
                pair.clean.name,
                pair.shifted.name,
                ", ".join(differ),
            )
