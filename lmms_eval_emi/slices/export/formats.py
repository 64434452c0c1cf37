"""Results in formats of other tools: ``every-eval-ever`` and lm-evaluation-harness.

No number is lost: what a form has no place for stands in its free fields, as text with all digits or under a name of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.scoring.result import StudyResult
from lmms_eval_emi.scoring.rows import is_result, parse_result, read_entries
from lmms_eval_emi.version import __version__

EEE_VERSION = "0.3.0"  # version of every-eval-ever's schema
METRICS = {
    "emi": ("Effective mutual information", False),
    "emid": ("Effective mutual information difference, in distribution less shift", True),
    "emid_bound": ("Shift index: sum of roots of the RJSD of images, questions and responses", True),
}
FILTER = "none"  # filter in lm-evaluation-harness's names, "metric,filter"


def read_entry(path: Path, model: str | None = None) -> StudyResult:
    """Return the results of one model.

    Args:
        path: path of the results.
        model: name of the model; default: the only one of the file.

    Raises:
        ResultsError: there are several, or none of that name.
    """
    found = [parse_result(entry, path) for entry in read_entries(path) if is_result(entry)]
    if not found:
        raise ResultsError(f"{path}: expected results of lmms-eval-emi score, got JSON of another form.")
    chosen = [result for result in found if model in (None, result.model)]
    if len(chosen) != 1:
        names = ", ".join(f"{result.model} ({result.shift}, {result.settings.get('estimator')})" for result in found)
        raise ResultsError(
            f"{path}: expected the results of one model in one study with one estimator, got {len(chosen)}; name one of {names} with --only-model, or score it by itself."
        )
    return chosen[0]


def to_every_eval_ever(
    entry: StudyResult, retrieved: float, organization: str = "unknown", model_id: str | None = None
) -> dict[str, Any]:
    """Return results as an aggregate log of ``every-eval-ever``, an evaluation for every score of each split.

    Args:
        entry: entry of one model.
        retrieved: seconds since 1970 that the record says it was made at.
        organization: organization that ran the evaluation.
        model_id: name of the model, as the hub has it; default: its name.
    """
    identity = model_id or entry.model
    results = [
        _to_evaluation_result(entry, name, split, metric)
        for name, split in entry.to_data()["splits"].items()
        for metric in METRICS
        if split.get(metric) is not None
    ]
    digest = hashlib.sha256(repr(sorted(entry.settings.items())).encode()).hexdigest()[:12]
    return {
        "schema_version": EEE_VERSION,
        "evaluation_id": f"lmms_eval_emi_{entry.shift}/{entry.model.replace('/', '_')}/{digest}_{retrieved:.0f}",
        "retrieved_timestamp": f"{retrieved:.0f}",
        "source_metadata": {
            "source_name": "lmms_eval_emi",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": "third_party",
        },
        "eval_library": {
            "name": "lmms_eval_emi",
            "version": __version__,
            "additional_details": {"signature": entry.signature, "format_version": str(entry.format_version)},
        },
        "model_info": {
            "name": entry.model,
            "id": identity if "/" in identity else f"unknown/{identity}",
            "additional_details": {"deployment_type": "unknown", "model_availability": "unknown"},
        },
        "evaluation_results": results,
    }


def _to_evaluation_result(entry: StudyResult, name: str, split: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return one score of one split as an evaluation result of every-eval-ever."""
    description, lower = METRICS[metric]
    others = {
        key: _as_text(value)
        for key, value in split.items()
        if key not in (metric, f"{metric}_stderr", f"{metric}_ci95")
        and (metric == "emi" or key.startswith(f"{metric}_"))
    }
    encoders = str(entry.settings.get("encoders", ""))
    return {
        "evaluation_result_id": f"{entry.shift}/{name}/{metric}",
        "evaluation_name": f"{entry.shift}/{name}",
        "source_data": _source_data(entry, name),
        "metric_config": {
            "evaluation_description": f"{entry.title or entry.shift}, split {name}",
            "metric_id": f"lmms_eval_emi.{metric}",
            "metric_name": metric,
            "metric_kind": description,
            "metric_unit": entry.unit if metric != "emid_bound" else "roots of nats",
            "lower_is_better": lower,
            "score_type": "continuous",
            "min_score": "-Infinity" if metric != "emid_bound" else 0.0,
            "max_score": "Infinity",
            "additional_details": {"signature": entry.signature, "encoders": encoders},
        },
        "score_details": {
            "score": split[metric],
            "details": {key: value for key, value in others.items() if value},
            **_uncertainty(split, metric),
        },
    }


