"""Kills runs at random moments and looks at what is left: ``python benchmarks/kills.py --kills 100``.

Runs of ``lmms-eval-emi run`` with a model that writes down what it is asked are killed by SIGKILL at random moments of
generating, writing, scoring and reporting, on one rank and on two, and started again until they end by themselves. Looked for
are acknowledged responses that are lost, requests that are generated again although they were acknowledged, results that differ from
those of an undisturbed run in any bit, and files that are broken. Each run is a fork of one process that has imported everything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TASKS = "mme,llavabench_shift_natural_visual,llavabench_shift_natural_wild_easy_german"
SAVE_EVERY = 4
PATIENCE = 60.0  # seconds in which a rank must end after another one died


@dataclass
class Found:
    """What was looked for, over all runs."""

    kills: Counter = field(default_factory=Counter)
    runs: int = 0
    acknowledged: int = 0
    lost: int = 0
    generated_again: int = 0
    different: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    hung: int = 0
    slowest_end: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return not (self.lost or self.generated_again or self.different or self.broken or self.hung)


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many for each number of ranks (default: 100)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument(
        "--accidents",
        nargs="*",
        choices=[one.__name__ for one in ACCIDENTS],
        metavar="NAME",
        help="other accidents as well, all of them or those that are named",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args(argv)
    good = True
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        prepare(folder)
        if args.accidents is not None:
            chosen = [one for one in ACCIDENTS if one.__name__ in args.accidents or not args.accidents]
            good = accidents(folder, chosen)
        for ranks in args.ranks if args.kills else []:
            found = kill_runs(folder, ranks, args.kills, args.seed, show=True)
            good = good and found.good
            print(report(ranks, found), flush=True)
    return 0 if good else 1


def report(ranks: int, found: Found) -> str:
    """What was found, in lines."""
    phases = ", ".join(f"{count} {phase}" for phase, count in sorted(found.kills.items()))
    lines = [
        f"{ranks} rank(s): {sum(found.kills.values())} kills ({phases}), {found.runs} runs to their end",
        f"  acknowledged responses {found.acknowledged}, lost {found.lost}, generated again {found.generated_again}",
        f"  results that differ {len(found.different)}, broken files {len(found.broken)}, ranks that did not end {found.hung}",
    ]
    if ranks > 1:
        lines.append(f"  slowest end of a rank after another one died: {found.slowest_end:.1f} s")
    return "\n".join([*lines, *(f"    {one}" for one in (*found.different, *found.broken)[:20])])


def prepare(folder: Path) -> None:
    """A tiny hub as the current folder, everything imported, and a model that is known to the harness."""
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parent)]
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "LMMS_EVAL_DATASETS_CACHE": str(folder / "cache"),
        "LMMS_EVAL_EMI_CACHE": str(folder / "emi"),
        "LMMS_EVAL_EMI_ESTIMATOR": str(folder / "hub" / "tiny.safetensors"),
        "LMMS_EVAL_EMI_RESAMPLES": "0",
    }
    import tinyhub
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread beside the one that forks
    (folder / "hub").mkdir()
    tinyhub.build(folder / "hub")
    os.chdir(folder / "hub")
    import_everything()


def import_everything() -> None:
    """Import what a run imports, and make the model known, without starting a thread."""
    from forking import import_harness

    import_harness()
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest

    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest(model_id="noted", simple_class_path="kills_model.Noted"), overwrite=True
    )


def start(out: Path, ranks: int, *more: str, before: Callable[[], Any] = lambda: None) -> list[int]:
    """Start a run; returns the processes of its ranks. ``before`` is called in each of them first."""
    port = _free_port()
    processes = []
    for rank in range(ranks):
        pid = os.fork()
        if pid:
            processes.append(pid)
            continue
        status = 70
        try:
            handle = os.open(out.with_suffix(f".{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            null = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((null, 0), (handle, 1), (handle, 2)):
                os.dup2(source, target)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            if ranks > 1:
                os.environ |= {
                    **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)},
                    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"},
                }
            os.environ["NOTES"] = str(out.with_suffix(".notes"))
            from tqdm import tqdm

            from lmms_eval_emi.cli import main as command

            # The lock of its bars is shared by forks, and one that is killed would keep it for all later ones.
            tqdm.set_lock(threading.RLock())
            before()
            status = command(command_line(out, *more))
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return processes


def command_line(out: Path, *more: str) -> list[str]:
    """The command of a run."""
    return ["run", "--model", "noted", "--tasks", TASKS, "--save-every", str(SAVE_EVERY), "--output_path", str(out), "--log_samples", *more]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait(processes: Sequence[int], seconds: float) -> dict[int, int | None]:
    """Exit statuses of processes, negative for a signal, ``None`` for those that run on after some seconds."""
    found: dict[int, int | None] = dict.fromkeys(processes)
    end = time.monotonic() + seconds
    while True:
        for pid, status in list(found.items()):
            if status is None:
                done, raw = os.waitpid(pid, os.WNOHANG)
                if done:
                    found[pid] = os.waitstatus_to_exitcode(raw)
        if None not in found.values() or time.monotonic() > end:
            return found
        time.sleep(0.01)


def acknowledged(out: Path) -> dict[tuple, Any]:
    """The responses that the journal of a run holds."""
    from lmms_eval_emi.util.journal import read_journal

    found = {}
    for record in read_journal(out).records:
        if record["kind"] == "block":
            for *request, response in record["requests"]:
                found[tuple(request)] = response
    return found


def notes(out: Path) -> list[str]:
    """What the model was asked so far, in order: task and document."""
    path = out.with_suffix(".notes")
    return path.read_text().split("\n")[:-1] if path.exists() else []


def results_of(out: Path) -> dict[str, Any]:
    """What a run has found, the latest of each, without what differs from run to run: times and paths."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        parts = path.relative_to(out).parts
        if "journal" in parts or not path.is_file():
            continue
        name = "/".join(re.sub(r"^\d{8}_\d{6}_", "", part) for part in parts)
        if path.name.endswith("_results.json"):
            found[name] = json.loads(path.read_text())["results"]
        elif path.suffix == ".json":
            content = json.loads(path.read_text())
            found[name] = {**content, "rows": content["rows"]["sha256"]} if "rows" in content else content
        elif path.suffix == ".jsonl":
            found[name] = path.read_text()
    return found


