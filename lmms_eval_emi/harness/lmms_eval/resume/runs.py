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

from lmms_eval_emi.errors import RunError
from lmms_eval_emi.harness.heartbeat import Ranks
from lmms_eval_emi.harness.lmms_eval import partial_responses as parts
from lmms_eval_emi.harness.lmms_eval.compat import launch, run_files
from lmms_eval_emi.harness.lmms_eval.resume.journaled_model import Blocks, from_plain, identity, text_of
from lmms_eval_emi.harness.lmms_eval.resume.request_content import Contents
from lmms_eval_emi.harness.signals import Stopped, stop_signals
from lmms_eval_emi.settings import PREFIX
from lmms_eval_emi.util.files import check_folder_writable
from lmms_eval_emi.util.journal import (
    FOLDER,
    MANIFEST,
    Answers,
    Journal,
    Request,
    is_running,
    read_journal,
    read_manifest,
    write_manifest,
)
from lmms_eval_emi.util.printing import one_line
from lmms_eval_emi.util.redact import HIDDEN, redact, redact_arguments
from lmms_eval_emi.version import __version__

log = logging.getLogger("lmms_eval_emi")

PROGRAM = "lmms-eval-emi"


@dataclass(frozen=True)
class RunOptions:
    """What a run is asked for.

    Attributes:
        folder: of the run, its ``--output_path``.
        arguments: of lmms-eval's own command.
        save_every: requests of a block.
        share: whether requests of one content are asked once.
        retry_empty: whether requests are asked again whose response is empty.
    """

    folder: Path
    arguments: tuple[str, ...]
    save_every: int = 32
    share: bool = True
    retry_empty: bool = False

    @property
    def own_arguments(self) -> list[str]:
        """The arguments of ``lmms-eval-emi run``, without secrets."""
        own = [] if self.save_every == RunOptions.save_every else ["--save-every", str(self.save_every)]
        own += [] if self.share else ["--no-share"]
        return [*redact_arguments(self.arguments), *own]

    @property
    def command(self) -> str:
        """The command that goes on with the run."""
        count, here = launch.ranks(), int(os.environ.get("LOCAL_WORLD_SIZE", launch.ranks()))
        launcher = PROGRAM if count == 1 else f"accelerate launch --num_processes {count} -m lmms_eval_emi"
        if here != count or (count > 1 and "SLURM_STEP_ID" in os.environ):  # several machines, or another launcher
            launcher = "<your launcher> python -m lmms_eval_emi"
        return f"{launcher} run {shlex.join(self.own_arguments)}"


@dataclass(frozen=True)
class TaskState:
    """How far a task is.

    Attributes:
        task: its name.
        requests: how many it has.
        answered: how many the journal answers.
        shared: how many of the others get the response of another request.
    """

    task: str
    requests: int
    answered: int
    shared: int = 0

    @property
    def left(self) -> int:
        """How many are to be generated."""
        return self.requests - self.answered - self.shared


def run(options: RunOptions) -> None:
    """Run, or go on with, an evaluation.

    Raises:
        RunError: the folder is another run's, or cannot be written.
        Stopped: a signal ended it; every response that was acknowledged is in the journal.
        Exception: whatever the harness or the model raises.
    """
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
        described.update(_describe(options, model, model_args), run=name, identity=command)

    def make(kind: type, load: Callable[[], Any]) -> Any:
        lm = load()
        described["simple"] = bool(getattr(lm, "is_simple", True))
        if launch.is_main_process():
            write_manifest(options.folder, described["identity"], described)
        return runs[described["identity"]].wrap(lm)

    before = _harness_results(options.folder)
    ranks = Ranks(journal.folder, launch.rank(), launch.ranks(), lost)
    failure = "it was stopped"
    try:
        with stop_signals(last_words), launch.models_through(make), parts.not_needed():
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
    if lacking:
        raise RunError(
            f"{launch.missing_scores_message(lacking)} Every response is in {options.folder / FOLDER}. Once this is fixed, nothing is generated again:\n  {options.command}"
        )
    failed, planned = (sum(getattr(one.progress, name) for one in runs.values()) for name in ("failed", "planned"))
    if failed:
        raise RunError(
            f"{failed} of {planned} requests got an error message in the place of a response, such as {_a_failure(runs)!r}. They are not in the journal, and are left out of scores. The same command asks them again, and nothing else:\n  {options.command}"
        )


