"""Keeping secrets out of what is shown and written."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"
WORDS = r"(?:(?<![a-z0-9])(?:key|token|secret|password|passwd|credentials?|sig|signature|auth)|(?-i:Key|Token|Secret))"
# The name of a secret ends in one of these words: openai_key, api-key or apiKey. Tokens that are counted or placed in a
# prompt are none, nor are keys of data.
PUBLIC = re.compile(
    r"(?i)(?:image|vision|video|pad|eos|bos|cls|sep|mask|unk|stop|max_new|special)[_-]token|(?:sort|score|cluster|data|primary|foreign|pub(?:lic)?)[_-]key"
)
ASSIGNMENT = re.compile(
    rf"""(?ix)
    (?<![\w-]) ([\w-]{{0,40}}{WORDS})         # the name
    (["']?[ ]{{0,3}}[=:][ ]{{0,3}})           # what assigns
    ("[^"\n]{{0,4096}}" | '[^'\n]{{0,4096}}' | [^\s,;&}})\]"']+)  # the value
    """
)
OPTION = re.compile(rf"(?i)(?<![\w-])(--?[\w-]{{0,40}}{WORDS})([ ]{{1,3}})(?!-)(\S+)")
BEARER = re.compile(r"(?i)\b(bearer|basic)\s{1,3}[A-Za-z0-9._~+/=-]{8,}")
KNOWN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20}|sk-[A-Za-z0-9_-]{16}|gh[pousr]_[A-Za-z0-9]{20}|github_pat_[A-Za-z0-9_]{20}"
    r"|glpat-[A-Za-z0-9_-]{16}|gsk_[A-Za-z0-9]{20}|nvapi-[A-Za-z0-9_-]{20}|xox[abprs]-[A-Za-z0-9-]{10}"
    r"|AIza[A-Za-z0-9_-]{30}|AKIA[A-Z0-9]{16}|ASIA[A-Z0-9]{16}|eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.)[A-Za-z0-9_.-]*"
)
IN_URL = re.compile(r"(\w://)(?:[^\s@/:]{1,256}|[^\s@/:]{0,256}:[^\s@]{1,512})@")
LONGEST_WORD = 8192  # a longer run without a space is data, and is not searched


def redact(text: str) -> str:
    """The text with ``***`` in the place of keys, tokens and passwords.

    >>> redact("pretrained=a/b,api_key=abc,max_new_tokens=5,image_token=<image>")
    'pretrained=a/b,api_key=***,max_new_tokens=5,image_token=<image>'
    """
    return "".join(part if len(part) > LONGEST_WORD else _redact(part) for part in _parts(text))


def _parts(text: str) -> list[str]:
    """The text in pieces: runs without a space that are too long to search, and what is between them."""
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
    """The arguments of a command, redacted; the value of an option such as ``--api-key`` is an argument of its own."""
    found, hide = [], False
    for argument in arguments:
        found.append(HIDDEN if hide and not argument.startswith("-") else redact(argument))
        hide = bool(re.fullmatch(rf"(?i)--?[\w-]{{0,40}}{WORDS}", argument)) and not PUBLIC.search(argument)
    return found
