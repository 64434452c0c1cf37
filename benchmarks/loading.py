"""What the package costs where it is not used, and what its 63 tasks cost to load.

    cd HUB && python .../benchmarks/loading.py

HUB is a folder with the datasets under their real names (or any folder, with a connection). lmms-eval's imports with and
without our entry point are of nine pairs of processes, in turns: their medians, and that of the differences. The other
figures are the smallest of three processes: the command's help; one task and all of them, as they are loaded, and with a
dataset read again for every task.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

HELP = "import sys; sys.argv[1:] = ['--help']\nfrom lmms_eval_emi.cli import main\nmain()"
HARNESS = """
import sys, time
if sys.argv[1] == "without":
    import importlib.metadata as metadata
    entry_points = metadata.entry_points
    metadata.entry_points = lambda **kwargs: () if kwargs.get("group") == "lmms_eval.models" else entry_points(**kwargs)
start = time.perf_counter()
import lmms_eval.models, lmms_eval.__main__, lmms_eval.evaluator
print(time.perf_counter() - start)
"""
TASKS = """
import sys, time
import lmms_eval.models
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.tasks import TaskManager, get_task_dict
if sys.argv[2] == "each":
    ConfigurableTask.download = ConfigurableTask.download.__wrapped__
manager = TaskManager()
start = time.perf_counter()
get_task_dict([sys.argv[1]], manager)
print(time.perf_counter() - start)
"""


def once(code: str, *arguments: str, whole: bool = False) -> float:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    lasted = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"expected tasks that load from this folder; run it in HUB.\n{done.stderr[-2000:]}")
    return lasted if whole else float(done.stdout.split()[-1])


def seconds(code: str, *arguments: str, whole: bool = False) -> float:
    return min(once(code, *arguments, whole=whole) for _ in range(3))


def pairs(code: str, first: str, second: str) -> list[tuple[float, float]]:
    found = []
    for number in range(9):
        order = (first, second) if number % 2 else (second, first)
        own = {argument: once(code, argument) for argument in order}
        found.append((own[first], own[second]))
    return found


def main() -> None:
    print(f"--help: {seconds(HELP, whole=True):.2f} s")
    found = pairs(HARNESS, "without", "with")
    without, with_us = (statistics.median(own) for own in zip(*found, strict=True))
    more = statistics.median(later - first for first, later in found)
    print(f"lmms-eval's imports: {without:.2f} s without our entry point, {with_us:.2f} s with it, {more:+.3f} s")
    one = seconds(TASKS, "llavabench_shift_natural_coco_english", "shared")
    shared, each = (seconds(TASKS, "llavabench_shift", how) for how in ("shared", "each"))
    print(
        f"one task: {one:.2f} s; 63 tasks: {shared:.2f} s; with a dataset read for every task: {each:.2f} s, {each / shared:.1f} times as long"
    )


if __name__ == "__main__":
    main()
