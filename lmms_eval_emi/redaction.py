"""Keeping secrets out of what is shown and written."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"
# An assignment, as in model arguments or an option; max_new_tokens is none.
ASSIGNMENT = re.compile(r"(?i)\b([\w-]*(?:api[_-]?key|token|secret|password|passwd))(=|:\s*|\s+)([^,\s&]+)")
KNOWN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,})")
IN_URL = re.compile(r"(://)[^/\s:@]+:[^/\s@]+@")


def redact(text: str) -> str:
    """The text with ``***`` in the place of keys, tokens and passwords.

    >>> redact("pretrained=a/b,api_key=abc,max_new_tokens=5")
    'pretrained=a/b,api_key=***,max_new_tokens=5'
    """
    text = ASSIGNMENT.sub(rf"\1\2{HIDDEN}", text)
    return IN_URL.sub(rf"\1{HIDDEN}@", KNOWN.sub(HIDDEN, text))


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, redacted; the value of an option such as ``--api-key`` is an argument of its own."""
    found, hide = [], False
    for argument in arguments:
        found.append(HIDDEN if hide else redact(argument))
        hide = bool(re.fullmatch(r"(?i)--?[\w-]*(api[_-]?key|token|secret|password|passwd)", argument))
    return found
