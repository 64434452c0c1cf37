"""``lmms-eval-emi demo``: a whole study on drawn scenes, on any machine."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from lmms_eval_emi.cli.options import new_parser
from lmms_eval_emi.errors import RunError
from lmms_eval_emi.harness.lmms_eval.compat import launch
from lmms_eval_emi.util.printing import number, table, with_error

if TYPE_CHECKING:
    from lmms_eval_emi.data.rows import Sample
    from lmms_eval_emi.scoring.join import StudySamples
    from lmms_eval_emi.scoring.result import StudyResult

ASSETS = Path(__file__).resolve().parent / "assets"
TASKS, STUDY = "llavabench_shift_demo", "demo"
UNTRAINED = ("hsic", "dcor", "cosine")  # estimators that are shown beside the demo's own
NAME = "a small LLaVA"  # on the demo's page, where its folder's name would say nothing
SHUFFLED = "clean_shuffled"
CONTROLS = {"fresh": "control: fresh clean scenes", SHUFFLED: "control: clean, responses shuffled"}
LOG, LAST_LINES = "lmms-eval.log", 20
PROGRESS = re.compile(rb"Model Responding[^\r\n]*?(\d+)/(\d+) \[")
NEXT = (
    "Now your model: lmms-eval --tasks llavabench_shift_natural --model llava_hf "
    "--model_args pretrained=llava-hf/llava-1.5-7b-hf --output_path out --log_samples"
)
RightRows = dict[str, dict[tuple[str, str], bool]]  # by split, and by id and reference of the row
NEEDED = {"decord": "which lmms-eval's llava_hf imports"}


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi demo",
            "lmms-eval-emi demo --output my-demo --processes 2",
        ),
        description=(
            "Run lmms-eval itself, with its llava_hf model class, on a small LLaVA and 90 questions about drawn scenes, as they are and under 11 shifts. "
            "Everything comes with the package; nothing is fetched. The command is printed first, to be copied and changed."
        ),
    )
    parser.add_argument("--output", type=Path, default=Path("emi-demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="ranks, through torchrun (default: 1)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="first N rows of each split, to see that all works (default: all)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run in DIR")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the demo's study in the harness with the small model, and print its findings."""
    missing = [f"{name}, {why}" for name, why in NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f"The demo needs {'; '.join(missing)}. Install it with: pip install 'lmms_eval_emi[demo]'")
    if args.processes < 1:
        raise RunError(f"--processes: expected 1 or more, got {args.processes}.")
    if args.limit is not None and args.limit < 2:
        raise RunError(f"--limit: expected 2 or more rows, got {args.limit}.")
    output = args.output.resolve()
    if output.exists() and not output.is_dir():
        raise RunError(f"--output: expected a folder, got the file {args.output}.")
    # The harness makes a folder a model, of a name of its own, below its --output_path.
    earlier = sorted(output.glob(f"*/*_emi_{STUDY}.json"))
    if earlier and not args.overwrite:
        raise RunError(
            f"{args.output} holds the results of an earlier run. Choose another --output, or --overwrite to replace them."
        )
    variables, command = command_of(args.output, args.processes, args.limit)
    print(shown(variables, command), flush=True)
    output.mkdir(parents=True, exist_ok=True)
    written = output / LOG
    import datasets

    takes = "This takes 2 to 6 minutes on 2 cores. " if args.limit is None else ""
    print(f"\n{takes}What lmms-eval prints is in {args.output / LOG}.", flush=True)
    status = run_command(launch.as_module(command), {**os.environ, **variables}, written)
    if status:
        end = written.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        print("\n".join(end), file=sys.stderr)
        raise RunError(f"lmms-eval ended with the exit status {status}; all of its messages are in {written}.")
    for path in earlier:  # only now that there are new ones; all files of a run have its time stamp
        for old in path.parent.glob(f"{path.name.removesuffix(f'_emi_{STUDY}.json')}_*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    reports = sorted(output.glob(f"*/*_emi_report_{STUDY}.html"))
    responses = sorted(output.glob(f"*/*_emi_responses/{STUDY}"))
    if not reports or not responses:
        raise RunError(f"lmms-eval wrote no report below {args.output}; its own messages are in {written}.")
    datasets.disable_progress_bars()  # a bar for each of the splits that are shifted again
    entry = collect_with_controls(responses[-1])
    right = right_rows(entry)
    shown_beside = side_by_side(entry, right)
    newest = sorted(output.glob(f"*/*_emi_{STUDY}.json"))[-1]
    findings = write_page(newest, right, output)
    print("\n".join(("", shown_beside, "", *findings, "", f"report: {args.output / 'report.html'}", NEXT)))
    return 0


def write_page(results: Path, right: RightRows, output: Path) -> list[str]:
    """Write the report of a run with its accuracy beside EMI, as ``report.html`` and ``agreement.json``.

    Args:
        results: results of the run.
        right: which of its rows are right, as :func:`right_rows` gives them.
        output: folder to write to.

    Returns:
        The sentences that the report begins with.
    """
    from lmms_eval_emi.report.finding import findings_of_all
    from lmms_eval_emi.report.page import write_report
    from lmms_eval_emi.report.reading import read_findings, read_results
    from lmms_eval_emi.scoring.agreement import AgreementDocument, OutsideScores, agree, read_results_to_compare

    rows = {
        name: {str(key[0]): (float(right), 1.0) for key, right in by_row.items()}
        for name, by_row in right.items()
        if name != SHUFFLED  # the results of the run lack this split
    }
    named = [replace(result, model=NAME) for result in read_results_to_compare(results)]
    found = [agree(result, OutsideScores("accuracy", rows)) for result in named]
    AgreementDocument(kind="agreement", agreements=found).write(output / "agreement.json")
    findings, others = read_findings([results, output / "agreement.json"])
    shown = [result.model_copy(update={"model": NAME, "label": NAME}) for result in read_results(others)]
    write_report(shown, output / "report.html", findings=findings)
    return findings_of_all(shown)


def run_command(command: list[str], variables: dict[str, str], log: Path) -> int:
    """Run a command with its output in a file; returns its exit status. An interruption ends it without its traceback."""
    with log.open("wb") as file:
        running = subprocess.Popen(
            command, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tqdm(desc="Generating responses", unit="", leave=False, dynamic_ncols=True) as bar:
            while running.poll() is None:
                bar.n, bar.total = _progress(log) or (bar.n, bar.total)
                bar.set_description("Scoring" if bar.n == bar.total else "Generating responses")
                time.sleep(0.5)
        return running.returncode
    except BaseException:
        for number in (signal.SIGTERM, signal.SIGKILL):  # a launcher ends its ranks at the first
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(running.pid, number)
                running.wait(timeout=10)
        raise


def _progress(log: Path) -> tuple[int, int] | None:
    """Return how many requests the model has answered, and of how many, if the harness's bar ends the log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        found = PROGRESS.findall(file.read())
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def command_of(output: Path, processes: int, limit: int | None = None) -> tuple[dict[str, str], list[str]]:
    """Return the variables and the command that run the demo."""
    variables = {
        "LMMS_EVAL_EMI_ESTIMATOR": STUDY,
        "LMMS_EVAL_EMI_VISION_ENCODER": str(ASSETS / "vision_encoder"),
        "LMMS_EVAL_EMI_TEXT_ENCODER": str(ASSETS / "text_encoder"),
        "HF_HUB_OFFLINE": "1",
    }
    program, command = launch.command_of(
        "llava_hf", f"pretrained={ASSETS / 'model'},device_map=cpu", TASKS, output, processes, limit
    )
    return {**variables, **program}, command


def shown(variables: dict[str, str], command: list[str]) -> str:
    """Return a command as a shell would take it, in lines."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    options: list[str] = []
    for part in command:
        if part.startswith("--") or not options:
            options.append(shlex.quote(part))
        else:
            options[-1] += f" {shlex.quote(part)}"
    return " \\\n".join(
        [
            *lines,
            options[0] + (f" {options[1]}" if len(options) > 1 else ""),
            *(f"  {option}" for option in options[2:]),
        ]
    )


def side_by_side(entry: StudySamples, right: RightRows) -> str:
    """Return a table of EMID by each estimator, beside the fraction of rows that name every object asked about.

    Args:
        entry: samples of the run, as :func:`collect_with_controls` gives them.
        right: which of its rows are right, as :func:`right_rows` gives them.

    Returns:
        A table by split and control, how EMID ranks the shifts against the loss of accuracy, and where estimators
        disagree in sign.
    """
    from lmms_eval_emi.core.correlation import spearman
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.scoring.table import disagreements_to_lines

    study = load_study(STUDY)
    accuracy = accuracy_of(right)
    results = [result.model_copy(update={"model": NAME}) for result in score_demo(entry, ASSETS, [STUDY, *UNTRAINED])]
    first = results[0]
    rows = []
    for name, scores in first.splits.items():
        degenerate = sum((scores.degenerate or {}).values()) / max(1, scores.n or 0)
        by_estimator = [result.splits[name] for result in results]
        cells = (with_error(split.emid, split.emid_stderr) for split in by_estimator)
        rows.append([CONTROLS.get(name, name), f"{accuracy[name]:.0%}", f"{degenerate:.0%}", *cells])
    losses = {name: accuracy[study.id_split] - accuracy[name] for name in study.shifts()}
    ranks: list[str] = []
    for result in results:
        known = {name: split.emid for name, split in result.splits.items() if split.emid is not None}
        pairs = [(emid, losses[name]) for name, emid in known.items() if name in losses]
        r = spearman([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        ranks.append(number(r, ".2f"))
    rows.append(["rank correlation with the loss of accuracy", "", "", *ranks])
    names = [f"EMID ± SE\n{name}" for name in (STUDY, *UNTRAINED)]
    headers = ["split", "all objects asked\nabout are named", "degenerate", *names]
    shown = table(rows, headers, colalign=("left", *["right"] * (2 + len(names))))
    return "\n".join((shown, "", *disagreements_to_lines(results)))


def collect_with_controls(responses: Path) -> StudySamples:
    """Return samples of each split of the demo, with the shuffled responses beside the study's own control.

    Args:
        responses: the folder of the run's response files.
    """
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.scoring.join import collect_samples

    study = load_study(STUDY)
    (entry,) = collect_samples(study, [responses], models=["all"], allow_missing=True)
    clean = entry.samples.get(study.id_split)
    if clean:
        entry.study = study.with_variant(SHUFFLED, study.id_split)
        entry.samples[SHUFFLED] = shuffled(clean)
    return entry


def accuracy_of(right: RightRows) -> dict[str, float]:
    """Return the fraction of rows that are right, by split of :func:`right_rows`."""
    return {name: sum(by_row.values()) / max(1, len(by_row)) for name, by_row in right.items()}


def right_rows(entry: StudySamples) -> RightRows:
    """Return whether each row names every object asked about, by split and the row's key."""
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.shifts.at_load import load_splits

    study = load_study(STUDY)
    asked = {
        (row["question_id"], row["reference_answer"]): row["asked"]
        for name in (study.id_split, *study.controls())
        for row in load_splits(study, [name])[name].remove_columns("image")
    }
    return {
        name: {row.key: all(thing in row.response for thing in asked[row.key]) for row in rows}
        for name, rows in entry.samples.items()
    }


def score_demo(entry: StudySamples, encoders: Path, estimators: Sequence[str]) -> list[StudyResult]:
    """Return results of the demo's samples, one for each estimator.

    Args:
        entry: as :func:`collect_with_controls` gives it.
        encoders: folder of ``vision_encoder`` and ``text_encoder``.
        estimators: names or paths.
    """
    from lmms_eval_emi.scoring.pipeline import score_samples
    from lmms_eval_emi.settings import load_settings

    settings = load_settings(
        resamples=0,
        vision_encoder=str(encoders / "vision_encoder"),
        text_encoder=str(encoders / "text_encoder"),
    )
    return [scored.result for scored in score_samples([entry], settings, estimators=estimators, allow_missing=True)]


def shuffled(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with the response of the next image's row of the same kind of question: relevant to nothing."""
    images = list(dict.fromkeys(sample.id.partition("-")[0] for sample in samples))
    following = dict(zip(images, images[1:] + images[:1], strict=True))
    response = {sample.id: sample.response for sample in samples}
    others = [f"{following[scene]}-{kind}" for scene, _, kind in (sample.id.partition("-") for sample in samples)]
    return [
        replace(sample, response=response[other])
        for sample, other in zip(samples, others, strict=True)
        if other in response
    ]
