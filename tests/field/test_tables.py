"""Rows in text files: ids, dates and numbers stay what is written."""

from __future__ import annotations

import pytest

from lmms_eval_emi.data.tables import read_table
from lmms_eval_emi.errors import StudyError
from lmms_eval_emi.scoring.agreement import read_scores


def test_a_separated_file_holds_texts(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('id,question,answer\n000,"two\nlines",NA\n001,None,7\n2020-01-01,nan,0.50\n')
    rows = read_table(path)
    assert rows["id"][:] == ["000", "001", "2020-01-01"]
    assert rows["answer"][:] == ["NA", "7", "0.50"] and rows["question"][:] == ["two\nlines", "None", "nan"]


def test_json_keeps_dates_and_mixes_become_texts(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "2020-01-01", "answer": 7}\n{"id": "2020-01-02", "answer": "seven"}\n')
    rows = read_table(path)
    assert rows["id"][:] == ["2020-01-01", "2020-01-02"] and rows["answer"][:] == ["7", "seven"]
    array = tmp_path / "rows.json"
    array.write_text('[{"id": 1, "answer": 2}, {"id": 2.5, "answer": null}]')
    assert read_table(array)["id"][:] == ["1", "2.5"]


def test_cells_and_numbers_are_read_as_they_are_written(tmp_path):
    (tmp_path / "rows.csv").write_text("id,answer\n000,a\u2028b\x0cc\n", encoding="utf-8")
    assert read_table(tmp_path / "rows.csv")["answer"] == ["a\u2028b\x0cc"]
    (tmp_path / "rows.jsonl").write_text('{"id": 18446744073709551617, "answer": 7}\n{"id": 1, "answer": 0.50}\n')
    rows = read_table(tmp_path / "rows.jsonl")
    assert rows["answer"] == ["7", "0.50"] and rows["id"] == ["18446744073709551617", "1"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "a,b\n1\n", ":2: expected 2 cells"),
        ("a.jsonl", '{"a": 1}\n{', ":2: expected JSON"),
        ("a.json", "[1]", "row 1 is a int"),
        ("a.csv", "a,b\n", "found none"),
    ],
)
def test_a_damaged_table_is_refused_with_the_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(StudyError, match=said):
        read_table(tmp_path / name)


def test_scores_of_rows_as_scripts_write_them(tmp_path, caplog):
    path = tmp_path / "scores.csv"
    path.write_text("split,question_id,score\nclean,0.0,True\nclean,1.0,False\nclean,2,\nclean,3,-1\n")
    (found,) = read_scores(path, "s")
    assert found.rows == {"clean": {"0": (1.0, 1.0), "1": (0.0, 1.0)}}
    assert "no score" in caplog.text and "failed call" in caplog.text


def test_minus_one_is_a_score_among_negative_ones(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("split,question_id,score\nclean,0,-1\nclean,1,-0.5\n")
    (found,) = read_scores(path, "s")
    assert found.rows["clean"]["0"] == (-1.0, 1.0)