def broken_files(out: Path) -> list[str]:
    """Files of a run that are not whole."""
    found = []
    for path in out.rglob("*"):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl" and "journal" not in path.parts:
                text = path.read_text()
                assert not text or text.endswith("\n")
                for line in text.splitlines():
                    json.loads(line)
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>")
        except (ValueError, AssertionError) as error:
            found.append(f"{path.name}: {error}")
    return found


def traces(out: Path) -> tuple[int, int, int]:
    """How much there is of what a run writes: records, saved responses, results."""
    patterns = ("*_emi_responses", "*_emi_natural.json")
    return _journal_text(out).count("\n"), *(len(list(out.rglob(one))) for one in patterns)


def phase_of(out: Path, before: tuple[int, int, int]) -> str:
    """What a run was doing last, by what is there more than before its start."""
    records, saved, written = (now - then for now, then in zip(traces(out), before, strict=True))
    if written or saved:
        return "reporting" if written else "scoring"
    return "generating" if records else "loading, or generating nothing new"


def _journal_text(out: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in (out / "journal").glob("rank-*.jsonl"))


def kill_runs(folder: Path, ranks: int, kills: int, seed: int, *, show: bool = False) -> Found:
    """Kill runs until there were ``kills`` kills, and look at each."""
    draw = random.Random(f"{seed} {ranks}")
    found = Found()
    calm = folder / f"calm-{ranks}"
    begin = time.monotonic()
    status = wait(start(calm, ranks), 600)
    duration = time.monotonic() - begin
    assert set(status.values()) == {0}, calm.with_suffix(".0.log").read_text()[-3000:]
    expected = results_of(calm)
    if show:
        print(f"{ranks} rank(s): an undisturbed run takes {duration:.1f} s", file=sys.stderr)
    while sum(found.kills.values()) < kills:
        out = folder / f"run-{ranks}-{found.runs}"
        before: dict[tuple, Any] = {}
        ended = False
        while not ended:
            noted, known_before = len(notes(out)), traces(out)
            processes = start(out, ranks)
            enough = sum(found.kills.values()) >= kills
            # Loading takes half of the time, and a kill there costs nothing.
            moment = 600 if enough else duration * draw.triangular(0.2, 1.1, 0.8)
            status = wait(processes, moment)
            ended = set(status.values()) == {0}
            if not ended:
                chosen = draw.choice([processes, *([one] for one in processes)]) if ranks > 1 else processes
                for pid in chosen:
                    if status[pid] is None:
                        os.kill(pid, signal.SIGKILL)
                found.kills[phase_of(out, known_before)] += 1
                killed = time.monotonic()
                rest = wait([pid for pid in processes if status[pid] is None], PATIENCE)
                found.slowest_end = max(found.slowest_end, time.monotonic() - killed)
                for pid in [pid for pid, one in rest.items() if one is None]:
                    found.hung += 1
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            now = acknowledged(out) if (out / "journal").exists() else {}
            found.lost += sum(request not in now or now[request] != response for request, response in before.items())
            known = {f"{task} {document}" for task, document, *_ in before}
            found.generated_again += sum(one in known for one in notes(out)[noted:])
            if show:
                print(f"\r{sum(found.kills.values())} of {kills} kills", end="", file=sys.stderr, flush=True)
            before = now
        found.runs += 1
        found.acknowledged += len(before)
        found.broken += broken_files(out)
        got = results_of(out)
        found.different += [f"run {found.runs}: {name}" for name, one in expected.items() if got.get(name) != one]
        shutil.rmtree(out, ignore_errors=True)
    if show:
        print(file=sys.stderr)
    return found


