"""What in a response is not the answer: error messages and refusals instead of it, and thoughts before it."""

from __future__ import annotations

import re

# What lmms-eval's models and VLMEvalKit return as the text of a request that failed.
FAILED = re.compile(
    r"\s*(?:\[LMMS_EVAL_[A-Z_]+\b|\[GENERATION_FAILED\]|\[SAFETY_BLOCKED\b|\[ERROR\]|Failed to obtain answer\b)"
)
REFUSAL = re.compile(
    r"\bas an? (ai|artificial intelligence|(large )?language model)\b"
    r"|\b(i am|i'm) (sorry|afraid)\b.{0,40}\b(can ?not|can't|unable|not able)\b"
    r"|\b(i (can ?not|can't|could not|couldn't)|i( am|'m) (unable|not able) to) "
    r"(assist|help|provide|answer|comply|fulfil+|view|see|access|process|analy[sz]e|identify|complete)\b",
    re.IGNORECASE | re.DOTALL,
)
TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"))


def is_failed_request(text: str) -> bool:
    """Whether a text is the error message that a harness stores instead of a response.

    >>> is_failed_request("[LMMS_EVAL_REQUEST_FAILED after 3 retries] quota exceeded")
    True
    """
    return FAILED.match(text) is not None


def without_thoughts(text: str) -> str:
    """A response without what a thinking model wrote before it.

    Closed thoughts are taken out as lmms-eval's ``--reasoning_tags`` does, and a thought whose opening tag was part of
    the prompt ends at the closing tag. What follows an opening tag that is never closed is a thought as well: the model
    ran out of tokens, and there is no answer.

    >>> without_thoughts("<think>It is round.</think> A circle.")
    'A circle.'
    >>> without_thoughts("<think>It is round, so")
    ''
    """
    for opening, closing in TAGS:
        if opening not in text and closing not in text:
            continue
        parts = text.split(opening)
        kept = [parts[0]]
        for part in parts[1:]:
            _, closed, after = part.partition(closing)
            kept.append(after if closed else "")
        text = "".join(kept).rpartition(closing)[2].strip()
    return text
