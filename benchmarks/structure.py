"""How large the package is, and how many of its files a call enters.

    python benchmarks/structure.py

Prints lines of Python, the longest functions and the most parameters, declared dependencies, and the files of the
package in which a function runs while ``score()``, ``lmms-eval-emi score`` and a run of lmms-eval
without its report work on a tiny stand-in of the hub (``tests/tinyhub.py``).
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import inspect
import io
import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lmms_eval_emi"
sys.path.insert(0, str(ROOT / "tests"))


def sources() -> list[Path]:
    """Python files of the package, without the generated tasks."""
    return [path for path in PACKAGE.rglob("*.py") if "tasks" not in path.relative_to(PACKAGE).parts]


def code_lines(path: Path) -> int:
    """Lines of a file that are no docstring, comment or blank."""
    text = path.read_text(encoding="utf-8")
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            prose |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in prose for number, line in lines
    )


def functions() -> list[tuple[int, int, str]]:
    """Lines, parameters and name of every function."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([one for one in arguments if one.arg not in ("self", "cls")])
                name = f"{path.relative_to(PACKAGE)}:{node.name}"
                found.append(((node.end_lineno or node.lineno) - node.lineno + 1, count, name))
    return found


def files_entered(call: Callable[[], object]) -> set[str]:
    """Files of the package in which a function runs during a call, in any thread."""
    import threading

    entered: set[str] = set()

    def trace(frame, event, argument):
        # No module, no body of a class, and no comprehension, which may be one of a module.
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<"):
            entered.add(frame.f_code.co_filename)

    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return {str(Path(name).relative_to(PACKAGE)) for name in entered if name.startswith(str(PACKAGE))}


def harness_run(output: str) -> None:
    """Run lmms-eval's own command in this process."""
    sys.argv = f"lmms-eval --tasks llavabench_shift_natural_text --model llava_hf --model_args pretrained=tiny-llava,device_map=cpu --device cpu --gen_kwargs max_new_tokens=6 --output_path {output}".split()
    with contextlib.suppress(SystemExit):
        runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)


def main() -> None:
    """Measure, and print a table."""
    import tinyhub

    from lmms_eval_emi import score
    from lmms_eval_emi.cli import main as command
    from lmms_eval_emi.data.responses.llava import write_response_file
    from lmms_eval_emi.data.study import load_study

    own = functions()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = [
        line for line in config["options"]["install_requires"].splitlines() if line and not line.startswith("#")
    ]
    print(
        f"lines of Python       {sum(len(path.read_text().splitlines()) for path in sources()):,} in {len(sources())} files"
    )
    print(f"  of code alone       {sum(map(code_lines, sources())):,}, without docstrings, comments and blank lines")
    lines, parameters = max(own), max(own, key=lambda one: one[1])
    print(f"longest function      {lines[0]} lines ({lines[2]}); over 60 lines: {sum(one[0] > 60 for one in own)}")
    print(f"most parameters       {parameters[1]} ({parameters[2]}); over 7: {sum(one[1] > 7 for one in own)}")
    print(f"dependencies          {len(declared)}")
    with tempfile.TemporaryDirectory() as folder:
        hub, answers = Path(folder) / "hub", Path(folder) / "answers"
        tinyhub.build(hub)
        os.chdir(hub)
        os.environ |= {
            "LMMS_EVAL_EMI_ESTIMATOR": str(hub / "tiny.safetensors"),
            "LMMS_EVAL_EMI_CACHE": f"{folder}/cache",
        }
        for split in load_study("natural").splits:
            rows = [(row, "", f"{split} {row}") for row in range(tinyhub.ROWS)]
            write_response_file(answers / f"{split}.jsonl", rows, "m")
        calls = {
            "score()": lambda: score("natural", answers, resamples=19),
            "lmms-eval-emi score": lambda: command(
                ["score", "natural", str(answers), "--resamples", "19", "--output", f"{folder}/r.json"]
            ),
            "a run of lmms-eval": lambda: harness_run(folder),
        }
        for name, call in calls.items():
            os.environ["LMMS_EVAL_EMI_CACHE"] = f"{folder}/cache of {name}"
            os.environ["LMMS_EVAL_EMI_REPORT"] = "false"
            entered = files_entered(call)
            print(f"{name:22}{len(entered)} files entered: {' '.join(sorted(entered))}")


if __name__ == "__main__":
    main()
