"""Keeping secrets out of what is shown and written."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"
NAMES = r"(?:api|access|secret|private|auth|subscription)[_-]?key|token|secret|password|passwd|credential"
# An assignment, as in model arguments, JSON or a URL; max_new_tokens is none, and a token in a sentence neither.
ASSIGNMENT = re.compile(
    rf"""(?ix) \b ([\w-]*(?:{NAMES}))          # the name
    (["']?\s*[=:]\s*)                          # what assigns
    ("[^"]*" | '[^']*' | [^\s,;&}})\]]+)       # the value
    """
)
OPTION = re.compile(rf"(?i)(--?[\w-]*(?:{NAMES}))(\s+)(?!-)(\S+)")
BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
KNOWN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AIza[A-Za-z0-9_-]{30,})")
IN_URL = re.compile(r"(\w://)[^\s@/]*:[^\s@]*@")


def redact(text: str) -> str:
    """The text with ``***`` in the place of keys, tokens and passwords.

    >>> redact("pretrained=a/b,api_key=abc,max_new_tokens=5")
    'pretrained=a/b,api_key=***,max_new_tokens=5'
    """
    for pattern, shown in (
        (IN_URL, rf"\1{HIDDEN}@"),
        (BEARER, rf"\1 {HIDDEN}"),
        (ASSIGNMENT, rf"\1\2{HIDDEN}"),
        (OPTION, rf"\1\2{HIDDEN}"),
        (KNOWN, HIDDEN),
    ):
        text = pattern.sub(shown, text)
    return text


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, redacted; the value of an option such as ``--api-key`` is an argument of its own."""
    found, hide = [], False
    for argument in arguments:
        found.append(HIDDEN if hide and not argument.startswith("-") else redact(argument))
        hide = bool(re.fullmatch(rf"(?i)--?[\w-]*(?:{NAMES})", argument))
    return found
