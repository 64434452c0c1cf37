"""Keeping secrets out of what is shown and written."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
