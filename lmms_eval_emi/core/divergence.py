"""RJSD, the representation Jensen-Shannon divergence, and the shift index that it gives.

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

A linear kernel sees second moments only, so the divergence of different sets may be 0: it is for X and
-X. RJSD is at most the Jensen-Shannon divergence (data processing), so the theorem's right-hand side
with RJSD in it is a plug-in, not a bound on EMID.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

import torch
import xxhash

from lmms_eval_emi.core.conventions import CONVENTIONS, EXPONENTS, Signature
from lmms_eval_emi.core.embeddings import CHUNK_ROWS, ArrayLike, Embeddings, as_matrix, shared_encoders
from lmms_eval_emi.core.emi import clusters_of, shared_clusters
from lmms_eval_emi.core.exchange_test import MAX_ROWS, NOISE_FLOOR, DivergenceTest, PairedKernels
from lmms_eval_emi.core.jackknife import Jackknife, combine
from lmms_eval_emi.errors import InputError

# The two sets of each divergence: a split, and the name of its matrix.
SETS = {
    "jsd_v": (("id", "v"), ("ood", "v")),
    "jsd_t": (("id", "t"), ("ood", "t")),
    "jsd_id_response": (("id", "y_hat"), ("id", "y")),
    "jsd_ood_response": (("ood", "y_hat"), ("ood", "y")),
}


def check_convention(convention: str) -> None:
    """Raise ``ValueError`` unless ``convention`` is one of :data:`CONVENTIONS`."""
    if convention not in CONVENTIONS:
        raise InputError(f"convention: expected one of {', '.join(map(repr, CONVENTIONS))}, got {convention!r}.")


def rows_to_matrix(x: torch.Tensor) -> torch.Tensor:
    """Return X X^T or X^T X of (N, D) or (B, N, D) rows, whichever is smaller, in float64."""
    rows = x.double()
    return rows @ rows.mT if x.shape[-2] <= x.shape[-1] else rows.mT @ rows


def matrix_to_entropy(matrix: torch.Tensor) -> torch.Tensor:
    """Return the von Neumann entropy in nats of (..., N, N) positive semidefinite matrices, divided by their positive parts.

    Its gradient is that of a function of eigenvalues alone, V diag(f'(p)) V^T, so it is exact where they coincide.

    Returns:
        (...) float64.

    Raises:
        ValueError: a matrix has no positive eigenvalue.
    """
    values = torch.linalg.eigvalsh(matrix)
    positive = values > 0
    if not bool(positive.any(dim=-1).all()):
        raise InputError(
            "embeddings: expected at least one nonzero row, got zeros only, for which a spectrum is not defined."
        )
    kept = torch.where(positive, values, 0.0)
    p = kept / kept.sum(dim=-1, keepdim=True)
    return -(p * torch.where(positive, p, 1.0).log()).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class Kernel:
    """Second moment of a set of rows, in the smaller of its two forms.

    ``rows`` (N, D) while N <= D, so that the Gram matrix is the smaller one; else ``covariance``
    (D, D) = X^T X, which merges by addition. Both float64.
    """

    n: int
    rows: torch.Tensor | None
    covariance: torch.Tensor | None

    @classmethod
    def of(cls, x: torch.Tensor) -> Kernel:
        """Return the kernel of (N, D) rows, accumulated in float64 a chunk at a time."""
        n, dimension = x.shape
        if n <= dimension:
            return cls(n, x.double(), None)
        covariance = torch.zeros(dimension, dimension, dtype=torch.float64, device=x.device)
        for chunk in x.split(CHUNK_ROWS):
            rows = chunk.double()
            covariance += rows.T @ rows
        return cls(n, None, covariance)

    def matrix(self, *, smaller: bool = True) -> torch.Tensor:
        """Return the smaller of the matrices that have the kernel's eigenvalues, or always (D, D) X^T X."""
        if self.covariance is not None:
            return self.covariance
        assert self.rows is not None
        return rows_to_matrix(self.rows) if smaller else self.rows.T @ self.rows

    def entropy(self) -> float:
        """Return the von Neumann entropy, in nats."""
        return float(matrix_to_entropy(self.matrix()))

    def mixed(self, other: Kernel, convention: str) -> Kernel:
        """Return the kernel of the mixture of two sets, up to its scale."""
        a, b = (1 / self.n, 1 / other.n) if convention == "equal_weight" else (1.0, 1.0)
        n = self.n + other.n
        if self.rows is not None and other.rows is not None and n <= self.rows.shape[1]:
            return Kernel(n, torch.cat([self.rows * math.sqrt(a), other.rows * math.sqrt(b)]), None)
        return Kernel(n, None, self.matrix(smaller=False) * a + other.matrix(smaller=False) * b)

    def jsd(self, other: Kernel, convention: str) -> float:
        """Return the RJSD of two sets, in nats."""
        entropies = (self.entropy(), other.entropy())
        return _entropies_to_jsd(self.mixed(other, convention).entropy(), entropies, convention)


def _entropies_to_jsd(mixed: float, entropies: tuple[float, float], convention: str) -> float:
    jsd = mixed - sum(entropies) / 2
    if jsd < NOISE_FLOOR:
        return 0.0
    return min(jsd, math.log(2)) if convention == "equal_weight" else jsd


def rjsd(a: ArrayLike, b: ArrayLike, convention: str = "published") -> float:
    """Return the representation Jensen-Shannon divergence of two sets of embeddings, in nats.

    Args:
        a: (N, D) array or tensor, one L2-normalised row a sample.
        b: (M, D) array or tensor.
        convention: ``published`` or ``equal_weight``; see the module.

    Returns:
        0 exactly for identical sets, and for some different ones, since it sees second moments only; in [0, ln 2] for ``equal_weight`` or equal sizes; never negative.

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
        raise InputError(f"b: expected dimension {left.shape[1]}, that of a, got {right.shape[1]}.")
    if left.device != right.device:
        raise InputError(f"b: expected device {left.device}, where a is, got {right.device}.")
    if left.shape == right.shape and torch.equal(left.double(), right.double()):
        return 0.0
    return Kernel.of(left).jsd(Kernel.of(right), convention)


@dataclass(frozen=True, eq=False)
class EMIDBound:
    """Shift index of a shift and its parts.

    The index correlates with EMID and bounds nothing: EMID may exceed it (see docs/statistics.md).

    Attributes:
        value: the index.
        kind: ``scaled``, the index that the paper's plots show; or ``theorem``, the plug-in of the
            theorem, for which an entropy was given.
        jsd_v: divergence of the images of the two splits, in nats; 0 if there are none.
        jsd_t: divergence of the questions.
        jsd_id_response: divergence of responses and references on the ID split.
        jsd_ood_response: the same on the shifted split.
        convention: ``published`` or ``equal_weight``.
        entropy: the entropy scale of the theorem, or ``None``.
        n_id, n_ood: numbers of samples.
        signature: what the scores depend on.
        id, ood: the embeddings of the two splits; ``None`` for splits that were read once.
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
    id: Embeddings | None = field(default=None, repr=False)
    ood: Embeddings | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        jsds: Mapping[str, float],
        sizes: tuple[int, int],
        encoders: str | None,
        convention: str,
        entropy: float | None,
        splits: tuple[Embeddings, Embeddings] | None = None,
    ) -> EMIDBound:
        """Return the index of two splits of some sizes, from its four divergences by name."""
        kind = "scaled" if entropy is None else "theorem"
        signature = Signature.of(
            "emid_bound",
            encoders=encoders,
            convention=convention,
            kind=kind if entropy is None else f"{kind}(entropy={entropy:g})",
            n_id=sizes[0],
            n_ood=sizes[1],
        )
        values = (jsds["jsd_v"], jsds["jsd_t"], jsds["jsd_id_response"], jsds["jsd_ood_response"])
        index = bound_from_jsds(*values, entropy)
        return cls(index, kind, *values, convention, entropy, *sizes, signature, *(splits or ()))

    @property
    def baseline(self) -> float:
        """The index without any shift: that of the ID split's responses alone, twice."""
        return bound_from_jsds(0.0, 0.0, self.jsd_id_response, self.jsd_id_response, self.entropy)

    @cached_property
    def jackknife(self) -> Jackknife | None:
        """The index with its leave-one-image-out values; ``None`` for splits of more than 768 rows."""
        parts = {name: self._sets(name) for name in EXPONENTS}
        if any(sets is None for name, sets in parts.items() if name != "jsd_v" or (self.id and self.id.v is not None)):
            return None
        jsds = [Jackknife(0.0, ()) if sets is None else sets.jackknife for sets in parts.values()]
        return combine(lambda d: bound_from_jsds(d[0], d[1], d[2], d[3], self.entropy), jsds)

    @property
    def stderr(self) -> float | None:
        """Standard error, clustered by image; ``None`` for fewer than 8 images or more than 768 rows."""
        return self.jackknife.stderr if self.jackknife else None

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Interval of 95 % of the index at these numbers of images; ``None`` as for ``stderr``.

        A divergence of finite sets is above that of their distributions by its floor, so the interval is
        around the value and not around a corrected one.
        """
        return self.jackknife.interval(corrected=False) if self.jackknife else None

    def test(self, name: str, resamples: int = 1999, seed: int = 0) -> DivergenceTest | None:
        """Return the permutation test of one of the four divergences.

        Args:
            name: name such as ``jsd_v``.
            resamples: number of draws.
            seed: seed of the draws.

        Returns:
            ``None`` where the two sets are identical, where there are no images, or for more than 768 rows.
        """
        sets = self._sets(name)
        if sets is None or sets.identical or not resamples:
            return None
        paired = name.endswith("response") or bool(self.id and self.ood and shared_clusters(self.id, self.ood))
        key = (resamples, seed, paired)
        if key not in sets.tests:
            sets.tests[key] = sets.test(*key)
        return sets.tests[key]

    def is_identical(self, name: str) -> bool:
        """Return whether the two sets of a divergence are the same, so that there is no shift of them at all."""
        sets = self._sets(name)
        return getattr(self, name) == 0.0 if sets is None else sets.identical

    def _sets(self, name: str) -> PairedKernels | None:
        """Return the two sets of a divergence; shifts share those that are the same, such as the ID split's responses."""
        if self.id is None or self.ood is None:
            return None
        (x_split, x_name), (y_split, y_name) = SETS[name]
        first, second = getattr(self, x_split), getattr(self, y_split)
        if max(first.n, second.n) > MAX_ROWS or getattr(first, x_name) is None:
            return None
        x, y = getattr(first, x_name), getattr(second, y_name)
        of_split = {"id": clusters_of(self.id)}
        # Clusters of unrelated splits are different, whatever their keys.
        of_split["ood"] = shared_clusters(self.id, self.ood) or [("ood", key) for key in clusters_of(self.ood)]
        # Of sets of one size both conventions are one.
        convention = "equal_weight" if len(x) == len(y) else self.convention
        owner = first if first is second else self.id
        key = ("sets", name, convention, tuple(of_split[y_split]), _key(second, y_name))
        if key not in owner.cache:
            owner.cache[key] = PairedKernels(x, y, of_split[x_split], of_split[y_split], convention)
        return owner.cache[key]

    def __str__(self) -> str:
        parts = f"JSD images {self.jsd_v:.4g}, questions {self.jsd_t:.4g}, responses ID {self.jsd_id_response:.4g}, OOD {self.jsd_ood_response:.4g}"
        error = f" ± {self.stderr:.2g}" if self.stderr is not None else ""
        return f"shift index ({self.kind}) = {self.value:.4g}{error}, {self.baseline:.4g} without a shift ({parts}, n = {self.n_id} and {self.n_ood})\n{self.signature}"


