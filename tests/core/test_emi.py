"""EMI and EMID: the closed form against the definition, the sign, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lmms_eval_emi as emi_package
from lmms_eval_emi import emi, emid
from lmms_eval_emi.estimators import CLUB


@pytest.fixture(scope="module")
def estimator() -> CLUB:
    torch.manual_seed(1)
    network = CLUB(12, 12, 8)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)  # so that both outputs vary well within their range
    return network.eval()


def club_by_definition(estimator: CLUB, x: torch.Tensor, y: torch.Tensor) -> float:
    """1/N sum_i [ log q(y_i|x_i) - 1/N sum_j log q(y_j|x_i) ], with every pair spelled out."""
    network = CLUB.from_state_dict(estimator.state_dict(), name="oracle").double()
    with torch.no_grad():
        mu, logvar = network(x)
    log_q = torch.distributions.Normal(mu[:, None], (logvar[:, None] / 2).exp()).log_prob(y.double()[None]).sum(-1)
    return float((log_q.diagonal() - log_q.mean(dim=1)).mean())


def test_closed_form_is_the_definition(make_embeddings, estimator):
    split = make_embeddings(3)
    result = emi(split, estimator)
    assert result.mi_response == pytest.approx(club_by_definition(estimator, split.x, split.y_hat), abs=1e-12)
    assert result.mi_reference == pytest.approx(club_by_definition(estimator, split.x, split.y), abs=1e-12)
    assert result.value == result.mi_response - result.mi_reference
    assert float(result.contributions.mean()) == pytest.approx(result.value, abs=1e-14)
    assert result.contributions.shape == (20,)


def test_closed_form_survives_a_large_offset(estimator):
    """Far from zero, E[y^2] - E[y]^2 would lose what the factored form keeps."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(30, 12))), torch.from_numpy(rng.normal(size=(30, 12)) * 1e-3)
    offset = 1e6
    shifted = CLUB.from_state_dict(estimator.state_dict(), name="shifted")
    with torch.no_grad():
        shifted.double().p_mu[2].bias.add_(offset)
    plain, moved = estimator.contributions(x, y).mean(), shifted.contributions(x, y + offset).mean()
    assert float(moved) == pytest.approx(float(plain), rel=1e-6)


def test_rows_in_another_order_or_in_chunks_give_the_same(make_embeddings, estimator, monkeypatch):
    split = make_embeddings(4, n=50)
    expected = emi(split, estimator).value
    order = torch.randperm(50)
    permuted = emi_package.Embeddings(v=split.v[order], t=split.t[order], y_hat=split.y_hat[order], y=split.y[order])
    assert emi(permuted, estimator).value == pytest.approx(expected, abs=1e-14)
    monkeypatch.setattr("lmms_eval_emi.core.club.CHUNK_ROWS", 7)
    monkeypatch.setattr("lmms_eval_emi.estimators.club.CHUNK_ROWS", 7)
    assert emi(split, estimator).value == pytest.approx(expected, abs=1e-14)


def test_emid_is_id_minus_ood(make_embeddings, estimator):
    """The convention itself: positive when the shifted split has the lower EMI."""
    id, ood = make_embeddings(1), make_embeddings(2, n=30)
    result = emid(id, ood, estimator)
    assert result.value == emi(id, estimator).value - emi(ood, estimator).value
    assert emid(ood, id, estimator).value == -result.value
    assert emid(id, id, estimator).value == 0
    better = make_embeddings(1, y_hat=id.y)  # responses that are the references
    assert emi(better, estimator).value == 0


def test_known_information_of_a_gaussian_channel():
    """y = x + noise: with the true conditional, CLUB is log-density contrast with a known mean.

    For q(y|x) = N(x, 1) and x ~ N(0, s^2 I), E[c] = sum_d cov(x, y)_d / 1 = D s^2.
    """
    torch.manual_seed(0)
    n, dimension, scale = 20_000, 4, 0.1
    x = torch.randn(n, dimension, dtype=torch.float64) * scale
    y = x + torch.randn(n, dimension, dtype=torch.float64)
    network = CLUB(dimension, dimension, dimension)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.p_mu[0].weight.copy_(torch.eye(dimension) * 1e-3)  # tanh is linear there
        network.p_mu[2].weight.copy_(torch.eye(dimension) * 1e3)
    assert float(network.contributions(x, y).mean()) == pytest.approx(
        dimension * scale**2, abs=4 * scale * dimension**0.5 / n**0.5
    )


