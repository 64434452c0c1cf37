"""Degenerate responses: those that a measure of relevance is not about, told by their text alone.

A model under a shift may fall silent, repeat itself, refuse or answer in another language. Such rows can be most
of an EMID, so they are counted beside it, and it can be had without them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from lmms_eval_emi.encoders.cache import content_digest
from lmms_eval_emi.memory import give_back
from lmms_eval_emi.data.sample import Sample

if TYPE_CHECKING:
    from lmms_eval_emi.scoring.memo import Memo

MEMO = "degenerate responses"
KINDS = {
    "empty": "empty",
    "repetition": "repetition loops",
    "refusal": "refusals",
    "question": "copies of the question",
    "language": "in another language than the reference",
}
TIMES = 4  # something is said as often or more in a row
LONGEST_UNIT = 160  # characters of what is said again
LOOP_LENGTH = 16  # characters of such a loop at least
GRAM = 8  # characters by which a loop is found; one that is long enough has the same ones a unit apart
FACTORS = [np.uint64(0x9E3779B97F4A7C15**power % 2**64) for power in (1, 2, 4)]
UNITS = np.arange(1, LONGEST_UNIT + 1)
# Of the grams of a loop by the length of its unit: how many occurred before, no further back than that.
REPEATED = np.maximum(TIMES * UNITS, LOOP_LENGTH) - UNITS - GRAM + 1
PLACE_BITS = np.uint64(13)  # of a place in a text of twice as many characters as are looked at
LOOKED_AT = 4000  # characters of a text that are looked at, at its start and at its end
FEWEST_WORDS = 20  # of a text whose pairs of words are counted
DISTINCT = 0.5  # share of distinct ones among its pairs of neighbouring words, below which a text goes round
OPENING = 200  # characters in which a refusal is looked for
REFUSAL = regex.compile(
    r"\bas an? (ai|artificial intelligence|(large )?language model)\b"
    r"|\b(i am|i'm) (sorry|afraid)\b.{0,40}\b(can ?not|can't|unable|not able)\b"
    r"|\b(i (can ?not|can't|could not|couldn't)|i( am|'m) (unable|not able) to) "
    r"(assist|help|provide|answer|comply|fulfil+|view|see|access|process|analy[sz]e|identify|complete)\b",
    regex.IGNORECASE | regex.DOTALL,
)
COPY = 0.9  # likeness of two texts from which one is a copy
FEWEST_LETTERS = 40  # of a text whose language is guessed
TOLD_BY = 200  # characters by which it is guessed
SURE = 0.99  # probability of a language
# Frequent words of English that are none of another language in Latin letters, or rare ones.
ENGLISH = frozenset(
    "the and of with this these that are is has have from into to which who what when while there it its they their "
    "she his you your some such other would should not".split()
)
FEWEST_ENGLISH = 3  # distinct ones of these, of a text that is plainly English
ENGLISH_SHARE = 0.2  # of its words
SCRIPTS = {
    **{name: rf"\p{{Script={name}}}" for name in ("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Thai", "Hangul")},
    "Indic": r"[\p{Script=Devanagari}\p{Script=Bengali}\p{Script=Tamil}\p{Script=Telugu}]",
    "Chinese or Japanese": r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]",
}


def degenerate_kind(sample: Sample) -> str | None:
    """Which of :data:`KINDS` a response is, or ``None``.

    Refusals are known in English. Languages are told by script from 20 letters on. Where response and reference both
    have at least 40 letters, English is told by its frequent words, and other languages by py3langid from a
    probability of 0.99 on.
    """
    response = sample.response.strip()
    if not response:
        return "empty"
    if _loops(response):
        return "repetition"
    if REFUSAL.search(response[:OPENING].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        return "refusal"
    if _is_copy(response, sample.question):
        return "question"
    for told in (_script, _language):
        own, expected = told(response), told(sample.reference)
        if own and expected and own != expected:
            return "language"
    return None


def _loops(text: str) -> bool:
    """Whether something is said again and again in a row, or the text goes round in circles."""
    if len(text) > 2 * LOOKED_AT:
        return _loops(text[:LOOKED_AT]) or _loops(text[-LOOKED_AT:])
    if _repeats(text):
        return True
    words = _words(text.casefold())
    count = len(words) - 1
    if (
        len(words) < FEWEST_WORDS or len(set(words)) - 1 >= DISTINCT * count
    ):  # there are as many distinct pairs at least
        return False
    return len(set(pairwise(words))) < DISTINCT * count


def _words(text: str) -> list[str]:
    return re.findall("[A-Za-z]+", text) if text.isascii() else regex.findall(r"\p{L}+", text)


def _repeats(text: str) -> bool:
    """Whether something with a letter in it, of up to 160 characters, is said four times or more in a row."""
    if len(text) < LOOP_LENGTH or not _may_repeat(text):
        return False
    grams = [text[start : start + GRAM] for start in range(len(text) - GRAM + 1)]
    last: dict[str, int] = {}
    measured: dict[int, int] = {}  # by distance, where the last stretch that repeats itself at it ends
    for place, gram in enumerate(grams):
        before = last.get(gram)
        last[gram] = place
        if before is None or place - before > LONGEST_UNIT:
            continue
        distance = place - before
        if measured.get(distance, 0) > place:
            continue
        end = place + GRAM
        while end < len(text) and text[end] == text[end - distance]:
            end += 1
        measured[distance] = end
        if end - before >= max(TIMES * distance, LOOP_LENGTH) and any(map(str.isalpha, text[before:place])):
            return True
    return False


def _may_repeat(text: str) -> bool:
    """Whether as many grams occur again, as near, as in a loop; few texts without one have them. Counted by a hash."""
    sums = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    for step, factor in zip((1, 2, 4), FACTORS, strict=True):
        sums = sums[:-step] + sums[step:] * factor
    # Sorted with its place in the lower bits, a gram is behind its last occurrence.
    sums = np.sort((sums << PLACE_BITS) | np.arange(len(sums), dtype=np.uint64))
    grams = sums >> PLACE_BITS
    again = grams[1:] == grams[:-1]
    if np.count_nonzero(again) < REPEATED.min():
        return False
    distances = np.diff(sums)[again].astype(np.int64)
    counts = np.bincount(distances[distances <= LONGEST_UNIT], minlength=LONGEST_UNIT + 1)[1:]
    return bool((np.cumsum(counts) >= REPEATED).any())


def _is_copy(response: str, question: str) -> bool:
    first, second = (" ".join(text.casefold().split()) for text in (response, question))
    if not second or not 0.5 < len(first) / len(second) < 2:
        return False
    if len(first) > LOOKED_AT:
        return first == second
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return matcher.real_quick_ratio() >= COPY and matcher.quick_ratio() >= COPY and matcher.ratio() >= COPY


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text)) if text.isascii() else len(regex.findall(r"\p{L}", text))


@lru_cache(maxsize=4096)
def _script(text: str) -> str | None:
    """The script of four fifths of the letters, or ``None``."""
    letters = _letters(text)
    if letters < FEWEST_LETTERS / 2:
        return None
    if text.isascii():
        return "Latin"
    counts = {name: len(regex.findall(pattern, text)) for name, pattern in SCRIPTS.items()}
    most = max(counts, key=lambda name: counts[name])
    return most if counts[most] >= 0.8 * letters else None


@lru_cache(maxsize=4096)
def _language(text: str) -> str | None:
    if _letters(text) < FEWEST_LETTERS:
        return None
    if _is_english(text):
        return "en"
    language, probability = _identifier().classify(text[:TOLD_BY])
    return str(language) if probability >= SURE else None


def _is_english(text: str) -> bool:
    """Whether a text is plainly English, which is told a hundred times faster than its language."""
    if not text.isascii():
        return False
    words = _words(text[:TOLD_BY].lower())
    known = [word for word in words if word in ENGLISH]
    return len(set(known)) >= FEWEST_ENGLISH and len(known) >= ENGLISH_SHARE * len(words)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def release_languages() -> None:
    """Let go of what tells languages, 70 MB that the next call loads again."""
    _identifier.cache_clear()
    give_back()


def kinds_of(samples: Mapping[str, Sequence[Sample]], memo: Memo | None = None) -> dict[str, list[str | None]]:
    """The kind of every response that is degenerate, by split, in the order of the rows.

    Args:
        samples: by split.
        memo: has the kinds of earlier runs.
    """
    digests = {name: [_digest(row) for row in rows] for name, rows in samples.items()}
    known = memo.find(MEMO, 1, [one for own in digests.values() for one in own]) if memo else {}
    names = [None, *KINDS]
    new: dict[bytes, np.ndarray] = {}
    found: dict[str, list[str | None]] = {}
    for name, rows in samples.items():
        kinds = found[name] = []
        for digest, row in zip(digests[name], rows, strict=True):
            if digest not in known:
                known[digest] = new[digest] = np.array([float(names.index(degenerate_kind(row)))])
            kinds.append(names[int(known[digest][0])])
    if memo:
        memo.keep(MEMO, 1, new)
    return found


def _digest(row: Sample) -> bytes:
    return content_digest(json.dumps([row.question, row.response, row.reference]))


def counts_by_kind(kinds: Mapping[str, Sequence[str | None]]) -> dict[str, dict[str, int]]:
    """How many responses of every split are degenerate, by kind; kinds without any are left out."""
    return {name: {kind: own.count(kind) for kind in KINDS if kind in own} for name, own in kinds.items()}
