"""What a task loses under its shifts, from logs like those of the harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lmms_eval_emi.cli import main
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.slices.robustness.comparison import consistency, measure_all, relative_to
from lmms_eval_emi.slices.robustness.logged import find_pairs, read_tasks
from lmms_eval_emi.slices.robustness.metrics import read_row_metrics

N = 60


def log_task(
    folder: Path,
    task: str,
    metrics: list[dict[str, Any]],
    *,
    responses: list[str] | None = None,
    targets: list[str] | None = None,
    better: dict[str, bool] | None = None,
    results: dict[str, Any] | None = None,
    twin: dict[str, Any] | None = None,
    stamp: str = "20260101_000000",
    **settings: Any,
) -> None:
    """Write what the harness writes of a task; ``metrics`` has a dictionary for each line, whose row is its ``doc_id``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for place, own in enumerate(metrics):
        row = own.get("doc_id", place)
        line = {"doc_id": row, "target": (targets or ["yes"] * len(metrics))[place], "input": f"prompt {row}"}
        line |= {"filtered_resps": (responses or ["a response"] * len(metrics))[place], **own}
        lines.append(json.dumps(line))
    (folder / f"{stamp}_samples_{task}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / f"{stamp}_results.json"
    run = json.loads(path.read_text()) if path.exists() else {"configs": {}, "higher_is_better": {}, "results": {}}
    run["configs"][task] = {"score_key": "score", "metadata": {"version": 0, **({"emi_twin": twin} if twin else {})}}
    run["higher_is_better"][task] = better or {}
    run["results"][task] = {"alias": task, **(results or {})}
    run["config"] = {"limit": None, **settings}
    path.write_text(json.dumps(run))


def zero_one(values: np.ndarray) -> list[dict[str, Any]]:
    return [{"acc": float(value)} for value in values]


@pytest.fixture
def answers() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    clean = random.random(N) < 0.8
    return {"clean": clean, **{f"fog_{level}": clean & (random.random(N) > 0.2 * level) for level in (1, 3)}}


@pytest.fixture
def out(tmp_path: Path, answers) -> Path:
    """A task and three twins, one told by its metadata and two by their names."""
    folder = tmp_path / "out" / "some__model"
    log_task(folder, "quiz", zero_one(answers["clean"]), results={"acc,none": float(answers["clean"].mean())})
    for level in (1, 3):
        log_task(folder, f"quiz_fog_{level}", zero_one(answers[f"fog_{level}"]))
    origin = {"of": "quiz", "textual": {"name": "keyboard", "level": 2}, "seed": 0}
    log_task(folder, "quiz_typos", zero_one(answers["clean"]), twin=origin)
    return tmp_path / "out"


def losses(out: Path, **options: Any) -> dict[str, Any]:
    output = out.parent / "robustness.json"
    command = ["robustness", str(out), "--output", str(output), "--overwrite", "--without-consistency"]
    assert (
        main([*command, *(part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value))])
        == 0
    )
    return json.loads(output.read_text())


