"""Statistics of parts: they merge to what all rows at once give, whatever the parts and their order."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from lmms_eval_emi import Embeddings, emid, emid_bound
from lmms_eval_emi.core import emi as information
from lmms_eval_emi.core import streaming
from lmms_eval_emi.core.streaming import SplitStatistics, bound_of, emid_of
from lmms_eval_emi.estimators import CLUB
from lmms_eval_emi.estimators.base import Assignment
from lmms_eval_emi.estimators.club_free import FreeCLUB
from lmms_eval_emi.estimators.crossfit import CrossFitted

D = 12


def split(seed, n=240, images=40, prefix="image", shift=0.0, with_images=True):
    torch.manual_seed(seed)
    parts = [torch.nn.functional.normalize(torch.randn(n, D) + shift, dim=1) for _ in range(4)]
    return Embeddings(
        v=parts[0] if with_images else None,
        t=parts[1],
        y_hat=parts[2],
        y=parts[3],
        ids=[("row", str(row)) for row in range(n)],
        groups=[f"{prefix} {row % images}" for row in range(n)],
    )


def estimators():
    torch.manual_seed(0)
    free = FreeCLUB(D, D, 8, name="free")
    free.fit_data(split(5).x.float(), split(5).y)
    networks = [[CLUB(D, D, 8, name=f"{seed}{fold}") for fold in range(3)] for seed in range(2)]
    seen = Assignment({key: row % 3 for row in range(60) for key in _keys(row)})
    return [CLUB(D, D, 8), free, CrossFitted(networks, seen, name="crossed")]


def _keys(row):
    from lmms_eval_emi.estimators.base import row_to_keys

    return row_to_keys(("row", str(row)), None)


def accumulate(rows, estimator, sizes, order=None, **options):
    """Statistics of parts of a split, merged in some order."""
    bounds = np.cumsum([0, *sizes])
    parts = [rows.select(range(*pair)) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    found = [SplitStatistics(estimator, **options).add(part) for part in parts]
    found = [found[place] for place in (order or range(len(found)))]
    total = SplitStatistics(estimator, **options)
    for one in found:
        total.merge(one)
    return total


@pytest.mark.parametrize("number", range(3), ids=["club", "club-free", "cross-fitted"])
@pytest.mark.parametrize("most", [1000, 9], ids=["clusters", "blocks"])
@pytest.mark.parametrize("with_images", [True, False])
def test_parts_give_what_all_rows_give(number, most, with_images, monkeypatch):
    monkeypatch.setattr(information, "MOST_CLUSTERS", most)
    monkeypatch.setattr(streaming, "MOST_CLUSTERS", most)
    estimator = estimators()[number]
    id, ood = split(0, with_images=with_images), split(1, prefix="other", shift=0.3, with_images=with_images)
    expected = emid(id, ood, estimator)
    index = emid_bound(id, ood)
    for sizes, order in (([240], None), ([1, 99, 140], [2, 0, 1]), ([80] * 3, [1, 2, 0])):
        first = accumulate(id, estimator, sizes, order, keep_partners=True)
        second = accumulate(ood, estimator, sizes, order, partners=first.as_partners())
        found = emid_of(first, second)
        assert found.id.value == pytest.approx(expected.id.value, abs=1e-12)
        assert found.value == pytest.approx(expected.value, abs=1e-12)
        assert found.paired and found.stderr == pytest.approx(expected.stderr, rel=1e-8)
        assert found.ci95 == pytest.approx(expected.ci95, abs=1e-10)
        assert found.id.by_seed == pytest.approx(expected.id.by_seed, abs=1e-12)
        assert found.id.reference.stderr == pytest.approx(expected.id.reference.stderr, rel=1e-8)
        assert bound_of(first, second).value == pytest.approx(index.value, abs=1e-7)  # fourth roots of rounding
        assert bound_of(first, second).jsd_t == pytest.approx(index.jsd_t, abs=1e-12)


def test_rows_added_one_after_another_are_rows_merged():
    estimator = estimators()[0]
    id = split(0)
    added = SplitStatistics(estimator)
    for start in range(0, 240, 50):
        added.add(id.select(range(start, min(start + 50, 240))))
    assert added.emi.value == pytest.approx(accumulate(id, estimator, [240]).emi.value, abs=1e-13)
    assert copy.deepcopy(added).emi.stderr == added.emi.stderr


def test_splits_without_partners_are_independent():
    estimator = estimators()[0]
    id, ood = split(0), split(1, prefix="other")
    other = Embeddings(
        v=ood.v, t=ood.t, y_hat=ood.y_hat, y=ood.y, ids=[("x", row) for row in range(240)], groups=ood.groups
    )
    expected = emid(id, other, estimator)
    first = accumulate(id, estimator, [240], keep_partners=True)
    found = emid_of(first, accumulate(other, estimator, [100, 140], partners=first.as_partners()))
    assert not found.paired and not expected.paired
    assert found.stderr == pytest.approx(expected.stderr, rel=1e-8)


def test_identical_splits_have_no_divergence():
    estimator = estimators()[0]
    first = accumulate(split(0), estimator, [240])
    assert bound_of(first, accumulate(split(0), estimator, [100, 140])).jsd_v == 0.0


def test_what_does_not_add_is_refused():
    from lmms_eval_emi import load_estimator

    with pytest.raises(ValueError, match="expected one that scores in one pass"):
        SplitStatistics(load_estimator("dcor"))
    statistics = SplitStatistics(estimators()[0])
    with pytest.raises(ValueError, match="expected at least one row"):
        _ = statistics.emi
    statistics.add(split(0))
    with pytest.raises(ValueError, match="v: expected the matrices of the rows before"):
        statistics.add(split(0, with_images=False))
