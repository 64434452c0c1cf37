"""``lmms-eval-emi score`` and ``tasks``, as a user runs them."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from conftest import numbers, run_module

from lmms_eval_emi.answers import AnswersError
from lmms_eval_emi.answers.llava import find_answer_files, read_file, write_answer_file
from lmms_eval_emi.cli import main
from lmms_eval_emi.studies.catalogue import load_study

ROWS = 5
GERMAN, EASY_GERMAN, WILD_GERMAN = (
    "llava_bench_coco_German",
    "llava_bench_in_the_wild_easy_German",
    "llava_bench_in_the_wild_German",
)


@pytest.fixture
def answers(tmp_path):
    """Answers of every natural split, the in-the-wild ones a file a language."""
    folder = tmp_path / "answers"
    for number, stem in enumerate(sorted({split.answer_stems[-1] for split in load_study("natural").splits.values()})):
        write_answer_file(
            folder / f"{stem}.jsonl", [(row, "", f"a red circle {row} of {number}") for row in range(ROWS)], "tiny"
        )
    return folder


def score(answers, output, *arguments, shift="natural"):
    return main(["score", "--shift", shift, "--responses", str(answers), "--output", str(output), *arguments])


def test_all_splits(in_tinyhub, answers, tmp_path, capsys):
    output = tmp_path / "new" / "results.json"
    assert score(answers, output) == 0
    results = json.loads(output.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    study = load_study("natural")
    assert (results["model"], results["shift"], results["id_split"]) == ("tiny", "natural", study.id_split)
    assert list(results["splits"]) == list(study.splits)
    id_figures = results["splits"][study.id_split]
    for name in study.shifts():
        figures = results["splits"][name]
        assert figures["n"] == ROWS
        assert figures["emi"] == pytest.approx(figures["mi_response"] - figures["mi_reference"])
        assert figures["emid"] == pytest.approx(id_figures["emi"] - figures["emi"])
        roots = (
            math.sqrt(figures["jsd_v"])
            + math.sqrt(figures["jsd_t"])
            + figures["jsd_id_response"] ** 0.25
            + figures["jsd_ood_response"] ** 0.25
        )
        assert figures["emid_bound"] == pytest.approx(roots)
    emids = [results["splits"][name]["emid"] for name in study.shifts()]
    bounds = [results["splits"][name]["emid_bound"] for name in study.shifts()]
    summary = results["summary"]
    assert summary["mean_emid"] == pytest.approx(sum(emids) / 27) and summary["mean_bound"] == pytest.approx(
        sum(bounds) / 27
    )
    centred = [(a - summary["mean_emid"], b - summary["mean_bound"]) for a, b in zip(emids, bounds, strict=True)]
    r = sum(a * b for a, b in centred) / math.sqrt(sum(a * a for a, _ in centred) * sum(b * b for _, b in centred))
    assert summary["pearson_r"] == pytest.approx(r)
    assert "convention:published" in results["signature"] and "estimator:tiny@" in results["signature"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in study.splits) and results["signature"] in printed


def test_chosen_splits_come_with_the_id_split(in_tinyhub, answers, tmp_path):
    output = tmp_path / "results.json"
    assert score(answers, output, "--split", GERMAN) == 0
    figures = json.loads(output.read_text())["splits"]
    assert list(figures) == ["llava_bench_coco_English", GERMAN]
    assert score(answers, tmp_path / "all.json") == 0
    expected = json.loads((tmp_path / "all.json").read_text())["splits"][GERMAN]
    assert numbers(figures[GERMAN]) == pytest.approx(numbers(expected), abs=1e-9)


def test_estimator_convention_and_entropy_are_recorded(in_tinyhub, answers, tmp_path, monkeypatch):
    monkeypatch.delenv("LMMS_EVAL_EMI_ESTIMATOR")
    output = tmp_path / "results.json"
    assert (
        score(
            answers,
            output,
            "--split",
            GERMAN,
            "--estimator",
            "tiny.safetensors",
            "--convention",
            "equal_weight",
            "--entropy",
            "2",
        )
        == 0
    )
    results = json.loads(output.read_text())
    assert results["settings"]["convention"] == "equal_weight" and results["settings"]["kind"] == "theorem(entropy=2)"
    figures = results["splits"][GERMAN]
    assert figures["emid_bound"] == pytest.approx(
        2 * (figures["jsd_v"] ** 0.5 + figures["jsd_t"] ** 0.5)
        + 4 * (figures["jsd_id_response"] ** 0.25 + figures["jsd_ood_response"] ** 0.25)
    )


def test_a_missing_file_and_what_to_do(in_tinyhub, answers, tmp_path, capsys):
    (answers / f"{GERMAN}.jsonl").unlink()
    (answers / f"{WILD_GERMAN}.jsonl").unlink()
    output = tmp_path / "results.json"
    assert score(answers, output) == 1
    message = capsys.readouterr().err
    assert f"no answers of the split {GERMAN}. Expected {GERMAN}.jsonl" in message
    assert f"Expected {EASY_GERMAN}.jsonl or {WILD_GERMAN}.jsonl" in message
    assert "--allow-missing" in message and not output.exists()
    assert score(answers, output, "--allow-missing") == 0
    results = json.loads(output.read_text())
    assert len(results["splits"]) == 24 and set(results["left_out"]) == {
        GERMAN,
        EASY_GERMAN,
        *(EASY_GERMAN.replace("easy", level) for level in ("normal", "hard")),
    }


@pytest.mark.parametrize(
    ("line", "message", "rows"),
    [
        ('{"question_id": 2, "text": "again"}', ":6: question_id 2 stands in line 3 already", 4),
        ("{not json", ":6: not a line of JSON", 5),
        ('{"question_id": 9}', ":6: expected an object with question_id and text", 5),
        ('{"question_id": 9, "text": null}', ":6: expected an object with question_id and text", 5),
        ("[1]", ":6: expected an object with question_id and text", 5),
    ],
)
def test_lines_that_cannot_be_used(in_tinyhub, answers, tmp_path, capsys, line, message, rows):
    with (answers / f"{GERMAN}.jsonl").open("a") as file:
        file.write(line + "\n\n")
    output = tmp_path / "results.json"
    assert score(answers, output) == 1
    assert f"{GERMAN}.jsonl{message}" in capsys.readouterr().err
    assert score(answers, output, "--allow-missing") == 0
    results = json.loads(output.read_text())
    assert results["splits"][GERMAN]["n"] == rows and message in results["left_out"][GERMAN][0]


def test_a_missing_answer(in_tinyhub, answers, tmp_path, capsys):
    path = answers / f"{WILD_GERMAN}.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"question_id": 3' not in line))
    assert score(answers, tmp_path / "results.json") == 1
    assert f"1 of the 5 questions of {EASY_GERMAN} have no usable answer: question_id 3" in capsys.readouterr().err


def test_without_the_id_split_emi_is_given_all_the_same(in_tinyhub, answers, tmp_path, caplog):
    (answers / "llava_bench_coco_English.jsonl").unlink()
    output = tmp_path / "results.json"
    assert score(answers, output, "--allow-missing") == 0
    results = json.loads(output.read_text())
    assert "emi" in results["splits"][GERMAN] and "emid" not in results["splits"][GERMAN]
    assert results["summary"]["pearson_r"] is None
    assert "The ID split llava_bench_coco_English was not scored" in caplog.text


def test_an_empty_answer_is_an_answer(in_tinyhub, answers, tmp_path):
    write_answer_file(answers / f"{GERMAN}.jsonl", [(row, "", "") for row in range(ROWS)], "tiny")
    assert score(answers, tmp_path / "results.json", "--split", GERMAN) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "llava_bench_coco_Germn"], "Did you mean llava_bench_coco_German?"),
        (["--estimator", "nothing.pt"], "expected a registered name"),
        (["--entropy", "-1"], "--entropy: "),
        (["--batch-size", "0"], "--batch-size: "),
        (["--vision-encoder", "nobody/nothing"], "LMMS_EVAL_EMI_VISION_ENCODER"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(in_tinyhub, answers, tmp_path, capsys, arguments, message):
    assert score(answers, tmp_path / "results.json", *arguments) == 1
    error = capsys.readouterr().err
    assert error.strip().splitlines()[0].startswith("error: ") and message in error and "Traceback" not in error


def test_a_folder_without_answers(in_tinyhub, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    assert score(tmp_path / "nowhere", tmp_path / "r.json") == 1 and "which is not there" in capsys.readouterr().err
    assert score(tmp_path, tmp_path / "r.json") == 1
    assert "expected answer files such as llava_bench_coco_English.jsonl" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_found_before_the_work(in_tinyhub, answers, tmp_path, capsys):
    assert score(answers, tmp_path) == 1
    assert "output: expected a file, got the folder" in capsys.readouterr().err


def test_a_dataset_that_is_not_there(answers, tmp_path, monkeypatch, capsys):
    from lmms_eval_emi.estimators import CLUB

    CLUB(4, 4, 2).save(tmp_path / "e.safetensors")
    monkeypatch.chdir(tmp_path)
    assert score(answers, tmp_path / "r.json", "--estimator", "e.safetensors") == 1
    assert "hf download --repo-type dataset changdae/llavabench-shift-natural-v1" in capsys.readouterr().err


def test_files_belong_to_the_longest_name(tmp_path):
    """A file of another split, or of the other family, is not taken for a model's file."""
    names = ["llava_bench_coco", "llava_bench_coco_frost_1", "llava_bench_coco_German", "llava_bench_coco_frost_1_sr_4"]
    for name in names:
        (tmp_path / f"{name}.jsonl").touch()
    found = find_answer_files(tmp_path, load_study("synthetic"))
    assert {name: path.stem for name, path in found.items()} == {
        name: name for name in names if name != "llava_bench_coco_German"
    }


