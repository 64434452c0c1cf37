"""Everything that this package assumes about lmms-eval. Nothing else imports, patches or inspects it.

Each function says what it relies on (measured on 0.7.3). ``tests/harness/test_contract.py`` has a test
for each, whose failure says what moved upstream.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

from lmms_eval_emi.errors import InputError

log = logging.getLogger("lmms_eval_emi")

# Relies on: the results file and the table take this text for a value that there is none of, as the harness
# itself does for a missing standard error. None breaks its group means, NaN its results file.
NO_SCORE = "N/A"

# Relies on: Stderr_CLT is std(score) / sqrt(n) over items that are dicts with this key, and Stderr_Clustered
# adds the cross terms of items with the same value under the task's cluster_key.
SCORE_KEY, CLUSTER_KEY = "score", "row"

# Relies on: GroupConfig of upstream pull request 1528 has this field, and calls it with keywords.
GROUP_HOOK = "postprocess_results"
OURS = "emi_studies"  # in the metadata of our group files


def tasks_folder() -> Path:
    """The folder of the installed task files, for ``--include_path``."""
    return Path(str(resources.files("lmms_eval_emi.tasks")))


def remedy() -> str:
    """What to type where lmms-eval does not find our tasks by itself."""
    return f"Pass the folder of the tasks yourself: lmms-eval --include_path {tasks_folder()} ..."


# Task index


def add_tasks_to_index() -> None:
    """Make every task index that is built from now on hold our tasks.

    Relies on: ``TaskManager.initialize_tasks`` builds the index, and has the parameters ``include_path``
    (a path, a list of paths or ``None``) and ``include_defaults``. Whatever else it is called with is
    passed through. If anything of ours fails, the original is called as if we were not there.
    """
    from lmms_eval.tasks import TaskManager

    build_index = TaskManager.initialize_tasks
    if hasattr(build_index, "adds_lmms_eval_emi"):
        return
    TaskManager.initialize_tasks = with_our_tasks(build_index)


def with_our_tasks(build_index: Callable) -> Callable:
    """``TaskManager.initialize_tasks`` with our folder among its include paths."""

    @functools.wraps(build_index)
    def initialize_tasks(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = inspect.signature(build_index).bind(*args, **kwargs)
            bound.apply_defaults()
            if not bound.arguments["include_defaults"]:
                return build_index(*args, **kwargs)
            given = bound.arguments["include_path"]
            paths = [given] if isinstance(given, str | os.PathLike) else list(given or [])
            bound.arguments["include_path"] = [*map(str, paths), str(tasks_folder())]
            return build_index(*bound.args, **bound.kwargs)
        except Exception as error:
            problem = error
        index = build_index(*args, **kwargs)  # raises whatever is not our fault
        warnings.warn(
            f"lmms_eval_emi cannot add its tasks to this lmms-eval ({type(problem).__name__}: {problem}). {remedy()}",
            stacklevel=2,
        )
        return index

    initialize_tasks.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
    return initialize_tasks


def check_before_the_model() -> None:
    """Let a run that asks for our tasks be checked before its model is loaded, which may take minutes.

    Relies on: the command line calls ``TaskManager.match_tasks`` before ``simple_evaluate``, which loads the model before
    any task; the local ``args`` of its caller is the command line's namespace; ``task_index`` has the file of each name.
    """
    from lmms_eval.tasks import TaskManager

    match = TaskManager.match_tasks
    if hasattr(match, "adds_lmms_eval_emi"):
        return

    @functools.wraps(match)
    def checked(manager: Any, *args: Any, **kwargs: Any) -> Any:
        names = match(manager, *args, **kwargs)
        paths = [str(manager.task_index.get(name, {}).get("yaml_path", "")) for name in names]
        ours = [path for path in paths if path.startswith(str(tasks_folder()))]
        caller = inspect.currentframe()
        given = caller.f_back.f_locals.get("args") if caller and caller.f_back else None
        if ours and given is not None:
            importlib.import_module("lmms_eval_emi.harness.lmms_eval.preflight").check(
                ours, str(getattr(given, "model", ""))
            )
        return names

    checked.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
    TaskManager.match_tasks = checked


def share_datasets() -> None:
    """Let our tasks, most of which are splits of one dataset, load it once and not once each with all of its splits.

    Relies on: ``ConfigurableTask.download`` calls ``datasets.load_dataset`` by keywords, and of what it returns a
    task uses its ``test_split``. Tasks of others are left as they are: ours are told by their metadata.
    """
    from lmms_eval.api.task import ConfigurableTask

    download = ConfigurableTask.download
    if hasattr(download, "adds_lmms_eval_emi"):
        return

    @functools.wraps(download)
    def shared(task: Any, *args: Any, **kwargs: Any) -> Any:
        config = task.config
        ours = isinstance(config.metadata, dict) and "emi_study" in config.metadata
        others = (config.training_split, config.validation_split, config.fewshot_split)
        if not (ours and config.test_split and not any(others)):
            return download(task, *args, **kwargs)
        start = time.perf_counter()
        try:
            with _loading_once(config.test_split):
                return download(task, *args, **kwargs)
        finally:
            _loading_time.append(time.perf_counter() - start)

    shared.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
    ConfigurableTask.download = shared


@contextmanager
def _loading_once(split: str) -> Iterator[None]:
    """Inside the block ``datasets.load_dataset`` gives one split of what it loaded for the same arguments before."""
    import datasets

    load = datasets.load_dataset

    def load_once(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted((name, _described(value)) for name, value in kwargs.items())))
        if key not in _loaded:
            _loaded[key] = load(*args, **kwargs)
        found = _loaded[key]
        whole = isinstance(found, datasets.DatasetDict) and split in found
        return datasets.DatasetDict({split: found[split]}) if whole else found

    datasets.load_dataset = load_once
    try:
        yield
    finally:
        datasets.load_dataset = load


def take_loading_time() -> float:
    """Seconds that datasets of our tasks took to load since this was asked last."""
    seconds = sum(_loading_time)
    _loading_time.clear()
    return seconds


_loaded: dict[str, Any] = {}
_loading_time: list[float] = []


def _described(value: Any) -> str:
    """An argument by its content, where its text names only its place in memory."""
    return repr(vars(value)) if hasattr(value, "__dict__") else repr(value)


def add_group_hook() -> bool:
    """Where lmms-eval has a group hook (upstream pull request 1528), let our groups use it.

    Relies on: ``GroupConfig`` is a dataclass whose ``__post_init__`` runs for every group. Groups of others
    are left as they are: ours are told by their metadata.

    Returns:
        Whether this lmms-eval has the hook.
    """
    from lmms_eval.api.group import GroupConfig

    if GROUP_HOOK not in getattr(GroupConfig, "__dataclass_fields__", {}):
        return False
    complete = GroupConfig.__post_init__
    if not hasattr(complete, "adds_lmms_eval_emi"):

        @functools.wraps(complete)
        def post_init(self: Any) -> None:
            metadata = getattr(self, "metadata", None)
            if isinstance(metadata, dict) and OURS in metadata and not getattr(self, GROUP_HOOK, None):
                setattr(self, GROUP_HOOK, functools.partial(_postprocess_group, metadata[OURS]))
            complete(self)

        post_init.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
        GroupConfig.__post_init__ = post_init
    return True


def _postprocess_group(described: dict[str, Any], *args: Any, **context: Any) -> Any:
    """Our hook, imported when it is called: every lmms-eval command with this package installed comes by here."""
    hooks = importlib.import_module("lmms_eval_emi.harness.lmms_eval.hooks")
    return hooks.postprocess_group(described, *args, **context)


def task_names() -> frozenset[str]:
    """Names of all tasks and groups that lmms-eval has, ours included.

    Relies on: ``TaskManager().all_tasks``; and that its log goes through loguru under its own name.
    """
    from lmms_eval.tasks import TaskManager
    from loguru import logger as harness_logger

    add_tasks_to_index()
    harness_logger.disable("lmms_eval")  # it tells of every file that is not a task
    try:
        return frozenset(TaskManager().all_tasks)
    finally:
        harness_logger.enable("lmms_eval")


def task_index(include_path: Path | None = None) -> dict[str, dict[str, Any]]:
    """What lmms-eval knows of every task, group and tag, ours included, by name.

    Relies on: ``TaskManager.task_index`` has ``type``, ``yaml_path``, and for tags the members under ``task``.
    """
    from lmms_eval.tasks import TaskManager
    from loguru import logger as harness_logger

    add_tasks_to_index()
    harness_logger.disable("lmms_eval")  # it tells of every file that is not a task
    try:
        return TaskManager(include_path=str(include_path) if include_path else None).task_index
    finally:
        harness_logger.enable("lmms_eval")


def task_config(path: Path, *, functions: bool) -> Mapping[str, Any]:
    """The fields of a task file and of those that it includes, with their functions loaded or left out.

    Relies on: ``utils.load_yaml_config(path, mode)`` follows ``include``, and resolves functions beside each file.
    """
    from lmms_eval.utils import load_yaml_config

    return load_yaml_config(str(path)) if functions else load_yaml_config(str(path), mode="simple")


def fill_template(template: str, row: Mapping[str, Any]) -> str:
    """A prompt's template filled in. Relies on: ``utils.apply_template(template, row)``."""
    from lmms_eval.utils import apply_template

    return str(apply_template(template, dict(row)))


