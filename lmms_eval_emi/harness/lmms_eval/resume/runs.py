"""Runs of lmms-eval that lose nothing: started, resumed, looked at and recovered.

A run's folder is its ``--output_path``. Its ``journal/`` has a manifest with the command, and the responses of each rank.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmms_eval_emi.data.responses.lmms_eval import parse_samples_name, samples_name
from lmms_eval_emi.errors import RunError
from lmms_eval_emi.harness.heartbeat import Heartbeat
from lmms_eval_emi.harness.lmms_eval.compat import evaluation, launch
from lmms_eval_emi.harness.lmms_eval.resume.journaled_model import Blocks, answers_of, from_plain, identity, text_of
from lmms_eval_emi.harness.lmms_eval.resume.request_content import Contents
from lmms_eval_emi.harness.lmms_eval.run import without_partial_responses
from lmms_eval_emi.harness.signals import Stopped, stop_signals
from lmms_eval_emi.settings import PREFIX
from lmms_eval_emi.util.files import check_folder_writable, visible_files
from lmms_eval_emi.util.journal import (
    FOLDER,
    MANIFEST,
    Answers,
    Journal,
    JournalContents,
    Request,
    read_journal,
    read_manifest,
    write_manifest,
)
from lmms_eval_emi.util.printing import HIDDEN, one_line, redact, redact_arguments
from lmms_eval_emi.version import __version__

log = logging.getLogger("lmms_eval_emi")

PROGRAM = "lmms-eval-emi"


@dataclass(frozen=True)
class RunOptions:
    """Options of a run."""

    folder: Path  # folder of the run, its ``--output_path``
    arguments: tuple[str, ...]  # arguments of lmms-eval's own command
    save_every: int = 32  # requests of a block
    share: bool = True  # whether requests of one content are asked once
    retry_empty: bool = False  # whether requests are asked again whose response is empty

    @property
    def own_arguments(self) -> list[str]:
        """The arguments of ``lmms-eval-emi run``, without secrets."""
        arguments = [] if self.save_every == RunOptions.save_every else ["--save-every", str(self.save_every)]
        arguments += [] if self.share else ["--no-share"]
        arguments += ["--retry-empty"] if self.retry_empty else []
        return [*redact_arguments(self.arguments), *arguments]

    @property
    def command(self) -> str:
        """The command that continues with the run."""
        count, here = launch.ranks(), int(os.environ.get("LOCAL_WORLD_SIZE", launch.ranks()))
        launcher = PROGRAM if count == 1 else f"accelerate launch --num_processes {count} -m lmms_eval_emi"
        if here != count or (count > 1 and "SLURM_STEP_ID" in os.environ):  # several machines, or another launcher
            launcher = "<your launcher> python -m lmms_eval_emi"
        return f"{launcher} run {shlex.join(self.own_arguments)}"


@dataclass(frozen=True)
class TaskState:
    """Progress of a task."""

    task: str  # its name
    requests: int  # how many it has
    answered: int  # how many the journal answers
    shared: int = 0  # how many of the others get the response of another request

    @property
    def left(self) -> int:
        """Number of requests that are left to generate."""
        return self.requests - self.answered - self.shared


def run(options: RunOptions) -> None:
    """Run, or continue with, an evaluation.

    Raises:
        RunError: the folder is another run's, or cannot be written.
        Stopped: a signal ended it; every response that was acknowledged is in the journal.
        Exception: whatever the harness or the model raises.
    """
    launch.check_arguments(options.arguments)
    read_manifest(options.folder)  # a damaged one is told before the model is loaded
    journal = Journal(options.folder, launch.rank())
    if launch.is_main_process():
        set_torn_files_aside(options.folder)
    runs: dict[str, Blocks] = {}
    described: dict[str, Any] = {}

    def last_words(signal: str) -> str:
        return stopped_message(options, runs, signal)

    def lost(reason: str) -> None:
        print(f"error: {reason}, so this rank ends too. {_go_on(options)}", file=sys.stderr, flush=True)
        os._exit(1)

    def prepare(args: Any) -> None:
        model, model_args, batch, _ = launch.model_parts(args)
        if launch.without_cache_of_responses(args):
            log.warning("--use_cache is not used: the journal does its work, also where a run is killed.")
        name, command = identity(model, model_args), command_identity(args)
        if command not in runs:
            size = block_size(options.save_every, batch)
            seed = launch.decisive_arguments(args)["seed"]
            runs[command] = Blocks(journal, name, size, options.share, seed, command, options.retry_empty)
        described.clear()
        described.update(describe_run(options, model, model_args), run=name, identity=command)

    def make(kind: type, load: Callable[[], Any]) -> Any:
        lm = load()
        described["simple"] = bool(getattr(lm, "is_simple", True))
        if launch.is_main_process():
            write_manifest(options.folder, described["identity"], described)
        return runs[described["identity"]].wrap(lm)

    before = _harness_results(options.folder) | _samples_files(options.folder)
    ranks = Heartbeat(journal.folder, launch.rank(), launch.ranks(), lost)
    failure = "it was stopped"
    try:
        with stop_signals(last_words), launch.models_through(make), without_partial_responses():
            launch.run_command_line(options.arguments, prepare)
        _check_end(options, runs, before)
        failure = ""
    except Stopped as stopped:
        print(last_words(str(stopped)), file=sys.stderr, flush=True)
        raise
    except (Exception, SystemExit) as error:
        failure = f"{type(error).__name__}: {error}"
        raise
    finally:
        ranks.finish(redact(failure))
        journal.close()


def _check_end(options: RunOptions, runs: Mapping[str, Blocks], before: set[Path]) -> None:
    """Raise ``RunError`` unless the run has written results, scored every task, and got a response to every request."""
    lacking = launch.tasks_without_scores()
    if launch.is_main_process() and not lacking and _harness_results(options.folder) <= before:
        raise RunError(
            f"lmms-eval could not write its results below {options.folder}; the reason is above. Once this is fixed, nothing is generated again:\n  {options.command}"
        )
    if launch.is_main_process() and {"--log_samples", "--predict_only"} & set(options.arguments):
        logged = {parse_samples_name(path.name) for path in _samples_files(options.folder) - before}
        unlogged = sorted({task for blocks in runs.values() for task in blocks.tasks} - logged)
        if unlogged:
            raise RunError(
                f"lmms-eval could not write the samples files of {', '.join(unlogged[:5])}; the reason is above. Once this is fixed, nothing is generated again:\n  {options.command}"
            )
    if lacking:
        raise RunError(
            f"{launch.missing_scores_message(lacking)} Every response is in {options.folder / FOLDER}. Once this is fixed, nothing is generated again:\n  {options.command}"
        )
    failed, planned = (
        sum(getattr(task_run.progress, name) for task_run in runs.values()) for name in ("failed", "planned")
    )
    if failed:
        raise RunError(
            f"{failed} of {planned} requests returned an error message instead of a response, such as {_a_failure(runs)!r}. They are neither kept nor scored. The same command repeats these requests only:\n  {options.command}"
        )


def _a_failure(runs: Mapping[str, Blocks]) -> str:
    """Return the beginning of an error message that was returned instead of a response."""
    texts = (text_of(failure) for blocks in runs.values() for failure in blocks.failures.by_request.values())
    return redact(one_line(next(texts, ""), 160))


def command_identity(args: Any) -> str:
    """Return a hash of the model and of the options that decide the requests, by which plans in one folder are distinguished."""
    model, model_args, _, _ = launch.model_parts(args)
    content = [identity(model, model_args), launch.decisive_arguments(args)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def block_size(save_every: int, batch_size: str) -> int:
    """Return requests of a block: ``save_every``, or the next multiple of the batch size, so that batches stay whole."""
    batch = int(batch_size) if batch_size.isdigit() and int(batch_size) > 0 else 1
    return -(-save_every // batch) * batch


def stopped_message(options: RunOptions, runs: Mapping[str, Blocks], signal: str) -> str:
    """Return the message for a run that a signal ended, with the command that continues it."""
    planned, answered = (
        sum(getattr(blocks.progress, name) for blocks in runs.values()) for name in ("planned", "answered")
    )
    whose = "" if launch.ranks() == 1 else f" of rank {launch.rank()}"
    known = f"{answered} of {planned} responses{whose} are in" if planned else "What was generated is in"
    return f"\nstopped by {signal}. {known} {options.folder / FOLDER}. {_go_on(options)}"


def _go_on(options: RunOptions) -> str:
    hidden = "\n(with your keys in the place of ***)" if HIDDEN in options.command else ""
    return f"To go on:\n  {options.command}{hidden}"


def describe_run(options: RunOptions, model: str, model_args: str) -> dict[str, Any]:
    """Return the run as the manifest has it."""
    return {
        "model": model,
        "model_args": redact(model_args),
        "arguments": list(redact_arguments(options.arguments)),
        "command": options.command,
        "folder": str(Path.cwd()),
        "settings": {name: redact(value) for name, value in sorted(os.environ.items()) if name.startswith(PREFIX)},
        "save_every": options.save_every,
        "share": options.share,
        "retry_empty": options.retry_empty,
        "ranks": launch.ranks(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"lmms_eval": evaluation.harness_version(), "lmms_eval_emi": __version__},
    }


def _harness_results(folder: Path) -> set[Path]:
    """Return the files of results of lmms-eval that are whole."""
    return {path for path in folder.rglob("*_results.json") if _is_whole(path)}


def _samples_files(folder: Path) -> set[Path]:
    """Return the samples files of lmms-eval that are whole."""
    return {path for path in visible_files(folder, samples_name("*", "*")) if _is_whole(path)}


def set_torn_files_aside(folder: Path) -> list[Path]:
    """Rename files that lmms-eval left incomplete or will write again; return the new names.

    Only files with the harness's own names in the folder of a model are renamed, and none that cannot be read.
    """
    renamed = []
    for path in sorted(folder.glob("*.json*")) + sorted(folder.glob("*/*.json*")):
        if (
            evaluation.is_file_of_a_run(path.name)
            and path.parent.name != FOLDER
            and path.is_file()
            and _is_whole(path) is False
        ):
            target = path.with_name(f"{path.name}.torn")
            path.replace(target)
            renamed.append(target)
            log.warning("%s was not written to the end by an earlier run, and is %s now.", path, target.name)
    return renamed


def _is_whole(path: Path) -> bool | None:
    """Return whether a file was written to the end; ``None`` where it cannot be read."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
            return True
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 1))
            return file.read() in (b"", b"\n")
    except OSError:
        return None
    except (ValueError, RecursionError):
        return False


