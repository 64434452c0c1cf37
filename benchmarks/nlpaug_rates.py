"""How many words `ocr` and `keyboard` change beside nlpaug, which MM-Robustness uses, at the same rates.

``pip install nlpaug``, then ``python benchmarks/nlpaug_rates.py QUESTIONS.txt`` with one text a line.
"""

from __future__ import annotations

import difflib
import random
import re
import sys
from pathlib import Path

import nlpaug.augmenter.char as nac
import numpy as np

from lmms_eval_emi.shifts import shift_text

SEEDS = 10
RATES = (0.05, 0.15, 0.25, 0.35)
LEVELS = (1, 3, 5, 7)


def changed(before: str, after: str) -> float:
    """Share of the words of a text that are not among those of the other, in order; nlpaug sets marks apart."""
    first, second = (re.findall(r"\w+", text) for text in (before, after))
    same = sum(block.size for block in difflib.SequenceMatcher(None, first, second, False).get_matching_blocks())
    return 1 - same / max(1, len(first))


def main() -> None:
    """Print a table of shares."""
    short = [line for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines() if line.strip()]
    long = [" ".join(short[start : start + 20]) for start in range(0, len(short) - 19, 20)]
    print(
        "| operator | texts | words each | level | nlpaug | ours | ratio |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, kind in (("ocr", nac.OcrAug), ("keyboard", nac.KeyboardAug)):
        for label, texts in (("questions", short), ("20 questions joined", long)):
            words = np.mean([len(text.split()) for text in texts])
            for rate, level in zip(RATES, LEVELS, strict=True):
                random.seed(0)
                np.random.seed(0)
                theirs = [changed(text, kind(aug_word_p=rate).augment(text)[0]) for _ in range(SEEDS) for text in texts]
                ours = [
                    changed(text, shift_text(text, name, level, seed=seed)) for seed in range(SEEDS) for text in texts
                ]
                ratio = np.mean(ours) / np.mean(theirs)
                print(
                    f"| `{name}` | {label} | {words:.0f} | {level} | {np.mean(theirs):.1%} | {np.mean(ours):.1%} | {ratio:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
