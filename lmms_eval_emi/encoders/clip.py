"""CLIP's vision tower: mean of the last layer's patch states, before the post layer norm."""

from __future__ import annotations

from lmms_eval_emi.encoders.vision import VisionEncoder


class CLIPVisionEncoder(VisionEncoder):
    """Embeds images as Oh et al. (ICML 2025) do: class token dropped, mean over the patches, L2-normalised."""

    kinds = ("clip", "clip_vision_model")
    tower = "CLIPVisionModel"
    leading_tokens = 1
    optional_weights = ("post_layernorm", "vision_model.post_layernorm")  # it applies to the pooled output alone
