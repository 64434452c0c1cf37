"""Results from memory, from our JSON, from a harness output folder, and from the published script's JSON, in one form."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.scoring.results import FORMAT_VERSION, StudyResult, Summary
from lmms_eval_emi.scoring.row_results import read_rows
from lmms_eval_emi.studies.schema import BUILT_IN, Shift, StudyError, load_study

log = logging.getLogger("lmms_eval_emi")
JSDS = tuple(EXPONENTS)


NO_ROW = {"id": "", "loss": None, "question": "", "response": "", "reference": "", "image": ""}


class ReportError(ValueError):
    """A file or folder holds no results."""


@dataclass(frozen=True)
class ReportedSplit:
    """Scores of one split, as far as the source has them."""

    name: str
    modality: str
    shifts: tuple[Shift, ...]
    emi: float
    emid: float | None = None
    bound: float | None = None
    n: int | None = None
    jsds: dict[str, float] = field(default_factory=dict)
    variant_of: str | None = None
    emi_stderr: float | None = None
    emid_stderr: float | None = None
    emid_ci95: tuple[float, float] | None = None
    emid_p_adjusted: float | None = None
    verdict: str | None = None
    images: int | None = None

    @property
    def differs(self) -> bool:
        """Whether EMID differs from 0 after adjustment."""
        return self.verdict in ("lost", "gained")

    def label(self, modality: str) -> str:
        """Its shifts of one modality in words."""
        return (
            " + ".join(str(shift).replace("_", " ") for shift in self.shifts if shift.modality == modality)
            or "unshifted"
        )


@dataclass(frozen=True)
class ReportedResult:
    """One model's results in one study.

    Attributes:
        label: what tells it apart: model, and estimator where that differs.
        study: name of the study.
        model: whose responses.
        id_split: the split in distribution.
        splits: by name, in the study's order.
        signature: what the scores depend on.
        source: where they come from.
        footer: lines that a reader should see below the scores.
        lost_rows: the rows of every shift that lost most, where the source has them.
        estimator: name and hash, where the source has them.
        title: of the study, where the source has it.
    """

    label: str
    study: str
    model: str
    id_split: str
    splits: dict[str, ReportedSplit]
    signature: str
    source: str
    footer: tuple[str, ...] = ()
    lost_rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    estimator: str = ""
    title: str = ""

    @property
    def shifts(self) -> list[ReportedSplit]:
        """The shifts that have EMID and index; variants, which ask the rows of another split, and controls are none."""
        return [
            split
            for split in self.splits.values()
            if split.emid is not None
            and split.bound is not None
            and split.variant_of is None
            and split.modality != "control"
        ]

    def summary(self) -> dict[str, float | int | None]:
        """Means over the shifts, and Pearson's r of EMID and index."""
        summary = Summary.of((split.emi, split.emid or 0.0, split.bound or 0.0) for split in self.shifts)
        id_split = self.splits.get(self.id_split)
        return {
            "EMI (ID)": id_split.emi if id_split else None,
            "mean EMI": summary.mean_emi,
            "mean EMID": summary.mean_emid,
            "mean bound": summary.mean_bound,
            "Pearson r": summary.pearson_r,
            "shifts": summary.n_shifts,
        }


def from_result(result: StudyResult, rows: Mapping[str, Any], source: str) -> ReportedResult:
    """A result that is in memory.

    Args:
        result: of one model in one study.
        rows: as :func:`lmms_eval_emi.scoring.row_results.result_to_rows` gives them.
        source: what the report says of where it comes from.
    """
    return _from_entry(result.to_dict(), rows, source)


def read_results(paths: Iterable[str | Path]) -> list[ReportedResult]:
    """Read results from files and folders.

    Args:
        paths: our JSON, the published script's JSON, or folders, which are searched for our JSON.

    Raises:
        ReportError: one of them holds no results.
    """
    results: list[ReportedResult] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(path.rglob("*_emi_*.json")) or sorted(path.glob("*.json"))
            files = [file for file in files if not file.name.endswith(".rows.json")]
            found = [result for file in files for result in _read_file(file, strict=False)]
            if not found:
                raise ReportError(
                    f"{path}: expected a folder with *_emi_*.json, as a harness run or score writes, found none. Run lmms-eval with --output_path, or lmms-eval-emi score with --output."
                )
            results += found
        else:
            results += _read_file(path, strict=True)
    return _told_apart(results)


def published_results(study: str) -> list[ReportedResult]:
    """The published scores of a built-in family, of which the package has those of two models."""
    if study not in BUILT_IN:
        return []
    text = resources.files("lmms_eval_emi.report").joinpath("published.yaml").read_text(encoding="utf-8")
    return [
        _from_scores(
            study,
            f"{model} (published)",
            model,
            scores,
            "Oh et al., ICML 2025",
            "published: Oh et al., ICML 2025 (club-global, convention published, scaled)",
        )
        for model, scores in yaml.safe_load(text).get(study, {}).items()
    ]


