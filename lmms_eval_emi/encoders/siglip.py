"""SigLIP's vision tower: mean of its patch states."""

from __future__ import annotations

from lmms_eval_emi.encoders.vision import VisionEncoder


class SigLIPVisionEncoder(VisionEncoder):
    """Embeds images by the patch states after the last layer norm, which SigLIP's own pooling head also reads."""

    kinds = ("siglip", "siglip_vision_model")
    tower = "SiglipVisionModel"
    optional_weights = ("head", "vision_model.head")
