"""Suites of shifts of a dataset, through the command line, the harness and score; and shifted twins of tasks."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_module
from PIL import Image

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.shifts import shift_image, shift_text, twin
from lmms_eval_emi.shifts import writer as suite
from lmms_eval_emi.shifts.operators import RefusedError
from lmms_eval_emi.shifts.writer import CHUNK, journal, layout, workers

pytestmark = pytest.mark.usefixtures("task_index")

ARGUMENTS = ("--visual", "defocus_blur:1,3", "gaussian_noise:2", "--textual", "keyboard:3", "--joint", "--name", "Mine")
SPLITS = [
    "clean",
    "defocus_blur_1",
    "defocus_blur_3",
    "gaussian_noise_2",
    "keyboard_3",
    "defocus_blur_1_keyboard_3",
    "defocus_blur_3_keyboard_3",
    "gaussian_noise_2_keyboard_3",
]


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def write_rows(path: Path, rows: list[dict]) -> Path:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    kinds = {"picture": ImageFeature(), "number": Value("int64"), "file_name": Value("string")}
    features = Features({name: kinds.get(name, Value("string")) for name in rows[0]})
    Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def rows_of(count: int) -> list[dict]:
    """Rows of which three share an image, as in llava-bench."""
    images = [encoded(picture(i), "JPEG" if i % 2 else "PNG") for i in range(-(-count // 3))]
    return [
        {
            "qid": f"q{i}",
            "picture": {"bytes": images[i // 3], "path": None},
            "ask": f"What is the colour of the animal number {i} in this photograph?",
            "truth": f"It is brown and white, animal {i}.",
            "file_name": "elsewhere.png",
            "number": i,
        }
        for i in range(count)
    ]


COLUMNS = ("--image-column", "picture", "--question-column", "ask", "--reference-column", "truth")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.parquet", rows_of(CHUNK + 7))


def shift(*arguments: str | Path) -> int:
    return main(["shifts", "apply", *map(str, arguments)])


def load(folder: Path):
    import datasets

    return datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cache" / folder.name))


def test_a_suite_has_a_split_a_shift_and_each_image_once(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dest = tmp_path / "suite"
    assert shift(source, dest, *ARGUMENTS, *COLUMNS, "--processes", "2") == 0
    assert "39 rows under 7 shifts" in capsys.readouterr().out
    loaded = load(dest)
    assert list(loaded) == SPLITS
    originals = rows_of(39)
    for name in SPLITS:
        assert loaded[name].column_names == ["qid", "ask", "truth", "file_name_", "number", "picture"]
        assert loaded[name]["truth"] == [row["truth"] for row in originals] and loaded[name]["number"][4] == 4
        for row in (0, 5, 38):
            found, original = loaded[name][row], originals[row]
            image = Image.open(io.BytesIO(original["picture"]["bytes"]))
            text = original["ask"]
            if "blur" in name or "noise" in name:
                operator, level = name.removesuffix("_keyboard_3").rsplit("_", 1)
                image = shift_image(image, operator, int(level), row_id=original["qid"])
            if name.endswith("keyboard_3"):
                text = shift_text(text, "keyboard", 3, row_id=original["qid"])
            assert found["ask"] == text and np.array_equal(np.asarray(found["picture"]), np.asarray(image))
    stored = {
        variant.name: len([p for p in variant.rglob("*") if p.is_file()]) for variant in (dest / "images").iterdir()
    }
    assert stored == {"clean": 13, "defocus_blur_1": 13, "defocus_blur_3": 13, "gaussian_noise_2": 39}
    assert (dest / "preview.png").stat().st_size > 10_000 and "39 rows" in (dest / "README.md").read_text()
    assert not (dest / "parts").exists() and (dest / "unshifted.jsonl").read_text() == ""


def test_any_number_of_workers_and_any_subset_give_the_same(source: Path, tmp_path: Path) -> None:
    assert shift(source, tmp_path / "one", *ARGUMENTS, *COLUMNS, "--processes", "1", "--limit", "5") == 0
    assert shift(source, tmp_path / "two", *ARGUMENTS, *COLUMNS, "--processes", "2") == 0
    few, all_rows = load(tmp_path / "one"), load(tmp_path / "two")
    for name in SPLITS:
        for row in range(5):
            assert few[name][row]["ask"] == all_rows[name][row]["ask"]
            assert few[name][row]["picture"].tobytes() == all_rows[name][row]["picture"].tobytes()


def test_a_run_that_was_stopped_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    dest = tmp_path / "suite"
    whole, shifted = workers.shift_row, []

    def stopped(row: dict, *more: object) -> dict:
        if row["number"] == CHUNK + 2:
            raise KeyboardInterrupt
        shifted.append(row["number"])
        return whole(row, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "shift_row", stopped)
    assert shift(source, dest, *ARGUMENTS, *COLUMNS, "--processes", "1") == 130
    monkeypatch.setattr(workers, "shift_row", lambda row, *more: shifted.append(row["number"]) or whole(row, *more))
    assert shift(source, dest, *ARGUMENTS, *COLUMNS, "--processes", "1") == 0
    assert f"{CHUNK} of them from an earlier run" in capsys.readouterr().out
    assert sorted(set(shifted)) == list(range(39)) and shifted.count(0) == 1
    assert len(load(dest)["keyboard_3"]) == 39
    assert shift(source, dest, *ARGUMENTS, *COLUMNS) == 0  # complete: nothing is done again
    assert len(shifted) == 39 + 2  # rows 32 and 33 of the chunk that was stopped, twice
    assert shift(source, dest, *ARGUMENTS, *COLUMNS, "--seed", "1") == 1
    assert "another seed: 0, now 1" in capsys.readouterr().err
    assert shift(source, dest, *ARGUMENTS, *COLUMNS, "--seed", "1", "--overwrite", "--processes", "1") == 0
    assert len(shifted) == 41 + 39


@pytest.mark.parametrize(
    "killed_at", ["shift.json", "study.yaml", "preview.png", "README.md", "parts", "unshifted.jsonl"]
)
def test_a_run_that_was_killed_anywhere_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    """Killed while a file was being written, which leaves a temporary file and what was there before."""
    dest = tmp_path / "suite"
    write, assemble = suite.write_atomically, suite.assemble

    class Killed(BaseException):
        pass

    def killed(path: Path, content: str | bytes, **options: bool) -> Path:
        if path.name == killed_at or path.parent.name == killed_at:
            (path.parent / f".{path.name}.x1y2").write_text("half")
            raise Killed
        return write(path, content, **options)

    def killed_in_assembly(*arguments: object) -> None:
        (dest / "unshifted.jsonl").write_text("half")
        raise Killed

    for module in (suite, workers, journal, layout):
        monkeypatch.setattr(module, "write_atomically", killed)
    if killed_at == "unshifted.jsonl":
        monkeypatch.setattr(suite, "assemble", killed_in_assembly)
    arguments = (
        source,
        dest,
        "--visual",
        "contrast:1",
        "--textual",
        "keyboard:1",
        "--name",
        "Mine",
        *COLUMNS,
        "--processes",
        "1",
    )
    with pytest.raises(Killed):
        shift(*arguments)
    for module in (suite, workers, journal, layout):
        monkeypatch.setattr(module, "write_atomically", write)
    monkeypatch.setattr(suite, "assemble", assemble)
    assert shift(*arguments) == 0
    assert len(load(dest)["contrast_1"]) == 39 and not [path for path in dest.iterdir() if path.name.startswith(".")]


def test_an_overwriting_that_was_killed_is_never_taken_for_complete(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "suite"
    arguments = (source, dest, "--visual", "contrast:1", "--name", "Mine", *COLUMNS, "--processes", "1")
    assert shift(*arguments) == 0
    remove = suite.shutil.rmtree

    def killed(path: Path, *more: object, **options: object) -> None:
        remove(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(suite.shutil, "rmtree", killed)
    assert shift(*arguments, "--seed", "3", "--overwrite") == 130
    monkeypatch.setattr(suite.shutil, "rmtree", remove)
    assert shift(*arguments) == 0
    assert len(load(dest)["contrast_1"]) == 39


def test_other_rows_are_not_answered_with_old_ones(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"question": f"What is number {i} here?", "answer": "A cat"} for i in range(4)]
    path, dest = tmp_path / "rows.jsonl", tmp_path / "suite"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert shift(path, dest, "--textual", "char_swap:2", "--processes", "1") == 0
    rows[3]["question"] = "What has changed here?"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert shift(path, dest, "--textual", "char_swap:2", "--processes", "1") == 1
    assert "another content of the rows" in capsys.readouterr().err
    assert shift(path, dest, "--textual", "char_swap:2", "--processes", "1", "--overwrite") == 0
    import datasets

    assert (
        datasets.load_dataset(str(dest), cache_dir=str(tmp_path / "new"))["clean"]["question"][3]
        == "What has changed here?"
    )


def test_two_runs_do_not_write_to_one_folder(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from filelock import FileLock

    dest = tmp_path / "suite"
    dest.mkdir()
    with FileLock(dest / ".lock"):
        assert shift(source, dest, "--visual", "contrast:1", *COLUMNS) == 1
    assert "another run is writing" in capsys.readouterr().err


def test_workers_end_with_their_parent(source: Path, tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys
    import time

    rows = write_rows(tmp_path / "many.parquet", rows_of(40 * CHUNK))
    command = [sys.executable, "-m", "lmms_eval_emi", "shifts", "apply", str(rows), str(tmp_path / "suite"), "--visual", "elastic_transform", "snow", "--name", "Mine", *COLUMNS, "--processes", "2"]  # fmt: skip
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    parts = tmp_path / "suite" / "parts"
    while not (parts.is_dir() and any(parts.glob("*.json"))):
        assert parent.poll() is None
        time.sleep(0.05)
    children = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    for _ in range(200):
        if not any(
            Path(f"/proc/{pid}").exists() and "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
            for pid in workers
        ):
            break
        time.sleep(0.05)
    else:
        pytest.fail("workers outlive their parent")


def test_ids_are_chosen_from_all_rows_whatever_the_limit(tmp_path: Path) -> None:
    rows = [
        {"id": min(100 + i, 103), "row_id": 7, "question": f"What is number {i} doing here?", "answer": "A"}
        for i in range(6)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    for name, limit in (("few", ("--limit", "3")), ("all", ())):
        assert (
            shift(path, tmp_path / name, "--textual", "char_swap:5", "--processes", "1", "--name", "Mine", *limit) == 0
        )
    few, whole = load(tmp_path / "few"), load(tmp_path / "all")
    assert few["char_swap_5"]["question"] == whole["char_swap_5"]["question"][:3]
    assert whole["clean"]["row_id_"] == list(range(6)) and whole["clean"]["row_id"] == [7] * 6


def test_columns_of_awkward_names_and_kinds(tmp_path: Path) -> None:
    rows = [{"file_name": f"f{i}", "file_name_": "x", "when": f"2024-01-0{i + 1} 10:00:00", "question": ["What is it here?", None][i % 2], "answer": "A"} for i in range(4)]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    for column in ("file_name", "when"):
        dest = tmp_path / column
        assert (
            shift(path, dest, "--textual", "char_swap:5", "--processes", "1", "--id-column", column, "--name", "Mine")
            == 0
        )
        loaded = load(dest)["char_swap_5"]
        assert loaded["question"][1] is None and "file_name__" in loaded.column_names


def test_many_splits_are_written_some_at_a_time(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "OPEN_FILES", 2)
    monkeypatch.setattr(layout, "ROWS_OF_A_GROUP", CHUNK)
    assert shift(source, tmp_path / "suite", *ARGUMENTS, *COLUMNS, "--processes", "1") == 0
    loaded = load(tmp_path / "suite")
    assert list(loaded) == SPLITS and {len(rows) for rows in loaded.values()} == {39}


def test_levels_in_other_letters_have_tasks_of_their_own() -> None:
    from lmms_eval_emi.shifts.apply import parse_steps, recipes

    made = recipes([], parse_steps("text", "translation:中文,日本語"), joint=False)
    assert len({recipe.task for recipe in made}) == 3 and all(recipe.task.isascii() for recipe in made)
    with pytest.raises(ShiftError, match="same task name"):
        recipes([], parse_steps("text", "translation:German,german"), joint=False)


def test_rows_that_cannot_be_shifted_are_left_and_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = rows_of(9)
    good = rows[0]["picture"]["bytes"]
    rows[1]["picture"] = {"bytes": b"no image at all", "path": None}
    rows[2]["picture"] = {"bytes": good[: len(good) // 2], "path": None}
    rows[3]["picture"] = None
    rows[4]["picture"] = {"bytes": encoded(Image.new("L", (9000, 3))), "path": None}
    rows[5]["picture"] = {"bytes": encoded(Image.new("CMYK", (5, 1)), "TIFF"), "path": None}
    rows[6]["ask"], rows[7]["ask"], rows[8]["ask"] = "", None, "是什么？"  # type: ignore[assignment]
    source, dest = write_rows(tmp_path / "rows.parquet", rows), tmp_path / "suite"
    assert shift(source, dest, *ARGUMENTS, *COLUMNS, "--processes", "2") == 0
    assert "keyboard_3: 3 rows left as they were" in capsys.readouterr().out
    reasons = [json.loads(line) for line in (dest / "unshifted.jsonl").read_text().splitlines()]
    of_images = {one["id"]: one["reason"] for one in reasons if one["shift"] == "defocus_blur_1"}
    assert set(of_images) == {"q1", "q2", "q3", "q4"}
    assert "no image" in of_images["q3"] and "9000 x 3" in of_images["q4"] and "cannot be read" in of_images["q1"]
    assert {one["id"] for one in reasons if one["shift"] == "keyboard_3"} == {"q6", "q7", "q8"}
    loaded = load(dest)
    for row in (1, 2, 3):
        assert loaded["clean"][row]["picture"] is None and loaded["defocus_blur_1"][row]["picture"] is None
    assert (
        loaded["defocus_blur_1"][4]["picture"].size == (9000, 3)
        and loaded["defocus_blur_1"][5]["picture"].mode == "RGB"
    )
    assert (
        loaded["keyboard_3"][7]["ask"] is None
        and loaded["keyboard_3"][8]["ask"] == "是什么？"
        and "| 4 |" in (dest / "README.md").read_text()
    )


def test_texts_alone_need_no_images(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps({"question": f"What is number {i} here about?", "answer": 3}) for i in range(4))
    )
    assert shift(path, tmp_path / "3 texts-of mine", "--textual", "char_swap:2", "--processes", "1") == 0
    assert (tmp_path / "3 texts-of mine" / "tasks" / "groups" / "suite_3_texts_of_mine_shifts.yaml").is_file()
    (tmp_path / "3 texts-of mine").rename(tmp_path / "texts")
    study = load_study(tmp_path / "texts" / "study.yaml")
    assert study.split("char_swap_2").dataset.columns.image is None and study.split("char_swap_2").modality == "text"
    loaded = load(tmp_path / "texts")
    assert loaded["clean"][1] == {"question": "What is number 1 here about?", "answer": "3", "row_id": 1}
    assert loaded["char_swap_2"][1]["question"] != loaded["clean"][1]["question"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--visual", "defocus_blur:9"), "1 to 5, got 9"),
        (("--visual", "fogg"), "Did you mean fog?"),
        (("--visual", "fog:1", "--joint", *COLUMNS), "only one of the two"),
        ((), "--visual or --textual"),
        (("--visual", "fog:1"), "--question-column"),
        (("--visual", "fog:1", "--question-column", "nothing"), "expected a column nothing"),
        (("--visual", "fog:1", *COLUMNS, "--id-column", "file_name"), "1 in 39 rows"),
        (("--visual", "fog:1", *COLUMNS, "--image-column", "number"), "number holds Value"),
        (("--visual", "fog:1", *COLUMNS, "--name", "mme"), "task or group 'mme' of its own"),
        (("--visual", "fog:1", *COLUMNS, "--name", "llavabench_shift"), "of its own"),
        (("--visual", "fog:1", *COLUMNS, "--name", "a b"), "letters, digits"),
        (("--visual", "fog:1", *COLUMNS, "--name", "Suite"), "another name than DEST's own"),
        (("--visual", "fog:1", *COLUMNS, "--split", "test"), "--split: expected one of"),
        (("--visual", "fog:1", *COLUMNS, "--processes", "0"), "--processes"),
        (("--textual", "formal", *COLUMNS), "--endpoint URL"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_any_work(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple, message: str
) -> None:
    assert shift(source, tmp_path / "suite", *arguments) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "suite").exists()


def test_a_folder_of_other_things_is_not_touched(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "thesis.tex").write_text("years of work")
    assert shift(source, tmp_path / "suite", *ARGUMENTS, *COLUMNS, "--overwrite") == 1
    assert "holds thesis.tex" in capsys.readouterr().err
    assert (tmp_path / "suite" / "thesis.tex").read_text() == "years of work"


def test_sources_are_folders_files_and_saved_datasets(tmp_path: Path) -> None:
    from datasets import load_dataset

    rows = [
        {"id": i, "image": encoded(picture(i)), "question": "What is this animal?", "answer": "A cat"} for i in range(3)
    ]
    (tmp_path / "folder").mkdir()
    for row in rows:
        (tmp_path / "folder" / f"{row['id']}.png").write_bytes(row["image"])  # type: ignore[arg-type]
    lines = [
        json.dumps({"file_name": f"{row['id']}.png", **{k: row[k] for k in ("id", "question", "answer")}})
        for row in rows
    ]
    (tmp_path / "folder" / "metadata.jsonl").write_text("\n".join(lines))
    load_dataset(str(tmp_path / "folder"), cache_dir=str(tmp_path / "cache"))["train"].save_to_disk(tmp_path / "saved")
    (tmp_path / "paths.csv").write_text(
        "id,image,question,answer\n" + "".join(f"{i},folder/{i}.png,What is this animal?,A cat\n" for i in range(3))
    )
    images = []
    for name in ("folder", "saved", "paths.csv"):
        dest = tmp_path / f"suite_of_{name[:5]}"
        assert shift(tmp_path / name, dest, "--visual", "contrast:2", "--processes", "1") == 0
        images.append([image.tobytes() for image in load(dest)["contrast_2"]["image"]])
        assert [int(one) for one in load(dest)["clean"]["id"]] == [0, 1, 2]  # a csv file holds texts
    assert images[0] == images[1] == images[2]


def test_the_suite_runs_in_the_harness_and_in_score(tinyhub: Path, tmp_path: Path) -> None:
    source, dest = write_rows(tmp_path / "rows.parquet", rows_of(6)), tmp_path / "suite"
    assert shift(source, dest, *ARGUMENTS, *COLUMNS, "--processes", "1") == 0
    done = run_module(
        "lmms_eval", "--include_path", str(dest), "--tasks", "mine", "--model", "llava_hf",
        "--model_args", "pretrained=tiny-llava,device_map=cpu", "--device", "cpu", "--gen_kwargs", "max_new_tokens=4",
        "--output_path", str(tmp_path / "out"), "--log_samples",
        cwd=tinyhub, LMMS_EVAL_EMI_ESTIMATOR=str(tinyhub / "tiny.safetensors"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("*_emi_Mine.json")
    run = json.loads(results.read_text())
    assert set(run["splits"]) == set(SPLITS)
    assert run["splits"]["defocus_blur_3_keyboard_3"]["modality"] == "joint"
    (responses,) = (tmp_path / "out").rglob("*_emi_responses/Mine")
    again = run_module(
        "lmms_eval_emi.cli", "score", "--study", str(dest / "study.yaml"), "--responses", str(responses), "--output", str(tmp_path / "again.json"),
        cwd=tinyhub, LMMS_EVAL_EMI_ESTIMATOR=str(tinyhub / "tiny.safetensors"),
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    scored = json.loads((tmp_path / "again.json").read_text())
    for name in SPLITS:
        assert abs(scored["splits"][name]["emi"] - run["splits"][name]["emi"]) < 1e-9


def test_a_twin_of_a_built_in_task_is_three_lines_of_yaml(
    tinyhub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lmms_eval
    from lmms_eval.tasks import TaskManager, get_task_dict

    mme = Path(lmms_eval.__file__).parent / "tasks" / "mme" / "mme.yaml"
    (tmp_path / "twin.yaml").write_text(
        f"include: {mme}\ntask: mme_shifted\nprocess_docs: !function lmms_eval_emi.shifts.twins.pixelate_5_word_swap_2\n"
    )
    done = run_module(
        "lmms_eval", "--include_path", str(tmp_path), "--tasks", "mme,mme_shifted", "--model", "llava_hf",
        "--model_args", "pretrained=tiny-llava,device_map=cpu", "--device", "cpu", "--gen_kwargs", "max_new_tokens=4",
        "--output_path", str(tmp_path / "out"), "--log_samples",
        cwd=tinyhub,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("*_results.json")
    assert {"mme", "mme_shifted"} <= set(json.loads(results.read_text())["results"])
    monkeypatch.chdir(tinyhub)
    tasks = get_task_dict(["mme", "mme_shifted"], TaskManager(include_path=str(tmp_path)))
    docs, shifted = (list(tasks[name].test_docs()) for name in ("mme", "mme_shifted"))
    assert len(docs) == len(shifted) > 1
    for row, (doc, other) in enumerate(zip(docs, shifted, strict=True)):
        ((image,), (same,)) = (tasks["mme"].doc_to_visual(one) for one in (doc, other))
        assert same.tobytes() == shift_image(image, "pixelate", 5, row_id=row).tobytes() != image.tobytes()
        assert other["answer"] == doc["answer"]
    assert any(doc["question"] != other["question"] for doc, other in zip(docs, shifted, strict=True))


def twin_rows():
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    rows = [
        {"question_id": f"r{i}", "image": picture(i), "more": [picture(i), picture(i + 1)], "question": f"What is the animal {i}?", "n": i}
        for i in range(4)
    ]  # fmt: skip
    features = {"question_id": Value("string"), "image": ImageFeature(), "more": List(ImageFeature()), "question": Value("string"), "n": Value("int64")}  # fmt: skip
    return Dataset.from_list(rows, features=Features(features))


def test_a_twin_shifts_what_the_harness_reads_and_writes_nothing() -> None:
    from lmms_eval_emi.shifts import twins

    rows = twin_rows()
    shifted = twins.defocus_blur_2_keyboard_3(rows)
    assert len(shifted) == 4 and shifted[3]["n"] == 3
    assert shifted[1]["image"].tobytes() == shift_image(rows[1]["image"], "defocus_blur", 2, row_id="r1").tobytes()
    assert [one.tobytes() for one in shifted[1]["more"]] == [
        shift_image(one, "defocus_blur", 2, row_id=f"r1/{i}").tobytes() for i, one in enumerate(rows[1]["more"])
    ]
    assert shifted[2]["question"] == shift_text(rows[2]["question"], "keyboard", 3, row_id="r2")
    without = shifted.remove_columns(["image", "more"])  # as the harness reads rows for their texts
    assert without[2]["question"] == shifted[2]["question"] and "image" not in without[2]
    assert shifted.select([2])[0]["question"] == shifted[2]["question"]
    assert not shifted.cache_files


def test_a_twin_takes_columns_seeds_words_and_the_tasks_own_hook(caplog: pytest.LogCaptureFixture) -> None:
    rows = twin_rows()
    hook = twin("gaussian_noise:1", image="image", seed=4, process_docs=lambda dataset: dataset.select([2, 0]))
    shifted = hook(rows)
    assert [row["n"] for row in shifted] == [2, 0]
    assert (
        shifted[0]["image"].tobytes()
        == shift_image(rows[2]["image"], "gaussian_noise", 1, seed=4, row_id="r2").tobytes()
    )
    assert shifted[0]["more"][0].tobytes() == rows[2]["more"][0].tobytes()
    kept = twin("keyboard:7", keep=["What", "animal"])(rows)
    with caplog.at_level("WARNING"):
        assert kept[0]["question"] == rows[0]["question"]
        kept[0]
    assert len([record for record in caplog.records if "left as it is" in record.message]) == 1


def test_a_twin_that_cannot_be_is_explained() -> None:
    from lmms_eval_emi.shifts import twins

    rows = twin_rows()
    with pytest.raises(ShiftError, match="none holds images"):
        twin("fog:1")(rows.remove_columns(["image", "more"]))
    with pytest.raises(ShiftError, match="question='...'"):
        twin("keyboard:1")(rows.rename_column("question", "said"))
    with pytest.raises(ShiftError, match="columns said"):
        twin("keyboard:1", question="said")(rows)
    with pytest.raises(ShiftError, match="at most one|one operator at one level"):
        twin("fog:1", "snow:1")
    with pytest.raises(AttributeError, match="no shift 'fog_9'"):
        _ = twins.fog_9


def test_the_preview_shows_what_is_asked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    picture(0).resize((300, 200)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    assert shift("--preview", "photo.jpg") == 0
    whole = Image.open(tmp_path / "shift_preview.png")
    assert shift("--preview", "photo.jpg", "--visual", "fog", "--textual", "keyboard:1", "--output", "two.png") == 0
    assert Image.open("two.png").height < whole.height / 4 and whole.width > 1200
    assert shift(source, "--preview", "3", *COLUMNS, "--visual", "fog", "--output", "row.png") == 0
    assert Image.open("row.png").height > 100
    for arguments, message in (
        (("--preview", "7"), "SOURCE before it"),
        ((source, "--preview", "99", *COLUMNS), "0 to 38"),
        (("--preview", source), "its image cannot be read"),
    ):
        assert shift(*arguments) == 1
        assert message in capsys.readouterr().err


def test_the_list_names_every_operator(capsys: pytest.CaptureFixture) -> None:
    assert main(["shifts", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("defocus_blur", "frost", "keyboard", "synonym", "translation", "1-5", "1-7"))


def test_an_operator_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package promises to whoever adds one."""
    registry = importlib.import_module("lmms_eval_emi.shifts.operators")
    visual = importlib.import_module("lmms_eval_emi.shifts.operators.visual")
    (tmp_path / "upside_down.py").write_text(
        "from lmms_eval_emi.shifts.operators import visual_operator\n\n"
        "@visual_operator(group='digital', levels=(1, 2))\n"
        "def upside_down(pixels, turns, random):\n    '''Turns.'''\n    return pixels[::-1] if turns == 1 else pixels\n"
    )
    monkeypatch.setattr(visual, "__path__", [*visual.__path__, str(tmp_path)])
    registry.operators.cache_clear()
    assert np.array_equal(np.asarray(shift_image(picture(0), "upside_down", 1)), np.asarray(picture(0))[::-1])
    registry._OPERATORS["visual"].pop("upside_down")
    registry.operators.cache_clear()
    with pytest.raises(ShiftError, match="upside_down"):
        shift_image(picture(0), "upside_down", 1)
    assert issubclass(RefusedError, ValueError)


