"""Importing optional packages, with the command that installs them if one is missing, and every module of a folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TypeVar

from lmms_eval_emi.errors import UnavailableError

Base = TypeVar("Base")


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Context for imports of an extra's packages: a missing one raises an error that says how to install it.

    Args:
        name: name of the extra, such as ``report``.

    Raises:
        UnavailableError: a package that is imported inside is not installed.

    >>> with extra("report"):
    ...     import json
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("lmms_eval_emi"):  # a fault of ours, and no missing package
            raise
        raise UnavailableError(
            f"The package {error.name} is not installed. Install it: pip install 'lmms_eval_emi[{name}]'"
        ) from error


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