# Other accidents


def accidents(folder: Path, chosen: Sequence[Callable[[Path], str]]) -> bool:
    """Some accidents, each once; prints a line for each, and returns whether all came out well."""
    calm = folder / "calm"
    assert set(wait(start(calm, 1), 600).values()) == {0}, log_of(calm)[-3000:]
    expected = results_of(calm)
    good = True
    for accident in chosen:
        name = accident.__name__.replace("_", " ")
        out = folder / accident.__name__ / "out"
        out.parent.mkdir()
        try:
            detail = accident(out)
            if not detail.startswith("skipped"):
                again(out, expected)
            print(f"ok       {name}: {detail}", flush=True)
        except AssertionError as error:
            good = False
            print(f"FAILED   {name}: {error}\n{log_of(out)[-1500:]}", flush=True)
        if os.path.ismount(out):
            subprocess.run(["umount", "-l", str(out)])
    return good


def again(out: Path, expected: dict[str, Any]) -> None:
    """The same command goes on, generates nothing that is known, and has the results of an undisturbed run."""
    known = {f"{task} {document}" for task, document, *_ in acknowledged(out)}
    noted = len(notes(out))
    status = wait(start(out, 1, *MORE.get(out.parent.name, ())), 600)
    assert set(status.values()) == {0}, f"the second start ended with {list(status.values())}"
    repeated = [one for one in notes(out)[noted:] if one in known]
    assert not repeated, f"generated again: {repeated[:5]}"
    got = results_of(out)
    different = [name for name, one in expected.items() if got.get(name) != one]
    assert not different, f"results differ: {different}"


def log_of(out: Path, rank: int = 0) -> str:
    """What a run printed."""
    path = out.with_suffix(f".{rank}.log")
    return path.read_text(errors="replace") if path.exists() else ""


def until_generating(out: Path, blocks: int = 2, seconds: float = 120) -> None:
    """Wait until some blocks are acknowledged."""
    end = time.monotonic() + seconds
    while _journal_text(out).count('"kind":"block"') < blocks:
        assert time.monotonic() < end, "no block was written"
        time.sleep(0.02)


# Model arguments are part of what a journal is of, so the second start needs the same.
MORE = {
    "terminated": ("--model_args", "seconds=0.3"),
    "interrupted": ("--model_args", "seconds=0.3"),
    "terminated_in_a_long_computation": ("--model_args", "stuck_after=9"),
    "a_second_run_in_the_same_folder": ("--model_args", "seconds=0.1"),
}


def _signal(out: Path, number: int, later: float = 0.0) -> str:
    (pid,) = start(out, 1, *MORE[out.parent.name])
    until_generating(out)
    time.sleep(later)
    begin = time.monotonic()
    os.kill(pid, number)
    status = wait([pid], 30)[pid]
    seconds = time.monotonic() - begin
    assert status == 128 + number, f"expected exit status {128 + number}, got {status}"
    assert seconds < 10, f"it took {seconds:.1f} s"
    text = log_of(out)
    assert "To go on:\n  lmms-eval-emi run --model noted" in text, "no command to go on"
    assert "Traceback" not in text, "a traceback"
    return f"ended in {seconds:.1f} s with status {status} and the command to go on"


def terminated(out: Path) -> str:
    """What a scheduler sends."""
    return _signal(out, signal.SIGTERM)


