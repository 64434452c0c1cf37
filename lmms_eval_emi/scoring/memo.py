"""Results that take time and depend on little: kept on the disk, and had again by their content.

Divergences depend on neither estimator nor, for sets of one size, convention, so another estimator's scores of the
same responses need none of their tests again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lmms_eval_emi.core.divergence import EMIDBound
from lmms_eval_emi.core.permutation import TwoSets
from lmms_eval_emi.encoders.cache import EmbeddingCache, content_digest
from lmms_eval_emi.settings import Settings
from lmms_eval_emi.version import __version__


class Memo:
    """Vectors of float64 by digest; see :class:`~lmms_eval_emi.encoders.cache.EmbeddingCache` for how they are kept.

    Args:
        settings: whose cache folder and limit count.
    """

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.cache.expanduser() / "embeddings"
        self.limit = int(settings.cache_limit * 1e9)

    def find(self, kind: str, length: int, digests: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The vectors of a kind and a length that are known, by digest."""
        found = self._of(kind, length).find(digests, 2 * length)
        return {digest: np.ascontiguousarray(row).view(np.float64) for digest, row in found.items()}

    def keep(self, kind: str, length: int, vectors: Mapping[bytes, np.ndarray]) -> None:
        """Keep vectors."""
        self._of(kind, length).add(
            {digest: np.asarray(vector, dtype=np.float64).view(np.float32) for digest, vector in vectors.items()}
        )

    def _of(self, kind: str, length: int) -> EmbeddingCache:
        # A float64 is kept as two float32, bit by bit.
        return EmbeddingCache(self.folder, f"{kind}, {length} float64, {__version__}", self.limit)


class KnownDivergences:
    """Fills in what is known of the divergences of some shifts, and keeps what was computed since.

    Args:
        memo: where it is kept.
        bounds: of the shifts.
        resamples, seed: of the permutation tests.
    """

    KIND = "divergences, 2"

    def __init__(self, memo: Memo, bounds: Iterable[EMIDBound], resamples: int, seed: int) -> None:
        self.memo = memo
        wanted: dict[int, dict[bytes, list[tuple[TwoSets, str]]]] = {}
        for bound in bounds:
            for sets, name, length in bound.results_to_keep(resamples, seed):
                digest = content_digest(f"{sets.digest} {name}")
                wanted.setdefault(length, {}).setdefault(digest, []).append((sets, name))
        self.missing: dict[int, dict[bytes, list[tuple[TwoSets, str]]]] = {}
        for length, own in wanted.items():
            known = memo.find(self.KIND, length, list(own))
            for digest, places in own.items():
                if digest not in known:
                    self.missing.setdefault(length, {})[digest] = places
                    continue
                for sets, name in places:
                    sets.known[name] = known[digest]

    def keep(self) -> None:
        """Keep what was not known."""
        for length, own in self.missing.items():
            self.memo.keep(
                self.KIND,
                length,
                {
                    digest: places[0][0].known[places[0][1]]
                    for digest, places in own.items()
                    if places[0][1] in places[0][0].known
                },
            )
