"""Scoring over the ranks of a process group: each does its part, and all get the whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lmms_eval_emi.core.streaming import SplitStatistics

Item = TypeVar("Item")


class _Group:
    """Whether a process group is open that all ranks use together. That of a harness is not: its rank 0 scores alone."""

    open = False


def rank() -> int:
    """Number of this process in its group; 0 without one."""
    return dist.get_rank() if _Group.open else 0


def ranks() -> int:
    """Number of processes of the group; 1 without one."""
    return dist.get_world_size() if _Group.open else 1


def cores() -> int:
    """Cores for this process, where as many of its group are on this machine as the launcher says."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _Group.open else 1
    return max(1, (os.cpu_count() or 1) // max(1, beside))


@contextmanager
def process_group() -> Iterator[None]:
    """The process group that a launcher (accelerate launch, torchrun) has set up the variables of, if there is one.

    It passes numbers over the CPU's network (gloo), for what ranks share is small. Each rank has the GPU of its
    number on the machine, where there are GPUs.
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


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in their order, on every rank."""
    if ranks() == 1:
        return [value]
    found: list[Any] = [None] * ranks()
    dist.all_gather_object(found, value)
    return found


def from_first(make: Callable[[], Any]) -> Any:
    """What rank 0 makes, on every rank."""
    if ranks() == 1:
        return make()
    box: list[Any] = [attempt(make) if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return _value(box[0], 0)


def over_ranks(work: Callable[[], Any]) -> list[Any]:
    """What every rank makes, on every rank. Where one fails, all do, and none waits for it forever."""
    if ranks() == 1:
        return [work()]
    return [_value(one, number) for number, one in enumerate(gather(attempt(work)))]


def attempt(work: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether something was made, and what, or the error."""
    try:
        return True, work()
    except Exception as error:
        return False, error


def _value(made: tuple[bool, Any], number: int) -> Any:
    done, value = made
    if not done:
        if number == rank():
            raise value
        raise RuntimeError(f"rank {number} failed: {type(value).__name__}: {value}")
    return value


def own_part(items: Sequence[Item]) -> list[Item]:
    """The items of this rank: every one is of one rank, and all have about as many of those beside each other."""
    return list(items[rank() :: ranks()])


def part_of_rank(n: int) -> tuple[int, int]:
    """First row of this rank, and the one behind its last."""
    return n * rank() // ranks(), n * (rank() + 1) // ranks()


def merged_over_ranks(statistics: SplitStatistics) -> SplitStatistics:
    """Statistics of the rows of all ranks, the same on each of them."""
    if ranks() == 1:
        return statistics
    total, *others = gather(statistics.without_estimator())
    for other in others:
        total.merge(other)
    return total.with_estimator(statistics.estimator)
