"""Studies of one's own, scored from any answers and run in the harness; and what a harness run logged."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tinyhub as builder
import yaml
from conftest import lmms_eval, numbers, only, strict_json

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import load_study, parse_study
from lmms_eval_emi.errors import StudyError
from lmms_eval_emi.estimators import load_estimator
from lmms_eval_emi.shifts.at_load import load_splits

ROWS = 6


@pytest.fixture
def study(in_tinyhub, tmp_path):
    """Three splits in three kinds of place: a parquet file, a folder with a split of another name, a JSON file."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(
        {"key": Value("string"), "picture": ImageFeature(), "prompt": Value("string"), "gold": Value("string")}
    )
    rng = np.random.default_rng(0)
    for name in ("clean", "blurred", "typos"):
        records = [
            {
                "key": f"k{row}",
                "picture": builder.picture(rng),
                "prompt": builder.sentence(rng, 5),
                "gold": builder.sentence(rng, 7),
            }
            for row in range(ROWS)
        ]
        dataset = Dataset.from_list(records, features=features)
        if name == "blurred":
            (tmp_path / "data" / "blurred" / "data").mkdir(parents=True)
            dataset.to_parquet(tmp_path / "data" / "blurred" / "data" / "test-00000-of-00001.parquet")
        else:
            (tmp_path / "data").mkdir(exist_ok=True)
            dataset.to_parquet(tmp_path / "data" / f"{name}.parquet")
        write_response_file(
            tmp_path / "answers" / f"{name}.jsonl",
            [(f"k{row}", "", builder.sentence(rng, 6)) for row in range(ROWS)],
            "mine",
        )
    content = {
        "name": "My-Study",
        "id_split": "clean",
        "dataset": {
            "path": "data/clean.parquet",
            "columns": {"id": "key", "image": "picture", "question": "prompt", "reference": "gold"},
        },
        "splits": {
            "clean": {"responses": "answers/clean.jsonl"},
            "blurred": {
                "shifts": [{"modality": "visual", "name": "blur", "severity": 2}],
                "dataset": {"path": "data/blurred", "split": "test"},
                "responses": "answers/blurred.jsonl",
            },
            "typos": {
                "shifts": [{"modality": "text", "name": "typos"}],
                "dataset": {"path": "data/typos.parquet"},
                "responses": "answers/typos.jsonl",
            },
        },
    }
    path = tmp_path / "my_study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_defaults_are_filled_in(study):
    loaded = load_study(study)
    assert (loaded.title, loaded.group, loaded.task_name("blurred")) == ("My-Study", "my_study", "my_study_blurred")
    assert [split.modality for split in loaded.splits.values()] == ["id", "visual", "text"]
    assert loaded.split("typos").dataset.columns.question == "prompt"
    assert {name: len(rows) for name, rows in load_splits(loaded).items()} == dict.fromkeys(loaded.splits, ROWS)


def test_a_study_that_names_its_answers(study, tmp_path):
    output = tmp_path / "out.json"
    assert main(["score", "--study", str(study), "--output", str(output)]) == 0
    results = strict_json(output)
    assert (results["shift"], results["model"]) == ("My-Study", "mine")
    assert set(results["splits"]["blurred"]) >= {"emi", "emid", "emid_bound"}
    assert (
        main(
            [
                "score",
                "--study",
                str(study),
                "--responses",
                str(tmp_path / "answers"),
                "--output",
                str(tmp_path / "again.json"),
            ]
        )
        == 0
    )
    again = strict_json(tmp_path / "again.json")
    assert {key: value for key, value in again.items() if key != "rows"} == {
        key: value for key, value in results.items() if key != "rows"
    }