def test_losses_flips_and_tests_of_a_right_or_wrong_task(out: Path, answers, capsys) -> None:
    (task,) = losses(out)["tasks"]
    (metric,) = task["metrics"]
    assert [one["shift"] for one in metric["shifts"]] == ["fog 1", "fog 3", "keyboard 2"]
    clean = answers["clean"]
    raw = []
    for one, level in zip(metric["shifts"], (1, 3), strict=False):
        shifted = answers[f"fog_{level}"]
        change = clean.astype(float) - shifted
        assert one["loss"] == pytest.approx(change.mean()) and one["mmi"] == pytest.approx(change.sum() / clean.sum())
        assert one["loss_stderr"] == pytest.approx(change.std(ddof=1) / N**0.5)
        assert one["right_to_wrong"] == pytest.approx((clean & ~shifted).mean())
        assert one["wrong_to_right"] == pytest.approx((~clean & shifted).mean()) == 0
        moved = int(np.abs(change).sum())  # all of them from right to wrong: McNemar's mid-p
        raw.append(stats.binomtest(moved, moved).pvalue / (2 if moved >= 10 else 1))
        assert one["p"] == pytest.approx(raw[-1])
    unchanged = metric["shifts"][2]
    assert (unchanged["loss"], unchanged["p"], unchanged["verdict"]) == (0, 1, "undecided")
    assert unchanged["operators"] == {"textual": "keyboard"}
    # Holm's over three shifts.
    assert metric["shifts"][1]["p_adjusted"] == pytest.approx(min(1, 3 * min(raw)))
    assert metric["shifts"][1]["verdict"] == "lost"
    fog = [(clean.astype(float) - answers[f"fog_{level}"]).mean() for level in (1, 3)]
    assert metric["by_operator"]["fog"]["loss"] == pytest.approx(np.mean(fog))
    assert metric["mean"]["loss"] == pytest.approx(np.mean(fog) / 2)  # over fog and keyboard
    assert metric["worst"]["shift"] == "fog 3" and not metric["notes"]
    assert "fog 3" in capsys.readouterr().out


def test_rows_of_one_image_are_one_observation(out: Path, answers, tmp_path: Path) -> None:
    alone = losses(out)["tasks"][0]["metrics"][0]["shifts"][1]
    groups = losses(out, cluster="rows:6")["tasks"][0]["metrics"][0]["shifts"][1]
    assert (alone["images"], groups["images"]) == (N, N // 6) and groups["loss"] == alone["loss"]
    sums = (answers["clean"].astype(float) - answers["fog_3"]).reshape(-1, 6).sum(axis=1)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1)
    found = np.abs(sums @ signs)
    mid_p = (found > sums.sum()).mean() + (found == sums.sum()).mean() / 2
    exact = (found >= sums.sum()).mean()
    assert groups["p"] == pytest.approx(mid_p if (sums != 0).sum() >= 10 else exact)
    file = tmp_path / "clusters.csv"
    file.write_text("doc_id,cluster\n" + "".join(f"{row},{row // 6}\n" for row in range(N)))
    assert losses(out, cluster=str(file))["tasks"][0]["metrics"][0]["shifts"][1]["p"] == groups["p"]


