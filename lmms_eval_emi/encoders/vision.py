"""Encoders of images, which take the mean over patch states: a checkpoint's own preprocessing, their base, CLIP, SigLIP and DINOv2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from lmms_eval_emi.data.images import TRANSPARENCY, to_rgb
from lmms_eval_emi.encoders.base import (
    Encoder,
    checkpoint_file,
    fingerprint,
    mean_over_positions,
    normalised,
    unavailable,
)
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


class VisionEncoder(Encoder):
    """Embeds images by the L2-normalised mean of a vision tower's patch states.

    A subclass names the tower's class in transformers, the number of leading tokens that are not patches, and the
    weights that the states do not depend on.

    Args:
        name: hub name or folder of a checkpoint.
        device: where to run.
        cache: folder that remembers fingerprints; ``None`` remembers nothing.

    Raises:
        UnavailableError: the checkpoint is not available locally and cannot be fetched, lacks weights, or asks for a preprocessing
            step that this package does not have.
    """

    tower: ClassVar[str]
    leading_tokens: ClassVar[int] = 0
    pooling: ClassVar[str] = "patch-mean"
    optional_weights: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[dict[str, Any]] = {}
    role, variable = "vision encoder", "LMMS_EVAL_EMI_VISION_ENCODER"

    def __init__(self, name: str, device: torch.device, cache: Path | None = None) -> None:
        self.preprocessing = Preprocessing(name)
        super().__init__(name, device, cache)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return (H, W, 3) 8-bit pixels as the tower sees them, before normalisation."""
        return self.preprocessing.resize_and_crop(to_rgb(image))

    @property
    def signature(self) -> str:
        """Name, fingerprint of the weights, pooling, and what becomes of transparent parts of an image."""
        return f"{super().signature}/{TRANSPARENCY}"

    @property
    def cache_key(self) -> str:
        """Everything that a row depends on, with the preprocessing."""
        return f"{super().cache_key}/{self.preprocessing.description}/{TRANSPARENCY}"

    @property
    def dimension(self) -> int:
        """Width of a row."""
        config = self.checkpoint.config.get("vision_config") or self.checkpoint.config
        return int(config["hidden_size"])

    def load(self) -> torch.nn.Module:
        """Load the tower."""
        return self.load_from_transformers(self.tower, self.options, self.optional_weights)

    def compute_fingerprint(self) -> str:
        """Return the fingerprint of those weights of the tower that the checkpoint has."""
        state = self.model.state_dict()
        return fingerprint(
            {key.removeprefix("vision_model."): state[key] for key in state if key not in self.initialised}
        )

    @torch.inference_mode()
    def encode(self, prepared: Sequence[np.ndarray | Image.Image]) -> torch.Tensor:
        """Return (M, D) float32 L2-normalised rows of M images or prepared images, on the CPU."""
        ready = [self.prepare(item) if isinstance(item, Image.Image) else item for item in prepared]
        device = self.place_model()
        pixels = torch.from_numpy(np.stack([self.preprocessing.to_float(item) for item in ready]))
        states = self.model(pixel_values=pixels.to(device)).last_hidden_state
        return normalised(mean_over_positions(states[:, self.leading_tokens :]))


class CLIPVisionEncoder(VisionEncoder):
    """Embeds images as Oh et al. (ICML 2025) do: class token dropped, mean over the patches, L2-normalised."""

    kinds = ("clip", "clip_vision_model")
    tower = "CLIPVisionModel"
    leading_tokens = 1
    optional_weights = ("post_layernorm", "vision_model.post_layernorm")  # it applies to the pooled output alone


class SigLIPVisionEncoder(VisionEncoder):
    """Embeds images by the patch states after the last layer norm, which SigLIP's own pooling head also reads."""

    kinds = ("siglip", "siglip_vision_model")
    tower = "SiglipVisionModel"
    optional_weights = ("head", "vision_model.head")


class DINOv2Encoder(VisionEncoder):
    """Embeds images by the patch states after the last layer norm, class token dropped."""

    kinds = ("dinov2",)
    tower = "Dinov2Model"
    leading_tokens = 1
