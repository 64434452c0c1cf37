"""Threads that compute in one thread each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from os import cpu_count

import torch
from threadpoolctl import threadpool_limits

from lmms_eval_emi.files import threads

MOST_FOR_SMALL_WORK = 4  # threads; with 16 on 16 cores a study takes 1.7 times as long as with these


def threads_for_small_work() -> int:
    """Number of threads for many small computations: of more, each waits for Python's lock most of the time."""
    return min(MOST_FOR_SMALL_WORK, cpu_count() or 1)


def workers(count: int) -> AbstractContextManager[ThreadPoolExecutor]:
    """A pool as :func:`~lmms_eval_emi.files.threads`, whose threads compute in one thread each, where others of the process may use all."""
    return threads(count, _compute_alone)


def _compute_alone() -> None:
    torch.get_num_threads()  # which sets the number that holds for a new thread, and would do so later
    threadpool_limits(1, user_api="openmp")
