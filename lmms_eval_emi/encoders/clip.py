"""CLIP's vision tower: mean of the last layer's patch states, before the post layer norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention, silu

from lmms_eval_emi.core.products import REORDER, has_onednn, product
from lmms_eval_emi.core.workers import here, workers
from lmms_eval_emi.encoders.base import mean_over_positions
from lmms_eval_emi.encoders.checkpoint import EncoderUnavailable, tensors_below
from lmms_eval_emi.encoders.vision import VisionEncoder
from lmms_eval_emi.util.files import blocks_of

AT_ONCE = 12  # images in a layer on the CPU
ACTIVATIONS = ("quick_gelu", "gelu")
QUICK = 1.702  # quick_gelu(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702
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
    together = 256

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

    def pooled(self, prepared: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
        """(M, D) means over the patches of M prepared images; their pixels are floats a few at a time."""
        step = AT_ONCE if device.type == "cpu" else len(prepared)
        parts = [lambda part=part: self.pixels(part).to(device) for part in blocks_of(prepared, step)]
        return self.model(parts, (self.threads or torch.get_num_threads()) if device.type == "cpu" else 0)


class CLIPVisionTower(nn.Module):
    """The vision transformer of CLIP (Radford et al., 2021) up to its last layer, with the mean over its patches.

    transformers' own takes 200 MB more to import, and its weights take 350 MB. Here the weights of one or two layers
    are in memory at a time, read again for every batch, unless :meth:`hold` keeps them all. On the CPU a layer takes a
    few images at a time, whose states stay in its caches.

    Args:
        config: the checkpoint's ``vision_config``.
        read: gives a weight by its name.
        name: of the checkpoint, for messages.
    """

    def __init__(self, config: dict[str, Any], read: Callable[[str], torch.Tensor], name: str) -> None:
        super().__init__()
        self.act = config.get("hidden_act", "quick_gelu")
        if self.act not in ACTIVATIONS:
            raise EncoderUnavailable(f"{name}: its activation is {self.act}; known are {', '.join(ACTIVATIONS)}.")
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
        count, colours, *sides = pixels.shape
        down, across = (side // self.patch for side in sides)
        positions = self.weight("embeddings.position_embedding.weight")
        if 1 + down * across != len(positions):
            raise ValueError(
                f"pixels: expected images of {len(positions) - 1} patches of {self.patch} pixels, got {down * across}. The preprocessing does not fit the checkpoint."
            )
        # Patches do not overlap, so they are rows of a product, which takes less time than a convolution does.
        patches = pixels[..., : down * self.patch, : across * self.patch]
        patches = patches.reshape(count, colours, down, self.patch, across, self.patch).permute(0, 2, 4, 1, 3, 5)
        weight = self.weight("embeddings.patch_embedding.weight").flatten(1)
        patches = _Linear(weight, None)(patches.reshape(count * down * across, -1))
        leading = self.weight("embeddings.class_embedding").expand(count, 1, -1)
        x = torch.cat([leading, patches.view(count, down * across, -1)], dim=1)
        ends = self.weight("pre_layrnorm.weight"), self.weight("pre_layrnorm.bias")
        return layer_norm(x.add_(positions), x.shape[-1:], *ends, self.eps)

    def forward(self, pixels: Sequence[Callable[[], torch.Tensor]], threads: int = 1) -> torch.Tensor:
        """(M, D) means over the patches after the last layer.

        Args:
            pixels: each gives the (m, 3, H, W) ones of a few of the M images, on one device.
            threads: on the CPU they take these few images each in turn, layer by layer, so that a layer is read once
                for all. Elsewhere there are none.
        """
        with workers(threads) if threads else here() as pool:
            done = [pool.submit(self._embedded, one) for one in pixels]
            for number in range(self.layers):
                # Work is taken up in this order, so what comes before it is done, or being done by another thread.
                layer = pool.submit(_Layer, self, number, done[0])
                done = [pool.submit(self._advanced, before, layer) for before in done]
                del layer  # it goes with the last of its work
            return torch.cat([one.result() for one in done])

    @torch.inference_mode()
    def _embedded(self, pixels: Callable[[], torch.Tensor]) -> torch.Tensor:
        return self.embed(pixels())

    @torch.inference_mode()
    def _advanced(self, before: Future[torch.Tensor], after: Future[_Layer]) -> torch.Tensor:
        """States after a layer, in the place of those before it; (M, D) means over the patches after the last."""
        x, layer = before.result(), after.result()
        layer.attend(x)
        hidden = layer.hidden(x)
        if layer.number < self.layers - 1:
            x += layer.fc2(hidden)
            return x
        # A mean and a product can change places, and here the mean leaves fewer rows for the product.
        mean = mean_over_positions(hidden[:, 1:]).to(x.dtype)
        return mean_over_positions(x[:, 1:]) + layer.fc2(mean)


class _Layer:
    """One layer of a tower with its weights, for states like the ones given."""

    @torch.inference_mode()
    def __init__(self, tower: CLIPVisionTower, number: int, like: Future[torch.Tensor]) -> None:
        rows = like.result()[..., 0].numel()

        def read(*names: str) -> tuple[torch.Tensor, torch.Tensor]:
            found = [
                [tower.weight(f"encoder.layers.{number}.{name}.{kind}") for name in names]
                for kind in ("weight", "bias")
            ]
            weight, bias = (own[0] if len(own) == 1 else torch.cat(own) for own in found)
            return weight, bias

        self.number, self.heads, self.eps = number, tower.heads, tower.eps
        self.norm1, self.norm2 = read("layer_norm1"), read("layer_norm2")
        self.qkv = _Linear(*read(*(f"self_attn.{one}_proj" for one in "qkv")), rows)
        self.out = _Linear(*read("self_attn.out_proj"), rows)
        first, (weight, bias) = read("mlp.fc1"), read("mlp.fc2")
        if tower.act == "quick_gelu":  # its factor is moved into the weights, and it becomes a part of the product
            self.fc1 = _Linear(first[0] * QUICK, first[1] * QUICK, rows, silu)
            self.fc2 = _Linear(weight / QUICK, bias)
        else:
            self.fc1, self.fc2 = _Linear(*first, rows, gelu), _Linear(weight, bias)

    def attend(self, x: torch.Tensor) -> None:
        """Add the attention's part to (M, L, D) states."""
        count, length, width = x.shape
        y = self.qkv(layer_norm(x, (width,), *self.norm1, self.eps))
        q, k, v = y.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v)
        x += self.out(y.transpose(1, 2).reshape(count, length, width))

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """(M, L, 4 D) what the second linear layer of the MLP takes."""
        return self.fc1(layer_norm(x, x.shape[-1:], *self.norm2, self.eps))


class _Linear:
    """``act(x W^T + b)``.

    oneDNN takes a weight in an order of its own, in which one is put that serves several products.

    Args:
        weight: (D', D).
        bias: (D',) or ``None``.
        rows: of the inputs of several products; 0 where there is one, or where the order does not matter.
        act: ``silu``, which oneDNN computes with the product, or ``gelu``.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: int = 0,
        act: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.bias, self.act = bias, act
        self.weight = REORDER(weight, rows) if has_onednn(weight) and REORDER and rows else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.act is silu:
            return product(x, self.weight, self.bias, "swish")
        y = product(x, self.weight, self.bias)
        return self.act(y) if self.act else y


def _attribute(name: str) -> str:
    return name.replace(".", "_")
