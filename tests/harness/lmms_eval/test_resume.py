"""Runs that are resumed: what a model is asked, once, in blocks; and the command as a user has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import MODEL, only, run_module, strict_json
from forking import run_in_fork
from PIL import Image

from lmms_eval_emi.cli import main
from lmms_eval_emi.errors import RunError
from lmms_eval_emi.harness.heartbeat import Heartbeat
from lmms_eval_emi.harness.lmms_eval.compat import evaluation, launch
from lmms_eval_emi.harness.lmms_eval.resume.journaled_model import Blocks, from_plain, identity, to_plain
from lmms_eval_emi.harness.lmms_eval.resume.request_content import Contents, content_hash, is_greedy
from lmms_eval_emi.harness.lmms_eval.resume.runs import block_size
from lmms_eval_emi.util.journal import Journal, read_journal

ROOT = Path(__file__).resolve().parents[3]
GREEDY = {"do_sample": False, "max_new_tokens": 5}


def instance(task="t", row=0, prompt="What?", options=GREEDY, **changes):
    visual = lambda doc: [Image.new("RGB", (2, 2), doc["colour"])]  # noqa: E731
    fields = {
        "task_name": task,
        "doc_id": row,
        "metadata": {},
        "args": (prompt, dict(options), visual, row, task, "test"),
    }
    return SimpleNamespace(**fields | changes)


class Model:
    """Counts what it is asked, and mutates generation arguments as LLaVA's class does."""

    is_simple = True

    def __init__(self, rows=100):
        self.calls: list[list] = []
        self.task_dict = {
            task: {"test": [{"colour": ("red", "blue")[row % 2]} for row in range(rows)]} for task in ("t", "u")
        }

    def generate_until(self, requests):
        self.calls.append([(one.task_name, one.doc_id) for one in requests])
        for one in requests:
            one.args[1].pop("max_new_tokens", None)
        return [f"{one.args[0]} {one.doc_id}" for one in requests]

    def loglikelihood(self, requests):
        self.calls.append([(one.task_name, one.doc_id) for one in requests])
        return [(np.float32(-0.1 * one.doc_id), True) for one in requests]


@pytest.fixture
def answer(tmp_path):
    """Asks a model for requests, as a process of its own would: the journal is opened and closed."""

    def ask(requests, method="generate_until", model=None, size=4, share=True, run="r"):
        model = model or Model()
        journal = Journal(tmp_path)
        try:
            Blocks(journal, run, size, share).wrap(model)
            return getattr(model, method)(requests), model.calls
        finally:
            journal.close()

    return ask


def different(count, **options):
    return [instance(row=row, prompt=f"Q{row}", **options) for row in range(count)]


def test_a_call_is_handed_on_in_blocks_and_never_twice(answer):
    responses, calls = answer(different(10))
    assert responses == [f"Q{row} {row}" for row in range(10)]
    assert [len(call) for call in calls] == [4, 4, 2]
    again, calls = answer(different(10))
    assert again == responses and calls == []
    _, calls = answer(different(10), run="another model")
    assert len(calls) == 3


def test_empty_responses_are_asked_again_if_that_is_wanted(tmp_path):
    """Empty are blanks and nothing but thoughts as well, as for score."""

    class Hesitant(Model):
        def generate_until(self, requests):
            super().generate_until(requests)
            return [{0: "", 1: "  ", 2: "<think>hm", 3: "a star"}[one.doc_id] for one in requests]

    def ask(model, **options):
        journal = Journal(tmp_path)
        try:
            Blocks(journal, "r", 4, False, **options).wrap(model)
            return model.generate_until(different(4)), [row for call in model.calls for _, row in call]
        finally:
            journal.close()

    ask(Hesitant())
    assert ask(Model())[1] == []
    responses, asked = ask(Model(), retry_empty=True)
    assert asked == [0, 1, 2] and responses == ["Q0 0", "Q1 1", "Q2 2", "a star"]


