"""Parts of messages that several modules need: suggestions for a mistyped name, and long lists cut short."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


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
