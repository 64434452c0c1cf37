"""How much the demo's scores depend on its encoders: ``cd benchmarks && python -m demo.seeds --output seeds.json``.

For each seed a pair of encoders is trained as the shipped one was, then an estimator on their embeddings, and the
same responses of the shipped model to the test scenes are scored. Seed 0 is the shipped pair with the shipped estimator. A second start goes on
where the first was interrupted; ``--table`` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from demo.build import ASSETS, answer_training_scenes, load_model, make_encoders, train_on, write_answers
from tabulate import tabulate

from lmms_eval_emi.core.correlation import spearman
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.slices.demo.command import (
    STUDY,
    UNTRAINED,
    accuracy_of,
    collect_with_controls,
    right_rows,
    score_demo,
)
from lmms_eval_emi.util.files import to_json, write_atomically

ITERATIONS = 3000  # of the estimator's training


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the scores by seed")
    parser.add_argument("--work", type=Path, default=Path("seeds"), help="folder of what is trained (default: seeds)")
    parser.add_argument("--seeds", type=int, default=6, help="how many, the shipped pair among them (default: 6)")
    parser.add_argument("--shrink", type=float, default=1.0, help="share of the training steps, to try the code")
    parser.add_argument("--table", action="store_true", help="only print the table of the output")
    args = parser.parse_args(argv)
    if args.table:
        print(table(json.loads(args.output.read_text(encoding="utf-8"))))
        return 0
    work = args.work.resolve()
    training, test = work / "training", work / "test"
    if not (training / "study.yaml.done").exists():
        training.mkdir(parents=True, exist_ok=True)
        answer_training_scenes(training, ASSETS, args.shrink)
        (training / "study.yaml.done").touch()
    if not (test / "done").exists():
        test.mkdir(parents=True, exist_ok=True)
        write_answers(load_study(STUDY), load_model(ASSETS), test)
        (test / "done").touch()
    found: dict[str, Any] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    for seed in range(args.seeds):
        if str(seed) in found:
            continue
        folder = ASSETS if seed == 0 else work / f"seed-{seed}"
        if seed and not (folder / "text_encoder" / "tokenizer.json").exists():
            folder.mkdir(exist_ok=True)
            make_encoders(folder, args.shrink, seed)
        torch.manual_seed(seed)
        estimator = work / f"estimator-{seed}.safetensors"
        if seed and not estimator.exists():
            train_on(training / "study.yaml", folder, estimator, max(10, int(ITERATIONS * args.shrink)))
        found[str(seed)] = scores(test, folder, str(estimator) if seed else STUDY)
        write_atomically(args.output, to_json(found))
        print(f"seed {seed} done", file=sys.stderr)
    print(table(found))
    return 0


def scores(responses: Path, encoders: Path, estimator: str) -> dict[str, Any]:
    """EMI, EMID and rank correlation with the loss of accuracy of every estimator, with one pair of encoders."""
    entry = collect_with_controls(responses)
    study, accuracy = load_study(STUDY), accuracy_of(right_rows(entry))
    results = score_demo(entry, encoders, [estimator, *UNTRAINED])
    described: dict[str, Any] = {}
    for label, result in zip(("club", *UNTRAINED), results, strict=True):
        shifts = [name for name in study.shifts() if name in result.splits]
        losses = [accuracy[study.id_split] - accuracy[name] for name in shifts]
        shifted = {name: one for name, one in result.splits.items() if one.emid is not None}
        described[label] = {
            "emi": {name: [one.emi, one.emi_stderr] for name, one in result.splits.items()},
            "emid": {name: [one.emid, one.emid_stderr, one.emid_p] for name, one in shifted.items()},
            "rank_correlation": spearman([shifted[name].emid for name in shifts], losses),
        }
    return described


def table(found: dict[str, Any]) -> str:
    """The demo's scores over the seeds, as Markdown: the shipped pair, and smallest and largest of all."""
    rows = []
    names = list(found["0"]["club"]["emid"])
    for name in names:
        cells = []
        for label in ("club", *UNTRAINED):
            values = [one[label]["emid"][name][0] for one in found.values()]
            cells.append(f"{values[0]:.3f} ({min(values):.3f} to {max(values):.3f})")
        rows.append([name, *cells])
    correlations = []
    for label in ("club", *UNTRAINED):
        values = [one[label]["rank_correlation"] for one in found.values()]
        correlations.append(f"{values[0]:.2f} ({min(values):.2f} to {max(values):.2f})")
    rows.append(["rank correlation with the loss of accuracy", *correlations])
    headers = [f"{len(found)} seeds", *(f"EMID, `{label}`" for label in ("club", *UNTRAINED))]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    sys.exit(main())
