"""The encoder's part of a language shift, where a study has its references in both languages."""

from __future__ import annotations

import json

import pytest

from lmms_eval_emi import score

ROWS = 12
STUDY = """
name: languages
id_split: english
splits:
  english: {dataset: {path: english.jsonl, columns: {id: id, image: null, question: question, reference: answer}}}
  german:
    shifts: [{modality: text, name: German}]
    dataset: {path: german.jsonl, columns: {id: id, image: null, question: question, reference: answer, translation: antwort}}
"""
ENGLISH = [f"There are {number} boats on the lake." for number in range(ROWS)]
GERMAN = [f"Auf dem See sind {number} Boote." for number in range(ROWS)]


@pytest.fixture
def study(in_tinyhub, tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LMMS_EVAL_EMI_TEXT_ENCODER", str(in_tinyhub / "xlm-roberta-base"))
    for name, questions in (("english", "How many boats?"), ("german", "Wie viele Boote?")):
        rows = [
            {"id": row, "question": f"{questions} {row}", "answer": ENGLISH[row], "antwort": GERMAN[row]}
            for row in range(ROWS)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


def respond(study, german):
    folder = study.parent / "out"
    folder.mkdir(exist_ok=True)
    for name, texts in (("english", ENGLISH), ("german", german)):
        lines = [json.dumps({"question_id": row, "text": text}) + "\n" for row, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return score(study, folder, estimators=["cosine"])[0].splits["german"]


def test_correct_responses_in_another_language_lose_exactly_the_encoders_part(study):
    split = respond(study, GERMAN)
    assert split.emid > 0.001, "the encoder has other embeddings for German"
    assert split.emid_translation == pytest.approx(split.emid, abs=1e-12)
    wrong = respond(study, GERMAN[1:] + GERMAN[:1])
    assert wrong.emid_translation == pytest.approx(split.emid_translation, abs=1e-12)
    assert wrong.emid_translation_stderr == pytest.approx(split.emid_translation_stderr)


def test_a_split_with_untranslated_rows_has_no_control(study):
    rows = [json.loads(line) for line in (study.parent / "german.jsonl").read_text().splitlines()]
    rows[3]["antwort"] = None
    (study.parent / "german.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert respond(study, GERMAN).emid_translation is None
