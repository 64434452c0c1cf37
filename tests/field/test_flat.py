"""Tables and logs of other tools, scored without a study file."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from lmms_eval_emi.cli.commands import main
from lmms_eval_emi.data.flat import read_rows
from lmms_eval_emi.errors import ResponsesError
from lmms_eval_emi.scoring.flat import collect_flat
from lmms_eval_emi.settings import load_settings

ROWS = 10


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rows_of(split, *, text=None):
    tint = 100 if split == "fog" else 0
    return [
        {
            "index": row,
            "question": "What is it?" if text is None else text,
            "answer": f"It is a circle, number {row}.",
            "prediction": f"It is a circle, number {row}." if split == "clean" else f"It may be {row % 3}.",
            "image": base64.b64encode(png(row + tint)).decode(),
            "shift": split,
        }
        for row in range(ROWS)
    ]


def scored(tmp_path, *arguments):
    output = tmp_path / "results.json"
    options = ("--estimator", "cosine", "--output", str(output), "--overwrite")
    assert main(["score", *map(str, arguments), "--id-split", "clean", *options]) == 0
    return json.loads(output.read_text())


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "xlsx"])
def test_a_table_is_a_study(tmp_path, in_tinyhub, kind):
    import datasets
    import openpyxl

    rows = [*rows_of("clean"), *rows_of("fog"), *rows_of("typos", text="Wat is ti?")]
    path = tmp_path / f"llava_Bench.{kind}"
    table = datasets.Dataset.from_list(rows)
    if kind in ("csv", "tsv"):
        table.to_csv(path, sep="," if kind == "csv" else "\t", index=False)
    elif kind == "parquet":
        table.to_parquet(path)
    elif kind == "xlsx":  # cells hold at most 32,767 characters, so VLMEvalKit's have no images
        book = openpyxl.Workbook()
        names = [name for name in rows[0] if name != "image"]
        book.active.append(names)
        for row in rows:
            book.active.append([row[name] for name in names])
        book.save(path)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text(f"[{','.join(lines)}]" if kind == "json" else "\n".join(lines))
    found = scored(tmp_path, path)
    splits = found["splits"]
    assert list(splits) == ["clean", "fog", "typos"] and splits["clean"]["n"] == ROWS
    assert splits["fog"]["modality"] == "visual" and splits["fog"]["emid"] > 0 < splits["fog"]["emid_stderr"]
    if kind != "xlsx":
        assert splits["typos"]["modality"] == "joint" or splits["typos"]["modality"] == "text"
    assert found["model"] == ("llava" if kind == "xlsx" else "model")


def test_files_may_be_splits(tmp_path, in_tinyhub):
    for split in ("clean", "fog"):
        rows = [{key: value for key, value in row.items() if key != "shift"} for row in rows_of(split)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(scored(tmp_path, tmp_path / "clean.jsonl", tmp_path / "fog.jsonl")["splits"]) == ["clean", "fog"]


def log_of_inspect(split="clean"):
    """A log as inspect_ai 0.3 writes it: images are attachments, and one sample has failed."""
    samples = []
    for row in rows_of(split):
        parts = [{"type": "text", "text": row["question"]}, {"type": "image", "image": f"attachment://{row['index']}"}]
        samples.append(
            {
                "id": f"{split}-{row['index']}",
                "epoch": 1,
                "input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}],
                "target": row["answer"],
                "output": {"completion": row["prediction"], "choices": [{"message": {}}]},
                "metadata": {"shift": split},
                "attachments": {str(row["index"]): f"data:image/png;base64,{row['image']}"},
            }
        )
    return {"version": 2, "status": "success", "eval": {"model": "mockllm/model"}, "samples": samples}


def packed(path, log):
    """The archive that inspect_ai writes: members are packed with Zstandard, which zipfile cannot write."""
    import zstandard

    members = {"header.json": {"eval": log["eval"]}}
    members |= {f"samples/{one['id']}_epoch_1.json": one for one in log["samples"]}
    body, directory = b"", b""
    for name, content in members.items():
        data = json.dumps(content).encode()
        squeezed = zstandard.ZstdCompressor().compress(data)
        common = struct.pack("<HHHHHIIIHH", 20, 0, 93, 0, 0, zlib.crc32(data), len(squeezed), len(data), len(name), 0)
        directory += (
            b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name.encode()
        )
        body += b"PK\3\4" + common + name.encode() + squeezed
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\5\6" + end)
    assert zipfile.is_zipfile(path)


@pytest.mark.parametrize("kind", ["eval", "json"])
def test_logs_of_inspect_are_studies(tmp_path, in_tinyhub, kind):
    paths = []
    for split in ("clean", "fog"):
        path = tmp_path / f"{split}.{kind}"
        packed(path, log_of_inspect(split)) if kind == "eval" else path.write_text(json.dumps(log_of_inspect(split)))
        paths.append(path)
    found = scored(tmp_path, *paths, "--split-by", "metadata.shift")
    assert found["model"] == "mockllm/model" and found["splits"]["fog"]["n"] == ROWS
    assert found["splits"]["fog"]["emid"] > 0 and found["splits"]["fog"]["modality"] == "visual"
    same = [{"samples": [*log_of_inspect("clean")["samples"], *log_of_inspect("fog")["samples"]]}]
    whole = tmp_path / f"whole.{kind}"
    log = {**log_of_inspect(), **same[0]}
    packed(whole, log) if kind == "eval" else whole.write_text(json.dumps(log))
    assert scored(tmp_path, whole, "--split-by", "metadata.shift")["splits"] == found["splits"]


def test_logs_of_lm_eval_are_studies(tmp_path, in_tinyhub):
    paths = []
    for split in ("clean", "fog"):
        path = tmp_path / f"samples_{split}_2026-11-28T10-00-00.000000.jsonl"
        lines = [
            {
                "doc_id": row["index"],
                "doc": {"query": row["question"]},
                "target": row["answer"],
                "arguments": {"gen_args_0": {"arg_0": row["question"], "arg_1": {"until": []}}},
                "resps": [[row["prediction"]]],
                "filtered_resps": [row["prediction"]],
            }
            for row in rows_of(split)
        ]
        path.write_text("\n".join(map(json.dumps, lines)))
        paths.append(path)
    found = scored(tmp_path, *paths)
    assert list(found["splits"]) == ["clean", "fog"] and found["splits"]["fog"]["emid"] > 0


def test_a_failed_sample_has_no_response(tmp_path):
    log = log_of_inspect()
    log["samples"][3]["output"] = {"completion": "", "choices": []}
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    assert read_rows(path)["response"][3] is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pkl", b"", "Pickles are not read"),
        ("a.csv", b"question,thing\na,b\n", "expected columns for response, reference .*it has question, thing"),
        ("a.xlsx", b"PK", "expected a spreadsheet"),
        ("a.eval", b"PK", "expected a log of inspect_ai"),
    ],
)
def test_what_is_no_table_is_refused_with_what_it_has(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResponsesError, match=said):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    "options", [("--split", "fog"), ("--only-model", "a"), ("--save-embeddings", "x"), ("--engine", "ray")]
)
def test_options_that_need_a_study_are_refused_with_tables(tmp_path, capsys, options):
    assert main(["score", str(tmp_path / "a.jsonl"), "--id-split", "clean", *options]) == 1
    assert f"{options[0]}: " in capsys.readouterr().err
    assert main(["score", "natural", str(tmp_path), "--split-by", "shift"]) == 1
    assert "--split-by: it names" in capsys.readouterr().err


def test_splits_whose_names_become_one_are_told(tmp_path, in_tinyhub, capsys):
    path = tmp_path / "a.jsonl"
    rows = [{**row, "shift": name} for name in ("clean", "fog 1", "fog-1") for row in rows_of("clean")]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert main(["score", str(path), "--id-split", "clean", "--estimator", "cosine"]) == 1
    assert "two splits would be called fog_1" in capsys.readouterr().err


def test_an_unknown_id_split_is_told_with_those_that_there_are(tmp_path, in_tinyhub, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_of("fog"))))
    assert main(["score", str(path), "--id-split", "clean"]) == 1
    assert "--id-split: expected one of fog" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "status"), [("emid>0.001", 3), ("emid>100", 0), ("lost", 3)], ids=["above", "below", "lost"]
)
def test_a_loss_may_fail_a_pipeline(tmp_path, in_tinyhub, asked, status, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows_of("clean"), *rows_of("fog")])))
    command = ["score", str(path), "--id-split", "clean", "--estimator", "cosine", "--fail-on", asked]
    assert main(command) == status
    assert ("--fail-on" in caplog.text) == bool(status)


def test_chunks_of_a_split_are_one_and_all_of_them_are_needed(tmp_path, capsys):
    """LLaVA's evaluation on several GPUs writes 2_0.jsonl and 2_1.jsonl into a folder, which ``cat`` merges."""
    for split in ("clean", "fog"):
        (tmp_path / split).mkdir()
        for chunk in range(2):
            lines = [
                {"id": row, "question": f"q {row}", "response": f"{split} {row}", "reference": f"a {row}"}
                for row in range(chunk * 6, chunk * 6 + 6)
            ]
            text = "".join(f"{json.dumps(line)}\n" for line in lines)
            (tmp_path / split / f"2_{chunk}.jsonl").write_text(text)
    paths = [tmp_path / split / f"2_{chunk}.jsonl" for split in ("clean", "fog") for chunk in range(2)]
    entry = collect_flat(paths, "clean", load_settings())[0]
    assert {name: len(rows) for name, rows in entry.samples.items()} == {"clean": 12, "fog": 12}
    with pytest.raises(ResponsesError, match=r"expected 2 chunks, 2_1 are missing"):
        collect_flat([path for path in paths if path != paths[1]], "clean", load_settings())


