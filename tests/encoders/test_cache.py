"""Embeddings on the disk: had again, never wrong, whatever happens to the files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import tinyhub as builder

import lmms_eval_emi.encoders.cache as module
from lmms_eval_emi.data.rows import Sample
from lmms_eval_emi.encoders import load_encoders
from lmms_eval_emi.encoders.cache import EmbeddingCache
from lmms_eval_emi.errors import SampleError
from lmms_eval_emi.scoring.embed import embed_good_rows, embedding_cache
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.util.files import content_digest

D = 8


def rows(*seeds):
    return {
        content_digest(f"text {seed}"): np.random.default_rng(seed).normal(size=D).astype("float32") for seed in seeds
    }


def same(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)


def test_what_was_kept_is_found_and_nothing_else(tmp_path):
    cache = EmbeddingCache(tmp_path, "an encoder", 10**9)
    cache.add(rows(1, 2))
    cache.add(rows(3))
    wanted = rows(1, 3, 4)
    assert same(cache.find(list(wanted), D), rows(1, 3))
    assert not EmbeddingCache(tmp_path, "another encoder", 10**9).find(list(wanted), D)
    assert not cache.find(list(wanted), D + 1), "rows of another width are of another encoder"
    assert not EmbeddingCache(tmp_path, "an encoder", 0).find(list(wanted), D)


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_file_is_a_miss_and_never_a_wrong_row(tmp_path, seed):
    cache = EmbeddingCache(tmp_path, "an encoder", 10**9)
    kept = rows(*range(6))
    cache.add(kept)
    (path,) = tmp_path.rglob("*.safetensors")
    content, chance = bytearray(path.read_bytes()), random.Random(seed)
    if seed % 3 == 0:
        content = content[: chance.randrange(len(content))]
    else:
        for _ in range(chance.randrange(1, 40)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(bytes(content))
    found = cache.find(list(kept), D)
    assert all(np.array_equal(row, kept[key]) for key, row in found.items())
    cache.add(kept)
    assert same(cache.find(list(kept), D), kept)


def test_the_folder_keeps_within_its_limit_and_what_was_used_last(tmp_path):
    for seed in range(8):
        cache = EmbeddingCache(tmp_path, f"encoder {seed % 2}", 3000)
        cache.add(rows(*range(10 * seed, 10 * seed + 10)))
        for path in tmp_path.rglob("*.safetensors"):  # a clock that is coarse
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 3000
    last = rows(*range(70, 80))
    assert same(EmbeddingCache(tmp_path, "encoder 1", 3000).find(list(last), D), last)


def test_many_small_files_become_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILES", 4)
    cache = EmbeddingCache(tmp_path, "an encoder", 10**9)
    for seed in range(11):
        cache.add(rows(seed))
    assert len(list(tmp_path.rglob("*.safetensors"))) <= 5
    everything = rows(*range(11))
    assert same(cache.find(list(everything), D), everything)


def test_several_processes_write_at_once(tmp_path):
    code = """
import sys, numpy as np
from pathlib import Path
from lmms_eval_emi.encoders.cache import EmbeddingCache
from lmms_eval_emi.util.files import content_digest
from lmms_eval_emi.encoders import cache
cache.MAX_FILES = 3
own = EmbeddingCache(Path(sys.argv[1]), "an encoder", 10**9)
for seed in range(int(sys.argv[2]), 40, 2):
    row = np.random.default_rng(seed).normal(size=8).astype("float32")
    own.add({content_digest(f"text {seed}"): row})
    found = own.find([content_digest(f"text {other}") for other in range(40)], 8)
    assert all(np.array_equal(found.get(content_digest(f"text {other}"), expected), expected) for other in range(40)
               for expected in [np.random.default_rng(other).normal(size=8).astype("float32")])
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(first)]) for first in (0, 1)]
    assert [process.wait() for process in running] == [0, 0]


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(tmp_path / "file", "an encoder", 10**9)
    cache.add(rows(1))
    assert "embeddings are not kept" in caplog.text and not cache.find(list(rows(1)), D)


# In the way from samples to embeddings.


@pytest.fixture
def counted(in_tinyhub, monkeypatch, tmp_path):
    """Encoders that count what they encode, and a cache of their own."""
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    encoders = load_encoders("openai/clip-vit-base-patch32", "xlm-roberta-base", "cpu")
    calls = {"vision": 0, "text": 0}
    for name in calls:
        encoder = getattr(encoders, name)

        def encode(items, name=name, run=encoder.encode):
            calls[name] += len(items)
            return run(items)

        monkeypatch.setattr(encoder, "encode", encode)
    return encoders, calls, embedding_cache(load_settings())