def interrupted(out: Path) -> str:
    """Ctrl-C."""
    return _signal(out, signal.SIGINT)


def terminated_in_a_long_computation(out: Path) -> str:
    """The main thread is outside of Python and does not come to the signal."""
    return _signal(out, signal.SIGTERM, later=3.0)


def a_second_run_in_the_same_folder(out: Path) -> str:
    """Refused, and the first one goes on."""
    (first,) = start(out, 1, *MORE[out.parent.name])
    until_generating(out)
    (second,) = start(out, 1)
    assert wait([second], 120)[second] == 1, "the second run was not refused"
    assert "another run is writing there" in log_of(out), "no reason"
    assert wait([first], 300)[first] == 0, "the first run failed"
    return "refused; the first one went on"


def begun_on_two_ranks_and_finished_on_one(out: Path) -> str:
    """Both journals are used."""
    processes = start(out, 2)
    until_generating(out, 4)
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    wait(processes, 60)
    count = len(acknowledged(out))
    return f"{count} responses of two ranks were used"


def out_of_memory_while_encoding(out: Path) -> str:
    """Scores are missing, so the status is 1; nothing is generated again."""

    def without_memory() -> None:
        from lmms_eval_emi.scoring import pipeline

        def fail(*_: object, **__: object) -> None:
            raise MemoryError("cannot allocate")

        pipeline.embed_samples = fail  # type: ignore[assignment]

    (pid,) = start(out, 1, before=without_memory)
    status = wait([pid], 300)[pid]
    assert status == 1, f"expected exit status 1, got {status}"
    assert "are missing" in log_of(out), "no reason"
    assert "Traceback" not in log_of(out), "a traceback"
    return "ended with status 1, and was scored by the next start"


def a_clock_that_goes_backwards(out: Path) -> str:
    """Nothing depends on the time of day."""

    def backwards() -> None:
        real = time.time
        begin = real()
        time.time = lambda: begin - 100 * (real() - begin)

    (pid,) = start(out, 1, before=backwards)
    until_generating(out)
    os.kill(pid, signal.SIGKILL)
    wait([pid], 30)
    (pid,) = start(out, 1, before=backwards)
    assert wait([pid], 300)[pid] == 0, "it failed"
    return "resumed and ended"


def _full_disk(out: Path, kibibytes: int) -> str:
    out.mkdir()
    if not _mount(out, f"size={kibibytes}k"):
        return "skipped: a small disk cannot be mounted here"
    (pid,) = start(out, 1)
    status = wait([pid], 300)[pid]
    assert status == 1, f"expected exit status 1, got {status}"
    assert "No space left" in log_of(out), "no reason"
    assert "Traceback" not in log_of(out), "a traceback"
    assert subprocess.run(["mount", "-o", "remount,size=64m", str(out)]).returncode == 0
    return f"ended with status 1 and {len(acknowledged(out))} responses, and went on with more room"


def a_disk_that_is_full_while_generating(out: Path) -> str:
    """What was acknowledged stays."""
    return _full_disk(out, 8)


def a_disk_that_is_full_when_results_are_written(out: Path) -> str:
    """The status says that they are missing."""
    return _full_disk(out, 40)


def an_output_that_cannot_be_written(out: Path) -> str:
    """Told before anything is loaded."""
    out.mkdir()
    if not _mount(out, "ro"):
        return "skipped: a read-only disk cannot be mounted here"
    (pid,) = start(out, 1)
    assert wait([pid], 60)[pid] == 1, "it was not refused"
    text = log_of(out)
    assert "cannot be written" in text, "no reason"
    assert "Traceback" not in text, "a traceback"
    assert not notes(out), "it generated"
    assert subprocess.run(["mount", "-o", "remount,rw", str(out)]).returncode == 0
    return "refused before anything was loaded"


def _mount(folder: Path, options: str) -> bool:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    return done.returncode == 0


ACCIDENTS: tuple[Callable[[Path], str], ...] = (
    terminated,
    interrupted,
    terminated_in_a_long_computation,
    a_second_run_in_the_same_folder,
    begun_on_two_ranks_and_finished_on_one,
    out_of_memory_while_encoding,
    a_clock_that_goes_backwards,
    a_disk_that_is_full_while_generating,
    a_disk_that_is_full_when_results_are_written,
    an_output_that_cannot_be_written,
)

if __name__ == "__main__":
    sys.exit(main())