def _read_file(path: Path, *, strict: bool) -> list[ReportedResult]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if strict:
            raise ReportError(f"{path}: expected a JSON file of results: {error}") from error
        return []
    entries = (
        content["results"] if isinstance(content, dict) and isinstance(content.get("results"), list) else [content]
    )
    results = []
    for entry in entries:
        try:
            if isinstance(entry, dict) and {"splits", "id_split", "signature"} <= entry.keys():
                if not _is_known_version(entry):
                    raise ReportError(
                        f"{path}: its format_version is {entry['format_version']!r}, and this version of lmms_eval_emi reads up to {FORMAT_VERSION}. Update it: pip install --upgrade lmms_eval_emi"
                    )
                results.append(_from_entry(entry, read_rows(path, entry), str(path)))
                continue
            if isinstance(entry, dict) and {"EMI", "EMID", "EMID_UB"} <= entry.keys():
                results.append(_from_published_script(entry, path))
                continue
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise ReportError(
                f"{path}: expected results of lmms-eval-emi score, got some that are damaged: {type(error).__name__}: {error}"
            ) from error
        if strict:
            raise ReportError(
                f"{path}: expected results of lmms-eval-emi score, of a harness run (*_emi_*.json) or of the published script, got JSON of another form."
            )
    return results


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = map(_number, value)
    return None if low is None or high is None else (low, high)


def _is_known_version(entry: Mapping[str, Any]) -> bool:
    version = entry.get("format_version", 1)
    return isinstance(version, int) and 1 <= version <= FORMAT_VERSION


def _from_entry(entry: Mapping[str, Any], rows: Mapping[str, Any], source: str) -> ReportedResult:
    splits = {}
    for name, scores in entry["splits"].items():
        if not isinstance(scores["emi"], int | float):
            raise TypeError(f"emi of {name} is {scores['emi']!r}")
        shifts = tuple(Shift(**shift) for shift in scores.get("shifts", [])) or _known_shifts(entry["shift"], name)
        jsds = {key: scores[key] for key in JSDS if key in scores}
        splits[name] = ReportedSplit(
            name,
            scores.get("modality", "id"),
            shifts,
            scores["emi"],
            scores.get("emid"),
            scores.get("emid_bound"),
            scores.get("n"),
            jsds,
            scores.get("variant_of"),
            **{key: _number(scores.get(key)) for key in ("emi_stderr", "emid_stderr", "emid_p_adjusted")},
            emid_ci95=_interval(scores.get("emid_ci95")),
            verdict=scores.get("verdict"),
            images=scores.get("images"),
        )
    fit = entry.get("estimator_fit", {})
    notes = [
        f"{name}: {'; '.join(lines)}" for name, lines in {**entry.get("notes", {}), **entry.get("left_out", {})}.items()
    ]
    footer = (
        f"Estimator: {fit.get('verdict', 'unknown')} for these data, in {entry.get('unit', 'nats')}{': far are ' + ', '.join(fit['far_splits'][:5]) if fit.get('far_splits') else ''}.",
        *notes,
    )
    lost = {
        split: [{**NO_ROW, **row} for row in lost if isinstance(row, dict)]
        for split, lost in (rows.get("lost") or {}).items()
        if isinstance(lost, list)
    }
    estimator = entry.get("settings", {}).get("estimator", "")
    return ReportedResult(
        entry["model"],
        entry["shift"],
        entry["model"],
        entry["id_split"],
        splits,
        entry["signature"],
        source,
        footer,
        lost,
        estimator,
        entry.get("title", ""),
    )


def _from_published_script(entry: dict[str, Any], path: Path) -> ReportedResult:
    study = str(entry.get("shift_type", "")).lower()
    if study not in BUILT_IN:
        raise ReportError(f"{path}: expected shift_type NATURAL or SYNTHETIC, got {entry.get('shift_type')!r}.")
    scores = {
        name: {"emi": emi, "emid": entry["EMID"].get(name), "emid_bound": entry["EMID_UB"].get(name)}
        for name, emi in entry["EMI"].items()
    }
    model = str(entry.get("model_name", path.stem))
    return _from_scores(
        study,
        model,
        model,
        scores,
        str(path),
        f"published script: {entry.get('v_embedder_name')}+{entry.get('t_embedder_name')}, {entry.get('mi_ckpt_path')}",
    )


def _from_scores(
    study: str, label: str, model: str, scores: dict[str, dict], source: str, signature: str
) -> ReportedResult:
    catalogue = load_study(study)
    splits = {}
    for name, split in catalogue.splits.items():
        if name in scores:
            own = scores[name]
            splits[name] = ReportedSplit(
                name, split.modality, split.shifts, own["emi"], own.get("emid"), own.get("emid_bound")
            )
    return ReportedResult(label, study, model, catalogue.id_split, splits, signature, source)


def _known_shifts(study: str, split: str) -> tuple[Shift, ...]:
    try:
        return load_study(study).split(split).shifts
    except StudyError:
        return ()


def _told_apart(results: list[ReportedResult]) -> list[ReportedResult]:
    """The results under labels that are all different within a study: by estimator, or else by number."""
    models = Counter((result.study, result.model) for result in results)
    seen: Counter[tuple[str, str]] = Counter()
    labelled = []
    for result in results:
        several = models[result.study, result.model] > 1 and result.estimator
        label = f"{result.model}, {result.estimator}" if several else result.label
        seen[result.study, label] += 1
        number = seen[result.study, label]
        labelled.append(replace(result, label=label if number == 1 else f"{label} ({number})"))
    return labelled
