"""The 63 splits as data, and the task files that are written from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lmms_eval_emi.data.study import BUILT_IN, load_study, parse_study
from lmms_eval_emi.errors import StudyError
from lmms_eval_emi.harness.common import SUITE, groups
from lmms_eval_emi.harness.lmms_eval.write_tasks import (
    HEADER,
    package_task_files,
    task_files,
    tasks_folder,
    write_task_files,
)

FAMILIES = {
    "natural": {"id": 1, "visual": 3, "text": 6, "joint": 18},
    "synthetic": {"id": 1, "visual": 6, "text": 4, "joint": 24},
}


@pytest.fixture(scope="module")
def studies():
    return [load_study(name) for name in BUILT_IN]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_have_their_shifts(family):
    study = load_study(family)
    modalities = [split.modality for split in study.splits.values()]
    assert {modality: modalities.count(modality) for modality in FAMILIES[family]} == FAMILIES[family]
    assert len(study.shifts()) == len(study.splits) - 1


def test_names_of_tasks(studies):
    natural, synthetic = studies
    assert natural.task_name("llava_bench_coco_German") == "llavabench_shift_natural_coco_german"
    assert natural.task_name("llava_bench_in_the_wild_hard_Hindi") == "llavabench_shift_natural_wild_hard_hindi"
    assert synthetic.task_name("llava_bench_coco") == "llavabench_shift_synthetic_clean"
    assert synthetic.task_name("llava_bench_coco_sr_7") == "llavabench_shift_synthetic_synonym_7"
    assert (
        synthetic.task_name("llava_bench_coco_frost_3_KeyboardAug_1") == "llavabench_shift_synthetic_frost_3_keyboard_1"
    )


def test_what_shifts_a_split(studies):
    split = studies[1].split("llava_bench_coco_defocus_blur_5_sr_4")
    assert [(shift.modality, shift.name, shift.severity) for shift in split.shifts] == [
        ("visual", "defocus_blur", 5),
        ("text", "synonym", 4),
    ]


def test_only_english_questions_are_asked_as_they_are(studies):
    for name, split in studies[0].splits.items():
        assert bool(split.prompt_suffix) == (not name.endswith("_English"))
    assert not any(split.prompt_suffix for split in studies[1].splits.values())


def test_the_task_files_are_those_of_the_catalogue(studies):
    """Run python -m lmms_eval_emi.harness.lmms_eval.write_tasks after a change of a catalogue."""
    folder = tasks_folder() / SUITE
    present = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not _is_data(path)
    }
    assert present == package_task_files()


def test_writing_replaces_what_is_no_longer_there(tmp_path, studies):
    (tmp_path / "natural").mkdir()
    (tmp_path / "natural" / "gone.yaml").write_text(f"{HEADER}task: gone")
    (tmp_path / "natural" / "mine.yaml").write_text("task: mine")
    assert write_task_files(tmp_path, studies) == len(task_files(studies))
    assert not (tmp_path / "natural" / "gone.yaml").exists() and (tmp_path / "natural" / "mine.yaml").exists()


def _is_data(path):
    """The demo's study and its rows, which lie among the tasks and are not generated from a catalogue."""
    return path.parent.name == "demo" and path.name in {
        "study.yaml",
        "synonyms.yaml",
        "benchmark.parquet",
        "control.parquet",
    }


def test_the_harness_finds_all_tasks_and_groups(studies):
    """After a plain installation, whose entry point adds the folder to the index."""
    from lmms_eval.evaluator import TaskManager

    manager = TaskManager()
    for study in studies:
        assert {study.task_name(name) for name in study.splits} <= set(manager.all_subtasks)
    assert set(groups(studies)) <= set(manager.all_groups)
    assert "mme" in manager.all_subtasks
    without = TaskManager(include_defaults=False, include_path=str(tasks_folder()))
    names = [name for name in without.all_subtasks if name.startswith(SUITE)]
    assert len([name for name in names if not name.startswith(f"{SUITE}_demo")]) == 63
    assert {load_study("demo").task_name(split) for split in load_study("demo").splits} <= set(names)


