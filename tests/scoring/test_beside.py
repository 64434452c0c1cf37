"""Measures beside the score, the ranking of rows, margins as a share, and how a new field of a result travels."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic.fields import FieldInfo

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import emi
from lmms_eval_emi.data.rows import Sample
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.estimators import load_estimator
from lmms_eval_emi.report.page import to_html
from lmms_eval_emi.report.reading import ReportedResult, read_results
from lmms_eval_emi.scoring.beside import BesideResult, disagreements
from lmms_eval_emi.scoring.result import (
    Inference,
    RowsKnown,
    ScoringOptions,
    SplitResult,
    StudyResult,
    score_study,
)
from lmms_eval_emi.scoring.rows import StudyRows, find_lost_rows
from lmms_eval_emi.scoring.table import beside_to_lines, design_to_line, result_to_table
from lmms_eval_emi.settings import load_settings

STUDY = Study(
    name="mine",
    id_split="clean",
    dataset={"path": "rows", "columns": {"id": "id", "question": "q", "reference": "a"}},
    splits={"clean": {}, "fog": {"shifts": [{"modality": "visual", "name": "fog"}]}},
)
NOTHING = ScoringOptions(inference=Inference(resamples=0))


def unit(rows):
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def worlds(noise, images=16, per=3, seed=0, flip=False):
    """A clean split, and a shift whose responses are noisier by ``noise``; rows are of images with a common part."""
    rng = np.random.default_rng(seed)
    n, groups = images * per, np.repeat(np.arange(images), per)
    base = (rng.normal(size=(images, 10))[groups] + rng.normal(size=(n, 10))) @ rng.normal(size=(10, 24))
    inputs = unit(base + rng.normal(size=base.shape))
    found = {}
    for name, extra in (("clean", 0.5), ("fog", 0.5 + noise)):
        response = base + extra * 4 * rng.normal(size=base.shape)
        found[name] = Embeddings(
            v=inputs,
            t=inputs,
            y_hat=unit(response),
            y=unit(base),
            ids=[(row,) for row in range(n)],
            groups=[f"image {one}" for one in groups],
        )
    return found


def test_every_result_has_the_cosine_and_the_r2_beside_its_score():
    embeddings = worlds(1.0)
    result = score_study(STUDY, embeddings, load_estimator("dcor"), model="m", options=NOTHING)
    clean, fog = result.splits["clean"], result.splits["fog"]
    assert set(fog.beside) == {"cosine", "reference-r2"}
    by_hand = {name: float((own.y_hat * own.y).sum(1).mean()) - 1 for name, own in embeddings.items()}
    assert clean.beside["cosine"].emi == pytest.approx(by_hand["clean"], abs=1e-12)
    assert fog.beside["cosine"].emid == pytest.approx(by_hand["clean"] - by_hand["fog"], abs=1e-12)
    for kind, measure in fog.beside.items():
        alone = score_study(STUDY, embeddings, load_estimator(kind), model="m", options=NOTHING).splits["fog"]
        assert (measure.emid, measure.emid_stderr) == pytest.approx((alone.emid, alone.emid_stderr), abs=1e-12)
        assert measure.emid > 0 and measure.sign == 1 and kind not in alone.beside
    shown = result_to_table(result)
    assert re.search(r"EMID,\s+EMID,\s+index\n\s+cosine\s+reference-r2", shown), shown


def test_a_measure_that_is_sure_of_another_sign_is_named():
    loss = BesideResult(emi=-0.5, emid=0.2, emid_ci95=[0.1, 0.3])
    assert disagreements({"fog": {"cosine": loss}}, {"fog": -1}) == {"cosine": ["fog"]}
    assert disagreements({"fog": {"cosine": loss}}, {"fog": 0}) == {}
    split = SplitResult(emi=0.0, emid=-0.1, emid_bound=0.1, emid_ci95=[-0.2, -0.05], beside={"cosine": loss})
    result = StudyResult(
        signature="", model="m", shift="mine", id_split="clean", settings={"estimator": "dcor"}, splits={"fog": split}
    )
    assert beside_to_lines(result) == ["cosine is sure of another sign of EMID than dcor in 1 of 1 shifts: fog"]


def test_the_r2_rejects_no_more_often_than_it_says_where_nothing_is_lost():
    """Its bias correction rejected in 24 of 100 such data sets; R² is out of sample and needs none."""
    wrong = 0
    for seed in range(30):
        result = score_study(STUDY, worlds(0.0, 12, 2, seed), load_estimator("cosine"), model="m", options=NOTHING)
        wrong += result.splits["fog"].beside["reference-r2"].sign != 0
    assert wrong <= 3  # binomial(30, .05): P(more) = .06


def test_rows_are_ranked_by_the_loss_of_their_cosine():
    embeddings = worlds(0.0)
    worst = 7
    y_hat = embeddings["clean"].y_hat.clone()
    y_hat[worst] = -embeddings["clean"].y[worst]
    fog = replace(embeddings["clean"], y_hat=y_hat)
    splits = {"clean": embeddings["clean"], "fog": fog}
    rows = [Sample(id=row, image=None, question="q", response=f"r{row}", reference=f"a{row}") for row in range(fog.n)]
    result = score_study(STUDY, splits, load_estimator("dcor"), model="m", options=NOTHING)
    lost = find_lost_rows(result, {"clean": rows, "fog": rows}, splits)["fog"]
    assert lost[0].id == str(worst) and lost[0].cosine == pytest.approx(-1, abs=1e-6)
    own = float((embeddings["clean"].y_hat[worst] * embeddings["clean"].y[worst]).sum())
    assert lost[0].cosine_loss == pytest.approx(own + 1, abs=1e-6)
    by_influence = find_lost_rows(result, {"clean": rows, "fog": rows})["fog"]
    assert [row.loss for row in by_influence] == sorted((row.loss for row in by_influence), reverse=True)


def test_the_design_effect_compares_images_with_independent_rows():
    score = emi(worlds(0.0)["clean"], load_estimator("cosine"))
    psi = score.influence.numpy()
    assert score.design_effect == pytest.approx(score.stderr**2 / (psi @ psi / (48 * 47)))
    single = replace(worlds(0.0)["clean"], groups=None)
    assert emi(single, load_estimator("cosine")).design_effect == pytest.approx(1.0, abs=0.05)
    result = score_study(STUDY, worlds(0.0), load_estimator("cosine"), model="m", options=NOTHING)
    assert result.splits["clean"].emi_design_effect == pytest.approx(score.design_effect)
    assert "variance of EMI is" in design_to_line(result)


def test_a_margin_may_be_a_share_of_what_there_is_to_lose():
    embeddings = worlds(0.0, images=30)
    plain = score_study(STUDY, embeddings, load_estimator("cosine"), model="m", options=NOTHING)
    assert plain.summary.margin is None and plain.splits["fog"].verdict != "held", "no margin is given, so none applies"
    share = ScoringOptions(inference=Inference(resamples=0, margin_share=0.2))
    result = score_study(STUDY, embeddings, load_estimator("cosine"), model="m", options=share)
    of_id = result.splits["clean"].mi_response
    assert result.summary.margin == pytest.approx(0.2 * of_id)
    assert result.splits["fog"].emid_share == pytest.approx(result.splits["fog"].emid / of_id)
    assert result.splits["fog"].verdict == "held" and "margin=0.2 of I(input; response)" in result.signature
    with pytest.raises(InputError, match="exclude each other"):
        load_settings(margin=0.1, margin_share=0.1)


def test_emid_without_degenerate_responses():
    embeddings = worlds(1.0)
    n = embeddings["fog"].n
    kinds = {"clean": [None] * n, "fog": ["repetition" if row % 4 == 0 else None for row in range(n)]}
    result = score_study(
        STUDY, embeddings, load_estimator("cosine"), model="m", options=NOTHING, known=RowsKnown(degenerate=kinds)
    ).splits["fog"]
    kept = [row for row in range(n) if row % 4]
    by_hand = [float((own.y_hat * own.y).sum(1)[kept].mean()) for own in embeddings.values()]
    assert result.emid_without_degenerate == pytest.approx(by_hand[0] - by_hand[1], abs=1e-12)
    few = {"clean": [None] * n, "fog": ["empty", *[None] * (n - 1)]}
    other = score_study(
        STUDY, embeddings, load_estimator("cosine"), model="m", options=NOTHING, known=RowsKnown(degenerate=few)
    )
    assert other.splits["fog"].emid_without_degenerate is None


def test_a_new_field_is_one_line(tmp_path, monkeypatch):
    """It is in the file, in the schema, in the table of the terminal and in the page, without another change."""
    monkeypatch.setitem(
        SplitResult.model_fields,
        "rouge",
        FieldInfo(annotation=float | None, default=None, json_schema_extra={"column": "ROUGE"}),
    )
    models = (SplitResult, StudyResult, ReportedResult)
    try:
        for model in models:
            model.model_rebuild(force=True)
        result = score_study(STUDY, worlds(1.0), load_estimator("cosine"), model="m", options=NOTHING)
        splits = {name: SplitResult(**{**split.to_data(), "rouge": 0.125}) for name, split in result.splits.items()}
        result = result.model_copy(update={"splits": splits})
        result.model_post_init(None)
        path = result.write(tmp_path / "r.json")
        assert json.loads(path.read_text())["splits"]["fog"]["rouge"] == 0.125
        assert "rouge" in json.dumps(StudyResult.model_json_schema())
        table = result_to_table(result)
        assert "ROUGE" in table and "0.125" in table
        (read,) = read_results([path])
        assert read.splits["fog"].rouge == 0.125
        page = to_html([ReportedResult.of(result, rows=StudyRows())])
        data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
        assert data["results"][0]["splits"]["fog"]["rouge"] == 0.125
        assert ">ROUGE</button>" in page and 'data-value="0.125"' in page
    finally:
        monkeypatch.undo()
        for model in models:
            model.model_rebuild(force=True)
    assert "rouge" not in json.dumps(StudyResult.model_json_schema())
