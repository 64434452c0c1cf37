"""``judge`` against a local endpoint that is slow, fails, garbles and limits its rate."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from endpoint import Endpoint, assistants, by_quality, text_of
from PIL import Image

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.slices.judge.preference import prefer, row_scores, self_agreement
from lmms_eval_emi.slices.judge.prompt import ORDERS, Case, read_scores, to_messages
from lmms_eval_emi.slices.judge.verdicts import Key, Verdict, read_verdicts

ROWS = 10
STUDY = """
name: drawn
id_split: clean
dataset: {path: rows.parquet, columns: {id: id, image: image, question: question, reference: answer}}
splits:
  clean: {}
  foggy: {shifts: [{modality: visual, name: fog, severity: 3}]}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Ten rows of ten images, whose responses say how good they are."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(ROWS)]
    rows = [
        {
            "id": row,
            "image": pictures[row],
            "question": f"what is {row}?",
            "answer": "It is of quality 8.",
            "caption": [f"a thing {row}", "a table"],
            "category": "conv" if row % 2 else "detail",
        }
        for row in range(ROWS)
    ]
    text = Value("string")
    features = Features(
        {
            "id": Value("int64"),
            "image": ImageFeature(),
            "question": text,
            "answer": text,
            "caption": [text],
            "category": text,
        }
    )
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "study.yaml").write_text(STUDY)
    for split, quality in (("clean", 6), ("foggy", 2)):
        responses = [(row, "", f"Of quality {quality + row % 2}.") for row in range(ROWS)]
        write_response_file(tmp_path / "responses" / f"{split}.jsonl", responses, "tiny")
    return tmp_path


@pytest.fixture
def serve():
    """Endpoints that end with the test."""
    started = []

    def start(reply, delay: float = 0.0) -> Endpoint:
        started.append(Endpoint(reply, delay))
        return started[-1]

    yield start
    for one in started:
        one.close()


def arguments(folder: Path, endpoint: Endpoint, *more: str) -> list[str]:
    return [
        *("judge", "ask", "--study", str(folder / "study.yaml"), "--responses", str(folder / "responses")),
        *("--output", str(folder / "judged.jsonl"), "--endpoint", endpoint.url, "--endpoint-model", "judge", *more),
    ]


def test_every_row_is_judged_in_both_orders(study, serve, capsys) -> None:
    endpoint = serve(by_quality)
    assert main(arguments(study, endpoint)) == 0
    verdicts = read_verdicts(study / "judged.jsonl")
    assert {one.key for one in verdicts} == {
        Key("tiny", split, row, order, 0) for split in ("clean", "foggy") for row in range(ROWS) for order in ORDERS
    }
    assert all(one.scores == (8, (6 if one.key.split == "clean" else 2) + one.key.row % 2) for one in verdicts)
    summary = json.loads((study / "judged.summary.json").read_text())
    by_split = {one["split"]: one for one in summary["splits"]}
    assert by_split["clean"]["relative"] == pytest.approx(100 * 6.5 / 8)
    assert by_split["foggy"]["relative"] == pytest.approx(100 * 2.5 / 8)
    assert by_split["clean"]["win_rate"] == 0
    assert by_split["clean"]["relative_stderr"] == pytest.approx(100 * np.std([6, 7] * 5, ddof=1) / 8 / np.sqrt(10))
    assert summary["self_agreement"]["orders"] == 1.0 and summary["self_agreement"]["position_bias"] == 0.0
    assert "foggy" in capsys.readouterr().out


def test_the_judge_is_told_context_question_both_responses_and_kind(study, serve) -> None:
    endpoint = serve(by_quality)
    assert main(arguments(study, endpoint, "--with-image")) == 0
    request = endpoint.requests[0]
    text = text_of(request)
    assert all(part in text for part in ("a table", "what is", "[Assistant 1]", "[Assistant 2]"))
    assert "conversation" in text or "detailed description" in text
    image = request["messages"][-1]["content"][1]["image_url"]["url"]
    assert image.startswith("data:image/jpeg;base64,")
    firsts = {assistants(one)[0] == "It is of quality 8." for one in endpoint.requests}
    assert firsts == {True, False}
    assert main(arguments(study, endpoint, "--overwrite", "--context", "none", "--category", "none")) == 0
    assert "a table" not in text_of(endpoint.requests[-1]) and "kind of question" not in text_of(endpoint.requests[-1])