# Every operator, every way.


@pytest.fixture
def resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for what some operators read: pictures of frost, and synonyms."""
    from lmms_eval_emi.shifts.operators.visual.weather import PICTURES

    (tmp_path / "frost").mkdir()
    for number, name in enumerate(PICTURES):
        picture(number).resize((64, 64)).save(tmp_path / "frost" / name)
    (tmp_path / "synonyms.yaml").write_text("colour: [hue]\nanimal: [beast]\nphotograph: [picture]\n")
    monkeypatch.setenv("LMMS_EVAL_EMI_FROST", str(tmp_path / "frost"))
    monkeypatch.setenv("LMMS_EVAL_EMI_SYNONYMS", str(tmp_path / "synonyms.yaml"))
    return tmp_path


def plain_operators(family: str) -> dict:
    """Operators that need no language model."""
    from lmms_eval_emi.shifts import operators

    return {name: one for name, one in operators(family).items() if one.group != "sentence"}


def test_every_operator_at_every_level_through_the_command_the_twin_and_at_load(resources: Path) -> None:
    from datasets import load_dataset

    from lmms_eval_emi.shifts.at_load import load_splits

    path, dest = write_rows(resources / "rows.parquet", rows_of(3)), resources / "suite"
    visual, textual = plain_operators("visual"), plain_operators("text")
    arguments = (path, dest, "--visual", *visual, "--textual", *textual, "--name", "Mine", *COLUMNS)
    assert shift(*arguments, "--processes", "2") == 0
    loaded = load(dest)
    names = {f"{name}_{level + 1}" for name, one in (visual | textual).items() for level in range(len(one.levels))}
    assert names | {"clean"} == set(loaded) and len(names) == 21 * 5 + len(textual) * 7
    splits = {
        name: {
            "shifts": [
                {
                    "modality": "visual" if name.rsplit("_", 1)[0] in visual else "text",
                    "name": name.rsplit("_", 1)[0],
                    "severity": int(name.rsplit("_", 1)[1]),
                }
            ]
        }
        for name in sorted(names)
    }
    columns = {"id": "qid", "image": "picture", "question": "ask", "reference": "truth"}
    dataset = {
        "path": str(path),
        "columns": columns,
        "shifts_at_load": {"seed": 0, "synonyms": str(resources / "synonyms.yaml")},
    }
    content = {"name": "loaded", "id_split": "clean", "dataset": dataset, "splits": {"clean": {}, **splits}}
    (resources / "study.yaml").write_text(json.dumps(content))
    at_load = load_splits(load_study(resources / "study.yaml"))
    clean = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(resources / "cache"))
    for name in names:
        operator, level = name.rsplit("_", 1)
        twin_of = twin(f"{operator}:{level}", question="ask")(clean)
        for row in range(3):
            expected = loaded[name][row]
            image = np.asarray(expected["picture"].convert("RGB"))
            twin_row = twin_of[row]
            assert at_load[name][row]["ask"] == twin_row["ask"] == expected["ask"], name
            for other in (at_load[name][row]["picture"], twin_row["picture"]):
                assert np.array_equal(np.asarray(other.convert("RGB")), image), name


@pytest.mark.parametrize("specification", ["zoom_blur:1", "zoom_blur"])
def test_one_operator_whose_level_is_a_list_alone(tmp_path: Path, specification: str) -> None:
    source = write_rows(tmp_path / "rows.parquet", rows_of(2))
    assert (
        shift(source, tmp_path / "suite", "--visual", specification, "--name", "Mine", *COLUMNS, "--processes", "1")
        == 0
    )
    assert "zoom_blur_1" in load(tmp_path / "suite")


def test_a_suite_is_not_continued_with_other_pictures_of_frost_or_other_synonyms(
    resources: Path, capsys: pytest.CaptureFixture
) -> None:
    source = write_rows(resources / "rows.parquet", rows_of(2))
    for operator, changed in (("frost", "frost/frost1.png"), ("synonym", "synonyms.yaml")):
        dest = resources / f"suite_of_{operator}"
        kind = "--visual" if operator == "frost" else "--textual"
        arguments = (source, dest, kind, f"{operator}:1", "--name", "Mine", *COLUMNS, "--processes", "1")
        assert shift(*arguments) == 0 and shift(*arguments) == 0
        if operator == "frost":
            picture(99).resize((64, 64)).save(resources / changed)
        else:
            (resources / changed).write_text("colour: [tint]\n")
        assert shift(*arguments) == 1
        assert "holds a suite with another" in capsys.readouterr().err


# Rows name files of their own folder only, and only images are stored.


def test_no_file_of_the_machine_gets_into_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    secret = tmp_path / "secret.png"
    picture(1).save(secret)
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    picture(2).save(data / "images" / "good.png")
    (data / "images" / "notes.txt").write_text("not an image")
    (data / "images" / "link.png").symlink_to(secret)
    paths = ["/etc/passwd", str(secret), "../secret.png", "images/link.png", "images/notes.txt", "images/good.png"]
    rows = [
        {"id": row, "picture": path, "question": "What is the colour of this animal?", "answer": "red"}
        for row, path in enumerate(paths)
    ]
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dest = tmp_path / "suite"
    arguments = (data / "rows.jsonl", dest, "--visual", "contrast:1", "--name", "Mine", "--image-column", "picture")
    assert shift(*arguments, "--processes", "1") == 0
    stored = list((dest / "images").glob("*/*/*"))
    assert len([path for path in stored if path.parts[-3] == "clean"]) == 1 and len(stored) == 2
    assert all(Image.open(path).size == (32, 24) for path in stored)
    reasons = {one["id"]: one["reason"] for one in map(json.loads, (dest / "unshifted.jsonl").read_text().splitlines())}
    assert set(reasons) == {0, 1, 2, 3, 4}
    for row in (0, 1, 2, 3):
        assert "lies outside the folders of its source" in reasons[row] and str(data) in reasons[row]
    assert "cannot be read" in reasons[4]
    content = b"".join(path.read_bytes() for path in dest.rglob("*") if path.is_file())
    assert secret.read_bytes() not in content and b"root:" not in content


def test_a_suite_with_rows_without_an_image_is_scored(in_tinyhub: Path, tmp_path: Path) -> None:
    from lmms_eval_emi.data.responses.llava import write_response_file

    rows = rows_of(8)
    rows[2]["picture"] = None
    rows[5]["picture"] = {"bytes": b"no image", "path": None}
    dest = tmp_path / "suite"
    source = write_rows(tmp_path / "rows.parquet", rows)
    assert shift(source, dest, "--visual", "contrast:1", "--name", "Mine", *COLUMNS, "--processes", "1") == 0
    for split in ("clean", "contrast_1"):
        write_response_file(tmp_path / "r" / f"{split}.jsonl", [(row["qid"], "", "red") for row in rows], "m")
    output = tmp_path / "out.json"
    arguments = [
        "score",
        "--study",
        str(dest / "study.yaml"),
        "--responses",
        str(tmp_path / "r"),
        "--output",
        str(output),
    ]
    assert main(arguments) == 1
    assert main([*arguments, "--allow-missing"]) == 0
    splits = json.loads(output.read_text())["splits"]
    assert [split["n"] for split in splits.values()] == [6, 6] and "emid" in splits["contrast_1"]
