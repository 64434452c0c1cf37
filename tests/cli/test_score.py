"""``lmms-eval-emi score`` and ``tasks``, as a user runs them."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from conftest import numbers, run_module

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses import choose_models, find_responses
from lmms_eval_emi.data.responses.llava import read_file, write_response_file
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import ResponsesError

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
    for number, stem in enumerate(
        sorted({split.response_stems[-1] for split in load_study("natural").splits.values()})
    ):
        write_response_file(
            folder / f"{stem}.jsonl", [(row, "", f"a red circle {row} of {number}") for row in range(ROWS)], "tiny"
        )
    return folder


def score(answers, output, *arguments, shift="natural"):
    return main(
        ["score", "--study", shift, "--responses", str(answers), "--output", str(output), "--overwrite", *arguments]
    )


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
    assert f"no responses of the split {GERMAN}. Expected {GERMAN}.jsonl" in message
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
        ('{"question_id": 2, "text": "again"}', ":6: question_id 2 is in line 3 already", 4),
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


def test_a_missing_response(in_tinyhub, answers, tmp_path, capsys):
    path = answers / f"{WILD_GERMAN}.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"question_id": 3' not in line))
    assert score(answers, tmp_path / "results.json") == 1
    assert f"1 of the 5 questions of {EASY_GERMAN} have no usable response: question_id 3" in capsys.readouterr().err


def test_without_the_id_split_emi_is_given_all_the_same(in_tinyhub, answers, tmp_path, caplog):
    (answers / "llava_bench_coco_English.jsonl").unlink()
    output = tmp_path / "results.json"
    assert score(answers, output, "--allow-missing") == 0
    results = json.loads(output.read_text())
    assert "emi" in results["splits"][GERMAN] and "emid" not in results["splits"][GERMAN]
    assert results["summary"]["pearson_r"] is None
    assert "the ID split llava_bench_coco_English of natural was not scored" in caplog.text


def test_an_empty_response_is_a_response(in_tinyhub, answers, tmp_path):
    write_response_file(answers / f"{GERMAN}.jsonl", [(row, "", "") for row in range(ROWS)], "tiny")
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


def test_a_folder_without_responses(in_tinyhub, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    assert score(tmp_path / "nowhere", tmp_path / "r.json") == 1 and "which is not there" in capsys.readouterr().err
    assert score(tmp_path, tmp_path / "r.json") == 1
    assert "expected response files such as llava_bench_coco_English.jsonl" in capsys.readouterr().err


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
        write_response_file(tmp_path / f"{name}.jsonl", [(0, "", name)], "m")
    (found,) = find_responses(tmp_path, load_study("synthetic"))
    assert {name: responses.path.stem for name, responses in found.splits.items()} == {
        name: name for name in names if name != "llava_bench_coco_German"
    }


@pytest.fixture
def paper_layout(tmp_path):
    """Two models in one folder, told apart by their files' suffixes; the lines of one say a longer name."""
    folder = tmp_path / "paper"
    for suffix, model in (("llava-7b", "liuhaotian/llava-v1.5-7b"), ("llava-1.6", None)):
        for stem in sorted({split.response_stems[-1] for split in load_study("natural").splits.values()}):
            rows = [(row, "", f"{suffix} says red {row}") for row in range(ROWS)]
            path = write_response_file(folder / f"{stem}_{suffix}.jsonl", rows, model or "x")
            if model is None:
                path.write_text(path.read_text().replace(', "model_id": "x"', ""))
    return folder


def test_a_model_is_what_its_lines_say_and_else_what_its_files_say(paper_layout):
    study = load_study("natural")
    found = find_responses(paper_layout, study)
    assert [(model.model, len(model.splits)) for model in found] == [
        ("llava-1.6", 28),
        ("liuhaotian/llava-v1.5-7b", 28),
    ]
    folder = {str(paper_layout): found}
    with pytest.raises(ResponsesError, match=r"several models \(liuhaotian/llava-v1.5-7b, llava-1.6\). Choose with"):
        choose_models(folder)
    for wanted in ("llava-7b", "liuhaotian/llava-v1.5-7b"):
        ((_, chosen),) = choose_models(folder, [wanted])
        assert chosen.model == "liuhaotian/llava-v1.5-7b"
        assert all("llava-7b says" in text for own in chosen.splits.values() for text in own.texts.values())
    assert len(choose_models(folder, ["all"])) == len(choose_models(folder, ["llava-7b", "llava-1.6"])) == 2
    with pytest.raises(ResponsesError, match="expected a model that is there, got llava-8b. .* has liuhaotian"):
        choose_models(folder, ["llava-7b", "llava-8b"])


