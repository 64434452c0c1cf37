"""How much our textual operators change, beside the published prompts of the same levels.

python benchmarks/shift_rates.py FOLDER      # with llava_bench_coco.jsonl, llava_bench_coco_KeyboardAug_1.jsonl, ...

Characters: Levenshtein's distance over the length. Words: the share of those that are not kept. Synonyms are
compared as the published ones are written, in lower case and without marks; the spaces that the published typos
have around apostrophes are no typos and are closed.
"""

from __future__ import annotations

import argparse
import difflib
import json
import statistics
from pathlib import Path

from tabulate import tabulate

from lmms_eval_emi.shifts import RefusedError, ShiftOptions, shift_text
from lmms_eval_emi.shifts.operators.textual.word import plain

PUBLISHED = [
    ("keyboard", 1, "KeyboardAug_1"),
    ("keyboard", 3, "KeyboardAug_3"),
    ("synonym", 4, "sr_4"),
    ("synonym", 7, "sr_7"),
    ("sr", 4, "sr_4"),
    ("sr", 7, "sr_7"),
]


def distance(before: str, after: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(after) + 1))
    for i, left in enumerate(before, start=1):
        above, row[0] = row[0], i
        for j, right in enumerate(after, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def shares(before: list[str], after: list[str]) -> tuple[float, float]:
    """Shares of changed characters and of words that are gone."""
    characters = sum(map(distance, before, after)) / sum(map(len, before))
    kept = sum(
        block.size
        for left, right in zip(before, after, strict=True)
        for block in difflib.SequenceMatcher(None, left.split(), right.split(), autojunk=False).get_matching_blocks()
    )
    return characters, 1 - kept / sum(len(text.split()) for text in before)


def shifted(texts: list[str], name: str, level: int, seed: int) -> list[str]:
    """Texts under an operator, those that it refuses as they are."""
    out = []
    for row, text in enumerate(texts):
        try:
            out.append(shift_text(text, name, level, seed=seed, row_id=row))
        except RefusedError:
            out.append(text)
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Rates of textual operators beside the published prompts'.")
    parser.add_argument("folder", type=Path, help="of the published answers, JSON lines with a prompt")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()

    def prompts(name: str) -> list[str]:
        lines = (args.folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line)["prompt"].strip() for line in lines if line]

    table = []
    for name, level, published in PUBLISHED:
        normal = (lambda text: plain(text, ShiftOptions())) if name != "keyboard" else _close_apostrophes
        clean = prompts("llava_bench_coco")
        before = list(map(normal, clean))
        theirs = shares(before, [normal(text) for text in prompts(f"llava_bench_coco_{published}")])
        ours = [shares(before, list(map(normal, shifted(clean, name, level, seed)))) for seed in range(args.seeds)]
        cells = [
            f"{statistics.mean(values):.1%} ± {statistics.stdev(values):.1%}" for values in zip(*ours, strict=True)
        ]
        table.append([f"{name}:{level}", published, f"{theirs[0]:.1%}", cells[0], f"{theirs[1]:.1%}", cells[1]])
    headers = ["operator", "published split", "characters, published", "ours", "words, published", "ours"]
    print(tabulate(table, headers=headers, tablefmt="github", disable_numparse=True))


def _close_apostrophes(text: str) -> str:
    return text.replace(" '", "'").replace("' ", "'")


if __name__ == "__main__":
    main()
