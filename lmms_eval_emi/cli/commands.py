"""Entry point of the command line: finds the command, runs it, and turns errors into one line."""

from __future__ import annotations

import argparse
import contextlib
import difflib
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
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from lmms_eval_emi.errors import EMIError
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.util.files import write_atomically
from lmms_eval_emi.util.printing import printable, printable_output, redact, suggest
from lmms_eval_emi.version import __version__

PROGRAM = "lmms-eval-emi"
INTERRUPTED = 130  # exit status, as shells have it
BROKEN_PIPE = 141


class Command(NamedTuple):
    """A command: the module with its ``build_parser`` and ``run``, a description, and an example."""

    module: str
    summary: str
    example: str


# The lazy table of commands, by their words.
COMMANDS = {
    "score": Command(
        "lmms_eval_emi.cli.score",
        "score existing responses: EMI, EMID and the shift index",
        "score natural out/ --output results.json",
    ),
    "report": Command(
        "lmms_eval_emi.cli.report",
        "show, convert or check results: page, table, figures, other tools' formats",
        "report results.json",
    ),
    "compare": Command(
        "lmms_eval_emi.cli.compare", "compare models on the same splits, with paired errors", "compare a.json b.json"
    ),
    "run": Command(
        "lmms_eval_emi.cli.run",
        "run lmms-eval so that no response is lost or generated twice",
        "run --study natural --model llava_hf --model_args pretrained=llava-hf/llava-1.5-7b-hf --output_path out",
    ),
    "demo": Command(
        "lmms_eval_emi.slices.demo.command", "run a whole study with a small LLaVA, on any machine, in minutes", "demo"
    ),
    "reproduce": Command(
        "lmms_eval_emi.slices.reproduce.command",
        "compute the published results again from the published responses",
        "reproduce --output reproduced.json",
    ),
    "tasks list": Command("lmms_eval_emi.cli.tasks_list", "list the tasks and groups of lmms-eval", "tasks list"),
    "tasks write": Command(
        "lmms_eval_emi.cli.tasks_write", "write the tasks of a study of your own", "tasks write my_study.yaml my_tasks"
    ),
    "tasks path": Command(
        "lmms_eval_emi.cli.tasks_path",
        "print the folder of the tasks, for lm_eval --include_path",
        "tasks path --harness lm-eval",
    ),
    "tasks check": Command(
        "lmms_eval_emi.cli.tasks_check", "find out whether lmms-eval finds the tasks by itself", "tasks check"
    ),
    "tasks prefetch": Command(
        "lmms_eval_emi.cli.tasks_prefetch",
        "fetch datasets, encoders and estimator before a run without internet",
        "tasks prefetch --study natural",
    ),
    "shifts list": Command("lmms_eval_emi.cli.shifts_list", "list the shift operators", "shifts list"),
    "shifts apply": Command(
        "lmms_eval_emi.cli.shifts_apply",
        "shift the images and questions of any dataset, and write it as a suite of tasks",
        "shifts apply rows.parquet my_suite --visual defocus_blur:1,3 --textual keyboard:1 --joint",
    ),
    "shifts twins": Command(
        "lmms_eval_emi.cli.shifts_twins",
        "write shifted twins of any tasks of lmms-eval",
        "shifts twins mme pope --visual fog:1,3 --output my_twins",
    ),
    "shifts suites": Command(
        "lmms_eval_emi.cli.shifts_suites",
        "list the published robustness suites, and write their tasks",
        "shifts suites pope_corruption --output my_tasks",
    ),
    "estimators list": Command("lmms_eval_emi.cli.estimators_list", "list the estimators", "estimators list"),
    "estimators train": Command(
        "lmms_eval_emi.cli.estimators_train",
        "train an estimator of mutual information on your own responses",
        "estimators train my_study.yaml --output mine.safetensors",
    ),
    "estimators audit": Command(
        "lmms_eval_emi.cli.estimators_audit",
        "see what an estimator notices: EMI of responders whose faults are known",
        "estimators audit my_study.yaml --estimator dcor",
    ),
    "judge ask": Command(
        "lmms_eval_emi.slices.judge.ask",
        "ask a judge model for scores of responses beside their references",
        "judge ask natural out/ --endpoint http://localhost:8000/v1 --endpoint-model NAME --output judged.jsonl",
    ),
    "judge agree": Command(
        "lmms_eval_emi.slices.judge.agree",
        "see how EMI and EMID agree with a judge, accuracy or any other score",
        "judge agree results.json --judged judged.jsonl",
    ),
    "robustness": Command(
        "lmms_eval_emi.slices.robustness.command",
        "measure what a task's own metrics lose under its shifts",
        "robustness out/ --output robustness.json",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Results go to stdout; progress, warnings and errors to stderr.

    Returns:
        0, or 1 after an error that the message on stderr explains; 2 for wrong usage.
    """
    with printable_output():
        return _run(sys.argv[1:] if argv is None else list(argv))


def _run(words: Sequence[str]) -> int:
    # Texts are tokenised in the thread that encodes them; a pool of the tokenizer's own is slower beside it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_PrintableFormatter("%(levelname)s: %(message)s"))
    logging.getLogger("lmms_eval_emi").setLevel(logging.INFO)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a model's name may have letters that the terminal lacks
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):  # a second one
            print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        if not stdout_is_closed():  # the pipe of something else
            print(f"error: {redact(str(error))}", file=sys.stderr)
            return 1
        # What is left to be written goes nowhere, so that the interpreter says nothing of it when it exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (EMIError, OSError, MemoryError) as error:
        print(f"error: {printable(redact(str(error))) or type(error).__name__}", file=sys.stderr)
        return 1
    except Exception as error:
        print(
            f"error: {type(error).__name__}: {printable(redact(str(error)))}. This is a bug of lmms_eval_emi; the traceback is in {write_log(error)}",
            file=sys.stderr,
        )
        return 1


class _PrintableFormatter(logging.Formatter):
    """Formats messages, in which names and replies from outside may stand, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record."""
        return printable(super().format(record))


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    name = command_in(words)
    if name is None:
        return _refuse_command(words)
    module: Any = import_module(COMMANDS[name].module)
    parser = parser_of(name)
    rest = list(words[len(name.split()) :])
    takes_others = getattr(module, "TAKES_OTHER_OPTIONS", False)
    if not takes_others:
        _refuse_unknown_options(parser, rest)
    args, others = parser.parse_known_args(rest)
    if others and not takes_others:
        parser.error(f"unrecognized arguments: {' '.join(others)}.")
    args.others = others
    load_settings()  # a mistyped variable is an error, whatever the command
    status = int(module.run(args))
    sys.stdout.flush()  # while a closed pipe can still be reported
    return status


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command of ``COMMANDS``."""
    parser: argparse.ArgumentParser = import_module(COMMANDS[name].module).build_parser(f"{PROGRAM} {name}")
    return parser


def command_in(words: Sequence[str]) -> str | None:
    """Return the command that a command line begins with, such as ``shifts list``; ``None`` if it has none."""
    return next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS), None)


