"""What this package assumes about lmms-eval. A failure here says what moved upstream, and what of ours rests on it."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import run_module

import lmms_eval_emi
from lmms_eval_emi.errors import RunError
from lmms_eval_emi.harness.lmms_eval import hooks, plugin
from lmms_eval_emi.harness.lmms_eval.compat import evaluation, launch, task_index


@pytest.fixture
def manager(monkeypatch):
    """The harness's TaskManager, whose index builder is restored afterwards."""
    import lmms_eval.tasks as tasks_module

    original = tasks_module.TaskManager.initialize_tasks
    monkeypatch.setattr(tasks_module.TaskManager, "initialize_tasks", getattr(original, "__wrapped__", original))
    return tasks_module.TaskManager


def test_the_task_index_is_built_where_we_add_to_it(manager):
    parameters = inspect.signature(manager.initialize_tasks).parameters
    assert {"include_path", "include_defaults"} <= set(parameters), (
        "TaskManager.initialize_tasks has other parameters: task_index.with_our_tasks falls back, and users need --include_path"
    )


def test_an_index_builder_with_more_parameters_gets_what_it_was_called_with(manager):
    seen = []

    def initialize_tasks(self, include_path=None, include_defaults=True, *, profile="plain", **rest):
        seen.append((include_path, include_defaults, profile, rest))
        return {}

    build = task_index.with_our_tasks(initialize_tasks)
    build(object(), "/mine", profile="fast", later=1)
    build(object(), include_defaults=False)
    assert seen == [(["/mine", str(task_index.tasks_folder())], True, "fast", {"later": 1}), (None, False, "plain", {})]


@pytest.mark.parametrize("parameters", ["paths=None", "include_path, /, include_defaults"])
def test_an_index_builder_that_we_do_not_know_is_called_as_it_was(parameters):
    namespace = {}
    exec(f"def build(self, {parameters}):\n    return 'the index'", namespace)
    build = task_index.with_our_tasks(namespace["build"])
    arguments = () if "paths" in parameters else (3, True)  # 3: no path that can be added to
    with pytest.warns(UserWarning, match="--include_path"):
        assert build(object(), *arguments) == "the index"


def test_an_index_that_cannot_be_built_raises_what_the_harness_raises():
    def build(self, include_path=None, include_defaults=True):
        raise KeyError("a broken task file of the user")

    with pytest.raises(KeyError, match="a broken task file"):
        task_index.with_our_tasks(build)(object())


def test_registering_never_raises(monkeypatch):
    monkeypatch.setattr(task_index, "add_tasks_to_index", lambda: 1 / 0)
    with pytest.warns(UserWarning, match="--include_path"):
        assert [one.model_id for one in plugin.register()] == ["llava_hf_bottleneck"]


def test_a_loader_of_entry_points_that_is_transactional_accepts_ours():
    """Upstream pull request 1450 loads each entry point by itself and keeps what failed."""
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry, failures = ModelRegistryV2(), {}
    entries = {"broken": lambda: 1 / 0, "lmms_eval_emi": plugin.register}
    for name, load in entries.items():
        try:
            staged = list(registry._coerce_payload_to_manifests(load))
        except Exception as error:
            failures[name] = error
            continue
        assert [one.model_id for one in staged] == ["llava_hf_bottleneck"]
    assert set(failures) == {"broken"}


def test_a_broken_plugin_beside_ours_is_named(monkeypatch, capsys):
    import importlib.metadata

    from lmms_eval_emi.cli import main

    broken = SimpleNamespace(name="other", load=lambda: 1 / 0)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    assert main(["tasks", "check"]) == 1
    printed = capsys.readouterr().out
    assert "The plugin other of lmms-eval cannot be loaded: ZeroDivisionError" in printed
    assert f"--include_path {task_index.tasks_folder()}" in printed


def test_include_path_shows_the_tasks_without_the_plugin(manager):
    index = manager(include_path=str(task_index.tasks_folder())).task_index
    assert "llavabench_shift_natural_coco_german" in index and "llavabench_shift" in index


@pytest.fixture
def group_config(monkeypatch):
    """GroupConfig with the hook of upstream pull request 1528."""
    import lmms_eval.api.group as module

    @dataclasses.dataclass
    class GroupConfig(module.GroupConfig):
        postprocess_results: object = None

    monkeypatch.setattr(module, "GroupConfig", GroupConfig)
    return GroupConfig


