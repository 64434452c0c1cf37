"""Scoring over the ranks of a process group: each rank does its shard, and every rank gets the whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lmms_eval_emi.core.streaming import SplitStatistics
from lmms_eval_emi.errors import EMIError, RunError

Item = TypeVar("Item")


class _Group:
    """State of the process group, if all ranks score together; in a harness run rank 0 scores alone."""

    open = False


def rank() -> int:
    """Return the number of this process in its group; 0 without one."""
    return dist.get_rank() if _Group.open else 0


def world_size() -> int:
    """Return the number of processes of the group; 1 without one."""
    return dist.get_world_size() if _Group.open else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that a launcher (accelerate launch, torchrun) has set up, if there is one.

    Ranks exchange numbers over the CPU's network (gloo). Each rank uses the GPU of its local number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo")
    _Group.open = True
    try:
        yield
    finally:
        _Group.open = False
        dist.destroy_process_group()


def broadcast_from_rank0(compute: Callable[[], Any]) -> Any:
    """Compute something on rank 0 and return it on every rank."""
    if world_size() == 1:
        return compute()
    box: list[Any] = [_attempt(compute) if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return _result(box[0], 0)


def gather_results(compute: Callable[[], Any]) -> list[Any]:
    """Compute something on every rank and return all results on every rank; if one rank fails, all raise."""
    if world_size() == 1:
        return [compute()]
    return [_result(outcome, number) for number, outcome in enumerate(_gather(_attempt(compute)))]


def shard(items: Sequence[Item]) -> list[Item]:
    """Return this rank's round-robin shard."""
    return list(items[rank() :: world_size()])


def row_range(n: int) -> tuple[int, int]:
    """Return this rank's first row of ``n``, and the one behind its last."""
    return n * rank() // world_size(), n * (rank() + 1) // world_size()


def merge_statistics(statistics: SplitStatistics) -> SplitStatistics:
    """Return the statistics of the rows of all ranks, the same on each of them."""
    if world_size() == 1:
        return statistics
    total, *others = _gather(statistics.bare())
    for other in others:
        total.merge(other)
    total.estimator = statistics.estimator
    return total


def _gather(value: Any) -> list[Any]:
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def _attempt(compute: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, compute()
    except Exception as error:
        return False, error


def _result(outcome: tuple[bool, Any], number: int) -> Any:
    done, value = outcome
    if not done:
        if number == rank():
            raise value
        kind = RunError if isinstance(value, EMIError | OSError) else RuntimeError
        raise kind(f"rank {number} failed: {type(value).__name__}: {value}")
    return value