def test_what_twins_log_of_images_counts_for_the_clean_task_too(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    log_task(folder, "quiz", zero_one(np.ones(20)))
    seen = [{"acc": 0.0, "input_media": [f"{row // 2}.emi.png"]} for row in range(20)]
    log_task(folder, "quiz_fog_3", seen)
    log_task(folder, "quiz_keyboard_1", zero_one(np.zeros(20)))
    found = losses(tmp_path)["tasks"][0]["metrics"][0]["shifts"]
    assert [one["images"] for one in found] == [10, 20]
    origin = {"of": "quiz", "visual": {"name": "fog", "level": 3}, "seed": 0}
    log_task(folder, "quiz_fog_3", seen, twin=origin)
    found = losses(tmp_path)["tasks"][0]["metrics"][0]["shifts"]
    assert [one["images"] for one in found] == [10, 10]


def test_the_latest_run_of_each_task_counts(out: Path) -> None:
    log_task(out / "some__model", "quiz_fog_3", zero_one(np.zeros(N)), stamp="20270101_000000")
    found = losses(out)["tasks"][0]["metrics"][0]["shifts"][1]
    assert found["shift"] == "fog 3" and found["shifted"] == 0


def test_the_latest_run_counts_by_its_stamp_and_not_by_its_folder(tmp_path: Path, caplog) -> None:
    good, bad = zero_one(np.ones(20)), zero_one(np.zeros(20))
    log_task(tmp_path / "b" / "m", "quiz", good, stamp="20250101_000000")
    log_task(tmp_path / "b" / "m", "quiz_fog_1", good, stamp="20250101_000000")
    log_task(tmp_path / "a" / "m", "quiz_fog_1", bad, stamp="20260101_000000")
    found = read_tasks(tmp_path)["m"]
    assert set(found["quiz_fog_1"].metrics[0].parts.values()) == {(0.0, 1.0)}
    assert "its tasks are in" in caplog.text


def test_a_task_that_does_not_say_what_is_better_loses_where_it_falls(tmp_path: Path) -> None:
    """lmms-eval logs null for it."""
    for task, own in (("quiz", np.ones(20)), ("quiz_fog_1", np.zeros(20))):
        log_task(tmp_path / "m", task, zero_one(own), better={"acc": None})
    (metric,) = measure_all(find_pairs(read_tasks(tmp_path)["m"])["quiz"])
    assert metric.shifts[0].verdict == "lost" and metric.shifts[0].loss == 1
    assert any("does not say" in note for note in metric.notes)


def test_rows_that_stand_there_twice_are_no_second_metric(tmp_path: Path, caplog) -> None:
    rows = [{"acc": 1.0, "doc_id": row} for row in (*range(20), 3)]
    log_task(tmp_path / "m", "quiz", rows, better={"acc": True})
    log_task(tmp_path / "m", "quiz_fog_1", rows[:20], better={"acc": True})
    assert [one.name for one in read_tasks(tmp_path)["m"]["quiz"].metrics] == ["acc"]
    assert "more than once" in caplog.text


def test_a_twin_that_cannot_be_compared_costs_itself_alone(tmp_path: Path, caplog) -> None:
    folder, twin = tmp_path / "m", {"of": "other", "visual": {"name": "fog", "level": 1}}
    log_task(folder, "quiz", zero_one(np.ones(20)))
    log_task(folder, "quiz_fog_1", zero_one(np.zeros(20)))
    log_task(folder, "quiz_fog_3", [{"acc": 1.0, "doc_id": 100}])
    log_task(folder, "other_fog_1", zero_one(np.ones(20)), twin=twin)
    found = find_pairs(read_tasks(tmp_path)["m"])
    assert [pair.shifted.name for pair in found["quiz"]] == ["quiz_fog_1"] and list(found) == ["quiz"]
    assert "quiz_fog_3 is left out" in caplog.text and "other_fog_1 is left out" in caplog.text


def test_scores_that_are_not_defined_are_no_finding(tmp_path: Path, capsys) -> None:
    """A judge that gave every reference 0: the ratio is not defined; a score of 1e308 has no square."""
    judged = [{"judge": {"scores": [0, 5]}, "acc": 1.0} for _ in range(20)]
    large = [{"judge": {"scores": [5, 5]}, "acc": "1e308" if row else 1.0} for row in range(20)]
    for task, own in (("quiz", judged), ("quiz_fog_1", judged), ("quiz_fog_3", large)):
        log_task(tmp_path / "m", task, own)
    output = tmp_path / "r.json"
    assert main(["robustness", str(tmp_path), "--without-consistency", "--output", str(output)]) == 0
    assert "nan" not in capsys.readouterr().out and json.loads(output.read_text())["tasks"]


def test_every_pair_has_its_own_consistency(tmp_path: Path, in_tinyhub: Path) -> None:
    folder = tmp_path / "m"
    for task, response in (("a", "a red square"), ("b", "something else"), ("c", "a red square")):
        log_task(folder, task, zero_one(np.ones(20)), responses=[response] * 20)
    output = tmp_path / "r.json"
    assert main(["robustness", str(tmp_path), "--pair", "a=c", "--pair", "b=c", "--output", str(output)]) == 0
    found = {one["task"]: one["consistency"]["c"]["identical"] for one in json.loads(output.read_text())["tasks"]}
    assert found == {"a": 1.0, "b": 0.0}


def test_every_filter_is_a_metric_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    names = {"exact_match,strict": 0.0, "exact_match,flexible": 1.0}
    for task in ("quiz", "quiz_fog_3"):
        lines = [{"doc_id": row, "exact_match": value} for value in (0.0, 1.0) for row in range(10)]
        log_task(folder, task, lines, better={"exact_match": True}, results=names)
    metrics = losses(tmp_path)["tasks"][0]["metrics"]
    assert {one["metric"]: one["shifts"][0]["clean"] for one in metrics} == names


def test_less_is_better_where_the_task_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    log_task(folder, "quiz", [{"wer": 0.2}] * 10, better={"wer": False})
    log_task(folder, "quiz_fog_3", [{"wer": 0.5}] * 10, better={"wer": False})
    (one,) = losses(tmp_path)["tasks"][0]["metrics"][0]["shifts"]
    assert one["loss"] == pytest.approx(0.3) and one["mmi"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 0, 1, 1], 0.75),
        ([True, False], 0.5),
        (["True", "False", "True"], 2 / 3),
        (["0.5", "1.0"], 0.75),
        ([{"question_id": "a", "score": 1.0}, {"question_id": "b", "score": 0}], 0.5),
        ([{"is_correct": True}, {"is_correct": "False"}], 0.5),
        ([{"true_false": True}, {"true_false": False}], 0.5),
        ([{"pred": "a", "answer": "A", "question_id": 1}, {"pred": "B", "answer": "C", "question_id": 2}], 0.5),
        ([{"pred_answer": "a", "gt_answer": "A"}, {"pred_answer": "b", "gt_answer": "A"}], 0.5),
        ([{"question_type": "multiple-choice", "parsed_pred": ["A"], "answer": "A"}] * 2, 1.0),
        ([{"scores": [8, 4]}, {"scores": [-1, -1]}, {"scores": [4, 5]}, {"scores": [-999, -999]}], 75.0),
    ],
)
def test_values_of_rows_as_tasks_log_them(values: list[Any], expected: float) -> None:
    (metric,) = read_row_metrics({row: {"m": value} for row, value in enumerate(values)})
    assert metric.value() == pytest.approx(expected)


