"""Results from memory, from our JSON, from a harness output folder, and from the published script's JSON, in one form."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.core.jackknife import Jackknife, combine
from lmms_eval_emi.data.study import BUILT_IN, BUNDLED, Shift, load_study
from lmms_eval_emi.errors import ResultsError, StudyError
from lmms_eval_emi.scoring.agreement import AgreementDocument, AgreementResult
from lmms_eval_emi.scoring.audit import AuditDocument
from lmms_eval_emi.scoring.result import ModalitySummary, Scale, SplitResult, StudyResult
from lmms_eval_emi.scoring.rows import (
    LostRow,
    StudyRows,
    is_result,
    parse_result,
    read_entries,
    read_rows,
    to_jackknife,
)
from lmms_eval_emi.scoring.table import scale_in_words
from lmms_eval_emi.util.documents import parse_model
from lmms_eval_emi.util.files import visible_files

log = logging.getLogger("lmms_eval_emi")
JSDS = tuple(EXPONENTS)


# A picture that is part of the page; anything else might be fetched, or run.
PICTURE = re.compile(r"data:image/(?:jpeg|png|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


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
    floors: dict[str, float] = field(default_factory=dict)

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
class GroupMean:
    """Mean EMID over a group of shifts.

    Attributes:
        modality: of the shifts; empty for all.
        label: what shifts them.
        splits: how many there are.
        emid: their mean.
        ci95: its interval, where the scores without each image are known.
    """

    modality: str
    label: str
    splits: int
    emid: float
    ci95: tuple[float, float] | None = None


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
        settings: what scores must have in common to be compared, by name.
        fitness: whether the estimator is fit for the data.
        scale: what responses to other images cost, where the source has it.
        far_splits: those that are far from its training data.
        emid_jackknives: EMID of shifts with and without each image, where the rows are beside the results.
        published: whether these are the scores of the paper.
    """

    label: str
    study: str
    model: str
    id_split: str
    splits: dict[str, ReportedSplit]
    signature: str
    source: str
    footer: tuple[str, ...] = ()
    lost_rows: dict[str, list[LostRow]] = field(default_factory=dict)
    estimator: str = ""
    title: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    fitness: str = ""
    far_splits: tuple[str, ...] = ()
    scale: Scale | None = None
    published: bool = False
    emid_jackknives: dict[str, Jackknife] = field(default_factory=dict, repr=False)

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

    @property
    def groups(self) -> list[GroupMean]:
        """Mean EMID by what shifts: by operator, image set or language; joint shifts are one group."""
        members: dict[tuple[str, str], list[ReportedSplit]] = {}
        for split in self.shifts:
            names = [shift.name.replace("_", " ") for shift in split.shifts]
            label = "joint" if split.modality == "joint" else " + ".join(names) or split.name
            members.setdefault((split.modality, label), []).append(split)
        return [self._mean_of(modality, label, own) for (modality, label), own in members.items()]

    @property
    def mean(self) -> GroupMean | None:
        """Mean EMID over all shifts."""
        return self._mean_of("", "all", self.shifts) if self.shifts else None

    def _mean_of(self, modality: str, label: str, splits: list[ReportedSplit]) -> GroupMean:
        values = [split.emid or 0.0 for split in splits]
        known = [self.emid_jackknives[split.name] for split in splits if split.name in self.emid_jackknives]
        interval = None
        if len(known) == len(splits) > 1:
            interval = combine(lambda parts: math.fsum(parts) / len(parts), known).ci95
        elif len(splits) == 1:
            interval = splits[0].emid_ci95
        return GroupMean(modality, label, len(splits), math.fsum(values) / len(values), interval)

    @property
    def controls(self) -> list[ReportedSplit]:
        """Splits of other rows in distribution, whose EMID should be within its error."""
        return [split for split in self.splits.values() if split.modality == "control" and split.emid is not None]

    def summary(self) -> dict[str, float | int | None]:
        """Means over the shifts, and Pearson's r of EMID and index."""
        summary = ModalitySummary.of(
            SplitResult(emi=split.emi, emid=split.emid, emid_bound=split.bound) for split in self.shifts
        )
        id_split = self.splits.get(self.id_split)
        return {
            "EMI (ID)": id_split.emi if id_split else None,
            "mean EMI": summary.mean_emi,
            "mean EMID": summary.mean_emid,
            "mean index": summary.mean_bound,
            "Pearson r": summary.pearson_r,
            "shifts": summary.n_shifts,
        }


def read_results(paths: Iterable[str | Path]) -> list[ReportedResult]:
    """Read results from files and folders.

    Args:
        paths: our JSON, the published script's JSON, or folders, which are searched for our JSON.

    Raises:
        ResultsError: one of them holds no results.
    """
    results: list[ReportedResult] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = visible_files(path, "*_emi_*.json") or sorted(path.glob("*.json"))
            files = [file for file in files if not file.name.endswith(".rows.json")]
            found = [result for file in files for result in _read_file(file, strict=False)]
            if not found:
                raise ResultsError(
                    f"{path}: expected a folder with *_emi_*.json, as a harness run or score writes, found none. Run lmms-eval with --output_path, or lmms-eval-emi score with --output."
                )
            results += found
        else:
            results += _read_file(path, strict=True)
    return _told_apart(results)


@dataclass(frozen=True)
class Findings:
    """What other commands found, which a report shows beside the scores."""

    audits: tuple[AuditDocument, ...] = ()
    agreements: tuple[AgreementResult, ...] = ()


