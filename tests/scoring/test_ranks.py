"""Models ranked by any score of the same rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lmms_eval_emi.cli.commands import main
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.scoring.compare import RowScores, rank, read_row_scores


def made(accuracies, n=200, seed=0):
    random = np.random.default_rng(seed)
    hard = random.random(n)  # what is hard for one is hard for all, so that differences are smaller than errors
    return {
        name: {("", str(row)): float(0.7 * hard[row] + 0.3 * random.random() < accuracy) for row in range(n)}
        for name, accuracy in accuracies.items()
    }


def test_places_span_the_models_that_cannot_be_told_apart():
    found = rank(RowScores(made({"a": 0.9, "b": 0.6, "c": 0.59, "d": 0.2}), {}))
    assert (found[0].model, found[-1].model) == ("a", "d")
    places = {one.model: (one.best, one.worst) for one in found}
    assert places == {"a": (1, 1), "b": (2, 3), "c": (2, 3), "d": (4, 4)}


def test_only_rows_that_all_have_count_and_rows_of_one_image_are_one_observation():
    scores = made({"a": 0.9, "b": 0.75})
    alone = rank(RowScores(scores, {}))
    clusters = {("", str(row)): row // 20 for row in range(200)}
    together = rank(RowScores(scores, clusters))
    assert together[0].score == alone[0].score and (alone[0].best, alone[0].worst) == (1, 1)
    short = {name: {key: value for key, value in own.items() if int(key[1]) < 50} for name, own in scores.items()}
    assert rank(RowScores({"a": scores["a"], "b": short["b"]}, {}))[0].rows == 50


def test_no_pair_of_equal_models_is_told_apart_more_often_than_promised():
    told = sum(
        any(one.best == one.worst for one in rank(RowScores(made(dict.fromkeys("abc", 0.5), 60, seed), {})))
        for seed in range(120)
    )
    assert told / 120 < 0.12  # 5 % by Holm, three standard errors above


def test_a_table_is_ranked_by_the_command(tmp_path, capsys):
    rows = [
        {"model": name, "question_id": key[1], "score": score}
        for name, own in made({"good": 0.9, "bad": 0.4}).items()
        for key, score in own.items()
    ]
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "ranks.json"
    assert main(["compare", "--scores", str(tmp_path / "scores.jsonl"), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("good") < shown.index("bad") and "200 rows that all models have" in shown
    assert [one["best"] for one in json.loads(output.read_text())["models"]] == [1, 2]
    assert main(["report", "--check", str(output)]) == 0


def test_failed_calls_and_blanks_are_no_scores(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("model,question_id,score\na,1,8\na,2,-1\na,3,\na,4,True\n")
    found = read_row_scores([tmp_path / "a.csv"])
    assert found.scores == {"a": {("", "1"): 8.0, ("", "4"): 1.0}}
    assert "failed call" in caplog.text and "no score" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model,question_id,value\na,1,1\n", "expected the columns score"),
        ("model,question_id,score\na,1,x\n", "row 1: expected a number"),
        ("model,question_id,score\na,1,1\na,1.0,2\n", "row 2: 1 has a score of this model already"),
    ],
)
def test_what_cannot_be_ranked_is_told(tmp_path, content, said):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ResultsError, match=said):
        read_row_scores([tmp_path / "a.csv"])


def test_models_without_a_row_in_common_are_not_ranked():
    with pytest.raises(ResultsError, match="no row in common"):
        rank(RowScores({"a": {("", "1"): 1.0}, "b": {("", "2"): 1.0}}, {}))
