"""Responses that are no answers, known by their text: messages of failed requests, thoughts, and degenerate responses.

A model under a shift may fall silent, repeat itself, refuse, or answer in another language. Such rows can be most of
an EMID, so they are counted beside it, and a study can be scored without them.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from lmms_eval_emi.data.rows import Sample

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
KINDS = {
    "empty": "empty",
    "repetition": "repetition loops",
    "refusal": "refusals",
    "question": "copies of the question",
    "language": "in another language than the reference",
}
EXAMINED_CHARACTERS = 4000  # characters examined at each end of a text
MAX_COMPRESSION = 4.0  # a text that deflate shrinks more repeats itself; prose of that length reaches about 2.2
MIN_COMPRESSED_CHARACTERS = 200  # shortest text with a meaningful compression
MIN_WORDS = 20  # shortest text in which word pairs are counted
MIN_DISTINCT_PAIRS = 0.5  # share of distinct neighbouring word pairs below which a text repeats itself
LOOP_REPEATS = 4  # times that a unit is said in a row
MAX_UNIT_CHARACTERS = 160
MIN_LOOP_CHARACTERS = 16
GRAM = 8  # characters by which a unit is recognised when it comes again
REFUSAL_CHARACTERS = 200  # at the start of a text, where a refusal is looked for
COPY_SIMILARITY = 0.9  # similarity from which a text is a copy of another
MIN_LETTERS = 40  # shortest text whose language is classified
LANGUAGE_CHARACTERS = 200  # characters by which the language is classified
LANGUAGE_PROBABILITY = 0.99


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


def degenerate_kind(sample: Sample) -> str | None:
    """Return which of :data:`KINDS` a response is, or ``None``.

    Refusals are known in English. Languages are recognised by script from 20 letters on, and by py3langid where
    response and reference both have at least 40 letters and a probability of at least 0.99.
    """
    response = sample.response.strip()
    if not response:
        return "empty"
    if repeats_itself(response):
        return "repetition"
    if REFUSAL.search(response[:REFUSAL_CHARACTERS].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        return "refusal"
    if _is_copy(response, sample.question):
        return "question"
    for classify in (_script, _language):
        written, expected = classify(response), classify(sample.reference)
        if written and expected and written != expected:
            return "language"
    return None


def repeats_itself(text: str) -> bool:
    """Return whether a text is a loop: by its compression, its word pairs, or a unit repeated four times in a row."""
    if len(text) > 2 * EXAMINED_CHARACTERS:
        return repeats_itself(text[:EXAMINED_CHARACTERS]) or repeats_itself(text[-EXAMINED_CHARACTERS:])
    content = text.encode("utf-8", "surrogatepass")
    if len(text) >= MIN_COMPRESSED_CHARACTERS and len(content) / len(zlib.compress(content)) > MAX_COMPRESSION:
        return True
    words = re.findall(r"[^\W\d_]+", text.casefold())
    if len(words) >= MIN_WORDS and len(set(pairwise(words))) < MIN_DISTINCT_PAIRS * (len(words) - 1):
        return True
    return _has_loop(text)


def _has_loop(text: str) -> bool:
    """Return whether a unit of up to 160 characters with a letter in it is said four times or more in a row."""
    grams = [text[place : place + GRAM] for place in range(len(text) - GRAM + 1)]
    if len(grams) - len(set(grams)) <= MIN_LOOP_CHARACTERS // LOOP_REPEATS:  # a loop has more grams that come again
        return False
    last: dict[str, int] = {}
    measured: dict[int, int] = {}  # end of the latest stretch that repeats itself, by the length of its unit
    for place, gram in enumerate(grams):
        before = last.get(gram)
        last[gram] = place
        if before is None or place - before > MAX_UNIT_CHARACTERS or measured.get(place - before, 0) > place:
            continue
        unit = place - before
        end = place + GRAM
        while end < len(text) and text[end] == text[end - unit]:
            end += 1
        measured[unit] = end
        long_enough = end - before >= max(LOOP_REPEATS * unit, MIN_LOOP_CHARACTERS)
        if long_enough and any(map(str.isalpha, text[before:place])):
            return True
    return False


def _is_copy(response: str, question: str) -> bool:
    first, second = (" ".join(text.casefold().split()) for text in (response, question))
    if not second or 2 * min(len(first), len(second)) < COPY_SIMILARITY * (len(first) + len(second)):
        return False
    if len(first) > EXAMINED_CHARACTERS // 4:  # the comparison takes the square of the length
        return first == second
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return all(ratio() >= COPY_SIMILARITY for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))


@lru_cache(maxsize=4096)
def _script(text: str) -> str | None:
    """Return the script of four fifths of the first letters, or ``None``."""
    letters = [letter for letter in text[:LANGUAGE_CHARACTERS] if letter.isalpha()]
    if len(letters) < MIN_LETTERS // 2:
        return None
    names = ["LATIN" if letter.isascii() else unicodedata.name(letter, "?").split()[0] for letter in letters]
    name, count = Counter("CJK" if name in ("HIRAGANA", "KATAKANA") else name for name in names).most_common(1)[0]
    return name if count >= 0.8 * len(names) else None


@lru_cache(maxsize=4096)
def _language(text: str) -> str | None:
    if sum(map(str.isalpha, text)) < MIN_LETTERS:
        return None
    language, probability = _identifier().classify(text[:LANGUAGE_CHARACTERS])
    return str(language) if probability >= LANGUAGE_PROBABILITY else None


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def degenerate_kinds(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[str | None]]:
    """Return the kind of every response, or ``None``, by split in the order of the rows."""
    known: dict[tuple[str, str, str], str | None] = {}
    for rows in samples.values():
        for row in rows:
            texts = (row.question, row.response, row.reference)
            if texts not in known:
                known[texts] = degenerate_kind(row)
    return {name: [known[row.question, row.response, row.reference] for row in rows] for name, rows in samples.items()}


def counts_by_kind(kinds: Mapping[str, Sequence[str | None]]) -> dict[str, dict[str, int]]:
    """Return how many responses of each split are degenerate, by kind; kinds without any are left out."""
    return {name: {kind: of_rows.count(kind) for kind in KINDS if kind in of_rows} for name, of_rows in kinds.items()}
