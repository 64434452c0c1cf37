"""The command line ``lmms-eval-emi``: one module per command."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import logging
import os
import re
import select
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from lmms_eval_emi.cli import (
    agreement,
    audit,
    compare,
    demo,
    export,
    judge,
    power,
    prefetch,
    recover,
    report,
    reproduce,
    robustness,
    run,
    score,
    shift,
    status,
    suites,
    tasks,
    train_estimator,
    twins,
    validate,
)
from lmms_eval_emi.errors import EMIError
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.util.files import write_atomically
from lmms_eval_emi.util.redact import redact
from lmms_eval_emi.version import __version__

INTERRUPTED = 130  # exit status, as shells have it


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="lmms-eval-emi",
        description="EMI, EMID and the RJSD shift index: how much a multimodal LLM loses when its inputs shift.",
        epilog="The tasks themselves run in lmms-eval: lmms-eval --tasks llavabench_shift_natural --model ...",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in (
        *(demo, run, status, recover, score, report, compare, power, audit, judge, agreement, robustness, reproduce),
        *(shift, twins, suites, train_estimator, tasks, prefetch, export, validate),
    ):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Results go to stdout; progress, warnings and errors to stderr.

    Returns:
        0, or 1 after an error that the message on stderr explains; 2 for wrong usage.
    """
    share_the_machine()
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("lmms_eval_emi").setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model's name may have letters that the terminal lacks
    parser = build_parser()
    _complete(parser)
    commands = commands_of(parser)
    _refuse_unknown(commands, sys.argv[1:] if argv is None else list(argv))
    args, others = parser.parse_known_args(argv)
    if others and not getattr(args, "takes_others", False):
        _refuse(commands[args.command], others)
    args.others = others
    if args.command is None:
        args.run = lambda _: print(overview(parser)) or 0
    try:
        load_settings()  # whatever the command, a mistyped variable is an error
        status = args.run(args)
        sys.stdout.flush()  # while a pipe that nobody reads can still be told
        return status
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):  # a second one
            print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        if not _stdout_is_closed():  # the pipe of something else
            print(f"error: {redact(str(error))}", file=sys.stderr)
            return 1
        # What is left to be written goes nowhere, so that the interpreter says nothing of it at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (EMIError, OSError, MemoryError) as error:
        print(f"error: {redact(str(error)) or type(error).__name__}", file=sys.stderr)
        return 1
    except Exception as error:
        print(
            f"error: {type(error).__name__}: {redact(str(error))}. This is a bug of lmms_eval_emi; the traceback is in {write_log(error)}",
            file=sys.stderr,
        )
        return 1


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands by name."""
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def overview(parser: argparse.ArgumentParser) -> str:
    """All commands, each with what it does and one example."""
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = [str(parser.description), "", f"usage: {parser.prog} COMMAND ...   ({parser.prog} COMMAND --help)", ""]
    for choice in found._choices_actions:
        lines += [f"{choice.dest:17}{choice.help}", f"{'':17}  {found.choices[choice.dest].get_default('example')}"]
    return "\n".join([*lines, "", str(parser.epilog)])


def _refuse_unknown(commands: dict[str, argparse.ArgumentParser], argv: Sequence[str]) -> None:
    """Refuse options that a command does not have before anything else is said of its command line."""
    command = commands.get(argv[0]) if argv else None
    if command is None or command.get_default("takes_others"):
        return
    names = [one.partition("=")[0] for one in argv[1 : argv.index("--") if "--" in argv else None]]
    known = command._option_string_actions
    unknown = [one for one in names if re.match(r"--\w", one) and not any(name.startswith(one) for name in known)]
    if unknown:
        _refuse(command, unknown)


def _refuse(command: argparse.ArgumentParser, others: Sequence[str]) -> None:
    """Say which arguments a command does not have, with its usage and the option that may have been meant."""
    hints = []
    for one in others:
        close = difflib.get_close_matches(one.partition("=")[0], command._option_string_actions, n=1)
        if one.startswith("-") and close:
            hints.append(f"Did you mean {close[0]}?")
    command.error(" ".join([f"unrecognized arguments: {' '.join(others)}.", *hints]))


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks how to complete a command line."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def command() -> int:
    """:func:`main` of a process of its own, which ends at once when it is interrupted, whatever its threads are at.

    They would be waited for otherwise. What is to be kept was written while the interruption went up to here.
    """
    status = main()
    others = [one for one in threading.enumerate() if one is not threading.current_thread() and not one.daemon]
    if status == INTERRUPTED and others:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status


def share_the_machine() -> None:
    """Settings of a whole process, which only a process of ours may have.

    Texts are tokenised in the thread that encodes them, beside the images: sixteen more threads take longer, and ten
    times the CPU time, for they wait for each other.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _stdout_is_closed() -> bool:
    """Whether nobody reads what is printed any more, as behind ``| head``."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(state & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, state in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call, or no such file
        return True


def write_log(error: BaseException) -> str:
    """Write an error with all its details to a file of its own; returns where."""
    text = redact("".join(traceback.format_exception(error)))
    for folder in (load_settings().cache / "logs", Path(tempfile.gettempdir())):
        try:
            return str(write_atomically(folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log", text))
        except (OSError, ValueError):
            continue
    return "no file, for none can be written"
