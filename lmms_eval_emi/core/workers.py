"""Threads that compute in one thread each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool as :func:`threads`, whose threads compute in one thread each, where others of the process may use all."""

    def alone() -> None:
        torch.get_num_threads()  # which sets the number that holds for a new thread, and would do so later
        threadpool_limits(1, user_api="openmp")

    pool = ThreadPoolExecutor(count, initializer=alone)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
