"""The demo as a user runs it, and what it is said to show."""

from __future__ import annotations

import importlib.util
import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_module
from demo import scenes
from PIL import Image

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import StudyError
from lmms_eval_emi.harness.lmms_eval.compat.launch import command_of
from lmms_eval_emi.shifts.at_load import load_splits
from lmms_eval_emi.slices.demo import command as demo

needs_decord = pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="needs the extra demo")


def run_demo(folder: Path, *options: str):
    """Run the demo, where nothing can be fetched."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    result = run_module("lmms_eval_emi.cli", "demo", *options, cwd=folder, **environment)
    assert result.returncode == 0, result.stderr[-3000:]
    result.folder = folder / "emi-demo"  # type: ignore[attr-defined]
    return result


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    """The demo on a tenth of its rows."""
    return run_demo(tmp_path_factory.mktemp("demo"), "--limit", "9")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """The demo as it is, which takes minutes."""
    return run_demo(tmp_path_factory.mktemp("demo"), "--processes", "2")


def figures(folder: Path) -> dict:
    (path,) = folder.rglob("*_emi_demo.json")
    return json.loads(path.read_text())


@needs_decord
def test_the_demo_runs_the_harness_and_says_how(done) -> None:
    command = done.stdout.split("\n\n")[0]
    assert "lmms-eval --model" in command and "--tasks llavabench_shift_demo" in command
    assert "--model llava_hf" in command and "--log_samples" in command
    assert "rank correlation with the loss of accuracy" in done.stdout
    assert "dcor give EMID another sign in" in done.stdout
    assert {split["n"] for split in figures(done.folder)["splits"].values()} == {9}
    assert "report: emi-demo/report.html\nNow your model: lmms-eval --tasks" in done.stdout
    table = (done.folder / "lmms-eval.log").read_text()
    assert "Pearson r" in table and "demo@" in table, "what lmms-eval prints is kept in a file"
    page = (done.folder / "report.html").read_text()
    assert "defocus_blur" in page and "data:image" in page
    assert len(list(done.folder.rglob("*_samples_llavabench_shift_demo_*.jsonl"))) == 13


def test_several_ranks_run_through_torchrun() -> None:
    variables, command = command_of("llava_hf", "pretrained=m", "t", Path("out"), processes=2)
    assert command[:5] == ["torchrun", "--nproc_per_node", "2", "-m", "lmms_eval"]
    assert variables == {"ACCELERATE_USE_CPU": "true"}


@pytest.mark.slow
@needs_decord
def test_the_demo_shows_the_science(whole) -> None:
    content = figures(whole.folder)
    splits = content["splits"]
    strongest = ["defocus_blur_5", "fog_5", "defocus_blur_5_keyboard_7", "fog_5_synonym_7"]
    assert np.mean([splits[name]["emi"] for name in strongest]) < splits["clean"]["emi"]
    for name in ("defocus_blur_5", "fog_1", "fog_5", "keyboard_3", "keyboard_7", "synonym_7"):
        assert splits[name]["verdict"] == "lost"
    for names in (
        ("defocus_blur_1", "defocus_blur_3", "defocus_blur_5"),
        ("fog_1", "fog_5"),
        ("keyboard_3", "keyboard_7"),
    ):
        bounds = [splits[name]["emid_bound"] for name in names]
        assert bounds == sorted(bounds)
    shifts = [one for one in splits.values() if one["modality"] not in ("id", "control")]
    assert len(shifts) == 11 == content["summary"]["n_shifts"]
    assert np.corrcoef([one["emid"] for one in shifts], [one["emid_bound"] for one in shifts])[0, 1] > 0


@pytest.mark.slow
@needs_decord
def test_the_controls_are_what_they_should_be(whole) -> None:
    """Other clean scenes cost nothing, and responses to other scenes cost most of what there is."""
    fresh = figures(whole.folder)["splits"]["fresh"]
    assert fresh["modality"] == "control" and not fresh["emid_paired"]
    assert fresh["emid_ci95"][0] < 0 < fresh["emid_ci95"][1] and fresh["verdict"] == "undecided"
    rows = {
        line.rsplit("  ", 1)[0].partition("  ")[0].strip(): line
        for line in whole.stdout.splitlines()
        if line.startswith("control: ")
    }
    assert set(rows) == {"control: fresh clean scenes", "control: clean, responses shuffled"}
    shuffled = rows["control: clean, responses shuffled"].replace("±", " ").split()
    assert float(shuffled[-8]) > 0.2, shuffled  # by the demo's own estimator


@pytest.mark.slow
@needs_decord
def test_the_model_looks_at_the_picture(whole) -> None:
    """It names what was asked about on held-out scenes, and fails more under the strongest shifts."""
    table = {
        words[0]: int(words[1].rstrip("%"))
        for line in whole.stdout.splitlines()
        if len(words := line.split()) > 2 and words[1].endswith("%") and words[2].endswith("%")
    }
    assert set(table) >= {name for name, one in load_study("demo").splits.items() if one.modality != "control"}
    assert (
        table["clean"] >= 80
        and table["defocus_blur_5"] <= table["clean"] - 15
        and table["fog_5"] <= table["clean"] - 15
    )


@needs_decord
def test_results_are_not_overwritten_unless_asked(done, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    before = (done.folder / "report.html").read_bytes()
    assert main(["demo", "--output", str(done.folder)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (done.folder / "report.html").read_bytes() == before and list(done.folder.rglob("*_emi_demo.json"))


@needs_decord
def test_a_failed_run_keeps_the_earlier_results_and_a_good_one_replaces_them(
    done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """With the harness stood in for, whose run is tested above."""
    folder = tmp_path / "out"
    shutil.copytree(done.folder, folder)
    (folder / "mine.txt").write_text("a user's own")
    (earlier,) = folder.glob("*/*_emi_demo.json")

    monkeypatch.setattr(demo, "run_command", lambda command, variables, log: log.write_text("why") and 3)
    assert main(["demo", "--output", str(folder), "--overwrite"]) == 1
    assert "exit status 3" in capsys.readouterr().err and earlier.exists()

    def another_run(command: object, variables: object, log: object) -> int:
        for path in list(earlier.parent.iterdir()):
            later = path.with_name(path.name.replace(path.name[:15], "20990101_000000"))
            shutil.copytree(path, later) if path.is_dir() else shutil.copy(path, later)
            if later.name.endswith("_emi_demo.json"):  # which names its rows
                later.write_text(path.read_text().replace(path.name[:15], "20990101_000000"))
        return 0

    monkeypatch.setattr(demo, "run_command", another_run)
    assert main(["demo", "--output", str(folder), "--overwrite"]) == 0
    assert not earlier.exists() and len(list(folder.glob("*/*_emi_demo.json"))) == 1
    assert (folder / "mine.txt").exists() and (folder / "report.html").exists()


def test_without_the_extra_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(demo, "NEEDED", {"no_such_module": "which is missing"})
    assert main(["demo", "--output", str(tmp_path / "out")]) == 1
    assert "pip install 'lmms_eval_emi[demo]'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_bad_options_are_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (("--processes", "0"), "--processes"),
        (("--limit", "1"), "--limit: expected 2 or more"),
        (("--output", str(tmp_path / "file")), "expected a folder"),
    ):
        assert main(["demo", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_the_index_bounds_nothing() -> None:
    """References as responses, and under the shift those of other scenes: no divergence, and all relevance lost."""
    from dataclasses import replace

    from lmms_eval_emi import Sample, embed_splits, emid, emid_bound, load_encoders, load_estimator

    rows = load_splits(load_study("demo"), ["clean"])["clean"]
    clean = [
        Sample(row["image"], row["question"], row["reference_answer"], row["reference_answer"], row["question_id"])
        for row in rows
    ]
    others = [replace(one, response=other.response) for one, other in zip(clean, demo.shuffled(clean), strict=True)]
    encoders = load_encoders(str(demo.ASSETS / "vision_encoder"), str(demo.ASSETS / "text_encoder"), "cpu")
    splits = embed_splits({"id": clean, "shift": others}, encoders)
    lost = emid(splits["id"], splits["shift"], load_estimator("demo"))
    assert lost.value == pytest.approx(0.433, abs=0.01) and lost.ci95[0] > 0.3
    for entropy in (None, 5.0):
        assert emid_bound(splits["id"], splits["shift"], entropy=entropy).value == pytest.approx(0, abs=1e-6)


def test_training_scenes_are_none_of_the_benchmarks() -> None:
    """The seeds of every stage of the build, each with as many scenes as a test has time for."""
    sets = (scenes.DEVELOPMENT_SEED, scenes.TEST_SEED, scenes.CONTROL_SEED)
    held_out = {scene.key for seed in sets for scene in scenes.scenes_of(seed)}
    assert len(held_out) == 3 * scenes.SCENES == 90
    for seed in (3, 13, 22, 25, 32):
        assert not held_out & {scene.key for scene in scenes.training_scenes(3000, seed=seed)}
    for seed in sets:  # the same seed would draw them, if they were not held out
        rng = random.Random(seed)
        assert {scenes.scene(rng).key for _ in range(30)} <= held_out
        assert not held_out & {scene.key for scene in scenes.training_scenes(100, seed=seed)}


@pytest.mark.parametrize(("split", "seed"), [("clean", scenes.TEST_SEED), ("fresh", scenes.CONTROL_SEED)])
def test_the_benchmark_is_what_the_generator_makes(split: str, seed: int) -> None:
    from demo.build import questions_of

    study = load_study("demo")
    rows = load_splits(study, [split])[split]
    made = questions_of(seed)
    assert len(rows) == len(made) == 90 and len(set(rows["question_id"])) == 90
    for row, (scene, question) in zip(rows, made, strict=True):
        assert (row["question"], row["reference_answer"], row["asked"]) == (
            question.question,
            question.reference,
            list(question.asked),
        )
        assert np.array_equal(np.asarray(row["image"]), np.asarray(scenes.draw(scene)))
        assert all(name in row["reference_answer"] for name in row["asked"])
    assert len(set(rows["reference_answer"])) > 80


def test_references_are_true_of_their_scenes() -> None:
    rng = random.Random(5)
    for scene in scenes.training_scenes(300, seed=77):
        names = {thing.name for thing in scene.things}
        for kind in scenes.KINDS:
            question = scenes.ask(scene, kind, rng)
            assert set(question.asked) <= names
            mentioned = {f"{c} {s}" for c in scenes.COLOURS for s in scenes.SHAPES if f"{c} {s}" in question.reference}
            assert mentioned == set(question.asked)
        pixels = np.asarray(scenes.draw(scene))
        for thing in scene.things:
            at = pixels[int(thing.y), int(thing.x)]
            if thing.shape != "ring":
                assert tuple(at) == scenes.COLOURS[thing.colour]


def test_the_assets_are_small_and_of_the_real_formats() -> None:
    from transformers import AutoConfig

    files = [path for path in demo.ASSETS.rglob("*") if path.is_file()]
    estimator = Path(__file__).parents[3] / "estimator_ckpt" / "demo.safetensors"
    benchmark = Path(load_study("demo").source).with_name("benchmark.parquet")
    assert sum(path.stat().st_size for path in [*files, estimator, benchmark]) < 12e6
    kinds = {
        name: AutoConfig.from_pretrained(demo.ASSETS / name).model_type
        for name in ("model", "vision_encoder", "text_encoder")
    }
    assert kinds == {"model": "llava", "vision_encoder": "clip_vision_model", "text_encoder": "xlm-roberta"}
    from safetensors import safe_open

    with safe_open(demo.ASSETS / "model" / "model.safetensors", "pt") as file:
        assert sum(np.prod(file.get_slice(name).get_shape()) for name in file.keys()) < 6e6  # noqa: SIM118
    home = str(Path.home())
    for path in files:
        if path.suffix in {".json", ".jinja", ".txt"}:
            assert home + "/" not in path.read_text() and "/tmp/" not in path.read_text()


def test_shifts_at_load_are_those_of_a_suite(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    from lmms_eval_emi.shifts import shift_image, shift_text

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    rows = [
        {
            "question_id": i,
            "image": {"bytes": file.getvalue(), "path": None},
            "question": text,
            "reference_answer": "Yes.",
        }
        for i, text in enumerate(["What is this animal?", "", "Why is it here today?"])
    ]
    features = Features(
        question_id=Value("int64"), image=ImageFeature(), question=Value("string"), reference_answer=Value("string")
    )
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "study.yaml").write_text(
        "name: mine\nid_split: clean\ndataset: {path: rows.parquet, shifts_at_load: {seed: 7, keep: [animal]}}\nsplits:\n  clean: {}\n"
        "  both: {shifts: [{modality: visual, name: snow, severity: 2}, {modality: text, name: char_swap, severity: 3}]}\n"
    )
    loaded = load_splits(load_study(tmp_path / "study.yaml"))
    assert loaded["clean"]["question"] == [row["question"] for row in rows]
    assert loaded["both"][1]["question"] == "" and "animal" in loaded["both"][0]["question"]
    assert loaded["both"][2]["question"] == shift_text(rows[2]["question"], "char_swap", 3, seed=7, row_id=2)
    assert loaded["both"][2]["image"].tobytes() == shift_image(image, "snow", 2, seed=7, row_id=2).tobytes()
    (tmp_path / "a.png").write_bytes(file.getvalue())
    lines = [
        json.dumps({**row, "image": str(tmp_path / ("a.png" if row["question_id"] else "gone.png"))}) for row in rows
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "paths.yaml").write_text((tmp_path / "study.yaml").read_text().replace("rows.parquet", "rows.jsonl"))
    by_path = load_splits(load_study(tmp_path / "paths.yaml"))["both"]
    assert by_path[2]["image"].tobytes() == loaded["both"][2]["image"].tobytes()
    assert by_path.cast_column("image", ImageFeature(decode=False))[0]["image"]["path"].endswith("gone.png")
    (tmp_path / "wrong.yaml").write_text((tmp_path / "study.yaml").read_text().replace("snow", "snowy"))
    with pytest.raises(StudyError, match="split both: 'snowy' is not a visual operator"):
        load_splits(load_study(tmp_path / "wrong.yaml"))
