"""Bad input of every kind: told clearly, without a traceback, and without costing what is good."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch
from conftest import ROWS
from PIL import Image

from lmms_eval_emi.cli import main, tasks_list
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.estimators import CLUB, load_estimator
from lmms_eval_emi.estimators.base import save_state
from lmms_eval_emi.report.page import to_html
from lmms_eval_emi.report.reading import read_results
from lmms_eval_emi.report.tables import to_text
from lmms_eval_emi.util.files import parse_json
from lmms_eval_emi.util.printing import redact

ID, GERMAN = "llava_bench_coco_English", "llava_bench_coco_German"
STRANGE = {
    "empty": "",
    "blank": " \t\n",
    "a million letters": "word " * 200_000,
    "emoji": "😀👩‍👩‍👧‍👦🏳️‍🌈" * 20,
    "control characters": "".join(map(chr, range(32))) + "\x7f\x9b\u202e\u2066",
    "a lone surrogate": "a \ud83d b",
}


@pytest.fixture
def answers(tmp_path):
    folder = tmp_path / "answers"
    for split in (ID, GERMAN):
        write_response_file(
            folder / f"{split}.jsonl", [(row, "", f"a red circle {row}") for row in range(ROWS)], "tiny"
        )
    return folder


def score(answers, tmp_path, *arguments):
    output = tmp_path / "r.json"
    status = main(
        ["score", "--study", "natural", "--split", GERMAN, "--responses", str(answers), "--output", str(output),
         "--overwrite", "--resamples", "0", *arguments]
    )  # fmt: skip
    return status, json.loads(output.read_text())["splits"] if output.exists() else {}


# Responses


@pytest.mark.parametrize("kind", STRANGE)
def test_responses_of_any_text_are_scored(kind, in_tinyhub, answers, tmp_path):
    text = STRANGE[kind]
    lines = [
        {"question_id": row, "text": text if row == 2 else f"a circle {row}", "model_id": "tiny"} for row in range(ROWS)
    ]
    (answers / f"{GERMAN}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, splits = score(answers, tmp_path)
    assert status == 0 and splits[GERMAN]["n"] == ROWS and np.isfinite(splits[GERMAN]["emi"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 2, "text": null}', "expected an object with question_id and text"),
        ('{"question_id": [2], "text": "a"}', "expected an object with question_id and text"),
        ('{"question_id": 2, "text": "a", "text": "b"}', "the key 'text' stands twice in one object"),
        ('{"question_id": 2, "text": "a", "model_id": ["x"]}', "expected a name under model_id"),
        ("[" * 100_000, "nested too deeply"),
        ('{"question_id": ' + "9" * 5000 + ', "text": "a"}', "not a line of JSON"),
    ],
)
def test_a_line_that_is_no_response_is_told_and_can_be_left_out(
    line, message, in_tinyhub, answers, tmp_path, capsys, caplog
):
    path = answers / f"{GERMAN}.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    status, _ = score(answers, tmp_path)
    error = capsys.readouterr().err
    assert status == 1 and f"{path}:3: " in error and message in error and "Traceback" not in error
    status, splits = score(answers, tmp_path, "--allow-missing")
    assert status == 0 and splits[GERMAN]["n"] == ROWS - 1


@pytest.mark.parametrize("damage", ["utf-16", "forbidden", "pipe"])
def test_a_file_that_cannot_be_read_costs_its_split_alone(damage, in_tinyhub, answers, tmp_path, capsys, monkeypatch):
    path = answers / f"{GERMAN}.jsonl"
    if damage == "utf-16":
        path.write_text(path.read_text(), encoding="utf-16")
    elif damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        read = Path.read_text

        def forbidden(self, *args, **options):
            if self == path:
                raise PermissionError(13, "Permission denied", str(self))
            return read(self, *args, **options)

        monkeypatch.setattr(Path, "read_text", forbidden)  # root may read everything
    status, _ = score(answers, tmp_path)
    assert status == 1 and f"{path}: expected a UTF-8 file of JSON lines" in capsys.readouterr().err
    status, splits = score(answers, tmp_path, "--allow-missing")
    assert status == 0 and list(splits) == [ID]


def test_responses_to_other_questions_are_told(in_tinyhub, answers, tmp_path, caplog):
    with (answers / f"{GERMAN}.jsonl").open("a") as file:
        file.write(json.dumps({"question_id": 91, "text": "a", "model_id": "tiny"}) + "\n")
    with caplog.at_level(logging.WARNING, "lmms_eval_emi"):
        status, splits = score(answers, tmp_path)
    assert status == 0 and splits[GERMAN]["n"] == ROWS
    assert f"1 responses are to questions that {GERMAN} does not have, and are not used: 91." in caplog.text


def test_samples_whose_row_is_true_are_no_row(tmp_path):
    from lmms_eval_emi.data.responses.lmms_eval import read_file as read_samples

    lines = [{"doc_id": doc, "filtered_resps": "a"} for doc in (True, [1], 1.5, "1", 10**30, 2)]
    (tmp_path / "x_samples_t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_samples(tmp_path / "x_samples_t.jsonl")[None]
    assert 2 in found.texts and 1 not in found.texts and len(found.problems) == 4


# Datasets


def write_rows(folder, rows):
    lines = [json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "study.yaml").write_text(
        "name: mine\nid_split: clean\ndataset: {path: rows.jsonl, columns: {id: id, image: image, question: q, reference: a}}\n"
        "splits:\n  clean: {responses: clean.jsonl}\n"
    )
    write_response_file(
        folder / "clean.jsonl", [(row["id"], "", f"word {number}") for number, row in enumerate(rows)], "m"
    )
    return ["score", "--study", str(folder / "study.yaml"), "--resamples", "0"]


@pytest.fixture
def rows(tmp_path):
    draw = np.random.default_rng(0)
    found = []
    for number in range(6):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{number}.jpg")
        found.append({"id": number, "image": f"{number}.jpg", "q": f"what {number}?", "a": f"star {number}"})
    return found


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


def bomb(path):
    Image.new("1", (30_000, 30_000)).save(path.with_suffix(".png"))
    path.with_suffix(".png").replace(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "its image cannot be read"),
        (bomb, "decompression bomb"),
        (lambda path: path.write_bytes(b""), "its image cannot be read"),
        (lambda path: path.unlink(), "is not there"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "lies outside the folders"),
    ],
)
def test_a_bad_image_is_named_and_costs_its_row(damage, message, rows, tmp_path, in_tinyhub, capsys):
    damage(tmp_path / "2.jpg")
    command = write_rows(tmp_path, rows)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "row 2" in error and message in error and "--allow-missing" in error
    assert main([*command, "--allow-missing", "--output", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["splits"]["clean"]["n"] == 5


def test_null_images_doubled_ids_and_missing_columns(rows, tmp_path, in_tinyhub, capsys):
    assert main(write_rows(tmp_path, [{**row, "image": None} if row["id"] == 1 else row for row in rows])) == 1
    assert "row 1: it has no image" in capsys.readouterr().err
    assert main(write_rows(tmp_path, [{**row, "id": row["id"] // 2} for row in rows])) == 1
    assert "question_id 0 is in line 1 already" in capsys.readouterr().err
    assert main(write_rows(tmp_path, [{key: value for key, value in row.items() if key != "a"} for row in rows])) == 1
    assert "expected the columns a, which are missing" in capsys.readouterr().err


def test_the_order_of_rows_changes_no_score(rows, tmp_path, in_tinyhub):
    found = []
    for order in (rows, rows[::-1], [rows[number] for number in (3, 0, 5, 1, 4, 2)]):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        for row in rows:
            (folder / row["image"]).write_bytes((tmp_path / row["image"]).read_bytes())
        command = write_rows(folder, order)
        lines = [(row["id"], "", f"word {row['id']}") for row in order]
        write_response_file(folder / "clean.jsonl", lines, "m")
        assert main([*command, "--output", str(folder / "r.json")]) == 0
        found.append(json.loads((folder / "r.json").read_text())["splits"]["clean"]["emi"])
    assert found == pytest.approx([found[0]] * 3, abs=1e-12)


def test_a_cache_of_datasets_that_cannot_be_written_keeps_no_score_away(
    rows, tmp_path, in_tinyhub, capsys, monkeypatch
):
    import datasets

    command = write_rows(tmp_path, rows)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    assert main(command) == 0, capsys.readouterr().err  # rows are prepared in our cache


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", "..", ""])
def test_a_split_whose_name_is_a_path_is_refused(name, rows, tmp_path, in_tinyhub, capsys):
    command = write_rows(tmp_path, rows)
    text = (tmp_path / "study.yaml").read_text()
    (tmp_path / "study.yaml").write_text(
        text.replace("  clean: {", f"  {name!r}: {{").replace("id_split: clean", f"id_split: {name!r}")
    )
    assert main(command) == 1
    assert "study.yaml: not a study" in capsys.readouterr().err


# Estimators


def saved(path, card=None, **metadata):
    torch.manual_seed(0)
    network = CLUB(6, 6, 4)
    save_state(path, network.state_dict(), {"kind": "club", "name": "x", **metadata}, card if card is not None else {})
    return path


@pytest.mark.parametrize("card", [None, [], "text", 3, {"encoders": [1]}, {"encoders": {"vision": 3}}, {"domain": {"samples": []}}, {"domain": {"samples": [{}]}}, {"domain": [1]}])  # fmt: skip
def test_a_card_that_is_none_is_told(card, tmp_path):
    path = tmp_path / "a.safetensors"
    save_state(path, CLUB(6, 6, 4).state_dict(), {"kind": "club", "name": "x"}, card)
    with pytest.raises(ValueError, match=r"a\.safetensors: .*card"):
        load_estimator(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "expected a safetensors file"),
        (lambda content: content[:4], "expected a safetensors file"),
        (lambda content: content[:-8] + b"\xff\xff\xff\x7f\xff\xff\xff\x7f", "expected finite weights"),
        (lambda content: b"\xff" * 8 + content[8:], "expected a safetensors file"),
    ],
)
def test_a_damaged_checkpoint_is_told(damage, message, tmp_path):
    path = saved(tmp_path / "a.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load_estimator(path)


def test_a_text_and_a_tensor_of_any_size_are_no_estimator(tmp_path):
    (tmp_path / "text.pt").write_text("this is a text")
    huge = {name: torch.zeros(1).expand(10**6, 10**6) for name in CLUB(2, 2, 2).state_dict()}
    torch.save(huge, tmp_path / "huge.pt")
    assert (tmp_path / "huge.pt").stat().st_size < 20_000
    for name, message in (("text", "expected a state dict of plain tensors"), ("huge", "in a file that holds")):
        with pytest.raises(ValueError, match=message):
            load_estimator(tmp_path / f"{name}.pt")


def test_estimator_files_have_a_version_and_equal_bytes(tmp_path):
    first, second = (saved(tmp_path / f"{name}.safetensors", {"b": 1, "a": {"d": 1, "c": 2}}) for name in "ab")
    other = tmp_path / "c.safetensors"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_bad_input as t; t.saved(t.Path({str(other)!r}), {{'a': {{'c': 2, 'd': 1}}, 'b': 1}})"
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'benchmarks')!r}); {code}"], check=True)  # fmt: skip
    assert first.read_bytes() == second.read_bytes() == other.read_bytes()
    saved(tmp_path / "new.safetensors")
    content = (tmp_path / "new.safetensors").read_bytes().replace(b'"format_version":"1"', b'"format_version":"7"')
    (tmp_path / "new.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"format_version is '7'.*pip install --upgrade"):
        load_estimator(tmp_path / "new.safetensors")


def test_estimator_files_of_earlier_versions_are_read(tmp_path):
    """Without a version and a sorted header, as version 0.1 wrote them; and the published layout of plain tensors."""
    from safetensors.torch import save_file

    network = CLUB(6, 6, 4)
    save_file(network.state_dict(), tmp_path / "old.safetensors", {"kind": "club", "name": "x", "card": "{}"})
    torch.save(network.state_dict(), tmp_path / "old.pt")
    for name in ("old.safetensors", "old.pt"):
        assert load_estimator(tmp_path / name).input_dimension == 6


# Results


@pytest.mark.parametrize(
    "change",
    [
        {"emid": "0.5"}, {"emi": None}, {"emi": float("nan")}, {"emid": float("inf")}, {"emi": 10**400}, {"emi": True},
        {"n": "many"}, {"shifts": [{"modality": "sound", "name": "x"}]}, {"emid_ci95": [1]}, {"emid_ci95": ["a", "b"]},
    ],
)  # fmt: skip
def test_results_that_are_no_numbers_are_refused_with_their_place(change, tmp_path, capsys):
    content = {
        **fuzz.RESULT,
        "splits": {**fuzz.RESULT["splits"], "foggy": {**fuzz.RESULT["splits"]["foggy"], **change}},
    }
    (tmp_path / "r.json").write_text(json.dumps(content))
    for command in (
        ["report", str(tmp_path / "r.json"), "--format", "md"],
        ["compare", str(tmp_path / "r.json"), "--power", "0.1"],
    ):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "r.json" in error and f"splits.foggy.{next(iter(change))}" in error and "Traceback" not in error


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{}", '{"results": []}', '{"results": [1]}', '{"a": 1, "a": 2}', "[" * 50_000]
)
def test_json_of_another_form_is_no_result(content, tmp_path):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ResultsError, match=r"r\.json: expected"):
        read_results([tmp_path / "r.json"])


def test_a_pipe_is_no_result_and_does_not_hang(tmp_path, capsys):
    os.mkfifo(tmp_path / "r.json")
    assert main(["report", str(tmp_path / "r.json"), "--format", "md"]) == 1
    assert "it is not a regular file" in capsys.readouterr().err


def test_a_study_with_thousands_of_splits_has_a_page(tmp_path):
    foggy = fuzz.RESULT["splits"]["foggy"]
    parts = dict.fromkeys(("jsd_v", "jsd_t", "jsd_id_response", "jsd_ood_response"), 0.1)
    splits = {f"s{number}": {**foggy, **parts, "emid": number / 1000, "shifts": [{"modality": "visual", "name": f"o{number % 200}", "severity": number // 200}]} for number in range(1500)}  # fmt: skip
    (tmp_path / "r.json").write_text(
        json.dumps({**fuzz.RESULT, "splits": {"clean": fuzz.RESULT["splits"]["clean"], **splits}})
    )
    read = read_results([tmp_path / "r.json"])
    page = to_html(read)
    assert len(page) < 3e6 and "And 500 shifts that lost less" in page and "the 100 of 1,500 that lost most" in page
    assert to_text(read, "csv").count("\n") == 1502


@pytest.mark.parametrize(
    "cell", ["=1+1", " =1+1", "\ufeff=1+1", "\n=1+1", "＝1+1", "\t@x", "﹢1", "-cmd|' /C calc'!A0", "\u200b=1"]
)
def test_no_cell_of_a_table_is_a_formula(cell, tmp_path):
    import csv
    import io

    (tmp_path / "r.json").write_text(json.dumps({**fuzz.RESULT, "model": cell}))
    rows = list(csv.reader(io.StringIO(to_text(read_results([tmp_path / "r.json"]), "csv"))))
    assert rows[1][1] == f"'{cell}"


def test_markdown_shows_texts_as_they_are(tmp_path):
    evil = "<img src=x onerror=alert(1)>\n| ![p](http://evil/p.png) [x](javascript:alert(1)) `"
    (tmp_path / "r.json").write_text(json.dumps({**fuzz.RESULT, "model": evil}))
    table = to_text(read_results([tmp_path / "r.json"]), "md")
    assert table.count("\n") == 4 and "<img" not in table and "](" not in table.replace("\\]", "")


def test_only_pictures_of_the_page_itself_are_shown(tmp_path):
    import hashlib

    images = ["http://evil/x.png", "data:text/html,<script>", "data:image/svg+xml;base64,PHN2Zz4=", "data:image/png;base64,AAAA", "//evil/x"]  # fmt: skip
    lost = [
        {
            "id": "1",
            "loss": 0.1,
            "value": 0.0,
            "clean": None,
            "question": "q",
            "response": "r",
            "reference": "y",
            "image": image,
        }
        for image in images
    ]
    text = json.dumps({"results": [{"lost": {"foggy": lost}}]})
    (tmp_path / "r.rows.json").write_text(text)
    rows = {"file": "r.rows.json", "sha256": hashlib.sha256(text.encode()).hexdigest(), "entry": 0}
    (tmp_path / "r.json").write_text(json.dumps({**fuzz.RESULT, "rows": rows}))
    page = to_html(read_results([tmp_path / "r.json"]))
    assert page.count("data:image/") == 1 and "data:image/png;base64,AAAA" in page  # which the script makes an image of
    assert "evil" not in page and "default-src &#39;none&#39;" not in page
    assert "Content-Security-Policy\" content=\"default-src 'none'; img-src data:" in page


def test_results_of_the_first_version_are_read(tmp_path):
    """As version 0.1 wrote them, before there were errors and a unit."""
    old = {
        **{"signature": "emi-study|x", "model": "m", "shift": "natural", "id_split": ID, "settings": {"estimator": "e"}},
        "splits": {
            ID: {"modality": "id", "shifts": [], "n": 5, "emi": 0.1, "mi_response": 0.2, "mi_reference": 0.1},
            GERMAN: {"modality": "text", "shifts": [{"modality": "text", "name": "German"}], "n": 5, "emi": 0.05, "emid": 0.05, "emid_bound": 1.0, "jsd_v": 0.0},
        },
    }  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(old))
    (read,) = read_results([tmp_path / "old.json"])
    assert read.splits[GERMAN].emid == 0.05 and "m under natural shifts" in to_html([read])


# The command line


def test_an_error_that_nobody_thought_of_is_one_line_with_a_log(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path))
    monkeypatch.setattr(tasks_list, "run", lambda args: {}["api_key=hidden"])
    assert main(["tasks", "list"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "KeyError" in error and "Traceback" not in error
    (log,) = (tmp_path / "logs").iterdir()
    assert "Traceback" in log.read_text() and str(log) in error
    assert "hidden" not in error + log.read_text()


def test_ctrl_c_ends_scoring_soon(in_tinyhub, answers, tmp_path):
    """While a study is scored, which would take a minute more; a second one changes nothing."""
    code = (
        "import sys, threading, os, signal, time\n"
        "from lmms_eval_emi.scoring import pipeline\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "real = pipeline.score_study\n"
        "def late(*a, **k):\n"
        "    for after in (0.3, 0.31):\n"
        "        threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    time.sleep(60)\n"
        "    print('was waited for')\n"
        "    return real(*a, **k)\n"
        "pipeline.score_study = late\n"
        "from lmms_eval_emi.cli import command\n"
        f"sys.argv[1:] = ['score', 'natural', {str(answers)!r}, '--allow-missing']\n"
        "sys.exit(command())\n"
    )
    write_response_file(
        answers / "llava_bench_coco_Greek.jsonl", [(row, "", f"x {row}") for row in range(ROWS)], "tiny"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 130 and not done.stdout and "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith("interrupted")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("openai_api_key=sk-abc,model=x", "openai_api_key=***,model=x"),
        ("--hf-token hf_abcdefghijklmnopqrstuvwxyz", "--hf-token ***"),
        ("https://user:secret@host/x", "https://***@host/x"),
        ("max_new_tokens=5,token_type=3", "max_new_tokens=5,token_type=3"),
        ("{'api_key': 'abcd', \"token\": \"x y\"}", "{'api_key': ***, \"token\": ***}"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: ***"),
        ("password='abc def',model=x", "password=***,model=x"),
        ("http://me:pass/word@host", "http://***@host"),
        ("Unexpected token < in JSON", "Unexpected token < in JSON"),
        ("pad token id 0 is set; use a secret code", "pad token id 0 is set; use a secret code"),
    ],
)
def test_secrets_are_hidden(text, shown):
    assert redact(text) == shown


def test_json_is_read_strictly():
    assert parse_json('{"a": [1, {"b": "\\ud800"}]}') == {"a": [1, {"b": "?"}]}
    with pytest.raises(ValueError, match="the key 'b' stands twice"):
        parse_json('{"a": {"b": 1, "b": 2}}')


def test_every_reader_refuses_damaged_files_in_its_own_words():
    """benchmarks/fuzz.py in short; docs/reliability.md has its last whole run."""
    with tempfile.TemporaryDirectory() as name:
        for reader in fuzz.readers(Path(name)):
            outcomes, findings = fuzz.fuzz(reader, Path(name), 200, 1)
            assert not findings, findings[0]
            assert outcomes["taken"] + outcomes["refused"] == 200