def test_the_command_and_the_count_of_a_run_that_asks_empty_ones_again(tmp_path):
    from lmms_eval_emi.harness.lmms_eval.resume.runs import RunOptions, status
    from lmms_eval_emi.util.journal import write_manifest

    options = RunOptions(tmp_path, ("--tasks", "t"), retry_empty=True)
    assert options.command.endswith("run --tasks t --retry-empty")
    journal = Journal(tmp_path)
    model = Model()
    model.generate_until = lambda requests: ["" for _ in requests]
    Blocks(journal, "r", 4, False).wrap(model)
    model.generate_until(different(4))
    journal.close()
    for wanted, left in ((False, 0), (True, 4)):
        write_manifest(tmp_path, "r", {"run": "r", "retry_empty": wanted})
        assert [task.left for state in status(tmp_path) for task in state.tasks] in ([left], [])


def test_blocks_are_the_same_however_often_a_run_was_interrupted(answer):
    class Killed(BaseException):
        pass

    class Dying(Model):
        def generate_until(self, requests):
            if len(self.calls) == 2:
                raise Killed
            return super().generate_until(requests)

    _, undisturbed = answer(different(20), run="calm")
    seen = []
    for _ in range(2):
        model = Dying()
        with pytest.raises(Killed):
            answer(different(20), model=model)
        seen += model.calls
    _, rest = answer(different(20))
    assert seen + rest == undisturbed


def test_one_question_about_one_image_is_asked_once(answer):
    requests = [
        instance("t", 0),
        instance("t", 1),
        instance("u", 0),
        instance("u", 2),
        instance("u", 1, prompt="Other"),
    ]
    responses, calls = answer(requests)  # rows 0 and 2 have a red image, row 1 a blue one
    assert sum(map(len, calls)) == 3
    assert responses[0] == responses[2] == responses[3] != responses[1]
    assert sum(map(len, answer(requests, run="x", share=False)[1])) == 5


def test_what_is_drawn_is_asked_for_each_time(answer):
    sampled = {"do_sample": True, "temperature": 0.7}
    requests = [instance(options=sampled), instance(options=sampled), instance("u", options=sampled)]
    assert sum(map(len, answer(requests)[1])) == 3
    assert answer(requests)[1] == []  # and yet is not asked again
    unsaid = [instance(options={"max_new_tokens": 5}), instance("u", options={"max_new_tokens": 5})]
    assert sum(map(len, answer(unsaid, run="x")[1])) == 2, "a model may draw where nothing says that it does not"
    assert [is_greedy([one]) for one in (GREEDY, sampled, {"temperature": 0}, {"temperature": 1}, {})] == [
        *(True, False, True, False, False)
    ]


def test_what_changed_is_asked_again(answer):
    answer(different(3))
    _, calls = answer([instance(row=0, prompt="Q0"), instance(row=1, prompt="Q1 changed"), instance(row=2, prompt="Q2", options={"do_sample": False, "max_new_tokens": 9})])  # fmt: skip
    assert calls == [[("t", 1), ("t", 2)]]
    model = Model()
    model.task_dict["t"]["test"][0]["colour"] = "green"  # the image behind a prompt
    _, calls = answer(different(3), model=model)
    assert calls == [[("t", 0)]]


def test_log_likelihoods_come_back_as_they_were(answer):
    requests = different(5)
    first, _ = answer(requests, "loglikelihood")
    again, calls = answer(requests, "loglikelihood")
    assert again == first and calls == [] and first[3] == (float(np.float32(-0.1 * 3)), True)
    assert type(first[3]) is tuple


def test_chat_models_are_told_apart_by_their_messages(answer):
    def messages(text):
        return lambda doc: [{"role": "user", "content": [{"type": "image", "url": Image.new("RGB", (2, 2), doc["colour"])}, {"type": "text", "text": text}]}]  # fmt: skip

    def chat(row, text):
        return instance(row=row, args=("", messages(text), dict(GREEDY), row, "t", "test"))

    class Chat(Model):
        def generate_until(self, requests):
            self.calls.append([(one.task_name, one.doc_id) for one in requests])
            return ["yes"] * len(requests)

    _, calls = answer([chat(0, "a"), chat(1, "a"), chat(2, "a"), chat(0, "b")], model=Chat())
    assert calls == [[("t", 0), ("t", 1), ("t", 0)]]


