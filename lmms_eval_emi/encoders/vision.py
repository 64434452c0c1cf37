"""What the encoders of images have in common: a checkpoint's vision tower and its preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from lmms_eval_emi.encoders.base import (
    CheckpointEncoder,
    fingerprint,
    mean_over_positions,
    normalised,
)
from lmms_eval_emi.encoders.preprocessing import Preprocessing
from lmms_eval_emi.data.images import to_rgb

VARIABLE = "LMMS_EVAL_EMI_VISION_ENCODER"


class VisionEncoder(CheckpointEncoder):
    """Embeds images: the mean of the patch states that a vision tower gives, L2-normalised.

    A subclass says what the tower is, either by the name of its class in transformers, how many leading tokens are
    no patches, and which weights the states do not depend on; or by :meth:`load`, :meth:`pooled` and
    :meth:`identify` of its own.

    Args:
        name: hub name or folder of a checkpoint.
        device: where to run.

    Raises:
        EncoderUnavailable: the checkpoint is not here and cannot be fetched, lacks weights, or asks for
            a preprocessing that is not known here.
    """

    tower: ClassVar[str]
    leading_tokens: ClassVar[int] = 0
    pooling: ClassVar[str] = "patch-mean"
    optional_weights: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[dict[str, Any]] = {}
    what, variable = "vision encoder", VARIABLE

    def __init__(self, name: str, device: torch.device) -> None:
        self.preprocessing = Preprocessing(name)
        super().__init__(name, device)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) 8-bit pixels as the tower sees them: a quarter of the memory of the floats that it takes."""
        return self.preprocessing.resize_and_crop(to_rgb(image))

    @property
    def cache_key(self) -> str:
        """With the preprocessing."""
        return f"{super().cache_key}/{self.preprocessing.description}"

    @property
    def dimension(self) -> int:
        """Width of a row."""
        return int(self.config["hidden_size"])

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the tower: a part of the checkpoint's, or all of it."""
        return self.checkpoint.config.get("vision_config") or self.checkpoint.config

    def load(self) -> torch.nn.Module:
        """The tower as transformers has it."""
        return self.load_from_transformers(self.tower, self.options, self.optional_weights)

    def identify(self) -> str:
        """Fingerprint of the tower's weights."""
        return fingerprint(self.model)

    def pooled(self, prepared: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
        """(M, D) means over the patches of M prepared images."""
        states = self.model(pixel_values=self.pixels(prepared).to(device)).last_hidden_state
        return mean_over_positions(states[:, self.leading_tokens :])

    def pixels(self, prepared: Sequence[np.ndarray]) -> torch.Tensor:
        """(M, 3, H, W) float32 pixels of M prepared images."""
        return torch.from_numpy(np.stack([self.preprocessing.to_float(one) for one in prepared]))

    @torch.inference_mode()
    def encode(self, prepared: Sequence[np.ndarray | Image.Image]) -> torch.Tensor:
        """(M, D) float32 L2-normalised rows of M images or prepared images, on the CPU."""
        ready = [self.prepare(one) if isinstance(one, Image.Image) else one for one in prepared]
        device = self.place_model()
        return normalised(self.pooled(ready, device))
