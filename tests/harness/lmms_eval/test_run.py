"""Our tasks in lmms-eval: run by its own command line with its own LLaVA class, on one rank and on two."""

from __future__ import annotations

import json
import os
import pickle
import shlex
from types import SimpleNamespace

import pytest
from conftest import GERMAN, GROUP, ID, MODEL, ROWS, lmms_eval, numbers, only, run_module, strict_json
from forking import run_in_fork

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.lmms_eval import samples_name
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.harness.lmms_eval import finish
from lmms_eval_emi.harness.lmms_eval import run as run_module_
from lmms_eval_emi.harness.lmms_eval.compat import evaluation, task_index
from lmms_eval_emi.harness.lmms_eval.hooks import group_mean, study_hooks
from lmms_eval_emi.harness.lmms_eval.run import Item, RunStopped, find_run, forget_runs


@pytest.fixture(scope="module")
def run(tinyhub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = lmms_eval(tinyhub, f"mme,{GROUP}", "--output_path", str(folder), "--log_samples")
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(
        folder=folder,
        out=done.stdout,
        results=strict_json(only(folder, "*_results.json")),
        scores=strict_json(only(folder, "*_emi_natural.json")),
    )


def task_scores(results: dict, task: str) -> dict[str, float]:
    return {
        key.removesuffix(",none"): value
        for key, value in results["results"][task].items()
        if key.endswith(",none") and "_stderr" not in key
    }


def test_every_row_shows_its_scores_and_no_more(run):
    study = load_study("natural")
    assert set(task_scores(run.results, study.task_name(ID))) == {"emi"}
    for name in study.shifts("text"):
        shown = task_scores(run.results, study.task_name(name))
        assert shown == {key: run.scores["splits"][name][key] for key in ("emi", "emid", "emid_bound")}
        assert all(type(value) is float for value in shown.values())


def test_the_groups_row_is_the_mean_over_its_shifts(run):
    shown = task_scores(run.results, GROUP)
    summary = run.scores["summary"]
    assert shown == pytest.approx(
        {"emi": summary["mean_emi"], "emid": summary["mean_emid"], "emid_bound": summary["mean_bound"]}
    )
    assert summary["n_shifts"] == 6


def test_the_correlation_stands_under_the_table(run):
    below = run.out.split("|Groups", 1)[-1].split("Groups", 1)[-1]
    assert "Pearson r" in below and "(too few shifts or images)" in below and run.scores["signature"] in below


def test_the_saved_responses_give_the_same_scores(run, in_tinyhub, tmp_path):
    answers = only(run.folder, "*_emi_responses") / "natural"
    output = tmp_path / "again.json"
    assert (
        main(["score", "--study", "natural", "--responses", str(answers), "--output", str(output), "--allow-missing"])
        == 0
    )
    again = strict_json(output)["splits"]
    assert list(again) == list(run.scores["splits"])
    for name, figures in run.scores["splits"].items():
        assert numbers(again[name]) == pytest.approx(numbers(figures), abs=1e-9)


def test_two_ranks_give_the_scores_of_one(run, tinyhub, tmp_path):
    done = lmms_eval(
        tinyhub, f"mme,{GROUP}", "--output_path", str(tmp_path), "--log_samples", processes=2, launcher=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (only(folder, "*_emi_responses") / "natural" for folder in (run.folder, tmp_path))
    for path in one.iterdir():
        assert (two / path.name).read_text() == path.read_text()
    figures = strict_json(only(tmp_path, "*_emi_natural.json"))
    for name, expected in run.scores["splits"].items():
        assert numbers(figures["splits"][name]) == pytest.approx(numbers(expected), abs=1e-9)


def test_what_is_logged_of_a_sample_is_small(run):
    sample = json.loads(
        only(run.folder, "*_samples_llavabench_shift_natural_coco_german.jsonl").read_text().splitlines()[3]
    )
    assert sample["emi"] == {"row": f"natural:{GERMAN}:3", "answer": sample["filtered_resps"]}
    assert sample["emid"] == sample["emid_bound"] == {"row": f"natural:{GERMAN}:3"}
    assert sample["input"].endswith("? Please answer in English.")


def test_our_share_of_the_run_stands_under_the_table(run):
    import re

    line = next(line for line in run.out.splitlines() if line.startswith("time "))
    found = re.fullmatch(
        r"time +([\d.]+) s of this run are lmms_eval_emi's: loading ([\d.]+) s, responses ([\d.]+) s, scoring ([\d.]+) s; (\d+) bytes a row beyond its response",
        line,
    )
    assert found, line
    total, *parts = map(float, found.groups()[:4])
    assert total == pytest.approx(sum(parts), abs=0.3) and 0 < int(found[5]) < 4096


def test_other_tasks_are_as_they_are_alone(run, tinyhub, tmp_path):
    done = lmms_eval(tinyhub, "mme", "--output_path", str(tmp_path))
    assert done.returncode == 0
    alone = strict_json(only(tmp_path, "*_results.json"))
    assert (
        alone["results"]["mme"] == run.results["results"]["mme"]
        and alone["configs"]["mme"].keys() == run.results["configs"]["mme"].keys()
    )
    assert "emi" not in done.stdout.lower().replace("include", "")


def test_without_its_id_split_a_shift_has_emi_alone(tinyhub, tmp_path):
    done = lmms_eval(tinyhub, "llavabench_shift_natural_coco_german", "--output_path", str(tmp_path))
    assert done.returncode == 0
    assert set(task_scores(strict_json(only(tmp_path, "*_results.json")), "llavabench_shift_natural_coco_german")) == {
        "emi"
    }
    assert done.stdout.count("llavabench_shift_natural_coco_english,...") == 1


def test_if_scoring_fails_responses_and_other_scores_are_safe(run, tinyhub, tmp_path):
    """The estimator disappears between the check and the scores."""
    done = lmms_eval(
        tinyhub,
        f"mme,{GROUP}",
        "--output_path",
        str(tmp_path),
        LMMS_EVAL_EMI_ESTIMATOR="gone.safetensors",
        LMMS_EVAL_EMI_PREFLIGHT="0",
    )
    assert done.returncode == 1 and "scores of 7 task(s) are missing" in done.stderr
    results = strict_json(only(tmp_path, "*_results.json"))
    assert results["results"]["mme"] == run.results["results"]["mme"]
    assert set(task_scores(results, "llavabench_shift_natural_coco_german").values()) == {"N/A"}
    answers = only(tmp_path, "*_emi_responses")
    assert len(list((answers / "natural").glob("*.jsonl"))) == 7
    assert (
        "EMI could not be computed" in done.stdout
        and str(answers) in done.stdout
        and "lmms-eval-emi score natural" in done.stdout
    )


def test_a_run_that_fails_before_our_tasks_load_does_not_end_well(tinyhub, tmp_path):
    """lmms-eval itself ends with 0 after a model that it does not know."""
    arguments = ("--model", "no_such_model", "--tasks", GROUP, "--output_path", str(tmp_path))
    estimator = str(tinyhub / "tiny.safetensors")
    done = run_module("lmms_eval", *arguments, cwd=tinyhub, LMMS_EVAL_EMI_ESTIMATOR=estimator)
    assert done.returncode == 1 and "task(s) are missing" in done.stderr and GROUP in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_missing_stops_the_run_before_it_generates(tinyhub, tmp_path, processes):
    done = lmms_eval(
        tinyhub,
        f"mme,{GROUP}",
        "--output_path",
        str(tmp_path),
        processes=processes,
        LMMS_EVAL_EMI_ESTIMATOR="club-global",
        LMMS_EVAL_EMI_TEXT_ENCODER="nobody/nothing",
    )
    assert done.returncode != 0
    for remedy in (
        "LMMS_EVAL_EMI_ESTIMATOR=/path/to/CLUB_global.pt",
        "LMMS_EVAL_EMI_TEXT_ENCODER=/path/to/nothing",
        "LMMS_EVAL_EMI_PREFLIGHT=0",
    ):
        assert done.stderr.count(remedy) == 1
    assert "Running generate_until" not in done.stdout and not list(tmp_path.rglob("*.json"))


def test_a_task_of_ones_own_on_a_split_of_ours_has_its_own_row(run, tinyhub, tmp_path):
    """Another prompt on the rows of a split: the split, its variant and the ID split are each scored by their own responses."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    ours = task_index.tasks_folder() / "llavabench_shift" / "natural" / "coco_german.yaml"
    (tasks / "german_terse.yaml").write_text(
        f"include: {ours}\ntask: german_terse\n"
        "lmms_eval_specific_kwargs: {default: {pre_prompt: 'red red ', post_prompt: ' One word.'}}\n"
    )
    names = "llavabench_shift_natural_coco_english,llavabench_shift_natural_coco_german,german_terse"
    done = lmms_eval(
        tinyhub, names, "--include_path", str(tasks), "--output_path", str(tmp_path / "out"), "--log_samples"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = strict_json(only(tmp_path / "out", "*_results.json"))
    scores = strict_json(only(tmp_path / "out", "*_emi_natural.json"))["splits"]
    assert list(scores) == [ID, GERMAN, "german_terse"] and scores["german_terse"]["variant_of"] == GERMAN
    for name in (ID, GERMAN):
        assert numbers(scores[name]) == pytest.approx(numbers(run.scores["splits"][name]), abs=1e-9)
    shown = task_scores(results, "german_terse")
    assert shown == {key: scores["german_terse"][key] for key in ("emi", "emid", "emid_bound")}
    logged = {}
    for task in ("llavabench_shift_natural_coco_german", "german_terse"):
        lines = only(tmp_path / "out", f"*_samples_{task}.jsonl").read_text().splitlines()
        logged[task] = [json.loads(line)["filtered_resps"] for line in lines]
    folder = only(tmp_path / "out", "*_emi_responses") / "natural"
    for name, task in ((GERMAN, "llavabench_shift_natural_coco_german"), ("german_terse", "german_terse")):
        saved = [json.loads(line)["text"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert saved == logged[task]


def test_the_responses_of_a_variant_can_be_scored_again(fresh_run, load_split, in_tinyhub, tmp_path, monkeypatch):
    hooks, (id_docs,) = load_split(ID)
    variant = load_task(monkeypatch, hooks, "german_terse", GERMAN, in_tinyhub)
    values = answer_all(hooks, id_docs), answer_all(hooks, variant, "terse")
    args = run_arguments(tmp_path)
    emid = hooks.emid([value["emid"] for value in values[1]], args)
    folder = only(tmp_path, "*_emi_responses") / "natural"
    for name, text in ((ID, "a response 3"), ("german_terse", "terse 3")):
        assert json.loads((folder / f"{name}.jsonl").read_text().splitlines()[3])["text"] == text
    output = tmp_path / "again.json"
    study = load_study(str(folder / "study.yaml"))
    arguments = shlex.split(finish.score_command(study, folder.parent))[1:]
    assert main([*arguments[:-3], str(output), *arguments[-2:]]) == 0, arguments
    assert strict_json(output)["splits"]["german_terse"]["emid"] == pytest.approx(emid, abs=1e-9)


# In this process: the state of a run and the hooks.


@pytest.fixture
def fresh_run(monkeypatch):
    forget_runs()
    monkeypatch.setattr(run_module_, "check_environment", lambda: None)
    monkeypatch.setattr(finish, "footers", [])
    yield
    forget_runs()


@pytest.fixture
def load_split(tinyhub):
    from datasets import load_dataset

    splits = load_dataset(str(tinyhub / "changdae/llavabench-shift-natural-v1"))

    def load(*names):
        hooks = study_hooks("natural")
        return hooks, [hooks.process_docs(splits[name]) for name in names]

    return load


def load_task(monkeypatch, hooks, task, split, tinyhub):
    """Rows of a split as a task of another name loads them."""
    from datasets import load_dataset

    rows = load_dataset(str(tinyhub / "changdae/llavabench-shift-natural-v1"))[split]
    owner = SimpleNamespace(config=SimpleNamespace(task=task))
    monkeypatch.setattr(run_module_.evaluation, "calling_task", lambda: evaluation.CallingTask(task, _Weak(owner), 0))
    docs = hooks.process_docs(rows)
    monkeypatch.undo()
    monkeypatch.setattr(run_module_, "check_environment", lambda: None)
    monkeypatch.chdir(tinyhub)
    monkeypatch.setenv("LMMS_EVAL_EMI_ESTIMATOR", str(tinyhub / "tiny.safetensors"))
    return docs


class _Weak:
    """Something that can be referred to weakly, as a task can."""

    def __init__(self, content):
        self.content = content


def run_arguments(folder, **changes):
    return SimpleNamespace(**{"model": "m", "model_args": "", "output_path": str(folder), "timezone": "UTC", **changes})


def answer_all(hooks, docs, text="a response"):
    return [hooks.process_results(doc, [f"{text} {row}"]) for row, doc in enumerate(docs)]


def responses(task):
    return find_run(task).tasks[task].responses


ID_TASK, GERMAN_TASK = "llavabench_shift_natural_coco_english", "llavabench_shift_natural_coco_german"


def test_aggregation_in_any_order_of_the_tasks(fresh_run, load_split, in_tinyhub, tmp_path):
    scores = []
    for order in ((ID, GERMAN), (GERMAN, ID)):
        hooks, splits = load_split(*order)
        values = {name: answer_all(hooks, docs) for name, docs in zip(order, splits, strict=True)}
        args = run_arguments(tmp_path)
        scores.append(
            [
                hooks.emid([value["emid"] for value in values[GERMAN]], args),
                hooks.emi([value["emi"] for value in values[ID]], args),
            ]
        )
        assert "emid" not in values[ID][0]
    assert scores[0] == scores[1] and all(type(score) is float for score in scores[0])


def test_a_second_run_in_the_process_shares_nothing_with_the_first(fresh_run, load_split):
    hooks, (id_docs, german_docs) = load_split(ID, GERMAN)
    first = find_run(GERMAN_TASK)
    items = [value["emi"] for value in answer_all(hooks, german_docs)]
    hooks, (german_docs,) = load_split(GERMAN)
    second = find_run(GERMAN_TASK)
    assert second is not first and not second.has_split("natural", ID) and responses(GERMAN_TASK) == {}
    assert set(answer_all(hooks, german_docs, "other")[0]) == {"emi"}
    assert responses(GERMAN_TASK)[0] == "other 0"
    assert first.tasks[GERMAN_TASK].responses[0] == "a response 0" and items[0].run is first


def test_runs_in_several_threads_share_nothing(fresh_run, load_split, in_tinyhub, tmp_path):
    """A server may evaluate in several threads at once."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier = Barrier(3)
    hooks = study_hooks("natural")

    def evaluate(number):
        _, (id_docs, german_docs) = load_split(ID, GERMAN)
        barrier.wait()
        values = answer_all(hooks, id_docs, f"run {number}"), answer_all(hooks, german_docs, f"german {number}")
        barrier.wait()
        run = values[0][0]["emi"].run
        emid = hooks.emid([value["emid"] for value in values[1]], run_arguments(tmp_path / str(number)))
        return run, emid, run.tasks[GERMAN_TASK].responses[2]

    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(evaluate, range(3)))
    assert len({id(run) for run, _, _ in runs}) == 3
    assert [text for _, _, text in runs] == [f"german {number} 2" for number in range(3)]
    assert all(type(emid) is float for _, emid, _ in runs)


@pytest.mark.parametrize("workers", ["1", "16"])
def test_any_number_of_scoring_threads(run, tinyhub, tmp_path, workers):
    names = "llavabench_shift_natural_coco_english,llavabench_shift_natural_coco_german"
    done = lmms_eval(tinyhub, names, "--output_path", str(tmp_path), "--process-docs-parallel", workers)
    assert done.returncode == 0, done.stderr[-2000:]
    scores = strict_json(only(tmp_path, "*_emi_natural.json"))["splits"]
    for name, expected in scores.items():
        assert numbers(expected) == pytest.approx(numbers(run.scores["splits"][name]), abs=1e-9)


def test_unpickling_an_item_makes_its_response_known_once(fresh_run, load_split):
    """How rank 0 learns of the responses of the other ranks before the first aggregation."""
    hooks, (docs,) = load_split(ID)
    gathered = pickle.dumps([value["emi"] for value in answer_all(hooks, docs)])
    responses(ID_TASK).clear()
    items = pickle.loads(gathered)
    assert responses(ID_TASK) == {row: f"a response {row}" for row in range(ROWS)}
    assert isinstance(items[0], Item) and items[0].task == ID_TASK
    assert pickle.loads(gathered)[0] is items[0], "the harness gathers samples and every metric"
    assert len(gathered) < 250 * ROWS
    forget_runs()
    assert pickle.loads(gathered)[0].run is None


def test_items_of_two_metrics_stay_two_after_they_were_gathered(fresh_run, load_split):
    """The error that EMID's item is given must not show in the row of the index."""
    hooks, (_, docs) = load_split(ID, GERMAN)
    values = pickle.loads(pickle.dumps(answer_all(hooks, docs)))
    values[0]["emid"]["score"] = 1.0
    assert "score" not in values[0]["emid_bound"]


def test_the_first_of_repeated_responses_counts(fresh_run, load_split):
    hooks, (docs,) = load_split(ID)
    hooks.process_results(docs[0], ["first", "second"])
    hooks.process_results(docs[0], ["second"])
    assert responses(ID_TASK) == {0: "first"}
    hooks.process_results(docs[1], [])
    hooks.process_results(docs[2], [None])
    assert responses(ID_TASK) == {0: "first", 1: "", 2: ""}


def test_an_aggregation_never_raises(fresh_run, load_split, monkeypatch, tmp_path):
    hooks, (docs,) = load_split(ID)
    items = [value["emi"] for value in answer_all(hooks, docs)]
    monkeypatch.setattr(finish, "finish", lambda *_: 1 / 0)
    assert hooks.emi(items, None) == task_index.NO_SCORE
    assert group_mean(["natural"], None, "emi")([task_index.NO_SCORE], [5], False) == task_index.NO_SCORE
    json.dumps(task_index.NO_SCORE, allow_nan=False)


def test_a_groups_mean_does_not_depend_on_what_the_harness_hands_it(fresh_run, load_split, in_tinyhub, tmp_path):
    """Rounded or copied on the way, the ID split's score must not slip into the mean over shifts."""
    hooks, splits = load_split(ID, GERMAN)
    values = [answer_all(hooks, docs, text) for docs, text in zip(splits, ("x", "y"), strict=True)]
    args = run_arguments(tmp_path)
    emis = [hooks.emi([value["emi"] for value in own], args) for own in values]
    rounded = [round(emi, 6) for emi in emis]
    assert group_mean(["natural"], "text", "emi")(rounded, [5, 5], False) == emis[1]
    assert group_mean(["natural"], "visual", "emi")(rounded, [5, 5], False) == task_index.NO_SCORE


@pytest.mark.parametrize("broken", ["run_folder", "run_stamp", "model_name"])
def test_responses_are_saved_whatever_the_harness_names_its_files(
    fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path, broken
):
    """A changed signature upstream is enough to break the naming; it must cost neither responses nor scores."""
    if broken == "model_name":
        import lmms_eval.loggers.evaluation_tracker as tracker

        monkeypatch.delattr(tracker.GeneralConfigTracker, "_get_model_name")
    else:
        monkeypatch.setattr(evaluation, broken, lambda *_: 1 / 0)
    hooks, (docs,) = load_split(ID)
    args = run_arguments(tmp_path, model_args="pretrained=some/model,device_map=cpu")
    assert isinstance(hooks.emi([value["emi"] for value in answer_all(hooks, docs)], args), float)
    lines = only(tmp_path, f"{ID}.jsonl").read_text().splitlines()
    assert len(lines) == ROWS and json.loads(lines[0])["model_id"] == "some/model"
    assert only(tmp_path, "*_emi_natural.json")


def test_responses_are_on_the_disk_before_anything_is_named_or_scored(
    fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path
):
    seen = []
    monkeypatch.setattr(finish, "folder_of_run", lambda args: seen.append(only(tmp_path, f"{ID}.jsonl")) or 1 / 0)
    monkeypatch.setattr(finish, "score_studies", lambda *_: seen.append(only(tmp_path, f"{ID}.jsonl")) or {})
    hooks, (docs,) = load_split(ID)
    hooks.emi([value["emi"] for value in answer_all(hooks, docs)], run_arguments(tmp_path))
    assert len(seen) == 2


def test_responses_that_cannot_be_joined_with_their_rows_are_saved_by_row(
    fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path
):
    monkeypatch.setattr(finish, "add_rows", lambda *_, **__: 1 / 0)
    hooks, (docs,) = load_split(ID)
    assert (
        hooks.emi([value["emi"] for value in answer_all(hooks, docs)], run_arguments(tmp_path)) == task_index.NO_SCORE
    )
    monkeypatch.undo()
    saved = only(tmp_path, f"*_samples_{ID_TASK}.jsonl")
    assert [json.loads(line)["filtered_resps"] for line in saved.read_text().splitlines()] == [
        f"a response {row}" for row in range(ROWS)
    ]


def test_responses_are_on_the_disk_as_they_come_in_and_can_be_scored(
    fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path
):
    """Whatever ends the run before our aggregation is called, such as another task that fails."""
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path))
    hooks, (id_docs, german_docs) = load_split(ID, GERMAN)
    values = answer_all(hooks, id_docs), answer_all(hooks, german_docs, "german")
    folder = only(tmp_path / "runs", "*.emi_parts")
    output = tmp_path / "r.json"
    command = ["score", "--study", "natural", "--responses", str(folder), "--allow-missing", "--output", str(output)]
    assert main(command) == 0
    recovered = strict_json(output)["splits"]
    emid = hooks.emid([value["emid"] for value in values[1]], run_arguments(tmp_path / "out"))
    assert emid == pytest.approx(recovered[GERMAN]["emid"], abs=1e-12)
    assert not folder.exists(), "the run has saved them itself"


