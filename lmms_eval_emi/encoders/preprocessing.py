"""Pixels as a checkpoint's own preprocessing makes them: resize, crop, scale, normalise, as its file says."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from lmms_eval_emi.data.images import to_rgb
from lmms_eval_emi.encoders.base import unavailable
from lmms_eval_emi.encoders.checkpoint import checkpoint_file
from lmms_eval_emi.errors import InputError, UnavailableError
from lmms_eval_emi.util.files import read_json

LONGEST_RESIZED_EDGE = 8192
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, of the filters that PyTorch has for 8-bit pixels
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Steps of an image processor; one that is on and is not among these would be left out in silence.
STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}


class Preprocessing:
    """A checkpoint's published preprocessing, read from its ``preprocessor_config.json``.

    transformers resamples with torchvision where that is installed and with Pillow where it is not;
    the two differ by one level in some pixels, and scores in their sixth digit. This class always
    resamples 8-bit pixels with PyTorch's own kernel, which is the one torchvision calls, so the
    pixels are the same on every machine. A step that it does not have is refused by name.

    Args:
        name: hub name or folder of the checkpoint.

    Raises:
        UnavailableError: the file is not there, or asks for a step that is not known here.
    """

    def __init__(self, name: str) -> None:
        try:
            config = _read_config(name)
        except (OSError, ValueError) as error:
            raise unavailable(
                name, "image preprocessing of the vision encoder", "LMMS_EVAL_EMI_VISION_ENCODER", error
            ) from error
        self.name = name
        unknown = sorted(key for key, on in config.items() if key.startswith("do_") and on and key not in STEPS)
        if unknown:
            raise self._refused(f"the step {unknown[0]}")
        # Absent keys mean what CLIP's published file says.
        self.resized = self._size(config.get("size", 224)) if config.get("do_resize", True) else None
        resample = config.get("resample", 3)
        if self.resized and resample not in RESAMPLING:
            raise self._refused(
                f"resample {resample}; known are {', '.join(f'{k} ({v})' for k, v in RESAMPLING.items())}"
            )
        self.resample = RESAMPLING.get(resample, "bicubic")
        self.crop = self._crop(config.get("crop_size", 224)) if config.get("do_center_crop", True) else None
        self.scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
        normalise = config.get("do_normalize", True)
        self.mean = np.asarray(config.get("image_mean", CLIP_MEAN) if normalise else (0, 0, 0), dtype=np.float32)
        self.std = np.asarray(config.get("image_std", CLIP_STD) if normalise else (1, 1, 1), dtype=np.float32)

    @property
    def description(self) -> str:
        """Its steps, such that two with the same give the same pixels."""
        return repr((self.resized, self.resample, self.crop, self.scale, self.mean.tolist(), self.std.tolist()))

    def _refused(self, what: str) -> UnavailableError:
        return UnavailableError(
            f"{self.name}: its preprocessor_config.json asks for {what}, which lmms_eval_emi does not have. Use another checkpoint."
        )

    def _size(self, size: Any) -> int | tuple[int, int]:
        """Return the shortest edge, or width and height."""
        if isinstance(size, int):
            return size
        if isinstance(size, dict):
            known = {key: value for key, value in size.items() if value is not None}
            if set(known) == {"shortest_edge"}:
                return int(known["shortest_edge"])
            if set(known) == {"width", "height"}:
                return int(known["width"]), int(known["height"])
        raise self._refused(f"size {size}")

    def _crop(self, crop: Any) -> tuple[int, int]:
        if isinstance(crop, int):
            return crop, crop
        if isinstance(crop, dict) and {"width", "height"} <= crop.keys():
            return int(crop["width"]), int(crop["height"])
        raise self._refused(f"crop_size {crop}")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return (3, H, W) float32 pixels of one image of any mode and size."""
        return self.to_float(self.resize_and_crop(to_rgb(image)))

    def to_float(self, pixels: np.ndarray) -> np.ndarray:
        """Return (3, H, W) float32 pixels as the tower takes them of the (H, W, 3) 8-bit ones, scaled and normalised."""
        pixels = pixels.astype(np.float32)
        pixels = pixels / 255 if abs(self.scale - 1 / 255) < 1e-12 else pixels * np.float32(self.scale)
        return ((pixels - self.mean) / self.std).transpose(2, 0, 1)

    def resize_and_crop(self, image: Image.Image) -> np.ndarray:
        """Return (H, W, 3) 8-bit pixels of an RGB image as the tower sees it, before normalisation."""
        if isinstance(self.resized, int) and self.resized * max(image.size) / min(image.size) > LONGEST_RESIZED_EDGE:
            image = middle_of_strip(image)
        width, height = image.size
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)[None]
        if self.resized is not None:
            if isinstance(self.resized, int):
                short = min(width, height)
                height, width = int(self.resized * height / short), int(self.resized * width / short)
            else:
                width, height = self.resized
            pixels = torch.nn.functional.interpolate(
                pixels, size=(height, width), mode=self.resample, antialias=True, align_corners=False
            )
        if self.crop is None:
            return pixels[0].permute(1, 2, 0).numpy()
        top, left = (height - self.crop[1]) // 2, (width - self.crop[0]) // 2
        padding = [
            max(0, -left),
            max(0, self.crop[0] + left - width),
            max(0, -top),
            max(0, self.crop[1] + top - height),
        ]
        pixels = torch.nn.functional.pad(pixels, padding)
        top, left = max(0, top), max(0, left)
        return pixels[0, :, top : top + self.crop[1], left : left + self.crop[0]].permute(1, 2, 0).numpy()


def _read_config(name: str) -> dict[str, Any]:
    """Return the preprocessing configuration of a checkpoint; newer ones store it in ``processor_config.json``."""
    try:
        found = read_json(checkpoint_file(name, "preprocessor_config.json"))
    except (OSError, ValueError) as error:
        try:
            found = read_json(checkpoint_file(name, "processor_config.json"))["image_processor"]
        except (OSError, ValueError, KeyError, TypeError):
            raise error from None
    if not isinstance(found, dict):
        raise InputError(f"expected an object in preprocessor_config.json, got {type(found).__name__}")
    return found


def middle_of_strip(image: Image.Image) -> Image.Image:
    """Return the middle of an image so long that resizing it whole would take gigabytes for a small crop."""
    width, height = image.size
    long = 16 * min(width, height)
    left, top = max(0, (width - long) // 2), max(0, (height - long) // 2)
    return image.crop((left, top, min(width, left + long), min(height, top + long)))
