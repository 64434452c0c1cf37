"""Access to lmms-eval's command, models and requests, and to the ranks of a launcher."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lmms_eval_emi.errors import EMIError, InputError, RunError
from lmms_eval_emi.util.printing import shorten

# Attributes of models that put one model on several ranks.
PARALLEL_SIZES = (
    "tensor_parallel_size",
    "_tp_world_size",
    "tp_size",
    "model_parallel_world_size",
    "pipeline_parallel_size",
)
# Relies on: evaluate() calls these once on every rank, with all requests of the rank, and takes their responses in order.
MODEL_METHODS = ("generate_until", "loglikelihood", "generate_until_multi_round", "generate_visual_cot")
# What decides the requests of a command, by the harness's names.
DECISIVE = (
    *("tasks", "include_path", "limit", "offset", "num_fewshot", "gen_kwargs", "seed", "repeats", "force_simple"),
    *("system_instruction", "apply_chat_template", "fewshot_as_multiturn"),
)
# Options of a run that send its results somewhere, and whether they take a value.
SENDING = {"--wandb_args": True, "--swanlab_args": True, "--hf_hub_log_args": True, "--wandb_log_samples": False, "--swanlab_log_samples": False}  # fmt: skip


def is_harness_command() -> bool:
    """Return whether this process is a command of lmms-eval, and not a program that calls it.

    Relies on: it is started as ``lmms-eval`` or ``python -m lmms_eval``.
    """
    main = sys.modules.get("__main__")
    module = getattr(getattr(main, "__spec__", None), "name", None) or ""
    return module.split(".")[0] == "lmms_eval" or Path(sys.argv[0] if sys.argv else "").name in (
        "lmms-eval",
        "lmms_eval",
    )


_score_checks: list[Callable[[], list[str]]] = []
_asked_for: list[str] = []  # tasks of ours that the command line names and that are not loaded yet


def add_score_check(check: Callable[[], list[str]]) -> None:
    """Let a function say, at the end of the process, which of our tasks have no score."""
    _score_checks.append(check)


def note_asked(tasks: Sequence[str]) -> None:
    """Note which tasks of ours the command line names, before the harness loads its model."""
    _asked_for[:] = tasks


def note_loaded() -> None:
    """Note that a task of ours was loaded: the functions of :func:`add_score_check` know of the scores from then on."""
    _asked_for.clear()


def tasks_without_scores() -> list[str]:
    """Return our tasks that this process was asked for and that have no score."""
    return [*_asked_for, *(task for check in _score_checks for task in check())]


def missing_scores_message(tasks: Sequence[str]) -> str:
    """Return a sentence about tasks of which a score is missing."""
    shown = shorten(tasks)
    return f"scores of {len(tasks)} task(s) are missing ({shown}); the reason is above."


def exit_status_of_missing_scores() -> None:
    """Make the exit status of a command of lmms-eval 1 if a score of ours is missing.

    Relies on: the command catches whatever its run raises, and would end with 0. Functions that are registered
    with atexit before this one do not run then; what matters of them is done here.
    """
    lacking = tasks_without_scores() if is_harness_command() else []
    if not lacking:
        return
    print(f"lmms_eval_emi: {missing_scores_message(lacking)} Exit status 1.", file=sys.stderr)
    with suppress(Exception):
        logging.shutdown()
        importlib.import_module("multiprocessing.util")._exit_function()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(1)


def model_manifests() -> list[Any]:
    """Return the manifest of ``llava_hf_bottleneck``, as lmms-eval's registry of models takes it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = f"{__package__}.bottleneck_model"
    return [
        ModelManifest(
            "llava_hf_bottleneck",
            simple_class_path=f"{module}.SimpleLlavaHfBottleneck",
            chat_class_path=f"{module}.ChatLlavaHfBottleneck",
        )
    ]


