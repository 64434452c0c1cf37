"""Text from outside on a terminal: endpoints, responses, names and paths may hold sequences that a terminal obeys."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from lmms_eval_emi.util.redact import redact

# Tab, newline, carriage return, colours and the cursor's way up, which progress bars and loggers use, may stay.
CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\[(?:[0-9;]{0,16}m|A))"
)


# In a text from outside, and in what goes to stdout, only tab and line ends may.
STRICT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def printable(text: str, allowed: re.Pattern[str] = STRICT) -> str:
    r"""Return the text with control characters as escapes.

    >>> printable("a\x1b]0;title\x07b")
    'a\\x1b]0;title\\x07b'
    """
    return allowed.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str, most: int) -> str:
    """Return the beginning of a text in one line of at most ``most`` characters, without control characters."""
    start = printable(" ".join(text[: 4 * most].split()))
    return start if len(start) <= most else f"{start[: most - 3]}..."


class PrintableStream:
    """A text stream that is written to through a function."""

    def __init__(self, stream: TextIO, change: Callable[[str], str]) -> None:
        self._stream, self._change = stream, change

    def write(self, text: str) -> int:
        """Write a text."""
        return self._stream.write(self._change(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write some texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """Replace control characters in everything that is printed inside the block, and secrets in what goes to stderr."""
    before = sys.stdout, sys.stderr
    sys.stdout = PrintableStream(sys.stdout, printable)
    sys.stderr = PrintableStream(sys.stderr, lambda text: redact(printable(text, CONTROL)))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
