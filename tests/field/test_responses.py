"""What stands in the place of a response, or around it: error messages, thoughts, repeated lines, copies of programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lmms_eval_emi.data.response_text import TAGS, is_failed_request, without_thoughts
from lmms_eval_emi.data.responses import find_responses
from lmms_eval_emi.data.rows import Sample, row_key
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import ResponsesError
from lmms_eval_emi.util.journal import Answers, Request


@pytest.mark.parametrize(
    "text",
    [
        "[LMMS_EVAL_REQUEST_FAILED after 3 retries] Error code: 400",
        "[LMMS_EVAL_BUDGET_EXCEEDED]",
        "[GENERATION_FAILED] out of memory",
        "[SAFETY_BLOCKED:PROHIBITED_CONTENT]",
        "Failed to obtain answer via API. ",
    ],
)
def test_error_messages_of_harnesses_are_no_responses(text):
    assert is_failed_request(text)


@pytest.mark.parametrize("text", ["", "The sign says [ERROR 404].", "I failed to obtain answers.", "[a list]"])
def test_responses_about_errors_are_responses(text):
    assert not is_failed_request(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>\nhm\n</think>\n\nA circle.", "A circle."),
        ("<think>a</think>One.<think>b</think> Two.", "One. Two."),
        ("and so it is round.</think>A circle.", "A circle."),
        ("<think>never closed", ""),
        ("<reasoning>x</reasoning> A circle.", "A circle."),
        ("I think it is < 3.", "I think it is < 3."),
        ("A <think> tag is shown in the picture.", "A <think> tag is shown in the picture."),
        ("\u25c1think\u25b7hm\u25c1/think\u25b7A circle.", "A circle."),
        ("[THINK]hm[/THINK]A circle.", "A circle."),
        ("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>A circle.", "A circle."),
    ],
)
def test_thoughts_are_taken_out(text, left):
    assert without_thoughts(text) == left


def test_the_tags_of_the_harness_are_known():
    main = pytest.importorskip("lmms_eval.__main__")
    default = re.search(r"--reasoning_tags.*?default='(.*?)'", Path(main.__file__).read_text(), re.DOTALL)[1]
    assert set(map(tuple, json.loads(default))) <= set(TAGS)


def test_closed_thoughts_are_taken_out_as_the_harness_does():
    strip = pytest.importorskip("lmms_eval.api.reasoning").strip_reasoning_tags
    for text in ("<think>a</think> b", "a</think>b", "no thoughts", "<think>a</think>b<think>c</think>d"):
        assert without_thoughts(text) == strip(text, [["<think>", "</think>"]])


def test_a_row_is_itself_whatever_a_program_made_of_it():
    clean = Sample(image=None, question="q", response="r", reference="A cat.\nIt sits.", id=7)
    for row_id, reference in (
        (7.0, "A cat.\r\nIt sits."),
        ("7", "A cat.\nIt sits. "),
        ("7.0", "A cat.  It sits."),
        (b"7", "\ufeffA cat.\nIt sits."),
        ("7 ", clean.reference),
    ):
        assert row_key(row_id, reference) == clean.key
    assert row_key("e\u0301", "") == row_key("\u00e9", "")
    assert row_key("007", clean.reference) != clean.key and row_key(7, "A dog.") != clean.key


@pytest.fixture
def written(tmp_path):
    study = load_study("natural")
    folder = tmp_path / "out" / "toy"
    folder.mkdir(parents=True)

    def write(place, rows=3):
        place.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"doc_id": row, "filtered_resps": [f"a {row}"]}) for row in range(rows)]
        place.write_text("\n".join(lines) + "\n")
        return place

    name = "20261128_100000_samples_llavabench_shift_natural_coco_german.jsonl"
    write(folder / name)
    return study, folder, write, name


@pytest.mark.parametrize(
    "beside", ["__MACOSX/toy/._{}", "toy/._{}", "toy/.ipynb_checkpoints/{}", "recovered/toy/{}"], ids=lambda one: one
)
def test_what_programs_leave_beside_responses_is_not_read(written, beside):
    study, folder, write, name = written
    write(folder.parent / beside.format(name), rows=1)
    (model,) = find_responses(folder.parent, study)
    assert model.model == "toy" and len(model.splits["llava_bench_coco_German"].texts) == 3


def test_an_output_folder_without_samples_gives_the_latest_saved_responses(tmp_path):
    study = load_study("natural")
    for stamp, text in (("20261127", "old"), ("20261128", "new")):
        folder = tmp_path / "toy" / f"{stamp}_100000_emi_responses" / "natural"
        folder.mkdir(parents=True)
        (folder / "llava_bench_coco_German.jsonl").write_text(
            json.dumps({"question_id": 0, "text": text, "model_id": "toy"}) + "\n"
        )
    (model,) = find_responses(tmp_path, study)
    assert model.splits["llava_bench_coco_German"].texts == {"0": "new"}


def test_lines_that_say_the_same_twice_lose_no_row(tmp_path, caplog):
    study = load_study("natural")
    lines = [json.dumps({"question_id": row, "text": f"a {row}"}) for row in (0, 1, 1, 2)]
    (tmp_path / "llava_bench_coco_German.jsonl").write_text("\n".join(lines))
    (model,) = find_responses(tmp_path, study)
    assert len(model.splits["llava_bench_coco_German"].texts) == 3
    assert not model.splits["llava_bench_coco_German"].problems and "1 lines repeat" in caplog.text


def test_runs_of_one_name_in_two_folders_are_named(written):
    from lmms_eval_emi.data.responses import choose_models

    study, folder, write, name = written
    write(folder.parent / "second" / "toy" / name)
    found = {"out": find_responses(folder.parent, study)}
    with pytest.raises(ResponsesError, match=r"several models \(second/toy, toy\)"):
        choose_models(found)
    assert len(choose_models(found, ["all"])) == 2


def test_an_empty_answer_gives_way_to_a_later_one():
    answers, request = Answers(), Request("mme", 1, 0, "abc")
    for response in ("", {"value": None}, "Yes", "No"):
        answers.add(request, response)
    assert answers.by_request[request] == "Yes" == answers.by_content["abc"]
    answers.add(Request("mme", 2, 0, "def"), "")
    assert len(answers.without_empty().by_request) == 1


@pytest.fixture
def choices(tmp_path):
    """A multiple-choice task as the harness logs log-likelihoods, and its twin under fog, whose choices differ."""
    folder = tmp_path / "toy"
    folder.mkdir()

    def write(task, likeliest):
        lines = [
            {
                "doc_id": row,
                "target": "0",
                "input": f"question {row}",
                "filtered_resps": [f"({-1.5 if place == best else -6.25 - place}, False)" for place in range(3)],
                "acc": float(best == 0),
            }
            for row, best in enumerate(likeliest)
        ]
        path = folder / f"20261128_100000_samples_{task}.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    write("toymc", [0] * 40)
    write("toymc_fog_3", [0] * 12 + [2] * 28)
    return tmp_path


def test_choices_are_compared_and_not_their_likelihoods(choices, tmp_path, capsys):
    from lmms_eval_emi.cli.commands import main

    assert main(["robustness", str(choices), "--output", str(tmp_path / "r.json")]) == 0
    (task,) = json.loads((tmp_path / "r.json").read_text())["tasks"]
    found = task["consistency"]["toymc_fog_3"]
    assert found["same"] is None and found["cosine"] is None
    assert found["identical"] == pytest.approx(12 / 40)
    shown = capsys.readouterr().out
    assert "same option" in shown and "30.0%" in shown and "same meaning" not in shown


def test_losses_and_log_likelihoods_are_chosen_from_as_the_harness_does():
    from lmms_eval_emi.slices.robustness.logged import responses_of

    def chosen(values, output_type):
        line = {"filtered_resps": [f"({value}, False)" for value in values]}
        return responses_of({0: line}, output_type)[1][0]

    assert chosen([3.0, 0.5, 3.0], "multiple_choice") == chosen([3.0, 0.5, 3.0], "loglikelihood") == "option 2"
    assert chosen([-3.0, -0.5, -7.0], "loglikelihood") == "option 2"
    assert chosen([-3.0, -0.5, -7.0], "multiple_choice") == "option 3", "lmms-eval takes the smallest of either"


def test_rows_that_were_logged_twice_are_one_metric(choices, tmp_path, capsys):
    from lmms_eval_emi.cli.commands import main

    for path in choices.glob("toy/*.jsonl"):
        path.write_text(path.read_text() * 2)
    assert main(["robustness", str(choices), "--without-consistency", "--output", str(tmp_path / "r.json")]) == 0
    (task,) = json.loads((tmp_path / "r.json").read_text())["tasks"]
    assert [metric["metric"] for metric in task["metrics"]] == ["acc"]


def test_a_model_that_says_one_thing_to_everything_is_not_robust():
    import numpy as np
    import torch
    from torch.nn.functional import normalize

    from lmms_eval_emi import Embeddings, load_estimator, score_study
    from lmms_eval_emi.data.study import parse_study
    from lmms_eval_emi.report.finding import findings_of
    from lmms_eval_emi.report.reading import ReportedResult
    from lmms_eval_emi.scoring.rows import StudyRows
    from lmms_eval_emi.scoring.table import results_to_table

    rng = np.random.default_rng(0)

    def unit(*shape):
        rows = rng.standard_normal(shape)
        return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()

    study = parse_study(
        "name: mine\nid_split: clean\ndataset: {path: x, columns: {id: id, question: q, reference: a, image: i}}\n"
        "splits: {clean: {}, foggy: {shifts: [{modality: visual, name: fog}]}}\n",
        "mine.yaml",
    )
    x, y, ids = unit(60, 16), unit(60, 16), [str(row) for row in range(60)]

    def result(responses):
        splits = {
            name: Embeddings(v=x, t=x, y_hat=normalize(responses + 0.01 * unit(60, 16)), y=y, ids=ids, groups=ids)
            for name in ("clean", "foggy")
        }
        return score_study(study, splits, load_estimator("cosine"), model="toy")

    useless, right = result(y[:1].expand(60, 16)), result(y)
    assert useless.scale.distinguishable is False and useless.splits["foggy"].verdict is None
    assert right.scale.distinguishable is True and right.splits["foggy"].verdict is not None
    assert "hardly depend on the images" in results_to_table([useless])
    assert "hardly depend on the images" in findings_of(ReportedResult.of(useless, rows=StudyRows()))[0]
    assert right.scale.value == pytest.approx(1, abs=0.1)