def test_answers_of_several_models(tmp_path):
    for name in ("llava_bench_coco_llava-7b", "llava_bench_coco_llava-13b", "llava_bench_coco_frost_1_llava-7b"):
        (tmp_path / f"{name}.jsonl").touch()
    study = load_study("synthetic")

    def stems(model=None):
        return {path.stem for path in find_answer_files(tmp_path, study, model).values()}

    with pytest.raises(AnswersError, match=r"answers of several models \(llava-13b, llava-7b\). Pick one with --model"):
        stems()
    assert stems("llava-7b") == {"llava_bench_coco_llava-7b", "llava_bench_coco_frost_1_llava-7b"}
    assert stems("llava-13b") == {"llava_bench_coco_llava-13b"}, "no split takes another model's file"
    with pytest.raises(AnswersError, match="expected answers of one of llava-13b, llava-7b, got --model llava-8b"):
        stems("llava-8b")
    (tmp_path / "llava_bench_coco_frost_3.jsonl").touch()
    assert stems() == {"llava_bench_coco_frost_3"}, "plain files and a model's are not mixed"


def test_empty_answers_and_several_model_ids_are_told(in_tinyhub, answers, tmp_path, caplog):
    """Empty answers score well, and are mostly the fault of a stop string."""
    write_answer_file(answers / f"{GERMAN}.jsonl", [(row, "", " " * row) for row in range(ROWS)], "another")
    assert score(answers, tmp_path / "results.json", "--split", GERMAN) == 0
    assert json.loads((tmp_path / "results.json").read_text())["notes"] == {GERMAN: ["5 of 5 answers are empty"]}
    assert "5 of 5 answers are empty" in caplog.text and "name several models as model_id" in caplog.text