def is_main_process() -> bool:
    """Return whether this is rank 0 of the run, or its only process. Relies on: launchers set ``RANK``."""
    return os.environ.get("RANK", "0") == "0"


def run_command_line(arguments: Sequence[str], prepare: Callable[[Any], object]) -> None:
    """Run lmms-eval's own evaluation command in this process.

    Relies on: ``lmms_eval.__main__.cli_evaluate`` parses ``sys.argv`` and calls the module's ``cli_evaluate_single``
    for every configuration; it catches exceptions, prints them and continues, and would end with 0.

    Args:
        arguments: arguments of the command, as a shell would give them.
        prepare: called with the namespace of every configuration before it is run.

    Raises:
        RunError: the harness or its model raised an exception, whose traceback is printed.
        EMIError: ours are raised unchanged, and so are ``OSError`` and ``MemoryError``.
        SystemExit: wrong usage, or a run that was stopped before it began.
    """
    command: Any = importlib.import_module("lmms_eval.__main__")
    single, earlier = command.cli_evaluate_single, sys.argv

    def run(args: Any = None) -> Any:
        try:
            prepare(args)
            return single(args)
        except ConfigurationDone:
            return None, None
        except Exception as error:
            raise _Failed(error) from error

    parse = command.simple_parse_args_string
    command.simple_parse_args_string = _with_any_path(parse)
    command.cli_evaluate_single, sys.argv = run, ["lmms-eval", *arguments]
    try:
        command.cli_evaluate()
    except _Failed as failed:
        if isinstance(failed.error, EMIError | OSError | MemoryError):
            raise failed.error from None
        traceback.print_exception(failed.error)
        raise RunError(
            f"lmms-eval ended with {type(failed.error).__name__}: {failed.error}. The traceback is above; the same command goes on with what was generated."
        ) from failed.error
    finally:
        command.cli_evaluate_single, sys.argv = single, earlier
        command.simple_parse_args_string = parse


def check_arguments(arguments: Sequence[str]) -> None:
    """Check the arguments of lmms-eval's own command by its parser, before anything is written for them.

    Relies on: ``lmms_eval.__main__.parse_eval_args`` parses ``sys.argv``.

    Raises:
        SystemExit: wrong usage, as the parser has said.
    """
    command: Any = importlib.import_module("lmms_eval.__main__")
    parse, earlier = getattr(command, "parse_eval_args", None), sys.argv
    sys.argv = ["lmms-eval", *arguments]
    try:
        if parse is not None:
            parse()
    finally:
        sys.argv = earlier


class ConfigurationDone(BaseException):
    """Ends one configuration of a command without results; the next one begins."""


