"""What the measures without training say of responders of known order, by real pretrained encoders.

    python benchmarks/real_encoders.py ROWS.parquet --vision-encoder DINOV2 --text-encoder mean:MINILM

ROWS has the columns id, category, image and caption, and captions of the same pictures in other languages under the
names of the languages. References are the captions. The losses are shares: 0 of a responder that says what the caption
says, 1 of one that captions another picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
import numpy as np
from tabulate import tabulate

from lmms_eval_emi import Sample, embed_splits, emi, load_encoders, load_estimator
from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import emid_from_emi

MEASURES = ("reference-r2", "cosine", "dcor-reference", "hsic-reference", "dcor", "hsic")
QUESTION = "What is in the picture?"
NOTHING_LOST, HALF, ALL = "0", "1/2", "1"


def responders(rows: list[dict], random: np.random.Generator) -> dict[str, tuple[str, list[str]]]:
    """The true loss and the responses of every responder; the first one is the clean split."""
    captions = [row["caption"] for row in rows]
    n = len(rows)
    other = (np.arange(n) + 1 + random.permutation(n - 1)[0]) % n
    half = np.where(random.permutation(n) < n // 2, other, np.arange(n))
    alike = np.arange(n)
    for name in {row["category"] for row in rows}:
        places = np.array([place for place, row in enumerate(rows) if row["category"] == name])
        alike[places] = np.roll(places, 1)
    words = sorted({word for caption in captions for word in caption.lower().split()})
    renamed = dict(zip(words, random.permutation(words), strict=True))
    found = {
        "right": (NOTHING_LOST, [f"It is {caption}." for caption in captions]),
        "other words around it": (
            NOTHING_LOST,
            [f"The picture shows {caption}, as far as one sees." for caption in captions],
        ),
        "polite": (NOTHING_LOST, [f"Sure, I am happy to help you with that! It is {caption}." for caption in captions]),
        "every word renamed, always alike": (
            NOTHING_LOST,
            [f"It is {' '.join(renamed[word] for word in caption.lower().split())}." for caption in captions],
        ),
        "half of them wrong": (HALF, [f"It is {captions[place]}." for place in half]),
        "another thing of the same kind": ("above 1/2", [f"It is {captions[place]}." for place in alike]),
        "all wrong": (ALL, [f"It is {captions[place]}." for place in other]),
        "one answer to all": (ALL, ["It is a drawing of something."] * n),
    }
    languages = [name for name in rows[0] if name not in ("id", "category", "image", "caption")]
    return found | {f"right, in {name}": (NOTHING_LOST, [row[name] for row in rows]) for name in languages}


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """How often a right row is above a wrong one."""
    return float((right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2)


def row_values(split: Embeddings, name: str) -> np.ndarray:
    """What every row is worth by a measure: the score and the row's influence on it."""
    score = emi(split, load_estimator(name))
    return score.value + np.asarray(score.influence)


def main() -> None:
    """Embed all responders, score them by every measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--vision-encoder", required=True)
    parser.add_argument("--text-encoder", required=True)
    arguments = parser.parse_args()
    table = datasets.load_dataset("parquet", data_files=str(arguments.rows), split="train")
    rows = list(table.cast_column("image", datasets.Image(decode=False)))
    known = responders(rows, np.random.default_rng(0))
    samples = {
        name: [
            Sample(row["image"]["bytes"], QUESTION, response, row["caption"], id=row["id"])
            for row, response in zip(rows, responses, strict=True)
        ]
        for name, (_, responses) in known.items()
    }
    embedded = embed_splits(samples, load_encoders(arguments.vision_encoder, arguments.text_encoder, "cpu"))
    cells: dict[str, list[str]] = {name: [] for name in known}
    for measure in MEASURES:
        estimator = load_estimator(measure)
        clean = emi(embedded["right"], estimator)
        losses = {name: emid_from_emi(clean, embedded["right"], split, estimator) for name, split in embedded.items()}
        whole = losses["all wrong"].value
        for name, loss in losses.items():
            error = loss.stderr or 0.0
            cells[name].append("0" if name == "right" else f"{loss.value / whole:.2f} ± {error / abs(whole):.2f}")
    print(f"{len(rows)} pictures, {embedded['right'].encoders}\n")
    table_rows = [[name, known[name][0], *own] for name, own in cells.items()]
    print(tabulate(table_rows, headers=["responder", "true loss", *MEASURES], tablefmt="pipe", disable_numparse=True))
    print("\nAUC of right rows above wrong ones\n")
    told = [
        [
            other,
            *(
                f"{auc(row_values(embedded['right'], name), row_values(embedded[other], name)):.2f}"
                for name in MEASURES
            ),
        ]
        for other in ("all wrong", "another thing of the same kind")
    ]
    print(tabulate(told, headers=["wrong rows", *MEASURES], tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
