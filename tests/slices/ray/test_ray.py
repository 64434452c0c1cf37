"""Ray's engine gives what one process gives, also where a worker is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from conftest import numbers

from lmms_eval_emi import Embeddings
from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.scoring import pipeline
from lmms_eval_emi.scoring.embedding_files import write_embeddings

ray = pytest.importorskip("ray")
ID, GERMAN = "llava_bench_coco_English", "llava_bench_coco_German"


@pytest.fixture(scope="module")
def local_ray():
    """Two workers of this machine, for all tests of the module."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


def results(path):
    return {name: numbers(scores) for name, scores in json.loads(path.read_text())["splits"].items()}


def test_responses_are_encoded_in_parts_which_are_had_again(in_tinyhub, tmp_path, local_ray, monkeypatch):
    from lmms_eval_emi.slices.ray import engine

    monkeypatch.setattr(engine, "PART_OF_ROWS", 2)
    for split in (ID, GERMAN):
        write_response_file(
            tmp_path / "answers" / f"{split}.jsonl",
            [(row, "", f"a circle {row} of {split}") for row in range(5)],
            "tiny",
        )
    arguments = [
        "score",
        "--study",
        "natural",
        "--split",
        GERMAN,
        "--responses",
        str(tmp_path / "answers"),
        "--overwrite",
    ]
    assert main([*arguments, "--output", str(tmp_path / "one.json")]) == 0
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    more = ["--engine", "ray", "--save-embeddings", str(tmp_path / "store"), "--output", str(tmp_path / "ray.json")]
    assert main([*arguments, *more]) == 0
    expected, found = results(tmp_path / "one.json"), results(tmp_path / "ray.json")
    for split in expected:
        assert found[split] == pytest.approx(expected[split], abs=1e-9)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.parquet")}
    assert len(parts) == 6
    lost = next(iter(parts))
    lost.unlink()
    assert main([*arguments, *more]) == 0
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.parquet")}
    assert set(again) == set(parts) and [path for path in parts if again[path] != parts[path]] == [lost]
    for split in expected:
        assert results(tmp_path / "ray.json")[split] == pytest.approx(expected[split], abs=1e-9)


def kill_a_worker(stop: threading.Event) -> None:
    """Kill the busiest worker once."""
    while not stop.wait(0.2):
        for path in Path("/proc").glob("[0-9]*"):
            try:
                name = (path / "cmdline").read_bytes()
                ticks = sum(map(int, (path / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
            except (OSError, ValueError, IndexError):
                continue
            if name.startswith((b"ray::HashAggregateMap", b"ray::ReadFiles")) and ticks > 20:
                os.kill(int(path.name), signal.SIGKILL)
                stop.killed = path.name
                return


def blocks_are_scored_as_one(tmp_path, rows):
    """Score two random splits by this process and by Ray, whose blocks of rows are summed and merged."""
    made = {}
    for number, name in enumerate((ID, GERMAN)):
        torch.manual_seed(number)
        parts = [torch.nn.functional.normalize(torch.randn(rows, 32), dim=1) for _ in range(4)]
        made[name] = Embeddings(*parts, ids=list(range(rows)), groups=[f"image {row // 3}" for row in range(rows)])
    write_embeddings(tmp_path / "store", made, model="m", studies=["natural"])
    arguments = f"score natural --embeddings {tmp_path}/store --allow-missing --overwrite --output {tmp_path}/".split()
    assert main([*arguments[:-1], f"{arguments[-1]}one.json"]) == 0
    assert main([*arguments[:-1], f"{arguments[-1]}ray.json", "--engine", "ray"]) == 0
    expected, found = results(tmp_path / "one.json"), results(tmp_path / "ray.json")
    for split in expected:
        assert found[split] == pytest.approx(expected[split], abs=1e-9)


def test_statistics_of_blocks_merge(in_tinyhub, tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_ROWS_IN_MEMORY", 100)
    blocks_are_scored_as_one(tmp_path, 300)


@pytest.mark.slow
def test_statistics_of_blocks_merge_also_where_a_worker_is_lost(in_tinyhub, tmp_path, local_ray):
    stop = threading.Event()
    stop.killed = None
    killer = threading.Thread(target=kill_a_worker, args=(stop,), daemon=True)
    killer.start()
    assert pipeline.MAX_ROWS_IN_MEMORY < 30_000
    blocks_are_scored_as_one(tmp_path, 30_000)
    stop.set()
    killer.join()
    assert stop.killed, "a worker was killed on the way"


def test_a_suite_of_shifts(in_tinyhub, tmp_path, local_ray):
    source = "changdae/llavabench-shift-natural-v1"
    arguments = ["shifts", "apply", source, "--split", ID, "--visual", "pixelate:1", "--textual", "char_swap:1"]
    for folder, more in (("one", ["--processes", "1"]), ("ray", ["--engine", "ray"])):
        (tmp_path / folder).mkdir()
        assert main([*arguments[:3], str(tmp_path / folder / "suite"), *arguments[3:], *more]) == 0
    files = {
        folder: {
            str(path.relative_to(tmp_path / folder)): path.read_bytes()
            for path in sorted((tmp_path / folder).rglob("*"))
            if (path.suffix in {".parquet", ".png"} and "images" in path.parts) or path.name == "metadata.parquet"
        }
        for folder in ("one", "ray")
    }
    assert files["ray"].keys() == files["one"].keys() and len(files["one"]) > 3
    assert all(files["ray"][name] == content for name, content in files["one"].items() if name.endswith(".png"))


def test_without_ray_the_message_says_what_to_install(monkeypatch, tmp_path, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert main(["score", "--study", "natural", "--embeddings", str(tmp_path), "--engine", "ray"]) == 1
    assert "pip install 'lmms_eval_emi[ray]'" in capsys.readouterr().err
    assert main(["score", "--study", "natural", "--responses", str(tmp_path), "--engine", "ray"]) == 1
    assert "--save-embeddings DIR, a folder that all machines see" in capsys.readouterr().err
