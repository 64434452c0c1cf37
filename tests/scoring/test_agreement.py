"""Agreement with outside scores, against SciPy and against samples whose truth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from endpoint import Endpoint
from scipy import stats

from lmms_eval_emi.cli import main
from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.core.totals import ClusterTotals
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.scoring.agreement import (
    OutsideScores,
    ResultToCompare,
    _auc,
    _spearman,
    agree,
    read_scores,
)
from lmms_eval_emi.scoring.rows import SplitRows
from lmms_eval_emi.slices.judge.preference import scores_of_verdicts
from lmms_eval_emi.slices.judge.verdicts import Key, Verdict

IMAGES, PER_IMAGE = 20, 3
SPLITS = ["clean", *(f"shift_{number}" for number in range(11))]


def make(seed: int, emi_noise: float = 0.5, cosine_noise: float = 2.0) -> tuple[ResultToCompare, OutsideScores]:
    """A study whose rows have a true quality that is seen through noise by a score, EMI and the cosine."""
    random = np.random.default_rng(seed)
    images = [str(row // PER_IMAGE) for row in range(IMAGES * PER_IMAGE)]
    ids = [str(row) for row in range(len(images))]
    of_image = random.normal(0, 0.5, IMAGES).repeat(PER_IMAGE)
    emi, emid, rows, scores, index = {}, {}, {}, {}, {}
    for number, name in enumerate(SPLITS):
        quality = of_image + random.normal(0, 1, len(ids)) - 0.15 * number
        seen = {
            what: quality + random.normal(0, noise, len(ids))
            for what, noise in (("score", 0.5), ("emi", emi_noise), ("cosine", cosine_noise))
        }
        scores[name] = {key: (float(value), 1.0) for key, value in zip(ids, seen["score"], strict=True)}
        rows[name] = SplitRows(id=ids, value=seen["emi"].tolist(), image=images, cosine=seen["cosine"].tolist())
        emi[name] = ClusterTotals.of_values(seen["emi"], images).jackknife()
        if number:
            both = np.array(rows["clean"].value) - seen["emi"]
            emid[name], index[name] = ClusterTotals.of_values(both, images).jackknife(), 0.1 * number
    result = ResultToCompare("m", "s", "signature", "clean", emi, emid, index, rows)
    return result, OutsideScores("quality", scores)


def test_correlations_over_splits_and_shifts_are_numpys() -> None:
    result, outside = make(0)
    found = agree(result, outside)
    scores = [np.mean([one for one, _ in outside.rows[name].values()]) for name in SPLITS]
    emi = [result.emi[name].value for name in SPLITS]
    assert found.over_splits["emi"]["pearson_r"].value == pytest.approx(np.corrcoef(emi, scores)[0, 1])
    assert found.over_splits["emi"]["kendall_tau"].value == pytest.approx(stats.kendalltau(emi, scores).statistic)
    losses, emids = np.array(scores[0]) - scores[1:], [result.emid[name].value for name in SPLITS[1:]]
    assert found.over_shifts["emid"]["spearman_r"].value == pytest.approx(stats.spearmanr(emids, losses).statistic)
    assert found.over_shifts["index"]["pearson_r"].value == pytest.approx(
        np.corrcoef([result.index[name] for name in SPLITS[1:]], losses)[0, 1]
    )
    for by_measure in (*found.over_splits.values(), *found.over_shifts.values()):
        assert all(one.ci95 and one.ci95[0] < one.value < one.ci95[1] for one in by_measure.values())
    point = found.points[3]
    assert point.split == SPLITS[3] and point.loss == pytest.approx(scores[0] - scores[3])


def test_the_output_says_plainly_who_is_ahead() -> None:
    ahead = agree(*make(1, emi_noise=0.1, cosine_noise=8.0))
    assert "EMI beats the cosine" in ahead.findings[-1]
    behind = agree(*make(1, emi_noise=8.0, cosine_noise=0.1))
    assert "EMI is worse than the cosine by" in behind.findings[-1]
    result, outside = make(1, emi_noise=0.1, cosine_noise=0.1)
    backwards = {name: {row: (-one, 1.0) for row, (one, _) in own.items()} for name, own in outside.rows.items()}
    assert all("does not go with it" in one for one in agree(result, OutsideScores("quality", backwards)).findings)
    pooled = behind.within_splits["spearman_r"]["all"]
    assert pooled.lead.value == pytest.approx(pooled.emi.value - pooled.cosine.value) and pooled.lead.ci95[1] < 0


def test_auc_and_rank_correlations_are_scipys() -> None:
    random = np.random.default_rng(2)
    x, right = random.integers(0, 6, 80).astype(float), random.integers(0, 2, 80).astype(float)
    u = stats.mannwhitneyu(x[right == 1], x[right == 0]).statistic
    assert _auc(x, right) == pytest.approx(u / (right.sum() * (80 - right.sum())))
    y = random.integers(0, 5, 80).astype(float)
    assert _spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(_auc(x, np.ones(80))) and math.isnan(_spearman(x, np.ones(80)))


def test_rows_that_are_right_or_wrong_have_an_auc() -> None:
    result, outside = make(3)
    rows = {
        name: {key: (float(value > 0), 1.0) for key, (value, _) in own.items()} for name, own in outside.rows.items()
    }
    found = agree(result, OutsideScores("accuracy", rows))
    assert set(found.within_splits) == {"auc"}
    own = found.within_splits["auc"]["shift_4"]
    right = np.array([one for one, _ in rows["shift_4"].values()])
    assert own.emi.value == pytest.approx(_auc(np.array(result.rows["shift_4"].value), right))
    assert found.within_splits["auc"]["all"].rows == len(SPLITS) * IMAGES * PER_IMAGE


@pytest.mark.parametrize("measure", ["spearman_r", "auc"])
def test_intervals_within_splits_cover(measure: str) -> None:
    values, covered, intervals = [], 0, []
    for seed in range(120):
        result, outside = make(seed)
        if measure == "auc":
            rows = {n: {k: (float(v > -0.5), 1.0) for k, (v, _) in o.items()} for n, o in outside.rows.items()}
            outside = OutsideScores("accuracy", rows)
        one = agree(result, outside, draws=0).within_splits[measure]["all"].emi
        values.append(one.value)
        intervals.append(one.ci95)
    truth = np.mean(values)
    covered = sum(low < truth < high for low, high in intervals)
    assert covered > 0.88 * 120  # 95 % within three standard errors of 120 repetitions


def test_scores_of_splits_alone_count_as_fixed() -> None:
    result, outside = make(4)
    splits = {name: float(np.mean([one for one, _ in own.values()])) for name, own in outside.rows.items()}
    found = agree(result, OutsideScores("quality", splits=splits))
    assert found.of == "splits" and not found.within_splits
    with_rows = agree(result, outside)
    for what in ("emi", "cosine"):
        one, other = (each.over_splits[what]["pearson_r"] for each in (found, with_rows))
        assert one.value == pytest.approx(other.value) and one.ci95 is not None


def test_fewer_than_eight_splits_have_no_correlation() -> None:
    result, outside = make(5)
    few = {name: outside.rows[name] for name in SPLITS[:5]}
    found = agree(result, OutsideScores("quality", few))
    assert len(found.points) == 5 and not any(found.over_splits["emi"].values())
    assert found.within_splits["spearman_r"]["all"].rows == 5 * IMAGES * PER_IMAGE
    with pytest.raises(ResultsError, match="none of its 1 splits"):
        agree(result, OutsideScores("quality", {"other": few["clean"]}))


def test_what_was_not_joined_is_told(caplog) -> None:
    """A misspelt name or id would otherwise change what was correlated without a word."""
    result, outside = make(7)
    rows = {f"{name}x" if number > 9 else name: dict(outside.rows[name]) for number, name in enumerate(SPLITS)}
    rows["clean"] = {row: rows["clean"][row] for row in list(rows["clean"])[:30]}
    rows["shift_0"] = {row: rows["shift_0"][row] for row in ("0", "1", "2")}  # of one image
    rows["shift_1"]["no such row"] = (1.0, 1.0)
    with caplog.at_level("WARNING", logger="lmms_eval_emi"):
        found = agree(result, OutsideScores("quality", rows))
    assert [point.split for point in found.points] == [name for name in SPLITS[:10] if name != "shift_0"]
    for part in (
        "results lack: 2, such as",
        "rows that the results lack: 1.",
        "without a score: 87",
        "of one image: 1",
    ):
        assert part in caplog.text


def test_without_the_id_split_there_is_no_loss() -> None:
    result, outside = make(6)
    found = agree(result, OutsideScores("quality", {name: outside.rows[name] for name in SPLITS[1:]}))
    assert all(point.loss is None for point in found.points) and not any(found.over_shifts.get("emid", {}).values())


def test_verdicts_become_relative_preference() -> None:
    verdicts = [
        Verdict.of(Key("m", "clean", row, "reference_first", 0), str(row), (8.0, 4.0 + row), judge="j", request="r")
        for row in range(3)
    ]
    (found,) = scores_of_verdicts(verdicts)
    assert (found.model, found.name) == ("m", "relative preference")
    parts = np.array(list(found.rows["clean"].values())).sum(axis=0)
    assert found.function(parts[None])[0] == pytest.approx(100 * 5 / 8)
    # Means of three verdicts that are equal, which are not equal to the last bit.
    assert found.is_right((100 * (4 / 3), 4 / 3)) and found.value_of((100 * (4 / 3), 4 / 3)) == 0
    assert found.value_of((400.0, 8.0)) == -4 and found.is_right((800.0, 8.0)) and not found.is_right((700.0, 8.0))


def test_files_of_scores(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("split,question_id,score,model\nclean,1,0.5,a\nclean,2.0,1,a\nclean,1,0,b\n")
    first, second = read_scores(table, "accuracy")
    assert (first.model, first.rows) == ("a", {"clean": {"1": (0.5, 1.0), "2": (1.0, 1.0)}}) and second.model == "b"
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"split": "clean", "score": 3}\n\n{"split": "foggy", "score": 2.5}\n')
    (found,) = read_scores(lines, "human")
    assert found.splits == {"clean": 3.0, "foggy": 2.5} and not found.rows
    lines.write_text('{"split": "clean", "score": 3, "note": "one\u2028line"}\n', encoding="utf-8")
    assert read_scores(lines, "human")[0].splits == {"clean": 3.0}
    whole = tmp_path / "a.json"
    whole.write_text('[{"split": "clean", "question_id": 3, "score": 1}]')
    assert read_scores(whole, "x")[0].rows == {"clean": {"3": (1.0, 1.0)}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split,score\nclean,good\n", "record 1"),
        ("split,score\nclean,nan\n", "record 1"),
        ("split\nclean\n", "expected split, score"),
        ("split,score\n", "found none"),
        ("split,score\nclean,1\nclean,2\n", "has a score already"),
        ("split,question_id,score\nclean,1,1\nfoggy,,2\n", "got both"),
    ],
)
def test_wrong_files_of_scores_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_scores(path, "x")
    with pytest.raises(ResultsError, match="not there"):
        read_scores(tmp_path / "nothing.csv", "x")


def test_from_responses_to_agreement_and_its_page(in_tinyhub: Path, tmp_path: Path, capsys) -> None:
    """score, judge, agreement and report, as a user runs them."""
    study = load_study("natural")
    folder, results = tmp_path / "responses", tmp_path / "results.json"
    for number, stem in enumerate(sorted({split.response_stems[-1] for split in study.splits.values()})):
        rows = [(row, "", f"a red circle {row} of {number}") for row in range(5)]
        write_response_file(folder / f"{stem}.jsonl", rows, "tiny")
    assert main(["score", "--study", "natural", "--responses", str(folder), "--output", str(results)]) == 0
    rows = json.loads((tmp_path / "results.rows.json").read_text())["results"][0]
    for name, own in rows["rows"].items():
        assert len(own["image"]) == len(own["cosine"]) == 5 and all(-1 <= one <= 1 for one in own["cosine"])
        known = {key for stratum in rows["without_each_image"][name]["emi"] for key in stratum}
        assert set(own["image"]) <= known
    endpoint = Endpoint(lambda request, count: f"8 {3 + len(str(request)) % 6}")
    judged = tmp_path / "judged.jsonl"
    command = ["judge", "ask", "--study", "natural", "--responses", str(folder), "--output", str(judged)]
    assert main([*command, "--endpoint", endpoint.url, "--endpoint-model", "j"]) == 0
    endpoint.close()
    scores = tmp_path / "human.csv"
    scores.write_text("split,score\n" + "".join(f"{name},{number}\n" for number, name in enumerate(study.splits)))
    output, page = tmp_path / "agreement.json", tmp_path / "report.html"
    capsys.readouterr()
    command = ["judge", "agree", str(results), "--judged", str(judged), "--scores", f"human={scores}"]
    assert main([*command, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "relative preference, 28 splits" in printed and "human, 28 splits" in printed and "cosine" in printed
    found = json.loads(output.read_text())
    assert [(one["score"], one["of"]) for one in found["agreements"]] == [
        ("relative preference", "rows"),
        ("human", "splits"),
    ]
    assert main(["report", str(results), str(output), "--output", str(page)]) == 0
    text = page.read_text()
    assert "relative preference" in text and "Beside another score" in text
    assert all(sentence.replace("'", "&#39;") in text for one in found["agreements"] for sentence in one["findings"])


def test_what_cannot_be_compared_is_told(in_tinyhub: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "results.json"
    path.write_text("{}")
    assert main(["judge", "agree", str(path)]) == 1
    assert "--judged FILE or --scores FILE" in capsys.readouterr().err
    (tmp_path / "s.csv").write_text("split,score\nclean,1\n")
    assert main(["judge", "agree", str(path), "--scores", str(tmp_path / "s.csv")]) == 1
    assert "expected results of lmms-eval-emi score" in capsys.readouterr().err


def test_a_loss_of_unrelated_rows_is_of_both_samples() -> None:
    from lmms_eval_emi.scoring.agreement import loss_of_score

    id = ClusterTotals.of_values(np.arange(10.0), range(10)).jackknife()
    own = ClusterTotals.of_values(np.arange(10.0) ** 2, range(10)).jackknife()
    unpaired = Jackknife(0.0, (id.strata[0], {str(("ood", key)): one for key, one in own.strata[0].items()}))
    assert loss_of_score(id, own, unpaired).stderr == pytest.approx(math.hypot(id.stderr, own.stderr))
    assert loss_of_score(id, own, id).stderr != pytest.approx(math.hypot(id.stderr, own.stderr))
