"""RJSD and the shift index as functions of tensors that gradients flow through.

The metrics of this package are built on the same functions. A shift index may be a training loss (Oh et al., ICML
2025, Sec. 6): every function here takes mini-batches, detaches nothing, and computes in float64.

>>> import torch
>>> a, b = torch.eye(4, requires_grad=True), torch.eye(4).flip(0)[:2]
>>> rjsd(a[:2], b).backward()
>>> a.grad.shape
torch.Size([4, 4])
"""

from __future__ import annotations

import torch

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.core.divergence import check_convention, check_entropy, matrix_to_entropy, rows_to_matrix
from lmms_eval_emi.core.exchange_test import NOISE_FLOOR
from lmms_eval_emi.errors import InputError

__all__ = ["rjsd", "shift_index", "von_neumann_entropy"]


def von_neumann_entropy(x: torch.Tensor) -> torch.Tensor:
    """Return the von Neumann entropy in nats of the kernel X^T X of (N, D) rows; a float64 scalar.

    Raises:
        ValueError: the rows are not a matrix, or all zero.
    """
    _check(x, "x")
    return matrix_to_entropy(rows_to_matrix(x))


def rjsd(a: torch.Tensor, b: torch.Tensor, convention: str = "published") -> torch.Tensor:
    """Return the representation Jensen-Shannon divergence of two sets of rows, in nats; see :func:`lmms_eval_emi.rjsd`.

    Args:
        a: (N, D) rows, L2-normalised for values that can be compared.
        b: (M, D) rows.
        convention: ``published`` or ``equal_weight``.

    Returns:
        A float64 scalar, at least 0. Where it is 0, its gradient is 0.

    Raises:
        ValueError: shapes or convention are wrong.
    """
    check_convention(convention)
    _check(a, "a")
    _check(b, "b")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"b: expected dimension {a.shape[1]}, that of a, got {b.shape[1]}.")
    left, right = a.double(), b.double()
    if convention == "equal_weight":
        left, right = left / len(left) ** 0.5, right / len(right) ** 0.5
    mixed = matrix_to_entropy(rows_to_matrix(torch.cat([left, right])))
    value = mixed - (von_neumann_entropy(a) + von_neumann_entropy(b)) / 2
    return torch.where(value < NOISE_FLOOR, value.detach() * 0, value)


def shift_index(
    v: tuple[torch.Tensor, torch.Tensor] | None,
    t: tuple[torch.Tensor, torch.Tensor],
    id_responses: tuple[torch.Tensor, torch.Tensor],
    ood_responses: tuple[torch.Tensor, torch.Tensor],
    convention: str = "published",
    entropy: float | None = None,
) -> torch.Tensor:
    """Return the shift index of the paper, whose plug-in bounds nothing; see :func:`lmms_eval_emi.emid_bound`.

    Args:
        v: images (N, D) of the ID split and (M, D) of the shifted one; ``None`` if there are none.
        t: their questions.
        id_responses: responses and references (N, D') of the ID split.
        ood_responses: those of the shifted one.
        convention: convention of the divergences.
        entropy: scale in nats; with it the plug-in of the theorem is given.

    Returns:
        A float64 scalar. The roots have no gradient at 0, so a divergence of 0 gives none.

    Raises:
        ValueError: as :func:`rjsd`, or an entropy that is not a positive number.
    """
    check_entropy(entropy)
    inputs = _root(rjsd(*t, convention), EXPONENTS["jsd_t"])
    if v is not None:
        inputs = inputs + _root(rjsd(*v, convention), EXPONENTS["jsd_v"])
    outputs = _root(rjsd(*id_responses, convention), EXPONENTS["jsd_id_response"])
    outputs = outputs + _root(rjsd(*ood_responses, convention), EXPONENTS["jsd_ood_response"])
    return inputs + outputs if entropy is None else entropy * inputs + 4 * outputs


def _root(value: torch.Tensor, exponent: float) -> torch.Tensor:
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0) ** exponent, 0.0 * value)


def _check(x: torch.Tensor, name: str) -> None:
    if not (isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim == 2 and min(x.shape) > 0):
        shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise InputError(f"{name}: expected a floating-point tensor of shape (N, D), got {shape}.")
