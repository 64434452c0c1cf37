"""RJSD, the representation Jensen-Shannon divergence, and the bound on EMID that it gives.

Sources: Hoyos-Osorio & Sanchez-Giraldo, *The Representation Jensen-Shannon Divergence*, 2023, for
the divergence; Oh et al., ICML 2025 (arXiv 2502.00577), for the bound.

For embeddings X (N, D), K = X^T X has the von Neumann entropy S(K) = -sum p ln p, where p are the
positive eigenvalues divided by their sum. With K the kernel of each set,

    JSD(X, Y) = S(mixture of K_X and K_Y) - ( S(K_X) + S(K_Y) ) / 2      in nats

Two named conventions say what the mixture is:

``published``
    (K_X + K_Y) / 2 with K not divided by N: comparable with the paper. Sets of unequal size are
    weighted by size in the mixture but not in the entropies, so the value can leave [0, ln 2]; it
    is clamped at 0 and may exceed ln 2.
``equal_weight``
    (K_X/N_X + K_Y/N_Y) / 2: a proper divergence in [0, ln 2], equal to the above for equal sizes.

K and the Gram matrix X X^T share their nonzero eigenvalues; the smaller of the two is decomposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch

from lmms_eval_emi.core.conventions import CONVENTIONS, EXPONENTS
from lmms_eval_emi.core.embeddings import CHUNK_ROWS, ArrayLike, Embeddings, as_matrix, shared_encoders
from lmms_eval_emi.core.signature import Signature

# A divergence below this is rounding of the eigenvalues in float64, not a difference of the sets. It
# is set to 0 because the bound takes fourth roots: 1e-14 of noise would read as 3e-4.
NOISE_FLOOR = 1e-12


def check_convention(convention: str) -> None:
    """Raise ``ValueError`` unless ``convention`` is one of :data:`CONVENTIONS`."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: expected one of {', '.join(map(repr, CONVENTIONS))}, got {convention!r}.")


@dataclass(frozen=True, eq=False)
class Kernel:
    """Second moment of a set of rows, in the smaller of its two forms.

    ``rows`` (N, D) while N <= D, so that the Gram matrix is the smaller one; else ``covariance``
    (D, D) = X^T X, which merges by addition. Both float64.
    """

    n: int
    rows: torch.Tensor | None
    covariance: torch.Tensor | None

    def scaled(self, weight: float) -> Kernel:
        """The kernel of the rows multiplied by sqrt(weight)."""
        if self.rows is not None:
            return Kernel(self.n, self.rows * math.sqrt(weight), None)
        assert self.covariance is not None
        return Kernel(self.n, None, self.covariance * weight)

    def to_covariance(self) -> torch.Tensor:
        """(D, D) X^T X."""
        if self.covariance is not None:
            return self.covariance
        assert self.rows is not None
        return self.rows.T @ self.rows

    def merge(self, other: Kernel) -> Kernel:
        """Kernel of both sets of rows together: K_X + K_Y."""
        n = self.n + other.n
        if self.rows is not None and other.rows is not None and n <= self.rows.shape[1]:
            return Kernel(n, torch.cat([self.rows, other.rows]), None)
        return Kernel(n, None, self.to_covariance() + other.to_covariance())


def embeddings_to_kernel(x: torch.Tensor) -> Kernel:
    """:class:`Kernel` of the rows of ``x`` (N, D), accumulated in float64 a chunk at a time."""
    n, dimension = x.shape
    if n <= dimension:
        return Kernel(n, x.double(), None)
    covariance = torch.zeros(dimension, dimension, dtype=torch.float64, device=x.device)
    for chunk in x.split(CHUNK_ROWS):
        rows = chunk.double()
        covariance += rows.T @ rows
    return Kernel(n, None, covariance)


def kernel_to_spectrum(kernel: Kernel) -> torch.Tensor:
    """Positive eigenvalues of the kernel divided by their sum, float64, ascending."""
    if kernel.rows is not None:
        matrix = kernel.rows @ kernel.rows.T
    else:
        assert kernel.covariance is not None
        matrix = kernel.covariance
    eigenvalues = torch.linalg.eigvalsh(matrix)
    positive = eigenvalues[eigenvalues > 0]
    if len(positive) == 0:
        raise ValueError(
            "embeddings: expected at least one nonzero row, got zeros only, for which a spectrum is not defined."
        )
    return positive / positive.sum()


