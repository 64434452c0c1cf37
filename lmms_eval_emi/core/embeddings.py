"""The four embeddings of a split: what every score of this package is computed from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from lmms_eval_emi.errors import InputError

ArrayLike = Any  # numpy array or torch tensor
CHUNK_ROWS = 8192  # rows that are upcast to float64 at a time


def as_matrix(values: ArrayLike, name: str) -> torch.Tensor:
    """Check one (N, D) matrix of finite floating-point rows and return it as a tensor.

    Args:
        values: (N, D) array or tensor; it is not copied where that can be avoided.
        name: what an error calls it.

    Raises:
        ValueError: not 2-D, no rows, no columns, not floating point, or NaN or infinite rows.
    """
    if isinstance(values, torch.Tensor):
        matrix = values.detach()
    else:
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise InputError(f"{name}: expected rows of equal length, got a ragged sequence ({error}).") from error
        if array.dtype.kind != "f":
            raise InputError(
                f"{name}: expected floating-point values, got dtype {array.dtype}. Convert with .astype('float32')."
            )
        if array.dtype not in (np.float16, np.float32, np.float64) or not array.dtype.isnative:
            array = array.astype(np.float64)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        matrix = torch.from_numpy(array)
    if not matrix.dtype.is_floating_point:
        raise InputError(f"{name}: expected floating-point values, got dtype {matrix.dtype}. Convert with .float().")
    if matrix.layout != torch.strided:
        raise InputError(f"{name}: expected a dense tensor, got layout {matrix.layout}. Convert with .to_dense().")
    if matrix.ndim != 2:
        raise InputError(f"{name}: expected shape (N, D), one row a sample, got {tuple(matrix.shape)}.")
    if matrix.shape[0] == 0:
        raise InputError(f"{name}: expected at least one row, got N = 0. A split without samples has no scores.")
    if matrix.shape[1] == 0:
        raise InputError(f"{name}: expected at least one column, got D = 0.")
    bad = _rows_not_finite(matrix)
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise InputError(
            f"{name}: expected finite values, got NaN or infinity in {len(bad)} of {len(matrix)} rows (row {shown}). Drop or re-encode them."
        )
    return matrix


def _rows_not_finite(matrix: torch.Tensor) -> list[int]:
    """Return the numbers of the rows with NaN or infinity."""
    # Neither gets lost in a sum, which takes a tenth of the time. A sum of large values may become infinite by itself.
    if all(bool(torch.isfinite(chunk.sum())) for chunk in matrix.split(CHUNK_ROWS)):
        return []
    finite = torch.cat([torch.isfinite(chunk).all(dim=1) for chunk in matrix.split(CHUNK_ROWS)])
    return torch.nonzero(~finite).flatten().tolist()


def _warn_unless_normalised(matrix: torch.Tensor, name: str) -> None:
    norms = torch.cat([chunk.double().norm(dim=1) for chunk in matrix.split(CHUNK_ROWS)])
    off = float((norms - 1).abs().max())
    if off > 0.02:  # bfloat16 rounds within that
        warnings.warn(
            f"{name}: expected L2-normalised rows, got norms from {float(norms.min()):.3g} to {float(norms.max()):.3g}. Scores of other rows cannot be compared with published ones.",
            stacklevel=4,
        )


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One split as embeddings: a row a sample, in the same order in all four matrices.

    Args:
        v: (N, D) images, L2-normalised rows; ``None`` if there are none, and the text is the input.
        t: (N, D) questions, the same D as ``v``, for the input is their mean.
        y_hat: (N, D') responses of the model.
        y: (N, D') references.
        ids: optional (N,) row identifiers, for pairing the rows of two splits.
        groups: optional (N,) cluster of each row, such as its image.
        encoders: optional record of what made the embeddings; it becomes part of every signature.

    Raises:
        ValueError: naming the argument, what was expected and what came: wrong shapes, unequal N,
            NaN or infinite rows, N = 0, or integers.

    >>> rows = np.eye(3, dtype="float32")
    >>> Embeddings(v=rows, t=rows, y_hat=rows, y=rows)
    Embeddings(n=3, dimension=3)
    """

    v: torch.Tensor | None
    t: torch.Tensor
    y_hat: torch.Tensor
    y: torch.Tensor
    ids: Sequence[Any] | None = None
    groups: Sequence[Any] | None = None
    encoders: str | None = None
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        names = ("v", "t", "y_hat", "y") if self.v is not None else ("t", "y_hat", "y")
        for name in names:
            object.__setattr__(self, name, as_matrix(getattr(self, name), name))
        first: torch.Tensor = getattr(self, names[0])
        for name in names[1:]:
            matrix = getattr(self, name)
            if len(matrix) != len(first):
                raise InputError(
                    f"{name}: expected {len(first)} rows, as many as {names[0]} has, got {len(matrix)}. Every sample needs all embeddings."
                )
            if matrix.device != first.device:
                raise InputError(f"{name}: expected device {first.device}, where {names[0]} is, got {matrix.device}.")
        for name, other in (("t", "v"), ("y_hat", "y")):
            if other in names and getattr(self, name).shape[1] != getattr(self, other).shape[1]:
                raise InputError(
                    f"{name}: expected dimension {getattr(self, other).shape[1]}, that of {other}, got {getattr(self, name).shape[1]}."
                )
        for name in names:
            _warn_unless_normalised(getattr(self, name), name)
        for name in ("ids", "groups"):
            values = getattr(self, name)
            if values is not None and len(values) != self.n:
                raise InputError(f"{name}: expected {self.n} entries, one a row, got {len(values)}.")

    def select(self, rows: Sequence[int]) -> Embeddings:
        """Return the embeddings of some rows, by their numbers, in the order given.

        Raises:
            ValueError: no rows.
        """
        if len(rows) == 0:
            raise InputError("rows: expected at least one row to select, got none.")
        index = torch.as_tensor(list(rows), device=self.t.device)
        return Embeddings(
            v=self.v[index] if self.v is not None else None,
            t=self.t[index],
            y_hat=self.y_hat[index],
            y=self.y[index],
            ids=[self.ids[row] for row in rows] if self.ids is not None else None,
            groups=[self.groups[row] for row in rows] if self.groups is not None else None,
            encoders=self.encoders,
        )

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.t.shape[0]

    @property
    def dimension(self) -> int:
        """Dimension of the input embeddings."""
        return self.t.shape[1]

    @property
    def x(self) -> torch.Tensor:
        """(N, D) float64 inputs: the mean of image and question, not normalised again, or the question alone."""
        return self.t.double() if self.v is None else (self.v.double() + self.t.double()) / 2

    def __repr__(self) -> str:
        made_by = f", encoders={self.encoders!r}" if self.encoders else ""
        return f"Embeddings(n={self.n}, dimension={self.dimension}{made_by})"


class HasEncoders(Protocol):
    """Rows, or statistics of rows, that encoders made."""

    @property
    def encoders(self) -> str | None:
        """Signature of the encoders, if it is known."""


def shared_encoders(id: HasEncoders, ood: HasEncoders) -> str | None:
    """Return the encoders that made both splits.

    Raises:
        ValueError: the two splits were embedded by different encoders, so they cannot be compared.
    """
    if id.encoders and ood.encoders and id.encoders != ood.encoders:
        raise InputError(
            f"ood: expected embeddings of the encoders of id ({id.encoders}), got {ood.encoders}. Embed both splits alike."
        )
    return id.encoders or ood.encoders