def test_a_reply_that_cannot_be_read_is_asked_again_and_then_missing(study, serve, capsys) -> None:
    def garbled(request, count):
        if "what is 3?" in text_of(request):
            return "I would rather not."
        return "Assistant 1: good" if count == 1 else by_quality(request, count)

    endpoint = serve(garbled)
    assert main(arguments(study, endpoint)) == 0
    verdicts = read_verdicts(study / "judged.jsonl")
    lost = [one for one in verdicts if one.key.row == 3]
    assert len(lost) == 4 and all(one.scores is None and one.tries == 3 and one.missing for one in lost)
    assert all(one.tries == 2 and one.scores for one in verdicts if one.key.row != 3)
    summary = json.loads((study / "judged.summary.json").read_text())
    assert [one["missing"] for one in summary["splits"]] == [1, 1] and summary["splits"][0]["rows"] == ROWS - 1
    assert summary["splits"][0]["relative"] == pytest.approx(100 * (5 * 6 + 4 * 7) / 9 / 8)
    # A missing verdict is final until it is asked for.
    before = len(endpoint.requests)
    assert main(arguments(study, endpoint)) == 0 and len(endpoint.requests) == before
    endpoint.reply = by_quality
    assert main(arguments(study, endpoint, "--retry-missing")) == 0 and len(endpoint.requests) == before + 4
    assert all(one.scores for one in read_verdicts(study / "judged.jsonl"))


def test_limits_and_errors_of_the_server_are_waited_for(study, serve) -> None:
    def failing(request, count):
        if count == 1:
            return (
                (429, {"Retry-After": "0.01"}) if "what is 1?" in text_of(request) else (503, {"Retry-After": "0.01"})
            )
        return by_quality(request, count)

    endpoint = serve(failing)
    assert main(arguments(study, endpoint)) == 0
    assert set(endpoint.seen.values()) == {2}
    assert all(one.scores and one.tries == 1 for one in read_verdicts(study / "judged.jsonl"))


def test_no_more_requests_at_once_than_asked_for(study, serve) -> None:
    gate, asked = threading.Barrier(3), itertools.count()

    def reply(request: dict, count: int) -> object:
        if next(asked) < 3:  # the first three wait for each other, however slow the machine is
            gate.wait(60)
        return by_quality(request, count)

    endpoint = serve(reply)
    assert main(arguments(study, endpoint, "--concurrency", "3")) == 0
    assert endpoint.most_at_once == 3


def test_a_wrong_key_ends_the_run_at_once(study, serve, capsys) -> None:
    endpoint = serve(lambda request, count: (401, {}))
    assert main(arguments(study, endpoint, "--concurrency", "2")) == 1
    assert len(endpoint.requests) <= 4
    assert "OPENAI_API_KEY" in capsys.readouterr().err


def test_a_request_that_the_endpoint_refuses_is_missing(study, serve) -> None:
    endpoint = serve(
        lambda request, count: (400, {}) if "what is 2?" in text_of(request) else by_quality(request, count)
    )
    assert main(arguments(study, endpoint)) == 0
    lost = [one for one in read_verdicts(study / "judged.jsonl") if one.scores is None]
    assert {one.key.row for one in lost} == {2} and all("refuses" in one.missing for one in lost)


