"""A package of an extra that is not installed costs its command, with the name of the extra, and nothing else."""

from __future__ import annotations

import sys

import pytest
from tinyhub import ROWS

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import UnavailableError
from lmms_eval_emi.shifts.apply import shift_text
from lmms_eval_emi.shifts.operators import ShiftOptions
from lmms_eval_emi.util.imports import extra


def test_what_is_missing_is_told_with_its_extra() -> None:
    with pytest.raises(UnavailableError, match=r"pip install 'lmms_eval_emi\[judge\]'"), extra("judge"):
        import a_package_that_nobody_has  # noqa: F401


def test_a_module_of_ours_that_is_missing_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"), extra("judge"):
        import lmms_eval_emi.nowhere  # noqa: F401


def test_a_sentence_is_rewritten_with_the_extra_alone(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    options = ShiftOptions(endpoint="http://127.0.0.1:1/v1", model="m")
    with pytest.raises(UnavailableError, match=r"lmms_eval_emi\[shifts\]"):
        shift_text("What colour is the suitcase?", "formal", None, options=options)


def test_results_are_scored_and_compared_without_any_extra(in_tinyhub, tmp_path, monkeypatch, capsys) -> None:
    answers = tmp_path / "answers"
    for split in load_study("natural").splits:
        rows = [(row, "", f"{split} {row}") for row in range(ROWS)]
        write_response_file(answers / f"{split}.jsonl", rows, "m")
    for name in ("jinja2", "matplotlib", "openai", "nltk", "cv2", "ray", "argcomplete"):
        monkeypatch.setitem(sys.modules, name, None)
    results = str(tmp_path / "r.json")
    assert main(["score", "natural", str(answers), "--output", results]) == 0
    assert main(["compare", results, "--power", "0.01"]) == 0
    assert main(["report", results, "--format", "md"]) == 0
    assert main(["report", results, "--output", str(tmp_path / "r.html")]) == 1
    assert "pip install 'lmms_eval_emi[report]'" in capsys.readouterr().err
