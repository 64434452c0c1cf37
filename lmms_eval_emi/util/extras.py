"""Importing optional packages, with the command that installs them if one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lmms_eval_emi.errors import UnavailableError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import packages of an extra inside the block, so that a missing one is told with how to have it.

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
