"""Parts of messages and tables: suggestions for a mistyped name, long lists cut short, numbers with their errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

NOTHING = "-"  # in the place of a number that is not known
MARK = "*"  # behind a value that differs from 0


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the sentence ``" Did you mean ...?"`` with the known name that is closest; ``""`` if none is close.

    >>> suggest("natrual", ["natural", "synthetic"])
    ' Did you mean natural?'
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def shorten(names: Sequence[str], most: int = 3) -> str:
    """Return names with commas; beyond ``most`` only their number.

    >>> shorten(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def number(value: float | None, style: str = ".4g") -> str:
    """Return a number as text; ``-`` if it is not known."""
    return NOTHING if value is None else f"{value:{style}}"


def with_error(value: float | None, error: float | None, mark: str = "") -> str:
    """Return a value and its standard error, to the error's second digit; the value alone if there is no error.

    >>> with_error(0.01234, 0.00182)
    '0.0123 ± 0.0018'
    >>> with_error(1.5, None)
    '1.5'
    """
    if value is None or error is None:
        return number(value) + (mark if value is not None else "")
    shown = f"{error:#.2g}".rstrip(".")
    digits = len(shown.partition(".")[2]) if "e" not in shown else 0
    text = f"{value:.{digits}f}" if digits else number(value)
    return f"{text if float(text) else text.lstrip('-')} ± {shown}{mark}"


def table(rows: Sequence[Sequence[object]], headers: Sequence[str], **options: Any) -> str:
    """Return a table for a terminal; numbers are shown as they are given. Options are those of ``tabulate``."""
    from tabulate import tabulate

    return tabulate(rows, headers=headers, disable_numparse=True, **options)
