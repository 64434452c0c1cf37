"""Base class of image encoders: a checkpoint's vision tower and its preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from lmms_eval_emi.data.images import TRANSPARENCY, to_rgb
from lmms_eval_emi.encoders.base import Encoder, mean_over_positions, normalised
from lmms_eval_emi.encoders.checkpoint import fingerprint
from lmms_eval_emi.encoders.preprocessing import Preprocessing


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
        """Return the fingerprint of the tower's weights, as far as the checkpoint has them."""
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
