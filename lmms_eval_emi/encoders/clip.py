"""CLIP's vision tower: mean of the last layer's patch states, before the post layer norm."""

from __future__ import annotations

from lmms_eval_emi.encoders.vision import VisionEncoder


class CLIPVisionEncoder(VisionEncoder):
    """Embeds images as Oh et al. (ICML 2025) do.

    The last encoder layer's hidden states before the post layer norm, class token dropped, mean
    over the patches, L2-normalised. Of the checkpoint only the vision tower is read.
    """

    tower = "CLIPVisionModel"
    leading_tokens = 1
    optional_weights = ("post_layernorm", "vision_model.post_layernorm")
