"""Errors, intervals and tests: exact where they can be, calibrated where they cannot, and independent of order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lmms_eval_emi import Embeddings, emi, emid, emid_bound
from lmms_eval_emi.core import correlation
from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.core.correlation import MEASURES, correlate, operator_interval
from lmms_eval_emi.core.exchange_test import PairedKernels
from lmms_eval_emi.core.jackknife import Jackknife, adjust, combine, difference, verdict
from lmms_eval_emi.estimators import CLUB, KSG, InfoNCE

IMAGES, ROWS = 10, 3
GROUPS = [f"image {row // ROWS}" for row in range(IMAGES * ROWS)]
IDS = [f"row {row}" for row in range(IMAGES * ROWS)]


@pytest.fixture
def split(make_embeddings):
    return lambda seed, **changes: make_embeddings(seed, IMAGES * ROWS, **{"groups": GROUPS, "ids": IDS, **changes})


@pytest.fixture(params=["club", "infonce", "ksg"])
def estimator(request):
    torch.manual_seed(0)
    return {"club": lambda: CLUB(12, 12, 8), "infonce": lambda: InfoNCE(12, 12, 8), "ksg": KSG}[request.param]()


def without(embeddings, group):
    return embeddings.select([row for row, own in enumerate(embeddings.groups) if own != group])


def test_the_jackknife_deletes_whole_images_exactly(split, estimator):
    rows = split(1)
    score = emi(rows, estimator)
    (deleted,) = score.jackknife.strata
    for group in set(GROUPS):
        assert deleted[group] == pytest.approx(emi(without(rows, group), estimator).value, abs=1e-12)
    values = np.array(list(deleted.values()))
    assert score.stderr == pytest.approx(math.sqrt((IMAGES - 1) / IMAGES * ((values - values.mean()) ** 2).sum()))
    assert score.corrected == pytest.approx(IMAGES * score.value - (IMAGES - 1) * values.mean())
    assert score.images == IMAGES and score.ci95[0] < score.corrected < score.ci95[1]


def test_the_influence_of_a_row_is_what_leaving_it_out_changes(split, estimator):
    """psi is the derivative with respect to a row's weight; the row jackknife approaches it with 1/N."""
    rows = split(2)
    score = emi(rows, estimator)
    n = rows.n
    change = np.array(
        [
            (n - 1) * (score.value - emi(rows.select([r for r in range(n) if r != row]), estimator).value)
            for row in range(n)
        ]
    )
    assert abs(float(score.influence.sum())) < 1e-9
    assert np.corrcoef(change, score.influence)[0, 1] > 0.999


def test_contributions_are_not_influences(split):
    """Their spread would give an error that is wrong by a factor."""
    torch.manual_seed(0)
    score = emi(split(3), CLUB(12, 12, 8))
    assert not np.allclose(score.contributions - score.value, score.influence, atol=1e-3)


def test_the_error_of_a_paired_difference_is_that_of_deleting_one_image_from_both(split, estimator):
    first, second = split(4), split(5, groups=[f"shifted {group}" for group in GROUPS])
    found = emid(first, second, estimator)
    own = [f"shifted {group}" for group in sorted(set(GROUPS))]
    values = np.array(
        [
            emi(without(first, group), estimator).value - emi(without(second, shifted), estimator).value
            for group, shifted in zip(sorted(set(GROUPS)), own, strict=True)
        ]
    )
    assert found.paired
    assert found.stderr == pytest.approx(math.sqrt((IMAGES - 1) / IMAGES * ((values - values.mean()) ** 2).sum()))


def test_the_parts_of_a_paired_difference_add_up(split):
    torch.manual_seed(0)
    club = CLUB(12, 12, 8)
    first, second = split(6), split(7)
    found = emid(first, second, club)
    assert found.inputs.value + found.responses.value == pytest.approx(found.value, abs=1e-12)
    same_inputs = Embeddings(v=first.v, t=first.t, y_hat=second.y_hat, y=first.y, ids=IDS, groups=GROUPS)
    moved = emid(first, same_inputs, club)
    assert moved.inputs.value == pytest.approx(0, abs=1e-12) and moved.responses.value == pytest.approx(moved.value)


