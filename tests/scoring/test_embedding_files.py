"""Embeddings in files: every format gives the scores of the responses, and what is wrong is said."""

from __future__ import annotations

import json
import sys

import pyarrow.parquet as pq
import pytest
import torch
from conftest import numbers, run_module

from lmms_eval_emi import Embeddings, estimators
from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.scoring import pipeline
from lmms_eval_emi.scoring.embedding_files import open_embeddings, to_table, write_embeddings

ID, GERMAN = "llava_bench_coco_English", "llava_bench_coco_German"
STUDY = load_study("natural")


@pytest.fixture
def answers(tmp_path):
    folder = tmp_path / "answers"
    for split in (ID, GERMAN):
        write_response_file(
            folder / f"{split}.jsonl", [(row, "", f"a circle {row} of {split}") for row in range(5)], "tiny"
        )
    return folder


def score(*arguments):
    return main(["score", "--study", "natural", "--split", GERMAN, "--overwrite", *map(str, arguments)])


def results(path):
    content = json.loads(path.read_text())
    return content, {name: numbers(scores) for name, scores in content["splits"].items()}


def test_saved_embeddings_give_the_same_scores_to_the_bit(in_tinyhub, answers, tmp_path):
    assert score("--responses", answers, "--output", tmp_path / "a.json", "--save-embeddings", tmp_path / "store") == 0
    assert score("--embeddings", tmp_path / "store", "--output", tmp_path / "b.json") == 0
    (first, expected), (second, found) = results(tmp_path / "a.json"), results(tmp_path / "b.json")
    assert found == expected and second["signature"] == first["signature"] and second["model"] == "tiny"


def test_a_split_that_is_read_in_parts_gives_the_same_scores(in_tinyhub, answers, tmp_path, monkeypatch):
    assert score("--responses", answers, "--output", tmp_path / "a.json", "--save-embeddings", tmp_path / "store") == 0
    monkeypatch.setattr(pipeline, "MAX_ROWS_IN_MEMORY", 2)
    assert score("--embeddings", tmp_path / "store", "--output", tmp_path / "b.json") == 0
    (_, expected), (content, found) = results(tmp_path / "a.json"), results(tmp_path / "b.json")
    for name in (ID, GERMAN):
        shared = found[name].keys() & expected[name].keys()
        assert {"emi", "mi_reference", "n", "images"} <= shared
        assert {key: found[name][key] for key in shared} == pytest.approx(
            {key: expected[name][key] for key in shared}, abs=1e-7
        )
    assert {"emid", "emid_bound", "jsd_v"} <= found[GERMAN].keys() and content["signature"]
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0


def splits(n=40):
    made = {}
    for number, name in enumerate((ID, GERMAN)):
        torch.manual_seed(number)
        parts = [torch.nn.functional.normalize(torch.randn(n, 32), dim=1) for _ in range(4)]
        made[name] = Embeddings(*parts, ids=list(range(n)), groups=[row // 4 for row in range(n)])
    return made


def write_parts(folder, made):
    for name, split in made.items():
        (folder / name).mkdir(parents=True)
        for number in range(3):
            rows = range(14 * number, min(14 * number + 14, split.n))
            pq.write_table(to_table(split.select(rows)), folder / name / f"{number}.parquet")


def write_one_file(folder, made):
    import pyarrow as pa

    folder.mkdir(parents=True)
    tables = [to_table(split).append_column("split", pa.array([name] * split.n)) for name, split in made.items()]
    pq.write_table(pa.concat_tables(tables), folder / "all.parquet", row_group_size=7)


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (lambda folder, made: write_embeddings(folder, made, model="m", studies=["natural"]), ""),
        (write_parts, ""),
        (write_one_file, "all.parquet"),
    ],
    ids=["parquet", "parts", "one parquet"],
)
def test_every_format_has_all_rows_in_order_and_any_part_of_them(write, file, tmp_path):
    made = splits()
    write(tmp_path / "store", made)
    store = open_embeddings(tmp_path / "store" / file, STUDY)
    assert set(store.splits) == {ID, GERMAN}
    for name, expected in made.items():
        found = store.splits[name].load()
        assert store.splits[name].n == 40
        assert all(torch.equal(getattr(found, key), getattr(expected, key)) for key in ("v", "t", "y_hat", "y"))
        assert list(map(str, found.ids)) == list(map(str, expected.ids)) and len(set(found.groups)) == 10
        some = list(store.splits[name].parts(11, 31))
        assert torch.equal(torch.cat([part.t for part in some]), expected.t[11:31])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / f"{ID}.parquet").write_bytes(b"PAR1"), "its embeddings cannot be read: "),
        (lambda folder: (folder / "embeddings.json").write_text("[]"), "expected an object of format_version 1"),
        (
            lambda folder: [path.unlink() for path in folder.glob("*.parquet")],
            "expected embeddings of splits of natural",
        ),
    ],
)
def test_what_is_wrong_with_a_store(break_it, message, tmp_path):
    write_embeddings(tmp_path, splits(), model="m", studies=["natural"])
    break_it(tmp_path)
    with pytest.raises(ResultsError, match=message):
        open_embeddings(tmp_path, STUDY)


