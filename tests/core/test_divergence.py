"""RJSD and the bound: analytic cases, the two forms of the kernel, conventions, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms_eval_emi import emid_bound, rjsd
from lmms_eval_emi.core.divergence import (
    CONVENTIONS,
    Kernel,
    bound_from_jsds,
)

LN2 = math.log(2)


def unit_rows(seed: int, n: int, dimension: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dimension))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def entropy_by_definition(k: np.ndarray) -> float:
    values = np.linalg.eigvalsh(k)
    p = values[values > 0] / values[values > 0].sum()
    return float(-(p * np.log(p)).sum())


def rjsd_by_definition(a: np.ndarray, b: np.ndarray, convention: str) -> float:
    k_a, k_b = a.T @ a, b.T @ b
    if convention == "equal_weight":
        k_a, k_b = k_a / len(a), k_b / len(b)
    return max(
        0.0, entropy_by_definition((k_a + k_b) / 2) - (entropy_by_definition(k_a) + entropy_by_definition(k_b)) / 2
    )


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_analytic_cases(convention):
    basis = np.eye(6)
    assert rjsd(basis[:3], basis[3:], convention) == pytest.approx(LN2, abs=1e-12)
    assert rjsd(basis[:1], basis[:1], convention) == 0
    # One of two directions shared: the mixture has spectrum (1/2, 1/4, 1/4), each set (1/2, 1/2).
    assert rjsd(basis[[0, 1]], basis[[0, 2]], convention) == pytest.approx(1.5 * LN2 - LN2, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 30), st.sampled_from(CONVENTIONS), st.integers(0, 10**6))
def test_agrees_with_the_definition_and_stays_in_range(n, m, dimension, convention, seed):
    a, b = unit_rows(seed, n, dimension), unit_rows(seed + 1, m, dimension)
    value = rjsd(a, b, convention)
    assert value == pytest.approx(rjsd_by_definition(a, b, convention), abs=1e-9)
    assert value == pytest.approx(rjsd(b, a, convention), abs=1e-9)
    assert value >= 0
    if convention == "equal_weight" or n == m:
        assert value <= LN2 + 1e-12


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("n", [5, 300])
def test_identical_sets_give_exactly_zero(convention, n):
    """Also in another order: the fourth root would make 4e-4 of the rounding."""
    rows = unit_rows(0, n, 40)
    assert rjsd(rows, rows.copy(), convention) == 0.0
    assert rjsd(rows, rows[::-1], convention) == 0.0
    assert rjsd(rows, np.concatenate([rows, rows]), convention) == 0.0


def test_gram_and_covariance_share_their_spectrum():
    rows = torch.from_numpy(unit_rows(0, 30, 50))
    gram = torch.linalg.eigvalsh(Kernel.of(rows).matrix())
    covariance = torch.linalg.eigvalsh(rows.T @ rows)
    assert len(gram) == 30
    torch.testing.assert_close(gram, covariance[-30:], atol=1e-12, rtol=0)
    assert Kernel.of(rows).covariance is None
    assert Kernel.of(rows[:, :20]).covariance.shape == (20, 20)


def test_conventions_differ_only_for_unequal_sizes():
    a, b, c = unit_rows(0, 90, 64), unit_rows(1, 90, 64), unit_rows(2, 10, 64)
    assert rjsd(a, b, "published") == pytest.approx(rjsd(a, b, "equal_weight"), abs=1e-12)
    assert abs(rjsd(a, c, "published") - rjsd(a, c, "equal_weight")) > 0.01


def test_published_convention_is_clamped_at_zero():
    """One row against ninety of almost the same direction: the unclamped value is negative."""
    rng = np.random.default_rng(0)
    many = np.eye(1, 16) + 0.02 * rng.normal(size=(90, 16))
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    spread = unit_rows(1, 2, 16)
    unclamped = [
        entropy_by_definition(a.T @ a + b.T @ b) - (entropy_by_definition(a.T @ a) + entropy_by_definition(b.T @ b)) / 2
        for a, b in [(many, spread), (spread, many)]
    ]
    assert max(unclamped) < 0
    assert rjsd(many, spread, "published") == 0.0
    assert rjsd(many, spread, "equal_weight") > 0.01


def test_bound_is_the_sum_of_its_roots(make_embeddings):
    id, ood = make_embeddings(0, n=30), make_embeddings(1, n=10)
    scaled, theorem = emid_bound(id, ood), emid_bound(id, ood, entropy=2.5)
    parts = (scaled.jsd_v, scaled.jsd_t, scaled.jsd_id_response, scaled.jsd_ood_response)
    assert parts == (rjsd(id.v, ood.v), rjsd(id.t, ood.t), rjsd(id.y_hat, id.y), rjsd(ood.y_hat, ood.y))
    assert scaled.value == pytest.approx(parts[0] ** 0.5 + parts[1] ** 0.5 + parts[2] ** 0.25 + parts[3] ** 0.25)
    assert theorem.value == pytest.approx(
        2.5 * (parts[0] ** 0.5 + parts[1] ** 0.5) + 4 * (parts[2] ** 0.25 + parts[3] ** 0.25)
    )
    assert (scaled.kind, theorem.kind) == ("scaled", "theorem")
    assert "kind:theorem(entropy=2.5)" in str(theorem.signature) and "convention:published" in str(theorem.signature)


def test_bound_does_not_depend_on_what_was_computed_before(make_embeddings):
    id = make_embeddings(0)
    first = [emid_bound(id, make_embeddings(seed), convention).value for seed in (1, 2) for convention in CONVENTIONS]
    again = [
        emid_bound(make_embeddings(0), make_embeddings(seed), convention).value
        for seed in (1, 2)
        for convention in CONVENTIONS
    ]
    assert first == again


def test_only_the_shifted_modality_moves(make_embeddings):
    id = make_embeddings(0)
    bound = emid_bound(id, make_embeddings(1, v=id.v, y_hat=id.y_hat, y=id.y))
    assert bound.jsd_v == 0 and bound.jsd_t > 0 and bound.jsd_id_response == bound.jsd_ood_response


@pytest.mark.parametrize("entropy", [0, -1, float("nan"), float("inf")])
def test_entropy_must_be_a_positive_number(entropy):
    with pytest.raises(ValueError, match="entropy: expected a positive, finite"):
        bound_from_jsds(0.1, 0.1, 0.1, 0.1, entropy)


def test_refusals():
    rows = unit_rows(0, 4, 3)
    with pytest.raises(ValueError, match="convention: expected one of 'published', 'equal_weight', got 'fair'"):
        rjsd(rows, rows, "fair")
    with pytest.raises(ValueError, match="b: expected dimension 3, that of a, got 2"):
        rjsd(rows, rows[:, :2])
    with pytest.raises(ValueError, match="b: expected at least one row"):
        rjsd(rows, rows[:0])
    with pytest.raises(ValueError, match="at least one nonzero row"):
        rjsd(rows, np.zeros((2, 3)))


def test_entropy_of_a_uniform_spectrum():
    assert Kernel.of(torch.eye(8)).entropy() == pytest.approx(math.log(8))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_what_shifts_share_is_decomposed_once(convention, monkeypatch):
    from lmms_eval_emi import Embeddings
    from lmms_eval_emi.core import divergence

    def split(seed, n, v=None):
        parts = [unit_rows(10 * seed + number, n, 16) for number in range(4)]
        return Embeddings(v=parts[0] if v is None else v, t=parts[1], y_hat=parts[2], y=parts[3])

    pictures = unit_rows(99, 12, 16)
    others = [(1, 12, pictures), (2, 12, pictures), (3, 9, None), (4, 40, None)]
    alone = [emid_bound(split(0, 12), split(*other), convention).value for other in others]
    decomposed = []
    entropy = divergence.matrix_to_entropy
    monkeypatch.setattr(divergence, "matrix_to_entropy", lambda matrix: (decomposed.append(matrix), entropy(matrix))[1])
    first, shifted = split(0, 12), [split(*other) for other in others]
    assert [emid_bound(first, one, convention).value for one in shifted] == pytest.approx(alone, abs=1e-14)
    # Of 5 splits: 4 kernels each less one of shared pictures; 3 mixtures of pictures, 4 of questions, 5 of responses.
    assert len(decomposed) == 19 + 3 + 4 + 5
