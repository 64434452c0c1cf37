"""Who agrees with whom: EMI and EMID beside the scores that somebody else gave, of splits or of rows.

Over splits, EMI is correlated with a score and EMID and the index with what the score loses; within splits, the values of
rows with the scores of rows. The cosine of response and reference, which needs no estimator, is shown next to EMI as the
baseline that it must beat. Errors are for new images: of a score that has rows, on the images that EMI has; a score of splits
alone counts as fixed.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmms_eval_emi.core.correlation import MEASURES, Correlation, correlate, lead
from lmms_eval_emi.core.jackknife import Jackknife, combine, difference
from lmms_eval_emi.core.totals import ClusterTotals, Function, mean, ratio
from lmms_eval_emi.data.rows import id_text
from lmms_eval_emi.errors import InputError, ResultsError
from lmms_eval_emi.scoring.result import CHEAP_DRAWS
from lmms_eval_emi.scoring.rows import SplitRows, jackknives_of, read_results, read_rows, to_jackknife
from lmms_eval_emi.util.files import Document, Interval, Plain, parse_json

log = logging.getLogger("lmms_eval_emi")

FEWEST_ROWS = 8  # rows of a split, for a correlation within it
FAILED = -1.0  # the score that judges' scripts write for a call that failed
TIE = 9  # digits to which two mean scores of a judge are compared: thirds of a point are not exact
RowScores = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class OutsideScores:
    """Scores that somebody else gave.

    Attributes:
        name: name of the score.
        rows: rows by split and question id, parts whose sums the score of a split is a function of.
        splits: splits by split, where there are no scores of rows.
        function: function of the sums.
        model: model whose responses; empty: of each model.
    """

    name: str
    rows: RowScores = field(default_factory=dict, repr=False)
    splits: Mapping[str, float] = field(default_factory=dict, repr=False)
    function: Function = mean
    model: str = ""

    def value_of(self, parts: tuple[float, float]) -> float:
        """Return a row's own score: of a judge, the model's less the reference's."""
        return round(parts[0] / 100 - parts[1], TIE) if self.function is ratio else parts[0]

    def is_right(self, parts: tuple[float, float]) -> bool | None:
        """Return whether a row is right: of a judge, at least as good as the reference; ``None`` for scores of other kinds."""
        if self.function is ratio:
            return self.value_of(parts) >= 0
        return bool(parts[0]) if parts[0] in (0.0, 1.0) else None