def _digest(rows: torch.Tensor) -> str:
    digest = xxhash.xxh3_128(f"{rows.dtype} {tuple(rows.shape)}".encode())
    for chunk in rows.detach().split(CHUNK_ROWS):
        content: Any = chunk.cpu().contiguous().view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def check_entropy(entropy: float | None) -> None:
    """Raise ``ValueError`` unless ``entropy`` is ``None`` or a positive, finite number."""
    if entropy is not None and not (isinstance(entropy, Real) and math.isfinite(entropy) and entropy > 0):
        raise InputError(
            f"entropy: expected a positive, finite entropy scale in nats, or None for the scaled index, got {entropy!r}."
        )


def bound_from_jsds(
    jsd_v: float, jsd_t: float, jsd_id_response: float, jsd_ood_response: float, entropy: float | None = None
) -> float:
    """Return the shift index from its four divergences (Oh et al., ICML 2025).

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
    """Return the RJSD shift index of a shift, which the paper calls a bound on EMID.

    Args:
        id: the in-distribution split.
        ood: the shifted split.
        convention: convention of the divergence, ``published`` or ``equal_weight``.
        entropy: the entropy scale of the theorem, in nats; with it its plug-in is given, else the scaled index.

    Returns:
        :class:`EMIDBound`.

    Raises:
        ValueError: unequal dimensions or encoders, an unknown convention, or an entropy that is not
            a positive number.
    """
    check_comparable(_widths(id), _widths(ood), convention, entropy)
    splits = {"id": id, "ood": ood}
    jsds = {
        name: _jsd((splits[a], of_a), (splits[b], of_b), convention, id.cache.setdefault("entropies", {}))
        for name, ((a, of_a), (b, of_b)) in SETS.items()
    }
    return EMIDBound.of(jsds, (id.n, ood.n), shared_encoders(id, ood), convention, entropy, (id, ood))


def _widths(split: Embeddings) -> dict[str, int]:
    matrices = {"v": split.v, "t": split.t, "y_hat": split.y_hat}
    return {name: matrix.shape[1] for name, matrix in matrices.items() if matrix is not None}


def check_comparable(
    id: Mapping[str, int], ood: Mapping[str, int], convention: str, entropy: float | None = None
) -> None:
    """Raise ``ValueError`` unless two splits have an index: matrices of the same widths, by name, and valid options."""
    check_convention(convention)
    check_entropy(entropy)
    if ("v" in id) != ("v" in ood):
        raise InputError(
            "ood.v: expected images on both sides or on none, got them on one. Compare splits of one kind."
        )
    for name in ("t", "y_hat"):
        if id[name] != ood[name]:
            raise InputError(f"ood.{name}: expected dimension {id[name]}, that of id.{name}, got {ood[name]}.")


def _jsd(
    left: tuple[Embeddings, str], right: tuple[Embeddings, str], convention: str, known: dict[Any, float]
) -> float:
    """Return the RJSD of two matrices of splits, 0 if there are none; ``known`` keeps entropies by content."""
    if getattr(*left) is None:
        return 0.0
    first, second = _key(*left), _key(*right)
    if first == second:
        return 0.0

    def entropy(key: Hashable, kernel: Callable[[], Kernel]) -> float:
        if key not in known:
            known[key] = kernel().entropy()
        return known[key]

    entropies = (entropy(first, lambda: _kernel(*left)), entropy(second, lambda: _kernel(*right)))
    mixed = entropy((first, second, convention), lambda: _kernel(*left).mixed(_kernel(*right), convention))
    return _entropies_to_jsd(mixed, entropies, convention)


def _key(embeddings: Embeddings, name: str) -> str:
    """Return a hash of one of the matrices of a split."""
    key = ("digest", name)
    if key not in embeddings.cache:
        embeddings.cache[key] = _digest(getattr(embeddings, name))
    return embeddings.cache[key]


def _kernel(embeddings: Embeddings, name: str) -> Kernel:
    key = ("kernel", name)
    if key in embeddings.cache:
        return embeddings.cache[key]
    kernel = Kernel.of(getattr(embeddings, name))
    if kernel.covariance is not None:  # rows are quick to recompute, and take more memory than all that follows
        embeddings.cache[key] = kernel
    return kernel