def test_all_models_of_a_folder_in_one_call(in_tinyhub, paper_layout, tmp_path):
    assert score(paper_layout, tmp_path / "r.json") == 1
    assert score(paper_layout, tmp_path / "r.json", "--only-model", "all", "--model-name", "llava-1.6=LLaVA 1.6") == 0
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [result["model"] for result in results] == ["LLaVA 1.6", "liuhaotian/llava-v1.5-7b"]
    assert results[0]["splits"][GERMAN]["emi"] != results[1]["splits"][GERMAN]["emi"]


def test_choosing_a_model_never_relabels_the_responses_of_another(in_tinyhub, answers, tmp_path, capsys):
    """Two folders, one of which holds another model: only the wanted one is scored, under its own name."""
    other = tmp_path / "other"
    for path in answers.iterdir():
        rows = [(row, "", "something else") for row in range(ROWS)]
        write_response_file(other / path.name, rows, "another-model")
    output = tmp_path / "r.json"
    arguments = ["score", "--study", "natural", "--responses", str(answers), str(other), "--output", str(output)]
    assert main([*arguments, "--only-model", "tiny"]) == 0
    assert json.loads(output.read_text())["model"] == "tiny"
    assert main([*arguments, "--overwrite"]) == 0
    assert [result["model"] for result in json.loads(output.read_text())["results"]] == ["tiny", "another-model"]
    assert main([*arguments, "--overwrite", "--model-name", "nobody=x"]) == 1
    assert "expected one of another-model, tiny before the =, got nobody" in capsys.readouterr().err


def test_files_of_several_models_are_not_scored_together(in_tinyhub, answers, tmp_path, capsys):
    write_response_file(answers / f"{GERMAN}.jsonl", [(row, "", "red") for row in range(ROWS)], "another")
    assert score(answers, tmp_path / "r.json", "--split", GERMAN) == 1
    assert "responses of several models (another, tiny)" in capsys.readouterr().err
    assert score(answers, tmp_path / "r.json", "--split", GERMAN, "--model-name", "another=tiny") == 0
    assert set(json.loads((tmp_path / "r.json").read_text())["splits"]) == {"llava_bench_coco_English", GERMAN}


def test_empty_responses_are_told(in_tinyhub, answers, tmp_path, capsys, caplog):
    """Empty responses score well, and are mostly the fault of a stop string."""
    write_response_file(answers / f"{GERMAN}.jsonl", [(row, "", " " * row) for row in range(ROWS)], "tiny")
    assert score(answers, tmp_path / "results.json", "--split", GERMAN) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert "degenerate responses: 5 empty" in results["notes"][GERMAN]
    assert results["splits"][GERMAN]["degenerate"] == {"empty": 5}
    assert "degenerate responses: 5 empty" in caplog.text
    capsys.readouterr()
    estimators = ["--estimator", "cosine", "--estimator", "dcor"]
    assert score(answers, tmp_path / "several.json", "--split", GERMAN, *estimators) == 0
    printed = capsys.readouterr().out
    assert printed.count("degenerate") == 2 and "cosine and dcor give EMID another sign" in printed


def test_scores_without_degenerate_responses(in_tinyhub, answers, tmp_path):
    """Their partners are left out of the comparison; a split that has no others is left out, and said."""
    rows = [(row, "", "" if row < 2 else "a red star") for row in range(ROWS)]
    write_response_file(answers / f"{GERMAN}.jsonl", rows, "tiny")
    output = tmp_path / "results.json"
    assert score(answers, output, "--split", GERMAN, "--without-degenerate") == 0
    results = json.loads(output.read_text())
    assert results["splits"][GERMAN]["n"] == ROWS - 2 and results["splits"][GERMAN]["degenerate"] == {"empty": 2}
    assert "degenerate responses, left out: 2 empty" in results["notes"][GERMAN]
    assert any("compare 3 of its rows with 3 of" in note for note in results["notes"][GERMAN])
    assert results["settings"]["responses"] == "not degenerate" and "responses:not degenerate" in results["signature"]
    write_response_file(answers / f"{GERMAN}.jsonl", [(row, "", "") for row in range(ROWS)], "tiny")
    assert score(answers, output, "--split", GERMAN, "--without-degenerate", "--overwrite") == 0
    results = json.loads(output.read_text())
    assert GERMAN not in results["splits"] and "all of its 5 responses are degenerate" in str(results["left_out"])


