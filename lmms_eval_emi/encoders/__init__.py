"""Encoders, one per file, and :func:`load_encoders`, which gives those that the settings name.

A new encoder is one file and one entry below. Its kind is told by the checkpoint's own
``model_type``, or by a prefix of its name: ``mean:sentence-transformers/LaBSE``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lmms_eval_emi.encoders.base import Encoder, EncoderUnavailable, resolve_device, unavailable
from lmms_eval_emi.encoders.checkpoint import read_config

__all__ = ["Encoder", "EncoderUnavailable", "Encoders", "load_encoders", "load_text_encoder", "load_vision_encoder"]

# Kind or model_type of a checkpoint: the module below this package and its class.
VISION = {
    "clip": "clip:CLIPVisionEncoder",
    "clip_vision_model": "clip:CLIPVisionEncoder",
    "siglip": "siglip:SigLIPVisionEncoder",
    "siglip_vision_model": "siglip:SigLIPVisionEncoder",
    "dinov2": "dinov2:DINOv2Encoder",
}
TEXT = {
    "xlm-roberta": "xlm_roberta:XLMRobertaEmbeddingEncoder",
    "mean": "mean_pooling:MeanPoolingEncoder",
}


@dataclass(frozen=True)
class Encoders:
    """The two encoders of a run."""

    vision: Encoder
    text: Encoder

    @property
    def signature(self) -> str:
        """Both encoders, as they stand in signatures."""
        return f"{self.vision.signature}+{self.text.signature}"

    @property
    def text_signature(self) -> str:
        """The signature of splits without images."""
        return f"text-only+{self.text.signature}"

    def check_widths(self) -> None:
        """Raise ``ValueError`` unless images and questions become embeddings of one width, whose mean is the input."""
        if self.vision.dimension != self.text.dimension:
            raise ValueError(
                f"The vision encoder {self.vision.name} gives {self.vision.dimension} dimensions and the text encoder {self.text.name} {self.text.dimension}. "
                "The input is the mean of both, so they must be equal. Pairs that fit: with 768 dimensions CLIP ViT-B, SigLIP base or DINOv2 base "
                "beside XLM-R base or a base-size sentence encoder; with 1024 CLIP ViT-L, SigLIP large or DINOv2 large beside XLM-R large. "
                "Set LMMS_EVAL_EMI_VISION_ENCODER and LMMS_EVAL_EMI_TEXT_ENCODER."
            )


def load_vision_encoder(name: str, device: str = "auto") -> Encoder:
    """Load the encoder of images; see :func:`load_encoders`."""
    return _load(VISION, name, device, "vision encoder", "LMMS_EVAL_EMI_VISION_ENCODER")


def load_text_encoder(name: str, device: str = "auto") -> Encoder:
    """Load the encoder of texts; see :func:`load_encoders`."""
    return _load(TEXT, name, device, "text encoder", "LMMS_EVAL_EMI_TEXT_ENCODER")


def load_encoders(vision: str, text: str, device: str = "auto") -> Encoders:
    """Load both encoders.

    Args:
        vision: hub name or folder of a CLIP, SigLIP or DINOv2 checkpoint, or ``kind:name``.
        text: hub name or folder of an XLM-R checkpoint with its tokenizer, or ``mean:name`` for the mean
            of any text model's last layer.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Raises:
        EncoderUnavailable: one is not on this machine and cannot be fetched, or is of no known kind.
        ValueError: the device is not there, or the two give embeddings of unequal width.
    """
    encoders = Encoders(load_vision_encoder(vision, device), load_text_encoder(text, device))
    encoders.check_widths()
    return encoders


def _load(registry: dict[str, str], name: str, device: str, what: str, variable: str) -> Encoder:
    kind, colon, rest = name.partition(":")
    if colon and kind in registry:
        name = rest
    else:
        kind = _model_type(name, what, variable)
    if kind not in registry:
        raise EncoderUnavailable(
            f"The {what} {name!r} is of the kind {kind!r}; known are {', '.join(registry)}. "
            f"Choose another checkpoint, or say how to read it, such as {list(registry)[-1]}:{name}."
        )
    module, _, class_name = registry[kind].partition(":")
    encoder: Any = getattr(import_module(f"{__name__}.{module}"), class_name)
    return encoder(name, resolve_device(device))


def _model_type(name: str, what: str, variable: str) -> str:
    """What a checkpoint's own file says that it is."""
    try:
        return str(read_config(name).get("model_type", "unknown"))
    except (OSError, ValueError) as error:
        raise unavailable(name, what, variable, error) from error
