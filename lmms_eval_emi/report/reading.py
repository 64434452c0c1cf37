"""Results from memory, from our JSON, from a harness output folder, and from the published script's JSON, in one form."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lmms_eval_emi.core.jackknife import Jackknife, combine
from lmms_eval_emi.data.study import BUILT_IN, load_study
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.scoring.agreement import Agreement, AgreementDocument
from lmms_eval_emi.scoring.audit import AuditDocument
from lmms_eval_emi.scoring.result import ModalitySummary, SplitResult, StudyResult
from lmms_eval_emi.scoring.rows import (
    LostRow,
    StudyRows,
    is_result,
    jackknives_of,
    parse_result,
    read_entries,
    read_rows,
)
from lmms_eval_emi.util.files import parse_model, visible_files

if TYPE_CHECKING:
    from lmms_eval_emi.report.sections import Section

log = logging.getLogger("lmms_eval_emi")
# An image that is part of the page; anything else might be fetched, or run.
PICTURE = re.compile(r"data:image/(?:jpeg|png|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class GroupMean:
    """Mean EMID over a group of shifts."""

    modality: str  # modality of the shifts; empty for all
    label: str  # what shifts them
    splits: int  # how many there are
    emid: float  # their mean
    ci95: tuple[float, float] | None = None  # its interval, where the scores without each image are known


class ReportedResult(StudyResult):
    """A result, and what a report shows with it.

    Attributes:
        label: what the report calls it: the model, and the estimator if there are several of one model.
        source: file that it was read from, or the publication.
        published: whether these are the scores of the paper.
        by_row: its results by row; empty if they are not beside the file.
    """

    label: str = ""
    source: str = ""
    published: bool = False
    by_row: StudyRows = StudyRows()

    @classmethod
    def of(
        cls, result: StudyResult, *, label: str = "", source: str = "", published: bool = False, rows: StudyRows
    ) -> ReportedResult:
        """Return a result with what a report adds; the fields of the result are taken unchanged."""
        fields = {name: getattr(result, name) for name in StudyResult.model_fields}
        return cls.model_construct(
            **fields, label=label or result.model, source=source, published=published, by_row=rows
        )

    @cached_property
    def emid_jackknives(self) -> dict[str, Jackknife]:
        """EMID of the shifts whose values without each image are known."""
        return jackknives_of(self, self.by_row)[1]

    @cached_property
    def lost_rows(self) -> dict[str, list[LostRow]]:
        """The rows of each shift that lost most, with no image but those that the file itself holds."""
        return {name: [_without_foreign_images(row) for row in rows] for name, rows in self.by_row.lost.items()}

    @property
    def groups(self) -> list[GroupMean]:
        """Mean EMID by what shifts: by operator, image set or language; joint shifts are one group."""
        members: dict[tuple[str, str], list[SplitResult]] = {}
        for split in self.shifts().values():
            names = [shift.name.replace("_", " ") for shift in split.shifts]
            label = "joint" if split.modality == "joint" else " + ".join(names) or split.name
            members.setdefault((split.modality, label), []).append(split)
        return [self._mean_of(modality, label, member) for (modality, label), member in members.items()]

    @property
    def mean(self) -> GroupMean | None:
        """Mean EMID over all shifts."""
        shifts = list(self.shifts().values())
        return self._mean_of("", "all", shifts) if shifts else None

    def _mean_of(self, modality: str, label: str, splits: list[SplitResult]) -> GroupMean:
        values = [split.emid or 0.0 for split in splits]
        known = [self.emid_jackknives[split.name] for split in splits if split.name in self.emid_jackknives]
        interval = None
        if len(known) == len(splits) > 1:
            interval = combine(lambda parts: math.fsum(parts) / len(parts), known).ci95
        elif len(splits) == 1 and splits[0].emid_ci95:
            interval = (splits[0].emid_ci95[0], splits[0].emid_ci95[1])
        return GroupMean(modality, label, len(splits), math.fsum(values) / len(values), interval)

    @property
    def controls(self) -> list[SplitResult]:
        """Splits of other rows in distribution, whose EMID should be within its error."""
        return [split for split in self.splits.values() if split.modality == "control" and split.emid is not None]

    def means(self) -> dict[str, float | int | None]:
        """Return the means over the shifts and Pearson's r of EMID and index, by the heading of their column."""
        summary = ModalitySummary.of(self.shifts().values())
        id_split = self.splits.get(self.id_split)
        has_errors = any(split.emid_ci95 for split in self.splits.values())  # published scores have none
        return {
            "EMI (ID)": id_split.emi if id_split else None,
            "mean EMI": summary.mean_emi,
            "mean EMID": summary.mean_emid,
            "mean index": summary.mean_bound,
            "Pearson r": summary.pearson_r if self.summary.pearson_r_ci95 or not has_errors else None,
            "shifts": summary.n_shifts,
        }


