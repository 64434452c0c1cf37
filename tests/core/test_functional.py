"""The divergence and the index as losses: the metrics' values, right gradients, and something that they train."""

from __future__ import annotations

import pytest
import torch

from lmms_eval_emi import Embeddings, emid_bound, functional
from lmms_eval_emi import rjsd as metric


def rows(seed: int, n: int, dimension: int = 6) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, dimension, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("convention", ["published", "equal_weight"])
@pytest.mark.parametrize(("n", "m"), [(4, 4), (4, 7), (9, 12)])
def test_the_loss_is_the_metric(convention, n, m):
    a, b = rows(0, n), rows(1, m)
    assert float(functional.rjsd(a, b, convention)) == pytest.approx(metric(a, b, convention), abs=1e-13)
    parts = [rows(seed, count) for seed, count in enumerate((n, n, n, n, m, m, m, m))]
    id, ood = Embeddings(*parts[:4]), Embeddings(*parts[4:])
    for entropy in (None, 2.5):
        loss = functional.shift_index(
            (id.v, ood.v), (id.t, ood.t), (id.y_hat, id.y), (ood.y_hat, ood.y), convention, entropy
        )
        assert float(loss) == pytest.approx(emid_bound(id, ood, convention, entropy).value, abs=1e-12)


@pytest.mark.parametrize("convention", ["published", "equal_weight"])
@pytest.mark.parametrize(("n", "m"), [(3, 3), (2, 3), (8, 9)])  # as Gram matrices, and as covariances
def test_gradients_are_right(convention, n, m):
    inputs = [one.requires_grad_() for one in (rows(0, n), rows(1, m))]
    assert torch.autograd.gradcheck(lambda a, b: functional.rjsd(a, b, convention), inputs)
    others = [rows(seed, n) for seed in (2, 3, 4)]
    others = [inputs[0], inputs[1], *[one.requires_grad_() for one in others]]
    assert torch.autograd.gradcheck(
        lambda a, b, t, y_hat, y: functional.shift_index((a, b), (t, b), (y_hat, y), (y, t), convention), others
    )


def test_a_divergence_of_zero_has_no_gradient_and_no_nan():
    a = rows(0, 4).requires_grad_()
    loss = functional.shift_index(None, (a, a), (a, a), (a, a))
    loss.backward()
    assert float(loss) == 0 and torch.equal(a.grad, torch.zeros_like(a))


def test_it_trains_in_float32_and_mini_batches():
    target = rows(0, 64, 8).float()
    turned = torch.nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.Adam(turned.parameters(), lr=0.03)
    source = rows(1, 256, 8).float() * torch.tensor([3.0, 3, 1, 1, 1, 1, 0.1, 0.1])
    losses = []
    for step in range(150):
        batch = source[(32 * step) % 256 :][:32]
        loss = functional.rjsd(torch.nn.functional.normalize(turned(batch), dim=1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert turned.weight.dtype == torch.float32 and sum(losses[-8:]) < 0.5 * sum(losses[:8])


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(3), torch.ones(3, 2), "a: expected a floating-point tensor of shape"),
        (torch.ones(3, 2), torch.ones(3, 2).int(), "b: expected a floating-point tensor of shape"),
        (torch.ones(3, 2), torch.ones(3, 4), "b: expected dimension 2, that of a, got 4"),
    ],
)
def test_bad_input(a, b, message):
    with pytest.raises(ValueError, match=message):
        functional.rjsd(a, b)
