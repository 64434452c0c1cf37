"""Runs the harness in forks of a process that has imported it and read its task files, which takes 12 seconds a run.

A run is a command as a user gives it, ``python -m MODULE ARGUMENTS``, on one rank or several. The process reads a line of
JSON for each and answers with the exit status. As with torchrun, the first rank that fails ends the others.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path


def run_in_fork(
    module: str, *arguments: str, cwd: Path, processes: int = 1, kill_last_after: str = "", **variables: str
) -> subprocess.CompletedProcess:
    """Run a module with exactly these environment variables; its output is text.

    With ``kill_last_after``, the last rank is killed once every rank has printed that text, and its exit status does not
    count. The others must end within seven minutes.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        variables_of_ranks = [{**variables, **ranks} for ranks in _ranks(processes)]
        command = {
            "argv": [module, *arguments],
            "cwd": str(cwd),
            "out": str(out),
            "err": str(err),
            "kill": kill_last_after,
        }
        command["env"] = variables_of_ranks
        server.stdin.write(json.dumps(command) + "\n")
        server.stdin.flush()
        status = server.stdout.readline()
        if not status:
            raise RuntimeError(f"the process that forks ended; run it alone to see why: {sys.executable} {__file__}")
        return subprocess.CompletedProcess([module, *arguments], int(status), out.read_text(), err.read_text())


def _ranks(processes: int) -> list[dict[str, str]]:
    """The variables that a launcher sets, by rank."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


@lru_cache(maxsize=1)
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    atexit.register(server.kill)
    return server


def serve() -> None:
    """Fork for each command that comes in."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import_harness()
    for line in sys.stdin:
        command = json.loads(line)
        running = set()
        for variables in command["env"]:
            pid = os.fork()
            if pid == 0:
                answers.close()
                if command["kill"]:
                    signal.alarm(420)  # a rank that waits for the killed one would wait for ever
                become(command, variables)
                return
            running.add(pid)
        status = 0
        if command["kill"]:
            end = time.monotonic() + 300
            while _printed(command).count(command["kill"]) < len(running) and time.monotonic() < end:
                time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            running -= {pid}
        while running:
            pid, state = os.waitpid(-1, 0)
            running -= {pid}
            if os.waitstatus_to_exitcode(state) and not status:
                status = os.waitstatus_to_exitcode(state)
                for other in running:
                    os.kill(other, signal.SIGTERM)
        answers.write(f"{status}\n")
        answers.flush()


def _printed(command: dict) -> str:
    return "".join(Path(command[name]).read_text() for name in ("out", "err") if Path(command[name]).exists())


def become(command: dict, variables: dict[str, str]) -> None:
    """Run a command in this process, which ends as one of its own would."""
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, command["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, command["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(command["cwd"])
    sys.path.insert(0, command["cwd"])
    sys.argv = list(command["argv"])
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def import_harness() -> None:
    """Import what a run imports, without starting a thread, and read the harness's own task files once."""
    import torch

    torch.set_num_threads(1)
    for module in (
        *("lmms_eval.__main__", "lmms_eval.models", "transformers.models.llava.modeling_llava"),
        *("transformers.models.clip.modeling_clip", "transformers.models.xlm_roberta.modeling_xlm_roberta"),
        *("datasets", "scipy.stats", "nltk", "matplotlib.pyplot", "matplotlib.backends.backend_svg"),
        *("lmms_eval_emi.cli", "lmms_eval_emi.harness.lmms_eval.hooks", "lmms_eval_emi.harness.lmms_eval.resume.runs"),
        *("lmms_eval_emi.scoring.pipeline", "lmms_eval_emi.report.page"),
    ):
        importlib.import_module(module)
    with contextlib.suppress(ImportError):  # decord is an extra
        importlib.import_module("lmms_eval.models.chat.llava_hf")
    from lmms_eval_emi import Sample
    from lmms_eval_emi.data.response_text import degenerate_kind

    long = "A response of more than forty letters, {}: the model that tells languages is read."
    degenerate_kind(Sample(None, "?", long.format("this"), long.format("another")))
    keep_task_index()
    gc.freeze()  # a collection in a fork need not look at what was imported


def keep_task_index() -> None:
    """Let processes that are forked from now on find the harness's index of its own tasks in memory."""
    from lmms_eval.tasks import TaskManager

    read = TaskManager._get_task_and_group
    known: dict[str, dict] = {}

    def kept(manager: TaskManager, folder: str):
        if folder not in known:
            found = read(manager, folder)
            if Path(folder).is_relative_to(sys.modules["lmms_eval"].__path__[0]):
                known[folder] = found
            return found
        return copy.deepcopy(known[folder])

    TaskManager._get_task_and_group = kept
    TaskManager()


if __name__ == "__main__":
    serve()
