"""What a new user meets in the first hour: order of checks, help, slips of the pen, interruptions."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import run_module
from PIL import Image

from lmms_eval_emi.cli import main
from lmms_eval_emi.cli.commands import COMMANDS as TABLE
from lmms_eval_emi.cli.commands import command_in, parser_of
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import UnavailableError
from lmms_eval_emi.estimators import load_estimator
from lmms_eval_emi.harness.common import SUITE
from lmms_eval_emi.harness.lmms_eval.preflight import RunStopped, check, missing_package, studies_of
from lmms_eval_emi.scoring.pipeline import load_instruments
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.shifts.apply import parse_steps
from lmms_eval_emi.shifts.contact_sheet import CHANGED, contact_sheet

COMMANDS = {name: parser_of(name) for name in TABLE}


@pytest.fixture
def no_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading any dataset fails the test."""
    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(f"datasets.{name}", lambda *args, **kwargs: pytest.fail("a dataset was asked for"))


@pytest.mark.parametrize(
    "command", [["score"], ["estimators", "train", "--output", "x.safetensors"], ["estimators", "audit"]]
)
def test_responses_are_looked_for_before_datasets(command, no_datasets, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--study", "natural", "--responses", str(tmp_path / "nothing")]) == 1
    assert "nothing, which is not there" in capsys.readouterr().err
    assert main([*command, "--study", "natural"]) == 1
    assert "--responses DIR" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_told_at_once(no_datasets, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shifts", "apply", "nothing.parquet", "out", "--visual", "fog:3"]) == 1
    assert "expected a file at" in capsys.readouterr().err


def test_the_command_alone_shows_all_commands_with_an_example(capsys) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^{name} +\S.*\n +\S*lmms-eval", printed, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_and_every_default(name: str) -> None:
    text = COMMANDS[name].format_help()
    assert re.search(r"examples:\n  \S*lmms-eval", text.replace("HF_HUB_OFFLINE=1 ", ""))
    for action in COMMANDS[name]._actions:
        if action.option_strings and action.default not in (None, False, [], (), argparse.SUPPRESS):
            shown = " ".join(action.help % {**vars(action), "prog": ""} for _ in (0,)) if action.help else ""
            own = text[text.index(f"{action.option_strings[-1]}") :]
            assert "default" in shown or str(action.default) in own.replace("\n", " "), action.option_strings


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_are_command_lines(name: str) -> None:
    """Each example is one that the parser takes."""
    for line in COMMANDS[name].format_help().partition("examples:\n")[2].splitlines():
        words = line.replace("HF_HUB_OFFLINE=1 ", "").split()
        if words and words[0] == "lmms-eval-emi":
            command = command_in(words[1:])
            assert command is not None, line
            _, others = COMMANDS[command].parse_known_args(words[1 + len(command.split()) :])
            assert not others or command == "run"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["score", "--respnses", "x"], "Did you mean --responses?"),
        (["score", "--study", "natural", "--estimatr=x"], "Did you mean --estimator?"),
        (["report", "x.json", "--fromat", "md"], "Did you mean --format?"),
    ],
)
def test_an_unknown_option_names_the_nearest_with_the_commands_usage(arguments, hint, capsys) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    printed = capsys.readouterr().err
    assert hint in printed and f"usage: lmms-eval-emi {arguments[0]}" in printed


@pytest.mark.parametrize(
    "order",
    [
        ["SRC", "DST", "--visual", "brightness:3"],
        ["--visual", "brightness:3", "SRC", "DST"],
        ["SRC", "--visual", "brightness:3", "DST"],
        ["--visual", "brightness:3", "--textual", "punctuation:3", "SRC", "DST"],
    ],
)
def test_shift_takes_its_places_in_any_order(order, tmp_path, capsys) -> None:
    from datasets import Dataset

    picture = Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8))
    rows = [{"id": 1, "image": picture, "question": "What is seen here?", "answer": "nothing"}]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    places = {"SRC": str(tmp_path / "rows.parquet"), "DST": str(tmp_path / "suite")}
    assert main(["shifts", "apply", *(places.get(one, one) for one in order), "--processes", "1"]) == 0
    assert (tmp_path / "suite" / "study.yaml").is_file()


def test_a_slip_in_an_operators_name_is_no_place(tmp_path, capsys) -> None:
    assert main(["shifts", "apply", "--visual", "brightnes:3", "fogg:1"]) == 1
    assert "Did you mean" in capsys.readouterr().err


def test_the_shell_can_complete(tmp_path: Path) -> None:
    """As bash asks: the line so far, its length, and an open descriptor for the answer."""
    line = "lmms-eval-emi sco"
    variables = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    variables |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"), "_ARGCOMPLETE_COMP_WORDBREAKS": " "}
    code = "import sys; sys.argv[0] = 'lmms-eval-emi'; from lmms_eval_emi.cli import main; main()"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, check=False)
    assert (tmp_path / "answer").read_text().split() == ["score"]


def test_an_estimators_card_says_which_encoders(monkeypatch) -> None:
    for variable in ("VISION_ENCODER", "TEXT_ENCODER"):
        monkeypatch.delenv(f"LMMS_EVAL_EMI_{variable}", raising=False)
    found = load_instruments(load_settings(), ["demo"])
    assert Path(found.encoders.vision.name).name == "vision_encoder"
    assert found.encoders.vision.dimension == load_estimator("demo").input_dimension
    monkeypatch.setenv("LMMS_EVAL_EMI_VISION_ENCODER", "somebody/elses")
    with pytest.raises(UnavailableError, match="somebody/elses"):
        load_instruments(load_settings(), ["demo"])


