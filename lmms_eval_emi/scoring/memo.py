"""Results that take time and depend on little: kept on the disk, and had again by their content.

Divergences depend on neither estimator nor, for sets of one size, convention, so another estimator's scores of the
same responses need none of their tests again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lmms_eval_emi.core.divergence import EMIDBound
from lmms_eval_emi.core.exchange_test import SetsResult
from lmms_eval_emi.core.workers import threads_for_small_work
from lmms_eval_emi.encoders.cache import EmbeddingCache, content_digest
from lmms_eval_emi.util.files import threads
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


class DivergenceResults:
    """Errors and tests of the divergences of some shifts, each computed once however many shifts share it.

    Args:
        bounds: of the shifts.
        resamples, seed: of the permutation tests.
        memo: has the results of earlier runs, and keeps those of this one.

    Attributes:
        missing: results that are not known, those of two sets beside each other, which share what they are made of.
            Each is a list of the places that it belongs to.
    """

    KIND = "divergences, 4"

    def __init__(self, bounds: Iterable[EMIDBound], resamples: int, seed: int, memo: Memo | None = None) -> None:
        self.memo = memo
        found = [
            one for bound in bounds for one in bound.errors_and_tests(resamples, seed) if one.name not in one.sets.known
        ]
        with threads(threads_for_small_work()) as pool:  # a digest takes most of this, and no lock of Python's
            for _ in pool.map(lambda sets: sets.digest, {id(one.sets): one.sets for one in found}.values()):
                pass
        wanted: dict[int, dict[bytes, list[SetsResult]]] = {}
        for one in found:
            wanted.setdefault(one.length, {}).setdefault(_digest(one), []).append(one)
        missing: dict[str, list[list[SetsResult]]] = {}
        for length, own in wanted.items():
            known = memo.find(self.KIND, length, list(own)) if memo else {}
            for digest, places in own.items():
                if digest in known:
                    self._fill_in(places, known[digest])
                else:
                    missing.setdefault(places[0].sets.digest, []).append(places)
        self.missing = list(missing.values())

    def compute(self, results: Sequence[Sequence[SetsResult]]) -> None:
        """Compute the missing results of two sets; several threads may compute those of several."""
        for first, *others in results:
            first.compute()
            self._fill_in(others, first.sets.known[first.name])
        for sets in {id(first.sets): first.sets for first, *_ in results}.values():
            sets.release()

    def keep(self) -> None:
        """Keep what was computed."""
        if self.memo is None:
            return
        computed: dict[int, dict[bytes, np.ndarray]] = {}
        for first, *_ in (places for own in self.missing for places in own):
            if first.name in first.sets.known:
                computed.setdefault(first.length, {})[_digest(first)] = first.sets.known[first.name]
        for length, vectors in computed.items():
            self.memo.keep(self.KIND, length, vectors)

    def _fill_in(self, places: Iterable[SetsResult], vector: np.ndarray) -> None:
        for place in places:
            place.sets.known[place.name] = vector


def _digest(result: SetsResult) -> bytes:
    return content_digest(f"{result.sets.digest} {result.name}")