def read_findings(paths: Iterable[str | Path]) -> tuple[Findings, list[Path]]:
    """Return the audits and agreements among some files, and the paths that are neither.

    Raises:
        ResultsError: one is damaged.
    """
    audits: list[AuditDocument] = []
    agreements: list[AgreementResult] = []
    others = []
    for path in map(Path, paths):
        try:
            entries = read_entries(path) if path.is_file() else []
        except ResultsError:
            entries = []  # whoever reads it as results says why
        content = entries[0] if len(entries) == 1 and isinstance(entries[0], dict) else {}
        if {"findings", "split", "study"} <= content.keys():
            audits.append(parse_model(AuditDocument, content, path, what="results of lmms-eval-emi estimators audit"))
        elif content.get("kind") == "agreement":
            what = "results of lmms-eval-emi judge agree"
            agreements += parse_model(AgreementDocument, content, path, what=what).agreements
        else:
            others.append(path)
    return Findings(tuple(audits), tuple(agreements)), others


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
        entries = read_entries(path)
    except ResultsError:
        if strict:
            raise
        return []
    results = []
    for entry in entries:
        if is_result(entry):
            result = parse_result(entry, path)
            results.append(from_result(result, read_rows(path, result), str(path)))
        elif isinstance(entry, dict) and {"EMI", "EMID", "EMID_UB"} <= entry.keys():
            results.append(_from_published_script(entry, path))
        elif strict:
            raise ResultsError(
                f"{path}: expected results of lmms-eval-emi score, of a harness run (*_emi_*.json) or of the published script, got JSON of another form."
            )
    if strict and not results:
        raise ResultsError(f"{path}: expected results of lmms-eval-emi score, got an empty list.")
    return results


def from_result(entry: StudyResult, rows: StudyRows, source: str) -> ReportedResult:
    """Return a result as a report shows it.

    Args:
        entry: of one model in one study.
        rows: that belong to it; empty if there are none.
        source: what the report says of where it comes from.
    """
    splits = {
        name: ReportedSplit(
            name,
            scores.modality,
            tuple(scores.shifts) or _known_shifts(entry.shift, name),
            scores.emi,
            scores.emid,
            scores.emid_bound,
            scores.n,
            {key: value for key in JSDS if (value := getattr(scores, key)) is not None},
            scores.variant_of,
            emi_stderr=scores.emi_stderr,
            emid_stderr=scores.emid_stderr,
            emid_p_adjusted=scores.emid_p_adjusted,
            emid_ci95=(scores.emid_ci95[0], scores.emid_ci95[1]) if scores.emid_ci95 else None,
            verdict=scores.verdict,
            images=scores.images,
            floors={key: value for key in JSDS if (value := getattr(scores, f"{key}_floor")) is not None},
        )
        for name, scores in entry.splits.items()
    }
    fit = entry.estimator_fit
    notes = [f"{name}: {'; '.join(lines)}" for name, lines in {**entry.notes, **entry.left_out}.items()]
    far = f": far are {', '.join(fit.far_splits[:5])}" if fit.far_splits else ""
    scale = scale_in_words(entry)
    scales = [f"Scale: {scale}."] if scale else []
    footer = (f"Estimator: {fit.verdict} for these data, in {entry.unit}{far}.", *scales, *notes)
    lost = {split: [_without_foreign_pictures(row) for row in own] for split, own in rows.lost.items()}
    estimator = str(entry.settings.get("estimator", ""))
    return ReportedResult(
        entry.model,
        entry.shift,
        entry.model,
        entry.id_split,
        splits,
        entry.signature,
        source,
        footer,
        lost,
        estimator,
        entry.title,
        {**{str(key): str(value) for key, value in entry.settings.items()}, "unit": entry.unit},
        fit.verdict,
        tuple(fit.far_splits),
        entry.scale,
        emid_jackknives={
            name: to_jackknife(split.emid, without.emid)
            for name, split in entry.splits.items()
            if split.emid is not None and (without := rows.without_each_image.get(name)) and without.emid is not None
        },
    )


def _without_foreign_pictures(row: LostRow) -> LostRow:
    """The row with pictures that are part of the page, or none; anything else might be fetched."""

    def own(image: str) -> str:
        return image if PICTURE.fullmatch(image) else ""

    clean = row.clean.model_copy(update={"image": own(row.clean.image)}) if row.clean else None
    return row.model_copy(update={"image": own(row.image), "clean": clean})


def _from_published_script(entry: dict[str, Any], path: Path) -> ReportedResult:
    study = str(entry.get("shift_type", "")).lower()
    if study not in BUILT_IN:
        raise ResultsError(f"{path}: expected shift_type NATURAL or SYNTHETIC, got {entry.get('shift_type')!r}.")
    values: dict[str, dict[str, float]] = {}
    for key in ("EMI", "EMID", "EMID_UB"):
        own = entry[key]
        if not isinstance(own, dict) or not all(_is_number(value) for value in own.values()):
            raise ResultsError(
                f"{path}: expected finite numbers by split under {key}, got others. Run the script again."
            )
        values[key] = own
    scores = {
        name: {"emi": emi, "emid": values["EMID"].get(name), "emid_bound": values["EMID_UB"].get(name)}
        for name, emi in values["EMI"].items()
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


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
    settings = {
        "encoders": "openai/clip-vit-base-patch32+xlm-roberta-base",
        "estimator": "club-global",
        "convention": "published",
        "kind": "scaled",
        "unit": "nats",
    }
    published = label.endswith("(published)")
    return ReportedResult(
        label,
        study,
        model,
        catalogue.id_split,
        splits,
        signature,
        source,
        title=catalogue.title,
        settings=settings if published else {},
        published=published,
    )


def _known_shifts(study: str, split: str) -> tuple[Shift, ...]:
    """The shifts of a split of a study that the package has; a name from a file is never taken for a path."""
    try:
        return load_study(study).split(split).shifts if study in (*BUILT_IN, *BUNDLED) else ()
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