def test_the_demos_study_is_scored_as_it_stands(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["score", "--study", "demo"]) == 1
    assert "lmms-eval-emi demo" in capsys.readouterr().err
    study = load_study("demo")
    from lmms_eval_emi.shifts.at_load import load_splits

    names = [study.id_split, *study.shifts()[:2]]
    for name, rows in load_splits(study, names).items():
        folder = tmp_path / "emi-demo" / "model" / "20260101_emi_responses" / "demo"
        answers = [(row["question_id"], "", row["reference_answer"]) for row in rows.remove_columns("image")]
        write_response_file(folder / f"{name}.jsonl", answers, "m")
    assert main(["score", "--study", "demo", "--output", "results.json"]) == 0
    printed = capsys.readouterr().out
    assert "demo@" in printed and printed.splitlines()[-1] == "lmms-eval-emi report results.json"
    assert main(["score", "--study", "demo", "--output", "results.json"]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_few_rows_are_told_and_r_over_them_is_no_number_of_four_digits(in_tinyhub, tmp_path, capsys) -> None:
    study = load_study("natural")
    for stem in {split.response_stems[-1] for split in study.splits.values()}:
        rows = [(row, "", f"a red circle {row}") for row in range(5)]
        write_response_file(tmp_path / "responses" / f"{stem}.jsonl", rows, "tiny")
    assert main(["score", "--study", "natural", "--responses", str(tmp_path / "responses")]) == 0
    printed = capsys.readouterr().out
    assert "28 of 28 splits have fewer than 30 rows" in printed and "(too few shifts or images)" in printed
    assert not re.search(r"-?0\.\d{4} *$", next(line for line in printed.splitlines() if line.startswith("all ")))


def test_an_interrupted_training_says_resume(in_tinyhub, tmp_path, monkeypatch, caplog, capsys) -> None:
    def interrupted(*args, checkpoint: Path, **kwargs):
        checkpoint.write_bytes(b"state")
        raise KeyboardInterrupt

    monkeypatch.setattr("lmms_eval_emi.estimators.training.train_estimator", interrupted)
    study = load_study("natural")
    for stem in {split.response_stems[-1] for split in study.splits.values()}:
        write_response_file(tmp_path / f"{stem}.jsonl", [(row, "", f"a {row}") for row in range(5)], "tiny")
    command = ["estimators", "train", "--study", "natural", "--responses", str(tmp_path)]
    assert main([*command, "--output", str(tmp_path / "mine.safetensors")]) == 130
    assert "--resume" in caplog.text


def test_ctrl_c_in_the_demo_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="lmms-eval's llava_hf needs decord")
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from lmms_eval_emi.cli import main; sys.exit(main(['demo', '--output', sys.argv[1]]))"
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "demo")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(6)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in errors
    assert errors.strip().splitlines()[-1] == "interrupted"


def test_a_missing_requirement_is_a_note_on_the_sheet_and_no_diff() -> None:
    steps = parse_steps("text", "formal")  # asks an endpoint, which is not given
    sheet = np.asarray(contact_sheet(None, "What is seen here?", [], steps))
    red = tuple(int(CHANGED[place : place + 2], 16) for place in (1, 3, 5))
    assert not (sheet == red).all(axis=-1).any()
    changed = np.asarray(contact_sheet(None, "What is seen here?", [], parse_steps("text", "keyboard:7")))
    assert (changed == red).all(axis=-1).any()


def test_a_run_is_checked_before_its_model_is_loaded(tinyhub: Path, tmp_path: Path) -> None:
    """Without datasets, encoders and estimator, offline: all of it is told, and the model is never asked for."""
    arguments = ["--tasks", "llavabench_shift_natural", "--model", "llava_hf", "--model_args", "pretrained=no/model"]
    done = run_module("lmms_eval", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "missing: dataset natural" in told and "hf download --repo-type dataset" in told
    assert "estimator" in told and "no/model" not in told


def test_a_models_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install decord" in missing_package("llava_hf")[0]
    assert "haotian-liu/LLaVA" in missing_package("llava")[0]
    assert missing_package("qwen2_vl") == []


def test_groups_and_tasks_are_known_by_their_files(in_tinyhub: Path) -> None:
    from lmms_eval_emi.harness.lmms_eval.compat.task_index import tasks_folder

    folder = tasks_folder() / SUITE
    assert studies_of(folder / "groups" / "llavabench_shift.yaml") == ["natural", "synthetic"]
    assert studies_of(folder / "groups" / "llavabench_shift_natural_text.yaml") == ["natural"]
    assert studies_of(folder / "synthetic" / "clean.yaml") == ["synthetic"]
    check([str(folder / "groups" / "llavabench_shift.yaml")], "some_model")  # all is there
    with pytest.raises(RunStopped, match="decord"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        check([str(folder / "groups" / "llavabench_shift.yaml")], "llava_hf")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("score natural --estimator ref", "reference-r2"),
        ("score --study nat", "natural"),
        ("shifts apply rows.parquet out --visual defo", "defocus_blur"),
        ("shifts suites pope_cor", "pope_corruption"),
        ("shifts ap", "apply"),
    ],
)
def test_a_shell_completes_names(tmp_path, line, name):
    """As bash asks through argcomplete: the line so far in variables, the answer in a file."""
    pytest.importorskip("argcomplete")
    line = f"lmms-eval-emi {line}"
    answer = tmp_path / "answer"
    variables = {
        **{"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"},
        **{"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"},
    }
    run_module("lmms_eval_emi", cwd=tmp_path, **variables)
    assert name in answer.read_text().split("\n")