@pytest.mark.parametrize(
    "reply", [b"<html>", b'{"a": "', "no score", (400, {})], ids=["no JSON", "torn JSON", "unread", "400"]
)
def test_an_endpoint_that_gives_no_scores_is_told_early_and_costs_no_earlier_ones(
    study, serve, reply, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("lmms_eval_emi.util.endpoint.RETRIES", 0)
    monkeypatch.setattr("lmms_eval_emi.util.endpoint.CONNECTION_RETRIES", 0)
    endpoint = serve(by_quality)
    assert main(arguments(study, endpoint)) == 0
    before = (study / "judged.jsonl").read_bytes()
    endpoint.reply = lambda request, count: reply
    sent = len(endpoint.requests)
    assert main(arguments(study, endpoint, "--overwrite", "--concurrency", "1")) == 1
    assert len(endpoint.requests) - sent <= 30 and (study / "judged.jsonl").read_bytes() == before
    assert "no scores" in (told := capsys.readouterr().err) or "requests failed" in told
    assert not list(study.glob("*.new"))


def test_starting_over_under_another_run_takes_nothing_from_it(study, serve, capsys) -> None:
    endpoint = serve(by_quality, delay=0.05)
    command = [sys.executable, "-m", "lmms_eval_emi", *arguments(study, endpoint, "--concurrency", "1")]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not ((study / "judged.jsonl").exists() and (study / "judged.jsonl").stat().st_size):
        assert first.poll() is None
        time.sleep(0.02)
    assert main(arguments(study, endpoint, "--overwrite")) == 1
    assert "another process" in capsys.readouterr().err
    assert first.communicate()[0] is None and first.returncode == 0
    assert len(read_verdicts(study / "judged.jsonl")) == 4 * ROWS
    # And alone it replaces them all.
    sent = len(endpoint.requests)
    endpoint.delay = 0.0
    assert main(arguments(study, endpoint, "--overwrite")) == 0 and len(endpoint.requests) == sent + 4 * ROWS


def test_verdicts_replace_nothing_but_verdicts(study, serve, capsys) -> None:
    responses = study / "responses" / "clean.jsonl"
    before = responses.read_bytes()
    command = arguments(study, serve(by_quality), "--overwrite", "--output", str(responses))
    assert main(command) == 1 and responses.read_bytes() == before
    assert "expected verdicts" in capsys.readouterr().err
    (study / "judged.summary.json").write_text("{}")
    assert main(arguments(study, serve(by_quality))) == 1
    assert "judged.summary.json" in capsys.readouterr().err and (study / "judged.summary.json").read_text() == "{}"


def test_replies_under_way_are_kept_when_the_endpoint_refuses(study, serve) -> None:
    """They are paid for."""

    def refusing(request, count):
        if "what is 3?" in text_of(request):
            return (401, {})
        time.sleep(0.5)
        return by_quality(request, count)

    endpoint = serve(refusing)
    assert main(arguments(study, endpoint, "--concurrency", "8")) == 1
    refused = sum("what is 3?" in text_of(request) for request in endpoint.requests)
    assert len(read_verdicts(study / "judged.jsonl")) == len(endpoint.requests) - refused


def test_an_endpoint_that_is_gone_is_told_and_what_is_there_stays(study, serve, monkeypatch, capsys) -> None:
    monkeypatch.setattr("lmms_eval_emi.util.endpoint.RETRIES", 0)
    monkeypatch.setattr("lmms_eval_emi.util.endpoint.CONNECTION_RETRIES", 0)
    answered = []

    def dying(request, count):
        answered.append(request)
        return by_quality(request, count) if len(answered) <= 12 else (500, {})

    endpoint = serve(dying)
    assert main(arguments(study, endpoint, "--concurrency", "1")) == 1
    assert "12 of 40 verdicts" in capsys.readouterr().err
    assert len(endpoint.requests) == 12 + 10
    endpoint.reply = by_quality
    assert main(arguments(study, endpoint)) == 0
    assert len(endpoint.requests) == 12 + 10 + 28


def test_a_killed_run_asks_for_nothing_twice(study, serve) -> None:
    endpoint = serve(by_quality, delay=0.05)
    command = [sys.executable, "-m", "lmms_eval_emi", *arguments(study, endpoint, "--concurrency", "2")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    path = study / "judged.jsonl"
    while not (path.exists() and path.read_bytes().count(b"\n") >= 10):
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    known = read_verdicts(path)
    with path.open("ab") as file:
        file.write(b'{"model": "tiny", "spl')  # as a kill in the middle of a line leaves it
    asked = dict(endpoint.seen)
    endpoint.delay = 0
    assert main(arguments(study, endpoint)) == 0
    assert len(read_verdicts(path)) == 40
    again = [key for key, count in endpoint.seen.items() if count > 1]
    assert len(again) <= len(asked) - len(known) <= 2  # those that were under way alone
    before = len(endpoint.requests)
    assert main(arguments(study, endpoint)) == 0 and len(endpoint.requests) == before


def test_a_dry_run_asks_nothing(study, serve, capsys) -> None:
    endpoint = serve(by_quality)
    assert main(arguments(study, endpoint, "--repeats", "3", "--dry-run")) == 0
    assert "120 requests" in capsys.readouterr().out and not endpoint.requests
    assert not (study / "judged.jsonl").exists()


def test_verdicts_of_something_else_are_not_mixed(study, serve, capsys) -> None:
    endpoint = serve(by_quality)
    assert main(arguments(study, endpoint)) == 0
    before = (study / "judged.jsonl").read_bytes()
    write_response_file(
        study / "responses" / "foggy.jsonl", [(row, "", "Of quality 9.") for row in range(ROWS)], "tiny"
    )
    assert main(arguments(study, endpoint)) == 1
    assert "20 of its verdicts are of another" in capsys.readouterr().err
    assert (study / "judged.jsonl").read_bytes() == before
    assert main(arguments(study, endpoint, "--overwrite")) == 0
    assert {one.scores for one in read_verdicts(study / "judged.jsonl") if one.key.split == "foggy"} == {(8, 9)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repeats", "0"], "at least 1"),
        (["--repeats", "2", "--temperature", "0"], "temperature"),
        (["--context", "captions"], "expected a column"),
        (["--split", "fogy"], "foggy"),
    ],
)
def test_wrong_options_are_told_before_anything_is_asked(study, serve, capsys, more, message) -> None:
    endpoint = serve(by_quality)
    assert main(arguments(study, endpoint, *more)) == 1
    assert message in capsys.readouterr().err and not endpoint.requests


def test_an_endpoint_is_needed(study, capsys) -> None:
    base = ["judge", "ask", "--study", str(study / "study.yaml"), "--responses", str(study / "responses")]
    assert main([*base, "--output", str(study / "judged.jsonl")]) == 1
    assert "--endpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("8 6", (8, 6)),
        ("8, 6\nwhy", (8, 6)),
        ("**7.5 9**", (7.5, 9)),
        ("8/10 6/10", (8, 6)),
        ("<think>3 4</think>\n\n2 10.", (2, 10)),
        ("3 4, or so</think>\n\n2 10", (2, 10)),
        ("<think>3 4", None),
        ("**8** **6**", (8, 6)),
        ("[8, 6]", (8, 6)),
        ("-8 6", None),
        ("Assistant 1: 8 6", None),
        ("8", None),
        ("8 6 7", None),
        ("11 3", None),
        ("0 3", None),
        ("", None),
        ("8 6 because", None),
    ],
)
def test_reading_a_reply(reply, expected) -> None:
    assert read_scores(reply, "reference_first") == expected
    assert read_scores(reply, "model_first") == (expected and expected[::-1])


