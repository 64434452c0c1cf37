"""Published suites as data: each file holds what it says, on rows that stand in for its own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import run_module
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.data.suites import load_suite, suite_names
from lmms_eval_emi.errors import StudyError
from lmms_eval_emi.harness.lmms_eval.domain_tasks import domain_hooks, read_choice
from lmms_eval_emi.harness.lmms_eval.twin_tasks import resolve
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.shifts.apply import parse_steps
from lmms_eval_emi.shifts.at_load import load_splits
from lmms_eval_emi.shifts.operators.visual.weather import PICTURES

pytestmark = pytest.mark.usefixtures("task_index")

CLASSES = ("dog", "guitar", "elephant")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.fixture
def resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of frost and a file of synonyms, which vittle needs."""
    folder = tmp_path / "frost"
    folder.mkdir()
    for number, name in enumerate(PICTURES):
        picture(number).resize((160, 120)).save(folder / name)
    (tmp_path / "synonyms.yaml").write_text(
        "red: [crimson]\nblue: [azure]\nlarge: [big]\nsquare: [box]\ncircle: [ring]\n"
    )
    monkeypatch.setenv("LMMS_EVAL_EMI_FROST", str(folder))
    monkeypatch.setenv("LMMS_EVAL_EMI_SYNONYMS", str(tmp_path / "synonyms.yaml"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures as PACS has them: DOMAIN/CLASS/file."""
    for number, domain in enumerate(("photo", "art_painting", "cartoon", "sketch")):
        for place, name in enumerate(CLASSES):
            own = tmp_path / "PACS" / domain / name
            own.mkdir(parents=True)
            for picture_number in range(4):
                picture(100 * number + 10 * place + picture_number).save(own / f"pic_{picture_number}.png")
    return tmp_path / "PACS"


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_says_where_it_is_from_and_what_is_ours(name: str, capsys) -> None:
    suite = load_suite(name)
    assert all((suite.title, suite.source, suite.url, suite.licence, suite.needs, suite.published, suite.ours))
    assert main(["shifts", "suites", name]) == 0
    printed = capsys.readouterr().out
    assert all(label in printed for label in ("source:", "licence:", "needs:", "published:", "our choice:", "use:"))


@pytest.mark.parametrize("name", [name for name in suite_names() if load_suite(name).kind == "twins"])
def test_the_operators_and_tasks_of_twins_are_there(name: str) -> None:
    suite = load_suite(name)
    assert all(parse_steps("visual", one) for one in suite.visual)
    assert all(parse_steps("text", one) for one in suite.textual)
    assert all(resolve(suite.tasks).values())


def test_vittle_has_27_perturbations_of_three_kinds(in_tinyhub: Path, resources: None) -> None:
    study = load_study("vittle")
    kinds = Counter(study.splits[name].modality for name in study.shifts())
    assert kinds == {"visual": 9, "text": 9, "joint": 9}
    rows = load_splits(study)
    clean, german = rows["clean"], rows["german"]
    source = load_splits(load_study("natural"), ["llava_bench_coco_German"])["llava_bench_coco_German"]
    assert german["question"] == source["question"]  # translated already, and not again
    for name in study.shifts():
        shifts = {shift.modality for shift in study.splits[name].shifts}
        own = source if {shift.name for shift in study.splits[name].shifts} & {"German"} else clean
        if "visual" in shifts:
            pairs = zip(rows[name]["image"], own["image"], strict=True)
            assert all((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
        if shifts == {"text"} and name != "german":
            assert rows[name]["question"] != clean["question"]
        assert rows[name]["reference_answer"] == own["reference_answer"]


def test_a_released_set_takes_vittles_place_by_its_path(in_tinyhub: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "released", tmp_path / "suite"
    data.mkdir()
    source = load_splits(load_study("natural"), ["llava_bench_coco_English"])["llava_bench_coco_English"]
    configs = []
    for name in load_study("vittle").splits:
        source.to_parquet(str(data / f"{name}.parquet"))
        configs.append({"split": name, "path": f"{name}.parquet"})
    card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": configs}]})
    (data / "README.md").write_text(f"---\n{card}---\n")
    assert main(["shifts", "suites", "vittle", "--output", str(output), "--data", str(data)]) == 0
    study = load_study(output / "study.yaml")
    with pytest.raises(StudyError, match="--images"):  # as the command that was printed gives it
        load_splits(study)
    assert len(load_splits(study, settings=load_settings(images=data))) == 28
    assert all(split.dataset.shifts_at_load is None for split in study.splits.values())
    assert (output / "tasks" / "groups" / "vittle.yaml").is_file()


def test_llava_med_is_made_of_its_published_files(in_tinyhub: Path, tmp_path: Path, capsys) -> None:
    data, output = tmp_path / "med", tmp_path / "suite"
    (data / "images").mkdir(parents=True)
    lines = []
    for row in range(3):
        picture(row).save(data / "images" / f"PMID_{row}.jpg")
        record = {"question_id": row, "image": f"PMID_{row}.jpg", "text": f"What is seen in {row}?\n<image>"}
        lines.append(json.dumps({**record, "gpt4_answer": f"A lung {row}.", "domain": {"mri": True}}))
    (data / "llava_med_eval_qa50_qa.jsonl").write_text("\n".join(lines) + "\n")
    command = ["shifts", "suites", "llava_med", "--output", str(output), "--data", str(data)]
    assert main(command) == 0
    rows = load_splits(load_study(output / "study.yaml"))
    assert rows["medical"]["question"] == [f"What is seen in {row}?" for row in range(3)]
    assert rows["medical"]["reference_answer"][2] == "A lung 2." and len(rows["everyday"]) == 5
    (data / "images" / "PMID_1.jpg").unlink()
    assert main(command) == 1
    assert "1 of the images" in capsys.readouterr().err
    with pytest.raises(StudyError, match="made first"):
        load_study("llava_med")


def test_domains_of_a_folder_run_in_the_harness_and_are_compared(
    in_tinyhub: Path, tmp_path: Path, folder: Path, capsys
) -> None:
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    command = ["shifts", "suites", "pacs", "--data", str(folder), "--output", str(tasks), "--per-class", "3"]
    assert main(command) == 0 and main(command) == 0
    rows = load_dataset("parquet", data_files=str(tasks / "pictures.parquet"))["train"]
    assert Counter(zip(rows["domain"], rows["label"], strict=True)) == {
        (domain.name, name): 3 for domain in folder.iterdir() for name in CLASSES
    }
    arguments = ["--include_path", str(tasks), "--tasks", "pacs_robustness", "--model", "llava_hf", "--device", "cpu"]
    arguments += ["--model_args", "pretrained=tiny-llava,device_map=cpu", "--output_path", str(out), "--log_samples"]
    done = run_module("lmms_eval", *arguments, cwd=in_tinyhub)
    assert done.returncode == 0 and out.is_dir(), done.stderr[-3000:]
    assert main(["robustness", str(out), "--without-consistency", "--output", str(tmp_path / "r.json")]) == 0
    (task,) = json.loads((tmp_path / "r.json").read_text())["tasks"]
    shifts = task["metrics"][0]["shifts"]
    assert (task["task"], task["metrics"][0]["metric"]) == ("pacs_photo", "accuracy")
    assert [(one["shift"], one["design"], one["rows"]) for one in shifts] == [
        *(("art_painting", "unpaired", 9), ("cartoon", "unpaired", 9), ("sketch", "unpaired", 9)),
    ]


@pytest.mark.parametrize("name", [name for name in suite_names() if load_suite(name).kind == "domains"])
def test_every_suite_of_domains_takes_a_folder(name: str, tmp_path: Path, capsys) -> None:
    suite, tasks = load_suite(name), tmp_path / "tasks"
    for number, domain in enumerate(suite.domains.names):
        for label in CLASSES:
            own = tmp_path / "data" / domain / label
            own.mkdir(parents=True)
            picture(number).save(own / "one.jpg")
    assert main(["shifts", "suites", name, "--data", str(tmp_path / "data"), "--output", str(tasks)]) == 0
    group = yaml.safe_load((tasks / f"{name}_robustness.yaml").read_text())
    assert len(group["task"]) == len(suite.domains.names)
    rows = Dataset.from_parquet(str(tasks / "pictures.parquet"))
    hooks = domain_hooks(name, per_class=50, seed=0, own=True)
    for domain in suite.domains.names:
        docs = hooks["process_docs"](domain)(rows)
        assert sorted(docs["emi_class"]) == sorted(CLASSES)
        assert hooks["process_results"](docs[0], [docs[0]["emi_class"]]) == {"accuracy": 1.0}


def test_domains_of_a_hub_dataset_ask_alike_and_read_replies() -> None:
    features = Features({"image": ImageFeature(), "domain": Value("string"), "label": ClassLabel(names=list(CLASSES))})
    records = [{"image": picture(row), "domain": ("photo", "sketch")[row % 2], "label": row % 3} for row in range(60)]
    rows = Dataset.from_list(records, features=features)
    hooks = domain_hooks("pacs", per_class=5, seed=0, own=False)
    photo, sketch = (hooks["process_docs"](name)(rows) for name in ("photo", "sketch"))
    assert len(photo) == len(sketch) == 15 and set(photo["domain"]) == {"photo"}
    assert hooks["process_docs"]("photo")(rows)["emi_class"] == photo["emi_class"]  # drawn alike each time
    doc = photo[0]
    assert hooks["doc_to_text"](doc) == hooks["doc_to_text"](sketch[0])
    assert all(name in hooks["doc_to_text"](doc) for name in CLASSES)
    right = hooks["doc_to_target"](doc)
    wrong = next(name for name in CLASSES if name != right)
    assert hooks["process_results"](doc, [f"It is a {right.upper()}."]) == {"accuracy": 1.0}
    assert hooks["process_results"](doc, [wrong]) == {"accuracy": 0.0}
    with pytest.raises(StudyError, match="found none"):
        hooks["process_docs"]("cartoon")(rows)
    with pytest.raises(StudyError, match="columns domain"):
        hooks["process_docs"]("photo")(rows.remove_columns("domain"))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("dog", "dog"),
        ("The Dog!", "dog"),
        ("alarm_clock", "alarm clock"),
        ("an alarm clock", "alarm clock"),
        ("a dog and a clock", None),
        ("hotdog", None),
        ("", None),
    ],
)
def test_reading_a_choice(reply: str, expected: str | None) -> None:
    assert read_choice(reply, ["dog", "clock", "alarm clock"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pac"], "Did you mean pacs"),
        (["vlcs", "--output", "x"], "--data FOLDER"),
        (["pacs", "--output", "x", "--data", "nothing"], "DOMAIN/CLASS/file"),
        (["llava_med", "--output", "x"], "--data FOLDER"),
        (["llava_med", "--output", "x", "--data", "nothing"], "llava_med_eval_qa50_qa.jsonl"),
        (["--output", "x"], "NAME"),
    ],
)
def test_what_is_missing_is_told(arguments: list[str], message: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shifts", "suites", *arguments]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_suite_of_another_kind_is_no_study_and_no_twins(capsys, tmp_path) -> None:
    with pytest.raises(StudyError, match="kind domains"):
        load_study("pacs")
    assert main(["shifts", "twins", "--suite", "pacs", "--output", str(tmp_path / "x")]) == 1
    assert "kind domains" in capsys.readouterr().err


def test_prefetch_says_what_a_suite_needs(in_tinyhub: Path, capsys) -> None:
    assert main(["tasks", "prefetch", "--study", "natural", "--suite", "pacs", "--suite", "geometry", "--check"]) == 1
    printed = capsys.readouterr().out
    assert "suite pacs needs flwrlabs/pacs from the hub" in printed and "missing: suite pacs" in printed
    assert next(line for line in printed.splitlines() if "suite geometry, task mme" in line).split()[4] == "there"