def test_images_of_a_benchmark_are_joined_by_index(tmp_path, in_tinyhub):
    """VLMEvalKit's predictions have no images; its TSV has them, some as the index of another row, some in a list."""
    import openpyxl

    images = [base64.b64encode(png(row)).decode() for row in range(ROWS)]
    cells = [images[0], "0", f"['{images[2]}']", *images[3:]]
    text = "".join(f"{row}\t{cell}\n" for row, cell in enumerate(cells))
    (tmp_path / "Bench.tsv").write_text(f"index\timage\n{text}")
    for split in ("clean", "fog"):
        sheet = openpyxl.Workbook()
        names = ("index", "question", "answer", "prediction")
        sheet.active.append(names)
        for row in rows_of(split):
            sheet.active.append([row[name] for name in names])
        sheet.save(tmp_path / f"m_{split}.xlsx")
    files = [tmp_path / "m_clean.xlsx", tmp_path / "m_fog.xlsx"]
    settings = load_settings(images=tmp_path / "Bench.tsv")
    (clean, *_) = [one.samples for one in collect_flat(files, "m_clean", settings)]
    assert clean["m_clean"][0].image.encoded() == clean["m_clean"][1].image.encoded() == png(0)
    assert [one.image.encoded() for one in clean["m_fog"][2:]] == [png(row) for row in range(2, ROWS)]
    for table, message in (
        ("index\timage\n0\t5\n", "no image for the index '5'"),
        ("index\timage\n0\t1\n1\t0\n", "no image for the index '0'"),  # two rows that name each other
        ("index\timage\n0\t['a', 'b']\n", "index 0: expected one image, got 2"),
        ("index\tpicture\n0\t5\n", "expected the columns index and image, image are missing"),
    ):
        (tmp_path / "Bench.tsv").write_text(table)
        with pytest.raises(ResponsesError, match=message):
            collect_flat(files, "m_clean", settings)


def test_a_prediction_file_is_of_the_model_that_its_folder_names(tmp_path):
    from lmms_eval_emi.data.flat.spreadsheet import model_of

    assert model_of(tmp_path / "my_model" / "T1" / "my_model_My_Bench.xlsx") == "my_model"
    assert model_of(tmp_path / "elsewhere" / "gpt_Bench.xlsx") == "gpt"