def test_a_task_of_the_harness_wins_a_clash(tmp_path):
    from lmms_eval.evaluator import TaskManager

    (tmp_path / "mine.yaml").write_text("task: llavabench_shift_synthetic_clean\ndataset_path: mine\n")
    index = TaskManager(include_path=str(tmp_path)).task_index
    assert index["llavabench_shift_synthetic_clean"]["yaml_path"] == str(tmp_path / "mine.yaml")


def test_groups_hold_their_id_split_first(studies):
    for name, members in groups(studies).items():
        if name != SUITE:
            family = name.removeprefix(f"{SUITE}_").split("_")[0]
            assert members[0] == load_study(family).task_name(load_study(family).id_split)
            assert len(set(members)) == len(members)


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda study: study.update(id_split="nothing"),
            "expected the one split without shifts to be id_split 'nothing'",
        ),
        (lambda study: study.update(titel="x"), "titel: unknown key. Did you mean title"),
        (
            lambda study: study["splits"]["llava_bench_coco_sr_4"].update(modality="visual"),
            "the shifts of llava_bench_coco_sr_4 make its modality 'text', not 'visual'",
        ),
        (lambda study: study["dataset"].pop("path"), "dataset.path: missing"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, change, message):
    import lmms_eval_emi.data as package

    study = read(Path(package.__file__).parent / "studies" / "synthetic.yaml")
    change(study)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(study))
    with pytest.raises(StudyError, match=message):
        load_study(path)


def test_neither_a_name_nor_a_study_file(tmp_path):
    with pytest.raises(
        StudyError,
        match="expected 'natural', 'synthetic', 'demo', a suite .* or the path of a study file, got 'unnatural'",
    ):
        load_study("unnatural")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(StudyError, match="broken.yaml:1: not a YAML file"):
        load_study(tmp_path / "broken.yaml")
    with pytest.raises(StudyError, match="Did you mean llava_bench_coco_German"):
        load_study("natural").split("llava_bench_coco_Germn")


# Names, keys and sizes.

PLAIN = "name: x\nid_split: {id}\ndataset: {{path: d}}\nsplits:\n  {id}: {{}}\n  other: {{shifts: [{{modality: text, name: t}}]}}\n"


@pytest.mark.parametrize("name", ["no", "on", "2024", "1e3", "2024-01-01", "0x1f", "null", "~", "true", "1_000"])
def test_a_split_may_be_called_like_a_value_of_yaml(name):
    from lmms_eval_emi.data.study import parse_study

    if name == "~":
        pytest.skip("no plain name")
    study = parse_study(PLAIN.format(id=name if name != "null" else '"null"'), "s.yaml")
    assert study.id_split == name and list(study.splits) == [name, "other"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: x", "name: ..", "the name of a study becomes the name of a folder"),
        ("name: x", "name: a/b", "the name of a study"),
        ("  other:", "  ../../etc/x:", "line 6: .*the name of a split becomes the name of a file"),
        ("  other:", "  .hidden:", "line 6: "),
        ("  other:", "  a..b:", "line 6: "),
        ("  other:", f"  {'x' * 101}:", "line 6: "),
        ("shifts: [{modality: text, name: t}]", "shifts: 5", "line 6: .*tuple"),
        ("modality: text", "modality: [visual]", "line 6: .*'visual' or 'text'"),
        ("name: x", "[1, 2]: 3\nname: x", "not a YAML file|unhashable"),
    ],
)
def test_names_and_keys_that_a_study_may_not_have(old, new, message):
    from lmms_eval_emi.data.study import parse_study

    text = PLAIN.format(id="clean")
    assert old in text
    with pytest.raises(StudyError, match=message):
        parse_study(text.replace(old, new), "s.yaml")