def test_messages_of_the_command(in_tinyhub, answers, tmp_path, capsys):
    store = tmp_path / "store"
    (tmp_path / "empty").mkdir()
    assert score("--embeddings", tmp_path / "empty") == 1 and "found nothing." in capsys.readouterr().err
    assert score("--embeddings", store) == 1 and "expected a parquet file or a folder" in capsys.readouterr().err
    assert score("--embeddings", store, "--responses", answers) == 1 and "give one of them" in capsys.readouterr().err
    write_embeddings(store, {ID: splits()[ID]}, model="m", studies=["natural"])
    assert score("--embeddings", store) == 1 and "--allow-missing" in capsys.readouterr().err
    assert score("--embeddings", store, "--allow-missing") == 0
    assert "known which encoders" not in capsys.readouterr().err, (
        "this estimator was trained with no encoders that are known"
    )
    rows = splits()
    rows[ID].t[3, 2] = float("nan")
    write_embeddings(tmp_path / "nan", rows, model="m", studies=["natural"])
    assert score("--embeddings", tmp_path / "nan") == 1 and "NaN or infinity in 1 of" in capsys.readouterr().err


def test_embeddings_of_other_encoders_are_refused(in_tinyhub, tmp_path, capsys, monkeypatch):
    made = splits()
    for split in made.values():
        object.__setattr__(split, "encoders", "mine#12345678/patch-mean+yours#87654321/mean")
    write_embeddings(tmp_path / "store", made, model="m", studies=["natural"])
    load = estimators.load_estimator

    def trained_elsewhere(source, **options):
        estimator = load(source, **options)
        estimator.text_encoder = "xlm-roberta-base"
        return estimator

    monkeypatch.setattr(estimators, "load_estimator", trained_elsewhere)
    assert score("--embeddings", tmp_path / "store") == 1
    assert "was trained with the text encoder xlm-roberta-base" in capsys.readouterr().err
    assert score("--embeddings", tmp_path / "store", "--allow-other-encoders") == 0


def test_both_families_in_one_run(in_tinyhub, tmp_path, capsys):
    for name in ("natural", "synthetic"):
        for split in load_study(name).splits:
            write_response_file(
                tmp_path / "answers" / f"{split}.jsonl", [(row, "", f"a circle {row}") for row in range(5)], "tiny"
            )
    output = tmp_path / "results.json"
    assert (
        main(
            [
                "score",
                "--study",
                "natural",
                "synthetic",
                "--responses",
                str(tmp_path / "answers"),
                "--output",
                str(output),
            ]
        )
        == 0
    )
    both = json.loads(output.read_text())["results"]
    assert [one["shift"] for one in both] == ["natural", "synthetic"] and [len(one["splits"]) for one in both] == [
        28,
        35,
    ]
    printed = capsys.readouterr().out
    chosen = ["--split", GERMAN, "--output", str(tmp_path / "part.json")]
    base = ["score", "--study", "natural", "synthetic", "--responses", str(tmp_path / "answers")]
    assert main([*base, *chosen]) == 0
    assert list(json.loads((tmp_path / "part.json").read_text())["splits"]) == [ID, GERMAN], (
        "a study without it is left out"
    )
    assert main([*base, "--split", "no_such_split"]) == 1 and "no_such_split" in capsys.readouterr().err
    assert printed.index("emi-study|study:natural") < printed.index("emi-study|study:synthetic")


# Over ranks.


def test_two_ranks_give_what_one_gives(in_tinyhub, answers, tmp_path):
    arguments = (
        "score",
        "--study",
        "natural",
        "--split",
        GERMAN,
        "--responses",
        str(answers),
        "--overwrite",
        "--output",
    )
    assert main([*arguments, str(tmp_path / "one.json")]) == 0
    cache = {"LMMS_EVAL_EMI_CACHE": str(tmp_path / "cache")}
    for name in ("fresh", "known"):
        done = run_module("lmms_eval_emi", *arguments, str(tmp_path / f"{name}.json"), cwd=in_tinyhub, processes=2, LMMS_EVAL_EMI_ESTIMATOR="tiny.safetensors", **cache)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("signature ") == 1, "one rank prints"
        (_, expected), (_, found) = results(tmp_path / "one.json"), results(tmp_path / f"{name}.json")
        for split in expected:
            assert found[split] == pytest.approx(expected[split], abs=1e-9)


def test_two_ranks_read_a_store_in_parts(in_tinyhub, tmp_path):
    write_embeddings(tmp_path / "store", splits(), model="m", studies=["natural"])
    code = (
        "from lmms_eval_emi.scoring import pipeline; pipeline.MAX_ROWS_IN_MEMORY = 3\n"
        "import sys; from lmms_eval_emi.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "run.py").write_text(code)
    arguments = ["score", "--study", "natural", "--embeddings", str(tmp_path / "store"), "--allow-missing", "--output"]
    assert main([*arguments, str(tmp_path / "one.json")]) == 0
    done = run_module("run", *arguments, str(tmp_path / "two.json"), cwd=tmp_path, processes=2, LMMS_EVAL_EMI_ESTIMATOR=str(in_tinyhub / "tiny.safetensors"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (_, expected), (_, found) = results(tmp_path / "one.json"), results(tmp_path / "two.json")
    for split in expected:
        shared = expected[split].keys() & found[split].keys()
        assert {key: found[split][key] for key in shared} == pytest.approx(
            {key: expected[split][key] for key in shared}, abs=1e-9
        )


def test_an_error_of_one_rank_ends_all(in_tinyhub, tmp_path):
    code = """
import sys
from lmms_eval_emi.scoring.embed import gather_results, process_group, rank
def work():
    if rank() == 1:
        raise ValueError("this rank's disk is full")
with process_group():
    gather_results(work)
"""
    (tmp_path / "run.py").write_text(code)
    done = run_module("run", cwd=tmp_path, processes=2)
    assert done.returncode and "this rank's disk is full" in done.stderr and "rank 1 failed: ValueError" in done.stderr


def test_help_and_usage_import_no_torch():
    import subprocess

    code = "import sys; sys.argv[1:] = ['--help']\ntry:\n    from lmms_eval_emi.cli import main; main()\nexcept SystemExit: pass\nsys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets', 'scipy', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