def test_unrelated_splits_are_compared_by_welch(split):
    torch.manual_seed(0)
    club = CLUB(12, 12, 8)
    first, second = split(8), split(9, ids=[f"other {row}" for row in range(IMAGES * ROWS)])
    found = emid(first, second, club)
    variances = [emi(one, club).stderr ** 2 for one in (first, second)]
    assert not found.paired and found.inputs is None
    assert found.stderr == pytest.approx(math.sqrt(sum(variances)))
    welch = sum(variances) ** 2 / sum(variance**2 / (IMAGES - 1) for variance in variances)
    assert found.jackknife.df == pytest.approx(welch)


def test_the_order_of_rows_changes_nothing(split):
    torch.manual_seed(0)
    club = CLUB(12, 12, 8)
    first, second = split(10), split(11)
    order = np.random.default_rng(0).permutation(IMAGES * ROWS).tolist()
    other = np.random.default_rng(1).permutation(IMAGES * ROWS).tolist()
    plain, mixed = emid(first, second, club), emid(first.select(order), second.select(other), club)
    assert (mixed.stderr, mixed.p_value, mixed.inputs.stderr) == pytest.approx(
        (plain.stderr, plain.p_value, plain.inputs.stderr)
    )
    bounds = emid_bound(first, second), emid_bound(first.select(order), second.select(other))
    assert bounds[0].stderr == pytest.approx(bounds[1].stderr)
    tests = [bound.test("jsd_t", resamples=99, seed=3) for bound in bounds]
    assert tests[0].p_value == tests[1].p_value and tests[0].floor == pytest.approx(tests[1].floor)


