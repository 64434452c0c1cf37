"""Encoders, and :func:`load_encoders`, which loads those that the settings name.

A new encoder is one file in this folder with a subclass of :class:`VisionEncoder` or :class:`TextEncoder` whose
``kinds`` name the checkpoints it reads: by the ``model_type`` of their configuration, or by a prefix of the name, as
in ``mean:sentence-transformers/LaBSE``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmms_eval_emi.encoders.base import Encoder, read_config, resolve_device, unavailable
from lmms_eval_emi.encoders.text import TextEncoder
from lmms_eval_emi.encoders.vision import VisionEncoder
from lmms_eval_emi.errors import InputError, UnavailableError
from lmms_eval_emi.util.imports import subclasses_in

__all__ = ["Encoder", "Encoders", "load_encoders", "load_text_encoder", "load_vision_encoder", "resolve_device"]


@dataclass(frozen=True)
class Encoders:
    """The two encoders of a run; one of text alone needs no vision encoder."""

    vision: Encoder | None
    text: Encoder

    @property
    def signature(self) -> str:
        """Both encoders, as signatures show them."""
        return f"{self.vision.signature}+{self.text.signature}" if self.vision else self.text_signature

    @property
    def text_signature(self) -> str:
        """The signature of splits without images."""
        return f"text-only+{self.text.signature}"

    def check_widths(self) -> None:
        """Check that images and questions have embeddings of one width, since the input is their mean.

        Raises:
            InputError: the widths differ.
        """
        if self.vision and self.vision.dimension != self.text.dimension:
            raise InputError(
                f"The vision encoder {self.vision.name} gives {self.vision.dimension} dimensions and the text encoder {self.text.name} {self.text.dimension}. "
                "The input is the mean of both, so they must be equal. Pairs that fit: with 768 dimensions CLIP ViT-B, SigLIP base or DINOv2 base "
                "beside XLM-R base or a base-size sentence encoder; with 1024 CLIP ViT-L, SigLIP large or DINOv2 large beside XLM-R large. "
                "Set LMMS_EVAL_EMI_VISION_ENCODER and LMMS_EVAL_EMI_TEXT_ENCODER."
            )


def load_vision_encoder(name: str, device: str = "auto", cache: Path | None = None) -> Encoder:
    """Load the encoder of images; see :func:`load_encoders`."""
    return _load(VisionEncoder, name, device, cache)


def load_text_encoder(name: str, device: str = "auto", cache: Path | None = None) -> Encoder:
    """Load the encoder of texts; see :func:`load_encoders`."""
    return _load(TextEncoder, name, device, cache)


def load_encoders(vision: str, text: str, device: str = "auto", cache: Path | None = None) -> Encoders:
    """Load both encoders.

    Args:
        vision: hub name or folder of a CLIP, SigLIP or DINOv2 checkpoint, or ``kind:name``.
        text: hub name or folder of an XLM-R checkpoint with its tokenizer, or ``mean:name`` for the mean
            of any text model's last layer.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
        cache: folder that remembers the fingerprints of weights.

    Raises:
        UnavailableError: an encoder is not on this machine and cannot be fetched, or its kind is unknown.
        InputError: the device is not there, or the two give embeddings of unequal width.
    """
    encoders = Encoders(load_vision_encoder(vision, device, cache), load_text_encoder(text, device, cache))
    encoders.check_widths()
    return encoders


@lru_cache
def encoder_kinds(base: type[Encoder]) -> dict[str, type[Encoder]]:
    """Return the encoders of images or of texts, by the kinds of checkpoints that they read."""
    return {kind: encoder for encoder in subclasses_in(sys.modules[__name__], base) for kind in encoder.kinds}


def _load(base: type[Encoder], name: str, device: str, cache: Path | None) -> Any:
    registry = encoder_kinds(base)  # type: ignore[arg-type] # mypy takes a class with __hash__ for no hashable
    kind, colon, rest = name.partition(":")
    if colon and kind in registry:
        name = rest
    else:
        try:
            kind = str(read_config(name).get("model_type", "unknown"))
        except (OSError, InputError) as error:
            raise unavailable(name, base.role, base.variable, error) from error
    if kind not in registry:
        raise UnavailableError(
            f"The {base.role} {name!r} is of the kind {kind!r}; known are {', '.join(registry)}. "
            f"Choose another checkpoint, or say how to read it, such as {list(registry)[-1]}:{name}."
        )
    return registry[kind](name, resolve_device(device), cache)