def test_the_parts_of_several_ranks_are_one_run(in_tinyhub, tmp_path):
    folder = tmp_path / "ranks.emi_parts"
    folder.mkdir()
    for task in (ID_TASK, GERMAN_TASK):
        for rank in range(2):
            lines = [{"doc_id": row, "filtered_resps": f"a {row}"} for row in range(rank, ROWS, 2)]
            path = folder / samples_name(f"rank-{rank:05d}", task)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "r.json"
    command = ["score", "--study", "natural", "--split", GERMAN, "--responses", str(tmp_path), "--output", str(output)]
    assert main(command) == 0
    assert [one["n"] for one in strict_json(output)["splits"].values()] == [ROWS, ROWS]


def test_parts_that_cannot_be_written_cost_no_run(fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path):
    monkeypatch.setattr(run_module_, "writable_folder", lambda args: 1 / 0)
    hooks, (docs,) = load_split(ID)
    assert isinstance(hooks.emi([value["emi"] for value in answer_all(hooks, docs)], run_arguments(tmp_path)), float)


def test_a_run_knows_which_scores_it_lacks(fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path):
    hooks, (id_docs, german_docs) = load_split(ID, GERMAN)
    assert run_module_.tasks_without_scores() == [], "tasks that were loaded to be looked at"
    find_run(ID_TASK).evaluation = 1
    assert run_module_.tasks_without_scores() == [ID_TASK, GERMAN_TASK]
    values = answer_all(hooks, id_docs), answer_all(hooks, german_docs)
    monkeypatch.setenv("RANK", "1")
    assert run_module_.tasks_without_scores() == [], "rank 0 has the scores"
    monkeypatch.delenv("RANK")
    hooks.emi([value["emi"] for value in values[0]], run_arguments(tmp_path))
    assert run_module_.tasks_without_scores() == []
    find_run(ID_TASK).unwritten.add("natural")
    assert run_module_.tasks_without_scores() == [ID_TASK, GERMAN_TASK]
    for task in find_run(ID_TASK).tasks.values():
        task.task = SimpleNamespace(_metric_fn_list={"bypass": None})
    assert run_module_.tasks_without_scores() == [], "only responses were asked for"