def test_a_study_is_named_in_its_place_or_by_its_option(in_tinyhub, tmp_path):
    answers = str(tmp_path / "answers")
    for name in load_study("synthetic").splits:
        write_response_file(
            tmp_path / "answers" / f"{name}.jsonl", [(row, "", f"text {row}") for row in range(builder.ROWS)], "m"
        )
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert main(["score", "--study", "synthetic", "--responses", answers, "--output", str(first)]) == 0
    assert main(["score", "synthetic", answers, "--output", str(second)]) == 0
    one, two = strict_json(first), strict_json(second)
    assert one.pop("rows")["sha256"] == two.pop("rows")["sha256"] and one == two


def test_text_alone(study, tmp_path):
    content = yaml.safe_load(study.read_text())
    content["dataset"]["columns"]["image"] = None
    del content["splits"]["blurred"]
    study.write_text(yaml.safe_dump(content))
    output = tmp_path / "out.json"
    assert main(["score", "--study", str(study), "--output", str(output)]) == 0
    results = strict_json(output)
    assert results["splits"]["typos"]["jsd_v"] == 0 and results["splits"]["typos"]["jsd_t"] > 0
    assert "encoders:text-only+" in results["signature"]
    mine = tmp_path / "mine.safetensors"
    assert (
        main(
            ["estimators", "train", "--study", str(study), "--output", str(mine), "--iterations", "5", "--hidden", "4"]
        )
        == 0
    )
    assert load_estimator(mine).card["encoders"]["vision"] == "text-only"
    assert main(["score", "--study", str(study), "--estimator", str(mine)]) == 0
    content["dataset"]["columns"]["image"] = "picture"
    study.write_text(yaml.safe_dump(content))
    assert main(["score", "--study", str(study), "--estimator", str(mine)]) == 1, "it is refused to inputs with images"