def test_few_images_give_a_score_and_no_interval(make_embeddings):
    torch.manual_seed(0)
    rows = make_embeddings(1, 12, groups=[row // 2 for row in range(12)])
    score = emi(rows, CLUB(12, 12, 8))
    assert score.images == 6 and score.stderr is None and score.ci95 is None and isinstance(score.value, float)


def test_rows_without_groups_are_clusters_of_their_own(make_embeddings):
    torch.manual_seed(0)
    assert emi(make_embeddings(1, 30), CLUB(12, 12, 8)).images == 30


def test_many_clusters_are_merged_and_give_about_the_same_error(make_embeddings, monkeypatch):
    import lmms_eval_emi.core.emi as module

    torch.manual_seed(0)
    rows, club = make_embeddings(1, 900), CLUB(12, 12, 8)
    exact = emi(rows, club).stderr
    monkeypatch.setattr(module, "MOST_CLUSTERS", 100)
    assert emi(rows, club).stderr == pytest.approx(exact, rel=0.3)


# Divergences and the index.


def sets(seed, images=8, shift=0.0, paired=True):
    random = np.random.default_rng(seed)
    image = random.normal(size=(2, images, 1, 6))
    if paired:
        image[1] = image[0]
    rows = (image + random.normal(size=(2, images, 3, 6))).reshape(2, 3 * images, 6)
    rows[1] += shift * np.eye(6)[0]  # a direction, for a kernel sees no constant that both sides have
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    groups = [row // 3 for row in range(3 * images)]
    others = groups if paired else [("other", group) for group in groups]
    return PairedKernels(torch.from_numpy(rows[0]), torch.from_numpy(rows[1]), groups, others)


def test_the_slope_of_a_divergence_is_its_derivative():
    both = sets(3, paired=False)
    without = both.without_each()
    x, y = both.counts.sum(axis=1)
    for number, cluster in enumerate(both.clusters[:6]):
        step = 1e-4 * both.counts[:, number]
        moved = float(both.divergences((x - step[0])[None], (y - step[1])[None])[0])
        slope = (moved - both.value) / 1e-4 * len(x) / (len(x) - 1)
        assert without[cluster] - both.value == pytest.approx(slope, rel=0.2, abs=1e-5)


@pytest.mark.parametrize(("paired", "shift"), [(True, 0.0), (True, 1.0), (False, 0.0), (False, 1.0)])
def test_the_error_of_a_divergence_is_its_spread_over_data_sets_at_the_floor_and_above(paired, shift):
    found = [sets(seed, images=20, shift=shift, paired=paired).jackknife for seed in range(150)]
    spread = np.std([one.value for one in found])
    assert np.sqrt(np.mean([one.stderr**2 for one in found])) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("paired", [True, False])
def test_permutation_tests_reject_at_their_level_without_a_shift_and_mostly_with_one(paired):
    rejected = [sets(seed, paired=paired).test(99, 0, paired).p_value < 0.05 for seed in range(120)]
    assert 0 <= np.mean(rejected) <= 0.11  # 5 % and two and a half of its standard errors at 120 draws
    shifted = [sets(seed, 20, 3.0, paired).test(99, 0, paired).p_value < 0.05 for seed in range(20)]
    assert np.mean(shifted) >= 0.8


def test_a_divergence_agrees_with_that_of_the_kernels_and_is_above_its_floor_with_a_shift():
    from lmms_eval_emi import rjsd

    shifted = sets(1, shift=3.0)
    found = shifted.test(99, 0, paired=True)
    rows = torch.randn(20, 8, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    for convention in ("published", "equal_weight"):
        both = PairedKernels(*rows, range(20), range(20, 50), convention)
        assert both.value == pytest.approx(rjsd(*rows, convention=convention), abs=1e-12)
    assert found.value > found.floor > 0 and found.excess == pytest.approx(found.value - found.floor)


def test_a_modality_that_was_not_shifted_is_identical_and_has_no_test(split):
    first = split(12)
    bound = emid_bound(first, split(13, v=first.v))
    assert bound.is_identical("jsd_v") and bound.test("jsd_v") is None
    assert not bound.is_identical("jsd_t") and bound.test("jsd_t", resamples=20) is not None


def test_the_interval_of_the_index_deletes_images_from_both_splits(split):
    first, second = split(14), split(15)
    bound = emid_bound(first, second)
    values = np.array(
        [emid_bound(without(first, group), without(second, group)).value for group in sorted(set(GROUPS))]
    )
    # To first order; recomputing adds the curvature of the spectrum.
    assert bound.stderr == pytest.approx(
        math.sqrt((IMAGES - 1) / IMAGES * ((values - values.mean()) ** 2).sum()), rel=0.5
    )
    assert bound.baseline == pytest.approx(2 * bound.jsd_id_response**0.25)
    assert bound.ci95[0] < bound.value < bound.ci95[1]


def test_the_index_does_not_bound_emid():
    """Responses that are the references on the ID split, and other rows' references under the shift."""

    class Matching(CLUB):
        def build(self):
            self.p_mu = torch.nn.Identity()
            self.scale = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x, torch.zeros_like(x)

    random = np.random.default_rng(0)
    rows = random.normal(size=(30, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    id_split = Embeddings(v=None, t=rows, y_hat=rows, y=rows)
    ood = Embeddings(v=None, t=rows, y_hat=np.roll(rows, 1, axis=0), y=rows)
    assert emid_bound(id_split, ood).value == pytest.approx(0, abs=1e-2)
    assert emid(id_split, ood, Matching(8, 8)).value > 0.5


def test_a_linear_kernel_sees_second_moments_only():
    from lmms_eval_emi import rjsd

    rows = torch.randn(20, 6, dtype=torch.float64)
    assert rjsd(rows, -rows) == pytest.approx(0, abs=1e-12)


# Many shifts.


def jackknife(value, spread, clusters=30, seed=0):
    """A statistic with a standard error of about ``spread``."""
    random = np.random.default_rng(seed)
    deviations = random.normal(size=clusters)
    deviations -= deviations.mean()
    scale = spread / math.sqrt((clusters - 1) / clusters * (deviations**2).sum())
    return Jackknife(value, ({f"image {g}": value + scale * deviations[g] for g in range(clusters)},))


def test_adjustments():
    family = [jackknife(value, 1.0, seed=seed) for seed, value in enumerate((4.0, 0.5, -3.0, 0.1))]
    plain, holm, bh, maxt = (adjust(family, method) for method in ("none", "holm", "bh", "maxt"))
    order = np.argsort(plain)
    assert [holm[i] for i in order[:1]] == pytest.approx([4 * plain[order[0]]])
    for adjusted in (holm, bh, maxt):
        assert all(a >= p - 0.02 for a, p in zip(adjusted, plain, strict=True))
        assert [a < 0.05 for a in adjusted] == [True, False, True, False]
    assert adjust([jackknife(1, 1), Jackknife(1, ({"a": 1.0},))])[1] is None
    with pytest.raises(ValueError, match="expected holm, bh, maxt or none"):
        adjust(family, "bonferoni")


@pytest.mark.parametrize(
    ("value", "spread", "p", "expected"),
    [
        (0.05, 0.001, 0.001, "lost"),
        (-0.05, 0.001, 0.001, "gained"),
        (0.001, 0.001, 0.5, "held"),
        (0.004, 0.01, 0.5, "undecided"),
    ],
)
def test_verdicts(value, spread, p, expected):
    assert verdict(jackknife(value, spread), p, margin=0.008) == expected


def test_a_function_of_statistics_shares_their_images_and_no_others():
    first, second = jackknife(1, 0.1, seed=1), jackknife(2, 0.1, seed=2)
    assert len(difference(first, second).strata) == 1
    other = Jackknife(second.value, tuple({("other", key): v for key, v in one.items()} for one in second.strata))
    apart = difference(first, other)
    assert len(apart.strata) == 2 and apart.stderr == pytest.approx(math.hypot(first.stderr, other.stderr))
    assert difference(first, first).stderr == 0
    assert combine(sum, [first, other, second]).value == 5


def test_correlations_have_intervals_from_eight_shifts_on():
    random = np.random.default_rng(0)
    a = [jackknife(value, 0.05, seed=seed) for seed, value in enumerate(np.linspace(0, 1, 9))]
    b = [
        jackknife(one.value + noise, 0.05, seed=50 + i)
        for i, (one, noise) in enumerate(zip(a, random.normal(0, 0.1, 9), strict=True))
    ]
    for name, measure in MEASURES.items():
        found = correlate(name, a, b, 499, 0)
        assert found.ci95[0] < found.value < found.ci95[1] <= 1
        assert found.value == measure([one.value for one in a], [one.value for one in b])
        assert found == correlate(name, a, b, 499, 0) != correlate(name, a, b, 499, 1)
        assert correlate(name, a, b, 0, 0).ci95 is None
        assert correlate(name, a[:7], b[:7], 499, 0) is None


@pytest.mark.parametrize("name", MEASURES)
def test_many_correlations_at_once_are_each_what_one_is(name):
    random = np.random.default_rng(1)
    a, b = random.integers(0, 6, size=(2, 20, 12)).astype(float)  # with ties
    found = correlation._ROWWISE[name](a, b)
    assert found == pytest.approx([MEASURES[name](list(x), list(y)) for x, y in zip(a, b, strict=True)])


def test_a_crossed_design_has_an_interval_over_operators():
    random = np.random.default_rng(0)
    cells = {}
    for row in range(4):
        for column in range(4):
            if row or column:
                value = row + column + random.normal(0, 0.1)
                cells[f"v{row}", f"t{column}"] = (value, value + random.normal(0, 0.3))
    low, high = operator_interval(cells, 200, 0)
    assert 0.5 < low < high <= 1
    del cells["v1", "t1"]
    assert operator_interval(cells, 200, 0) is None


def test_the_published_correlations_come_out_of_the_published_results():
    from lmms_eval_emi.report.reading import published_results

    expected = {
        ("natural", "llava-v1.5-13b"): 0.876273484894562,
        ("natural", "llava-v1.6-vicuna-13b"): 0.6886720791273666,
        ("synthetic", "llava-v1.5-13b"): 0.5792786450636366,
        ("synthetic", "llava-v1.6-vicuna-13b"): 0.7392559451556272,
    }
    found = {
        (result.shift, result.model): result.means()["Pearson r"]
        for study in ("natural", "synthetic")
        for result in published_results(study)
    }
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_default_margin_is_what_it_is_said_to_be():
    """The smallest published synthetic EMID of llava-v1.5-13b beyond the noise of an additive fit."""
    from scipy import stats

    from lmms_eval_emi.report.reading import published_results
    from lmms_eval_emi.scoring.result import PUBLISHED_MARGIN

    visual = ["", *(f"_{name}_{level}" for name in ("defocus_blur", "frost") for level in (1, 3, 5))]
    textual = ["", "_sr_4", "_sr_7", "_KeyboardAug_1", "_KeyboardAug_3"]
    result = next(one for one in published_results("synthetic") if one.model == "llava-v1.5-13b")
    grid = np.array([[result.splits[f"llava_bench_coco{v}{t}"].emid or 0.0 for t in textual] for v in visual])
    residuals = grid - grid.mean(axis=1, keepdims=True) - grid.mean(axis=0) + grid.mean()
    df = (len(visual) - 1) * (len(textual) - 1)
    limit = stats.t.ppf(0.975, df) * math.sqrt(2 * (residuals**2).sum() / df)
    assert round(grid[grid > limit].min(), 3) == PUBLISHED_MARGIN


def test_coverage_of_a_small_simulation():
    """A short, seeded form of benchmarks/intervals.py."""
    import warnings

    from coverage_simulation import World, coverage_once, permutation_once

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [
            coverage_once(seed, images=12, unequal=True, paired=paired, tails=0, effect=False)
            for paired in (True, False)
            for seed in range(150)
        ]
    for what, low in (("EMI", 0.9), ("EMID", 0.9)):
        assert low <= np.mean([hits[what] for hits in found]) <= 0.99, what
    assert 0.015 <= np.mean([hits["test of EMID"] for hits in found]) <= 0.09
    world = World.make(True, 0)
    assert abs(world.emid) > 0.1 and sum(world.parts) == pytest.approx(world.emid)
    assert np.mean([permutation_once(seed, 12, True) for seed in range(60)]) <= 0.15


def test_without_any_shift_a_divergence_has_no_error_from_rounding(split):
    """The index takes its root, which would make 1e-8 of 1e-16."""
    rows = split(1)
    sets = PairedKernels(rows.t, rows.t, GROUPS, GROUPS)
    assert sets.value == 0 and set(sets.jackknife.strata[0].values()) == {0.0}
    assert sets.jackknife.clusters == IMAGES


def test_different_rows_with_one_kernel_have_not_shifted():
    """All draws are then as far apart, and which rounding is greater says nothing."""
    rows = torch.nn.functional.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    for paired in (True, False):
        test = PairedKernels(rows, -rows, range(8), range(8) if paired else range(8, 16)).test(99, 0, paired)
        assert test.value == 0 and test.p_value == 1


def test_one_decomposition_of_each_set_and_of_their_mixture_serves_error_and_test(split, monkeypatch):
    rows = IMAGES * ROWS
    sets = PairedKernels(split(1).y_hat, split(1).y, GROUPS, GROUPS, "equal_weight")
    sizes, eigh = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    assert sets.jackknife.clusters == IMAGES
    sets.test(19, 0, True)
    assert sorted(sizes) == [rows, rows, 2 * rows]


def test_what_shifts_share_is_computed_once_and_is_what_each_has_by_itself(split, monkeypatch):
    """One image shift under several questions; the ID split's responses, which all have in common."""
    first, shifted = split(1), split(2)
    others = [split(seed, v=shifted.v) for seed in (3, 4, 5)]
    expected = []
    for other in others:
        first.cache.clear()  # nothing that one computes helps another
        bound = emid_bound(first, other)
        expected.append((bound.jackknife, {name: bound.test(name, 50) for name in EXPONENTS}))
    for one in (first, *others):
        one.cache.clear()
    computed, deleted = [], PairedKernels.without_each
    monkeypatch.setattr(PairedKernels, "without_each", lambda self: computed.append(self.digest) or deleted(self))
    bounds = [emid_bound(first, other) for other in others]
    assert [(bound.jackknife, {name: bound.test(name, 50) for name in EXPONENTS}) for bound in bounds] == expected
    assert len(computed) == len(set(computed)) == 1 + 1 + 2 * 3


def test_intervals_of_rankings_cover_on_rough_data():
    """A short, seeded form of benchmarks/coverage_rough.py; on its own scale the interval of AUC covered 0.86 to 0.91."""
    from coverage_rough import correlation_once, loss_once, ranking_once

    hits = [ranking_once(seed, 30, 0.9, 1.2) for seed in range(120)]
    assert 0.88 <= np.mean(hits) <= 1.0
    assert 0.88 <= np.mean([correlation_once(seed, 30, 0.9) for seed in range(120)]) <= 1.0
    losses = [loss_once(seed, 30, 0.5, 0.5) for seed in range(60)]
    assert np.mean([one["MMI"] for one in losses]) >= 0.85
    assert np.mean([one["paired test of accuracy"] for one in losses]) <= 0.15
