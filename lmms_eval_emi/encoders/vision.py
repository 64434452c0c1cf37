"""What the encoders of images have in common: a checkpoint's vision tower and its preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image

from lmms_eval_emi.encoders.base import (
    check_loaded,
    fingerprint,
    place,
    pool_and_normalise,
    quiet_transformers,
    unavailable,
)
from lmms_eval_emi.encoders.preprocessing import Preprocessing

Self = TypeVar("Self", bound="VisionEncoder")


class VisionEncoder:
    """Embeds images: the mean of the patch states that a vision tower gives, L2-normalised.

    A subclass names the tower's class in transformers, how many leading tokens are no patches, what the
    pooling is called in signatures, and which weights the states do not depend on.

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

    def __init__(self, name: str, device: torch.device) -> None:
        import transformers

        self.name = name
        self.prepare = Preprocessing(name)
        try:
            with quiet_transformers():
                model, info = getattr(transformers, self.tower).from_pretrained(
                    name, dtype=torch.float32, output_loading_info=True, **self.options
                )
        except (OSError, ValueError) as error:
            raise unavailable(name, "vision encoder", "LMMS_EVAL_EMI_VISION_ENCODER", error) from error
        check_loaded(name, info["missing_keys"], optional=self.optional_weights)
        self.model = model.eval()
        self.dimension = int(model.config.hidden_size)
        self._fingerprint = fingerprint(model)
        self.device = place(model, name, device)

    @property
    def signature(self) -> str:
        """Name, fingerprint of the weights, and pooling."""
        return f"{self.name}#{self._fingerprint}/{self.pooling}"

    def to(self: Self, device: torch.device) -> Self:
        """Move to a device."""
        self.device = place(self.model, self.name, device)
        return self

    @torch.inference_mode()
    def encode(self, prepared: Sequence[np.ndarray | Image.Image]) -> torch.Tensor:
        """(M, D) float32 L2-normalised rows of M images or prepared images, on the CPU."""
        pixels = np.stack([self.prepare(one) if isinstance(one, Image.Image) else one for one in prepared])
        states = self.model(pixel_values=torch.from_numpy(pixels).to(self.device)).last_hidden_state
        return pool_and_normalise(states[:, self.leading_tokens :], None, self.device)