def test_ids_of_any_type_and_texts_of_any_character(in_tinyhub, answers, tmp_path):
    assert score(answers, tmp_path / "plain.json", "--split", GERMAN) == 0
    path = answers / f"{GERMAN}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**record, "question_id": float(record["question_id"])}) + "\r\n" for record in records)
    )
    assert score(answers, tmp_path / "floats.json", "--split", GERMAN) == 0
    assert (tmp_path / "floats.json").read_text() == (tmp_path / "plain.json").read_text()
    path.write_text("".join(json.dumps({**record, "text": "half a \ud83d"}) + "\n" for record in records))
    assert score(answers, tmp_path / "surrogates.json", "--split", GERMAN) == 0


def test_figures_are_written_before_they_are_printed(in_tinyhub, answers, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError))
    output = tmp_path / "results.json"
    monkeypatch.setattr("sys.stderr.close", lambda: None, raising=False)
    assert score(answers, output, "--split", GERMAN) == 141
    assert json.loads(output.read_text())["splits"]


def test_an_output_that_is_a_link_or_a_device(in_tinyhub, answers, tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    assert score(answers, link, "--split", GERMAN) == 0
    assert link.is_symlink() and json.loads(target.read_text())["splits"]
    assert score(answers, "/dev/null", "--split", GERMAN) == 0
    assert shutil.os.path.exists("/dev/null") and not shutil.os.path.isfile("/dev/null")


def test_answers_survive_being_written_and_read(tmp_path):
    texts = {"1": 'quotes " and\nlines', "2": "", "x": "한국어 😀 \u2028 \x0b"}
    write_answer_file(tmp_path / "a.jsonl", [(key, "q", text) for key, text in texts.items()], "model")
    read = read_file(tmp_path / "a.jsonl")
    assert (read.texts, read.model, read.problems) == (texts, "model", ())
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AnswersError, match="b.jsonl: expected a UTF-8 file"):
        read_file(tmp_path / "b.jsonl")


def test_results_go_to_stdout_and_the_rest_to_stderr(in_tinyhub, answers, tmp_path):
    done = run_module(
        "lmms_eval_emi.cli",
        "score",
        "--shift",
        "natural",
        "--responses",
        str(answers),
        "--split",
        GERMAN,
        cwd=in_tinyhub,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("llava-bench under natural shifts") and "signature" in done.stdout.splitlines()[-1]
    assert "Warning" not in done.stderr and "Encoding texts" in done.stderr


def test_tasks(capsys):
    assert main(["tasks"]) == 0
    printed = capsys.readouterr().out
    for name in (
        "llavabench_shift_natural_wild_hard_hindi",
        "llavabench_shift_synthetic_frost_5_synonym_7",
        "llavabench_shift_natural_joint",
    ):
        assert name in printed
    assert main(["tasks", "--path"]) == 0
    folder = capsys.readouterr().out.strip()
    assert shutil.os.path.isdir(folder) and folder in printed


def test_help_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys; from lmms_eval_emi.cli import build_parser; build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
