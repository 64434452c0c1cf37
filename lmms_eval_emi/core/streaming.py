"""EMI, EMID and the index of splits that do not fit into memory: statistics of parts, which merge exactly.

A part of a split contributes sums: X^T X of each of its matrices, from which every divergence follows, and the
sums of CLUB over each cluster (:class:`~lmms_eval_emi.core.club.ClusterSums`), from which EMI with and without each
cluster follows. Sums of parts add, so chunks, ranks and machines are one thing, and a split is read once. Memory is
O(G D + D^2) whatever the number of rows, for more than 1,000 clusters become as many blocks.

What needs the rows themselves is not given: their influence, the parts of EMID, the errors and tests of divergences.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
import xxhash

from lmms_eval_emi.core.club import ClusterSums
from lmms_eval_emi.core.conventions import Signature
from lmms_eval_emi.core.divergence import SETS, EMIDBound, Kernel, check_comparable
from lmms_eval_emi.core.embeddings import Embeddings, shared_encoders
from lmms_eval_emi.core.emi import EMI, EMID, MOST_CLUSTERS, cluster_hash
from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.errors import InputError

MATRICES = ("v", "t", "y_hat", "y")


class ClusterTable:
    """Sums of CLUB by the hash of each cluster.

    Args:
        keys: (G,) sorted hashes of the clusters, or numbers of the blocks that they were merged into.
        sums: sums by seed and fold of the estimator, and side: 0 for responses, 1 for references.
        blocked: whether clusters were merged into blocks.
    """

    def __init__(self, keys: np.ndarray, sums: Mapping[tuple[int, int, int], ClusterSums], blocked: bool) -> None:
        self.keys, self.sums, self.blocked = keys, sums, blocked

    def merge(self, other: ClusterTable) -> ClusterTable:
        """Return the table of the rows of both."""
        first, second = self, other
        together = np.union1d(first.keys, second.keys)
        if first.blocked or second.blocked or len(together) > MOST_CLUSTERS:
            first, second = first._into_blocks(), second._into_blocks()
            together = np.union1d(first.keys, second.keys)
        places = [(part, np.searchsorted(together, part.keys)) for part in (first, second)]
        return _added(together, places, first.blocked)

    def _into_blocks(self) -> ClusterTable:
        if self.blocked:
            return self
        blocks, numbers = np.unique(self.keys % np.uint64(MOST_CLUSTERS), return_inverse=True)
        return _added(blocks, [(self, numbers)], True)

    def values(self) -> list[np.ndarray]:
        """Return (2,) CLUB of responses and of references by seed, the mean over its folds."""
        found: dict[int, list[tuple[float, float]]] = {}
        for (seed, fold, side), sums in self.sums.items():
            if not side:
                found.setdefault(seed, []).append((sums.value(), self.sums[seed, fold, 1].value()))
        return [np.mean(folds, axis=0) for folds in found.values()]

    def without_each(self, side: int) -> torch.Tensor:
        """Return (G,) CLUB of a side without each cluster, the mean over seeds and folds."""
        return torch.stack([sums.without_each() for key, sums in self.sums.items() if key[2] == side]).mean(dim=0)


def _added(keys: np.ndarray, parts: Sequence[tuple[ClusterTable, np.ndarray]], blocked: bool) -> ClusterTable:
    """Return the table of some tables, each with the places of its clusters among the keys."""
    total = {}
    for key, like in parts[0][0].sums.items():
        total[key] = ClusterSums.empty(len(keys), like.y.shape[1], like.y.device)
        for table, places in parts:
            total[key].add_sums(table.sums[key], torch.from_numpy(places.astype(np.int64)).to(like.y.device))
    return ClusterTable(keys, total, blocked)


class SplitStatistics:
    """Sums over the rows that were added, from which the scores of a split follow.

    Args:
        estimator: estimator whose EMI is wanted, of a diagonal Gaussian q(y|x), whose sums over parts of a split add:
            its ``gaussians(embeddings)`` returns, by seed and fold, (N, D') float64 means and log variances, and the map
            of targets.
        encoders: encoders that made the embeddings.
        partners: clusters of the rows of the ID split, where this is a shift of it.
        keep_partners: whether to keep the clusters of the rows by their ids, for the shifts of this split.
    """

    def __init__(
        self,
        estimator: Any,
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
        self.table: ClusterTable | None = None
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
        blocked = len(distinct) > MOST_CLUSTERS or (self.table is not None and self.table.blocked)
        if blocked:
            distinct, numbers = np.unique(keys % np.uint64(MOST_CLUSTERS), return_inverse=True)
        clusters = torch.from_numpy(numbers.reshape(-1).astype(np.int64)).to(rows.t.device)
        added = {}
        for seed, folds in enumerate(self.estimator.gaussians(rows)):
            for fold, (mu, logvar, into) in enumerate(folds):
                for side, y in enumerate((rows.y_hat, rows.y)):
                    targets = into(y.double())
                    sums = ClusterSums.empty(len(distinct), targets.shape[1], targets.device)
                    # CLUB does not depend on what targets are measured from, so all parts measure from 0.
                    sums.add(mu, logvar, targets, torch.zeros_like(targets[0]), clusters)
                    added[seed, fold, side] = sums
        table = ClusterTable(distinct, added, blocked)
        self.table = self.table.merge(table) if self.table else table
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
        self.table = self.table.merge(other.table) if self.table and other.table else self.table or other.table
        self.n, self.matched = self.n + other.n, self.matched + other.matched
        if self.own_partners is not None and other.own_partners is not None:
            self.own_partners += other.own_partners
        return self

    def bare(self) -> SplitStatistics:
        """Return the sums alone, without estimator and partners, to be sent to another process."""
        other = copy(self)
        other.estimator = other.partners = None
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
        if self.table is None:
            raise InputError("statistics: expected at least one row, got none. A split without samples has no scores.")
        by_seed = self.table.values()
        response, reference = (float(value) for value in np.mean(by_seed, axis=0))
        keys = [f"{key:x}" for key in self.table.keys]
        deleted = [self.table.without_each(side) for side in (0, 1)]
        none = torch.empty(0, dtype=torch.float64)
        score = Jackknife.of(response - reference, keys, (deleted[0] - deleted[1]).tolist())
        score = score.without_rounding(response, reference)
        return EMI(
            value=score.value,
            mi_response=response,
            mi_reference=reference,
            contributions=none,
            n=self.n,
            signature=Signature.of("emi", encoders=self.encoders, estimator=self.estimator.signature, n=self.n),
            influence=none,
            jackknife=score,
            reference=Jackknife.of(reference, keys, deleted[1].tolist()),
            by_seed=tuple(float(a - b) for a, b in by_seed) if len(by_seed) > 1 else (),
            unit=getattr(self.estimator, "unit", "nats"),
        )

    def kernel(self, name: str) -> Kernel | None:
        """Return the second moment of one of the matrices, or ``None`` if the split lacks it."""
        product = self.covariances.get(name)
        return None if product is None else Kernel(self.n, None, product)


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
    encoders = shared_encoders(id, ood)
    return EMID.of(id_emi or id.emi, ood.emi, paired=ood.matched > 0, encoders=encoders)


def bound_of(
    id: SplitStatistics, ood: SplitStatistics, convention: str = "published", entropy: float | None = None
) -> EMIDBound:
    """Shift index of two splits that were read once each; see :func:`lmms_eval_emi.emid_bound`. It has no error."""
    first, second = ({name: len(product) for name, product in split.covariances.items()} for split in (id, ood))
    check_comparable(first, second, convention, entropy)
    splits = {"id": id, "ood": ood}
    jsds = {}
    for name, ((a, of_a), (b, of_b)) in SETS.items():
        x, y = splits[a].kernel(of_a), splits[b].kernel(of_b)
        jsds[name] = x.jsd(y, convention) if x and y else 0.0
    return EMIDBound.of(jsds, (id.n, ood.n), shared_encoders(id, ood), convention, entropy)
