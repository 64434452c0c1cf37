"""Products of matrices of 32-bit numbers on the CPU by oneDNN.

PyTorch takes MKL for them, which on AMD's processors makes half as many operations a second as oneDNN does, and a
tenth fewer on Intel's. oneDNN's product is PyTorch's own, but has no public name; where it is missing, so is the speed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
REORDER = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)


def has_onednn(*matrices: torch.Tensor) -> bool:
    """Whether oneDNN can take the product of some matrices."""
    return ONEDNN is not None and all(one.device.type == "cpu" and one.dtype == torch.float32 for one in matrices)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, act: str = "none") -> torch.Tensor:
    """``act(x W^T + b)``, by oneDNN where it can, which has no gradient of its own.

    Args:
        x: (..., D) rows.
        weight: (D', D), or what ``REORDER`` made of it.
        bias: (D',) or ``None``.
        act: ``none``, or ``swish``, which oneDNN computes with the product.

    Returns:
        (..., D') rows.
    """
    if has_onednn(x):
        return ONEDNN(x, weight, bias, act, [], "")  # type: ignore[misc]
    y = linear(x, weight, bias)
    return silu(y) if act == "swish" else y


class _Product(torch.autograd.Function):
    """``x W^T + b`` of (B, D) rows; the gradient of a weight has the smaller of its sides on the left, which is faster."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            wide = weight.shape[0] > weight.shape[1]
            of_weight = product(x.t(), gradient.t()).t() if wide else product(gradient.t(), x.t())
        return of_x, of_weight, gradient.sum(dim=0) if ctx.needs_input_grad[2] else None


class Linear(nn.Linear):
    """A linear layer whose training on the CPU takes oneDNN's products. In evaluation it is PyTorch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, D') outputs of (B, D) inputs."""
        if self.training and torch.is_grad_enabled() and x.ndim == 2 and has_onednn(x, self.weight):
            return _Product.apply(x, self.weight, self.bias)
        return super().forward(x)
