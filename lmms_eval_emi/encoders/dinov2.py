"""DINOv2: mean of its patch states."""

from __future__ import annotations

from lmms_eval_emi.encoders.vision import VisionEncoder


class DINOv2Encoder(VisionEncoder):
    """Embeds images by the patch states after the last layer norm, class token dropped."""

    kinds = ("dinov2",)
    tower = "Dinov2Model"
    leading_tokens = 1
