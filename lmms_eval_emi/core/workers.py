"""Threads that compute in one thread each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from os import cpu_count
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

from lmms_eval_emi.util.files import threads

Result = TypeVar("Result")

MOST_FOR_SMALL_WORK = 4  # threads; with 16 on 16 cores a study takes 1.7 times as long as with these


def threads_for_small_work() -> int:
    """Number of threads for many small computations: of more, each waits for Python's lock most of the time."""
    return min(MOST_FOR_SMALL_WORK, cpu_count() or 1)


def workers(count: int) -> AbstractContextManager[ThreadPoolExecutor]:
    """A pool as :func:`~lmms_eval_emi.util.files.threads`, whose threads compute in one thread each, where others of the process may use all."""
    return threads(count, _compute_alone)


class _Here:
    """A pool without threads: work is done, or fails, where it is submitted."""

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        done: Future[Result] = Future()
        done.set_result(work(*arguments))
        return done


def here() -> AbstractContextManager[_Here]:
    """A pool in the place of :func:`workers` where work has threads of its own, or a device that has."""
    return nullcontext(_Here())


def settle_threads() -> None:
    """Let PyTorch set how many threads a new thread computes in; it would do so later, over a limit set in between."""
    torch.get_num_threads()


def _compute_alone() -> None:
    settle_threads()
    threadpool_limits(1, user_api="openmp")