def test_signatures_say_what_the_figure_depends_on(make_embeddings, estimator):
    split = make_embeddings(0, encoders="clip#1+xlm#2")
    assert (
        str(emi(split, estimator).signature)
        == f"emi|encoders:clip#1+xlm#2|estimator:club|n:20|version:{emi_package.__version__}"
    )
    text = str(emid(split, make_embeddings(1, n=7, encoders="clip#1+xlm#2"), estimator))
    assert "n_id:20|n_ood:7" in text and text.startswith("EMID = ")


def test_splits_of_different_encoders_are_not_compared(make_embeddings, estimator):
    with pytest.raises(ValueError, match=r"ood: expected embeddings of the encoders of id \(a\), got b"):
        emid(make_embeddings(0, encoders="a"), make_embeddings(1, encoders="b"), estimator)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": np.ones((19, 12))}, "t: expected 20 rows, as many as v has, got 19"),
        ({"t": np.ones((20, 11))}, "t: expected dimension 12, that of v, got 11"),
        ({"y_hat": np.ones((20, 11))}, "y_hat: expected dimension 12, that of y, got 11"),
        ({"y": np.ones(20)}, r"y: expected shape \(N, D\), one row a sample, got \(20,\)"),
        ({"v": np.full((20, 12), np.nan)}, "v: expected finite values, got NaN or infinity in 20 of 20 rows"),
        ({"v": np.where(np.arange(20)[:, None] == 3, np.inf, 1.0) * np.ones((20, 12))}, r"in 1 of 20 rows \(row 3\)"),
        ({"y": np.ones((20, 12), dtype=int)}, "y: expected floating-point values, got dtype int64"),
        ({"v": torch.ones(20, 12, dtype=torch.int32)}, "v: expected floating-point values, got dtype torch.int32"),
        ({name: np.ones((0, 12)) for name in ("v", "t", "y_hat", "y")}, "v: expected at least one row, got N = 0"),
        ({"ids": [1, 2]}, "ids: expected 20 entries, one a row, got 2"),
        ({"groups": range(21)}, "groups: expected 20 entries, one a row, got 21"),
    ],
)
def test_bad_input_is_named(make_embeddings, changes, message):
    with pytest.raises(ValueError, match=message):
        make_embeddings(0, **changes)


def test_wrong_dimension_for_the_estimator(make_embeddings, estimator):
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 12\) for the estimator club, got \(20, 6\)"):
        emi(make_embeddings(0, dimension=6), estimator)


def test_arguments_in_the_wrong_order(make_embeddings, estimator):
    with pytest.raises(TypeError, match="embeddings: expected"):
        emi(estimator, make_embeddings(0))
    with pytest.raises(TypeError, match="estimator: expected an estimator"):
        emi(make_embeddings(0), "club-global")


def test_half_precision_is_upcast(make_embeddings, estimator):
    split = make_embeddings(0)
    half = emi_package.Embeddings(v=split.v.half(), t=split.t.half(), y_hat=split.y_hat.half(), y=split.y.half())
    assert emi(half, estimator).value == pytest.approx(emi(split, estimator).value, abs=1e-2)
    assert emi(half, estimator).contributions.dtype == torch.float64


def test_rows_that_are_not_normalised_are_told(make_embeddings):
    with pytest.warns(UserWarning, match="v: expected L2-normalised rows, got norms from 100 to 100"):
        make_embeddings(0, v=make_embeddings(0).v * 100)


def test_arrays_of_other_layouts(make_embeddings, estimator):
    split = make_embeddings(0)
    expected = emi(split, estimator).value
    for dtype in (">f4", np.longdouble):
        assert emi(make_embeddings(0, v=split.v.numpy().astype(dtype)), estimator).value == pytest.approx(
            expected, abs=1e-6
        )
    with pytest.raises(ValueError, match="v: expected a dense tensor"):
        make_embeddings(0, v=split.v.to_sparse())
    with pytest.raises(ValueError, match="v: expected rows of equal length"):
        make_embeddings(0, v=[[1.0], [1.0, 2.0]])
