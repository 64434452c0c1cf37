"""Models compared on the same splits, and how many images a difference would need.

Both work from results that are on disk: the scores without each image, which ``score`` writes beside its
results, are all that a paired difference needs.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from scipy import special

from lmms_eval_emi.core.conventions import Adjustment
from lmms_eval_emi.core.jackknife import ALPHA, FEWEST_CLUSTERS, Jackknife, adjust, combine, difference
from lmms_eval_emi.core.totals import ClusterTotals
from lmms_eval_emi.data.columns import ID_COLUMNS
from lmms_eval_emi.data.rows import id_text
from lmms_eval_emi.data.tables import read_table
from lmms_eval_emi.errors import InputError, ResultsError
from lmms_eval_emi.scoring.agreement import number_of_score, without_failed
from lmms_eval_emi.scoring.result import CHEAP_DRAWS, StudyResult
from lmms_eval_emi.scoring.rows import jackknives_of, read_results, read_rows
from lmms_eval_emi.util.files import Document, Interval, Plain

MOST_IMAGES = 10_000_000
CLUSTERS = ("cluster", "image", "image_id")
Row = tuple[str, str]  # split and id


@dataclass(frozen=True)
class ComparedResult:
    """One model's results in one study, with its leave-one-image-out values."""

    label: str  # what tells it apart
    study: str  # name of the study
    settings: dict[str, str]  # what the scores depend on, by name
    emi: dict[str, Jackknife]  # EMI of each split
    emid: dict[str, Jackknife]  # EMID of each shift

    def mean_emid(self, shifts: Sequence[str]) -> Jackknife:
        """Return the mean EMID over some shifts."""
        return combine(lambda values: math.fsum(values) / len(values), [self.emid[name] for name in shifts])


def read_compared(paths: Iterable[str | Path]) -> list[ComparedResult]:
    """Read results with their rows.

    Raises:
        ResultsError: a file contains no results, or its rows are missing or those of other results.
    """
    found: list[ComparedResult] = []
    for path in map(Path, paths):
        found += [_compared(path, result) for result in read_results(path)]
    labels = [result.label for result in found]
    return [
        result
        if labels.count(result.label) == 1
        else ComparedResult(f"{result.label} ({number})", *list(vars(result).values())[1:])
        for number, result in enumerate(found, 1)
    ]


def _compared(path: Path, result: StudyResult) -> ComparedResult:
    rows = read_rows(path, result)
    if not rows.without_each_image:
        raise ResultsError(
            f"{path}: its rows are not beside it, which comparing needs. Keep *.rows.json with the results, or score again."
        )
    emi, emid = jackknives_of(result, rows)
    settings = {key: str(value) for key, value in result.settings.items()}
    if "encoders" in settings:  # the same weights in another folder are the same encoders
        settings["encoders"] = re.sub(r"[^+#]*#", "#", settings["encoders"])
    return ComparedResult(result.model, result.shift, settings, emi, emid)


class Estimate(Plain):
    """A value with its standard error, its interval of 95 % and the p-value of 0."""

    value: float
    stderr: float | None
    ci95: Interval | None
    p: float | None

    @classmethod
    def of(cls, jackknife: Jackknife | None) -> Estimate | None:
        """Return the estimate of a jackknife, or ``None`` without one."""
        if jackknife is None:
            return None
        ci95 = jackknife.ci95
        return cls(value=jackknife.value, stderr=jackknife.stderr, ci95=ci95, p=jackknife.p_value)


class Difference(Plain):
    """Difference of two models in one split, the first minus the second.

    Attributes:
        split: name of the split, or ``mean over N shifts``.
        emi: difference of EMI; ``None`` for a mean over shifts.
        emid: difference of EMID; ``None`` for the ID split. Positive: the first lost more.
        p_adjusted: p of the difference of EMID, adjusted over the shifts.
    """

    split: str
    emi: Estimate | None
    emid: Estimate | None
    p_adjusted: float | None

    @property
    def separates(self) -> bool:
        """Whether the difference of EMID is not 0."""
        return self.p_adjusted is not None and self.p_adjusted < ALPHA


class Comparison(Plain):
    """Differences of two models, the first minus the second."""

    first: str
    second: str
    differences: list[Difference]


class ComparisonDocument(Document):
    """Document that ``lmms-eval-emi compare`` writes."""

    kind: Literal["differences"] = "differences"
    adjust: str
    comparisons: list[Comparison]
    indistinguishable: list[list[str]]


