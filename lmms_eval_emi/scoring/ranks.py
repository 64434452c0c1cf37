"""Models ranked by scores of the same rows: which of them cannot be told apart, and between which places each may stand.

A score may be anything that rows have: accuracy, a judge's verdict, a metric. Differences are paired by row, their errors
are over clusters of rows such as those of one image, and p-values are adjusted over all pairs of models.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lmms_eval_emi.core.conventions import Adjustment
from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.core.multiple import ALPHA, adjust
from lmms_eval_emi.core.totals import ClusterTotals
from lmms_eval_emi.data.columns import ID_COLUMNS
from lmms_eval_emi.data.sample import id_text
from lmms_eval_emi.data.tables import read_table
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.scoring.agreement import number_of_score, without_failed
from lmms_eval_emi.util.documents import Plain

CLUSTERS = ("cluster", "image", "image_id")
Row = tuple[str, str]  # split and id


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
