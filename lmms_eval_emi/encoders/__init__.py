"""Encoders, a file each, and :func:`load_encoders`, which gives those that the settings name."""

from __future__ import annotations

from dataclasses import dataclass

from lmms_eval_emi.encoders.base import Encoder, EncoderUnavailable, resolve_device

__all__ = ["Encoder", "EncoderUnavailable", "Encoders", "load_encoders"]


@dataclass(frozen=True)
class Encoders:
    """The two encoders of a run."""

    vision: Encoder
    text: Encoder

    @property
    def signature(self) -> str:
        """Both encoders, as they stand in signatures."""
        return f"{self.vision.signature}+{self.text.signature}"


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
    from lmms_eval_emi.encoders.clip import CLIPVisionEncoder
    from lmms_eval_emi.encoders.xlm_roberta import XLMRobertaEmbeddingEncoder

    where = resolve_device(device)
    return Encoders(CLIPVisionEncoder(vision, where), XLMRobertaEmbeddingEncoder(text, where))