class RanksDocument(Document):
    """Document that ``lmms-eval-emi compare --scores`` writes: models, best first, with intervals of their ranks."""

    kind: Literal["ranks"] = "ranks"
    adjust: str
    models: list[RankedModel]


def check_comparable(results: Sequence[ComparedResult]) -> list[str]:
    """Return why some results cannot be compared, in words; nothing if they can."""
    problems = []
    if len({result.study for result in results}) > 1:
        problems.append(f"they are of different studies: {', '.join(sorted({result.study for result in results}))}")
    for key in ("encoders", "estimator", "convention", "kind"):
        values = sorted({result.settings.get(key, "unknown") for result in results})
        if len(values) > 1:
            problems.append(f"the {key} differs: {' and '.join(values)}")
    return problems


def compare(
    first: ComparedResult, second: ComparedResult, method: Adjustment = "holm", seed: int = 0
) -> list[Difference]:
    """Return differences of EMI and EMID in every split that two results have, and of their mean EMID.

    Rows are matched by image, so what both models find hard cancels.

    Args:
        first: results of one model.
        second: results of another model.
        method: method of adjusting p-values over the shifts.
        seed: seed of ``maxt``.
    """
    names = [name for name in first.emi if name in second.emi]
    shifts = [name for name in names if name in first.emid and name in second.emid]
    emids = {name: difference(first.emid[name], second.emid[name]) for name in shifts}
    adjusted = dict(zip(shifts, adjust(list(emids.values()), method, CHEAP_DRAWS, seed), strict=True))
    found = [
        Difference(
            split=name,
            emi=Estimate.of(difference(first.emi[name], second.emi[name])),
            emid=Estimate.of(emids.get(name)),
            p_adjusted=adjusted.get(name),
        )
        for name in names
    ]
    if shifts:
        overall = difference(first.mean_emid(shifts), second.mean_emid(shifts))
        label = f"mean over {len(shifts)} shifts"
        found.append(Difference(split=label, emi=None, emid=Estimate.of(overall), p_adjusted=overall.p_value))
    return found


def indistinguishable(results: Sequence[ComparedResult]) -> list[list[str]]:
    """Return groups of models whose mean EMIDs cannot be told apart, each as large as it can be (Holm over all pairs).

    Returns:
        Labels by group, models that lost least first. A model may be in several groups.
    """
    shifts = [name for name in results[0].emid if all(name in result.emid for result in results)]
    if not shifts:
        return []
    ranked = sorted(results, key=lambda result: result.mean_emid(shifts).value)
    pairs = list(combinations(range(len(ranked)), 2))
    means = [result.mean_emid(shifts) for result in ranked]
    p_values = adjust([difference(means[i], means[j]) for i, j in pairs], "holm")
    apart = {pair for pair, p in zip(pairs, p_values, strict=True) if p is not None and p < ALPHA}
    groups: list[set[int]] = []
    for start in range(len(ranked)):
        group = {start}
        for other in range(len(ranked)):
            if all(
                (min(other, position), max(other, position)) not in apart for position in group if position != other
            ):
                group.add(other)
        if not any(group <= known for known in groups):
            groups = [known for known in groups if not known <= group] + [group]
    return [[ranked[position].label for position in sorted(group)] for group in groups]


@dataclass(frozen=True)
class Power:
    """Number of images that a shift needs to show an effect."""

    name: str  # name of the shift
    images: int  # today, of the smallest sample
    stderr: float  # standard error of EMID today
    detectable: float  # the smallest EMID that today's images would find
    needed: int  # images that would find the effect asked for


def power(result: ComparedResult, effect: float, chance: float = 0.8) -> list[Power]:
    """Return how many images each shift would need, from the variance between images that was observed.

    An effect is found if the two-sided t-test at 5 % rejects with the chance asked for; rows of one image
    are one observation, so it is images that count.

    Args:
        result: result of one model.
        effect: EMID to be found.
        chance: chance of finding it.

    Raises:
        ValueError: the effect is not positive, or the chance is not between 0.05 and 1.
    """
    if not (math.isfinite(effect) and effect > 0):
        raise InputError(f"effect: expected a positive EMID, got {effect}.")
    if not ALPHA < chance < 1:
        raise InputError(f"power: expected a chance between {ALPHA} and 1, got {chance}.")
    found = []
    for name, emid in result.emid.items():
        error = emid.stderr
        if error is None:
            continue
        images, shape = emid.clusters, emid.df / emid.clusters

        def reach(count: int, shape: float = shape) -> float:
            df = max(1.0, shape * count)
            return float(special.stdtrit(df, 1 - ALPHA / 2) + special.stdtrit(df, chance))

        def is_enough(count: int, error: float = error, images: int = images) -> bool:
            return reach(count) * error * math.sqrt(images / count) <= effect

        needed = 2 + bisect_left(range(2, MOST_IMAGES), True, key=is_enough)
        found.append(Power(name, images, error, reach(images) * error, max(needed, FEWEST_CLUSTERS)))
    return found


