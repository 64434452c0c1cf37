"""Find what the modules of a folder define, so that adding one is adding one file."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import TypeVar

Base = TypeVar("Base")


def modules_in(package: ModuleType) -> Iterator[ModuleType]:
    """Import and yield every module of a package, by name; packages inside it are left out."""
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if not info.ispkg:
            yield import_module(f"{package.__name__}.{info.name}")


def subclasses_in(package: ModuleType, base: type[Base]) -> Iterator[type[Base]]:
    """Yield the subclasses of ``base`` that the modules of a package define."""
    for module in modules_in(package):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__:
                yield value