# A bad row costs itself.


def damaged_hub(hub, folder, split, rows):
    """The tiny hub with damaged images in some rows of a split: cut off, missing, or no image at all."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    shutil.copytree(hub, folder)
    path = folder / f"changdae/llavabench-shift-natural-v1/data/{split}-00000-of-00001.parquet"
    data = Dataset.from_parquet(str(path), cache_dir=str(folder / "c")).cast_column("image", ImageFeature(decode=False))
    records = data.to_list()
    for row, kind in rows.items():
        content = records[row]["image"]["bytes"]
        records[row]["image"] = {
            "cut": {"bytes": content[: len(content) // 2], "path": None},
            "none": None,
            "text": {"bytes": b"no image", "path": None},
        }[kind]
    Dataset.from_list(records, features=data.features).cast_column("image", ImageFeature()).to_parquet(path)
    return folder


def test_a_bad_image_costs_its_row_and_its_partner(in_tinyhub, answers, tmp_path, monkeypatch, capsys):
    hub = damaged_hub(in_tinyhub, tmp_path / "hub", GERMAN, {1: "cut", 3: "text"})
    monkeypatch.chdir(hub)
    output = tmp_path / "r.json"
    assert score(answers, output) == 1 and not output.exists()
    message = capsys.readouterr().err
    assert f"2 of {28 * ROWS} rows cannot be embedded" in message and "--allow-missing" in message
    for row in (1, 3):
        assert f"split {GERMAN}, row {row}: its image cannot be read" in message
    assert "EMI" not in message
    assert score(answers, output, "--allow-missing") == 0
    results = json.loads(output.read_text())
    assert len(results["splits"]) == 28 and results["splits"][GERMAN]["n"] == 3
    assert results["splits"]["llava_bench_coco_English"]["n"] == 5
    assert [f"row {row}: its image" in reason for row, reason in zip((1, 3), results["left_out"][GERMAN], strict=True)]
    assert "EMID and index compare 3 of its rows with 3 of llava_bench_coco_English" in results["notes"][GERMAN][0]
    # The EMID of the three rows that both have is that of the three rows alone.
    for path in answers.glob("llava_bench_coco_*.jsonl"):
        lines = path.read_text().splitlines(True)
        path.write_text("".join(lines[row] for row in (0, 2, 4)))
    assert score(answers, tmp_path / "three.json", "--allow-missing", "--split", GERMAN) == 0
    alone = json.loads((tmp_path / "three.json").read_text())["splits"][GERMAN]
    for key in ("emid", "emid_bound", "jsd_v"):
        assert results["splits"][GERMAN][key] == pytest.approx(alone[key], abs=1e-9)
    others = score(answers, tmp_path / "x.json", "--allow-missing")
    assert others == 0


def test_rows_without_an_image_and_splits_without_a_usable_row(in_tinyhub, answers, tmp_path, monkeypatch, capsys):
    hub = damaged_hub(in_tinyhub, tmp_path / "hub", GERMAN, dict.fromkeys(range(ROWS), "none"))
    monkeypatch.chdir(hub)
    output = tmp_path / "r.json"
    assert score(answers, output, "--allow-missing") == 0
    results = json.loads(output.read_text())
    assert len(results["splits"]) == 27 and GERMAN not in results["splits"]
    assert "none of its rows can be embedded" in results["left_out"][GERMAN][-1]
    assert "it has no image" in results["left_out"][GERMAN][0]


def test_a_bad_row_of_the_id_split_is_left_out_of_every_comparison(in_tinyhub, answers, tmp_path, monkeypatch):
    hub = damaged_hub(in_tinyhub, tmp_path / "hub", "llava_bench_coco_English", {2: "cut"})
    monkeypatch.chdir(hub)
    assert score(answers, tmp_path / "r.json", "--allow-missing") == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["splits"]["llava_bench_coco_English"]["n"] == 4 and results["splits"][GERMAN]["n"] == 5
    assert "compare 4 of its rows with 4 of llava_bench_coco_English" in results["notes"][GERMAN][0]


# Outputs do not replace inputs.


def test_an_output_does_not_replace_what_the_command_reads(in_tinyhub, answers, tmp_path, capsys):
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: x\nid_split: clean\ndataset: {path: rows.jsonl, columns: {image: null}}\n"
        "splits: {clean: {responses: responses/clean.jsonl}}\n"
    )
    rows = [{"question_id": row, "question": "what?", "reference_answer": "red"} for row in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_response_file(tmp_path / "responses" / "clean.jsonl", [(row, "", "red") for row in range(3)], "m")
    for path in (study, tmp_path / "rows.jsonl", tmp_path / "responses" / "clean.jsonl"):
        before = path.read_bytes()
        for overwrite in ([], ["--overwrite"]):
            assert main(["score", "--study", str(study), "--output", str(path), *overwrite]) == 1
            assert "is one of the files that this command reads" in capsys.readouterr().err
        assert path.read_bytes() == before
    output = tmp_path / "r.json"
    assert main(["score", "--study", str(study), "--output", str(output)]) == 0
    before = output.read_bytes()
    assert main(["score", "--study", str(study), "--output", str(output)]) == 1
    assert "exists. Name another file, or pass --overwrite" in capsys.readouterr().err and output.read_bytes() == before
    assert main(["report", str(output), "--output", str(output), "--overwrite"]) == 1


@pytest.mark.parametrize(
    "command",
    [
        ["tasks", "list"],
        ["shifts", "list"],
        ["tasks", "prefetch", "--check"],
        ["report", "x.json"],
        ["score", "--study", "natural"],
    ],
)
def test_every_command_refuses_a_mistyped_variable(command, monkeypatch, capsys):
    monkeypatch.setenv("LMMS_EVAL_EMI_DEVCE", "cpu")
    assert main(command) == 1
    assert "Did you mean LMMS_EVAL_EMI_DEVICE" in capsys.readouterr().err


def test_ids_of_any_type_and_texts_of_any_character(in_tinyhub, answers, tmp_path):
    assert score(answers, tmp_path / "plain.json", "--split", GERMAN) == 0
    path = answers / f"{GERMAN}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**record, "question_id": float(record["question_id"])}) + "\r\n" for record in records)
    )
    assert score(answers, tmp_path / "floats.json", "--split", GERMAN) == 0
    plain, floats = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "floats"))
    assert plain.pop("rows")["sha256"] == floats.pop("rows")["sha256"] and plain == floats
    path.write_text("".join(json.dumps({**record, "text": "half a \ud83d"}) + "\n" for record in records))
    assert score(answers, tmp_path / "surrogates.json", "--split", GERMAN) == 0


def test_results_are_written_before_they_are_printed(in_tinyhub, answers, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError))
    monkeypatch.setattr("lmms_eval_emi.cli.commands.stdout_is_closed", lambda: True)
    monkeypatch.setattr("os.dup2", lambda *_: None)  # the stdout of the tests stays
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


def test_responses_survive_being_written_and_read(tmp_path):
    texts = {"1": 'quotes " and\nlines', "2": "", "x": "한국어 😀 \u2028 \x0b"}
    write_response_file(tmp_path / "a.jsonl", [(key, "q", text) for key, text in texts.items()], "model")
    read = read_file(tmp_path / "a.jsonl")["model"]
    assert (read.texts, read.problems) == (texts, ())
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    (problem,) = read_file(tmp_path / "b.jsonl")[None].problems
    assert "b.jsonl: expected a UTF-8 file" in problem


def test_results_go_to_stdout_and_the_rest_to_stderr(in_tinyhub, answers, tmp_path):
    done = run_module(
        "lmms_eval_emi.cli",
        "score",
        "--study",
        "natural",
        "--responses",
        str(answers),
        "--split",
        GERMAN,
        cwd=in_tinyhub,
        LMMS_EVAL_EMI_CACHE=str(tmp_path / "cache"),  # where nothing is known yet
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("llava-bench under natural shifts") and "signature" in done.stdout.splitlines()[-1]
    assert "Warning" not in done.stderr and "Encoding texts" in done.stderr


def test_tasks(capsys):
    assert main(["tasks", "list"]) == 0
    printed = capsys.readouterr().out
    for name in (
        "llavabench_shift_natural_wild_hard_hindi",
        "llavabench_shift_synthetic_frost_5_synonym_7",
        "llavabench_shift_natural_joint",
    ):
        assert name in printed
    assert main(["tasks", "path"]) == 0
    folder = capsys.readouterr().out.strip()
    assert shutil.os.path.isdir(folder) and folder in printed


def test_help_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys; from lmms_eval_emi.cli.commands import overview, parser_of; overview(); parser_of('score').format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("reads", [True, False])
def test_a_pipe_that_nobody_reads_any_more_is_no_error(reads):
    """As behind ``| head``; and a broken pipe of something else is one."""
    import subprocess
    import sys

    code = "import sys; from lmms_eval_emi.cli import main, tasks_list; sys.exit(main(['tasks', 'list']))"
    if reads:
        code = code.replace(
            "sys.exit",
            "tasks_list.run = lambda args: (_ for _ in ()).throw(BrokenPipeError('a worker is gone')); sys.exit",
        )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not reads:
        process.stdout.close()
    error = process.stderr.read()
    status = process.wait(60)
    assert "Traceback" not in error
    assert (status, error) == (1, "error: a worker is gone\n") if reads else status == 141


def test_images_of_another_folder_are_allowed_in_python_and_by_option(in_tinyhub, tmp_path):
    """Each has to do what the variable does: paths outside the study's own folders are refused without it."""
    from PIL import Image

    from lmms_eval_emi.scoring.pipeline import score as score_in_python

    pictures, own = tmp_path / "pictures", tmp_path / "study"
    pictures.mkdir()
    own.mkdir()
    for row in range(4):
        Image.new("RGB", (32, 32), (60 * row, 20, 90)).save(pictures / f"{row}.png")
    lines = [
        {"id": row, "image": str(pictures / f"{row}.png"), "question": f"What is {row}?", "answer": f"It is {row}."}
        for row in range(4)
    ]
    (own / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = "columns: {id: id, image: image, question: question, reference: answer}"
    (own / "study.yaml").write_text(
        f"name: mine\nid_split: clean\ndataset: {{path: rows.jsonl, {columns}}}\nsplits:\n  clean: {{responses: clean.jsonl}}\n"
    )
    write_response_file(own / "clean.jsonl", [(row, "", f"A {row}.") for row in range(4)], "m")
    command = ["score", str(own / "study.yaml"), "--estimator", "dcor", "--output", str(tmp_path / "r.json")]
    assert main(command) == 1
    assert main([*command, "--images", str(pictures)]) == 0
    (result,) = score_in_python(own / "study.yaml", estimators=["dcor"], images=pictures)
    assert result.splits["clean"].n == 4


def test_one_folder_keeps_all_that_a_run_caches(in_tinyhub, answers, tmp_path, monkeypatch):
    from lmms_eval_emi.scoring.pipeline import score as score_in_python

    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "variable"))
    score_in_python("natural", answers, splits=[GERMAN], resamples=0, cache=tmp_path / "given")
    assert {path.name for path in (tmp_path / "given").iterdir()} >= {"embeddings", "fingerprints"}
    assert not (tmp_path / "variable").exists()


def test_a_bug_of_ours_is_no_mistake_of_the_user(in_tinyhub, answers, tmp_path, monkeypatch, capsys):
    """A ValueError is what half of all bugs raise; only errors of our own are told as the user's."""
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))

    def fault(*args, **options):
        raise ValueError("a fault")

    monkeypatch.setattr("lmms_eval_emi.scoring.pipeline.score_study", fault)
    assert score(answers, tmp_path / "r.json", "--split", GERMAN) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    (log,) = (tmp_path / "cache" / "logs").iterdir()
    assert "This is a bug of lmms_eval_emi" in error and str(log) in error and "Traceback" in log.read_text()