def _source_data(entry: StudyResult, split: str) -> dict[str, Any]:
    described = entry.to_data().get("study") or {}
    dataset = ((described.get("splits") or {}).get(split) or {}).get("dataset") or {}
    path = str(dataset.get("path") or "")
    count = entry.splits[split].n
    if path and path.count("/") == 1 and not path.startswith((".", "/")):
        samples = {"samples_number": count} if count is not None else {}
        return {"dataset_name": split, "source_type": "hf_dataset", "hf_repo": path, **samples}
    return {"dataset_name": split, "source_type": "other"}


def _uncertainty(split: Mapping[str, Any], metric: str) -> dict[str, Any]:
    error, interval = split.get(f"{metric}_stderr"), split.get(f"{metric}_ci95")
    if error is None:
        return {}
    found: dict[str, Any] = {"standard_error": {"value": error, "method": "jackknife over images"}}
    if interval:
        found["confidence_interval"] = {
            "lower": interval[0],
            "upper": interval[1],
            "confidence_level": 0.95,
            "method": "t with images - 1 degrees of freedom",
        }
    if split.get("images") is not None:
        found["num_samples"] = split["images"]
    return {"uncertainty": found}


def _as_text(value: Any) -> str:
    """Return a value as text that gives it back: every digit of a number, JSON of the rest."""
    import json

    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def to_lm_eval(entry: StudyResult, date: float) -> dict[str, Any]:
    """Return results as lm-evaluation-harness writes them: every number of a split under ``name,none``.

    Args:
        entry: entry of one model.
        date: seconds since 1970 of the run.
    """
    results: dict[str, dict[str, Any]] = {}
    samples: dict[str, dict[str, Any]] = {}
    for name, split in entry.to_data()["splits"].items():
        task = f"{entry.shift}_{name}"
        results[task] = {"alias": name, **_named_numbers(split)}
        samples[task] = {"original": split.get("n"), "effective": split.get("n")}
    summary = entry.to_data().get("summary") or {}
    group = {"alias": entry.title or entry.shift}
    group |= {f"{key},{FILTER}": value for key, value in summary.items() if _is_number(value)}
    error = summary.get("mean_emid_stderr")
    if error is not None:
        group[f"mean_emid_stderr,{FILTER}"] = error
    return {
        "results": results,
        "groups": {entry.shift: group},
        "group_subtasks": {entry.shift: list(results)},
        "configs": {
            task: {
                "task": task,
                "dataset_path": str((_source_data(entry, name)).get("hf_repo", "")),
                "output_type": "generate_until",
                "metric_list": [
                    {"metric": metric, "aggregation": "mean", "higher_is_better": not lower}
                    for metric, (_, lower) in METRICS.items()
                ],
                "metadata": {"signature": entry.signature, "split": entry.splits[name].to_data()},
            }
            for task, name in zip(results, entry.splits, strict=True)
        },
        "versions": dict.fromkeys(results, entry.format_version),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {task: {metric: not lower for metric, (_, lower) in METRICS.items()} for task in results},
        "n-samples": samples,
        "config": {"model": entry.model, "model_args": "", "signature": entry.signature, "lmms_eval_emi": __version__},
        "date": date,
        "model_name": entry.model,
        "model_name_sanitized": entry.model.replace("/", "__"),
        "model_source": "lmms_eval_emi",
        "git_hash": None,
    }


def _named_numbers(split: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers under ``name,none``; standard errors as the form writes them, ``name_stderr,none``."""
    return {f"{key},{FILTER}": value for key, value in split.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


FORMATS: Sequence[str] = ("every-eval-ever", "lm-eval")
