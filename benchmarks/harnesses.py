"""Whether one model has one EMI through both harnesses: ``python benchmarks/harnesses.py --limit 8 --output harnesses``.

The demo's model answers the demo's tasks through lmms-eval (``llava_hf``) and through lm-evaluation-harness
(``hf-multimodal``). Responses are compared row by row, and the scores of splits whose responses are all equal. The scores
that lm-evaluation-harness prints are also compared with those of ``score`` on the responses that it saved.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

from lmms_eval_emi.scoring.pipeline import score
from lmms_eval_emi.scoring.rows import read_results
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.slices.demo.command import ASSETS, STUDY, TASKS

LARGEST_DIFFERENCE = 1e-9


def main() -> int:
    """Run both, compare, print; the exit status is 1 if scores of equal responses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of both runs")
    parser.add_argument("--limit", type=int, help="rows of each split (default: all)")
    parser.add_argument("--lm-eval", default=sys.executable, help="Python with lm_eval and this package")
    args = parser.parse_args()
    encoders = {f"{kind}_encoder": str(ASSETS / f"{kind}_encoder") for kind in ("vision", "text")}
    variables = {
        **os.environ,
        **{f"LMMS_EVAL_EMI_{name.upper()}": value for name, value in encoders.items()},
        **{"LMMS_EVAL_EMI_ESTIMATOR": STUDY, "HF_HUB_OFFLINE": "1"},
    }
    limit = ["--limit", str(args.limit)] if args.limit else []
    path = [sys.executable, "-m", "lmms_eval_emi", "tasks", "path", "--harness", "lm-eval", "--study", STUDY]
    folder = subprocess.run(path, env=variables, capture_output=True, text=True, check=True).stdout.strip()
    model = f"pretrained={ASSETS / 'model'}"
    commands = {
        "lmms-eval": [
            *(sys.executable, "-m", "lmms_eval", "--model", "llava_hf", "--model_args", f"{model},device_map=cpu"),
            *("--tasks", TASKS, "--device", "cpu", "--batch_size", "1", "--log_samples", *limit),
        ],
        "lm-eval": [
            *(args.lm_eval, "-m", "lm_eval", "--model", "hf-multimodal", "--model_args", f"{model},dtype=float32"),
            *("--tasks", TASKS, "--device", "cpu", "--batch_size", "1", "--apply_chat_template"),
            *("--include_path", folder, *limit),
        ],
    }
    for name, command in commands.items():
        if not list((args.output / name).rglob(f"*_emi_{STUDY}.json")):
            subprocess.run([*command, "--output_path", str(args.output / name)], env=variables, check=True)
    answers = {name: _responses(args.output / name) for name in commands}
    printed = {}
    for name in commands:
        (printed[name],) = read_results(next((args.output / name).rglob(f"*_emi_{STUDY}.json")))
    saved = next((args.output / "lm-eval").rglob(f"*_emi_responses/{STUDY}"))
    (scored,) = score(STUDY, saved, estimators=[STUDY], settings=load_settings(**encoders), allow_missing=True)
    rows, largest = [], 0.0
    for split, found in printed["lm-eval"].splits.items():
        ours, theirs = answers["lmms-eval"][split], answers["lm-eval"][split]
        equal = sum(ours.get(key) == text for key, text in theirs.items())
        other = printed["lmms-eval"].splits[split].emi
        off = [abs(found.emi - scored.splits[split].emi)]
        off += [abs(found.emi - other)] if equal == len(theirs) == len(ours) else []
        largest = max(largest, *off)
        rows.append(
            [
                split,
                f"{equal} of {len(theirs)}",
                f"{other:.4f}",
                f"{found.emi:.4f}",
                f"{off[0]:.1e}",
                f"{off[1]:.1e}" if off[1:] else "–",
            ]
        )
    headers = [
        "split",
        "equal responses",
        "EMI, lmms-eval",
        "EMI, lm-eval",
        "lm-eval less score",
        "lm-eval less lmms-eval",
    ]
    print(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))
    return int(largest > LARGEST_DIFFERENCE)


def _responses(folder: Path) -> dict[str, dict[str, str]]:
    """Response by row, by split, in the saved responses of a run."""
    found = {}
    for path in next(folder.rglob(f"*_emi_responses/{STUDY}")).glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.stem] = {str(line["question_id"]): str(line["text"]).strip() for line in lines}
    return found


if __name__ == "__main__":
    sys.exit(main())
