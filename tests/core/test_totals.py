"""Statistics of row scores, against textbook formulas and tests of SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lmms_eval_emi.core.jackknife import adjust
from lmms_eval_emi.core.totals import ClusterTotals, exchange_test, f1, mean, ratio, relabel_test


def test_a_mean_has_its_usual_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=50)
    found = ClusterTotals.of_values(values, range(50)).jackknife()
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_clusters_are_left_out_whole() -> None:
    random = np.random.default_rng(1)
    clusters = random.integers(0, 12, 90)
    tp, wrong = random.integers(0, 2, (2, 90))
    found = ClusterTotals.of(np.stack([tp, wrong], axis=1), clusters.tolist()).jackknife(f1)
    for cluster in range(12):
        kept = clusters != cluster
        expected = 2 * tp[kept].sum() / (2 * tp[kept].sum() + wrong[kept].sum())
        assert found.strata[0][cluster] == pytest.approx(expected)


def test_functions_of_nothing() -> None:
    assert math.isnan(ratio(np.zeros((1, 2)))[0])
    assert f1(np.zeros((1, 2)))[0] == 0.0
    with pytest.raises(ValueError, match="clusters"):
        ClusterTotals.of_values([], [])


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_0_and_1_are_tested_as_by_mcnemar(seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = random.integers(0, 2, (2, 60))
    found = exchange_test(ClusterTotals.of_values(first, range(60)), ClusterTotals.of_values(second, range(60)))
    lost, gained = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    exact = stats.binomtest(lost, lost + gained).pvalue
    tie = stats.binom.pmf([lost, gained], lost + gained, 0.5).sum() / 2
    assert found == pytest.approx(exact - tie if lost != gained else 1.0)  # mid-p


def test_clusters_of_whole_numbers_are_tested_exactly() -> None:
    changes = np.array([3, -1, 2, 2, 0, 1])
    clusters = list("abcdef")
    first, second = ClusterTotals.of_values(changes, clusters), ClusterTotals.of_values(np.zeros(6), clusters)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    sums = np.abs(changes @ signs)
    expected = (sums >= abs(changes.sum())).mean()  # few changes: all of it
    assert exchange_test(first, second) == pytest.approx(expected)


def test_other_scores_are_tested_as_by_scipys_permutation_test() -> None:
    random = np.random.default_rng(2)
    first = random.normal(size=11)
    second = first + random.normal(0.4, 0.8, size=11)
    found = exchange_test(
        ClusterTotals.of_values(first, range(11)), ClusterTotals.of_values(second, range(11)), draws=20_000
    )
    expected = stats.permutation_test(
        (first, second),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert found == pytest.approx(expected.pvalue, abs=0.012)


def test_unrelated_rows_are_tested_as_by_scipys_permutation_test() -> None:
    random = np.random.default_rng(3)
    first, second = random.normal(size=7), random.normal(0.9, size=6)
    found = relabel_test(
        ClusterTotals.of_values(first, range(7)), ClusterTotals.of_values(second, range(6)), draws=20_000
    )
    expected = stats.permutation_test(
        (first, second), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), n_resamples=np.inf, vectorized=True
    )
    assert found == pytest.approx(expected.pvalue, abs=0.012)


def test_rows_of_one_image_are_one_observation() -> None:
    """Forty rows of four images that all moved alike are four observations: p cannot be below 2 / 2^4."""
    clusters = [f"image {row // 10}" for row in range(40)]
    first, second = ClusterTotals.of_values(np.ones(40), clusters), ClusterTotals.of_values(np.zeros(40), clusters)
    assert exchange_test(first, second) == pytest.approx(0.125)
    assert (
        exchange_test(ClusterTotals.of_values(np.ones(40), range(40)), ClusterTotals.of_values(np.zeros(40), range(40)))
        < 1e-9
    )


@pytest.mark.parametrize("function", [mean, f1])
def test_the_test_rejects_no_more_than_it_says(function) -> None:
    random = np.random.default_rng(4)
    p_values = []
    for _ in range(200):
        parts = random.integers(0, 2, (2, 30, 2)).astype(float)
        if function is mean:
            parts[..., 1] = 1
        clusters = (np.arange(30) // 2).tolist()
        p_values.append(exchange_test(*(ClusterTotals.of(one, clusters) for one in parts), function, draws=199))
    assert (np.array(p_values) <= 0.05).mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_p_values_of_a_test_of_ones_own_are_adjusted() -> None:
    family = [ClusterTotals.of_values(np.arange(10.0), range(10)).jackknife()] * 3
    assert adjust(family, "holm", p_values=[0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])