def test_rows_without_an_image(study, in_tinyhub, tmp_path, capsys):
    """A column of no images is text alone; a split with some is neither, and says so."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(
        {"key": Value("string"), "picture": ImageFeature(), "prompt": Value("string"), "gold": Value("string")}
    )
    for name, images in (("clean", [None] * ROWS), ("typos", [None] * ROWS), ("blurred", [None] * ROWS)):
        rows = [
            {"key": f"k{row}", "picture": image, "prompt": f"what is {row} {name}", "gold": "a star"}
            for row, image in enumerate(images)
        ]
        target = (
            tmp_path / "data" / "blurred" / "data" / "test-00000-of-00001.parquet"
            if name == "blurred"
            else tmp_path / "data" / f"{name}.parquet"
        )
        Dataset.from_list(rows, features=features).to_parquet(target)
    output = tmp_path / "out.json"
    assert main(["score", "--study", str(study), "--output", str(output)]) == 0
    assert "encoders:text-only+" in strict_json(output)["signature"]
    rows[2]["picture"] = builder.picture(np.random.default_rng(0))
    Dataset.from_list(rows, features=features).to_parquet(target)
    assert main(["score", "--study", str(study)]) == 1
    message = capsys.readouterr().err
    assert "17 of 18 rows cannot be embedded" in message and "row k0: it has no image" in message


def test_a_folder_that_changed_is_read_anew(study, tmp_path):
    """The cache of datasets would answer with the old rows: its key knows neither place nor content."""
    from datasets import Dataset, load_dataset

    load_dataset(str(tmp_path / "data" / "blurred"))  # as a harness does, into the cache of datasets itself
    before = load_splits(load_study(study), ["blurred"])["blurred"]
    path = tmp_path / "data" / "blurred" / "data" / "test-00000-of-00001.parquet"
    Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "c")).select([0, 1]).to_parquet(path)
    after = load_splits(load_study(study), ["blurred"])["blurred"]
    assert (len(before), len(after)) == (ROWS, 2)


def test_a_folder_that_datasets_saved_has_the_rows_that_were_saved(study, tmp_path):
    """Of one dataset or of several; read as any other folder, its files would be taken for rows."""
    from datasets import DatasetDict

    folder = tmp_path / "data" / "blurred"
    rows = load_splits(load_study(study), ["blurred"])["blurred"]
    expected = rows.to_dict()
    for saved in (DatasetDict({"test": rows, "other": rows.select([0])}), rows):
        shutil.rmtree(folder)
        saved.save_to_disk(str(folder))
        assert load_splits(load_study(study), ["blurred"])["blurred"].to_dict() == expected


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("id_split: clean", "id_splt: clean", 2, "id_splt: unknown key. Did you mean id_split"),
        ("severity: 2", "severty: 2", None, "unknown key. Did you mean severity"),
        ("severity: 2", "severity: two", None, "severity: Input should be a valid integer"),
        ("split: test", "spilt: test", None, "unknown key. Did you mean split"),
        ("name: My-Study", "name: My-Study\nname: Other", 2, "name: is in line 1 already"),
        ("modality: text", "modality: audio", None, "Input should be 'visual' or 'text'"),
    ],
)
def test_what_is_wrong_in_a_file_and_in_which_line(study, old, new, line, message):
    text = study.read_text()
    assert old in text
    text = text.replace(old, new)
    expected = line or next(
        number for number, content in enumerate(text.splitlines(), 1) if new.splitlines()[-1] in content
    )
    with pytest.raises(StudyError, match=f"line {expected}: .*{message}"):
        parse_study(text, "s.yaml")


def test_two_splits_of_one_task_name():
    with pytest.raises(StudyError, match="several splits have the task name a_b"):
        parse_study(
            "name: x\nid_split: a.b\ndataset: {path: d}\nsplits:\n  a.b: {}\n  a_b: {shifts: [{modality: text, name: t}]}\n",
            "s.yaml",
        )


def test_places_that_are_not_there(study, tmp_path, capsys):
    content = yaml.safe_load(study.read_text())
    content["splits"]["typos"]["dataset"]["path"] = "data/nothing.parquet"
    study.write_text(yaml.safe_dump(content))
    assert main(["score", "--study", str(study)]) == 1
    assert "The dataset 'data/nothing.parquet' of the study My-Study cannot be read" in capsys.readouterr().err
    content["splits"]["typos"]["dataset"] = {"path": "data/blurred", "split": "validation"}
    study.write_text(yaml.safe_dump(content))
    assert main(["score", "--study", str(study)]) == 1
    assert "expected the split validation, which is missing; it has test" in capsys.readouterr().err
    content["splits"]["typos"]["dataset"] = {"path": "data/typos.parquet", "columns": {"question": "nope"}}
    study.write_text(yaml.safe_dump(content))
    assert main(["score", "--study", str(study)]) == 1
    assert "expected the columns nope, which are missing; it has key, picture, prompt, gold" in capsys.readouterr().err
    assert main(["score", "--study", "natural"]) == 1
    assert "expected a folder with the responses of natural" in capsys.readouterr().err


def test_tasks_of_a_study_run_in_the_harness(study, in_tinyhub, tmp_path, capsys):
    """And what the run logged gives, when scored again, the figures that the run gave. One dataset is of save_to_disk."""
    from datasets import DatasetDict

    tasks, out = tmp_path / "tasks", tmp_path / "out"
    folder = tmp_path / "data" / "blurred"
    rows = load_splits(load_study(study), ["blurred"])["blurred"]
    shutil.rmtree(folder)
    rows.save_to_disk(str(folder))
    assert main(["tasks", "write", str(study), str(tasks)]) == 1
    assert "the folder holds one Dataset. Save it as a DatasetDict" in capsys.readouterr().err
    shutil.rmtree(folder)
    DatasetDict({"other": rows.select([0]), "test": rows}).save_to_disk(str(folder))
    assert main(["tasks", "write", str(study), str(tasks)]) == 0
    assert f"lmms-eval --include_path {tasks} --tasks my_study" in capsys.readouterr().out
    done = lmms_eval(in_tinyhub, "my_study", "--include_path", str(tasks), "--output_path", str(out), "--log_samples")
    assert done.returncode == 0, done.stderr[-2000:]
    figures = strict_json(only(out, "*_emi_My-Study.json"))["splits"]
    assert list(figures) == ["clean", "blurred", "typos"] and "emid_bound" in figures["typos"]
    again = tmp_path / "again.json"
    assert main(["score", "--study", str(study), "--responses", str(out), "--output", str(again)]) == 0
    for name, expected in figures.items():
        assert numbers(strict_json(again)["splits"][name]) == pytest.approx(numbers(expected), abs=1e-9)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_tasks_of_a_study_whose_rows_name_files_of_images(in_tinyhub, tmp_path, suffix):
    """Paths are relative to the dataset's file or the study's, wherever the command is started."""
    import csv

    folder = tmp_path / "study"
    (folder / "rows" / "images").mkdir(parents=True)
    (folder / "beside").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for row in range(4):
        path = f"images/{row}.png" if row % 2 else f"beside/{row}.png"
        builder.picture(rng).save(folder / ("rows" if row % 2 else ".") / path)
        rows.append({"question_id": row, "image": path, "question": "is it red?", "reference_answer": f"a star {row}"})
    for name in ("clean", "other"):
        with (folder / "rows" / f"{name}.{suffix}").open("w", newline="") as file:
            if suffix == "jsonl":
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    study = folder / "study.yaml"
    study.write_text(
        yaml.safe_dump(
            {
                "name": "paths",
                "id_split": "clean",
                "splits": {
                    "clean": {"dataset": {"path": f"rows/clean.{suffix}"}},
                    "other": {
                        "dataset": {"path": f"rows/other.{suffix}"},
                        "shifts": [{"modality": "text", "name": "t"}],
                    },
                },
            }
        )
    )
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    assert main(["tasks", "write", str(study), str(tasks)]) == 0
    done = lmms_eval(in_tinyhub, "paths", "--include_path", str(tasks), "--output_path", str(out), "--log_samples")
    assert done.returncode == 0, done.stderr[-2000:]
    scores = strict_json(only(out, "*_emi_paths.json"))["splits"]
    assert [split["n"] for split in scores.values()] == [4, 4]
    (folder / "rows" / "images" / "1.png").unlink()
    done = lmms_eval(in_tinyhub, "paths", "--include_path", str(tasks), "--output_path", str(tmp_path / "again"))
    assert done.returncode != 0
    assert f"images/1.png is not there; looked in {folder / 'rows'}" in done.stderr + done.stdout


def test_task_files_do_not_replace_what_is_not_theirs(study, tmp_path, capsys):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "thesis.txt").write_text("")
    assert main(["tasks", "write", str(study), str(tmp_path / "tasks")]) == 1
    assert "holds thesis.txt" in capsys.readouterr().err


# What a harness run logged.


@pytest.fixture(scope="module")
def logged(tinyhub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logged")
    tasks = "llavabench_shift_synthetic_clean,llavabench_shift_synthetic_frost_1"
    done = lmms_eval(tinyhub, tasks, "--output_path", str(folder / "scored"), "--log_samples")
    assert done.returncode == 0, done.stderr[-2000:]
    done = lmms_eval(tinyhub, tasks, "--output_path", str(folder / "predicted"), "--predict_only", processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("kind", ["scored", "predicted"])
def test_logged_samples_give_the_figures_of_the_run(logged, in_tinyhub, tmp_path, kind):
    output = tmp_path / "out.json"
    assert (
        main(
            [
                "score",
                "--study",
                "synthetic",
                "--responses",
                str(logged / kind),
                "--output",
                str(output),
                "--allow-missing",
            ]
        )
        == 0
    )
    results, expected = strict_json(output), strict_json(only(logged / "scored", "*_emi_synthetic.json"))["splits"]
    assert set(results["splits"]) == set(expected) == {"llava_bench_coco", "llava_bench_coco_frost_1"}
    for name, figures in expected.items():
        assert numbers(results["splits"][name]) == pytest.approx(numbers(figures), abs=1e-9)


def test_several_models_and_estimators_side_by_side(logged, in_tinyhub, tmp_path, capsys):
    from lmms_eval_emi.estimators import CLUB

    shutil.copytree(logged / "scored" / "tiny-llava", tmp_path / "runs" / "model-a")
    shutil.copytree(logged / "scored" / "tiny-llava", tmp_path / "runs" / "model-b")
    for path in (tmp_path / "runs" / "model-b").glob("*_samples_*frost_1.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**record, "filtered_resps": "red"}) + "\n" for record in records))
    CLUB(builder.DIMENSION, builder.DIMENSION, 4).save(tmp_path / "other.safetensors")
    output = tmp_path / "out.json"
    arguments = [
        "--study",
        "synthetic",
        "--responses",
        str(tmp_path / "runs"),
        "--allow-missing",
        "--output",
        str(output),
    ]
    assert main(["score", *arguments]) == 1
    assert "responses of several models (model-a, model-b)" in capsys.readouterr().err
    assert main(["score", *arguments, "--only-model", "all"]) == 0
    printed = capsys.readouterr().out
    results = strict_json(output)["results"]
    assert [result["model"] for result in results] == ["model-a", "model-b"]
    assert results[0]["splits"]["llava_bench_coco_frost_1"] != results[1]["splits"]["llava_bench_coco_frost_1"]
    assert results[0]["splits"]["llava_bench_coco"] == results[1]["splits"]["llava_bench_coco"]
    assert "model-a" in printed and "model-b" in printed
    estimators = ["--estimator", "tiny.safetensors", "--estimator", str(tmp_path / "other.safetensors")]
    assert main(["score", *arguments, "--overwrite", "--only-model", "model-b", *estimators]) == 0
    results = strict_json(output)["results"]
    assert [(result["model"], result["settings"]["estimator"].split("@")[0]) for result in results] == [
        ("model-b", "tiny"),
        ("model-b", "other"),
    ]


def test_a_model_that_was_not_run(logged, in_tinyhub, capsys):
    assert main(["score", "--study", "synthetic", "--responses", str(logged / "scored"), "--only-model", "tiny"]) == 1
    assert "expected a model that is there, got tiny" in capsys.readouterr().err


def test_the_latest_run_of_a_task_counts(logged, in_tinyhub, tmp_path, caplog):
    folder = tmp_path / "tiny-llava"
    shutil.copytree(logged / "scored" / "tiny-llava", folder)
    for path in list(folder.glob("*_samples_*.jsonl")):
        earlier = path.with_name("20000101_000000_samples_" + path.name.split("_samples_")[1])
        earlier.write_text(path.read_text().replace('"filtered_resps": "', '"filtered_resps": "old '))
    from lmms_eval_emi.data.responses.lmms_eval import find_models

    (model,) = find_models(tmp_path, load_study("synthetic"))
    assert model.model == "tiny-llava" and not any(
        path.name.startswith("2000") for path in (own.path for own in model.splits.values())
    )


def test_a_damaged_log(logged, in_tinyhub, tmp_path, capsys):
    folder = tmp_path / "tiny-llava"
    shutil.copytree(logged / "scored" / "tiny-llava", folder)
    path = next(folder.glob("*_samples_*frost_1.jsonl"))
    lines = path.read_text().splitlines()
    other = json.dumps({**json.loads(lines[1]), "filtered_resps": ["another"]})
    path.write_text("\n".join([*lines[:2], other, lines[1], lines[3][:40]]))
    arguments = ["--study", "synthetic", "--responses", str(tmp_path), "--split", "llava_bench_coco_frost_1"]
    assert main(["score", *arguments]) == 1
    message = capsys.readouterr().err
    assert ":3: doc_id 1 is in line 2 already" in message and ":5: not a line of JSON" in message
    assert main(["score", *arguments, "--allow-missing"]) == 0