def broken_entry_points() -> dict[str, str]:
    """Plugins of lmms-eval that cannot be loaded, with the reason.

    Relies on: lmms-eval 0.7.3 loads the entry-point group ``lmms_eval.models`` in one ``try``, so that one
    broken plugin before ours keeps ours from being loaded.
    """
    from importlib.metadata import entry_points

    broken = {}
    for entry in entry_points(group="lmms_eval.models"):
        try:
            entry.load()
        except Exception as error:
            broken[entry.name] = f"{type(error).__name__}: {error}"
    return broken


# The task that calls a hook


@dataclass(frozen=True)
class CallingTask:
    """The task whose hook is being called, and the call of ``simple_evaluate`` that loaded it."""

    name: str
    task: Any
    evaluation: int  # tells one call of simple_evaluate from another; 0 outside of any


def calling_task() -> CallingTask | None:
    """The task that calls the hook that calls this function, or ``None`` if lmms-eval calls hooks in another way.

    Relies on: hooks are called from methods of ``lmms_eval.api.task.Task``, whose ``self.config.task`` is
    the task's name; and tasks are loaded below a function called ``simple_evaluate``.
    """
    found: tuple[str, Any] | None = None
    evaluation = 0
    for frame in _callers():
        if found is None:
            owner = frame.f_locals.get("self")
            name = getattr(getattr(owner, "config", None), "task", None)
            if isinstance(name, str) and any(
                base.__module__.startswith("lmms_eval.") and base.__name__ == "Task" for base in type(owner).__mro__
            ):
                found = (name, owner)
        if frame.f_code.co_name == "simple_evaluate":
            evaluation = id(frame)
            break
    return CallingTask(*found, evaluation) if found else None


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def only_generates(task: Any) -> bool:
    """Whether a task's metrics were replaced, as ``--predict_only`` does. Relies on: ``override_metric("bypass")``."""
    return "bypass" in (getattr(task, "_metric_fn_list", None) or {})