def test_repeats_of_one_document_are_requests_of_their_own(answer):
    for run, options in (("a", {"do_sample": True}), ("b", GREEDY)):
        one = instance(options=options)
        _, calls = answer([one, one, one], run=run)
        assert sum(map(len, calls)) == 3


def test_another_seed_draws_again(answer, tmp_path):
    sampled = [instance(options={"do_sample": True})]
    for seed, asked in (("1", 1), ("1", 0), ("2", 1)):
        journal, model = Journal(tmp_path), Model()
        Blocks(journal, "r", 4, True, seed).wrap(model)
        model.generate_until(sampled)
        journal.close()
        assert len(model.calls) == asked


def test_a_later_command_has_a_plan_of_its_own(tmp_path):
    """Other generation arguments in the same folder: what is recovered and counted is of one command."""
    for command, limit in (("first", 5), ("second", 9)):
        journal, model = Journal(tmp_path), Model()
        Blocks(journal, "r", 4, command=command).wrap(model)
        model.generate_until([instance(row=row, prompt=f"Q{row}", options={**GREEDY, "max_new_tokens": limit}) for row in range(4)])  # fmt: skip
        journal.close()
    contents = read_journal(tmp_path)
    first, second = (set(contents.plan(command)) for command in ("first", "second"))
    assert len(first) == len(second) == 4 and not first & second


def test_a_document_that_is_asked_something_else_has_its_latest_plan(tmp_path):
    for prompt in ("old", "new"):
        journal = Journal(tmp_path)
        Blocks(journal, "r", 4, command="c").wrap(model := Model())
        model.generate_until([instance(row=row, prompt=f"{prompt} {row}") for row in range(3)])
        journal.close()
    contents = read_journal(tmp_path)
    answers = contents.answers("r")
    assert [answers.of(request, shared=False) for request in contents.plan("c")] == [
        f"new {row} {row}" for row in range(3)
    ]


def test_placeholders_of_a_budget_that_is_used_up_are_not_kept(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "is_budget_exceeded", lambda: True)
    with pytest.raises(RunError, match="--max_tokens is used up"):
        answer(different(3))
    assert not read_journal(tmp_path).answers("r").by_request


def test_rounds_of_a_document_are_told_apart_and_replayed(tmp_path, monkeypatch):
    """A document of several rounds asks the model again in each, with the same prompt at times."""
    monkeypatch.setattr(evaluation, "is_call_of_one_round", lambda: True)
    sampled = {"do_sample": True}

    class Rounds(Model):
        def generate_until(self, requests):
            self.calls.append([])
            return [f"round {len(self.calls)}" for _ in requests]

    for expected in (3, 0):
        journal, model = Journal(tmp_path), Rounds()
        Blocks(journal, "r", 4).wrap(model)
        replies = [model.generate_until([instance(options=sampled)])[0] for _ in range(3)]
        journal.close()
        assert replies == ["round 1", "round 2", "round 3"] and len(model.calls) == expected


def test_padding_gets_the_response_of_what_it_repeats(answer):
    requests = different(3)
    requests.append(instance(row=2, prompt="Q2", metadata={"__padding_only__": True}))
    responses, calls = answer(requests)
    assert responses[3] == responses[2] and sum(map(len, calls)) == 3
    alone = [instance("u", row=2, prompt="of no document of this rank", metadata={"__padding_only__": True})]
    assert answer(alone) == ([""], [])
    assert answer(alone, "loglikelihood") == ([(0.0, False)], [])


def test_a_model_that_returns_too_few_responses_loses_nothing(answer, tmp_path):
    class Short(Model):
        def generate_until(self, requests):
            return super().generate_until(requests)[: 2 if self.calls[1:] else None]

    with pytest.raises(RunError, match="2 responses to 4 requests"):
        answer(different(8), model=Short())
    assert len(read_journal(tmp_path).answers("r").by_request) == 4