def test_a_rank_that_dies_without_a_launcher_that_notices_is_an_exit_status(tinyhub, tmp_path):
    """Two ranks of the harness's own command, started by hand; rank 0 ended with 0 and no file."""
    pytest.importorskip("decord", reason="lmms-eval's llava_hf needs decord")
    done = run_in_fork(
        "lmms_eval", "--tasks", GROUP, *MODEL, "--output_path", str(tmp_path), cwd=tinyhub, processes=2,
        kill_last_after="Running generate_until",
        **{**os.environ, "LMMS_EVAL_EMI_ESTIMATOR": str(tinyhub / "tiny.safetensors")},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-3000:]
    assert "scores of 7 task(s) are missing" in done.stderr
    assert not list(tmp_path.rglob("*_emi_natural.json"))


def test_without_an_output_path_the_files_are_kept_in_the_cache(
    fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path
):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path))
    hooks, (docs,) = load_split(ID)
    assert isinstance(hooks.emi([value["emi"] for value in answer_all(hooks, docs)], None), float)
    assert only(tmp_path / "runs", "*_emi_natural.json") and only(tmp_path / "runs", f"{ID}.jsonl")


def test_part_of_the_rows_is_enough(fresh_run, load_split, in_tinyhub, tmp_path):
    hooks, (docs,) = load_split(ID)
    values = [hooks.process_results(docs[row], [f"a response {row}"]) for row in (3, 1, 2)]
    args = run_arguments(tmp_path, model_args="pretrained=a/b")
    assert isinstance(hooks.emi([value["emi"] for value in values], args), float)
    written = strict_json(only(tmp_path, "*_emi_natural.json"))
    assert written["splits"][ID]["n"] == 3 and written["notes"][ID][0].startswith("3 of its 5 rows have a response")
    assert [json.loads(line)["question_id"] for line in only(tmp_path, f"{ID}.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("question", "suffix", "asked"),
    [
        ("Was ist das?", " Please answer in English.", "Was ist das? Please answer in English."),
        (
            "Was ist das? Please answer in English.",
            " Please answer in English.",
            "Was ist das? Please answer in English.",
        ),
        ("What is it?", "", "What is it?"),
    ],
)
def test_the_suffix_is_added_once(question, suffix, asked):
    doc_to_text = study_hooks("natural").doc_to_text
    assert doc_to_text({"question": question, "emi_split": GERMAN}, {"pre_prompt": "", "post_prompt": suffix}) == asked


def test_a_mistyped_setting_stops_every_rank(monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_EMI_ESTIMATR", "x")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunStopped, match="Did you mean LMMS_EVAL_EMI_ESTIMATOR"):
        run_module_.check_environment()


def test_what_is_missing_stops_a_run_when_its_tasks_load(monkeypatch, in_tinyhub, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RunStopped, match="LMMS_EVAL_EMI_CACHE=/path/to/folder"):
        run_module_.check_environment()


def test_a_response_that_no_file_can_hold_does_not_cost_the_others(fresh_run, load_split, in_tinyhub, tmp_path):
    hooks, (docs,) = load_split(ID)
    values = [hooks.process_results(doc, ["half a \ud83d" if row == 2 else "red"]) for row, doc in enumerate(docs)]
    assert isinstance(hooks.emi([value["emi"] for value in values], run_arguments(tmp_path)), float)
    assert len(only(tmp_path, f"{ID}.jsonl").read_text().splitlines()) == ROWS


def test_an_output_path_that_cannot_be_written(fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    hooks, (docs,) = load_split(ID)
    args = run_arguments(tmp_path / "file" / "out")
    assert isinstance(hooks.emi([value["emi"] for value in answer_all(hooks, docs)], args), float)
    assert only(tmp_path / "cache", f"{ID}.jsonl")


def test_a_run_that_failed_before_it_began_leaves_nothing_behind(fresh_run, load_split):
    load_split(ID, GERMAN)
    load_split(GERMAN)
    assert not find_run(GERMAN_TASK).has_split("natural", ID)


def test_our_files_carry_the_stamp_of_the_harness(run):
    stamp = only(run.folder, "*_results.json").name.removesuffix("_results.json")
    assert only(run.folder, "*_emi_natural.json").name == f"{stamp}_emi_natural.json"
    assert only(run.folder, "*_emi_responses").name == f"{stamp}_emi_responses"


def test_an_estimator_of_text_alone_passes_the_check_and_is_refused_to_images(
    fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path
):
    from lmms_eval_emi import preflight
    from lmms_eval_emi.estimators import CLUB

    estimator = CLUB(32, 32, 4)
    estimator.card = {"encoders": {"vision": "text-only"}}
    estimator.save(tmp_path / "text.safetensors")
    monkeypatch.setenv("LMMS_EVAL_EMI_ESTIMATOR", str(tmp_path / "text.safetensors"))
    preflight()
    hooks, (docs,) = load_split(ID)
    items = [value["emi"] for value in answer_all(hooks, docs)]
    assert hooks.emi(items, run_arguments(tmp_path)) == task_index.NO_SCORE
    assert only(tmp_path, f"{ID}.jsonl")
