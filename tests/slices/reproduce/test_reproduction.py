"""The published results, computed again: how far apart, pass or fail, and where responses come from."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import run_module

from lmms_eval_emi import score
from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import UnavailableError
from lmms_eval_emi.report.reading import published_results, read_results
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.slices.reproduce import reproduction

MODEL = "llava-v1.5-13b"


@pytest.fixture
def answers(tmp_path):
    """Responses in the layout of the published archive: a suffix for the model, and one file for the wild of a language."""
    folder = tmp_path / "answers"
    stems = sorted({split.response_stems[-1] for split in load_study("natural").splits.values()})
    for number, stem in enumerate(stems):
        rows = [(row, "", f"a red circle {row} of {number}") for row in range(5)]
        write_response_file(folder / f"{stem}_{MODEL}.jsonl", rows, MODEL)
    return folder


def as_the_script_writes(result):
    return {
        "shift_type": "NATURAL",
        "model_name": MODEL,
        "EMI": {name: one.emi for name, one in result.splits.items()},
        "EMID": {name: one.emid for name, one in result.splits.items() if one.emid is not None},
        "EMID_UB": {name: one.emid_bound for name, one in result.splits.items() if one.emid_bound is not None},
    }


def test_deviations_are_those_of_the_worst_split(in_tinyhub, answers, tmp_path):
    (result,) = score("natural", answers, resamples=0)
    content = as_the_script_writes(result)
    (tmp_path / "p.json").write_text(json.dumps(content))
    (published,) = read_results([tmp_path / "p.json"])
    same = reproduction.compare(result, published, pinned=True)
    assert (
        same.passes
        and [one.worst for one in same.deviations.values()] == [0] * 4
        and same.deviations["EMI"].count == 28
    )

    content["EMI"]["llava_bench_coco_Greek"] += 0.01
    content["EMID_UB"]["llava_bench_coco_Hindi"] -= 0.001
    (tmp_path / "p.json").write_text(json.dumps(content))
    moved = reproduction.compare(result, read_results([tmp_path / "p.json"])[0])
    by_score = moved.deviations
    assert (by_score["EMI"].where, by_score["EMI"].passes) == ("llava_bench_coco_Greek", False)
    assert by_score["EMI"].worst == pytest.approx(0.01) and by_score["EMI"].mean == pytest.approx(0.01 / 28)
    assert by_score["index"].where == "llava_bench_coco_Hindi" and by_score["index"].passes
    assert not moved.passes

    (part,) = score("natural", answers, splits=["llava_bench_coco_German"], resamples=0)
    assert len(reproduction.compare(part, published).missing) == 26 and not reproduction.compare(part, published).passes


def test_settings_that_decide_a_score_are_the_papers(monkeypatch):
    from lmms_eval_emi.settings import load_settings

    for name, value in (
        ("ESTIMATOR", "dcor"),
        ("CONVENTION", "equal_weight"),
        ("ENTROPY", "2"),
        ("WITHOUT_DEGENERATE", "1"),
        ("BATCH_SIZE", "7"),
    ):
        monkeypatch.setenv(f"LMMS_EVAL_EMI_{name}", value)
    settings = reproduction.settings_of_the_paper(load_settings())
    assert (settings.estimator, settings.convention, settings.entropy) == ("club-global", "published", None)
    assert not settings.without_degenerate and settings.batch_size == 7


def test_other_responses_than_the_published_ones_are_refused(answers, monkeypatch):
    study = load_study("natural")
    with pytest.raises(UnavailableError, match="are not the published ones: their SHA-256 is"):
        reproduction.is_published(answers, study, MODEL)
    monkeypatch.setitem(reproduction.DIGESTS, (MODEL, "natural"), reproduction.responses_digest(answers, study, MODEL))
    assert reproduction.is_published(answers, study, MODEL)
    assert not reproduction.is_published(answers, study, "llava-v1.6-vicuna-13b")


def test_the_published_responses_are_known_by_what_they_say(shared):
    for study in reproduction.families(("natural", "synthetic")):
        assert reproduction.is_published(shared / "data" / "responses" / MODEL, study, MODEL)


def archive(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def test_an_archive_writes_nothing_outside_its_folder(tmp_path):
    content = archive(
        {
            "data/a.jsonl": "1",
            "../../b.jsonl": "2",
            "/c.jsonl": "3",
            "data/x.pkl": "no",
            "__MACOSX/data/d.jsonl": "no",
            "data/.sh": "",
        }
    )
    target = reproduction.unpack(content, tmp_path / "in" / "responses")
    assert sorted(path.name for path in target.iterdir()) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()].__len__() == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        archive({"a.txt": "x"}),
        archive({"a.jsonl": "0" * 60_000_000}),
        archive({"a.jsonl": "x"})[:-30],
    ],
    ids=["empty", "no archive", "no responses", "too large", "cut off"],  # archives have the time in them
)
def test_an_archive_that_is_none_leaves_nothing(content, tmp_path):
    with pytest.raises(UnavailableError, match="archive"):
        reproduction.unpack(content, tmp_path / "responses")
    assert not (tmp_path / "responses").exists()


@pytest.fixture
def served(answers, tmp_path, monkeypatch):
    """The archive on a local server, and a cache of its own."""
    content = archive({f"data/{path.name}": path.read_text() for path in answers.iterdir()})

    class Handler(BaseHTTPRequestHandler):
        requests = 0

        def do_GET(self):
            Handler.requests += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(reproduction, "ARCHIVE", f"http://127.0.0.1:{server.server_port}/data.zip")
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield Handler
    server.shutdown()


def test_responses_are_fetched_once_and_then_offline(served, monkeypatch, caplog):
    with caplog.at_level("INFO", "lmms_eval_emi"):
        folder = reproduction.fetch_responses(load_settings().cache)
    assert len(list(folder.iterdir())) == 14 and "SHA-256 " in caplog.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert reproduction.fetch_responses(load_settings().cache) == folder and served.requests == 1


def test_without_a_connection_the_error_says_all_that_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path))
    for offline in (True, False):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1") if offline else monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(reproduction, "ARCHIVE", "http://127.0.0.1:9/data.zip")
        assert main(["reproduce"]) == 1
        error = capsys.readouterr().err
        assert "http://127.0.0.1:9/data.zip" in error and str(tmp_path) in error and "--responses DIR" in error


def test_both_models_were_published_in_both_families():
    for study in ("natural", "synthetic"):
        assert {one.model for one in published_results(study)} == {MODEL, "llava-v1.6-vicuna-13b"}


@pytest.fixture(scope="module")
def localhub(shared, tmp_path_factory):
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("localhub")
    command = [sys.executable, str(shared / "tools" / "make_localhub.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return folder


def test_the_command_on_the_stand_in_hub(shared, localhub, tmp_path):
    """Against what the published script itself gives there."""
    responses = ("--responses", str(shared / "data" / "responses" / MODEL))
    golden = []
    for family in ("NATURAL", "SYNTHETIC"):
        content = json.loads((shared / "golden" / f"localhub_tiny_{family}.json").read_text())
        golden.append(str(tmp_path / f"{family}.json"))
        (tmp_path / f"{family}.json").write_text(json.dumps({**content, "shift_type": family, "model_name": MODEL}))
    output = tmp_path / "reproduction.json"
    done = run_module("lmms_eval_emi", "reproduce", *responses, "--against", golden[0], "--against", golden[1], "--output", str(output), cwd=localhub)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.rstrip().endswith("PASS") and done.stdout.count(" pass ") == 8
    found = json.loads(output.read_text())["reproductions"]
    assert all(one["responses_pinned"] and one["passes"] for one in found)
    for one in found:  # float32 there, float64 here
        worst = {score: deviation["worst"] for score, deviation in one["deviations"].items()}
        assert worst["EMI"] < 2e-6 and worst["EMID"] < 4e-6 and worst["index"] < 1e-3
    assert [one["deviations"]["EMI"]["count"] for one in found] == [28, 35]
