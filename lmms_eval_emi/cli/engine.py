"""Options for the machines that do the work of a command: this one, or a Ray cluster."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lmms_eval_emi.cli.options import TakesOptions


def add_engine(parser: TakesOptions) -> None:
    """Add the options that choose the machines."""
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: this process, or the ranks of a launcher; ray: a Ray cluster, with Ray Data (default: %(default)s)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="cluster for --engine ray, such as auto or ray://host:10001 (RAY_ADDRESS; default: one on this machine)",
    )


def engine_of(args: argparse.Namespace) -> Any:
    """Return the module of the chosen engine, or ``None`` for this machine alone."""
    if args.engine != "ray":
        return None
    from lmms_eval_emi.slices.ray import engine

    return engine


def opened_engine(args: argparse.Namespace) -> AbstractContextManager[Any]:
    """Return a context in which the machines of the chosen engine are there."""
    engine = engine_of(args)
    return engine.cluster(args.ray_address) if engine else nullcontext()