def test_the_group_hook_is_used_where_there_is_one(group_config, monkeypatch):
    assert task_index.add_group_hook(hooks.postprocess_group) and task_index.add_group_hook(hooks.postprocess_group)
    ours = group_config(
        group="g", task=["t"], metadata={"version": 1.0, task_index.OURS: {"studies": ["natural"], "modality": "text"}}
    )
    theirs = group_config(group="g", task=["t"], metadata={"version": 1.0})
    assert theirs.postprocess_results is None
    shifts = {
        name: SimpleNamespace(emi=emi, emid=-emi, emid_bound=1 + emi, verdict=None)
        for name, emi in (("a", 0.1), ("b", 0.2), ("c", 0.6))
    }
    summary = SimpleNamespace(by_modality={})
    scores = SimpleNamespace(shifts=lambda modality: {"text": shifts}[modality], summary=summary)
    monkeypatch.setattr(hooks, "find_run", lambda: SimpleNamespace(results={"natural": scores}))
    merged = ours.postprocess_results(group_name="g", samples={}, configs={}, output_dir="out", anything="else")
    assert merged["emi,none"] == pytest.approx(0.3) and merged["emid,none"] == pytest.approx(-0.3)
    assert merged["emid_pearson_r,none"] == pytest.approx(-1)


def test_without_the_group_hook_nothing_is_patched():
    import lmms_eval.api.group as module

    if task_index.GROUP_HOOK in module.GroupConfig.__dataclass_fields__:
        pytest.skip("this lmms-eval has the hook")
    assert not task_index.add_group_hook(hooks.postprocess_group) and not hasattr(
        module.GroupConfig.__post_init__, "adds_lmms_eval_emi"
    )


def test_hooks_are_called_from_methods_of_a_task():
    """evaluation.calling_task tells a variant of a task from the task by the frame that calls its hook."""
    from lmms_eval.api.task import ConfigurableTask

    seen = []
    task = ConfigurableTask.__new__(ConfigurableTask)
    task._config = SimpleNamespace(
        task="german_terse", process_results=lambda doc, results: seen.append(evaluation.calling_task()) or {}
    )

    def simple_evaluate():
        return task.process_results({}, ["x"])

    simple_evaluate()
    assert seen[0] is not None, "lmms-eval calls hooks in another way: variants of a task are no longer told apart"
    assert seen[0].name == "german_terse" and seen[0].task is task and seen[0].evaluation != 0
    assert evaluation.calling_task() is None


def test_names_and_stamps_of_a_run():
    args = SimpleNamespace(model="llava_hf", model_args="pretrained=llava-hf/llava-1.5-7b-hf,device_map=cpu")
    assert evaluation.model_name(args) == "llava-hf/llava-1.5-7b-hf"
    assert evaluation.run_folder(args) == "llava-hf__llava-1.5-7b-hf", (
        "the harness names the folder of a model otherwise"
    )

    def simple_evaluate(datetime_str):
        return evaluation.run_stamp(None)

    assert simple_evaluate("20261121_10:30:00") == "20261121_10-30-00"
    assert evaluation.run_stamp(None)
    from lmms_eval import evaluator

    assert "datetime_str" in inspect.signature(evaluator.simple_evaluate).parameters


def test_a_standard_error_is_made_of_scores_and_clusters():
    """task_index.SCORE_KEY: what stands in the harness's columns of standard errors comes from the items of our aggregation."""
    import numpy as np
    from lmms_eval.evaluator_utils import TaskOutput

    items = [{task_index.SCORE_KEY: value, task_index.CLUSTER_KEY: row} for row, value in enumerate((0.1, 0.4, 0.2))]
    output = TaskOutput(
        task=SimpleNamespace(aggregation=lambda: {"emi": None}),
        task_config={"score_key": task_index.SCORE_KEY, "cluster_key": task_index.CLUSTER_KEY},
    )
    output.sample_metrics["emi", "none"] = items
    output.calculate_clt_aggregate_metric()
    expected = np.std([0.1, 0.4, 0.2], ddof=1) / np.sqrt(3)
    assert output.agg_metrics["emi_stderr_clt,none"] == pytest.approx(expected)
    assert output.agg_metrics["emi_stderr_clustered,none"] == pytest.approx(expected)


def test_a_model_is_made_where_it_can_be_wrapped():
    """launch.models_through: a resumable run wraps the model where simple_evaluate makes it."""
    import lmms_eval.models
    from lmms_eval import evaluator

    assert "models.get_model(model, force_simple).create_from_arg_string(" in inspect.getsource(
        evaluator.simple_evaluate
    ), "simple_evaluate makes models in another way: lmms-eval-emi run writes no journal"
    earlier = lmms_eval.models.get_model
    with launch.models_through(lambda kind, load: (kind, load)):
        made = lmms_eval.models.get_model("llava_hf", True)
        assert made.is_simple and made.create_from_arg_string("")[0].__name__ == "LlavaHf"
    assert lmms_eval.models.get_model is earlier


def test_requests_are_handed_to_a_model_at_once_and_in_order():
    """launch.MODEL_METHODS, is_padding, is_call_of_one_round: what evaluate() does with a model's methods."""
    from lmms_eval import evaluator

    source = inspect.getsource(evaluator.evaluate)
    assert "getattr(lm, reqtype)(cloned_reqs)" in source and "cloned_reqs.extend([req] * req.repeats)" in source
    padding = evaluator._clone_padding_request(SimpleNamespace(metadata=None, resps=[1], token_counts=[]))
    assert launch.is_padding(padding) and not launch.is_padding(SimpleNamespace(metadata={}))
    assert "lm.generate_until([single_req])" in inspect.getsource(evaluator._run_generate_until_agentic)


