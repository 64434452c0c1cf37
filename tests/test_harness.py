"""Our tasks in lmms-eval: run by its own command line with its own LLaVA class, on one rank and on two."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import numbers, run_module

from lmms_eval_emi.cli import main
from lmms_eval_emi.harness import hooks as hooks_module
from lmms_eval_emi.harness import run_state as run_state_module
from lmms_eval_emi.harness.hooks import mean_over_shifts, study_hooks
from lmms_eval_emi.harness.run_state import RUN, Answer, PreflightError, split_of
from lmms_eval_emi.studies.catalogue import load_study

ROWS = 5
ID, GERMAN = "llava_bench_coco_English", "llava_bench_coco_German"
GROUP = "llavabench_shift_natural_text"
MODEL = (
    "--model",
    "llava_hf",
    "--model_args",
    "pretrained=tiny-llava,device_map=cpu",
    "--device",
    "cpu",
    "--gen_kwargs",
    "max_new_tokens=6",
)


def lmms_eval(hub: Path, tasks: str, *arguments: str, processes: int = 1, **environment: str):
    pytest.importorskip("decord", reason="lmms-eval's llava_hf needs decord")
    variables = {"LMMS_EVAL_EMI_ESTIMATOR": str(hub / "tiny.safetensors"), **environment}
    return run_module("lmms_eval", "--tasks", tasks, *MODEL, *arguments, cwd=hub, processes=processes, **variables)


def strict_json(path: Path) -> dict:
    return json.loads(
        path.read_text(), parse_constant=lambda constant: pytest.fail(f"{path} has {constant}, which is no JSON")
    )


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


@pytest.fixture(scope="module")
def run(tinyhub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = lmms_eval(tinyhub, f"mme,{GROUP}", "--output_path", str(folder), "--log_samples")
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(
        folder=folder,
        out=done.stdout,
        results=strict_json(only(folder, "*_results.json")),
        figures=strict_json(only(folder, "*_emi_natural.json")),
    )


def task_figures(results: dict, task: str) -> dict[str, float]:
    return {
        key.removesuffix(",none"): value
        for key, value in results["results"][task].items()
        if key.endswith(",none") and "_stderr" not in key
    }


def test_every_row_shows_its_figures_and_no_more(run):
    study = load_study("natural")
    assert set(task_figures(run.results, study.task_name(ID))) == {"emi"}
    for name in study.shifts("text"):
        shown = task_figures(run.results, study.task_name(name))
        assert shown == {key: run.figures["splits"][name][key] for key in ("emi", "emid", "emid_bound")}
        assert all(type(value) is float for value in shown.values())


def test_the_groups_row_is_the_mean_over_its_shifts(run):
    shown = task_figures(run.results, GROUP)
    summary = run.figures["summary"]
    assert shown == pytest.approx(
        {"emi": summary["mean_emi"], "emid": summary["mean_emid"], "emid_bound": summary["mean_bound"]}
    )
    assert summary["n_shifts"] == 6


def test_the_correlation_stands_under_the_table(run):
    below = run.out.split("|Groups", 1)[-1].split("Groups", 1)[-1]
    assert (
        "Pearson r" in below
        and f"{run.figures['summary']['pearson_r']:.4g}" in below
        and run.figures["signature"] in below
    )


def test_the_saved_answers_give_the_same_figures(run, in_tinyhub, tmp_path):
    answers = only(run.folder, "*_emi_answers") / "natural"
    output = tmp_path / "again.json"
    assert (
        main(["score", "--shift", "natural", "--responses", str(answers), "--output", str(output), "--allow-missing"])
        == 0
    )
    again = strict_json(output)["splits"]
    assert list(again) == list(run.figures["splits"])
    for name, figures in run.figures["splits"].items():
        assert numbers(again[name]) == pytest.approx(numbers(figures), abs=1e-9)


def test_two_ranks_give_the_figures_of_one(run, tinyhub, tmp_path):
    done = lmms_eval(tinyhub, f"mme,{GROUP}", "--output_path", str(tmp_path), "--log_samples", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (only(folder, "*_emi_answers") / "natural" for folder in (run.folder, tmp_path))
    for path in one.iterdir():
        assert (two / path.name).read_text() == path.read_text()
    figures = strict_json(only(tmp_path, "*_emi_natural.json"))
    for name, expected in run.figures["splits"].items():
        assert numbers(figures["splits"][name]) == pytest.approx(numbers(expected), abs=1e-9)


def test_what_is_logged_of_a_sample_is_small(run):
    sample = json.loads(
        only(run.folder, "*_samples_llavabench_shift_natural_coco_german.jsonl").read_text().splitlines()[3]
    )
    assert sample["emi"] == {"row": f"natural:{GERMAN}:3", "answer": sample["filtered_resps"]}
    assert sample["emid"] == sample["emid_bound"] == f"natural:{GERMAN}:3"
    assert sample["input"].endswith("? Please answer in English.")


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
    assert set(task_figures(strict_json(only(tmp_path, "*_results.json")), "llavabench_shift_natural_coco_german")) == {
        "emi"
    }
    assert done.stdout.count("llavabench_shift_natural_coco_english,...") == 1


def test_if_scoring_fails_answers_and_other_figures_are_safe(run, tinyhub, tmp_path):
    """The estimator disappears between the check and the scores."""
    done = lmms_eval(
        tinyhub,
        f"mme,{GROUP}",
        "--output_path",
        str(tmp_path),
        LMMS_EVAL_EMI_ESTIMATOR="gone.safetensors",
        LMMS_EVAL_EMI_PREFLIGHT="0",
    )
    assert done.returncode == 0
    results = strict_json(only(tmp_path, "*_results.json"))
    assert results["results"]["mme"] == run.results["results"]["mme"]
    assert set(task_figures(results, "llavabench_shift_natural_coco_german").values()) == {"N/A"}
    answers = only(tmp_path, "*_emi_answers")
    assert len(list((answers / "natural").glob("*.jsonl"))) == 7
    assert (
        "EMI could not be computed" in done.stdout
        and str(answers) in done.stdout
        and "lmms-eval-emi score --study natural" in done.stdout
    )


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


# In this process: the state of a run and the hooks.


@pytest.fixture
def fresh_run(monkeypatch):
    RUN._reset()
    monkeypatch.setattr(run_state_module, "preflight", lambda: None)
    monkeypatch.setattr(run_state_module, "_FOOTERS", [])
    yield RUN
    RUN._reset()


@pytest.fixture
def load_split(tinyhub):
    from datasets import load_dataset

    splits = load_dataset(str(tinyhub / "changdae/llavabench-shift-natural-v1"))

    def load(*names):
        hooks = study_hooks("natural")
        return hooks, [hooks.process_docs(splits[name]) for name in names]

    return load


def answer_all(hooks, docs, text="an answer"):
    return [hooks.process_results(doc, [f"{text} {row}"]) for row, doc in enumerate(docs)]


def test_aggregation_in_any_order_of_the_tasks(fresh_run, load_split, in_tinyhub, tmp_path):
    figures = []
    for order in ((ID, GERMAN), (GERMAN, ID)):
        hooks, splits = load_split(*order)
        values = {name: answer_all(hooks, docs) for name, docs in zip(order, splits, strict=True)}
        args = SimpleNamespace(model="m", model_args="", output_path=str(tmp_path), timezone="UTC")
        figures.append(
            [
                hooks.emid([value["emid"] for value in values[GERMAN]], args),
                hooks.emi([value["emi"] for value in values[ID]], args),
            ]
        )
        assert "emid" not in values[ID][0]
    assert figures[0] == figures[1] and all(type(figure) is float for figure in figures[0])


def test_a_second_run_in_the_process_forgets_the_first(fresh_run, load_split):
    hooks, (id_docs, german_docs) = load_split(ID, GERMAN)
    answer_all(hooks, id_docs), answer_all(hooks, german_docs)
    hooks, (german_docs,) = load_split(GERMAN)
    assert not RUN.has_split("natural", ID) and RUN.answers == {("natural", GERMAN): {}}
    assert set(answer_all(hooks, german_docs, "other")[0]) == {"emi"}
    assert RUN.answers["natural", GERMAN][0] == "other 0"


def test_unpickling_an_answer_makes_it_known(fresh_run, load_split):
    """How rank 0 learns of the answers of the other ranks before the first aggregation."""
    hooks, (docs,) = load_split(ID)
    gathered = pickle.dumps([value["emi"] for value in answer_all(hooks, docs)])
    RUN.answers.clear()
    answers = pickle.loads(gathered)
    assert RUN.answers == {("natural", ID): {row: f"an answer {row}" for row in range(ROWS)}}
    assert isinstance(answers[0], Answer) and split_of(answers) == ("natural", ID)
    assert len(gathered) < 200 * ROWS


def test_the_first_of_repeated_answers_counts(fresh_run, load_split):
    hooks, (docs,) = load_split(ID)
    hooks.process_results(docs[0], ["first", "second"])
    hooks.process_results(docs[0], ["second"])
    assert RUN.answers["natural", ID] == {0: "first"}
    hooks.process_results(docs[1], [])
    hooks.process_results(docs[2], [None])
    assert RUN.answers["natural", ID] == {0: "first", 1: "", 2: ""}


def test_an_aggregation_never_raises(fresh_run, load_split, monkeypatch, tmp_path):
    hooks, (docs,) = load_split(ID)
    items = [value["emi"] for value in answer_all(hooks, docs)]
    monkeypatch.setattr(run_state_module, "_score", lambda *_: 1 / 0)
    assert hooks.emi(items, None) == hooks_module.NO_FIGURE
    assert mean_over_shifts([hooks_module.NO_FIGURE], [5], False) == hooks_module.NO_FIGURE
    json.dumps(hooks_module.NO_FIGURE, allow_nan=False)


def test_without_an_output_path_the_files_are_kept_in_the_cache(
    fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path
):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path))
    hooks, (docs,) = load_split(ID)
    assert isinstance(hooks.emi([value["emi"] for value in answer_all(hooks, docs)], None), float)
    assert only(tmp_path / "runs", "*_emi_natural.json") and only(tmp_path / "runs", f"{ID}.jsonl")


def test_part_of_the_rows_is_enough(fresh_run, load_split, in_tinyhub, tmp_path):
    hooks, (docs,) = load_split(ID)
    values = answer_all(hooks, docs)[1:4]
    RUN.answers["natural", ID] = {row: RUN.answers["natural", ID][row] for row in (3, 1, 2)}
    args = SimpleNamespace(model="m", model_args="pretrained=a/b", output_path=str(tmp_path), timezone="UTC")
    assert isinstance(hooks.emi([value["emi"] for value in values], args), float)
    assert strict_json(only(tmp_path, "*_emi_natural.json"))["splits"][ID]["n"] == 3
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
    with pytest.raises(PreflightError, match="Did you mean LMMS_EVAL_EMI_ESTIMATOR"):
        run_state_module.preflight()


def test_a_cache_that_is_not_writable(monkeypatch, in_tinyhub, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(PreflightError, match="LMMS_EVAL_EMI_CACHE=/path/to/folder"):
        run_state_module.preflight()


def test_an_estimator_of_another_dimension_is_found_before_the_run(monkeypatch, in_tinyhub, tmp_path):
    from lmms_eval_emi.estimators import CLUB

    CLUB(768, 768, 4).save(tmp_path / "big.safetensors")
    monkeypatch.setenv("LMMS_EVAL_EMI_ESTIMATOR", str(tmp_path / "big.safetensors"))
    with pytest.raises(PreflightError, match="takes embeddings of dimension 768, and the vision encoder gives 32"):
        run_state_module.preflight()


def test_a_device_that_is_not_there_is_found_before_the_run(monkeypatch, in_tinyhub):
    monkeypatch.setenv("LMMS_EVAL_EMI_DEVICE", "cuda:99")
    with pytest.raises(PreflightError, match="CUDA devices, got 'cuda:99'"):
        run_state_module.preflight()


def test_an_answer_that_no_file_can_hold_does_not_cost_the_others(fresh_run, load_split, in_tinyhub, tmp_path):
    hooks, (docs,) = load_split(ID)
    values = [hooks.process_results(doc, ["half a \ud83d" if row == 2 else "red"]) for row, doc in enumerate(docs)]
    args = SimpleNamespace(model="m", model_args="", output_path=str(tmp_path), timezone="UTC")
    assert isinstance(hooks.emi([value["emi"] for value in values], args), float)
    assert len(only(tmp_path, f"{ID}.jsonl").read_text().splitlines()) == ROWS


def test_an_output_path_that_cannot_be_written(fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    hooks, (docs,) = load_split(ID)
    args = SimpleNamespace(model="m", model_args="", output_path=str(tmp_path / "file" / "out"), timezone="UTC")
    assert isinstance(hooks.emi([value["emi"] for value in answer_all(hooks, docs)], args), float)
    assert only(tmp_path / "cache", f"{ID}.jsonl")


def test_a_run_that_failed_before_it_began_leaves_nothing_behind(fresh_run, load_split):
    load_split(ID, GERMAN)
    load_split(GERMAN)
    assert not RUN.has_split("natural", ID)


def test_our_files_carry_the_stamp_of_the_harness(run):
    stamp = only(run.folder, "*_results.json").name.removesuffix("_results.json")
    assert only(run.folder, "*_emi_natural.json").name == f"{stamp}_emi_natural.json"


def test_an_estimator_of_text_alone_passes_the_check_and_is_refused_to_images(
    fresh_run, load_split, in_tinyhub, monkeypatch, tmp_path
):
    from lmms_eval_emi.estimators import CLUB

    estimator = CLUB(32, 32, 4)
    estimator.card = {"encoders": {"vision": "text-only"}}
    estimator.save(tmp_path / "text.safetensors")
    monkeypatch.setenv("LMMS_EVAL_EMI_ESTIMATOR", str(tmp_path / "text.safetensors"))
    assert run_state_module._check_models(run_state_module.load_settings()) == []
    hooks, (docs,) = load_split(ID)
    args = SimpleNamespace(model="m", model_args="", output_path=str(tmp_path), timezone="UTC")
    assert hooks.emi([value["emi"] for value in answer_all(hooks, docs)], args) == hooks_module.NO_FIGURE
    assert only(tmp_path, f"{ID}.jsonl")
