"""Options that several commands share: settings, made from their own fields, and studies."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

from lmms_eval_emi.data.study import BUILT_IN, BUNDLED
from lmms_eval_emi.data.suites import suite_names
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.settings import PREFIX, Settings, load_settings

COMPLETED = ("estimator", "setting_estimator", "study", "visual", "textual", "name")
METAVARS = {"vision_encoder": "NAME|PATH", "text_encoder": "NAME|PATH", "entropy": "NATS", "batch_size": "N"}
WIDTH = 100  # columns of descriptions
STUDY_FILES = {".yaml", ".yml", ".json"}


class TakesOptions(Protocol):
    """A parser, or a group of its options."""

    def add_argument(self, *names: str, **options: Any) -> Any:
        """Add an argument; see :mod:`argparse`."""
        ...


class Parser(argparse.ArgumentParser):
    """A parser whose help shows the default of every option that has one, and whose names a shell can complete."""

    def add_argument(self, *names: Any, **options: Any) -> Any:
        """Add an argument; see :mod:`argparse`."""
        text, default = options.get("help"), options.get("default")
        shown = default not in (None, False, [], (), argparse.SUPPRESS)
        if text and shown and str(names[0]).startswith("-") and "default" not in text:
            options["help"] = f"{text} (default: %(default)s)"
        action = super().add_argument(*names, **options)
        if action.dest in COMPLETED and not (action.dest == "name" and action.option_strings):
            action.completer = _names_for(action.dest)  # type: ignore[attr-defined]
        return action


def _names_for(argument: str) -> Callable[..., list[str]]:
    """Return a function that lists the names that an argument takes, for argcomplete."""

    def names(**_: Any) -> list[str]:
        if argument.endswith("estimator"):
            from lmms_eval_emi.estimators import registered_estimators

            return list(registered_estimators())
        if argument in ("visual", "textual"):
            from lmms_eval_emi.shifts.operators import operators

            return list(operators("visual" if argument == "visual" else "text"))
        from lmms_eval_emi.data.study import BUILT_IN, BUNDLED
        from lmms_eval_emi.data.suites import suite_names

        return [*BUILT_IN, *BUNDLED] if argument == "study" else list(suite_names())

    return names


def new_parser(prog: str, *, description: str, examples: Sequence[str], epilog: str = "", **options: Any) -> Parser:
    """Return the parser of a command.

    Args:
        prog: program and command, as usage shows them.
        description: description of the command, in a few sentences.
        examples: command lines, the plainest first.
        epilog: what else to say below the options.
        options: options of :class:`argparse.ArgumentParser`.
    """
    below = "\n".join([*([epilog, ""] if epilog else []), "examples:", *(f"  {example}" for example in examples)])
    return Parser(
        prog=prog,
        description=textwrap.fill(description, WIDTH),
        epilog=below,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def add_settings(parser: TakesOptions, *names: str, **renamed: str) -> None:
    """Add options for some settings.

    Args:
        parser: parser to add to.
        names: names of the settings.
        renamed: another name of an option by its setting.
    """
    for name in (*names, *renamed):
        field = Settings.model_fields[name]
        value = field.get_default(call_default_factory=True)
        default = "" if value is None else f"; default: {value}"
        described = f"{(field.description or '').rstrip('.')} ({PREFIX}{name.upper()}{default})".replace("%", "%%")
        option = f"--{renamed.get(name, name).replace('_', '-')}"
        keywords: dict[str, Any] = {"dest": f"setting_{name}", "default": None, "help": described}
        if field.annotation is bool:
            keywords |= {"action": "store_true"}
        elif choices := [choice for choice in get_args(field.annotation) if isinstance(choice, str)]:
            keywords |= {"choices": choices}
        else:
            kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind in (int, float, Path)]
            keywords |= {"type": kinds[0] if kinds else str, "metavar": METAVARS.get(name, name.upper())}
        parser.add_argument(option, **keywords)


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings, where the options of :func:`add_settings` come before the variables."""
    given = {name.removeprefix("setting_"): value for name, value in vars(args).items() if name.startswith("setting_")}
    return load_settings(**given)


def add_study_arguments(parser: argparse.ArgumentParser, *, several: str = "") -> None:
    """Add the arguments for the study, its responses and models; for several studies if ``several`` explains why."""
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="STUDY [DIR ...]",
        help=f"study ({', '.join((*BUILT_IN, *BUNDLED))}, or a study file), then folders of responses",
    )
    parser.add_argument(
        "--study",
        nargs="+",
        default=[],
        metavar="NAME|FILE",
        help="the same, as an option" + (f"; {several}" if several else ""),
    )
    parser.add_argument(
        "--responses",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders of response files: {split}.jsonl or {split}_{model}.jsonl, JSON lines with question_id and text; or an --output_path of lmms-eval --log_samples (default: the files that the study names)",
    )
    parser.add_argument(
        "--only-model",
        action="append",
        default=[],
        metavar="NAME",
        help="model to take, as its lines or files name it; may be repeated; all takes every model (default: the only one of each folder)",
    )
    parser.add_argument(
        "--model-name",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="call a model NEW in table and JSON; may be repeated; models that get the same name become one",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="use what is there: leave out rows and splits that cannot be used, and say why",
    )


def resolve_sources(args: argparse.Namespace, *, several: bool = False) -> None:
    """Sort the positional arguments into ``args.study`` and ``args.responses``.

    Raises:
        InputError: no study is named, or several where one is expected.
    """
    studies, folders = list(args.study), list(args.responses)
    for source in args.sources:
        is_study = source in (*BUILT_IN, *BUNDLED, *suite_names()) or Path(source).suffix.lower() in STUDY_FILES
        if is_study or not (studies or Path(source).is_dir()):
            studies.append(source)
        else:
            folders.append(Path(source))
    if not studies:
        raise InputError(f"expected a study ({', '.join((*BUILT_IN, *BUNDLED))}, or a study file), got none.")
    if len(studies) > 1 and not several:
        raise InputError(f"expected one study, got {', '.join(studies)}.")
    args.study, args.responses = studies, folders


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add the option that allows a command to replace an existing output."""
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")


def renamed_models(pairs: Sequence[str]) -> dict[str, str]:
    """Return the new names of models by their old ones, from ``OLD=NEW``.

    Raises:
        ValueError: a pair has no ``=``, or one side is empty.
    """
    names = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise InputError(f"--model-name: expected OLD=NEW, got {pair!r}.")
        names[old] = new
    return names