# Looking


def _runs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the runs of a folder, of which there is at least one.

    Raises:
        RunError: the folder has no runs, or its manifest cannot be read.
    """
    manifest = read_manifest(folder)
    if not manifest:
        raise RunError(
            f"{folder}: expected the --output_path of lmms-eval-emi run, found no {Path(FOLDER) / MANIFEST} there."
        )
    return manifest


def states(plan: Mapping[Request, bool], answers: Answers, share: bool = True) -> list[TaskState]:
    """Return how far every task is, in the order of the plan."""
    counts: dict[str, list[int]] = {}
    asked: set[str] = set()
    for request, shared in plan.items():
        counted = counts.setdefault(request.task, [0, 0, 0])
        counted[0] += 1
        alike = share and shared
        if answers.has(request, shared=alike):
            counted[1] += 1
        elif alike and request.content in asked:
            counted[2] += 1
        asked.add(request.content)
    return [TaskState(task, *count) for task, count in counts.items()]


def dry_run(options: RunOptions) -> dict[str, list[TaskState]]:
    """Return how many requests every task has, and how many are left; the model is not loaded.

    Returns:
        The tasks of every configuration of the command, by its model and arguments.

    Raises:
        RunError: the journal of the folder cannot be read.
        Exception: whatever the harness raises for its arguments and tasks.
    """
    contents = read_journal(options.folder)
    names: dict[str, tuple[str, str]] = {}  # label, and identity and seed, of every configuration
    instances: list[Any] = []
    plans: dict[str, dict[Request, bool]] = {}

    def collect(entries: list[Any]) -> list[Any]:
        instances.extend(entries)
        return entries

    def make(kind: type, _: Callable[[], Any]) -> Any:
        label = list(names)[-1]

        def respond(method: str, requests: Sequence[Any]) -> list[Any]:
            for each in launch.MODEL_METHODS:
                described = Contents(lambda task, split, row: lm.task_dict[task][split][row], each, names[label][1])
                for instance in instances:
                    if instance.request_type in (each, f"{each}_agentic"):
                        for _ in range(launch.repeats(instance)):
                            description = described.describe(instance)
                            plans[label][description.request] = description.shared
            raise launch.ConfigurationDone

        lm = launch.stand_in(bool(getattr(kind, "is_simple", True)), respond)
        return lm

    def prepare(args: Any) -> None:
        model, model_args, _, _ = launch.model_parts(args)
        label = f"{model} ({redact(model_args)})"
        label = label if label not in names else f"{label}, configuration {len(names) + 1}"
        names[label] = (identity(model, model_args), launch.decisive_arguments(args)["seed"])
        plans[label] = {}
        instances.clear()

    arguments = launch.without_options(options.arguments, launch.SENDING)
    with launch.models_through(make), launch.requests_through(collect):
        launch.run_command_line(arguments, prepare)
    found = {}
    for label, plan in plans.items():
        everywhere: dict[Request, bool] = {}
        for of_rank in launch.gather(plan):
            everywhere |= of_rank
        answers = answers_of(contents, names[label][0], retry_empty=options.retry_empty)
        found[label] = states(everywhere, answers, options.share)
    return found


@dataclass(frozen=True)
class RunState:
    """State of one configuration of a command, as its journal records it."""

    command: str  # its identity
    described: Mapping[str, Any]  # the run as its manifest has it
    tasks: Sequence[TaskState]  # how far each of its tasks is
    known: Mapping[tuple[str, int, int], Any]  # response by task, document and number of the request

    @classmethod
    def of(
        cls, contents: JournalContents, command: str, described: Mapping[str, Any], *, retry_empty: bool = False
    ) -> RunState:
        """Return the state of a command of the manifest; ``retry_empty`` counts empty responses as missing."""
        answers = answers_of(contents, str(described.get("run", command)), retry_empty=retry_empty)
        plan, share = contents.plan(command), bool(described.get("share", True))
        known = {
            (request.task, request.document, request.number): answers.of(request, shared=share and shared)
            for request, shared in plan.items()
            if answers.has(request, shared=share and shared)
        }
        return cls(command, described, states(plan, answers, share), known)

    def answered(self, instances: list[Any]) -> list[Any]:
        """Return the requests of the documents of which every request is answered.

        How many rounds a document takes is not known before its last one, so those of several rounds are left out.
        """
        seen: dict[int, int] = {}
        lacking = set()
        for instance in instances:
            number = seen.get(instance.doc_id, 0)
            seen[instance.doc_id] = number + launch.repeats(instance)
            if instance.request_type not in launch.MODEL_METHODS:
                lacking.add(instance.doc_id)
            for each in range(number, seen[instance.doc_id]):
                if (str(instance.task_name), int(instance.doc_id), each) not in self.known:
                    lacking.add(instance.doc_id)
        return [instance for instance in instances if instance.doc_id not in lacking]

    def respond(self, method: str, requests: Sequence[Any]) -> list[Any]:
        """Return the responses to the requests of a call."""
        seen: dict[tuple[str, int], int] = {}
        responses = []
        for instance in requests:
            key = (str(instance.task_name), int(instance.doc_id))
            responses.append(from_plain(self.known[(*key, seen.get(key, 0))]))
            seen[key] = seen.get(key, 0) + 1
        return responses


def status(folder: Path) -> list[RunState]:
    """Return how far the runs of a folder are, the latest last.

    Raises:
        RunError: the folder has no journal, or one that cannot be read.
    """
    manifest, contents = _runs_of(folder), read_journal(folder)
    return [
        RunState.of(contents, name, described, retry_empty=bool(described.get("retry_empty")))
        for name, described in manifest.items()
    ]


# Recovering


def recover(folder: Path, output: Path, *, trust: bool = False) -> list[TaskState]:
    """Make results of what the journal of a folder contains, without the model.

    The harness runs as it did, with a model that answers from the journal. Documents without a response are left out.

    Args:
        folder: folder of the run.
        output: where results are written.
        trust: whether the command in the folder may be run although somebody else wrote it.

    Returns:
        How far every task is, of all configurations of the latest command.

    Raises:
        RunError: there is no journal, nothing in it, or it is somebody else's and not trusted.
        OSError: results cannot be written to ``output``.
        Exception: whatever the harness raises.
    """
    runs = _runs_of(folder)
    _, latest = list(runs.items())[-1]
    check_folder_writable(output)
    arguments = latest.get("arguments")
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        raise RunError(f"{folder}: its manifest names no arguments. Run the original command again instead.")
    _check_trusted(folder, latest, trust)
    contents = read_journal(folder)
    # One command may have several configurations, each with a model of its own.
    kept = [
        RunState.of(contents, name, described)
        for name, described in runs.items()
        if described.get("arguments") == arguments
    ]
    if not any(part.known for part in kept):
        raise RunError(f"{folder}: its journal holds no response yet. Go on with: {latest.get('command', '')}")
    current = kept[-1]

    def choose(args: Any) -> None:
        nonlocal current
        launch.without_cache_of_responses(args)
        current = _state_for(args, kept, folder)

    def make(kind: type, _: Callable[[], Any]) -> Any:
        return launch.stand_in(bool(current.described.get("simple", True)), current.respond)

    for variable, value in (latest.get("settings") or {}).items():
        if str(variable).startswith(PREFIX):
            os.environ.setdefault(str(variable), str(value))
    where = Path(str(latest.get("folder", ".")))
    with (
        contextlib.chdir(where if where.is_dir() else Path.cwd()),
        launch.models_through(make),
        launch.requests_through(lambda instances: current.answered(instances)),
    ):
        before = _harness_results(output)
        kept_arguments = launch.without_options(arguments, {"--output_path": True, **launch.SENDING})
        launch.run_command_line([*kept_arguments, "--output_path", str(output)], choose)
        if _harness_results(output) <= before:
            raise RunError(f"lmms-eval could not write its results below {output}; the reason is above.")
    return [task for part in kept for task in part.tasks]


def _state_for(args: Any, states_of_command: Sequence[RunState], folder: Path) -> RunState:
    """Return the state, of those in a folder's journal, that belongs to the arguments of a configuration.

    Raises:
        RunError: the journal has no responses of its model.
    """
    model, model_args, _, _ = launch.model_parts(args)
    wanted = (model, redact(model_args))
    matches = [
        state
        for state in states_of_command
        if (state.described.get("model"), state.described.get("model_args")) == wanted
    ]
    # Several configurations of one model differ by identity, which needs the model's files as they were.
    exact = [state for state in matches if len(matches) > 1 and state.command == command_identity(args)]
    if not (exact or matches):
        raise RunError(f"{folder}: the journal has no responses of {model} ({wanted[1]}).")
    return (exact or matches)[-1]  # the latest


def _check_trusted(folder: Path, described: Mapping[str, Any], trust: bool) -> None:
    """Refuse to run the command of somebody else's folder, which may load any code."""
    places = (folder, folder / FOLDER, folder / FOLDER / MANIFEST)
    if trust or not hasattr(os, "getuid") or all(place.lstat().st_uid == os.getuid() for place in places):
        return
    variables = ", ".join(f"{name}={value}" for name, value in (described.get("settings") or {}).items())
    raise RunError(
        f"{folder} is not yours, and recovering runs what it says: lmms-eval {shlex.join(described['arguments'])}\n"
        f"in {described.get('folder')}, with {variables or 'no variables'}. Pass --trust if that is what you want."
    )
