"""Responders whose faults are known, and what estimators make of them."""

from __future__ import annotations

import json
import random

import pytest

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.rows import Sample
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.scoring.audit import RESPONDERS, Rows, responses_of
from lmms_eval_emi.shifts.at_load import load_splits
from lmms_eval_emi.slices.demo.command import ASSETS

IMAGES = [bytes([number]) * 8 for number in (1, 1, 2, 2)]
REFERENCES = [
    "There are two large dogs on the grass.",
    "The dogs are brown.",
    "A sailor looks at the distant harbour.",
    "The weather is stormy and dark.",
]


@pytest.fixture
def rows():
    samples = [
        Sample(image, f"Question {number}?", "", reference, id=number)
        for number, (image, reference) in enumerate(zip(IMAGES, REFERENCES, strict=True))
    ]
    return Rows(samples, others=["A reference of elsewhere."], rewrite=str.upper)


def test_every_responder_has_the_fault_that_it_is_named_after(rows):
    made, missing = responses_of(rows)
    assert set(made) == set(RESPONDERS) and len(RESPONDERS) == 13 and not missing
    assert made["references"] == REFERENCES and made["empty"] == [""] * 4
    assert made["question copied"][2] == "Question 2?"
    assert [sorted(one.split()) for one in made["words shuffled"]] == [sorted(one.split()) for one in REFERENCES]
    assert made["words shuffled"] != REFERENCES
    assert all(one in REFERENCES[2:] for one in made["reference of another image"][:2])
    assert made["other reference of the image"] == [REFERENCES[number] for number in (1, 0, 3, 2)]
    assert made["most similar question of the image"] == made["other reference of the image"], "there is no third"
    assert made["reference three times"][1].count("brown") == 3
    assert made["first half"][1] == "The dogs"
    assert made["rewritten"][1] == "THE DOGS ARE BROWN."
    for wrong, reference in zip(made["one word or number wrong"], REFERENCES, strict=True):
        changed = [one for one in zip(wrong.split(), reference.split(), strict=True) if one[0] != one[1]]
        assert len(changed) == 1
    assert "two" not in made["one word or number wrong"][0]  # a number before a word


def test_responders_that_rows_cannot_have_are_named(rows):
    alone = Rows([Sample(None, "Q?", "", "Yes", id=0)])
    made, missing = responses_of(alone)
    assert set(missing) == {
        "reference of another image",
        "other reference of the image",
        "most similar question of the image",
        "reference of another split",
        "one word or number wrong",
        "rewritten",
    }
    assert responses_of(rows)[0] == responses_of(rows)[0]
    assert responses_of(Rows(rows.samples, seed=1))[0] != responses_of(Rows(rows.samples, seed=0))[0]


@pytest.fixture(scope="module")
def demo_responses(tmp_path_factory):
    """Responses to the demo's clean rows, half of which are right."""
    folder = tmp_path_factory.mktemp("responses")
    study = load_study("demo")
    split = load_splits(study, ["clean"])["clean"].remove_columns("image")
    draw = random.Random(0)
    lines = [
        (
            row["question_id"],
            "",
            row[study.splits["clean"].dataset.columns.reference] if draw.random() < 0.5 else "A dog.",
        )
        for row in split
    ]
    write_response_file(folder / "clean.jsonl", lines, "half")
    return folder


def test_the_audit_of_the_demo(demo_responses, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_EMI_WITHOUT_DEGENERATE", "1")  # which is not about responders that are made so
    encoders = [str(ASSETS / "vision_encoder"), str(ASSETS / "text_encoder")]
    output = tmp_path / "audit.json"
    common = [
        "estimators",
        "audit",
        "--study",
        "demo",
        "--responses",
        str(demo_responses),
        "--allow-missing",
        "--device",
        "cpu",
    ]
    assert (
        main(
            [
                *common,
                *("--estimator", "demo", "--estimator", "cosine"),
                *("--encoders", *encoders, "--output", str(output)),
            ]
        )
        == 0
    )
    written = json.loads(output.read_text())
    assert [one["estimator"].partition("@")[0] for one in written["findings"]] == ["demo", "cosine"]
    for finding in written["findings"]:
        scores = finding["responders"]
        assert scores["references"]["emi"] == pytest.approx(0, abs=1e-12)
        for name in ("empty", "reference of another image", "I don't know", "model half"):
            assert scores[name]["told_from_references"] and scores[name]["emi"] < 0
        assert scores["reference of another image"]["emi"] < scores["model half"]["emi"]
        assert not scores["references"]["told_from_references"]
    assert any(line.startswith("rewritten") for line in written["left_out"])
    page = tmp_path / "audit.html"
    assert main(["report", str(output), "--output", str(page)]) == 0
    text = page.read_text()
    assert (
        "Estimators on known faults" in text
        and "cosine (cosine) notices all of them" in text
        and "I don&#39;t know" in text
    )
    assert main(["report", str(output), "--format", "md"]) == 1
    capsys.readouterr()
    assert main([*common, "--estimator", "demo", "--estimator", "cosine", "--encoders", *encoders]) == 0
    printed = capsys.readouterr().out
    assert "differs from the references" in printed and "cosine, in cosine, notices" in printed
    assert main([*common, "--estimator", "demo"]) == 1  # not its encoders, or none to be had
    assert main([*common, "--split", "fog_1", "--estimator", "cosine", "--encoders", *encoders]) == 1
    assert "expected rows of the split fog_1, got none" in capsys.readouterr().err


def test_the_wrong_object_is_that_of_the_most_similar_question():
    questions = ["What color is the star?", "What is the weather like?", "What color is the ring?"]
    answers = ["It is red.", "It rains.", "It is blue."]
    samples = [Sample(IMAGES[0], q, "", a, id=n) for n, (q, a) in enumerate(zip(questions, answers, strict=True))]
    made, _ = responses_of(Rows(samples))
    assert made["most similar question of the image"] == ["It is blue.", "It is red.", "It is red."]


class _Constant:
    """Says 1 / n of anything: a property of the sample size alone."""

    signature, unit = "constant", "nats"

    def contributions(self, x, y):
        import torch

        return torch.full((len(x),), 1 / len(x), dtype=torch.float64)


def test_an_estimate_that_depends_on_the_number_of_images_is_marked(make_embeddings):
    from lmms_eval_emi import load_estimator
    from lmms_eval_emi.scoring.audit import reliability

    embeddings = make_embeddings(0, 60)
    found = reliability(embeddings, _Constant())
    assert found.by_share["0.5"] == pytest.approx(2 * found.value)
    assert any("drifts" in mark for mark in found.marks) and any("is not 0" in mark for mark in found.marks)
    own = make_embeddings(0, 60, y_hat=embeddings.y)
    related = reliability(own, load_estimator("dcor-reference"))
    assert related.marks == [] and abs(related.exchanged) < 0.1 * related.value
    assert reliability(embeddings.select(range(6)), _Constant()) is None
