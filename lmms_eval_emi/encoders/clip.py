"""CLIP's vision tower: mean of the last layer's patch states, before the post layer norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

from lmms_eval_emi.encoders.checkpoint import EncoderUnavailable, tensors_below
from lmms_eval_emi.encoders.vision import VisionEncoder
from lmms_eval_emi.files import blocks_of

AT_ONCE = 8  # images in a layer on the CPU
ACTIVATIONS = {"quick_gelu": lambda x: torch.sigmoid(1.702 * x).mul_(x), "gelu": gelu}
# What PyTorch's compiler calls for a linear layer; older versions, and builds without oneDNN, have none.
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
LAYER = [
    f"{part}.{kind}"
    for part in (
        *("layer_norm1", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        *("layer_norm2", "mlp.fc1", "mlp.fc2"),
    )
    for kind in ("weight", "bias")
]


class CLIPVisionEncoder(VisionEncoder):
    """Embeds images as Oh et al. (ICML 2025) do.

    The last encoder layer's hidden states before the post layer norm, class token dropped, mean
    over the patches, L2-normalised. Of the checkpoint only the vision tower is read.
    """

    leading_tokens = 1

    @cached_property
    def _names(self) -> dict[str, str]:
        """Key of every weight in the checkpoint by its name in the tower."""
        names = ["embeddings.class_embedding", "embeddings.patch_embedding.weight"]
        names += ["embeddings.position_embedding.weight", "pre_layrnorm.weight", "pre_layrnorm.bias"]
        names += [f"encoder.layers.{n}.{one}" for n in range(self.config.get("num_hidden_layers", 12)) for one in LAYER]
        return tensors_below(self.checkpoint, ("vision_model.", ""), names)

    def load(self) -> nn.Module:
        """The tower, which reads the checkpoint's tensors themselves."""
        return CLIPVisionTower(self.config, lambda name: self.checkpoint.tensor(self._names[name]), self.name)

    def place_model(self) -> torch.device:
        """On a GPU the tower holds its weights; on the CPU it reads them layer by layer."""
        if self.device.type != "cpu":
            self.model.hold(list(self._names))  # type: ignore[operator]
        return super().place_model()

    def identify(self) -> str:
        """Fingerprint of the tower's weights, the post layer norm's among them, as transformers holds them."""
        some = next(iter(self._names.items()))
        prefix = some[1].removesuffix(some[0])
        ends = ("post_layernorm.weight", "post_layernorm.bias")
        after = {name: prefix + name for name in ends if prefix + name in self.checkpoint}
        return self.checkpoint.fingerprint({**self._names, **after})

    def states(self, prepared: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
        """(M, L, D) states of M prepared images, the class token first; their pixels are floats a few at a time."""
        step = AT_ONCE if device.type == "cpu" else len(prepared)
        parts = [self.model.embed(self.pixels(part).to(device)) for part in blocks_of(prepared, step)]  # type: ignore[operator]
        return self.model(torch.cat(parts))


class CLIPVisionTower(nn.Module):
    """The vision transformer of CLIP (Radford et al., 2021) up to its last layer.

    transformers' own takes 200 MB more to import, and its weights take 350 MB. Here the weights of one layer are
    in memory at a time, read again for every batch (a tenth of a second, where a batch of 64 takes three), unless
    :meth:`hold` keeps them all. On the CPU a layer takes a few images at a time, whose states stay in its caches.

    Args:
        config: the checkpoint's ``vision_config``.
        read: gives a weight by its name.
        name: of the checkpoint, for messages.
    """

    def __init__(self, config: dict[str, Any], read: Callable[[str], torch.Tensor], name: str) -> None:
        super().__init__()
        act = config.get("hidden_act", "quick_gelu")
        if act not in ACTIVATIONS:
            raise EncoderUnavailable(f"{name}: its activation is {act}; known are {', '.join(ACTIVATIONS)}.")
        self.act = ACTIVATIONS[act]
        self.read = read
        self.heads = int(config.get("num_attention_heads", 12))
        self.layers = int(config.get("num_hidden_layers", 12))
        self.patch = int(config.get("patch_size", 32))
        self.eps = float(config.get("layer_norm_eps", 1e-5))

    def hold(self, names: Sequence[str]) -> None:
        """Keep weights in the module, so that they move with it."""
        for name in names:
            if not hasattr(self, _attribute(name)):
                self.register_buffer(_attribute(name), self.read(name))

    def weight(self, name: str) -> torch.Tensor:
        """One weight by its name."""
        held = getattr(self, _attribute(name), None)
        return self.read(name) if held is None else held

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """(M, 1 + P, D) states before the first layer of (M, 3, H, W) pixels."""
        patches = conv2d(pixels, self.weight("embeddings.patch_embedding.weight"), stride=self.patch)
        patches = patches.flatten(2).transpose(1, 2)
        leading = self.weight("embeddings.class_embedding").expand(len(patches), 1, -1)
        x = torch.cat([leading, patches], dim=1)
        positions = self.weight("embeddings.position_embedding.weight")
        if x.shape[1] != len(positions):
            raise ValueError(
                f"pixels: expected images of {len(positions) - 1} patches of {self.patch} pixels, got {x.shape[1] - 1}. The preprocessing does not fit the checkpoint."
            )
        ends = self.weight("pre_layrnorm.weight"), self.weight("pre_layrnorm.bias")
        return layer_norm(x + positions, x.shape[-1:], *ends, self.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(M, 1 + P, D) states after the last layer of those before the first, which are overwritten on the CPU."""
        weights: dict[str, torch.Tensor] = {}
        for number in range(self.layers):
            weights.clear()  # before the next are read
            weights = {one: self.weight(f"encoder.layers.{number}.{one}") for one in LAYER}
            if x.device.type == "cpu":
                for part in x.split(AT_ONCE):
                    part.copy_(self._layer(part, weights))
            else:
                x = self._layer(x, weights)
        return x

    def _layer(self, x: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        def normalised(x: torch.Tensor, name: str) -> torch.Tensor:
            return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], self.eps)

        def projected(x: torch.Tensor, name: str) -> torch.Tensor:
            return _linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        count, length, width = x.shape
        y = normalised(x, "layer_norm1")
        q, k, v = (
            projected(y, f"self_attn.{one}_proj").view(count, length, self.heads, -1).transpose(1, 2) for one in "qkv"
        )
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, length, width)
        x = x + projected(y, "self_attn.out_proj")
        return x + projected(self.act(projected(normalised(x, "layer_norm2"), "mlp.fc1")), "mlp.fc2")


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``x W^T + b``. On the CPU oneDNN's product is a tenth faster than the one that PyTorch takes by itself."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and ONEDNN_LINEAR:
        return ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return linear(x, weight, bias)


def _attribute(name: str) -> str:
    return name.replace(".", "_")
