"""Options for the machines that do the work of a command: this one, or a Ray cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def add_engine(parser: argparse._ActionsContainer) -> None:
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


@contextmanager
def opened_engine(args: argparse.Namespace) -> Iterator[Any]:
    """Yield the chosen engine's module, ready to be used, or ``None`` for this machine alone."""
    if args.engine != "ray":
        yield None
        return
    from lmms_eval_emi.slices.ray import engine as ray

    with ray.cluster(args.ray_address):
        yield ray
