"""What is shown: parts of messages, numbers with their errors, tables; without secrets, and without what a terminal obeys.

Endpoints, responses, names and paths may hold control sequences.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

NOTHING = "-"  # shown instead of an unknown number
MARK = "*"  # behind a value that differs from 0
HIDDEN = "***"
WORDS = (
    r"(?:(?<![a-z0-9])(?:keys?|tokens?|secrets?|credentials?|sig|signature|auth|cookies?)"
    r"|apikeys?|passwords?|passwd|passphrases?|authorization|(?-i:Key|Token|Secret)s?)"
)
# The name of a secret ends in one of these words, perhaps with a suffix: openai_key, api-key, apiKey, api_key_2 or
# api_key_openai. Tokens that are counted or placed in a prompt are none, nor are keys of data.
NAME = rf"[\w-]{{0,40}}{WORDS}(?:(?<=key)[_-]\w{{1,20}}|\d{{1,3}})?"
PUBLIC = re.compile(
    r"(?i)(?:image|vision|video|pad|eos|bos|cls|sep|mask|unk|stop|max_new|special)[_-]token|tokens$|tokeni[sz]|"
    r"(?:sort|score|cluster|data|primary|foreign|pub(?:lic)?)[_-]?key|keyboard|keyword|keyframe|author(?!ization)"
)
ASSIGNMENT = re.compile(
    rf"""(?ix)
    (?<![\w-]) ({NAME})                          # the name
    (\\?["']?\s{{0,8}}[=:]\s{{0,8}}\\?)              # what assigns
    ("[^"\n]{{0,4096}}"? | '[^'\n]{{0,4096}}'? | (?:(?:bearer|basic)\s{{1,3}})? [^\s,;&}})\]"'\\]+)  # the value
    """
)
OPTION = re.compile(rf"(?i)(?<![\w-])(--?{NAME})(\s{{1,3}})(?!--)(\S+)")
BEARER = re.compile(r"(?i)\b(bearer|basic)\s{1,3}[A-Za-z0-9._~+/=-]{8,}")
KNOWN = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))(?:hf_[A-Za-z0-9]{20}|[sr]k-[A-Za-z0-9_-]{16}|[sr]k_(?:live|test)_[A-Za-z0-9]{10}|xai-[A-Za-z0-9]{20}|npm_[A-Za-z0-9]{20}|r8_[A-Za-z0-9]{20}|gh[pousr]_[A-Za-z0-9]{20}|github_pat_[A-Za-z0-9_]{20}"
    r"|glpat-[A-Za-z0-9_-]{16}|gsk_[A-Za-z0-9]{20}|nvapi-[A-Za-z0-9_-]{20}|xox[abprs]-[A-Za-z0-9-]{10}"
    r"|AIza[A-Za-z0-9_-]{30}|AKIA[A-Z0-9]{16}|ASIA[A-Z0-9]{16}|eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.)[A-Za-z0-9_.-]*"
)
IN_URL = re.compile(r"(\w://)(?:[^\s@/:]{1,256}|[^\s@/:]{0,256}:[^\s@]{1,512})@")
LONGEST_WORD = 8192  # a longer run without a space is data, and is searched for keys of known form alone
# Tab, newline, carriage return, colours and the cursor's way up, which progress bars and loggers use, may stay.
CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\[(?:[0-9;]{0,16}m|A))"
)
# In a text from outside, and in what goes to stdout, only tab and line ends may.
STRICT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


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


def redact(text: str) -> str:
    """Return the text with ``***`` instead of keys, tokens and passwords.

    >>> redact("pretrained=a/b,api_key=abc,max_new_tokens=5,image_token=<image>")
    'pretrained=a/b,api_key=***,max_new_tokens=5,image_token=<image>'
    """
    return "".join(KNOWN.sub(HIDDEN, part) if len(part) > LONGEST_WORD else _redact(part) for part in _parts(text))


def _parts(text: str) -> list[str]:
    """Return the text in pieces: runs without a space that are too long to search, and what is between them."""
    return re.split(rf"(\S{{{LONGEST_WORD},}})", text) if len(text) > LONGEST_WORD else [text]


def _redact(text: str) -> str:
    text = IN_URL.sub(rf"\1{HIDDEN}@", text)
    text = BEARER.sub(rf"\1 {HIDDEN}", text)
    for pattern in (ASSIGNMENT, OPTION):
        text = pattern.sub(_hidden, text)
    return KNOWN.sub(HIDDEN, text)


def _hidden(match: re.Match[str]) -> str:
    return match[0] if PUBLIC.search(match[1]) else f"{match[1]}{match[2]}{HIDDEN}"


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command, redacted; the value of an option such as ``--api-key`` is an argument of its own."""
    found, hide = [], False
    for argument in arguments:
        found.append(HIDDEN if hide and not argument.startswith("-") else redact(argument))
        hide = bool(re.fullmatch(rf"(?i)--?{NAME}", argument)) and not PUBLIC.search(argument)
    return found


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