@pytest.mark.parametrize(
    "value",
    [
        {"answer": ["a man"], "pred": "a man", "image_id": 1},  # CIDEr and its like, which need all rows
        {"id": 1, "score": 1},  # of naturalbench, the answer as a number
        "a text",
        None,
        {"scores": [-1, -1]},
    ],
)
def test_what_is_no_score_of_a_row_is_none(value: Any) -> None:
    name = "naturalbench_G_ACC" if isinstance(value, dict) and value.get("id") else "m"
    assert read_row_metrics({row: {name: value} for row in range(4)}) == []


def test_one_dictionary_under_many_names_is_one_metric() -> None:
    rows = {row: {name: {"score": row % 2} for name in ("accuracy", "precision", "recall")} for row in range(4)}
    assert [one.name for one in read_row_metrics(rows)] == ["accuracy"]


def test_pope_has_f1_and_the_rate_of_yes_of_what_was_predicted() -> None:
    """F1 and accuracy as the harness's task has them; its own rate of yes counts what is right."""
    utils = pytest.importorskip("lmms_eval.tasks.pope.utils")
    random = np.random.default_rng(0)
    words = ["yes", "no", "maybe"]
    predicted, right = random.choice(words, 200, p=[0.6, 0.3, 0.1]), random.choice(words[:2], 200)
    logged = [
        {"question_id": row, "score": float(a == b), "prediction": str(a), "ground_truth": str(b)}
        for row, (a, b) in enumerate(zip(predicted, right, strict=True))
    ]
    rows = {row: {"pope_accuracy": one, "pope_f1_score": one, "pope_yes_ratio": one} for row, one in enumerate(logged)}
    found = {one.name: one for one in read_row_metrics(rows)}
    assert set(found) == {"pope_accuracy", "f1", "yes_rate"}
    assert found["pope_accuracy"].value() == pytest.approx(utils.pope_aggregate_accuracy(logged))
    known = [one for one in logged if one["prediction"] != "maybe"]
    own = read_row_metrics({row: {"pope_accuracy": one} for row, one in enumerate(known)})
    assert {one.name: one.value() for one in own}["f1"] == pytest.approx(utils.pope_aggregate_f1_score(known))
    assert found["f1"].value() == pytest.approx(utils.pope_aggregate_f1_score(logged))
    assert found["yes_rate"].value() == pytest.approx((predicted == "yes").mean())
    assert found["f1"].note == f"{(predicted == 'maybe').sum()} responses are neither yes nor no"


