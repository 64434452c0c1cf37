"""Measures that every result shows beside its score: cosine and R² of the references.

Both compare responses with references. The cosine finds wrong rows more often than EMI does, and the R² orders shifts
by what they cost truth more often than measures against the input do (docs/known-truth.md has both with intervals).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import (
    EMI,
    MutualInformationEstimator,
    clusters_of,
    emi,
    emi_difference,
    into_blocks,
    shared_clusters,
)
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.estimators.references import Cosine, ReferenceR2
from lmms_eval_emi.util.files import Interval, Plain

BESIDE = {measure.kind: measure for measure in (Cosine(), ReferenceR2())}
MOST_ROWS = 500  # rows of the largest split for R², which takes minutes for more
MOST_BLOCKS = 50  # blocks of images; R² is fitted again without each of them


class BesideResult(Plain):
    """One measure of one split, beside the score of the result's own estimator.

    Attributes:
        emi: the measure of responses less that of references, which is 0 at best.
        emi_stderr: standard error over images.
        emid: EMID of the ID split less of this one; ``None`` for the ID split.
        emid_stderr, emid_ci95: its error and interval of 95 % over images, without adjustment.
    """

    emi: float
    emi_stderr: float | None = None
    emid: float | None = Field(None, description="positive: the split lost by this measure")
    emid_stderr: float | None = None
    emid_ci95: Interval | None = None

    @property
    def sign(self) -> int:
        """1 where the interval of EMID lies above 0, -1 where it lies below, 0 otherwise."""
        if self.emid_ci95 is None:
            return 0
        return (self.emid_ci95[0] > 0) - (self.emid_ci95[1] < 0)


def measures_beside(
    estimator: MutualInformationEstimator,
    splits: Mapping[str, Embeddings],
    pairs: Mapping[str, tuple[Embeddings, Embeddings]],
) -> dict[str, dict[str, BesideResult]]:
    """Return the measures of each split by split and name, without that of the result's own estimator.

    Args:
        estimator: estimator of the result.
        splits: embeddings of all splits.
        pairs: the ID split and a shifted one, without rows whose partner is missing, by the name of the shifted one.
    """
    chosen = {kind: measure for kind, measure in BESIDE.items() if getattr(estimator, "kind", "") != kind}
    found: dict[str, dict[str, BesideResult]] = {name: {} for name in splits}
    for kind, measure in chosen.items():
        id_scores: dict[int, EMI] = {}
        for name, embeddings in tqdm(
            splits.items(), desc=f"Measuring {kind}", leave=False, dynamic_ncols=True, delay=2
        ):
            if kind == ReferenceR2.kind and embeddings.n > MOST_ROWS:
                continue
            try:
                score, lost = _score(measure, embeddings, pairs.get(name), id_scores)
            except InputError:  # responses and references of different widths, or too few rows
                continue
            found[name][kind] = BesideResult(emi=score.value, emi_stderr=score.stderr, **lost)
    return {name: by_kind for name, by_kind in found.items() if by_kind}


def _score(
    measure: MutualInformationEstimator,
    embeddings: Embeddings,
    pair: tuple[Embeddings, Embeddings] | None,
    id_scores: dict[int, EMI],
) -> tuple[EMI, dict[str, Any]]:
    """Return EMI of a split by a measure, and the fields of its EMID; EMI of an ID split is computed once and kept."""
    if pair is None:
        score = id_scores[id(embeddings)] = emi(
            embeddings, measure, groups=into_blocks(clusters_of(embeddings), MOST_BLOCKS)
        )
        return score, {}
    first, second = pair
    shared = shared_clusters(first, second)
    id_score = id_scores.get(id(first)) or emi(first, measure, groups=into_blocks(clusters_of(first), MOST_BLOCKS))
    shifted = emi(second, measure, groups=into_blocks(shared or clusters_of(second), MOST_BLOCKS))
    difference = emi_difference(id_score, shifted, paired=shared is not None)
    interval = difference.ci95
    score = (
        shifted
        if second is embeddings
        else emi(embeddings, measure, groups=into_blocks(clusters_of(embeddings), MOST_BLOCKS))
    )
    return score, {"emid": difference.value, "emid_stderr": difference.stderr, "emid_ci95": interval}


def disagreements(measures: Mapping[str, Mapping[str, BesideResult]], signs: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the splits for which a measure is sure of another sign of EMID than the result, by measure.

    Args:
        measures: measures by split and name.
        signs: signs of EMID by split, of those whose interval leaves 0 out.
    """
    found: dict[str, list[str]] = {}
    for split, by_kind in measures.items():
        for kind, measure in by_kind.items():
            if measure.sign * signs.get(split, 0) < 0:
                found.setdefault(kind, []).append(split)
    return found
