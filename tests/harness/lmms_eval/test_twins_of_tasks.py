"""Twins of built-in tasks of every kind, on rows that stand in for theirs: what the model is shown changes, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import run_module
from datasets import Dataset, Features, List, NamedSplit, Value
from datasets import Image as ImageFeature
from PIL import Image

from lmms_eval_emi.cli import main
from lmms_eval_emi.errors import ShiftError, StudyError
from lmms_eval_emi.harness.lmms_eval.twin_tasks import prompt_columns, prompt_of, resolve, twin_of
from lmms_eval_emi.harness.lmms_eval.write_twins import TwinOptions, preview, twin_files
from lmms_eval_emi.shifts.apply import Recipe, parse_steps
from lmms_eval_emi.shifts.twins import IMAGE_COLUMN, IMAGE_SUFFIX, split_question

pytestmark = pytest.mark.usefixtures("task_index")

TEXT, NUMBER, PICTURE = Value("string"), Value("int64"), ImageFeature()
QUESTION = "Which colour has the large wooden building behind the two people near the river?"
ROWS = 4


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Kind:
    """A task with a row of its kind; ``texts`` and ``images`` are the columns that a twin is to shift."""

    task: str
    row: dict[str, Any]
    texts: list[str]
    images: list[str]
    stays: str = ""  # a part of the prompt that stays as it is
    features: dict[str, Any] = field(default_factory=dict)


KINDS = [
    Kind(
        "mmbench_en_dev",
        {
            "index": 1,
            "question": QUESTION,
            "hint": "A traveller wrote down what was seen that day.",
            "answer": "A",
            "A": "red paint",
            "B": "green paint",
            "C": "blue paint",
            "D": "nan",
            "category": "attribute",
            "source": "x",
            "L2-category": "perception",
            "split": "dev",
            "image": "picture",
        },
        ["question", "hint"],
        ["image"],
        "A. red paint",
    ),
    Kind(
        "mmmu_val",
        {
            "id": "validation_Art_1",
            "question": f"<image 1> {QUESTION}",
            "options": "['red paint', 'green paint']",
            "answer": "A",
            "question_type": "multiple-choice",
            "image_1": "picture",
            "image_2": None,
        },
        ["question"],
        ["image_1"],
        "<image 1>",
        {"image_2": PICTURE},
    ),
    Kind(
        "ai2d",
        {"question": QUESTION, "options": ["red paint", "green paint"], "answer": "0", "image": "picture"},
        ["question"],
        ["image"],
        "red paint",
    ),
    Kind(
        "scienceqa_img",
        {
            "image": "picture",
            "question": QUESTION,
            "choices": ["red", "green"],
            "answer": 0,
            "lecture": "",
            "solution": "",
            "hint": "A traveller wrote down what was seen that day.",
        },
        ["question", "hint"],
        ["image"],
        "A. red",
    ),
    Kind(
        "mmstar",
        {
            "index": 1,
            "question": f"{QUESTION}\nOptions: A: red paint, B: green paint",
            "image": "picture",
            "answer": "A",
            "category": "math",
            "l2_category": "geometry",
        },
        ["question"],
        ["image"],
        "Options: A: red paint, B: green paint",
    ),
    Kind(
        "seedbench",
        {
            "answer": "A",
            "choice_a": "red paint",
            "choice_b": "green",
            "choice_c": "blue",
            "choice_d": "none",
            "data_id": "1",
            "data_type": "image",
            "question": QUESTION,
            "question_id": "1",
            "image": ["picture"],
        },
        ["question"],
        ["image"],
        "red paint",
        {"image": List(PICTURE)},
    ),
    Kind(
        "mme",
        {
            "question_id": "color/1.png",
            "image": "picture",
            "answer": "Yes",
            "category": "color",
            "question": "Is the large wooden building painted in red? Please answer yes or no.",
        },
        ["question"],
        ["image"],
        "\nAnswer the question using a single word or phrase.",
    ),
    Kind(
        "pope",
        {
            "id": "1",
            "question_id": "1",
            "question": "Is there a wooden snowboard in the image?",
            "answer": "yes",
            "image_source": "x",
            "image": "picture",
            "category": "random",
        },
        ["question"],
        ["image"],
        "Answer the question using a single word or phrase.",
    ),
    Kind(
        "ocrbench",
        {
            "dataset": "IIIT5K",
            "question": "what is written near the large wooden building?",
            "answer": ["CENTRE"],
            "question_type": "Regular Text Recognition",
            "image": "picture",
        },
        ["question"],
        ["image"],
    ),
    Kind(
        "textvqa_val",
        {
            "question_id": 1,
            "question": QUESTION,
            "image": "picture",
            "answers": ["nokia"] * 10,
            "ocr_tokens": ["nokia"],
        },
        ["question"],
        ["image"],
    ),
    Kind(
        "docvqa_val",
        {"questionId": "1", "question": QUESTION, "image": "picture", "docId": 1, "answers": ["0.28"]},
        ["question"],
        ["image"],
    ),
    Kind(
        "chartqa",
        {"type": "human_test", "question": QUESTION, "answer": "14", "image": "picture"},
        ["question"],
        ["image"],
    ),
    Kind(
        "coco2017_cap_val",
        {
            "question_id": "1.jpg",
            "image": "picture",
            "question": "Observe the image and find a caption for it.",
            "answer": ["a man on a bike"],
            "id": 1,
        },
        [],
        ["image"],
    ),
    Kind(
        "flickr30k_test",
        {"image": "picture", "caption": ["a man on a bike"], "sentids": ["1"], "img_id": "1", "filename": "a.jpg"},
        [],
        ["image"],
    ),
    Kind(
        "realworldqa",
        {
            "image": "picture",
            "answer": "A",
            "image_path": "",
            "question": f"{QUESTION}\n\nA. red\nB. green\nPlease answer directly with only the letter.",
        },
        ["question"],
        ["image"],
        "A. red\nB. green\nPlease answer directly with only the letter.",
    ),
    Kind(
        "naturalbench",
        {
            "Index": 1,
            "Image": "picture",
            "Question": "Is the large building red?",
            "Answer": "Yes",
            "Question_Type": "yes_no",
        },
        ["Question"],
        ["Image"],
    ),
    Kind(
        "blink_counting",
        {
            "idx": "1",
            "question": QUESTION,
            "choices": ["0", "3"],
            "answer": "(B)",
            "image_1": "picture",
            "image_2": None,
            "prompt": f"{QUESTION} Select from the following choices.\n(A) 0\n(B) 3",
        },
        ["prompt"],
        ["image_1"],
        "Select from the following choices.\n(A) 0\n(B) 3",
        {"image_2": PICTURE},
    ),
    Kind(
        "mmlu_anatomy", {"question": QUESTION, "choices": ["a", "b", "c", "d"], "answer": 0}, ["question"], [], "A. a"
    ),
    Kind(
        "hellaswag",
        {
            "ind": 1,
            "activity_label": "Roof removal",
            "ctx_a": "A man sits on a roof with his neighbours.",
            "ctx_b": "he",
            "ctx": "A man sits on a roof with his neighbours. he",
            "endings": ["is ripping", "holds", "uses", "pulls"],
            "label": "3",
        },
        ["query"],
        [],
    ),
]


def feature_of(value: Any) -> Any:
    if value == "picture":
        return PICTURE
    if isinstance(value, list):
        return List(TEXT)
    return NUMBER if isinstance(value, int) else TEXT


def rows_of(kind: Kind) -> Dataset:
    """Rows like the kind's, each with a picture of its own but the last, which has the first one's."""
    features = {**{name: feature_of(value) for name, value in kind.row.items()}, **kind.features}

    def filled(value: Any, row: int) -> Any:
        if value == "picture":
            return picture(row % (ROWS - 1))
        return [filled(one, row) for one in value] if isinstance(value, list) else value

    records = [{name: filled(value, row) for name, value in kind.row.items()} for row in range(ROWS)]
    return Dataset.from_list(records, features=Features(features))


@pytest.fixture(scope="module")
def tasks():
    return resolve([kind.task for kind in KINDS])


def texts_alone(rows: Dataset) -> list[dict[str, Any]]:
    pictures = [name for name, one in rows.features.items() if "Image" in str(one)]
    return list(rows.remove_columns(pictures))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.task)
def test_a_textual_twin_changes_the_question_and_no_option(kind: Kind, tasks) -> None:
    (task,) = tasks[kind.task]
    own = task.config.get("process_docs")
    clean = own(rows_of(kind)) if own else rows_of(kind)
    if not kind.texts:
        with pytest.raises(ShiftError, match="no column of its rows is a part of its prompt"):
            prompt_columns(task, clean)
        return
    assert prompt_columns(task, clean) == kind.texts
    shifted = twin_of(str(task.path), "keyboard:5", seed=3)(rows_of(kind))
    for before, after in zip(texts_alone(clean), texts_alone(shifted), strict=True):
        assert {name for name in before if before[name] != after[name]} == set(kind.texts)
        prompts = prompt_of(task, before), prompt_of(task, after)
        assert prompts[0] != prompts[1] and kind.stays in prompts[0] and kind.stays in prompts[1]
        assert "lease answer yes or no" not in prompts[1]  # which mme's prompt takes away, if it is as it was


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.images], ids=lambda kind: kind.task)
def test_a_visual_twin_changes_the_images_and_no_text(kind: Kind, tasks) -> None:
    (task,) = tasks[kind.task]
    clean, shifted = rows_of(kind), twin_of(str(task.path), "rotation:3")(rows_of(kind))
    assert [{k: v for k, v in row.items() if not k.startswith("emi_")} for row in texts_alone(shifted)] == texts_alone(
        clean
    )
    pixels = [
        [np.asarray(one) for name in kind.images for one in (row[name] if isinstance(row[name], list) else [row[name]])]
        for rows in (clean, shifted)
        for row in rows
    ]
    for before, after in zip(pixels[:ROWS], pixels[ROWS:], strict=True):
        assert all((a != b).any() for a, b in zip(before, after, strict=True))
    # What a harness logs of a row tells which rows share an image.
    keys = shifted[IMAGE_COLUMN]
    assert all(key.endswith(IMAGE_SUFFIX) for key in keys)
    assert keys[0] == keys[-1] and len(set(keys)) == ROWS - 1


def test_rows_of_few_shot_examples_stay_as_they_are(tasks) -> None:
    kind = next(one for one in KINDS if one.task == "mmlu_anatomy")
    (task,) = tasks[kind.task]
    hook = twin_of(str(task.path), "keyboard:5")
    for split, changes in (("test", True), ("dev", False)):
        rows = rows_of(kind)
        rows._split = NamedSplit(split)
        assert (hook(rows)[0]["question"] != QUESTION) == changes


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Is it red? Please answer yes or no.", "Is it red?"),
        ("Is it red?\nAnswer with the option's letter.", "Is it red?"),
        ("Which one?\nA. cat\nB. dog", "Which one?"),
        ("Which one?\n(A) cat\n(B) dog", "Which one?"),
        ("Which one?\nOptions: A: cat, B: dog", "Which one?"),
        ("How do I answer the phone?", "How do I answer the phone?"),
        ("Where is vitamin A. found", "Where is vitamin A. found"),
        ("Please answer yes or no.", "Please answer yes or no."),
        ("", ""),
    ],
)
def test_where_a_question_ends(text: str, question: str) -> None:
    found = split_question(text)
    assert found[0] == question and "".join(found) == text


def test_groups_and_tags_become_their_tasks() -> None:
    found = resolve(["mmmu", "blink", "mmlu_flan_n_shot_generative_stem"])
    assert {task.name for task in found["mmmu"]} == {"mmmu_val", "mmmu_test"}
    assert len(found["blink"]) == 14 and all(task.path.is_file() for task in found["blink"])
    assert len(found["mmlu_flan_n_shot_generative_stem"]) > 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mmee", "Did you mean mme"),
        ("physical_conflict", "Python"),
        ("llavabench_shift_natural", "already"),
    ],
)
def test_what_has_no_twin_says_why(name: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        resolve([name])


def test_files_name_their_origin_and_take_no_part_in_tags(tasks) -> None:
    recipes = [Recipe(visual=step) for step in parse_steps("visual", "fog:1,3")]
    files = twin_files({"mmmu_val": tasks["mmmu_val"]}, recipes, TwinOptions(seed=7))
    assert set(files) == {
        *("mmmu_val/utils.py", "mmmu_val/mmmu_val_fog_1.yaml", "mmmu_val/mmmu_val_fog_3.yaml"),
        "mmmu_val_robustness.yaml",
    }
    text = files["mmmu_val/mmmu_val_fog_3.yaml"].replace("!function ", "")
    found = yaml.safe_load(text)
    assert found["metadata"]["emi_twin"] == {"of": "mmmu_val", "visual": {"name": "fog", "level": 3}, "seed": 7}
    assert found["tag"] == []
    group = yaml.safe_load(files["mmmu_val_robustness.yaml"])
    assert group["task"] == ["mmmu_val", "mmmu_val_fog_1", "mmmu_val_fog_3"]


def test_a_folder_of_something_else_is_left_alone(in_tinyhub: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["shifts", "twins", "mme", "--visual", "fog:3", "--output", str(tmp_path)]) == 1
    assert "notes.txt" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_dry_run_shows_one_row_of_each_and_writes_nothing(in_tinyhub: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "twins"
    command = [
        "shifts",
        "twins",
        "mme",
        "--visual",
        "rotation:3",
        "--textual",
        "punctuation:7",
        "--joint",
        "--output",
        str(folder),
    ]
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n  images: image") == 2 and printed.count("\n  texts: question") == 2
    assert "1 tasks, 3 twins" in printed and not folder.exists()


def test_an_operator_that_changes_nothing_is_told(in_tinyhub: Path) -> None:
    (task,) = resolve(["mme"])["mme"]
    (step,) = parse_steps("visual", "rotation:3")
    with pytest.raises(StudyError, match="changes nothing that the model is shown"):
        preview(task, Recipe(textual=parse_steps("text", "punctuation:7")[0]), TwinOptions(question=("category",)))
    assert preview(task, Recipe(visual=step), TwinOptions())


def test_twins_run_in_the_harness_and_are_compared(in_tinyhub: Path, tmp_path: Path, capsys) -> None:
    """The way that the help shows: twins, a run, robustness."""
    folder, out, output = tmp_path / "my_twins", tmp_path / "out", tmp_path / "robustness.json"
    command = [
        "shifts",
        "twins",
        "mme",
        "--visual",
        "rotation:3",
        "--textual",
        "punctuation:7",
        "--joint",
        "--output",
        str(folder),
    ]
    assert main(command) == 0 and main(command) == 0  # written again as it is
    arguments = ["--include_path", str(folder), "--tasks", "mme_robustness", "--model", "llava_hf", "--device", "cpu"]
    arguments += ["--model_args", "pretrained=tiny-llava,device_map=cpu", "--output_path", str(out), "--log_samples"]
    done = run_module("lmms_eval", *arguments, cwd=in_tinyhub)
    assert done.returncode == 0 and out.is_dir(), done.stderr[-3000:]
    capsys.readouterr()
    assert main(["robustness", str(out), "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    (task,) = found["tasks"]
    assert task["task"] == "mme" and set(task["consistency"]) == {
        *("mme_rotation_3", "mme_punctuation_7", "mme_rotation_3_punctuation_7"),
    }
    for metric in task["metrics"]:
        assert [one["shift"] for one in metric["shifts"]] == [
            "rotation 3",
            "rotation 3 + punctuation 7",
            "punctuation 7",
        ]
    # The eight rows have four question ids and eight pictures, which the twins logged.
    first = task["metrics"][0]["shifts"][0]
    assert (first["design"], first["rows"], first["images"]) == ("paired", 8, 8)
    printed = capsys.readouterr().out
    assert "mme_perception_score" in printed or "mme_cognition_score" in printed
