"""Summary of verdicts: relative preference, win rate, and agreement of a judge with itself.

The relative preference of a split is llava-bench's score, 100 x mean score of the model / mean score of the references.
A row's scores are means over repeats within each order first, and then over both orders, so that a verdict that is
missing moves no weight from one order to the other. A row without any verdict is left out and counted: a missing verdict
is no score. Errors are for new images.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from lmms_eval_emi.core.totals import ClusterTotals, mean, ratio
from lmms_eval_emi.scoring.agreement import OutsideScores
from lmms_eval_emi.slices.judge.prompt import ORDERS
from lmms_eval_emi.slices.judge.verdicts import Verdict
from lmms_eval_emi.util.files import Document, Interval, Plain

TIE = 1e-9


class Preference(Plain):
    """A judge's view of one model in one split.

    Attributes:
        model: model whose responses.
        split: split of the rows.
        rows: rows with a verdict.
        missing: rows without one.
        relative: 100 x mean score of the model / mean score of the references; ``None`` without verdicts.
        relative_stderr, relative_ci95: error and interval of 95 % over images.
        win_rate: rows whose response scores above the reference, ties half, in percent; ``None`` without verdicts.
        win_rate_stderr, win_rate_ci95: error and interval of 95 % over images.
    """

    model: str
    split: str
    rows: int
    missing: int
    relative: float | None
    relative_stderr: float | None = None
    relative_ci95: Interval | None = None
    win_rate: float | None
    win_rate_stderr: float | None = None
    win_rate_ci95: Interval | None = None


class SelfAgreement(Plain):
    """Agreement of a judge with itself over all splits.

    Attributes:
        repeats: fraction of pairs of repeats with the same winner; ``None`` without repeats.
        orders: fraction of rows with the same winner in both orders; ``None`` where one order was asked.
        position_bias: what coming first adds to a score, in points.
        reliability: fraction of the variance of a row's score difference, within a split of a model, that is not the
            judge's chance, of the mean of its k verdicts (ICC(3, k), Shrout & Fleiss 1979: what coming first adds to
            every row is no chance); ``None`` for one verdict a row.
        ceiling: its root, which no correlation with the row's scores can be expected to exceed.
    """

    repeats: float | None
    orders: float | None
    position_bias: float | None
    reliability: float | None
    ceiling: float | None

    def to_lines(self) -> list[str]:
        """Return the agreement as sentences."""
        lines = []
        if self.orders is not None:
            lines.append(
                f"The judge names the same winner in both orders for {self.orders:.0%} of the rows; coming first adds {self.position_bias:+.2f} points."
            )
        if self.repeats is not None:
            lines.append(f"Asked again, it names the same winner in {self.repeats:.0%} of the cases.")
        if self.ceiling is not None:
            lines.append(
                f"Its scores of a row have a reliability of {self.reliability:.2f} within splits, so no correlation with them over rows can be expected above {self.ceiling:.2f}."
            )
        return lines


class PreferenceDocument(Document):
    """Document with the summary of the verdicts of ``lmms-eval-emi judge ask``."""

    kind: Literal["preference"] = "preference"
    judge: str
    study: str
    splits: list[Preference]
    self_agreement: SelfAgreement


def row_scores(verdicts: Sequence[Verdict]) -> dict[int, tuple[float, float]]:
    """Return scores of reference and model by row: means over repeats within an order, then over orders."""
    by_row: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for verdict in verdicts:
        if verdict.scores is not None:
            by_row.setdefault(verdict.key.row, {}).setdefault(verdict.key.order, []).append(verdict.scores)
    found = {}
    for row, by_order in by_row.items():
        means = [np.mean(scores, axis=0) for scores in by_order.values()]
        reference, model = np.mean(means, axis=0)
        found[row] = (float(reference), float(model))
    return found


def prefer(
    model: str, split: str, verdicts: Sequence[Verdict], clusters: Mapping[int, Hashable] | None = None
) -> Preference:
    """Return the preference of one model in one split.

    Args:
        model: name of the model.
        split: name of the split.
        verdicts: verdicts of that model and split.
        clusters: image of each row; default: each row is one.
    """
    scores = row_scores(verdicts)
    rows = sorted(scores)
    missing = len({verdict.key.row for verdict in verdicts} - set(rows))
    if not rows:
        return Preference(model=model, split=split, rows=0, missing=missing, relative=None, win_rate=None)
    images = [clusters.get(row, row) if clusters else row for row in rows]
    pairs = np.array([scores[row] for row in rows])
    wins = np.where(
        pairs[:, 1] > pairs[:, 0] + TIE, 100.0, np.where(np.abs(pairs[:, 1] - pairs[:, 0]) <= TIE, 50.0, 0.0)
    )
    known = {
        "relative": ClusterTotals.of(pairs[:, ::-1] * [100.0, 1.0], images).jackknife(ratio),
        "win_rate": ClusterTotals.of_values(wins, images).jackknife(mean),
    }
    fields: dict[str, Any] = {}
    for name, preference in known.items():
        ci95 = preference.ci95
        fields |= {name: preference.value, f"{name}_stderr": preference.stderr, f"{name}_ci95": ci95}
    return Preference(model=model, split=split, rows=len(rows), missing=missing, **fields)


def self_agreement(verdicts: Sequence[Verdict]) -> SelfAgreement:
    """Return how far the verdicts of one judge agree with each other."""
    groups: dict[tuple[str, str, int], dict[str, list[tuple[float, float]]]] = {}
    for verdict in verdicts:
        if verdict.scores is not None:
            of_group = groups.setdefault(
                (verdict.key.model, verdict.key.split, verdict.key.row), {order: [] for order in ORDERS}
            )
            of_group[verdict.key.order].append(verdict.scores)
    repeats = [
        _winner(a) == _winner(b)
        for by_order in groups.values()
        for scores in by_order.values()
        for a, b in combinations(scores, 2)
    ]
    orders, bias = [], []
    for by_order in groups.values():
        if all(by_order[order] for order in ORDERS):
            first, second = (np.mean(by_order[order], axis=0) for order in ORDERS)  # reference first, model first
            orders.append(_winner(tuple(first)) == _winner(tuple(second)))
            bias.append(((first[0] - second[0]) + (second[1] - first[1])) / 2)
    by_split: dict[tuple[str, str], list[Mapping[str, list[float]]]] = {}
    for (model, split, _), by_order in groups.items():
        by_split.setdefault((model, split), []).append(
            {order: [score - reference for reference, score in scores] for order, scores in by_order.items()}
        )
    reliability = _reliability(list(by_split.values()))
    return SelfAgreement(
        repeats=float(np.mean(repeats)) if repeats else None,
        orders=float(np.mean(orders)) if orders else None,
        position_bias=float(np.mean(bias)) if bias else None,
        reliability=reliability,
        ceiling=math.sqrt(reliability) if reliability is not None else None,
    )


def _winner(scores: tuple[float, ...]) -> int:
    difference = scores[1] - scores[0]
    return 0 if abs(difference) <= TIE else 1 if difference > 0 else -1


def _reliability(splits: Sequence[Sequence[Mapping[str, Sequence[float]]]]) -> float | None:
    """Return ICC(3, k) of values by row and order, pooled over splits, k being the harmonic mean of values a row; 0 at least.

    The mean of each order within a split is removed first, and costs its degrees of freedom.
    """
    within = between = 0.0
    within_df = between_df = 0
    sizes: list[int] = []
    for rows in splits:
        several = [row for row in rows if sum(map(len, row.values())) > 1]
        if len(several) < 2:
            continue
        orders = [order for order in ORDERS if any(by_order[order] for by_order in several)]
        usual = {order: np.mean([verdict for by_order in several for verdict in by_order[order]]) for order in orders}
        centred = [
            np.array([verdict - usual[order] for order in orders for verdict in by_order[order]])
            for by_order in several
        ]
        means = np.array([values.mean() for values in centred])
        counts = [len(values) for values in centred]
        within += sum(((values - values.mean()) ** 2).sum() for values in centred)
        within_df += sum(counts) - len(counts) - (len(orders) - 1)
        between += ((means - means.mean()) ** 2).sum()
        between_df += len(counts) - 1
        sizes += counts
    if not sizes or within_df < 1 or between <= 0:
        return None
    size = len(sizes) / sum(1 / count for count in sizes)
    return float(max(0.0, 1 - (within / within_df) / (size * between / between_df)))


def scores_of_verdicts(verdicts: Iterable[Verdict], name: str = "relative preference") -> list[OutsideScores]:
    """Return the relative preference of each model, from a judge's verdicts, under a name."""
    by_model: dict[str, dict[str, list[Verdict]]] = {}
    for verdict in verdicts:
        by_model.setdefault(verdict.key.model, {}).setdefault(verdict.key.split, []).append(verdict)
    found = []
    for model, by_split in by_model.items():
        rows = {}
        for split, judged in by_split.items():
            ids = {verdict.key.row: verdict.question_id for verdict in judged}
            rows[split] = {ids[row]: (100 * score, reference) for row, (reference, score) in row_scores(judged).items()}
        found.append(OutsideScores(name, rows, function=ratio, model=model))
    return found