def test_a_mean_that_is_not_what_the_task_reports_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for task, score in (("mme", 1500.0), ("mme_fog_3", 1200.0)):
        log_task(folder, task, zero_one(np.ones(10)), better={"acc": True}, results={"acc,none": score})
    task = losses(tmp_path)["tasks"][0]
    assert "the task reports 1500" in task["metrics"][0]["notes"][0]
    (reported,) = task["reported"]
    assert reported["loss"] == 300 and reported["mmi"] == pytest.approx(0.2)


def test_two_tasks_of_the_same_rows_and_of_others(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "model"
    random = np.random.default_rng(1)
    log_task(folder, "photos", zero_one(random.random(40) < 0.9), targets=[str(row) for row in range(40)])
    log_task(folder, "sketches", zero_one(random.random(30) < 0.3), targets=["x"] * 30)
    log_task(folder, "photos_again", zero_one(random.random(40) < 0.9), targets=[str(row) for row in range(40)])
    assert main(["robustness", str(tmp_path), "--without-consistency"]) == 1
    assert "no task has a shifted twin" in capsys.readouterr().err
    assert main(["robustness", str(tmp_path), "--without-consistency", "--pair", "photos=sketches"]) == 1
    assert "--other-rows photos=sketches" in capsys.readouterr().err
    (one,) = losses(tmp_path, other_rows="photos=sketches")["tasks"][0]["metrics"][0]["shifts"]
    assert (one["design"], one["rows"], one["images"], one["right_to_wrong"]) == ("unpaired", 30, 30, None)
    assert one["loss"] > 0.3 and one["p"] < 0.001
    (same,) = losses(tmp_path, pair="photos=photos_again")["tasks"][0]["metrics"][0]["shifts"]
    assert same["design"] == "paired" and same["rows"] == 40


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pair", "quiz"], "CLEAN=SHIFTED"),
        (["--pair", "quiz=nothing"], "logged are"),
        (["--task", "nothing"], "no shifted twin"),
        (["--only-model", "nothing"], "some__model"),
        (["--baseline", "nothing"], "some__model"),
        (["--cluster", "nothing"], "rows:N"),
    ],
)
def test_wrong_options_say_what_there_is(out: Path, capsys, more: list[str], message: str) -> None:
    assert main(["robustness", str(out), "--without-consistency", *more]) == 1
    assert message in capsys.readouterr().err


def test_clusters_of_a_spreadsheet_are_read(out: Path, tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    table.write_text("doc_id,cluster\n" + "".join(f"{row},{row // 3}\n" for row in range(N)), encoding="utf-8-sig")
    assert len(set(read_tasks(out.parent, str(table))["some__model"]["quiz"].clusters.values())) == N // 3
    with pytest.raises(ResultsError, match="rows:N"):
        read_tasks(out.parent, "rows:0")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="not there"):
        read_tasks(tmp_path / "nothing")
    with pytest.raises(ResultsError, match="--log_samples"):
        read_tasks(tmp_path)
    log_task(tmp_path / "model", "quiz", zero_one(np.ones(3)))
    path = next(tmp_path.rglob("*samples_quiz.jsonl"))
    path.write_text(path.read_text() + '{"doc_id": 3, "tar')
    with pytest.raises(ResultsError, match="line 4"):
        read_tasks(tmp_path)