def spectrum_to_entropy(spectrum: torch.Tensor) -> float:
    """Von Neumann entropy -sum p ln p of a normalised spectrum, in nats."""
    return float(-(spectrum * spectrum.log()).sum())


def kernels_to_jsd(
    a: Kernel, b: Kernel, convention: str = "published", entropies: tuple[float, float] | None = None
) -> float:
    """RJSD of two kernels in nats; ``entropies`` may give S(K_a) and S(K_b) where they are known."""
    check_convention(convention)
    if _same_rows(a, b):
        return 0.0
    if entropies is None:
        entropies = (spectrum_to_entropy(kernel_to_spectrum(a)), spectrum_to_entropy(kernel_to_spectrum(b)))
    if convention == "equal_weight":
        a, b = a.scaled(1 / a.n), b.scaled(1 / b.n)
    jsd = spectrum_to_entropy(kernel_to_spectrum(a.merge(b))) - sum(entropies) / 2
    if jsd < NOISE_FLOOR:
        return 0.0
    return min(jsd, math.log(2)) if convention == "equal_weight" else jsd


def _same_rows(a: Kernel, b: Kernel) -> bool:
    if a.rows is not None and b.rows is not None:
        return torch.equal(a.rows, b.rows)
    if a.covariance is not None and b.covariance is not None:
        return torch.equal(a.covariance, b.covariance)
    return False


def rjsd(a: ArrayLike, b: ArrayLike, convention: str = "published") -> float:
    """Representation Jensen-Shannon divergence of two sets of embeddings, in nats.

    Args:
        a: (N, D) array or tensor, one L2-normalised row a sample.
        b: (M, D) array or tensor.
        convention: ``published`` or ``equal_weight``; see the module.

    Returns:
        0 exactly for identical sets; in [0, ln 2] for ``equal_weight`` or equal sizes; never negative.

    Raises:
        ValueError: wrong shapes, unequal D, NaN or infinity, N = 0, or an unknown convention.

    >>> import numpy as np
    >>> basis = np.eye(4)
    >>> round(rjsd(basis[:2], basis[2:]) / math.log(2), 12)  # orthogonal sets
    1.0
    """
    check_convention(convention)
    left, right = as_matrix(a, "a"), as_matrix(b, "b")
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"b: expected dimension {left.shape[1]}, that of a, got {right.shape[1]}.")
    if left.device != right.device:
        raise ValueError(f"b: expected device {left.device}, where a is, got {right.device}.")
    return kernels_to_jsd(embeddings_to_kernel(left), embeddings_to_kernel(right), convention)


@dataclass(frozen=True)
class EMIDBound:
    """RJSD bound on EMID and its parts.

    Attributes:
        value: the bound.
        kind: ``scaled``, the index that the paper's figures show, which correlates with EMID but
            guarantees nothing; or ``theorem``, the bound itself, for which an entropy was given.
        jsd_v: divergence of the images of the two splits, in nats; 0 where there are none.
        jsd_t: divergence of the questions.
        jsd_id_response: divergence of responses and references on the ID split.
        jsd_ood_response: the same on the shifted split.
        convention: ``published`` or ``equal_weight``.
        entropy: the entropy scale of the theorem, or ``None``.
        n_id, n_ood: numbers of samples.
        signature: what the figure depends on.
    """

    value: float
    kind: str
    jsd_v: float
    jsd_t: float
    jsd_id_response: float
    jsd_ood_response: float
    convention: str
    entropy: float | None
    n_id: int
    n_ood: int
    signature: Signature

    def __str__(self) -> str:
        parts = f"JSD images {self.jsd_v:.4g}, questions {self.jsd_t:.4g}, responses ID {self.jsd_id_response:.4g}, OOD {self.jsd_ood_response:.4g}"
        return (
            f"EMID bound ({self.kind}) = {self.value:.4g} ({parts}, n = {self.n_id} and {self.n_ood})\n{self.signature}"
        )


def check_entropy(entropy: float | None) -> None:
    """Raise ``ValueError`` unless ``entropy`` is ``None`` or a positive, finite number."""
    if entropy is not None and not (isinstance(entropy, Real) and math.isfinite(entropy) and entropy > 0):
        raise ValueError(
            f"entropy: expected a positive, finite entropy scale in nats, or None for the scaled index, got {entropy!r}."
        )