def overview() -> str:
    """Return all commands, each with what it does and one example."""
    lines = [
        "EMI, EMID and the RJSD shift index: how much a multimodal LLM loses when its inputs shift.",
        "",
        f"usage: {PROGRAM} COMMAND ...   ({PROGRAM} COMMAND --help)",
        "",
    ]
    for name, command in COMMANDS.items():
        lines += [f"{name:17}{command.summary}", f"{'':17}  {PROGRAM} {command.example}"]
    return "\n".join(
        [*lines, "", "The tasks themselves run in lmms-eval: lmms-eval --tasks llavabench_shift_natural --model ..."]
    )


def _refuse_command(words: Sequence[str]) -> int:
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group:
        lines = [f"{name:17}{COMMANDS[name].summary}" for name in group]
        asked = len(words) == 1 or words[1] in ("-h", "--help")
        print("\n".join([f"usage: {PROGRAM} {words[0]} COMMAND ...", "", *lines]), file=None if asked else sys.stderr)
        return 0 if asked else 2
    names = [*COMMANDS, *(name.partition(" ")[0] for name in COMMANDS), *(name.rpartition(" ")[2] for name in COMMANDS)]
    close = difflib.get_close_matches(" ".join(words[:2]), names, n=1) or difflib.get_close_matches(
        words[0], names, n=1
    )
    full = next((name for name in COMMANDS if close and close[0] in (name, *name.split())), None)
    hint = f" Did you mean {full}?" if full else ""
    print(f"{PROGRAM}: {words[0]!r} is not a command.{hint} {PROGRAM} --help lists them.", file=sys.stderr)
    return 2


def _refuse_unknown_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Report options that a command does not have, before anything else is said of its command line."""
    known = re.findall(r"(?<![\w-])--[a-z][\w-]*", parser.format_help())
    given = [word.partition("=")[0] for word in words[: words.index("--") if "--" in words else None]]
    unknown = [word for word in given if re.match(r"--\w", word) and not any(name.startswith(word) for name in known)]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}.{''.join(suggest(word, known) for word in unknown)}")


def _complete() -> None:
    """Answer a shell that asks how to complete a command line; this alone builds the parsers of all commands."""
    import argcomplete

    root = argparse.ArgumentParser(prog=PROGRAM)
    commands = root.add_subparsers()
    groups: dict[str, Any] = {}
    for name in COMMANDS:
        group, _, word = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = commands.add_parser(group).add_subparsers()
        target = groups[group] if group else commands
        target.add_parser(word, parents=[parser_of(name)], add_help=False)
    argcomplete.autocomplete(root)


def command() -> int:
    """Entry point; exits immediately on Ctrl-C, without waiting for threads. What is to be kept is written by then."""
    status = main()
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if status == INTERRUPTED and others:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status


def stdout_is_closed() -> bool:
    """Return whether nobody reads stdout any more, as behind ``| head``."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(state & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, state in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call, or no such file
        return True


def write_log(error: BaseException) -> str:
    """Write the traceback of an error to a file of its own; returns where."""
    text = redact("".join(traceback.format_exception(error)))
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for choose in (lambda: load_settings().cache / "logs", lambda: Path(tempfile.gettempdir())):
        try:
            return str(write_atomically(choose() / name, text))  # type: ignore[no-untyped-call]
        except (EMIError, OSError):
            continue
    return "no file, since none can be written"