def test_requests_of_a_task_can_be_left_out():
    """launch.requests_through: a recovered run has the documents alone that are answered."""
    from lmms_eval import evaluator
    from lmms_eval.api.task import Task

    assert "self._instances" in inspect.getsource(Task.build_all_requests)
    assert "if not requests:" in inspect.getsource(evaluator.evaluate), "documents without requests are not skipped"
    earlier = Task.build_all_requests
    with launch.requests_through(lambda found: found[:1]):
        assert Task.build_all_requests is not earlier
    assert Task.build_all_requests is earlier


def test_what_the_command_swallows_is_raised(monkeypatch):
    """launch.run_command_line: the command prints exceptions and would end with 0."""
    import lmms_eval.__main__ as command

    assert "results, samples = cli_evaluate_single(args)" in inspect.getsource(command.cli_evaluate)
    assert list(inspect.signature(command.cli_evaluate_single).parameters) == ["args"]
    seen = []

    def fail(args):
        raise KeyError("inside")

    monkeypatch.setattr(command, "cli_evaluate_single", fail)
    with pytest.raises(RunError, match="KeyError.*inside"):
        launch.run_command_line(["--model", "m", "--tasks", "t", "--limit", "2"], seen.append)
    assert launch.model_parts(seen[0]) == ("m", "", "1", False) and seen[0].limit == 2
    assert command.cli_evaluate_single is fail


def test_a_task_that_only_generates_is_known():
    """evaluation.only_generates: such a run lacks no score."""
    from lmms_eval.api.task import ConfigurableTask

    task = ConfigurableTask.__new__(ConfigurableTask)
    task._config = SimpleNamespace(process_results=None)
    assert not evaluation.only_generates(task)
    task._metric_fn_list, task._aggregation_list, task._metric_fn_kwargs, task._higher_is_better = {}, {}, {}, {}
    task.override_metric("bypass")
    assert evaluation.only_generates(task)


def test_responses_of_the_harnesss_own_type_have_their_counts():
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    assert {field.name for field in dataclasses.fields(GenerationResult)} == {"text", "token_counts"}
    assert {field.name for field in dataclasses.fields(TokenCounts)} == {
        "input_tokens",
        "output_tokens",
        "reasoning_tokens",
    }


def test_nothing_else_knows_lmms_eval():
    """Every import of lmms-eval stands in compat, so that a release upstream is one folder of work."""
    package = Path(lmms_eval_emi.__file__).parent
    importing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(
            ("import lmms_eval.", "from lmms_eval.", "from lmms_eval import", "import lmms_eval\n")
        )
    }
    assert {str(Path(name).parent) for name in importing} == {"harness/lmms_eval/compat"}


def test_the_real_command_finds_the_tasks_beside_a_broken_plugin_by_include_path(tmp_path):
    """A plugin whose entry point fails before ours may hide our tasks; the folder still works."""
    site = tmp_path / "site"
    info = site / "aaa_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lmms_eval.models]\nbroken = aaa_broken:register\n")
    (site / "aaa_broken.py").write_text("raise ImportError('broken plugin')\n")
    code = textwrap.dedent(
        f"""
        import lmms_eval.evaluator
        from lmms_eval.tasks import TaskManager
        names = TaskManager(include_path={str(task_index.tasks_folder())!r}).all_tasks
        assert "llavabench_shift_natural_coco_german" in names
        """
    )
    (tmp_path / "probe.py").write_text(code)
    done = run_module("probe", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr[-2000:]
    assert sys.executable


def test_our_tasks_load_their_dataset_once_and_others_as_ever(monkeypatch):
    import datasets
    from lmms_eval.api.task import ConfigurableTask

    calls = []
    rows = datasets.DatasetDict({name: datasets.Dataset.from_dict({"a": [name]}) for name in ("one", "two")})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: (calls.append(kwargs), rows)[1])
    task_index.share_datasets()
    monkeypatch.setattr(task_index, "loaded_splits", {})

    def load(split, **metadata):
        config = SimpleNamespace(
            metadata=metadata,
            test_split=split,
            training_split=None,
            validation_split=None,
            fewshot_split=None,
            process_docs=None,
        )
        task = SimpleNamespace(config=config, _config=config, DATASET_PATH="path", DATASET_NAME=None)
        ConfigurableTask.download(task, {})
        return set(task.dataset)

    assert load("one", emi_study="natural") == {"one"} and load("two", emi_study="natural") == {"two"}
    assert len(calls) == 1
    assert load("one") == {"one", "two"} and len(calls) == 2
    assert task_index.take_loading_time() > 0 == task_index.take_loading_time()