def bound_from_jsds(
    jsd_v: float, jsd_t: float, jsd_id_response: float, jsd_ood_response: float, entropy: float | None = None
) -> float:
    """The bound on EMID from its four divergences (Oh et al., ICML 2025).

        scaled   = jsd_v^(1/2) + jsd_t^(1/2) + jsd_id_response^(1/4) + jsd_ood_response^(1/4)
        theorem  = entropy (jsd_v^(1/2) + jsd_t^(1/2)) + 4 (jsd_id_response^(1/4) + jsd_ood_response^(1/4))

    >>> bound_from_jsds(0.25, 0.25, 0.0625, 0.0625)
    2.0
    """
    check_entropy(entropy)
    inputs = jsd_v ** EXPONENTS["jsd_v"] + jsd_t ** EXPONENTS["jsd_t"]
    outputs = jsd_id_response ** EXPONENTS["jsd_id_response"] + jsd_ood_response ** EXPONENTS["jsd_ood_response"]
    return inputs + outputs if entropy is None else entropy * inputs + 4 * outputs


def emid_bound(
    id: Embeddings, ood: Embeddings, convention: str = "published", entropy: float | None = None
) -> EMIDBound:
    """RJSD bound on the EMID of a shift.

    Args:
        id: the in-distribution split.
        ood: the shifted split.
        convention: of the divergence, ``published`` or ``equal_weight``.
        entropy: the entropy scale of the theorem, in nats; without it the scaled index is given.

    Returns:
        :class:`EMIDBound`.

    Raises:
        ValueError: unequal dimensions or encoders, an unknown convention, or an entropy that is not
            a positive number.
    """
    check_convention(convention)
    check_entropy(entropy)
    encoders = shared_encoders(id, ood)
    if (id.v is None) != (ood.v is None):
        raise ValueError(
            "ood.v: expected images on both sides or on none, got them on one. Compare splits of one kind."
        )
    for name in ("t", "y_hat"):
        expected, got = getattr(id, name).shape[1], getattr(ood, name).shape[1]
        if expected != got:
            raise ValueError(f"ood.{name}: expected dimension {expected}, that of id.{name}, got {got}.")
    jsds = {
        "jsd_v": _jsd(id, "v", ood, "v", convention) if id.v is not None else 0.0,
        "jsd_t": _jsd(id, "t", ood, "t", convention),
        "jsd_id_response": _jsd(id, "y_hat", id, "y", convention),
        "jsd_ood_response": _jsd(ood, "y_hat", ood, "y", convention),
    }
    kind = "scaled" if entropy is None else "theorem"
    signature = Signature.of(
        "emid_bound",
        encoders=encoders,
        convention=convention,
        kind=kind if entropy is None else f"{kind}(entropy={entropy:g})",
        n_id=id.n,
        n_ood=ood.n,
    )
    return EMIDBound(
        bound_from_jsds(**jsds, entropy=entropy),
        kind,
        **jsds,
        convention=convention,
        entropy=entropy,
        n_id=id.n,
        n_ood=ood.n,
        signature=signature,
    )


def _jsd(left: Embeddings, left_name: str, right: Embeddings, right_name: str, convention: str) -> float:
    """RJSD of two of the matrices; what depends on one split alone is computed once and kept with it."""
    if left is right:
        key = ("jsd", left_name, right_name, convention)
        if key not in left.cache:
            left.cache[key] = kernels_to_jsd(_kernel(left, left_name), _kernel(left, right_name), convention)
        return left.cache[key]
    entropies = (_entropy(left, left_name), _entropy(right, right_name))
    return kernels_to_jsd(_kernel(left, left_name), _kernel(right, right_name), convention, entropies)


def _kernel(embeddings: Embeddings, name: str) -> Kernel:
    key = ("kernel", name)
    if key not in embeddings.cache:
        embeddings.cache[key] = embeddings_to_kernel(getattr(embeddings, name))
    return embeddings.cache[key]


def _entropy(embeddings: Embeddings, name: str) -> float:
    key = ("entropy", name)
    if key not in embeddings.cache:
        embeddings.cache[key] = spectrum_to_entropy(kernel_to_spectrum(_kernel(embeddings, name)))
    return embeddings.cache[key]