def samples(count, extra=""):
    random_numbers = np.random.default_rng(0)
    pictures = [builder.picture(random_numbers) for _ in range(count)]
    return [
        Sample(picture, f"question {row}", f"response {row}{extra}", "reference", row)
        for row, picture in enumerate(pictures)
    ]


def test_nothing_is_encoded_twice_over_runs(counted):
    encoders, calls, cache = counted
    first, _ = embed_good_rows({"a": samples(5)}, encoders, cache=cache)
    assert calls == {"vision": 5, "text": 11}
    again, _ = embed_good_rows({"a": samples(5, extra=" or other")}, encoders, cache=cache)
    assert calls == {"vision": 5, "text": 16}, "the responses alone are new"
    assert all(np.array_equal(getattr(first["a"], name), getattr(again["a"], name)) for name in ("v", "t", "y"))


@pytest.mark.parametrize(("kind", "items"), [("vision", 40), ("text", 81)])
def test_what_was_encoded_before_an_error_is_kept(counted, monkeypatch, kind, items):
    encoders, calls, cache = counted
    rows, encode = samples(40), getattr(encoders, kind).encode

    def fail(items):
        if calls[kind] >= 16:
            raise RuntimeError("the device is gone")
        return encode(items)

    with monkeypatch.context() as patch:
        patch.setattr(getattr(encoders, kind), "encode", fail)
        with pytest.raises(RuntimeError, match="the device is gone"):
            embed_good_rows({"a": rows}, encoders, batch_size=8, cache=cache)
    before = calls[kind]
    embed_good_rows({"a": rows}, encoders, batch_size=8, cache=cache)
    assert before >= 16 and calls[kind] <= items + before - 8


def test_an_image_that_cannot_be_read_stops_the_run_with_all_of_them_named(counted):
    encoders, calls, cache = counted
    broken = [Sample(b"no image", "question", "response", "reference", 90 + row) for row in range(2)]
    with pytest.raises(SampleError, match=r"2 of 42 rows(.|\n)*row 90(.|\n)*row 91"):
        embed_good_rows({"a": [broken[0], *samples(40), broken[1]]}, encoders, batch_size=8, strict=True, cache=cache)
    assert calls["vision"] <= 8


def test_a_bad_row_is_named_with_its_split(counted):
    encoders, _, _ = counted
    good, broken = samples(30), Sample(b"no image", "question", "response", "reference", 90)
    splits = {"a": good[:10], "b": [*good[10:], broken], "c": [broken]}
    embedded, bad = embed_good_rows(splits, encoders, batch_size=8)
    assert list(embedded) == ["a", "b"] and [(row.split, row.row) for row in bad] == [("b", 20), ("c", 0)]
    with pytest.raises(SampleError, match=r"2 of 32 rows(.|\n)*split b, row 90(.|\n)*split c, row 90"):
        embed_good_rows(splits, encoders, batch_size=8, strict=True)


def test_another_preprocessing_is_another_encoder(counted, in_tinyhub, tmp_path):
    import shutil

    encoders, _, _ = counted
    folder = tmp_path / "clip"
    shutil.copytree(in_tinyhub / "openai/clip-vit-base-patch32", folder)
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**config, "resample": 2}))
    other = load_encoders(str(folder), "xlm-roberta-base", "cpu").vision
    assert other.signature.split("#")[1] == encoders.vision.signature.split("#")[1]
    assert other.cache_key != encoders.vision.cache_key


def test_a_known_checkpoint_is_not_read_again_until_its_files_change(in_tinyhub, tmp_path, monkeypatch):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from lmms_eval_emi.encoders import load_vision_encoder
    from lmms_eval_emi.encoders.vision import VisionEncoder

    folder = tmp_path / "clip"
    shutil.copytree(in_tinyhub / "openai/clip-vit-base-patch32", folder)
    read, compute = [], VisionEncoder.compute_fingerprint
    monkeypatch.setattr(VisionEncoder, "compute_fingerprint", lambda self: (read.append(1), compute(self))[1])
    cache = tmp_path / "cache"
    first = load_vision_encoder(str(folder), "cpu", cache).signature
    assert load_vision_encoder(str(folder), "cpu", cache).signature == first and len(read) == 1
    state = load_file(folder / "model.safetensors")
    save_file(
        {key: tensor + torch.finfo(torch.float32).eps for key, tensor in state.items()}, folder / "model.safetensors"
    )
    assert load_vision_encoder(str(folder), "cpu", cache).signature != first and len(read) == 2
    for path in (tmp_path / "cache" / "fingerprints").iterdir():
        path.write_text('{"identity": 3')
    assert load_vision_encoder(str(folder), "cpu", cache).signature != first and len(read) == 3
