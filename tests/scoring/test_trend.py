"""A series of splits has a trend, and the report a curve of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lmms_eval_emi.cli import main

WEEKS = 4


@pytest.fixture
def series(tmp_path):
    """A study of text whose responses name less of the reference from week to week."""
    words = ["red", "green", "blue", "star", "ring", "circle", "large", "small"]
    draw = np.random.default_rng(0)
    references = [" ".join(draw.permutation(words)[:6]) for _ in range(12)]
    splits = ["  week_0: {responses: week_0.jsonl, order: 0}"]
    for week in range(WEEKS):
        lines = [
            {"id": row, "question": f"week {week}: what is in picture {row}?", "answer": reference}
            for row, reference in enumerate(references)
        ]
        (tmp_path / f"rows_{week}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        answers = [
            {"question_id": row, "text": " ".join(reference.split()[: 6 - week])}
            for row, reference in enumerate(references)
        ]
        (tmp_path / f"week_{week}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in answers))
        if week:
            splits.append(
                f"  week_{week}: {{responses: week_{week}.jsonl, order: {week}, dataset: {{path: rows_{week}.jsonl}}, shifts: [{{modality: text, name: week, severity: {week}}}]}}"
            )
    (tmp_path / "study.yaml").write_text(
        "name: weeks\nid_split: week_0\n"
        "dataset: {path: rows_0.jsonl, columns: {id: id, question: question, reference: answer, image: null}}\n"
        "splits:\n" + "\n".join(splits) + "\n"
    )
    return tmp_path / "study.yaml"


def test_the_slope_of_a_series_is_that_of_least_squares(series, tmp_path, in_tinyhub, capsys):
    output = tmp_path / "results.json"
    command = ["score", str(series), "--estimator", "cosine", "--images", str(tmp_path), "--output", str(output)]
    command += ["--vision-encoder", "none/such"]  # text alone needs none
    assert main(command) == 0
    result = json.loads(output.read_text())
    trend = result["trend"]
    names = [f"week_{week}" for week in range(WEEKS)]
    values = [result["splits"][name]["emi"] for name in names]
    assert trend["splits"] == names
    assert trend["slope"] == pytest.approx(np.polyfit(range(WEEKS), values, 1)[0])
    assert trend["ci95"][1] < 0 and trend["p"] < 0.01
    assert "trend      EMI changes by -" in capsys.readouterr().out
    assert main(["report", str(output), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "EMI over the series" in page and "per step from week_0 to week_3" in page


def test_two_splits_are_no_series(series, tmp_path, in_tinyhub):
    output = tmp_path / "results.json"
    command = ["score", str(series), "--split", "week_1", "--estimator", "cosine", "--images", str(tmp_path)]
    assert main([*command, "--output", str(output)]) == 0
    assert json.loads(output.read_text())["trend"] is None
