"""Our tasks in lm-evaluation-harness: by its own command line, by its Python API, and on two ranks."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import GERMAN, ID, only, strict_json

from lmms_eval_emi import score
from lmms_eval_emi.cli import main
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.harness.common import groups
from lmms_eval_emi.harness.lm_eval.write_tasks import task_files, write_task_folder
from lmms_eval_emi.settings import load_settings

lm_eval = pytest.importorskip("lm_eval")
GROUP = "llavabench_shift_natural_text"
STUDY = load_study("natural")


def test_there_is_a_task_for_each_split_and_a_group_for_each_modality():
    files = task_files([load_study("natural"), load_study("synthetic")])
    tasks = [name for name, text in files.items() if "SplitTask" in text]
    assert len(tasks) == 63 and "llavabench_shift.yaml" in files
    assert {f"{name}.yaml" for name in groups([STUDY], None)} <= set(files)


def test_the_folder_is_printed_and_another_study_has_its_own(tmp_path, capsys):
    assert main(["tasks", "path", "--harness", "lm-eval", "--cache", str(tmp_path)]) == 0
    assert len(list(Path(capsys.readouterr().out.strip()).glob("*.yaml"))) == 63 + 9
    assert main(["tasks", "path", "--study", "demo"]) == 1
    assert "--harness lm-eval" in capsys.readouterr().err
    assert main(["tasks", "path"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "llavabench_shift").is_dir()


def test_an_lm_eval_that_reads_entry_points_finds_the_tasks(tmp_path, monkeypatch):
    """As lm-evaluation-harness would do with its pull request 4015: built-in tasks, then those of installed packages."""
    from importlib.metadata import EntryPoint

    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path))
    options = ConfigParser()
    options.read(Path(__file__).parents[3] / "setup.cfg")
    name, value = options["options.entry_points"]["lm_eval.tasks"].strip().split(" = ")
    folder = EntryPoint(name, value, "lm_eval.tasks").load()()
    tasks = TaskManager(include_path=str(folder), include_defaults=False).all_tasks
    assert {STUDY.task_name(ID), "llavabench_shift", GROUP} <= set(tasks)


@pytest.fixture
def evaluate(in_tinyhub, tmp_path, monkeypatch):
    """Evaluate tasks with a model that answers by the number of the request."""
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))

    class Model(LM):
        MULTIMODAL = True
        loglikelihood = loglikelihood_rolling = None

        def __init__(self):
            super().__init__()
            self.prompts, self.images = [], []

        def generate_until(self, requests, disable_tqdm=False):
            for request in requests:
                self.prompts.append(request.args[0])
                self.images += request.args[2]["visual"]
            return [f"a {'red blue green grey'.split()[number % 4]} thing" for number, _ in enumerate(requests)]

    def run(tasks, output=None, **options):
        folder = write_task_folder(load_settings())
        tracker = EvaluationTracker(output_path=str(output)) if output else None
        found = lm_eval.simple_evaluate(
            model=Model(),
            tasks=tasks,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            evaluation_tracker=tracker,
            log_samples=bool(options.pop("log_samples", False)),
            bootstrap_iters=0,
            **options,
        )
        if tracker:
            tracker.general_config_tracker.model_name_sanitized = "model"
            tracker.save_results_aggregated(found, None)
        return found

    return run


def of_task(found, name):
    return {key.removesuffix(",none"): value for key, value in found["results"][STUDY.task_name(name)].items()}


def test_scores_are_those_of_the_same_responses(evaluate, tmp_path):
    found = evaluate([GROUP], tmp_path / "out")
    responses = only(tmp_path / "out" / "model", "*_emi_responses")
    (again,) = score("natural", responses / "natural", allow_missing=True)
    for name in (ID, *STUDY.shifts("text")):
        shown, split = of_task(found, name), again.splits[name]
        assert shown["emi"] == pytest.approx(split.emi, abs=1e-9)
        assert name == ID or shown["emid"] == pytest.approx(split.emid, abs=1e-9)
        assert name == ID or shown["emid_bound"] == pytest.approx(split.emid_bound, abs=1e-9)
    group = found["results"][GROUP]
    assert group["emid,none"] == pytest.approx(again.summary.by_modality["text"].mean_emid, abs=1e-9)
    written = strict_json(only(tmp_path / "out" / "model", "*_emi_natural.json"))
    assert written["splits"][GERMAN]["emid"] == pytest.approx(again.splits[GERMAN].emid, abs=1e-9)
    assert only(tmp_path / "out" / "model", "*_emi_report_natural.html").is_file()
    details = found["configs"][STUDY.task_name(GERMAN)]["emi"]
    assert details["emid"] == written["splits"][GERMAN]["emid"]


def test_without_its_id_split_a_task_has_emi_alone_and_a_limit_is_kept(evaluate):
    found = of_task(evaluate([STUDY.task_name(GERMAN)], limit=3), GERMAN)
    assert "emid" not in found and math.isfinite(found["emi"])
    both = evaluate([STUDY.task_name(ID), STUDY.task_name(GERMAN)], limit=3)
    assert of_task(both, GERMAN)["emid"] == pytest.approx(of_task(both, ID)["emi"] - of_task(both, GERMAN)["emi"])


def test_chosen_rows_are_the_rows_that_were_asked(evaluate, tmp_path):
    name = STUDY.task_name(GERMAN)
    evaluate([name], tmp_path / "out", samples={name: [3, 1]})
    lines = only(tmp_path / "out" / "model", "*_emi_responses") / "natural" / f"{GERMAN}.jsonl"
    ids = [json.loads(line)["question_id"] for line in lines.read_text().splitlines()]
    from lmms_eval_emi.shifts.at_load import load_splits

    rows = load_splits(STUDY, [GERMAN])[GERMAN]
    column = STUDY.split(GERMAN).dataset.columns.id
    assert ids == [rows[row][column] for row in (1, 3)]


def test_a_failure_of_scoring_costs_neither_the_run_nor_its_responses(evaluate, monkeypatch, tmp_path):
    monkeypatch.setenv("LMMS_EVAL_EMI_ESTIMATOR", "gone.safetensors")
    found = evaluate([GROUP])
    assert of_task(found, GERMAN)["emi"] == "N/A"
    assert len(list((tmp_path / "cache" / "runs" / "lm_eval").glob("*/natural/*.jsonl"))) == 7
    from lm_eval.utils import make_table

    assert GROUP in make_table(found)


def test_two_evaluations_in_one_process_share_nothing(evaluate):
    first = of_task(evaluate([GROUP]), GERMAN)
    assert of_task(evaluate([GROUP]), GERMAN) == first


def test_predictions_alone_need_no_score(evaluate, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_EMI_ESTIMATOR", "gone.safetensors")
    found = evaluate([STUDY.task_name(GERMAN)], predict_only=True, log_samples=True)
    assert "emi" not in of_task(found, GERMAN) and len(found["samples"][STUDY.task_name(GERMAN)]) == 5


def test_a_value_from_another_rank_registers_its_response():
    from lmms_eval_emi.harness.lm_eval.run import Item, OwnTask, enrol

    run = enrol("a task", "m", OwnTask(STUDY, GERMAN, None))
    assert pickle.loads(pickle.dumps(Item.of("a task", 4, "emi", {"row": 4, "response": "yes"}))) == {
        "row": 4,
        "response": "yes",
    }
    assert run.tasks["a task"].responses == {4: "yes"}


def test_the_prompt_has_the_line_break_that_a_template_lacks(in_tinyhub):
    import yaml

    from lmms_eval_emi.harness.lm_eval.task import SplitTask

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: None)
    text = task_files([STUDY])[f"{STUDY.task_name(ID)}.yaml"]
    task = SplitTask(config=yaml.load(text, Loader=Loader))
    document = task.test_docs()[0]
    question = document[STUDY.split(ID).dataset.columns.question]
    assert task.doc_to_text(document) == f"<image>\n{question}"
    task._chat = True
    assert task.doc_to_text(document) == f"<image>{question}"
    task.split = GERMAN
    assert task.doc_to_text(document).endswith(" Please answer in English.")
    task.split = ID
    (image,) = task.doc_to_image(document)
    assert image.mode == "RGB" and task.doc_to_image(document)[0] is image


def test_its_own_command_line_with_a_real_model(tinyhub, tmp_path):
    environment = {
        **os.environ,
        "LMMS_EVAL_EMI_ESTIMATOR": str(tinyhub / "tiny.safetensors"),
        "LMMS_EVAL_EMI_CACHE": str(tmp_path / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    asked = [sys.executable, "-m", "lmms_eval_emi", "tasks", "path", "--harness", "lm-eval"]
    folder = subprocess.run(asked, cwd=tinyhub, env=environment, capture_output=True, text=True, check=True).stdout
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf-multimodal", "--device", "cpu", "--batch_size", "2"),
        *("--model_args", "pretrained=tiny-llava,dtype=float32", "--gen_kwargs", "max_gen_toks=4"),
        *("--include_path", folder.strip(), "--apply_chat_template", "--limit", "2"),
        *("--tasks", f"{STUDY.task_name(ID)},{STUDY.task_name(GERMAN)}", "--output_path", str(tmp_path / "out")),
    ]
    done = subprocess.run(command, cwd=tinyhub, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = strict_json(only(tmp_path / "out" / "tiny-llava", "results_*.json"))["results"]
    shown = results[STUDY.task_name(GERMAN)]
    written = strict_json(only(tmp_path / "out" / "tiny-llava", "*_emi_natural.json"))
    assert shown["emid,none"] == written["splits"][GERMAN]["emid"]
    assert "signature  emi-study|study:natural" in done.stdout
