"""Parity with the published formulas and the published script, on the reference data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lmms_eval_emi import Embeddings, emi, emid, emid_bound, load_estimator

CASES = ("id", "near", "far", "small", "pair", "text_only")
PARTS = ("jsd_v", "jsd_t", "jsd_id_response", "jsd_ood_response")


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden" / "expected.json").read_text())


@pytest.fixture(scope="module")
def splits(shared):
    arrays = np.load(shared / "golden" / "embeddings.npz")

    def read(case):
        matrices = {
            name: arrays[f"{case}/{key}"] for name, key in (("v", "v"), ("t", "t"), ("y_hat", "yh"), ("y", "y"))
        }
        return Embeddings(**matrices)

    read_splits = {case: read(case) for case in CASES if case != "text_only"}
    near = read_splits["near"]
    read_splits["text_only"] = Embeddings(v=read_splits["id"].v, t=near.t, y_hat=near.y_hat, y=near.y)
    return read_splits


@pytest.fixture(scope="module")
def estimator(shared):
    return load_estimator(shared / "data" / "estimator" / "CLUB_global.pt")


@pytest.mark.parametrize("case", CASES)
def test_emi(case, golden, splits, estimator):
    result, expected = emi(splits[case], estimator), golden[case]
    for name, value in (
        ("emi", result.value),
        ("mi_response", result.mi_response),
        ("mi_reference", result.mi_reference),
    ):
        assert value == pytest.approx(expected[name], abs=1e-7)
    assert result.n == expected["n"]
    assert emid(splits["id"], splits[case], estimator).value == pytest.approx(expected["emid"], abs=1e-7)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("convention", "tolerance"), [("published", 5e-5), ("equal_weight", 1e-9)])
def test_bound(case, convention, tolerance, golden, splits):
    bound, expected = emid_bound(splits["id"], splits[case], convention), golden[case][convention]
    for part in PARTS:
        assert getattr(bound, part) == pytest.approx(expected[part], abs=tolerance)
    assert bound.value == pytest.approx(expected["bound"], abs=4 * tolerance)


def test_the_published_estimator_is_recognised_by_its_hash(estimator):
    assert estimator.signature == "club-global@99ab0626"
