"""EMI, EMID and the index of splits that do not fit into memory: statistics of parts, which merge exactly.

A part of a split contributes sums: X^T X of each of its matrices, from which every divergence follows, and the
sums of CLUB over each cluster (:class:`~lmms_eval_emi.core.club.ClusterSums`), from which EMI with and without each
cluster follows. Sums of parts add, so chunks, ranks and machines are one thing, and a split is read once. Memory is
O(G D + D^2) whatever the number of rows, for more than 1,000 clusters become as many blocks.

What needs the rows themselves is not given: their influence, the parts of EMID, the errors and tests of divergences.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
import xxhash

from lmms_eval_emi.core.club import ClusterSums
from lmms_eval_emi.core.divergence import EMIDBound, Kernel, emid_bound
from lmms_eval_emi.core.embeddings import Embeddings, shared_encoders
from lmms_eval_emi.core.emi import EMI, EMID, MOST_CLUSTERS, MutualInformationEstimator, cluster_hash, emi_difference
from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.core.signature import Signature
from lmms_eval_emi.errors import InputError

MATRICES = ("v", "t", "y_hat", "y")


class OnePassEstimator(MutualInformationEstimator, Protocol):
    """An estimator of a diagonal Gaussian q(y|x), whose sums over parts of a split add."""

    def gaussians(self, embeddings: Embeddings) -> list[list[tuple[torch.Tensor, torch.Tensor, Any]]]:
        """Return, by seed and fold, (N, D') float64 means and log variances, and the map of targets."""
        ...


class ClusterTable:
    """Sums of CLUB by the hash of each cluster."""

    def __init__(self, keys: np.ndarray, sums: ClusterSums, blocked: bool) -> None:
        self.keys, self.sums, self.blocked = keys, sums, blocked

    def merge(self, other: ClusterTable) -> ClusterTable:
        """Return the table of the rows of both."""
        first, second = self, other
        together = np.union1d(first.keys, second.keys)
        if first.blocked or second.blocked or len(together) > MOST_CLUSTERS:
            first, second = first._into_blocks(), second._into_blocks()
            together = np.union1d(first.keys, second.keys)
        sums = _empty_like(first.sums, len(together))
        for part in (first, second):
            _add_rows(sums, part.sums, np.searchsorted(together, part.keys))
        return ClusterTable(together, sums, first.blocked)

    def _into_blocks(self) -> ClusterTable:
        if self.blocked:
            return self
        blocks, numbers = np.unique(self.keys % np.uint64(MOST_CLUSTERS), return_inverse=True)
        sums = _empty_like(self.sums, len(blocks))
        _add_rows(sums, self.sums, numbers)
        return ClusterTable(blocks, sums, True)

    def value(self) -> float:
        """Return CLUB of all rows."""
        sums, n = self.sums, float(self.sums.n.sum())
        a, precision, y, square = (part.sum(dim=0) for part in (sums.a, sums.precision, sums.y, sums.square))
        return float(sums.matched.sum() / n - ((a * y).sum() - (precision * square).sum() / 2) / n**2)


def _empty_like(sums: ClusterSums, count: int) -> ClusterSums:
    return ClusterSums.empty(count, sums.y.shape[1], sums.y.device)


def _add_rows(total: ClusterSums, part: ClusterSums, places: np.ndarray) -> None:
    index = torch.from_numpy(places.astype(np.int64)).to(total.n.device)
    for name in ("n", "matched", "a", "precision", "y", "square"):
        getattr(total, name).index_add_(0, index, getattr(part, name))


class SplitStatistics:
    """Sums over the rows that were added, from which the scores of a split follow.

    Args:
        estimator: estimator whose EMI is wanted.
        encoders: encoders that made the embeddings.
        partners: clusters of the rows of the ID split, where this is a shift of it.
        keep_partners: whether to keep the clusters of the rows by their ids, for the shifts of this split.
    """

    def __init__(
        self,
        estimator: OnePassEstimator,
        *,
        encoders: str | None = None,
        partners: Partners | None = None,
        keep_partners: bool = False,
    ) -> None:
        if not hasattr(estimator, "gaussians"):
            raise InputError(
                f"estimator: expected one that scores in one pass (club, club-free), got {estimator.signature}. Score a sample of the rows, or train one of these kinds."
            )
        self.estimator, self.encoders, self.partners = estimator, encoders, partners
        self.n = self.matched = 0
        self.covariances: dict[str, torch.Tensor] = {}
        self.tables: list[
            list[tuple[ClusterTable, ClusterTable]]
        ] = []  # tables of responses and references, by seed and fold
        self.own_partners: list[tuple[np.ndarray, np.ndarray]] | None = [] if keep_partners else None
        self.sample: Embeddings | None = None  # the first rows, for checks that need some

    @torch.no_grad()
    def add(self, rows: Embeddings) -> SplitStatistics:
        """Add rows, as many as fit into memory with their float64 copies: 50 kB each.

        Raises:
            ValueError: the rows have other matrices or dimensions than earlier ones.
        """
        self.sample = self.sample or rows
        self.encoders = self.encoders or rows.encoders
        for name in MATRICES:
            matrix = getattr(rows, name)
            known = self.covariances.get(name)
            if (matrix is None) != (known is None) and self.n:
                raise InputError(f"{name}: expected the matrices of the rows before, got others.")
            if matrix is None:
                continue
            exact = matrix.double()
            product = exact.T @ exact
            if known is not None and known.shape != product.shape:
                raise InputError(f"{name}: expected dimension {known.shape[0]}, got {product.shape[0]}.")
            self.covariances[name] = product if known is None else known.add_(product)
        keys = self._clusters(rows)
        distinct, numbers = np.unique(keys, return_inverse=True)
        blocked = len(distinct) > MOST_CLUSTERS or bool(self.tables and self.tables[0][0][0].blocked)
        if blocked:
            distinct, numbers = np.unique(keys % np.uint64(MOST_CLUSTERS), return_inverse=True)
        clusters = torch.from_numpy(numbers.reshape(-1).astype(np.int64)).to(rows.t.device)
        found: list[list[tuple[ClusterTable, ClusterTable]]] = []
        for seed in self.estimator.gaussians(rows):
            found.append([])
            for mu, logvar, into in seed:
                pair = []
                for y in (rows.y_hat, rows.y):
                    targets = into(y.double())
                    sums = ClusterSums.empty(len(distinct), targets.shape[1], targets.device)
                    # CLUB does not depend on what targets are measured from, so all parts measure from 0.
                    sums.add(mu, logvar, targets, torch.zeros_like(targets[0]), clusters)
                    pair.append(ClusterTable(distinct, sums, blocked))
                found[-1].append((pair[0], pair[1]))
        self.tables = _merged(self.tables, found) if self.tables else found
        self.n += rows.n
        return self

    def merge(self, other: SplitStatistics) -> SplitStatistics:
        """Add the rows of another part of the split, which was accumulated elsewhere."""
        if not other.n:
            return self
        self.sample = self.sample or other.sample
        self.encoders = self.encoders or other.encoders
        for name, product in other.covariances.items():
            self.covariances[name] = self.covariances[name] + product if name in self.covariances else product.clone()
        self.tables = _merged(self.tables, other.tables) if self.tables else other.tables
        self.n, self.matched = self.n + other.n, self.matched + other.matched
        if self.own_partners is not None and other.own_partners is not None:
            self.own_partners += other.own_partners
        return self

    def without_estimator(self) -> SplitStatistics:
        """Return the sums alone, to be sent to another process."""
        return self._copy(None)

    def with_estimator(self, estimator: OnePassEstimator) -> SplitStatistics:
        """Return the sums with the estimator that they are of."""
        return self._copy(estimator)

    def _copy(self, estimator: Any) -> SplitStatistics:
        other = object.__new__(SplitStatistics)
        other.__dict__ |= {**self.__dict__, "estimator": estimator, "covariances": dict(self.covariances)}
        other.own_partners = None if self.own_partners is None else list(self.own_partners)
        return other

    def _clusters(self, rows: Embeddings) -> np.ndarray:
        """Return (N,) hashes of the clusters of rows: those of their partners in the ID split, or else their own."""
        known: dict[Hashable, int] = {}

        def hashed(keys: Sequence[Any]) -> np.ndarray:
            for key in keys:
                if key not in known:
                    known[key] = cluster_hash(key)
            return np.array([known[key] for key in keys], dtype=np.uint64)

        given = rows.groups if rows.groups is not None else rows.ids
        hashes = hashed(given) if given is not None else hashed([("row", self.n + row) for row in range(rows.n)])
        if rows.ids is None:
            return hashes
        ids = np.array([_id_hash(row_id) for row_id in rows.ids], dtype=np.uint64)
        if self.own_partners is not None:
            self.own_partners.append((ids, hashes))
        if self.partners is None:
            return hashes
        found, clusters = self.partners.find(ids)
        self.matched += int(found.sum())
        return np.where(found, clusters, hashes)

    def as_partners(self) -> Partners | None:
        """Return the clusters of the rows by their ids, for the shifts of this split; ``None`` where the rows have no ids."""
        return Partners.of(self.own_partners) if self.own_partners else None

    @property
    def emi(self) -> EMI:
        """EMI of the rows; its contributions and influences are empty, for they belong to rows."""
        if not self.n:
            raise InputError("statistics: expected at least one row, got none. A split without samples has no scores.")
        seeds = [[(first.value(), second.value()) for first, second in seed] for seed in self.tables]
        by_seed = [np.mean(seed, axis=0) for seed in seeds]
        response, reference = (float(value) for value in np.mean(by_seed, axis=0))
        flat = [pair for seed in self.tables for pair in seed]
        keys = [f"{key:x}" for key in flat[0][0].keys]
        deleted = [torch.stack([pair[side].sums.without_each() for pair in flat]).mean(dim=0) for side in (0, 1)]
        unit = getattr(self.estimator, "unit", "nats")
        none = torch.empty(0, dtype=torch.float64)

        def jackknife(value: float, values: torch.Tensor) -> Jackknife:
            known: dict[Hashable, float] = {
                key: value for key, value in zip(keys, values.tolist(), strict=True) if not math.isnan(value)
            }
            return Jackknife(value, (known,) if known else ())

        score = jackknife(response - reference, deleted[0] - deleted[1]).without_rounding(response, reference)
        return EMI(
            value=score.value,
            mi_response=response,
            mi_reference=reference,
            contributions=none,
            n=self.n,
            signature=Signature.of("emi", encoders=self.encoders, estimator=self.estimator.signature, n=self.n),
            influence=none,
            jackknife=score,
            reference=jackknife(reference, deleted[1]),
            by_seed=tuple(float(a - b) for a, b in by_seed) if len(by_seed) > 1 else (),
            unit=unit,
        )

    # What the shift index is computed from looks like embeddings whose rows are gone.

    def __getattr__(self, name: str) -> torch.Tensor | None:
        if name in MATRICES and "covariances" in self.__dict__:
            product = self.covariances.get(name)
            return None if product is None else torch.empty((self.n, len(product)), device="meta")
        raise AttributeError(name)

    @property
    def cache(self) -> dict[Any, Any]:
        """Kernels and digests of the matrices, where :func:`emid_bound` looks for them."""
        found: dict[Any, Any] = {}
        for name, product in self.covariances.items():
            found["kernel", name] = Kernel(self.n, None, product)
            content: Any = np.ascontiguousarray(product.cpu().numpy())
            found["digest", name] = f"{self.n} {xxhash.xxh3_128_hexdigest(content)}"
        return found


def _merged(first: list[list[tuple[ClusterTable, ClusterTable]]], second: list) -> list:
    return [
        [
            tuple(a.merge(b) for a, b in zip(first, second, strict=True))
            for first, second in zip(seed, other, strict=True)
        ]
        for seed, other in zip(first, second, strict=True)
    ]


class Partners:
    """Clusters of the rows of a split, by the hashes of their ids: 16 bytes a row.

    Args:
        ids: (N,) sorted hashes.
        clusters: (N,) hashes of their clusters.
    """

    def __init__(self, ids: np.ndarray, clusters: np.ndarray) -> None:
        self.ids, self.clusters = ids, clusters

    @classmethod
    def of(cls, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Partners:
        """Make the table from parts in any order."""
        ids, clusters = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], clusters[order])

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (M,) whether each id is known, and (M,) clusters of the known ones."""
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return self.ids[places] == ids, self.clusters[places]


def _id_hash(key: Hashable) -> int:
    return xxhash.xxh3_64_intdigest(repr(key).encode())


def emid_of(id: SplitStatistics, ood: SplitStatistics, id_emi: EMI | None = None) -> EMID:
    """Return EMID of two splits that were read once each; see :func:`lmms_eval_emi.emid`.

    The shift has to have been accumulated with the ID split's partners for a paired difference.

    Raises:
        ValueError: the splits were embedded by different encoders.
    """
    encoders = shared_encoders(cast(Embeddings, id), cast(Embeddings, ood))
    first, second = id_emi or id.emi, ood.emi
    paired = ood.matched > 0
    jackknife = emi_difference(first, second, paired=paired)
    return EMID(
        value=jackknife.value,
        id=first,
        ood=second,
        signature=Signature.of(
            "emid", encoders=encoders, estimator=id.estimator.signature, n_id=first.n, n_ood=second.n
        ),
        paired=paired,
        jackknife=jackknife,
    )


def bound_of(
    id: SplitStatistics, ood: SplitStatistics, convention: str = "published", entropy: float | None = None
) -> EMIDBound:
    """Shift index of two splits that were read once each; see :func:`lmms_eval_emi.emid_bound`. It has no error."""
    return emid_bound(cast(Embeddings, _Frozen(id)), cast(Embeddings, _Frozen(ood)), convention, entropy)


class _Frozen:
    """Statistics that no row is added to any more, with their kernels made once."""

    def __init__(self, statistics: SplitStatistics) -> None:
        self.n, self.encoders, self.cache = statistics.n, statistics.encoders, statistics.cache
        for name in MATRICES:
            setattr(self, name, getattr(statistics, name))
