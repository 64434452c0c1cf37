"""Commands that list what there is by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.suites import suite_names
from lmms_eval_emi.estimators import registered_estimators


def test_every_estimator_that_score_takes_is_listed(capsys):
    assert main(["estimators", "list"]) == 0
    listed = {line.split()[0]: line.split()[2] for line in capsys.readouterr().out.splitlines()[2:] if line[0] != " "}
    expected = {name: "yes" if one.is_trained else "no" for name, one in registered_estimators().items()}
    assert listed == expected and {"club-global", "cosine", "reference-r2"} <= set(listed)


def test_every_suite_is_listed_and_described(capsys):
    assert main(["shifts", "suites"]) == 0
    listed = capsys.readouterr().out
    for name in suite_names():
        assert f"\n{name} " in listed
        assert main(["shifts", "suites", name]) == 0
        assert name in capsys.readouterr().out


def test_suites_take_no_output_without_a_name(tmp_path: Path, capsys):
    assert main(["shifts", "suites", "--output", str(tmp_path / "out")]) == 1
    assert "expected the NAME of a suite with --output" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_folder_of_the_tasks_is_printed_alone(capsys):
    assert main(["tasks", "path"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert len(list((folder / "llavabench_shift").rglob("coco_english.yaml"))) == 1


def test_a_study_of_ones_own_has_a_folder_for_lm_eval_alone(capsys):
    assert main(["tasks", "path", "--study", "demo"]) == 1
    assert "expected --harness lm-eval" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["estimators", "list"], ["shifts", "list"], ["tasks", "list"]])
def test_lists_take_nothing_that_they_ignore(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--no-such-option"])
    assert ended.value.code == 2 and "--no-such-option" in capsys.readouterr().err
