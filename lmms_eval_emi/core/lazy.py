"""Properties that are computed when they are first used."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class lazy(Generic[Value]):
    """A property that is computed once for an instance.

    That of :mod:`functools` has one lock for all instances up to Python 3.11, so that threads which compute it for
    different ones wait for each other. Here two threads that ask one instance at once may both compute it.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self.compute = compute
        update_wrapper(self, compute)  # type: ignore[arg-type]

    @overload
    def __get__(self, instance: None, owner: type) -> lazy[Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...
    def __get__(self, instance: object | None, owner: type) -> lazy[Value] | Value:
        if instance is None:
            return self
        # Without __set__, what an instance has under the name is found before this.
        value = instance.__dict__[self.compute.__name__] = self.compute(instance)
        return value