def _a_failure(runs: Mapping[str, Blocks]) -> str:
    """The beginning of an error message that came in the place of a response."""
    texts = (text_of(one) for blocks in runs.values() for one in blocks.failures.by_request.values())
    return redact(one_line(next(texts, ""), 160))


def command_identity(args: Any) -> str:
    """What tells the plans of two commands in one folder apart: the model, and whatever decides their requests."""
    model, model_args, _, _ = launch.model_parts(args)
    content = [identity(model, model_args), launch.decisive_arguments(args)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def block_size(save_every: int, batch_size: str) -> int:
    """Requests of a block: ``save_every``, or the next multiple of the batch size, so that batches stay whole."""
    batch = int(batch_size) if batch_size.isdigit() and int(batch_size) > 0 else 1
    return -(-save_every // batch) * batch


def stopped_message(options: RunOptions, runs: Mapping[str, Blocks], signal: str) -> str:
    """What to say of a run that a signal ended, with the command to go on."""
    planned, answered = (
        sum(getattr(blocks.progress, name) for blocks in runs.values()) for name in ("planned", "answered")
    )
    whose = "" if launch.ranks() == 1 else f" of rank {launch.rank()}"
    known = f"{answered} of {planned} responses{whose} are in" if planned else "What was generated is in"
    return f"\nstopped by {signal}. {known} {options.folder / FOLDER}. {_go_on(options)}"


def _go_on(options: RunOptions) -> str:
    hidden = "\n(with your keys in the place of ***)" if HIDDEN in options.command else ""
    return f"To go on:\n  {options.command}{hidden}"


def _describe(options: RunOptions, model: str, model_args: str) -> dict[str, Any]:
    """The run as the manifest has it."""
    return {
        "model": model,
        "model_args": redact(model_args),
        "arguments": list(redact_arguments(options.arguments)),
        "command": options.command,
        "folder": str(Path.cwd()),
        "settings": {name: redact(value) for name, value in sorted(os.environ.items()) if name.startswith(PREFIX)},
        "save_every": options.save_every,
        "share": options.share,
        "ranks": launch.ranks(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"lmms_eval": run_files.harness_version(), "lmms_eval_emi": __version__},
    }


def _harness_results(folder: Path) -> set[Path]:
    """The files of results of lmms-eval that are whole."""
    return {path for path in folder.rglob("*_results.json") if _is_whole(path)}


def set_torn_files_aside(folder: Path) -> list[Path]:
    """Rename what lmms-eval was writing when an earlier run was killed, and what is made again; returns the new names.

    Only files that are named as the harness names its own, in the folder of a model, and nothing that cannot be read.
    """
    renamed = []
    for path in sorted(folder.glob("*.json*")) + sorted(folder.glob("*/*.json*")):
        if (
            run_files.is_file_of_a_run(path.name)
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
    """Whether a file was written to the end; ``None`` where it cannot be read."""
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
    """The runs of a folder, of which there is at least one.

    Raises:
        RunError: it has none, or a manifest that cannot be read.
    """
    manifest = read_manifest(folder)
    if not manifest:
        raise RunError(
            f"{folder}: expected the --output_path of lmms-eval-emi run, found no {Path(FOLDER) / MANIFEST} there."
        )
    return manifest


def states(plan: Mapping[Request, bool], answers: Answers, share: bool = True) -> list[TaskState]:
    """How far every task is, in the order of the plan."""
    counts: dict[str, list[int]] = {}
    asked: set[str] = set()
    for request, shared in plan.items():
        own = counts.setdefault(request.task, [0, 0, 0])
        own[0] += 1
        alike = share and shared
        if answers.has(request, shared=alike):
            own[1] += 1
        elif alike and request.content in asked:
            own[2] += 1
        asked.add(request.content)
    return [TaskState(task, *own) for task, own in counts.items()]


def dry_run(options: RunOptions) -> list[TaskState]:
    """How many requests every task has, and how many are left; the model is not loaded.

    Raises:
        RunError: the journal of the folder cannot be read.
        Exception: whatever the harness raises for its arguments and tasks.
    """
    contents = read_journal(options.folder)
    names: list[tuple[str, str]] = []
    instances: list[Any] = []
    plan: dict[Request, bool] = {}

    def collect(own: list[Any]) -> list[Any]:
        instances.extend(own)
        return own

    def make(kind: type, _: Callable[[], Any]) -> Any:
        def respond(method: str, requests: Sequence[Any]) -> list[Any]:
            for each in launch.MODEL_METHODS:
                described = Contents(lambda task, split, row: lm.task_dict[task][split][row], each, names[-1][1])
                for instance in instances:
                    if instance.request_type in (each, f"{each}_agentic"):
                        for _ in range(launch.repeats(instance)):
                            one = described.describe(instance)
                            plan[one.request] = one.shared
            raise _Enough

        lm = launch.stand_in(bool(getattr(kind, "is_simple", True)), respond)
        return lm

    def prepare(args: Any) -> None:
        model, model_args, _, _ = launch.model_parts(args)
        names.append((identity(model, model_args), launch.decisive_arguments(args)["seed"]))

    with contextlib.suppress(_Enough), launch.models_through(make), launch.requests_through(collect):
        launch.run_command_line(options.arguments, prepare)
    everywhere: dict[Request, bool] = {}
    for own in launch.gather(plan):
        everywhere |= own
    return states(everywhere, contents.answers(names[-1][0]) if names else Answers(), options.share)


class _Enough(BaseException):
    """All requests are known; nothing is to be generated."""


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        described: the run as its manifest has it.
        tasks: how far each of its tasks is.
        running: whether a process has its journal open.
        damaged: records that were not written to the end.
    """

    described: Mapping[str, Any]
    tasks: tuple[TaskState, ...]
    running: bool
    damaged: int


def status(folder: Path) -> list[RunState]:
    """How far the runs of a folder are, the latest last.

    Raises:
        RunError: it has no journal, or one that cannot be read.
    """
    manifest = _runs_of(folder)
    contents = read_journal(folder)
    running = is_running(folder)
    return [
        RunState(
            described,
            tuple(
                states(
                    contents.plan(name),
                    contents.answers(str(described.get("run", name))),
                    bool(described.get("share", True)),
                )
            ),
            running,
            contents.damaged,
        )
        for name, described in manifest.items()
    ]


# Recovering


def recover(folder: Path, output: Path) -> list[TaskState]:
    """Make results of what the journal of a folder holds, without the model.

    The harness runs as it did, with a model that answers from the journal. Documents without a response are left out.

    Args:
        folder: of the run.
        output: where results are written.

    Returns:
        How far every task is.

    Raises:
        RunError: there is no journal, or nothing in it.
        OSError: results cannot be written to ``output``.
        Exception: whatever the harness raises.
    """
    name, described = list(_runs_of(folder).items())[-1]
    check_folder_writable(output)
    arguments = described.get("arguments")
    if not isinstance(arguments, list) or not all(isinstance(one, str) for one in arguments):
        raise RunError(f"{folder}: its manifest names no arguments. Run the original command again instead.")
    contents = read_journal(folder)
    answers, plan = contents.answers(str(described.get("run", name))), contents.plan(name)
    share = bool(described.get("share", True))
    known = {
        (request.task, request.document, request.number): answers.of(request, shared=share and shared)
        for request, shared in plan.items()
        if answers.has(request, shared=share and shared)
    }
    if not known:
        raise RunError(f"{folder}: its journal holds no response yet. Go on with: {described.get('command', '')}")

    def keep(instances: list[Any]) -> list[Any]:
        """The requests of the documents of which every request is answered.

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
                if (str(instance.task_name), int(instance.doc_id), each) not in known:
                    lacking.add(instance.doc_id)
        return [instance for instance in instances if instance.doc_id not in lacking]

    def make(kind: type, _: Callable[[], Any]) -> Any:
        def respond(method: str, requests: Sequence[Any]) -> list[Any]:
            seen: dict[tuple[str, int], int] = {}
            responses = []
            for instance in requests:
                key = (str(instance.task_name), int(instance.doc_id))
                responses.append(from_plain(known[(*key, seen.get(key, 0))]))
                seen[key] = seen.get(key, 0) + 1
            return responses

        return launch.stand_in(bool(described.get("simple", True)), respond)

    for variable, value in (described.get("settings") or {}).items():
        if str(variable).startswith(PREFIX):
            os.environ.setdefault(str(variable), str(value))
    where = Path(str(described.get("folder", ".")))
    with (
        contextlib.chdir(where if where.is_dir() else Path.cwd()),
        launch.models_through(make),
        launch.requests_through(keep),
    ):
        before = _harness_results(output)
        own = launch.without_options(arguments, {"--output_path": True, **launch.SENDING})
        launch.run_command_line([*own, "--output_path", str(output)], launch.without_cache_of_responses)
        if _harness_results(output) <= before:
            raise RunError(f"lmms-eval could not write its results below {output}; the reason is above.")
    return states(plan, answers, share)