def test_a_key_may_override_that_of_a_yaml_merge_and_none_may_stand_twice():
    from lmms_eval_emi.data.study import parse_study

    common = "name: x\nid_split: clean\ndataset: &d {path: a, split: train}\nsplits:\n  clean: {}\n  other:\n"
    study = parse_study(
        f"{common}    dataset: {{<<: *d, split: test}}\n    shifts: [{{modality: text, name: t}}]\n", "s"
    )
    assert (study.split("other").dataset.path, study.split("other").dataset.split) == ("a", "test")
    with pytest.raises(StudyError, match="line 7: split: is in line 7 already"):
        parse_study(f"{common}    dataset: {{<<: *d, split: test, split: dev}}\n", "s")


def test_aliases_that_stand_for_millions_of_entries_are_refused_at_once():
    from lmms_eval_emi.data.study import parse_study

    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(StudyError, match="aliases stand for more than"):
        parse_study("\n".join(lines), "s.yaml")
    with pytest.raises(StudyError, match="or for themselves"):
        parse_study("a: &a [*a]\n", "s.yaml")
    with pytest.raises(StudyError, match="nested too deeply|aliases|not a YAML"):
        parse_study("a: " + "[" * 3000, "s.yaml")


def test_writing_tasks_replaces_nothing_of_others(tmp_path, capsys):
    from lmms_eval_emi.cli import main

    study = tmp_path / "study.yaml"
    study.write_text(PLAIN.format(id="clean"))
    for name in ("groups/x.yaml", "x/clean.yaml"):
        foreign = tmp_path / "tasks" / name
        foreign.parent.mkdir(parents=True, exist_ok=True)
        foreign.write_text("mine: true\n")
        assert main(["tasks", "write", str(study), str(tmp_path / "tasks")]) == 1
        assert "would be replaced, and is not of this package" in capsys.readouterr().err
        assert foreign.read_text() == "mine: true\n"
        foreign.unlink()
    assert main(["tasks", "write", str(study), str(tmp_path / "tasks")]) == 0
    assert main(["tasks", "write", str(study), str(tmp_path / "tasks")]) == 0
    study.write_text(PLAIN.format(id="clean").replace("name: x", "name: .."))
    assert main(["tasks", "write", str(study), str(tmp_path / "tasks")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.yaml", "tasks"]


def test_loading_rows_leaves_the_bars_of_datasets_as_they_were(tmp_path):
    import json

    import datasets

    from lmms_eval_emi.data.rows import load_source

    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "what?"}) + "\n")
    datasets.enable_progress_bars()
    level = datasets.logging.get_verbosity()
    load_source(str(tmp_path / "rows.jsonl"))
    assert datasets.utils.logging.is_progress_bar_enabled() and datasets.logging.get_verbosity() == level


def test_what_means_average_is_said_and_true():
    natural, synthetic = load_study("natural"), load_study("synthetic")
    wild = [name for name in natural.shifts() if "in_the_wild" in name]
    assert f"{len(wild)} of the {len(natural.shifts())} shifts" in natural.means
    assert f"{len(synthetic.shifts('joint'))} of the {len(synthetic.shifts())} shifts are joint" in synthetic.means


def test_a_control_is_no_shift_and_no_second_id_split():
    text = """
name: mine
id_split: clean
dataset: {path: rows.parquet}
splits:
  clean: {}
  foggy: {shifts: [{modality: visual, name: fog}]}
  fresh: {modality: control, dataset: {path: other.parquet}}
"""
    study = parse_study(text, "mine.yaml")
    assert (study.shifts(), study.controls()) == (["foggy"], ["fresh"])
    with pytest.raises(StudyError, match="make its modality 'visual', not 'control'"):
        parse_study(
            text.replace("modality: control", "modality: control, shifts: [{modality: visual, name: fog}]"), "x"
        )
    with pytest.raises(StudyError, match="expected the one split without shifts"):
        parse_study(text.replace("modality: control", "modality: id"), "x")
