"""Images as people have them: with damaged tags, much text, no common scale, transparent, or no images at all."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lmms_eval_emi.data.images import content_key, encoded_image, open_image, pixel_key, to_rgb
from lmms_eval_emi.errors import ImageError

NAMES = ("openai/clip-vit-base-patch32", "xlm-roberta-base")


def picture(side=8, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"tEXt"])
def test_a_picture_with_megabytes_of_text_is_read(kind):
    plain = png(picture())
    body = b"p\0" + (b"a" * 2_000_000 if kind == b"tEXt" else b"\0" + zlib.compress(b"a" * 2_000_000))
    assert pixel_key(plain[:33] + chunk(kind, body) + plain[33:]) == pixel_key(plain)


def test_a_picture_with_a_damaged_tag_is_turned_by_its_orientation():
    file = io.BytesIO()
    picture().resize((16, 8)).save(file, "JPEG")
    records = struct.pack("<HHI4s", 0x112, 3, 1, b"\6\0\0\0") + struct.pack("<HHI4s", 0x100, 9, 1, b"\xff\xff\xff\xff")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + records + b"\0\0\0\0"
    content = file.getvalue()
    content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]
    assert open_image(content).size == (8, 16)


@pytest.mark.parametrize(
    ("top", "brightest"),
    [(1.0, 255), (1.3, 255), (2.0, 255), (254.0, 254), (255.0, 255), (300.0, 255), (4096.0, 16), (65535.0, 255)],
)
def test_floats_are_read_on_the_scale_that_they_are_on(top, brightest):
    values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    pixels = np.asarray(to_rgb(Image.fromarray(values)))
    assert int(pixels.max()) == brightest and len(np.unique(pixels)) > (32 if brightest > 16 else 8)


def test_values_of_two_possible_scales_are_refused():
    values = np.linspace(0, 1000, 64).reshape(8, 8)
    for kind in (np.float32, np.int32):
        with pytest.raises(ImageError, match="values from 0 to 1000"):
            to_rgb(Image.fromarray(values.astype(kind)))
    sixteen = Image.fromarray(values.astype(np.uint16))
    assert int(np.asarray(to_rgb(open_image(png(sixteen)))).max()) == 4, "a PNG says that it has 16 bits"


def test_a_transparent_grey_of_16_bits_is_white():
    values = np.full((4, 4), 500, dtype=np.uint16)
    values[0] = 60_000
    image = open_image(png(Image.fromarray(values), transparency=500))
    assert np.asarray(to_rgb(image))[1:].min() == 255


def test_floats_below_zero_are_refused():
    with pytest.raises(ImageError, match="expected 0 to 1, 0 to 255 or 0 to 65535"):
        to_rgb(Image.fromarray(np.full((4, 4), -1, dtype=np.float32)))


def test_drawings_on_a_transparent_ground_differ():
    def drawing(place):
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image.putpixel((place, place), (0, 0, 0, 255))
        return image

    assert len({pixel_key(drawing(place)) for place in range(6)}) == 6
    assert to_rgb(drawing(0)).getpixel((7, 7)) == (255, 255, 255)


def test_one_picture_in_two_compressions_is_one_image(in_tinyhub):
    from lmms_eval_emi.data.rows import Sample
    from lmms_eval_emi.encoders import load_encoders
    from lmms_eval_emi.scoring.embed import embed_splits

    images = [png(picture(32, row), compress_level=level) for row in range(3) for level in (1, 9)]
    assert len({content_key(one) for one in images}) == 6
    rows = [Sample(one, "q", f"r {row}", "y", id=row) for row, one in enumerate(images)]
    groups = embed_splits({"a": rows}, load_encoders(*NAMES))["a"].groups
    assert len(set(groups)) == 3 and groups[0] == groups[1] != groups[2]


@pytest.mark.parametrize(
    "head", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x00\x05\x16\x07 Mac", b"GIF?"]
)
def test_what_is_no_raster_image_is_refused_by_what_it_begins_with(head, tmp_path, monkeypatch):
    called = tmp_path / "called"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ImageError, match="expected one of PNG, JPEG"):
        open_image(head)
    assert not called.exists()


def test_cells_of_tables_hold_images_in_many_ways(tmp_path):
    content = png(picture(32))
    (tmp_path / "a.png").write_bytes(content)
    text = base64.b64encode(content).decode()
    for cell in (
        content,
        {"bytes": content, "path": None},
        text,
        f"data:image/png;base64,{text}",
        "a.png",
        {"bytes": text},
    ):
        assert encoded_image(cell, [tmp_path]) == content


def test_a_message_about_a_cell_is_short(tmp_path):
    with pytest.raises(ImageError) as caught:
        encoded_image("x" * 100_000, [tmp_path])
    assert len(str(caught.value)) < 500


def test_palettes_are_part_of_what_a_model_sees():
    from lmms_eval_emi.harness.lmms_eval.resume.request_content import content_hash

    red, blue = (Image.new("P", (4, 4), 0) for _ in range(2))
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)
    assert content_hash(red) != content_hash(blue)
    assert content_hash(red) == content_hash(red.copy())


def test_whatever_a_model_may_look_at_is_part_of_a_request(tmp_path):
    from pathlib import Path

    import torch

    from lmms_eval_emi.harness.lmms_eval.resume.request_content import content_hash

    def turned(tag):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x112] = tag
        picture().save(file, "PNG", exif=exif)
        return Image.open(file)

    assert content_hash(turned(1)) != content_hash(turned(6)), "some models rotate by it"
    assert content_hash(Image.new("La", (2, 2))) is not None
    assert content_hash(torch.zeros(2)) != content_hash(torch.ones(2))
    assert content_hash(Path("a")) != content_hash(Path("b")) and content_hash({1, 2}) == content_hash({2, 1})
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "0.png").write_bytes(b"a")
    before = content_hash(str(frames)), content_hash(f"file://{frames / '0.png'}")
    (frames / "0.png").write_bytes(b"bb")
    assert content_hash(str(frames)) != before[0] and content_hash(f"file://{frames / '0.png'}") != before[1]


def test_no_reader_of_a_task_starts_a_program(tmp_path, monkeypatch):
    """datasets decodes by content, and Pillow's reader of EPS starts Ghostscript, whatever the file is called."""
    import datasets

    from lmms_eval_emi.harness.lmms_eval.hooks import study_hooks

    called = tmp_path / "called"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    rows = {"id": ["0"], "question": ["q"], "answer": ["a"], "image": [{"bytes": eps, "path": "0.png"}]}
    features = datasets.Features(
        {**{name: datasets.Value("string") for name in ("id", "question", "answer")}, "image": datasets.Image()}
    )
    stored = datasets.Dataset.from_dict(rows, features=features)
    stored.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "study.yaml").write_text(
        "name: mine\nid_split: clean\ndataset: {path: rows.parquet, columns: {id: id, question: question, reference: answer, image: image}}\nsplits: {clean: {}}\n"
    )
    monkeypatch.setenv("LMMS_EVAL_EMI_PREFLIGHT", "0")
    hooks = study_hooks(str(tmp_path / "study.yaml"))
    document = hooks.process_docs_of("clean")(stored)[0]
    with pytest.raises(Exception, match="expected one of PNG, JPEG"):
        hooks.doc_to_visual(document)
    assert not called.exists()