@pytest.mark.parametrize(
    "response",
    ["text", "", ("a", {"input_tokens": 3}), ["one", "two"], (-1.5, False), None, 3, float("inf"), {"a": [1]}],
)
def test_responses_of_every_kind_come_back(response):
    assert from_plain(json.loads(json.dumps(to_plain(response)))) == response


def test_responses_with_token_counts_come_back():
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    for response in (GenerationResult("a", TokenCounts(1, 2, None)), GenerationResult("b")):
        assert from_plain(json.loads(json.dumps(to_plain(response)))) == response
    with pytest.raises(RunError, match="object"):
        to_plain(object())


def test_content_is_that_of_the_pixels_and_not_of_the_object():
    red, blue = (Image.new("RGB", (3, 3), colour) for colour in ("red", "blue"))
    assert content_hash([red, "a"]) == content_hash([red.copy(), "a"]) != content_hash([blue, "a"])
    assert content_hash(red) != content_hash(red.resize((9, 1)))
    assert content_hash({"b": 1, "a": np.ones(3)}) == content_hash({"a": np.ones(3), "b": 1})
    assert content_hash(["ab", "c"]) != content_hash(["a", "bc"])
    assert content_hash(object()) is None


def test_what_cannot_be_told_apart_is_not_shared():
    contents = Contents(lambda task, split, row: {}, "generate_until")
    strange = [instance(row=row, args=("", dict(GREEDY), lambda doc: object(), row, "t", "test")) for row in (0, 1)]
    first, second = map(contents.describe, strange)
    assert not first.shared and first.request.content != second.request.content