@dataclass(frozen=True)
class RowScores:
    """Scores of rows by model."""

    scores: Mapping[str, Mapping[Row, float]]  # scores by model and row
    clusters: Mapping[Row, Hashable]  # clusters of rows; a row that is not among them is one by itself


class RankedModel(Plain):
    """A model among others.

    Attributes:
        model: its name.
        rows: rows that all models have.
        score, stderr: mean over these rows, and its error.
        best, worst: places between which it may stand: 1 more than the models that are above it beyond doubt, and the
            number of models less those that are below it.
    """

    model: str
    rows: int
    score: float
    stderr: float | None
    best: int
    worst: int


def read_row_scores(paths: Sequence[Path]) -> RowScores:
    """Read scores: tables with the columns ``model``, ``score``, an id, and perhaps ``split`` and ``image`` or ``cluster``.

    Rows without a usable score are left out; see :func:`lmms_eval_emi.scoring.agreement.without_failed`.

    Raises:
        ResultsError: a column is missing, a score is no number, or a model has two scores of one row.
    """
    scores: dict[str, dict[Row, float]] = {}
    clusters: dict[Row, Hashable] = {}
    for path in paths:
        table = read_table(path)
        names = table.column_names
        row_id = next((name for name in ID_COLUMNS if name in names), None)
        if row_id is None or "score" not in names:
            raise ResultsError(
                f"{path}: expected the columns score, model and {ID_COLUMNS[0]}; it has {', '.join(names)}."
            )
        cluster = next((name for name in CLUSTERS if name in names), None)
        numbers = []
        for number, given in enumerate(table["score"], 1):
            try:
                numbers.append(number_of_score(given))
            except ValueError as error:
                raise ResultsError(f"{path}, row {number}: expected a number as score, got {given!r}.") from error
        usable = without_failed(path, numbers)
        for number, (record, score) in enumerate(zip(table, usable, strict=True), 1):
            if score is None:
                continue
            key = (str(record.get("split") or ""), id_text(record[row_id]))
            by_row = scores.setdefault(str(record.get("model") or path.stem), {})
            if key in by_row:
                raise ResultsError(
                    f"{path}, row {number}: {' '.join(filter(None, key))} has a score of this model already."
                )
            by_row[key] = score
            if cluster:
                clusters[key] = str(record[cluster])
    return RowScores(scores, clusters)


def rank(found: RowScores, method: Adjustment = "holm", seed: int = 0) -> list[RankedModel]:
    """Return the models, best first, by their mean over the rows that all of them have.

    Args:
        found: scores of at least two models.
        method: method of adjusting p-values over all pairs.
        seed: seed of ``maxt``.

    Raises:
        ResultsError: fewer than two models, or no row that all have.
    """
    if len(found.scores) < 2:
        raise ResultsError("compare: expected scores of at least two models, got one.")
    shared = sorted(set.intersection(*(set(score) for score in found.scores.values())))
    if not shared:
        raise ResultsError("compare: the models have no row in common, by split and id.")
    clusters = [found.clusters.get(row, row) for row in shared]

    def mean(values: Sequence[float]) -> Jackknife:
        return ClusterTotals.of_values(values, clusters).jackknife()

    means = {model: mean([score[row] for row in shared]) for model, score in found.scores.items()}
    models = sorted(means, key=lambda model: -means[model].value)
    pairs = list(combinations(models, 2))
    differences = [mean([found.scores[a][row] - found.scores[b][row] for row in shared]) for a, b in pairs]
    apart = {
        pair
        for pair, p in zip(pairs, adjust(differences, method, seed=seed), strict=True)
        if p is not None and p < ALPHA
    }
    return [
        RankedModel(
            model=model,
            rows=len(shared),
            score=means[model].value,
            stderr=means[model].stderr,
            best=1 + sum((other, model) in apart for other in models),
            worst=len(models) - sum((model, other) in apart for other in models),
        )
        for model in models
    ]
