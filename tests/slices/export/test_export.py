"""Results that travel: schemas of every file, and forms that others read, with every number."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from endpoint import Endpoint

from lmms_eval_emi.cli import main
from lmms_eval_emi.cli.report import MODELS, check_file
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.harness.common import log_result
from lmms_eval_emi.scoring.pipeline import score
from lmms_eval_emi.slices.export.formats import to_every_eval_ever


@pytest.fixture(scope="module")
def files(tinyhub: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of every kind, as the commands write them."""
    folder = tmp_path_factory.mktemp("files")
    found = {
        name: folder / f"{name}.json" for name in ("a", "b", "both", "differences", "agreement", "audit", "robustness")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tinyhub)
        patch.setenv("LMMS_EVAL_EMI_ESTIMATOR", str(tinyhub / "tiny.safetensors"))
        study = load_study("synthetic")
        stems = sorted({split.response_stems[-1] for split in study.splits.values()})
        for model in ("a", "b"):
            for number, stem in enumerate(stems):
                rows = [(row, "", f"a red {model} {row * number}") for row in range(5)]
                write_response_file(folder / model / f"{stem}.jsonl", rows, model)
        responses = {model: str(folder / model) for model in ("a", "b")}
        for model, path in responses.items():
            command = ["score", "--study", "synthetic", "--responses", path, "--output", str(found[model])]
            assert main(command) == 0
        command = ["score", "--study", "synthetic", "--responses", *responses.values(), "--output", str(found["both"])]
        assert main(command) == 0
        assert main(["compare", str(found["a"]), str(found["b"]), "--output", str(found["differences"])]) == 0
        command = [
            "estimators",
            "audit",
            "--study",
            "synthetic",
            "--responses",
            responses["a"],
            "--allow-other-encoders",
        ]
        assert main([*command, "--output", str(found["audit"])]) == 0
        endpoint = Endpoint(lambda request, count: "7 5")
        judged = folder / "judged.jsonl"
        command = ["judge", "ask", "--study", "synthetic", "--responses", responses["a"], "--output", str(judged)]
        assert main([*command, "--endpoint", endpoint.url, "--endpoint-model", "j"]) == 0
        endpoint.close()
        command = ["judge", "agree", str(found["a"]), "--judged", str(judged), "--output", str(found["agreement"])]
        assert main(command) == 0
        for task, right in (("quiz", 1.0), ("quiz_fog_3", 0.0)):
            lines = [
                {"doc_id": row, "target": "x", "filtered_resps": "y", "input": "z", "acc": right} for row in range(9)
            ]
            out = folder / "out" / "model"
            out.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (out / f"20260101_000000_samples_{task}.jsonl").write_text(text)
        (out / "20260101_000000_results.json").write_text("{}")
        assert main(["robustness", str(folder / "out"), "--output", str(found["robustness"])]) == 0
    found |= {"rows": folder / "a.rows.json", "verdict": judged, "preference": folder / "judged.summary.json"}
    return found


KINDS = {"a": "result", "b": "result", "both": "results"}


@pytest.mark.parametrize(
    "name", ["a", "both", "rows", "differences", "agreement", "audit", "robustness", "verdict", "preference"]
)
def test_every_file_follows_its_schema(files: dict[str, Path], name: str, capsys) -> None:
    assert check_file(files[name]) == KINDS.get(name, name)
    assert main(["report", "--check", str(files[name])]) == 0 and "valid" in capsys.readouterr().out


def test_a_harness_runs_files_follow_them_too(tinyhub: Path, tmp_path: Path) -> None:
    from conftest import GROUP, lmms_eval

    assert lmms_eval(tinyhub, GROUP, "--output_path", str(tmp_path)).returncode == 0
    files = list(tmp_path.rglob("*_emi_*.json"))
    assert len(files) == 2 and {check_file(path) for path in files} == {"result", "rows"}


@pytest.mark.parametrize("name", MODELS)
def test_a_schema_names_every_key_of_its_file(files: dict[str, Path], name: str, capsys) -> None:
    assert main(["report", "--schema", name]) == 0
    schema = json.loads(capsys.readouterr().out)
    found = {KINDS.get(own, own): path for own, path in files.items()}
    if name in found:
        content = json.loads(found[name].read_text().splitlines()[0] if name == "verdict" else found[name].read_text())
        assert content.keys() <= schema["properties"].keys() and set(schema.get("required", [])) <= content.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["splits"]["llava_bench_coco"].update(emi="high"), "splits.llava_bench_coco.emi"),
        (lambda content: content["splits"]["llava_bench_coco"].update(emi_ci95=[1]), "emi_ci95"),
        (lambda content: content.pop("signature"), "signature"),
        (lambda content: content.update(colour="red"), "colour"),
    ],
)
def test_a_file_that_departs_is_told_where(files, tmp_path, change, message, capsys) -> None:
    content = json.loads(files["a"].read_text())
    name = content["id_split"]
    content["splits"] = {"llava_bench_coco": content["splits"][name]}
    change(content)
    (tmp_path / "r.json").write_text(json.dumps(content))
    assert main(["report", "--check", str(tmp_path / "r.json")]) == 1
    assert message in capsys.readouterr().out


