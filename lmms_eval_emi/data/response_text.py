"""Detection of error messages stored as responses, and removal of thoughts before an answer."""

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
# The first two are the defaults of lmms-eval's --reasoning_tags; the others are those of other models' templates.
TAGS = (
    ("<think>", "</think>"),
    ("<analysis>", "</analysis>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    (
        "\N{WHITE LEFT-POINTING TRIANGLE}think\N{WHITE RIGHT-POINTING TRIANGLE}",
        "\N{WHITE LEFT-POINTING TRIANGLE}/think\N{WHITE RIGHT-POINTING TRIANGLE}",
    ),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


def is_failed_request(text: str) -> bool:
    """Return whether a text is the error message that a harness stores instead of a response.

    >>> is_failed_request("[LMMS_EVAL_REQUEST_FAILED after 3 retries] quota exceeded")
    True
    """
    return FAILED.match(text) is not None


def without_thoughts(text: str) -> str:
    """Return a response without what a thinking model wrote before it.

    Closed thoughts are taken out as lmms-eval's ``--reasoning_tags`` does, and a thought whose opening tag was part of
    the prompt ends at the closing tag. A response that begins with an opening tag which is never closed is a thought as
    well: the model ran out of tokens, and there is no answer. A tag in the middle of a text is part of the text.

    >>> without_thoughts("<think>It is round.</think> A circle.")
    'A circle.'
    >>> without_thoughts("<think>It is round, so")
    ''
    >>> without_thoughts("A <think> tag is shown.")
    'A <think> tag is shown.'
    """
    for opening, closing in TAGS:
        if opening not in text and closing not in text:
            continue
        parts = text.split(opening)
        kept = [parts[0]]
        for part in parts[1:]:
            _, closed, after = part.partition(closing)
            is_text = not closed and "".join(kept).strip()
            kept.append(f"{opening}{part}" if is_text else after)
        text = "".join(kept).rpartition(closing)[2].strip()
    return text
