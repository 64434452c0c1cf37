"""The command line ``lmms-eval-emi``: one module per command."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence

from lmms_eval_emi.cli import audit, compare, demo, power, prefetch, report, score, shift, tasks, train_estimator
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="lmms-eval-emi",
        description="EMI, EMID and the RJSD shift index: how much a multimodal LLM loses when its inputs shift.",
        epilog="The tasks themselves run in lmms-eval: lmms-eval --tasks llavabench_shift_natural --model ...",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, score, report, compare, power, audit, shift, train_estimator, tasks, prefetch):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Results go to stdout; progress, warnings and errors to stderr.

    Returns:
        0, or 1 after an error that the message on stderr explains; 2 for wrong usage.
    """
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("lmms_eval_emi").setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model's name may have letters that the terminal lacks
    args = build_parser().parse_args(argv)
    try:
        load_settings()  # whatever the command, a mistyped variable is an error
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