def _with_any_path(parse: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    """Return the harness's parser of ``a=b,c=d``, for an output path with any characters.

    Relies on: the harness appends ``output_path=`` to the arguments of its tracker, and takes them apart at commas.
    """

    def parse_all(text: str) -> dict[str, Any]:
        others, found, path = text.partition(",output_path=")
        return {**parse(others), **({"output_path": path} if found else {})}

    return parse_all


class _Failed(BaseException):
    """Carries an exception past the harness, which would swallow it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def without_options(arguments: Sequence[str], options: dict[str, bool]) -> list[str]:
    """Return the arguments of a command without some options, of which it is known whether they take a value."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in options:
            skip = options[argument]
        elif argument.partition("=")[0] not in options:
            kept.append(argument)
    return kept


def model_parts(args: Any) -> tuple[str, str, str, bool]:
    """Return model, its arguments, batch size and ``--force_simple`` of a command line. Relies on: the names of its options."""
    values = (getattr(args, name, None) for name in ("model", "model_args", "batch_size"))
    return *(str(value or "") for value in values), bool(getattr(args, "force_simple", False))  # type: ignore[return-value]


def decisive_arguments(args: Any) -> dict[str, str]:
    """Return the options of a command that its requests depend on. Relies on: the names of its options."""
    return {name: str(getattr(args, name, "")) for name in DECISIVE}


def without_cache_of_responses(args: Any) -> bool:
    """Turn ``--use_cache`` off, which a journal replaces; returns whether it was on.

    Relies on: the harness's cache calls a model on some ranks and not on others.
    """
    given = getattr(args, "use_cache", None) is not None
    args.use_cache = None
    return given


@contextmanager
def models_through(make: Callable[[type, Callable[[], Any]], Any]) -> Iterator[None]:
    """Let ``make`` create every model that the harness loads inside the block, from its class and the function that loads it.

    Relies on: ``simple_evaluate`` loads a model by ``lmms_eval.models.get_model(name, force_simple)`` and the class's
    ``create_from_arg_string``.
    """
    models: Any = importlib.import_module("lmms_eval.models")
    get_model = models.get_model

    def get(*args: Any, **kwargs: Any) -> Any:
        kind = get_model(*args, **kwargs)

        class Through:
            """Stands for the class while the model is made."""

            is_simple = getattr(kind, "is_simple", True)

            @staticmethod
            def create_from_arg_string(*own: Any, **options: Any) -> Any:
                return make(kind, lambda: kind.create_from_arg_string(*own, **options))

        return Through

    models.get_model = get
    try:
        yield
    finally:
        models.get_model = get_model


def stand_in(simple: bool, respond: Callable[[str, Sequence[Any]], list[Any]]) -> Any:
    """Return a model of the harness that answers by a function of method and requests, and loads nothing.

    Args:
        simple: whether it takes requests of simple models, or messages as chat models do.
        respond: gives the responses.
    """
    from lmms_eval.api.model import lmms

    class StandIn(lmms):  # type: ignore[misc]
        is_simple = simple
        device = "cpu"

        def generate_until(self, requests: Any) -> list[Any]:
            return respond("generate_until", requests)

        def loglikelihood(self, requests: Any) -> list[Any]:
            return respond("loglikelihood", requests)

        def generate_until_multi_round(self, requests: Any) -> list[Any]:
            return respond("generate_until_multi_round", requests)

        def generate_visual_cot(self, requests: Any) -> list[Any]:
            return respond("generate_visual_cot", requests)

    model = StandIn()
    if ranks() > 1:
        from accelerate import Accelerator

        model.device = Accelerator().device  # device of the tensors that ranks gather
    return model


@contextmanager
def requests_through(change: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    """Pass the requests of each task that is built inside the block through ``change``.

    Relies on: ``Task.build_all_requests`` sets ``_instances``; documents without requests are skipped when scored.
    """
    from lmms_eval.api.task import Task

    build = Task.build_all_requests

    @functools.wraps(build)
    def build_some(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self._instances = change(list(self._instances))

    Task.build_all_requests = build_some
    try:
        yield
    finally:
        Task.build_all_requests = build


def is_budget_exceeded() -> bool:
    """Return whether ``--max_tokens`` is used up, after which models return placeholders. Relies on: the harness's count of tokens."""
    try:
        from lmms_eval.models.model_utils.usage_metrics import is_budget_exceeded as exceeded
    except ImportError:
        return False
    return bool(exceeded())


def answers_by_place(lm: Any) -> bool:
    """Return whether a model's response depends on the document's index, as with a model that replays a log."""
    return type(lm).__module__.rpartition(".")[2] == "from_log"


def repeats(instance: Any) -> int:
    """Return how often a request is repeated. Relies on: evaluate() passes the repetitions on one after another."""
    return max(1, int(instance.repeats or 1))


def is_padding(instance: Any) -> bool:
    """Return whether a request only gives ranks the same number of them. Relies on: the mark in its metadata."""
    return bool((getattr(instance, "metadata", None) or {}).get("__padding_only__"))


def ranks_step_together(lm: Any) -> bool:
    """Return whether ranks share the parts of one model, so that each must make every forward pass.

    Relies on: accelerate's ``distributed_type`` of the model, and what models with ranks of their own call their number.
    """
    if ranks() == 1:
        return False
    kind = str(getattr(getattr(lm, "accelerator", None), "distributed_type", ""))
    counts = (getattr(lm, name, 1) for name in PARALLEL_SIZES)
    return any(name in kind for name in ("FSDP", "DEEPSPEED", "MEGATRON")) or any(
        isinstance(count, int) and count > 1 for count in counts
    )


def rank() -> int:
    """Return the number of this process. Relies on: launchers set ``RANK``."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """Return how many processes there are. Relies on: launchers set ``WORLD_SIZE``."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def gather(value: Any) -> list[Any]:
    """Return a value of each rank, by rank. Every rank must call it."""
    import torch.distributed as dist

    if ranks() == 1 or not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def any_rank(value: bool) -> bool:
    """Return whether it holds on any rank. Every rank must call it."""
    return any(gather(value))


@contextmanager
def quiet_bars(lm: Any) -> Iterator[None]:
    """Keep a model's own progress bars away, of which there would be one for every block.

    Relies on: modules of models import ``tqdm`` by that name.
    """
    from tqdm import tqdm

    class Quiet(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    modules = [sys.modules.get(base.__module__) for base in type(lm).__mro__ if base is not object]
    patched = [module for module in modules if isinstance(getattr(module, "tqdm", None), type)]
    earlier = [module.tqdm for module in patched]  # type: ignore[union-attr]
    for module in patched:
        module.tqdm = Quiet  # type: ignore[union-attr]
    try:
        yield
    finally:
        for module, bar in zip(patched, earlier, strict=True):
            module.tqdm = bar  # type: ignore[union-attr]


def response_to_plain(response: Any) -> dict[str, Any] | None:
    """Return a response of one of the harness's own types as JSON, or ``None`` for other types.

    Relies on: ``GenerationResult`` has ``text`` and ``token_counts``, which has counts of input, output and reasoning.
    """
    from lmms_eval.api.instance import GenerationResult

    if not isinstance(response, GenerationResult):
        return None
    counts = response.token_counts
    return {"generation": [response.text, None if counts is None else counts.to_dict()]}


def response_from_plain(kind: str, content: Any) -> Any:
    """Return the response from its JSON form; the inverse of :func:`response_to_plain`."""
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    if kind != "generation":
        raise InputError(f"expected a response that this version knows, got one of the kind {kind!r}.")
    text, counts = content
    return GenerationResult(text, None if counts is None else TokenCounts(**counts))


def command_line(tasks: str, include_path: Path | str | None = None) -> str:
    """Return the command that runs some tasks, for messages and cards."""
    include = f" --include_path {include_path}" if include_path else ""
    return f"lmms-eval{include} --tasks {tasks} --model ..."


def command_of(
    model: str, model_args: str, tasks: str, output: Path, processes: int, limit: int | None = None
) -> tuple[dict[str, str], list[str]]:
    """Return the variables and command of a run on the CPU. Relies on: the harness's options, and torchrun for several ranks."""
    arguments = [
        *("--model", model, "--model_args", model_args),
        *("--device", "cpu", "--tasks", tasks, "--output_path", str(output), "--log_samples"),
        *(() if limit is None else ("--limit", str(limit))),
    ]
    if processes == 1:
        return {}, ["lmms-eval", *arguments]
    variables = {"ACCELERATE_USE_CPU": "true"}
    return variables, ["torchrun", "--nproc_per_node", str(processes), "-m", "lmms_eval", *arguments]


def as_module(command: list[str]) -> list[str]:
    """Return a command of :func:`command_of` through this interpreter, for the commands' folder may not be on the path."""
    modules = {"lmms-eval": ["-m", "lmms_eval"], "torchrun": ["-m", "torch.distributed.run"]}
    return [sys.executable, *modules[command[0]], *command[1:]]
