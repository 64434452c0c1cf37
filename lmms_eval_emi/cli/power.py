"""``lmms-eval-emi power``: how many images a shift would need."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmms_eval_emi.cli.options import add_command


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "power",
        examples=("lmms-eval-emi power results.json --effect 0.005",),
        help="how many images would be needed to find an effect",
        description="From the errors of existing results: the smallest EMID that each shift's images can show today, and how many images (not rows) an effect would need.",
    )
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="JSON files of score or of harness runs"
    )
    parser.add_argument(
        "--effect", type=float, default=0.005, metavar="EMID", help="EMID to be found (default: %(default)s)"
    )
    parser.add_argument(
        "--power", type=float, default=0.8, metavar="CHANCE", help="chance of finding it (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, compute, print."""
    from tabulate import tabulate

    from lmms_eval_emi.scoring.compare import power, read_stored

    for result in read_stored(args.results):
        found = power(result, args.effect, args.power)
        print(f"{result.label}, {result.study}: EMID of {args.effect:g} found with a chance of {args.power:.0%} at 5 %")
        if not found:
            print("No shift has images enough to say.\n")
            continue
        rows = [
            [one.name, one.images, f"{one.stderr:.2g}", f"{one.detectable:.2g}", f"{one.needed:,}"] for one in found
        ]
        headers = ["shift", "images", "SE", "detectable today", "images needed"]
        print(tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", *["right"] * 4)))
        most = max(one.needed for one in found)
        print(f"All shifts: {most:,} images.\n")
    return 0
