"""Properties that are computed when they are first used."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from lmms_eval_emi.core.lazy import lazy


class Half:
    both = Barrier(2)
    computed = 0

    @lazy
    def whole(self) -> object:
        """Computed by two threads at once, or never."""
        Half.computed += 1
        self.both.wait(timeout=20)
        return object()


def test_threads_that_compute_it_for_different_instances_do_not_wait_for_each_other():
    halves = [Half(), Half()]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda half: half.whole, halves)
    assert first is halves[0].whole and second is halves[1].whole and first is not second
    assert Half.computed == 2
    assert Half.whole.__doc__ == "Computed by two threads at once, or never."
