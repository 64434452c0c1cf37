"""Encoders, a file each, and :func:`load_encoders`, which gives those that the settings name."""

from __future__ import annotations

from dataclasses import dataclass

from lmms_eval_emi.encoders.base import Encoder, EncoderUnavailable, resolve_device

__all__ = ["Encoder", "EncoderUnavailable", "Encoders", "load_encoders", "load_text_encoder", "load_vision_encoder"]


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


def load_vision_encoder(name: str, device: str = "auto") -> Encoder:
    """Load the encoder of images; see :func:`load_encoders`."""
    from lmms_eval_emi.encoders.clip import CLIPVisionEncoder

    return CLIPVisionEncoder(name, resolve_device(device))


def load_text_encoder(name: str, device: str = "auto") -> Encoder:
    """Load the encoder of texts; see :func:`load_encoders`."""
    from lmms_eval_emi.encoders.xlm_roberta import XLMRobertaEmbeddingEncoder

    return XLMRobertaEmbeddingEncoder(name, resolve_device(device))


def load_encoders(vision: str, text: str, device: str = "auto") -> Encoders:
    """Load both encoders.

    Args:
        vision: hub name or folder of a CLIP checkpoint.
        text: hub name or folder of an XLM-R checkpoint with its tokenizer.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Raises:
        EncoderUnavailable: one is not on this machine and cannot be fetched.
        ValueError: the device is not there.
    """
    return Encoders(load_vision_encoder(vision, device), load_text_encoder(text, device))
