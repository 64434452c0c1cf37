"""How similar CLIP-like embeddings of a picture and of its shifted copy are, level by level.

    python benchmarks/geometry_levels.py [--vision-encoder NAME|PATH] [--images FOLDER] [--operators NAME ...]

By default the pictures are those of the demo and the encoder is the demo's, a small one of CLIP's kind that was trained
on captions of such scenes. The levels of the geometric operators were chosen by this table, so that the mean cosine
falls by steps of like size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from lmms_eval_emi.data.images import open_image
from lmms_eval_emi.data.rows import dataset_images
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.encoders import load_vision_encoder
from lmms_eval_emi.shifts import operators, shift_image
from lmms_eval_emi.shifts.at_load import load_splits
from lmms_eval_emi.slices.demo.command import ASSETS

GEOMETRY = [name for name, one in operators("visual").items() if one.group == "geometry"]


def pictures(folder: Path | None, most: int) -> list[Image.Image]:
    """Distinct pictures of a folder, or of the demo's study."""
    if folder:
        return [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())[:most]]
    study = load_study("demo")
    rows = load_splits(study, [study.id_split])[study.id_split]
    distinct = dict.fromkeys(image.encoded() for image in dataset_images(rows, "image", ()) if image)
    return [open_image(content).convert("RGB") for content in list(distinct)[:most]]


def similarities(encoder, images: list[Image.Image], name: str) -> list[float]:
    """Mean cosine with the unshifted picture, by level."""

    def embed(some: list[Image.Image]) -> torch.Tensor:
        return encoder.encode([encoder.prepare(image) for image in some])

    clean = embed(images)
    found = []
    for level in range(1, len(operators("visual")[name].levels) + 1):
        shifted = embed([shift_image(image, name, level, row_id=row) for row, image in enumerate(images)])
        found.append(float((clean * shifted).sum(dim=-1).mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vision-encoder", default=None, help="default: the demo's")
    parser.add_argument("--images", type=Path, help="folder of pictures (default: the demo's)")
    parser.add_argument("--most", type=int, default=60, help="pictures (default: %(default)s)")
    parser.add_argument("--operators", nargs="*", default=[*GEOMETRY, "defocus_blur", "fog", "pixelate"])
    arguments = parser.parse_args()
    encoder = load_vision_encoder(arguments.vision_encoder or str(ASSETS / "vision_encoder"), "cpu")
    images = pictures(arguments.images, arguments.most)
    rows = []
    for name in arguments.operators:
        found = similarities(encoder, images, name)
        steps = -np.diff([1.0, *found])
        rows.append([name, *(f"{value:.3f}" for value in found), f"{steps.max() / max(1e-9, steps.min()):.1f}"])
    print(f"{len(images)} pictures, {encoder.name}")
    print(
        tabulate(rows, headers=["operator", *map(str, range(1, 6)), "largest step / smallest"], disable_numparse=True)
    )


if __name__ == "__main__":
    main()