def test_replies_are_read_where_the_harness_reads_them() -> None:
    """What lmms-eval's own parser of comparisons reads, we read alike."""
    utils = pytest.importorskip("lmms_eval.llm_judge.utils")
    for reply in ("8 6", "7.5 9\nbecause", "8, 6"):
        assert tuple(utils.ResponseParser.parse_comparative_response(reply)) == read_scores(reply, "reference_first")


def test_the_words_do_not_say_which_response_is_whose() -> None:
    one, other = (to_messages(Case("q", "same", "same"), order) for order in ORDERS)
    assert one == other


def verdict(row: int, order, repeat: int, scores) -> Verdict:
    return Verdict.of(Key("m", "s", row, order, repeat), str(row), scores, judge="j", request="r")


def test_a_missing_verdict_moves_no_weight_between_the_orders() -> None:
    verdicts = [verdict(0, "reference_first", repeat, (4, 8)) for repeat in range(3)]
    verdicts += [verdict(0, "model_first", 0, (6, 2)), verdict(0, "model_first", 1, None)]
    assert row_scores(verdicts) == {0: (5.0, 5.0)}
    found = prefer("m", "s", [*verdicts, verdict(1, "model_first", 0, None)])
    assert (found.rows, found.missing, found.win_rate, found.relative) == (1, 1, 50, 100)
    nothing = prefer("m", "s", [verdict(1, "model_first", 0, None)])
    assert (nothing.rows, nothing.missing, nothing.relative) == (0, 1, None)


def test_position_bias_and_reliability_of_a_judge_that_has_them() -> None:
    """Differences of variance 4 between rows and 1 within: ICC(3, 4) is 16 / 17; the first response gains a point."""
    random = np.random.default_rng(0)
    verdicts = []
    for row in range(4000):
        true = random.normal(0, 2)
        for order in ORDERS:
            for repeat in range(2):
                noise = random.normal(0, 1)
                bias = 1.0 if order == "model_first" else -1.0
                verdicts.append(verdict(row, order, repeat, (5 - bias / 2, 5 + true + noise + bias / 2)))
    found = self_agreement(verdicts)
    assert found.position_bias == pytest.approx(1.0, abs=0.02)
    # What coming first adds, it adds to every row: both orders together do not know of it.
    assert found.reliability == pytest.approx(16 / 17, abs=0.01)
    assert found.ceiling == pytest.approx(found.reliability**0.5)


def test_reliability_is_that_within_splits() -> None:
    """Splits that differ by four points, and rows that differ by chance alone: no correlation within one can be expected."""
    random = np.random.default_rng(2)
    verdicts = [
        Verdict.of(
            Key("m", split, row, "reference_first", repeat),
            str(row),
            (5.0, level + random.normal()),
            judge="j",
            request="r",
        )
        for split, level in (("a", 1.0), ("b", 5.0))
        for row in range(2000)
        for repeat in range(2)
    ]
    assert self_agreement(verdicts).reliability == pytest.approx(0, abs=0.08)


def test_an_honest_judge_has_the_reliability_of_its_noise() -> None:
    random = np.random.default_rng(1)
    verdicts = [
        verdict(row, "reference_first", repeat, (5.0, 5 + true + random.normal()))
        for row, true in enumerate(random.normal(0, 2, 4000))
        for repeat in range(3)
    ]
    assert self_agreement(verdicts).reliability == pytest.approx(12 / 13, abs=0.01)
    assert self_agreement(verdicts).orders is None