def test_other_files_are_told(tmp_path, capsys) -> None:
    (tmp_path / "x.json").write_text("[1]")
    (tmp_path / "y.json").write_text("{")
    assert (
        main(["report", "--check", str(tmp_path / "x.json"), str(tmp_path / "y.json"), str(tmp_path / "z.json")]) == 1
    )
    assert capsys.readouterr().out.count("not valid") == 3


def exported(files: dict[str, Path], tmp_path: Path, form: str, *more: str) -> dict:
    output = tmp_path / "exported.json"
    assert main(["report", str(files["a"]), "--format", form, "--output", str(output), "--overwrite", *more]) == 0
    return json.loads(output.read_text())


def numbers_of(split: dict) -> dict[str, float]:
    return {
        key: value for key, value in split.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def test_every_eval_ever_has_every_number(files, tmp_path) -> None:
    content = json.loads(files["a"].read_text())
    log = exported(files, tmp_path, "every-eval-ever")
    by_id = {one["evaluation_result_id"]: one for one in log["evaluation_results"]}
    assert len(by_id) == len(log["evaluation_results"]) == 35 + 2 * 34
    for name, split in content["splits"].items():
        found: dict[str, float] = {}
        for metric in ("emi", "emid", "emid_bound"):
            one = by_id.get(f"synthetic/{name}/{metric}")
            if one is None:
                assert split.get(metric) is None
                continue
            details = {
                key: json.loads(value)
                for key, value in one["score_details"]["details"].items()
                if value[:1] in "-0123456789"
            }
            found |= {metric: one["score_details"]["score"], **details}
            error = one["score_details"].get("uncertainty", {}).get("standard_error")
            if error:
                found[f"{metric}_stderr"] = error["value"]
        assert {key: found[key] for key in numbers_of(split)} == numbers_of(split)


def test_every_eval_evers_own_validator_takes_it(files, tmp_path) -> None:
    pytest.importorskip("every_eval_ever", reason="every-eval-ever needs Python 3.12")
    from every_eval_ever.eval_types import EvaluationLog

    folder = tmp_path / "data" / "synthetic" / "org" / "model"
    folder.mkdir(parents=True)
    log = exported(files, tmp_path, "every-eval-ever", "--model-id", "org/model", "--organization", "somebody")
    assert EvaluationLog.model_validate(log).model_info.id == "org/model"
    path = folder / f"{uuid.uuid4()}.json"
    path.write_text(json.dumps(log))
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "every_eval_ever", "validate", str(path.relative_to(tmp_path))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_uncertainty_is_that_of_the_results() -> None:
    split = {"modality": "id", "n": 90, "images": 30, "emi": 0.1, "emi_stderr": 0.02, "emi_ci95": [0.06, 0.14]}
    entry = SimpleNamespace(
        to_data=lambda: {"splits": {"clean": split}, "study": {"splits": {"clean": {"dataset": {"path": "my/data"}}}}},
        settings={}, shift="s", title="", unit="nats", model="m", signature="x", format_version=1,
        splits={"clean": SimpleNamespace(n=90)},
    )  # fmt: skip
    (one,) = to_every_eval_ever(entry, 0.0)["evaluation_results"]
    assert one["score_details"]["uncertainty"]["standard_error"]["value"] == 0.02
    assert one["score_details"]["uncertainty"]["confidence_interval"]["upper"] == 0.14
    assert one["source_data"] == {
        **{"dataset_name": "clean", "source_type": "hf_dataset", "hf_repo": "my/data", "samples_number": 90}
    }


def test_lm_eval_has_every_number_and_the_keys_that_viewers_read(files, tmp_path) -> None:
    content = json.loads(files["a"].read_text())
    found = exported(files, tmp_path, "lm-eval")
    assert set(found["group_subtasks"]["synthetic"]) == set(found["results"]) == set(found["n-samples"])
    for name, split in content["splits"].items():
        own = found["results"][f"synthetic_{name}"]
        assert {key: own[f"{key},none"] for key in numbers_of(split)} == numbers_of(split)
        assert found["higher_is_better"][f"synthetic_{name}"] == {"emi": True, "emid": False, "emid_bound": False}
        assert found["n-samples"][f"synthetic_{name}"] == {"original": 5, "effective": 5}
        assert found["configs"][f"synthetic_{name}"]["metadata"]["split"] == split
    assert found["groups"]["synthetic"]["mean_emid,none"] == content["summary"]["mean_emid"]


def test_several_models_have_to_be_chosen_from(files, tmp_path, capsys) -> None:
    command = ["report", str(files["both"]), "--format", "lm-eval", "--output", str(tmp_path / "x.json")]
    assert main(command) == 1
    assert "--only-model" in capsys.readouterr().err
    assert main([*command, "--only-model", "b"]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["model_name"] == "b"


def test_trackio_gets_the_scores_of_a_run_that_logs_there(files, in_tinyhub, monkeypatch) -> None:
    logged: list[dict] = []
    run = SimpleNamespace(log=logged.append)
    module = SimpleNamespace(
        __name__="trackio",
        context_vars=SimpleNamespace(current_run=SimpleNamespace(get=lambda: run)),
        Table=lambda dataframe: dataframe,
    )
    monkeypatch.setitem(sys.modules, "trackio", module)
    (result,) = score("synthetic", files["a"].parent / "a", settings=None)
    log_result(result)
    (one,) = logged
    table = one["emi/synthetic/figures"]
    assert list(table["split"]) == list(result.splits) and np.isfinite(one["emi/synthetic/mean_emi"])