def arguments_of(task: Any) -> Any:
    """The command line's namespace, as far as a task has it. Relies on: ``evaluate`` sets ``task.args``."""
    return getattr(task, "args", None)


def arguments_of_evaluation() -> Any:
    """The command line's namespace of the evaluation that calls this. Relies on: ``simple_evaluate`` has ``cli_args``."""
    for frame in _callers():
        if frame.f_code.co_name == "simple_evaluate":
            return frame.f_locals.get("cli_args")
    return None


def is_harness_command() -> bool:
    """Whether this process is a command of lmms-eval, and not a program that calls it.

    Relies on: it is started as ``lmms-eval`` or ``python -m lmms_eval``.
    """
    main = sys.modules.get("__main__")
    module = getattr(getattr(main, "__spec__", None), "name", None) or ""
    return module.split(".")[0] == "lmms_eval" or Path(sys.argv[0] if sys.argv else "").name in (
        "lmms-eval",
        "lmms_eval",
    )


def lacking_scores() -> list[str]:
    """Tasks of ours in this process of which a score is missing; none where none was loaded."""
    run = sys.modules.get("lmms_eval_emi.harness.lmms_eval.run")
    return run.lacking_scores() if run is not None else []


def say_lacking(tasks: Sequence[str]) -> str:
    """A sentence about tasks of which a score is missing."""
    shown = ", ".join(tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")
    return f"scores of {len(tasks)} task(s) are missing ({shown}); the reason is above."


def exit_status_of_missing_scores() -> None:
    """At the end of a command of lmms-eval, make its exit status 1 where a score of ours is missing.

    Relies on: the command catches whatever its run raises, and would end with 0. Functions that are registered
    with atexit before this one do not run then; what matters of them is done here.
    """
    lacking = lacking_scores() if is_harness_command() else []
    if not lacking:
        return
    print(f"lmms_eval_emi: {say_lacking(lacking)} Exit status 1.", file=sys.stderr)
    with suppress(Exception):
        logging.shutdown()
        importlib.import_module("multiprocessing.util")._exit_function()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(1)


def is_main_process() -> bool:
    """Whether this is rank 0 of the run, or its only process. Relies on: launchers set ``RANK``."""
    return os.environ.get("RANK", "0") == "0"


# The command line and the models of a run

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


def run_command_line(arguments: Sequence[str], prepare: Callable[[Any], object]) -> None:
    """Run lmms-eval's own evaluation command in this process.

    Relies on: ``lmms_eval.__main__.cli_evaluate`` parses ``sys.argv`` and calls the module's ``cli_evaluate_single``
    for every configuration; it catches exceptions, prints them and goes on, and would end with 0.

    Args:
        arguments: of the command, as a shell would give them.
        prepare: called with the namespace of every configuration before it is run.

    Raises:
        Exception: whatever the run raises.
        SystemExit: wrong usage, or a run that was stopped before it began.
    """
    command: Any = importlib.import_module("lmms_eval.__main__")
    single, earlier = command.cli_evaluate_single, sys.argv

    def run(args: Any = None) -> Any:
        try:
            prepare(args)
            return single(args)
        except Exception as error:
            raise _Failed(error) from error

    command.cli_evaluate_single, sys.argv = run, ["lmms-eval", *arguments]
    try:
        command.cli_evaluate()
    except _Failed as failed:
        raise failed.error from None
    finally:
        command.cli_evaluate_single, sys.argv = single, earlier


class _Failed(BaseException):
    """Carries an exception past the harness, which would swallow it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def without_options(arguments: Sequence[str], options: dict[str, bool]) -> list[str]:
    """The arguments of a command without some options, of which it is known whether they take a value."""
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
    """Model, its arguments, batch size and ``--force_simple`` of a command line. Relies on: the names of its options."""
    values = (getattr(args, name, None) for name in ("model", "model_args", "batch_size"))
    return *(str(value or "") for value in values), bool(getattr(args, "force_simple", False))  # type: ignore[return-value]


# What decides the requests of a command, by the harness's names.
DECISIVE = (
    *("tasks", "include_path", "limit", "offset", "num_fewshot", "gen_kwargs", "seed", "repeats", "force_simple"),
    *("system_instruction", "apply_chat_template", "fewshot_as_multiturn"),
)
# Options of a run that send its results somewhere, and whether they take a value.
SENDING = {"--wandb_args": True, "--swanlab_args": True, "--hf_hub_log_args": True, "--wandb_log_samples": False, "--swanlab_log_samples": False}  # fmt: skip


def decisive_arguments(args: Any) -> dict[str, str]:
    """What decides the requests of a command. Relies on: the names of its options."""
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
    """Let every model that the harness loads meanwhile be made by ``make``, which gets its class and what loads it.

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
    """A model of the harness that answers by a function of method and requests, and loads nothing.

    Args:
        simple: whether it takes requests of simple models, or messages as chat models do.
        respond: gives the responses.
    """
    from lmms_eval.api.model import lmms

    class StandIn(lmms):
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

        model.device = Accelerator().device  # whose tensors the ranks can gather
    return model


@contextmanager
def requests_through(change: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    """Let the requests of every task that is built meanwhile go through ``change``.

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
    """Whether ``--max_tokens`` is used up, after which models return placeholders. Relies on: the harness's count of tokens."""
    try:
        from lmms_eval.models.model_utils.usage_metrics import is_budget_exceeded as exceeded
    except ImportError:
        return False
    return bool(exceeded())


def answers_by_place(lm: Any) -> bool:
    """Whether a model's response depends on which document it is, as that of one that reads a log does."""
    return type(lm).__module__.rpartition(".")[2] == "from_log"


def repeats(instance: Any) -> int:
    """How often a request is asked. Relies on: evaluate() hands it on so many times in a row."""
    return max(1, int(instance.repeats or 1))


def is_call_of_one_round() -> bool:
    """Whether a model is asked for one round of a document that takes several, which every rank does in its own number.

    Relies on: ``_run_generate_until_agentic`` calls the model itself, request by request.
    """
    return any(frame.f_code.co_name == "_run_generate_until_agentic" for frame in _callers())


def is_padding(instance: Any) -> bool:
    """Whether a request only gives ranks the same number of them. Relies on: the mark in its metadata."""
    return bool((getattr(instance, "metadata", None) or {}).get("__padding_only__"))


def ranks_step_together(lm: Any) -> bool:
    """Whether ranks share the parts of one model, so that each must make every forward pass.

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
    """Number of this process. Relies on: launchers set ``RANK``."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many processes there are. Relies on: launchers set ``WORLD_SIZE``."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def gather(value: Any) -> list[Any]:
    """A value of every rank, by rank. Every rank must call it."""
    import torch.distributed as dist

    if ranks() == 1 or not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def any_rank(value: bool) -> bool:
    """Whether it holds on any rank. Every rank must call it."""
    return any(gather(value))


@contextmanager
def quiet_bars(lm: Any) -> Iterator[None]:
    """Keep a model's own progress bars away, of which there would be one for every block.

    Relies on: modules of models import ``tqdm`` by that name.
    """
    from tqdm import tqdm

    class Quiet(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    modules = [sys.modules.get(base.__module__) for base in type(lm).__mro__ if base is not object]
    own = [module for module in modules if isinstance(getattr(module, "tqdm", None), type)]
    earlier = [module.tqdm for module in own]  # type: ignore[union-attr]
    for module in own:
        module.tqdm = Quiet  # type: ignore[union-attr]
    try:
        yield
    finally:
        for module, bar in zip(own, earlier, strict=True):
            module.tqdm = bar  # type: ignore[union-attr]


def response_to_plain(response: Any) -> dict[str, Any] | None:
    """A response of one of the harness's own types as JSON, or ``None`` for other types.

    Relies on: ``GenerationResult`` has ``text`` and ``token_counts``, which has counts of input, output and reasoning.
    """
    from lmms_eval.api.instance import GenerationResult

    if not isinstance(response, GenerationResult):
        return None
    counts = response.token_counts
    return {"generation": [response.text, None if counts is None else counts.to_dict()]}


def response_from_plain(kind: str, content: Any) -> Any:
    """The response that :func:`response_to_plain` made plain."""
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    if kind != "generation":
        raise InputError(f"expected a response that this version knows, got one of the kind {kind!r}.")
    text, counts = content
    return GenerationResult(text, None if counts is None else TokenCounts(**counts))


def harness_version() -> str:
    """Version of the installed lmms-eval."""
    from importlib.metadata import version

    return version("lmms_eval")


# Files of a run


def samples_name(time: str, task: str) -> str:
    """What the samples file of a task is called. Relies on: ``EvaluationTracker.save_results_samples``."""
    return f"{time}_samples_{task}.jsonl"


def is_file_of_a_run(name: str) -> bool:
    """Whether a file is named as the harness names results and samples: with a time stamp first."""
    return re.fullmatch(r"\d{8}_\d{6}_(results\.json|samples_.+\.jsonl)", name) is not None


def parse_samples_name(name: str) -> str | None:
    """The task of a samples file, or ``None`` if that is not the name of one."""
    match = re.fullmatch(r".+?_samples_(?P<task>.+)\.jsonl", name)
    return match["task"] if match else None


def output_path(args: Any) -> Path | None:
    """The ``--output_path`` of a run. Relies on: aggregations are given the command line's namespace."""
    path = getattr(args, "output_path", None)
    return Path(path) if isinstance(path, str | os.PathLike) and str(path) else None


def model_name(args: Any) -> str:
    """The model's name as the harness has it; never raises.

    Relies on: ``GeneralConfigTracker._get_model_name`` takes it from the model arguments.
    """
    arguments = str(getattr(args, "model_args", None) or "")
    try:
        from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker

        found = GeneralConfigTracker._get_model_name(arguments)
    except Exception as error:
        log.debug("the model's name is taken from its arguments: %s", error)
        match = re.search(r"(?:^|,)(?:pretrained|model|model_name|path)=([^,]+)", arguments)
        found = match[1] if match else ""
    return str(found or getattr(args, "model", None) or "model")


def run_folder(args: Any) -> str:
    """The folder that the harness makes for a model below ``--output_path``.

    Relies on: ``lmms_eval.utils.sanitize_model_name`` of what ``GeneralConfigTracker`` takes for the name.
    """
    from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker
    from lmms_eval.utils import sanitize_model_name

    arguments = str(getattr(args, "model_args", None) or "")
    return str(sanitize_model_name(GeneralConfigTracker._get_model_name(arguments)))


def run_stamp(args: Any) -> str:
    """The time stamp that the harness gives this run's files.

    Relies on: ``simple_evaluate`` has it in its variable ``datetime_str``, and the files have ``-`` for its
    colons. Elsewhere a stamp of the same form is made.
    """
    from lmms_eval.utils import get_datetime_str

    for frame in _callers():
        if frame.f_code.co_name == "simple_evaluate" and isinstance(frame.f_locals.get("datetime_str"), str):
            return str(frame.f_locals["datetime_str"]).replace(":", "-")
    return str(get_datetime_str(timezone=getattr(args, "timezone", None) or "Asia/Singapore")).replace(":", "-")


# Command lines


def command_line(tasks: str, include_path: Path | str | None = None) -> str:
    """The command that runs some tasks, for messages and cards."""
    include = f" --include_path {include_path}" if include_path else ""
    return f"lmms-eval{include} --tasks {tasks} --model ..."


def command_of(
    model: str, model_args: str, tasks: str, output: Path, processes: int
) -> tuple[dict[str, str], list[str]]:
    """Variables and command of a run on the CPU. Relies on: the harness's options, and torchrun for several ranks."""
    arguments = [
        *("--model", model, "--model_args", model_args),
        *("--device", "cpu", "--tasks", tasks, "--output_path", str(output), "--log_samples"),
    ]
    if processes == 1:
        return {}, ["lmms-eval", *arguments]
    variables = {"ACCELERATE_USE_CPU": "true"}
    return variables, ["torchrun", "--nproc_per_node", str(processes), "-m", "lmms_eval", *arguments]


def as_module(command: list[str]) -> list[str]:
    """A command of :func:`command_of` through this interpreter, for the commands' folder may not be on the path."""
    modules = {"lmms-eval": ["-m", "lmms_eval"], "torchrun": ["-m", "torch.distributed.run"]}
    return [sys.executable, *modules[command[0]], *command[1:]]
