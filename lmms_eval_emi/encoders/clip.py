"""CLIP's vision tower: mean of the last layer's patch states, before the post layer norm."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from lmms_eval_emi.encoders.base import check_loaded, fingerprint, place, quiet_transformers, unavailable

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

LONGEST_RESIZED_EDGE = 8192


class CLIPVisionEncoder:
    """Embeds images as Oh et al. (ICML 2025) do.

    The last encoder layer's hidden states before the post layer norm, class token dropped, mean
    over the patches, L2-normalised. Of the checkpoint only the vision tower is read.

    Args:
        name: hub name or folder of a CLIP checkpoint, of both towers or of the vision tower alone.
        device: where to run.

    Raises:
        EncoderUnavailable: the checkpoint is not here and cannot be fetched, or lacks weights.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import CLIPVisionModel

        self.name = name
        self.preprocess = CLIPPreprocessing(name)
        try:
            with quiet_transformers():
                model, info = CLIPVisionModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise unavailable(name, "vision encoder", "LMMS_EVAL_EMI_VISION_ENCODER", error) from error
        check_loaded(name, info["missing_keys"], optional=("post_layernorm", "vision_model.post_layernorm"))
        self.model: CLIPVisionModel = model.eval()
        self._fingerprint = fingerprint(model)
        self.device = place(model, name, device)

    @property
    def signature(self) -> str:
        """Name, fingerprint of the weights, and pooling."""
        return f"{self.name}#{self._fingerprint}/patch-mean"

    def to(self, device: torch.device) -> CLIPVisionEncoder:
        """Move to a device."""
        self.device = place(self.model, self.name, device)
        return self

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(M, D) float32 L2-normalised rows of M images of any mode and size, on the CPU."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            pixels = np.stack(list(pool.map(self.preprocess, images)))
        states = self.model(pixel_values=torch.from_numpy(pixels).to(self.device)).last_hidden_state
        pooled = states[:, 1:].double().mean(dim=1) if self.device.type != "mps" else states[:, 1:].mean(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1).float().cpu()


class CLIPPreprocessing:
    """CLIP's published preprocessing: RGB, shortest edge by antialiased bicubic resampling, centre crop, normalise.

    transformers resamples with torchvision where that is installed and with Pillow where it is not;
    the two differ by one level in some pixels, and the figures in their sixth digit. This class
    always resamples 8-bit pixels with PyTorch's own kernel, which is the one torchvision calls, so
    the pixels are the same on every machine. Sizes, mean and standard deviation are those of the
    checkpoint's ``preprocessor_config.json``.
    """

    def __init__(self, name: str) -> None:
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            config, _ = ImageProcessingMixin.get_image_processor_dict(name)
        except (OSError, ValueError) as error:
            raise unavailable(
                name, "image preprocessing of the vision encoder", "LMMS_EVAL_EMI_VISION_ENCODER", error
            ) from error
        size, crop = config.get("size", 224), config.get("crop_size", 224)
        self.size = int(size["shortest_edge"] if isinstance(size, dict) else size)
        self.crop = (int(crop["width"]), int(crop["height"])) if isinstance(crop, dict) else (int(crop), int(crop))
        self.mean = np.asarray(config.get("image_mean", (0.48145466, 0.4578275, 0.40821073)), dtype=np.float32)
        self.std = np.asarray(config.get("image_std", (0.26862954, 0.26130258, 0.27577711)), dtype=np.float32)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """(3, H, W) float32 pixels of one image of any mode and size."""
        pixels = self.resize_and_crop(to_rgb(image)).astype(np.float32) / 255
        return ((pixels - self.mean) / self.std).transpose(2, 0, 1)

    def resize_and_crop(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) 8-bit pixels of an RGB image as the tower sees it, before normalisation."""
        if self.size * max(image.size) / min(image.size) > LONGEST_RESIZED_EDGE:
            image = middle_of_strip(image)
        width, height = image.size
        short = min(width, height)
        resized = (int(self.size * height / short), int(self.size * width / short))
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)[None]
        pixels = torch.nn.functional.interpolate(
            pixels, size=resized, mode="bicubic", antialias=True, align_corners=False
        )
        top, left = (resized[0] - self.crop[1]) // 2, (resized[1] - self.crop[0]) // 2
        padding = [
            max(0, -left),
            max(0, self.crop[0] + left - resized[1]),
            max(0, -top),
            max(0, self.crop[1] + top - resized[0]),
        ]
        pixels = torch.nn.functional.pad(pixels, padding)
        top, left = max(0, top), max(0, left)
        return pixels[0, :, top : top + self.crop[1], left : left + self.crop[0]].permute(1, 2, 0).numpy()


def middle_of_strip(image: Image.Image) -> Image.Image:
    """The middle of an image so long that resizing it whole would take gigabytes for a small crop."""
    width, height = image.size
    long = 16 * min(width, height)
    left, top = max(0, (width - long) // 2), max(0, (height - long) // 2)
    return image.crop((left, top, min(width, left + long), min(height, top + long)))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, by Pillow's own conversion; an alpha channel is dropped, not blended."""
    if image.mode == "RGB":
        return image
    if image.mode in {"La", "RGBa"}:  # premultiplied modes convert to their plain twin only
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")