def read_results(paths: Iterable[str | Path]) -> list[ReportedResult]:
    """Read results from files and folders.

    Args:
        paths: our JSON, the published script's JSON, or folders, which are searched for our JSON.

    Raises:
        ResultsError: a file has no results.
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
    return _with_unique_names(results)


@dataclass(frozen=True)
class Findings:
    """Findings of other commands, which a report shows with the scores."""

    audits: tuple[AuditDocument, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    sections: tuple[Section, ...] = ()


def single_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; an empty one for any other path, about which the reader of results gives the error."""
    try:
        entries = read_entries(path) if path.is_file() else []
    except ResultsError:
        entries = []
    return entries[0] if len(entries) == 1 and isinstance(entries[0], dict) else {}


def read_findings(paths: Iterable[str | Path]) -> tuple[Findings, list[Path]]:
    """Return the audits and agreements among some files, and the paths that are neither.

    Raises:
        ResultsError: a file is damaged.
    """
    audits: list[AuditDocument] = []
    agreements: list[Agreement] = []
    others = []
    for path in map(Path, paths):
        content = single_object(path)
        if {"findings", "split", "study"} <= content.keys():
            audits.append(parse_model(AuditDocument, content, path, what="results of lmms-eval-emi estimators audit"))
        elif content.get("kind") == "agreement":
            what = "results of lmms-eval-emi judge agree"
            agreements += parse_model(AgreementDocument, content, path, what=what).agreements
        else:
            others.append(path)
    return Findings(tuple(audits), tuple(agreements)), others


def published_results(study: str) -> list[ReportedResult]:
    """Return the published scores of a built-in family, of which the package has those of two models."""
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
            results.append(ReportedResult.of(result, source=str(path), rows=read_rows(path, result)))
        elif isinstance(entry, dict) and {"EMI", "EMID", "EMID_UB"} <= entry.keys():
            results.append(_from_published_script(entry, path))
        elif strict:
            kind = entry.get("kind") if isinstance(entry, dict) else None
            got = f"a file of the kind {str(kind)[:40]!r}" if kind else "JSON of another form"
            raise ResultsError(
                f"{path}: expected results of lmms-eval-emi score, of a harness run (*_emi_*.json) or of the published script, or what judge agree, estimators audit and robustness write; got {got}."
            )
    if strict and not results:
        raise ResultsError(f"{path}: expected results of lmms-eval-emi score, got an empty list.")
    return results


def _without_foreign_images(row: LostRow) -> LostRow:
    """Return the row with images that the file itself holds, or none; a page must not fetch any other."""

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
        published = entry[key]
        if not isinstance(published, dict) or not all(_is_number(value) for value in published.values()):
            raise ResultsError(
                f"{path}: expected finite numbers by split under {key}, got others. Run the script again."
            )
        values[key] = published
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
    study: str, label: str, model: str, scores: dict[str, dict[str, Any]], source: str, signature: str
) -> ReportedResult:
    catalogue = load_study(study)
    published = label.endswith("(published)")
    splits = {
        name: SplitResult(modality=split.modality, shifts=list(split.shifts), **scores[name])
        for name, split in catalogue.splits.items()
        if name in scores
    }
    settings = {
        "encoders": "openai/clip-vit-base-patch32+xlm-roberta-base",
        "estimator": "club-global",
        "convention": "published",
        "kind": "scaled",
    }
    result = StudyResult(
        signature=signature,
        model=model,
        shift=study,
        title=catalogue.title,
        id_split=catalogue.id_split,
        unit="nats" if published else "",
        settings=settings if published else {},
        splits=splits,
    )
    return ReportedResult.of(result, label=label, source=source, published=published, rows=StudyRows())


def _with_unique_names(results: list[ReportedResult]) -> list[ReportedResult]:
    """Return the results under labels that are all different within a study: by estimator, or else by number."""
    models = Counter((result.shift, result.model) for result in results)
    seen: Counter[tuple[str, str]] = Counter()
    labelled = []
    for result in results:
        several = models[result.shift, result.model] > 1 and result.estimator
        label = f"{result.model}, {result.estimator}" if several else result.label
        seen[result.shift, label] += 1
        number = seen[result.shift, label]
        labelled.append(result.model_copy(update={"label": label if number == 1 else f"{label} ({number})"}))
    return labelled