def read_scores(path: Path, name: str) -> list[OutsideScores]:
    """Return scores of a file: CSV, JSON lines or a JSON list with split and score, and question_id where they are of rows.

    Records without a usable score are left out; see :func:`without_failed`.

    Args:
        path: path of the file; a column ``model`` says whose they are.
        name: name of the score.

    Raises:
        ResultsError: the file cannot be read, or a line lacks a column or has a score that is not a number.
    """
    records = []
    for number, record in _records(path):
        try:
            score = number_of_score(record["score"])
            row = record.get("question_id", record.get("id"))
            records.append((number, str(record["split"]), score, str(record.get("model") or ""), row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultsError(
                f"{path}, record {number}: expected split, score and perhaps question_id and model: {type(error).__name__} {error}"
            ) from error
    usable = without_failed(path, [score for _, _, score, _, _ in records])
    by_model: dict[str, tuple[dict[str, dict[str, tuple[float, float]]], dict[str, float]]] = {}
    for (number, split, _, model, row), score in zip(records, usable, strict=True):
        if score is None:
            continue
        rows, splits = by_model.setdefault(model, ({}, {}))
        scores = rows.setdefault(split, {}) if row not in (None, "") else splits
        key = id_text(row) if row not in (None, "") else split
        if key in scores:
            raise ResultsError(f"{path}, record {number}: {split}, {key} has a score already.")
        scores[key] = (score, 1.0) if row not in (None, "") else score  # type: ignore[assignment]
    if not by_model:
        raise ResultsError(f"{path}: expected records with split and score, found none.")
    mixed = [model for model, (rows, splits) in by_model.items() if rows and splits]
    if mixed:
        raise ResultsError(f"{path}: expected scores of rows or of splits, got both.")
    return [OutsideScores(name, rows, splits, model=model) for model, (rows, splits) in by_model.items()]


def number_of_score(score: Any) -> float | None:
    """Return a score of a file as a number, ``None`` where it is blank; true counts 1, and false 0.

    Raises:
        ValueError: the score is not a finite number.
    """
    word = "" if score is None else str(score).strip()
    if not word:
        return None
    number = float(word.lower() == "true") if word.lower() in ("true", "false") else float(word)
    if not math.isfinite(number):
        raise InputError(f"the score is {score}")
    return number


def without_failed(path: Path, scores: Sequence[float | None]) -> list[float | None]:
    """Return the scores of a file with ``None`` for those of failed calls; how many cannot be used is logged.

    A score of -1 is one where no other is negative: llava-bench and others write it where a judge's reply could not be read.
    """
    negative = any(score is not None and score < 0 and score != FAILED for score in scores)
    usable = [None if score == FAILED and not negative else score for score in scores]
    blank = sum(score is None for score in scores)
    failed = sum(score is None for score in usable) - blank
    for count, what in ((blank, "no score"), (failed, "a score of -1, the mark of a failed call")):
        if count:
            log.warning("%s: %d of %d records have %s, and are left out.", path, count, len(scores), what)
    return usable


def _records(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        if not path.is_file():
            raise OSError("it is not a regular file" if path.exists() else "it is not there")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return list(enumerate(csv.DictReader(io.StringIO(text, newline="")), 1))
        if text.lstrip().startswith("["):
            return list(enumerate(parse_json(text), 1))
        return [(number, parse_json(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (OSError, ValueError, csv.Error, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: expected CSV, JSON lines or a JSON list of scores: {error}") from error


@dataclass(frozen=True)
class ResultToCompare:
    """The parts of one model's results that agreement needs.

    Attributes:
        model, study: names of the model and of the study.
        signature: what the scores depend on.
        id_split: the split in distribution.
        emi, emid: of each split and shift, with their leave-one-image-out values.
        index: index of each shift.
        rows: rows of each split.
        estimator: signature of the estimator.
    """

    model: str
    study: str
    signature: str
    id_split: str
    emi: Mapping[str, Jackknife]
    emid: Mapping[str, Jackknife]
    index: Mapping[str, float]
    rows: Mapping[str, SplitRows]
    estimator: str = ""


def read_results_to_compare(path: Path) -> list[ResultToCompare]:
    """Return results with their rows.

    Raises:
        ResultsError: the file has no results, or no rows with images and cosines.
    """
    found = []
    for result in read_results(path):
        beside = read_rows(path, result)
        if not beside.rows:
            raise ResultsError(
                f"{path}: its rows are not beside it. Keep *.rows.json with the results, or score again."
            )
        if any(rows.image is None or rows.cosine is None for rows in beside.rows.values()):
            raise ResultsError(f"{path}: its rows lack images and cosines. Score the responses again.")
        emi, emid = jackknives_of(result, beside)
        counted = [
            name for name, split in result.splits.items() if split.modality != "control" and not split.variant_of
        ]
        emi, emid = ({name: known[name] for name in counted if name in known} for known in (emi, emid))
        index = {name: split.emid_bound for name, split in result.splits.items() if split.emid_bound is not None}
        found.append(
            ResultToCompare(
                result.model,
                result.shift,
                result.signature,
                result.id_split,
                emi,
                emid,
                index,
                beside.rows,
                result.estimator,
            )
        )
    return found


class Point(Plain):
    """One split in a correlation; a score is ``None`` if it is not defined."""

    split: str
    score: float
    loss: float | None = None
    emi: float
    emid: float | None = None
    index: float | None = None
    cosine: float | None = None


class CorrelationResult(Plain):
    """A correlation with its interval."""

    value: float
    ci95: Interval | None = None

    @classmethod
    def of(cls, correlation: Correlation | None) -> CorrelationResult | None:
        """Return a correlation as plain data; ``None`` if it is not defined."""
        if correlation is None:
            return None
        return cls(value=correlation.value, ci95=correlation.ci95)

    def __str__(self) -> str:
        return f"{self.value:+.3f}" + (f" [{self.ci95[0]:+.2f}, {self.ci95[1]:+.2f}]" if self.ci95 else "")


class Ranking(Plain):
    """AUC or Spearman's correlation of a ranking of rows, or the difference of two of them."""

    value: float
    stderr: float | None = None
    ci95: Interval | None = None

    @classmethod
    def of(cls, jackknife: Jackknife, measure: str = "") -> Ranking:
        """Return the value and error of a jackknife.

        Args:
            jackknife: AUC, Spearman's correlation, or a difference of two of them.
            measure: ``auc`` or ``spearman_r``, whose intervals are made on the scale of :func:`bounded_interval`.
        """
        interval = bounded_interval(jackknife, measure) if measure else jackknife.interval(corrected=False)
        return cls(value=jackknife.value, stderr=jackknife.stderr, ci95=interval)


def bounded_interval(jackknife: Jackknife, measure: str) -> tuple[float, float] | None:
    """Return the interval of 95 % of an AUC or a correlation, which never leaves its range; ``None`` for fewer than 8 images.

    AUC is put on the logit scale and a correlation on Fisher's, where the leave-one-image-out values are less skewed, and
    the interval around the value without bias is transformed back. On the plain scale it covered 0.86 to 0.92 at 30
    images, here 0.93 to 0.97 (``benchmarks/coverage_rough.py``).
    """
    low, high = (0.0, 1.0) if measure == "auc" else (-1.0, 1.0)
    least = (high - low) * 0.5 / max(1, sum(map(len, jackknife.strata)) ** 2)

    def scaled(value: float) -> float:
        kept = min(max(value, low + least), high - least)
        return math.log((kept - low) / (high - kept))

    strata = tuple({key: scaled(value) for key, value in deleted.items()} for deleted in jackknife.strata)
    interval = Jackknife(scaled(jackknife.value), strata).interval()
    if interval is None:
        return None
    first, second = (low + (high - low) / (1 + math.exp(-end)) for end in interval)
    return first, second


class WithinSplit(Plain):
    """Agreement of rows' values with their scores within one split, or over all splits.

    Attributes:
        rows: rows that have both.
        emi, cosine: AUC or Spearman's correlation by the values of rows and by the cosine.
        lead: lead of the values over the cosine.
    """

    rows: int
    emi: Ranking
    cosine: Ranking
    lead: Ranking

    @classmethod
    def of(cls, rows: int, emi: Jackknife, cosine: Jackknife, measure: str) -> WithinSplit:
        """Make the agreement of a number of rows; ``measure`` is ``auc`` or ``spearman_r``."""
        lead = Ranking.of(difference(emi, cosine))
        return cls(rows=rows, emi=Ranking.of(emi, measure), cosine=Ranking.of(cosine, measure), lead=lead)


ByMeasure = dict[str, CorrelationResult | None]
ALL = "all"  # key of the agreement over all splits


class Agreement(Plain):
    """Agreement of a model's results with one score.

    Attributes:
        model, study, signature, estimator: what the results are of.
        score: name of the score.
        of: what the score is of.
        points: splits that have both.
        over_splits: correlations with the score: of ``emi``, ``cosine``, and how far the first leads, by measure.
        over_shifts: correlations with the loss of the score: of ``emid``, ``index``, ``cosine`` (its loss), and how far
            EMID leads the last.
        within_splits: agreement of rows by ``auc`` or ``spearman_r`` and split; pooled under the key ``all``.
        findings: sentences on whether EMI beats the cosine, which needs no estimator.
    """

    model: str
    study: str
    signature: str = ""
    estimator: str = ""
    score: str
    of: Literal["rows", "splits"] = "splits"
    points: list[Point]
    over_splits: dict[str, ByMeasure] = {}
    over_shifts: dict[str, ByMeasure] = {}
    within_splits: dict[str, dict[str, WithinSplit]] = {}
    findings: list[str] = []

    def to_findings(self) -> list[str]:
        """Return the conclusions as sentences."""
        lines = []
        for what, key, where in (("EMI", "emi", self.over_splits), ("EMID", "emid", self.over_shifts)):
            correlation, base, ahead = (where.get(name, {}).get("pearson_r") for name in (key, "cosine", "lead"))
            if correlation is not None and base is not None and ahead is not None:
                with_what = self.score if what == "EMI" else f"the loss of {self.score}"
                said = _verdict(what, correlation.value, ahead)
                lines.append(
                    f"{what} correlates {correlation.value:+.2f} with {with_what}, the cosine {base.value:+.2f}: {said}."
                )
        for measure, by_split in self.within_splits.items():
            pooled = by_split[ALL]
            label = "AUC" if measure == "auc" else "Spearman's correlation"
            chance = 0.5 if measure == "auc" else 0.0
            said = _verdict("EMI", pooled.emi.value - chance, pooled.lead)
            lines.append(
                f"Within splits, values of rows tell {self.score} with {label} {pooled.emi.value:.2f}, cosines with {pooled.cosine.value:.2f}: {said}."
            )
        return lines


class AgreementDocument(Document):
    """Document that ``lmms-eval-emi judge agree`` writes."""

    kind: Literal["agreement"] = "agreement"
    agreements: list[Agreement]


def _verdict(what: str, value: float, lead: CorrelationResult | Ranking) -> str:
    """Return whether a measure beats the cosine, given its own value above chance and its lead."""
    if value <= 0:  # no lead makes up for that
        return f"{what} does not go with it at all here"
    if lead.ci95 is not None and lead.ci95[1] < 0:
        return f"{what} is worse than the cosine by {-lead.value:.2f} [{-lead.ci95[1]:.2f}, {-lead.ci95[0]:.2f}]"
    if lead.value <= 0:
        return f"{what} does not beat the cosine here"
    if lead.ci95 is None:
        return f"{what} is ahead, and whether by more than chance is not known"
    return f"{what} beats the cosine" if lead.ci95[0] > 0 else f"{what} is ahead by no more than chance may give"


@dataclass
class _Joined:
    """Scores of others joined with the rows of a result.

    Attributes:
        scores: score by split, with its leave-one-image-out values.
        cosines: mean cosine of response and reference by split.
        parts: parts by split, the numbers of the joined rows and (rows, 2) parts of their scores.
        absent: number of rows of the result without a score.
        lone: splits left out because their scores are of one image.
    """

    scores: dict[str, Jackknife] = field(default_factory=dict)
    cosines: dict[str, Jackknife] = field(default_factory=dict)
    parts: dict[str, tuple[list[int], np.ndarray]] = field(default_factory=dict)
    absent: int = 0
    lone: list[str] = field(default_factory=list)


def _join(result: ResultToCompare, outside: OutsideScores) -> _Joined:
    """Join scores with the rows, or the splits, that they are of.

    Raises:
        ResultsError: no split has both.
    """
    joined = _Joined()
    for name in result.emi:
        rows = result.rows.get(name)
        if outside.rows and rows is not None:
            scores = outside.rows.get(name, {})
            places = [place for place, identity in enumerate(rows.id) if id_text(identity) in scores]
            if not places:
                continue
            joined.absent += len(rows.id) - len(places)
            images = [rows.images[place] for place in places]
            if len(set(images)) < 2:  # without an error, it would count as fixed
                joined.lone.append(name)
                continue
            parts = np.array([scores[id_text(rows.id[place])] for place in places])
            joined.parts[name] = (places, parts)
            joined.scores[name] = ClusterTotals.of(parts, images).jackknife(outside.function)
        elif name in outside.splits:
            joined.scores[name] = Jackknife(outside.splits[name], ())
        else:
            continue
        if rows is not None:
            joined.cosines[name] = ClusterTotals.of_values(rows.cosine or (), rows.images).jackknife()
    if not joined.scores:
        there = list(outside.rows or outside.splits)
        shared = [name for name in there if name in result.emi]
        if shared:
            raise ResultsError(
                f"{outside.name}: its {len(shared)} splits that {result.model} has results of, such as {shared[0]}, have no scores of rows of two images or more. Check that their ids are those of the study's rows, and that no verdicts are missing."
            )
        raise ResultsError(
            f"{outside.name}: none of its {len(there)} splits, such as {there[0] if there else 'none'}, is one of the results of {result.model}, such as {next(iter(result.emi), 'none')}."
        )
    return joined


def agree(result: ResultToCompare, outside: OutsideScores, seed: int = 0, draws: int = CHEAP_DRAWS) -> Agreement:
    """Correlate the results of a model with the scores of others.

    Args:
        result: results of the model.
        outside: scores of its splits or rows.
        seed: random seed of the intervals.
        draws: number of resamples of the intervals.

    Raises:
        ResultsError: no split has both.
    """
    joined = _join(result, outside)
    _warn_of_partial(result, outside, joined.absent, joined.lone)
    scores, cosines, names = joined.scores, joined.cosines, list(joined.scores)
    shifts = [name for name in names if name in result.emid and result.id_split in scores]
    losses, cosine_losses = (
        {
            name: loss_of_score(known[result.id_split], known[name], result.emid[name])
            for name in shifts
            if name in known
        }
        for known in (scores, cosines)
    )
    over_splits = _correlations(
        {"emi": [result.emi[name] for name in names], "cosine": [cosines.get(name) for name in names]},
        [scores[name] for name in names],
        "emi",
        draws,
        seed,
    )
    over_shifts = _correlations(
        {
            "emid": [result.emid[name] for name in shifts],
            "index": [Jackknife(result.index[name], ()) if name in result.index else None for name in shifts],
            "cosine": [cosine_losses.get(name) for name in shifts],
        },
        [losses[name] for name in shifts],
        "emid",
        draws,
        seed,
    )
    agreement = Agreement(
        model=result.model,
        study=result.study,
        signature=result.signature,
        estimator=result.estimator,
        score=outside.name,
        of="rows" if outside.rows else "splits",
        points=_points(result, joined, losses),
        over_splits=over_splits,
        over_shifts=over_shifts,
        within_splits=_within(result, outside, joined.parts),
    )
    return agreement.model_copy(update={"findings": agreement.to_findings()})


def _points(result: ResultToCompare, joined: _Joined, losses: Mapping[str, Jackknife]) -> list[Point]:
    """Return the scores of each split that has a result and a score of others."""
    return [
        Point(
            split=name,
            score=score.value,
            loss=losses[name].value if name in losses else None,
            emi=result.emi[name].value,
            emid=result.emid[name].value if name in result.emid else None,
            index=result.index.get(name),
            cosine=joined.cosines[name].value if name in joined.cosines else None,
        )
        for name, score in joined.scores.items()
    ]


def _warn_of_partial(result: ResultToCompare, outside: OutsideScores, absent: int, lone: Sequence[str]) -> None:
    """Say what was not joined, for a misspelt name costs no more than that."""
    rows, there = result.rows, outside.rows or outside.splits
    strange = [name for name in there if name not in result.emi and name not in rows]  # controls have rows alone
    unknown = sum(
        len(scores) - sum(id_text(row_id) in scores for row_id in rows[name].id)
        for name, scores in outside.rows.items()
        if name in rows
    )
    told = [
        ("splits of the scores that the results lack", len(strange), f", such as {strange[0] if strange else ''}"),
        ("scores of rows that the results lack", unknown, ""),
        ("rows of the results without a score", absent, "; EMI and cosines over splits are of all rows"),
        ("splits left out because their scores are of one image", len(lone), f", such as {lone[0] if lone else ''}"),
    ]
    for what, count, more in told:
        if count:
            log.warning("%s and %s: %s: %d%s.", outside.name, result.model, what, count, more)


def loss_of_score(id: Jackknife, shifted: Jackknife, emid: Jackknife) -> Jackknife:
    """Return the loss of a score between two splits, paired by image if EMID is paired."""
    if len(emid.strata) > 1:
        renamed = [{str(("ood", key)): value for key, value in each.items()} for each in shifted.strata]
        shifted = to_jackknife(shifted.value, renamed)
    return difference(id, shifted)


def _correlations(
    sides: Mapping[str, Sequence[Jackknife | None]], scores: Sequence[Jackknife], first: str, draws: int, seed: int
) -> dict[str, ByMeasure]:
    """Return correlations by side and measure; under ``lead``, how far the first side is ahead of the cosine."""
    found: dict[str, ByMeasure] = {}
    for name, side in sides.items():
        known = [jackknife for jackknife in side if jackknife is not None]
        if len(known) == len(scores):
            found[name] = {
                measure: CorrelationResult.of(correlate(measure, known, scores, draws, seed)) for measure in MEASURES
            }
    if first in found and "cosine" in found:
        pair = [[side for side in sides[name] if side is not None] for name in (first, "cosine")]
        found["lead"] = {
            measure: CorrelationResult.of(lead(measure, pair[0], pair[1], scores, draws, seed)) for measure in MEASURES
        }
    return found


def _within(
    result: ResultToCompare, outside: OutsideScores, joined: Mapping[str, tuple[list[int], np.ndarray]]
) -> dict[str, dict[str, WithinSplit]]:
    """Return the agreement of rows within each split, and pooled by the number of rows; AUC where rows are right or wrong."""
    known: dict[str, dict[str, tuple[int, Jackknife, Jackknife]]] = {}
    for name, (places, parts) in joined.items():
        rows = result.rows[name]
        if len(places) < FEWEST_ROWS:
            continue
        images = [rows.images[place] for place in places]
        pairs = [tuple(map(float, part)) for part in parts]
        right = [outside.is_right(pair) for pair in pairs]  # type: ignore[arg-type]
        ranked = np.array([outside.value_of(pair) for pair in pairs])  # type: ignore[arg-type]
        targets = {"spearman_r": ranked}
        if all(side is not None for side in right):
            targets["auc"] = np.array(right, dtype=float)
            if outside.function is not ratio:  # a rank correlation with two values says what AUC says
                del targets["spearman_r"]
        for measure, target in targets.items():
            emi, cosine = (
                _rank_jackknife(measure, np.array(values)[places], target, images)
                for values in (rows.value, rows.cosine)
            )
            if emi is not None and cosine is not None:
                known.setdefault(measure, {})[name] = (len(places), emi, cosine)
    found: dict[str, dict[str, WithinSplit]] = {}
    for measure, by_split in known.items():
        counts, emis, cosines = zip(*by_split.values(), strict=True)
        weights = np.array(counts, dtype=float) / sum(counts)
        by_split[ALL] = (sum(counts), _weighted(emis, weights), _weighted(cosines, weights))
        found[measure] = {name: WithinSplit.of(*ranking, measure) for name, ranking in by_split.items()}
    return found


def _weighted(parts: Sequence[Jackknife], weights: np.ndarray) -> Jackknife:
    return combine(lambda values: float(np.dot(weights, values)), parts)


def _rank_jackknife(measure: str, x: np.ndarray, y: np.ndarray, clusters: Sequence[Hashable]) -> Jackknife | None:
    """Return AUC or Spearman's correlation with its leave-one-image-out values; ``None`` if it is not defined."""
    function = _auc if measure == "auc" else _spearman
    value = function(x, y)
    if math.isnan(value):
        return None
    keys = np.array([str(cluster) for cluster in clusters])
    deleted: dict[Hashable, float] = {}
    for cluster in sorted(set(keys.tolist())):
        kept = keys != cluster
        without = function(x[kept], y[kept])
        deleted[cluster] = value if math.isnan(without) else without
    return Jackknife(value, (deleted,) if len(deleted) > 1 else ())


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, mean ranks for ties; scipy's takes five times as long for as few values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _auc(x: np.ndarray, right: np.ndarray) -> float:
    """Return the fraction of pairs of a right and a wrong row in which the right one has the larger value, ties half."""
    positive = int(right.sum())
    negative = len(right) - positive
    if not positive or not negative:
        return math.nan
    total = _ranks(x)[right > 0].sum()
    return float((total - positive * (positive + 1) / 2) / (positive * negative))


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3:
        return math.nan
    a, b = (_ranks(side) - (len(side) + 1) / 2 for side in (x, y))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan
