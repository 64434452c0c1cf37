"""Access to lmms-eval's task index, datasets of tasks, plugins, and fields of task files."""

from __future__ import annotations

import functools
import inspect
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from lmms_eval_emi.harness.lmms_eval.compat import launch

# Relies on: the results file and the table take this text for a value that there is none of, as the harness
# itself does for a missing standard error. None breaks its group means, NaN its results file.
NO_SCORE = "N/A"
# Relies on: Stderr_CLT is std(score) / sqrt(n) over items that are dicts with this key, and Stderr_Clustered
# adds the cross terms of items with the same value under the task's cluster_key.
SCORE_KEY, CLUSTER_KEY = "score", "row"
# Relies on: GroupConfig of upstream pull request 1528 has this field, and calls it with keywords.
GROUP_HOOK = "postprocess_results"
OURS = "emi_studies"  # key in the metadata of our group files
loaded_splits: dict[str, Any] = {}
_loading_time: list[float] = []


def tasks_folder() -> Path:
    """Return the folder of the installed task files, for ``--include_path``."""
    return Path(str(resources.files("lmms_eval_emi.tasks")))


def remedy() -> str:
    """Return the command for an installation in which lmms-eval does not find our tasks."""
    return f"Pass the folder of the tasks yourself: lmms-eval --include_path {tasks_folder()} ..."


def add_tasks_to_index() -> None:
    """Add our tasks to every task index built later.

    Relies on: ``TaskManager.initialize_tasks`` builds the index, and has the parameters ``include_path``
    (a path, a list of paths or ``None``) and ``include_defaults``. Whatever else it is called with is
    passed through. If our code fails, the original is called with the same arguments.
    """
    from lmms_eval.tasks import TaskManager

    build_index = TaskManager.initialize_tasks
    if hasattr(build_index, "adds_lmms_eval_emi"):
        return
    TaskManager.initialize_tasks = with_our_tasks(build_index)


def with_our_tasks(build_index: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``TaskManager.initialize_tasks`` so that our folder is among its include paths."""

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


def check_before_the_model(check: Callable[[Sequence[str], str], object]) -> None:
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
        paths = {name: str(manager.task_index.get(name, {}).get("yaml_path", "")) for name in names}
        ours = {name: path for name, path in paths.items() if path.startswith(str(tasks_folder()))}
        caller = inspect.currentframe()
        given = caller.f_back.f_locals.get("args") if caller and caller.f_back else None
        if ours and given is not None:
            launch.note_asked(list(ours))
            check(list(ours.values()), str(getattr(given, "model", "")))
        return names

    checked.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
    TaskManager.match_tasks = checked


def share_datasets() -> None:
    """Load each dataset once for all of our tasks, most of which are splits of the same dataset.

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
        with _loading_once(config.test_split):
            return download(task, *args, **kwargs)

    shared.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
    ConfigurableTask.download = shared


@contextmanager
def _loading_once(split: str) -> Iterator[None]:
    """Let ``datasets.load_dataset`` reuse, inside the block, what it loaded for the same arguments."""
    import datasets

    from lmms_eval_emi.data.rows import other_cache

    load = datasets.load_dataset

    def load_once(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted((name, _described(value)) for name, value in kwargs.items())))
        if key not in loaded_splits:
            given = kwargs.get("cache_dir")  # the harness names one
            if not (given and os.access(given, os.W_OK)) and (cache := other_cache()):
                kwargs["cache_dir"] = str(cache)  # the cache of datasets is read-only
            start = time.perf_counter()
            try:
                loaded_splits[key] = load(*args, **kwargs)
            finally:
                _loading_time.append(time.perf_counter() - start)
        found = loaded_splits[key]
        whole = isinstance(found, datasets.DatasetDict) and split in found
        return datasets.DatasetDict({split: found[split]}) if whole else found

    datasets.load_dataset = load_once
    try:
        yield
    finally:
        datasets.load_dataset = load


def take_loading_time() -> float:
    """Return the seconds that datasets of our tasks took to load since this was asked last."""
    seconds = sum(_loading_time)
    _loading_time.clear()
    return seconds


def _described(value: Any) -> str:
    """Return an argument by its content, where its text names only its place in memory."""
    return repr(vars(value)) if hasattr(value, "__dict__") else repr(value)


def add_group_hook(postprocess: Callable[..., Any]) -> bool:
    """Let our groups use lmms-eval's group hook (upstream pull request 1528) if it has one.

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
                setattr(self, GROUP_HOOK, functools.partial(postprocess, metadata[OURS]))
            complete(self)

        post_init.adds_lmms_eval_emi = True  # type: ignore[attr-defined]
        GroupConfig.__post_init__ = post_init
    return True


@functools.lru_cache(maxsize=1)
def task_names() -> frozenset[str]:
    """Return names of all tasks and groups that lmms-eval has, ours included; they are read once, which takes seconds."""
    return frozenset(task_index())


def task_index(include_path: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return lmms-eval's index entry of each task, group and tag, ours included, by name.

    Relies on: ``TaskManager.task_index`` has ``type``, ``yaml_path``, and for tags the members under ``task``; its log
    goes through loguru under its own name.
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
    """Return the fields of a task file and of those that it includes, with their functions loaded or left out.

    Relies on: ``utils.load_yaml_config(path, mode)`` follows ``include``, and resolves functions beside each file.
    """
    from lmms_eval.utils import load_yaml_config

    return load_yaml_config(str(path)) if functions else load_yaml_config(str(path), mode="simple")


def fill_template(template: str, row: Mapping[str, Any]) -> str:
    """Return a prompt's template filled in. Relies on: ``utils.apply_template(template, row)``."""
    from lmms_eval.utils import apply_template

    return str(apply_template(template, dict(row)))


def broken_entry_points() -> dict[str, str]:
    """Return the plugins of lmms-eval that cannot be loaded, with the reason.

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