def test_a_file_that_a_prompt_names_is_part_of_it(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    before = content_hash([str(video)])
    video.write_bytes(b"other")
    assert content_hash([str(video)]) != before


def test_the_order_of_model_arguments_does_not_matter():
    assert identity("m", "a=1,api_key=one") == identity("m", "a=1,api_key=two")
    assert identity("m", "a=1,b=2") == identity("m", "b=2, a=1") == identity("m", {"a": 1, "b": 2})
    assert len({identity("m", "a=1"), identity("m", "a=2"), identity("n", "a=1")}) == 3


@pytest.mark.parametrize(
    ("save", "batch", "size"), [(32, "1", 32), (32, "12", 36), (5, "8", 8), (32, "auto", 32), (7, "", 7)]
)
def test_blocks_are_whole_batches(save, batch, size):
    assert block_size(save, batch) == size


def test_a_rank_that_fails_is_told_to_the_others(tmp_path):
    import threading

    lost, told = [], threading.Event()

    def tell(reason):
        lost.append(reason)
        told.set()

    watching = Heartbeat(tmp_path, 0, 2, tell)
    other = Heartbeat(tmp_path, 1, 2, lambda _: None)
    assert not told.wait(2.5)
    other.finish("out of memory")
    assert told.wait(10) and lost == ["rank 1 of 2 failed: out of memory"]
    watching.finish()


def test_a_silent_rank_of_another_machine_counts_as_dead_and_a_finished_one_does_not(tmp_path, monkeypatch):
    import threading

    lost, told = [], threading.Event()

    def tell(reason):
        lost.append(reason)
        told.set()

    watching = Heartbeat(tmp_path, 0, 3, tell, silence=2)
    sign = {"host": "elsewhere", "pid": 1, "beat": 1, "state": "running", "message": ""}
    (tmp_path / "rank-00002.alive").write_text(json.dumps({**sign, "state": "done"}))
    (tmp_path / "rank-00001.alive").write_text(json.dumps(sign))
    assert told.wait(10) and lost == ["rank 1 of 3 has given no sign of life for 2 seconds"]
    watching.finish()


def test_a_local_checkpoint_that_was_trained_on_is_another_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0" * 200_000)
    before = identity("m", f"pretrained={tmp_path}")
    (tmp_path / "model.safetensors").touch()
    assert identity("m", f"pretrained={tmp_path}") == before
    (tmp_path / "model.safetensors").write_bytes(b"0" * 199_999 + b"1")
    assert identity("m", f"pretrained={tmp_path}") != before


def test_a_torn_file_is_set_aside_and_nothing_else_is_touched(tmp_path):
    from lmms_eval_emi.harness.lmms_eval.resume.runs import set_torn_files_aside

    own = tmp_path / "model"
    parts = tmp_path / "x.emi_parts"
    for folder in (own, parts):
        folder.mkdir()
    torn = [own / "20260101_000000_results.json", own / "20260101_000000_samples_mme.jsonl"]
    kept = [own / "mine_samples_x.jsonl", own / "x_results.json", parts / "rank-00000_samples_t.jsonl", own / "20260101_000001_results.json"]  # fmt: skip
    for path in torn + kept[:3]:
        path.write_text('{"a": ')
    kept[3].write_text("{}")
    assert set_torn_files_aside(tmp_path) == [path.with_name(f"{path.name}.torn") for path in torn]
    assert all(path.exists() for path in kept) and not any(path.exists() for path in torn)


def test_signals_to_forked_children_do_not_end_a_run():
    """A pool that is left terminates its processes, which share the socket that wakes this one."""
    code = """
import multiprocessing, time
from lmms_eval_emi.harness.signals import stop_signals
with stop_signals(lambda name: f"LAST WORDS {name}", deadline=1):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(abs, range(10))
    time.sleep(2)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def test_the_last_sign_of_a_rank_is_its_last(tmp_path):
    """A rank that is done and gone must not look as one that died."""
    for _ in range(20):
        ranks = Heartbeat(tmp_path, 0, 2, lambda _: None)
        ranks.finish()
        assert json.loads((tmp_path / "rank-00000.alive").read_text())["state"] == "done"


# As a user has it


def command(hub: Path, *arguments: str, **variables: str):
    pytest.importorskip("decord", reason="lmms-eval's llava_hf needs decord")
    return run_module(
        "lmms_eval_emi", *arguments, cwd=hub, LMMS_EVAL_EMI_ESTIMATOR=str(hub / "tiny.safetensors"), **variables
    )


@pytest.fixture(scope="module")
def finished(tinyhub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumable")
    arguments = ("--tasks", "mme,llavabench_shift_natural_text", *MODEL, "--save-every", "4", "--log_samples")
    done = command(tinyhub, "run", *arguments, "--output_path", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(folder=folder, out=done.stdout, err=done.stderr)


def test_the_harness_itself_gives_the_same(finished, tinyhub, tmp_path):
    done = run_module(
        "lmms_eval", "--tasks", "mme,llavabench_shift_natural_text", *MODEL, "--output_path", str(tmp_path),
        cwd=tinyhub, LMMS_EVAL_EMI_ESTIMATOR=str(tinyhub / "tiny.safetensors"),
    )  # fmt: skip
    assert done.returncode == 0
    plain, ours = (strict_json(only(folder, "*_results.json"))["results"] for folder in (tmp_path, finished.folder))
    assert plain == ours


def test_status_says_how_far_a_run_is(finished, capsys):
    assert main(["run", "--status", str(finished.folder)]) == 0
    out = capsys.readouterr().out
    assert "every response is there" in out and "llavabench_shift_natural_coco_hindi" in out
    assert main(["run", "--status", str(finished.folder.parent / "nothing")]) == 1
    assert "expected the --output_path of lmms-eval-emi run" in capsys.readouterr().err


def test_a_part_of_a_journal_gives_results_of_a_part(finished, tinyhub, tmp_path):
    """Without the model and without the original command."""
    journal = tmp_path / "journal"
    journal.mkdir()
    (journal / "run.json").write_bytes((finished.folder / "journal" / "run.json").read_bytes())
    lines = (finished.folder / "journal" / "rank-00000.jsonl").read_bytes().splitlines(keepends=True)
    (journal / "rank-00000.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:40])
    done = command(tinyhub, "run", "--recover", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    (described,) = json.loads((journal / "run.json").read_text())["runs"].values()
    known = len(read_journal(tmp_path).answers(described["run"]).by_request)
    assert f"results of {known} of 43 requests: they are partial results" in done.stderr
    scores = strict_json(only(tmp_path / "recovered", "*_emi_natural.json"))["splits"]
    whole = strict_json(only(finished.folder, "*_emi_natural.json"))["splits"]
    complete = [name for name, one in scores.items() if one["n"] == whole[name]["n"]]
    assert complete and len(scores) < len(whole)
    for name in complete:
        assert scores[name]["emi"] == whole[name]["emi"]


def test_a_dry_run_loads_no_model_and_counts_what_is_left(finished, tinyhub, tmp_path):
    arguments = ("--tasks", "mme,llavabench_shift_natural_text", *MODEL, "--dry-run", "--output_path")
    done = command(tinyhub, "run", *arguments, str(finished.folder))
    assert done.returncode == 0 and done.stdout.split("\n")[-2].split() == ["all", "43", "43", "0", "0"]
    fresh = [word.replace("tiny-llava", "not-there") for word in arguments]
    done = command(tinyhub, "run", *fresh, str(tmp_path))
    assert done.returncode == 0 and done.stdout.split("\n")[-2].split() == ["all", "43", "0", "0", "43"]
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output_path", "out"), "expected --tasks NAMES or --study"),
        (("--output_path", "{file}", "--tasks", "mme"), "expected a folder, got the file"),
        (("--output_path", "out", "--tasks", "mme", "--save-every", "0"), "--save-every: expected 1 or more"),
    ],
)
def test_wrong_usage_is_told_at_once(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["run", *(one.format(file=tmp_path / "file") for one in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert "torch" not in sys.modules or not (tmp_path / "out").exists()


def test_secrets_are_in_no_file_of_a_run(tmp_path, monkeypatch):
    from lmms_eval_emi.harness.lmms_eval.resume import runs as resumable

    monkeypatch.setattr(launch, "run_command_line", lambda arguments, prepare: prepare(SimpleNamespace(model="openai", model_args="api_key=verysecret,model=x", batch_size=1)))  # fmt: skip
    arguments = (
        "--model",
        "openai",
        "--model_args",
        "api_key=verysecret,model=x",
        "--hf_token",
        "hf_abcdefghijklmnopqrstuvwxyz",
    )
    options = resumable.RunOptions(tmp_path, arguments)
    described = resumable.describe_run(options, "openai", "api_key=verysecret,model=x")
    text = json.dumps(described)
    assert "verysecret" not in text and "hf_abc" not in text and "api_key=***" in text and "model=x" in text


def kills(*options: str) -> subprocess.CompletedProcess:
    return run_in_fork("kills", *options, cwd=ROOT / "benchmarks", **os.environ)


def test_kills_and_accidents_in_short():
    """docs/reliability.md has the last run with all of them."""
    done = kills("--kills", "1", "--ranks", "2", "--accidents", "terminated")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_kills_and_accidents():
    done = kills("--kills", "100", "--accidents")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_api_backend_is_asked_once_and_its_key_is_in_no_file(tinyhub, tmp_path):
    """The harness's own model of OpenAI-compatible endpoints, against a local server."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Endpoint(BaseHTTPRequestHandler):
        asked = 0

        def do_POST(self):
            Endpoint.asked += 1
            size = len(self.rfile.read(int(self.headers["content-length"])))
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"reply {size}"}}
            usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
            reply = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            content = json.dumps({**reply, "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    results = []
    for key in ("sk-abcdefghijklmnopqrstuv", "sk-zyxwvutsrqponmlkjihgfe"):  # a new key is no new model
        model = f"model_version=x,base_url=http://127.0.0.1:{server.server_port}/v1,api_key={key}"
        done = run_module(
            *("lmms_eval_emi", "run", "--model", "openai", "--model_args", model, "--tasks", "mme"),
            *("--batch_size", "2", "--save-every", "4", "--output_path", str(tmp_path)),
            cwd=tinyhub,
            OPENAI_API_KEY=key,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert key not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
        results.append(strict_json(sorted(tmp_path.rglob("*_results.json"))[-1])["results"])
    server.shutdown()
    assert Endpoint.asked == 8 and results[0] == results[1]