def test_runs_with_other_settings_are_told(tmp_path: Path, caplog) -> None:
    folder = tmp_path / "model"
    log_task(folder, "quiz", zero_one(np.ones(10)), gen_kwargs="temperature=0")
    log_task(folder, "quiz_fog_3", zero_one(np.ones(10)), gen_kwargs="temperature=1", stamp="20260102_000000")
    losses(tmp_path)
    assert "different gen_kwargs" in caplog.text


def test_losses_beside_those_of_a_baseline(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    values = {}
    for model, share in (("base", 0.4), ("own", 0.2), ("robust", 0.0)):
        clean = np.ones(80)
        values[model] = {level: (random.random(80) > share).astype(float) for level in (1, 3)}
        log_task(tmp_path / model, "quiz", zero_one(clean))
        for level in (1, 3):
            log_task(tmp_path / model, f"quiz_fog_{level}", zero_one(values[model][level]))
    found = {one["model"]: one for one in losses(tmp_path, baseline="base")["tasks"]}
    assert "relative" not in found["base"]
    (metric,) = found["own"]["relative"]["metrics"]
    sums = {model: sum(1 - one.mean() for one in own.values()) for model, own in values.items()}
    assert metric["ratio"] == pytest.approx(sums["own"] / sums["base"])
    difference = (1 - values["own"][3]) - (1 - values["base"][3])
    assert metric["shifts"]["fog 3"]["difference"] == pytest.approx(difference.mean())
    assert metric["shifts"]["fog 3"]["difference_stderr"] == pytest.approx(difference.std(ddof=1) / 80**0.5)
    (metric,) = next(
        one["relative"]["metrics"] for one in losses(tmp_path, baseline="robust")["tasks"] if one["model"] == "own"
    )
    assert metric["ratio"] is None  # the baseline loses nothing


def test_how_many_responses_keep_their_meaning(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    log_task(folder, "quiz", zero_one(np.ones(4)), responses=["a", "b", "c", "d"])
    log_task(folder, "quiz_fog_3", zero_one(np.ones(4)), responses=["a", "B", "x", "y"])
    vectors = {"a": 0, "b": 0, "B": 10, "c": 0, "x": 60, "d": 0, "y": 90}

    def embed(texts):
        angles = {text: np.deg2rad(vectors[text]) for text in texts}
        return {text: np.array([np.cos(angle), np.sin(angle)]) for text, angle in angles.items()}

    ((pair,),) = find_pairs(read_tasks(tmp_path)["model"]).values()
    found = consistency(pair, embed, 0.95)
    assert found.same == 0.5 and found.identical == 0.25
    assert found.cosine == pytest.approx((1 + np.cos(np.deg2rad(10)) + 0.5 + 0) / 4)


def test_consistency_names_its_encoder(out: Path, in_tinyhub: Path, capsys) -> None:
    output = out.parent / "robustness.json"
    assert main(["robustness", str(out), "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["text_encoder"] == "xlm-roberta-base" and found["tasks"][0]["consistency"]["quiz_fog_3"]["same"] == 1
    assert "xlm-roberta-base" in capsys.readouterr().out
    assert main(["robustness", str(out), "--text-encoder", "no/such-encoder"]) == 1
    assert "--without-consistency" in capsys.readouterr().err


def test_metrics_that_one_side_lacks_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    log_task(folder, "quiz", [{"acc": 1.0, "other": 1.0}] * 10)
    log_task(folder, "quiz_fog_3", [{"acc": 0.5}] * 10)
    pairs = find_pairs(read_tasks(tmp_path)["model"])["quiz"]
    assert [one.metric for one in measure_all(pairs)] == ["acc"]
    assert relative_to(measure_all(pairs), []) == []


def test_the_report_shows_what_each_shift_costs(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    document = losses(out)
    (task,) = document["tasks"]
    assert main(["report", str(out.parent / "robustness.json"), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    for metric in task["metrics"]:
        assert f"{task['task']}, {metric['metric']}" in page
        for shift in metric["shifts"]:
            assert shift["shift"] in page and f"{shift['loss']:.3f}" in page
