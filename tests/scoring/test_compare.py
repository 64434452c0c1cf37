"""Models compared on the same splits, and the images that an effect would need."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lmms_eval_emi.cli import main
from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.scoring.compare import (
    ComparedResult,
    check_comparable,
    compare,
    indistinguishable,
    power,
    read_compared,
)

SETTINGS = {"encoders": "e", "estimator": "c", "convention": "published", "kind": "scaled"}


def stored(label, means, seed=0, noise=0.01, hardness=0.05, images=20):
    """Results of a model whose images are as hard as those of every other model."""
    hard, own = np.random.default_rng(0), np.random.default_rng(seed)
    scores = {}
    for name, mean in means.items():
        rows = mean + hardness * hard.normal(size=images) + noise * own.normal(size=images)
        deleted = {f"image {g}": (rows.sum() - rows[g]) / (images - 1) for g in range(images)}
        scores[name] = Jackknife(float(rows.mean()), (deleted,))
    emi = {"clean": scores["clean"], **{name: one for name, one in scores.items() if name != "clean"}}
    return ComparedResult(label, "s", SETTINGS, emi, {name: one for name, one in scores.items() if name != "clean"})


MEANS = {"clean": 0.0, "fog": 0.1, "blur": 0.02}


def test_what_both_models_find_hard_cancels():
    first, second = stored("a", MEANS, seed=1), stored("b", {**MEANS, "fog": 0.13}, seed=2)
    found = {one.split: one for one in compare(first, second)}
    assert found["fog"].emid.stderr < 0.5 * first.emid["fog"].stderr
    assert found["fog"].separates and not found["blur"].separates and found["fog"].emid.value < 0
    assert found["clean"].emid is None and "mean over 2 shifts" in found


def test_models_that_cannot_be_told_apart_are_grouped():
    models = [
        stored("a", MEANS, 1),
        stored("b", MEANS, 2),
        stored("c", {name: m + 0.2 for name, m in MEANS.items()}, 3),
    ]
    assert indistinguishable(models) == [["a", "b"], ["c"]] or indistinguishable(models) == [["b", "a"], ["c"]]


def test_results_that_are_not_comparable_say_why():
    other = ComparedResult("b", "t", {**SETTINGS, "encoders": "f"}, {}, {})
    problems = check_comparable([stored("a", MEANS), other])
    assert problems == ["they are of different studies: s, t", "the encoders differs: e and f"]


def test_power_counts_images():
    result = stored("a", MEANS, noise=0.02)
    (fog, _) = power(result, 0.02)
    error = result.emid["fog"].stderr
    assert fog.images == 20 and fog.detectable == pytest.approx(error * 2.95, rel=0.05)
    assert fog.needed == pytest.approx(20 * (2.85 * error / 0.02) ** 2, rel=0.12)
    assert power(result, 0.01)[0].needed > 3 * fog.needed
    for effect in (0, -1, math.inf):
        with pytest.raises(ValueError, match="expected a positive EMID"):
            power(result, effect)


@pytest.fixture
def results(in_tinyhub, tmp_path):
    """Results of two models in a text-only study of many rows, so that there are clusters enough."""
    from lmms_eval_emi.data.responses.llava import write_response_file

    rows = [
        {"question_id": row, "question": f"what is {row}?", "reference_answer": f"a red star {row}"}
        for row in range(16)
    ]
    for split in ("clean", "typos"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "study.yaml").write_text(
        "name: texts\nid_split: clean\ndataset: {path: clean.jsonl, columns: {image: null}}\nsplits:\n  clean: {}\n"
        "  typos: {shifts: [{modality: text, name: typos}], dataset: {path: typos.jsonl}}\n"
    )
    words = {"a": "a red circle", "b": "two blue squares"}
    for model, text in words.items():
        for split in ("clean", "typos"):
            answers = [(row, "", f"{text} {row if split == 'clean' else 'star'}") for row in range(16)]
            write_response_file(tmp_path / model / f"{split}.jsonl", answers, model)
        arguments = ["--study", str(tmp_path / "study.yaml"), "--responses", str(tmp_path / model)]
        assert main(["score", *arguments, "--output", str(tmp_path / f"{model}.json")]) == 0
    return tmp_path


def test_the_commands(results, capsys):
    capsys.readouterr()
    paths = [str(results / "a.json"), str(results / "b.json")]
    assert main(["compare", *paths, "--output", str(results / "differences.json")]) == 0
    printed = capsys.readouterr().out
    assert "a - b" in printed and "of 1 shifts separate them" in printed and "typos" in printed
    content = json.loads((results / "differences.json").read_text())
    scores = [json.loads((results / f"{model}.json").read_text())["splits"]["typos"] for model in ("a", "b")]
    found = {one["split"]: one for one in content["comparisons"][0]["differences"]}
    assert found["typos"]["emid"]["value"] == pytest.approx(scores[0]["emid"] - scores[1]["emid"])
    assert found["typos"]["emi"]["value"] == pytest.approx(scores[0]["emi"] - scores[1]["emi"])
    assert main(["compare", paths[0], "--power", "0.001"]) == 0
    assert "images needed" in capsys.readouterr().out
    assert main(["compare", paths[0], "--power=-1"]) == 1


def test_results_without_their_rows(results, capsys):
    (results / "a.rows.json").write_text((results / "b.rows.json").read_text())
    assert main(["compare", str(results / "a.json"), str(results / "b.json")]) == 1
    assert "its rows are not beside it" in capsys.readouterr().err
    assert main(["compare", str(results / "b.json")]) == 1
    assert "at least two models" in capsys.readouterr().err
    assert main(["compare", str(results / "study.yaml"), str(results / "b.json")]) == 1


def test_the_json_has_errors_tests_and_verdicts(results):
    content = json.loads((results / "a.json").read_text())
    clean, typos = content["splits"]["clean"], content["splits"]["typos"]
    assert {"emi_stderr", "emi_ci95", "emi_corrected", "images"} <= clean.keys() and clean["images"] == 16
    expected = {"emid_stderr", "emid_ci95", "emid_paired", "emid_inputs", "emid_inputs_stderr", "emid_responses"}
    expected |= {"emid_responses_stderr", "emid_p", "emid_p_adjusted", "verdict", "emid_bound_baseline"}
    expected |= {f"jsd_{name}_{what}" for name in ("id_response", "ood_response") for what in ("p", "floor", "excess")}
    assert expected <= typos.keys() and typos["emid_paired"] is True
    assert typos["jsd_t_identical"] is True and "jsd_t_p" not in typos
    assert typos["emid_inputs"] + typos["emid_responses"] == pytest.approx(typos["emid"])
    low, high = typos["emid_ci95"]
    assert low < typos["emid_corrected"] < high
    summary = content["summary"]
    assert {"spearman_r", "kendall_tau", "pearson_r_ci95", "spearman_r_ci95", "kendall_tau_ci95"} <= summary.keys()
    assert "errors:jackknife,resamples=499,seed=0,adjust=holm,margin=none" in content["signature"]
    rows = json.loads((results / "a.rows.json").read_text())["results"][0]["rows"]
    assert len(rows["typos"]["value"]) == 16 and np.mean(rows["typos"]["value"]) == pytest.approx(typos["emi"])


def test_without_resampling_only_closed_forms_are_left(results):
    output = results / "closed.json"
    arguments = ["--study", str(results / "study.yaml"), "--responses", str(results / "a"), "--resamples", "0"]
    assert main(["score", *arguments, "--output", str(output)]) == 0
    typos = json.loads(output.read_text())["splits"]["typos"]
    assert typos["emid_stderr"] is not None and "jsd_ood_response_p" not in typos
    assert "resamples=0" in json.loads(output.read_text())["signature"]
    stored_result = read_compared([output])[0]
    assert set(stored_result.emid) == {"typos"}
