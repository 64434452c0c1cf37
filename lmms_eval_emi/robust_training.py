"""Vittle's bottleneck for LLaVA models of transformers: an adapter that keeps less of an input, trained with a KL term.

Source: Oh et al., *Visual Instruction Bottleneck Tuning*, NeurIPS 2025 (arXiv 2505.13946). With h the output (D,) of a block
of the language model at one token, an MLP for tokens of images and one for tokens of text give a posterior

    q(z | h) = N(mu, diag(sigma^2)),    z = mu + sigma * eps in training, z = mu otherwise,

and the block's output becomes (1 - alpha) h + alpha z. Training adds beta * KL(q || r) to the loss of the task, with a fixed prior
r = N(0, I) (Vittle (F)) or one whose mean and variance are learned (Vittle (L)):

    KL = 1/2 mean over tokens and dimensions of [ ((mu - m)^2 + sigma^2) / s^2 - log(sigma^2 / s^2) - 1 ].

The shift index as a loss is :func:`lmms_eval_emi.functional.shift_index`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lmms_eval_emi.errors import InputError, UnavailableError

LIMIT = math.log(10.0)  # largest absolute log-variance, as published
FINAL_ALPHA = 0.5
WEIGHTS, CONFIG = "bottleneck.safetensors", "bottleneck.json"
IGNORED = -100  # label of a token that the loss of the task leaves out


class _Posterior(nn.Module):
    """Mean and log-variance of z for (N, D) hidden states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2 * width))

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_variance = self.layers(hidden).chunk(2, dim=-1)
        return mean, _limited(log_variance)


def _limited(log_variance: torch.Tensor) -> torch.Tensor:
    """Return the log-variances within the limits; gradients pass as if there were none, as published."""
    return log_variance + (log_variance.clamp(-LIMIT, LIMIT) - log_variance).detach()


class Bottleneck(nn.Module):
    """The adapter: two MLPs, the prior, and hooks on a model of transformers.

    Args:
        width: D, of the language model's hidden states.
        layer: number of the block, from 0, behind which it stands. Published for LLaVA-1.5-7B: 24 of 32.
        learned_prior: Vittle (L) instead of (F).
        beta: weight of the KL of images and of that of texts.
        final_alpha: fraction of z at the end of training and in evaluation.

    Raises:
        InputError: a number is out of range.

    >>> bottleneck = Bottleneck(width=8, layer=0)
    >>> bottleneck.alpha
    0.5
    """

    def __init__(
        self,
        width: int,
        layer: int,
        *,
        learned_prior: bool = False,
        beta: float = 0.1,
        final_alpha: float = FINAL_ALPHA,
    ) -> None:
        super().__init__()
        if width < 1 or layer < 0 or beta < 0 or not 0 < final_alpha <= 1:
            raise InputError(
                f"bottleneck: expected width > 0, layer >= 0, beta >= 0 and 0 < final_alpha <= 1, got {width}, {layer}, {beta}, {final_alpha}."
            )
        self.config = {
            "width": width,
            "layer": layer,
            "learned_prior": learned_prior,
            "beta": beta,
            "final_alpha": final_alpha,
        }
        self.layer, self.beta, self.final_alpha = layer, beta, final_alpha
        self.alpha = final_alpha
        self.image, self.text = _Posterior(width), _Posterior(width)
        # (2, 2, D): of images and of texts, mean and log-variance; all 0 is N(0, I).
        self.prior = nn.Parameter(torch.zeros(2, 2, width), requires_grad=learned_prior)
        self._inputs: dict[str, torch.Tensor | None] = {}
        self._kl: torch.Tensor | None = None
        self._hooks: list[Any] = []

    @classmethod
    def for_model(cls, model: nn.Module, layer: int | None = None, **options: Any) -> Bottleneck:
        """Return a bottleneck for a model of transformers, attached to it.

        Args:
            model: LLaVA, LLaVA-NeXT or Qwen2.5-VL, or another class with ``get_decoder`` and image tokens.
            layer: default: the block after three quarters of them.
            options: options of the class.

        Raises:
            InputError: the model is of another form.
        """
        blocks = _blocks(model)
        width = int(model.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
        made = cls(width, 3 * len(blocks) // 4 if layer is None else layer, **options)
        first = next(blocks.parameters())
        return made.to(device=first.device, dtype=first.dtype).attach(model).train(model.training)

    def attach(self, model: nn.Module) -> Bottleneck:
        """Put the bottleneck behind its block; parameters of the model stay unchanged.

        Raises:
            InputError: the model is of another form, or has no such block.
        """
        blocks = _blocks(model)
        if self.layer >= len(blocks):
            raise InputError(f"layer: expected a block below {len(blocks)}, got {self.layer}.")
        config: Any = model.config
        token = getattr(config, "image_token_id", None)
        self._image_token = int(getattr(config, "image_token_index", -1) if token is None else token)

        def remember(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            ids = given.get("input_ids", args[0] if args else None)
            self._inputs = {"ids": ids, "labels": given.get("labels"), "attended": given.get("attention_mask")}

        def replace(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            changed = self(hidden)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        self.detach()
        self._hooks = [
            model.register_forward_pre_hook(remember, with_kwargs=True),
            blocks[self.layer].register_forward_hook(replace, prepend=True),
        ]
        return self

    def detach(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def set_progress(self, share: float) -> None:
        """Set alpha for a fraction of the training steps that are done: a sigmoid from next to 0 up to ``final_alpha``."""
        self.alpha = self.final_alpha / (1 + math.exp(-10 * (share - 0.5)))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the interpolated hidden states.

        Args:
            hidden: (B, L, D) output of the block for the tokens that the model was given.

        Raises:
            InputError: the model was called without ``input_ids``, which say where images are.
        """
        ids = self._inputs.get("ids")
        if ids is None or ids.shape != hidden.shape[:2]:
            raise InputError("the bottleneck needs input_ids of the model's call to tell images from text; got none.")
        images = (ids == self._image_token).to(hidden.device)
        result = torch.empty_like(hidden)
        terms = []
        for number, (posterior, where) in enumerate(((self.image, images), (self.text, ~images))):
            states = hidden[where]
            mean, log_variance = posterior(states)
            z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean) if self.training else mean
            alpha = self.alpha if self.training else self.final_alpha
            result[where] = ((1 - alpha) * states + alpha * z).to(hidden.dtype)
            counted = self._counted(where, text=number == 1)
            terms.append(self._divergence(mean[counted], log_variance[counted], number))
        self._kl = sum(terms, torch.zeros((), device=hidden.device))
        return result

    def _counted(self, where: torch.Tensor, *, text: bool) -> torch.Tensor:
        """Return a mask of the tokens with a KL term: all tokens of images, and the prompt's tokens of text."""
        counted = torch.ones_like(where)
        labels, attended = self._inputs.get("labels"), self._inputs.get("attended")
        if attended is not None and attended.shape == where.shape:
            counted &= attended.to(where.device).bool()
        if text and labels is not None and labels.shape == where.shape:
            counted &= labels.to(where.device) == IGNORED
        return counted[where]

    def _divergence(self, mean: torch.Tensor, log_variance: torch.Tensor, number: int) -> torch.Tensor:
        """Return KL of the posterior and the prior in nats, the mean over (N, D); 0 without tokens."""
        if not len(mean):
            return mean.sum().float()
        prior_mean, prior_log_variance = self.prior[number, 0].float(), _limited(self.prior[number, 1]).float()
        mean, log_variance = mean.float(), log_variance.float()
        spread = ((mean - prior_mean) ** 2 + log_variance.exp()) / prior_log_variance.exp()
        return 0.5 * (spread - (log_variance - prior_log_variance) - 1).mean()

    @property
    def loss(self) -> torch.Tensor:
        """``beta`` times the KL of the last forward pass, to be added to the loss of the task; a scalar.

        Raises:
            InputError: there was no forward pass.
        """
        if self._kl is None:
            raise InputError("the bottleneck has no KL yet: call the model first.")
        return self.beta * self._kl

    def save(self, folder: str | Path) -> Path:
        """Write weights and configuration beside a checkpoint; ``from_pretrained`` does not load them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS
        )
        (folder / CONFIG).write_text(json.dumps(self.config), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module) -> Bottleneck:
        """Read a saved bottleneck and attach it to a model, in evaluation mode.

        Raises:
            UnavailableError: a file is missing or damaged.
        """
        try:
            config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
            made = cls.for_model(
                model, config["layer"], **{k: v for k, v in config.items() if k not in ("layer", "width")}
            )
            made.load_state_dict(load_file(Path(folder) / WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UnavailableError(f"{folder}: expected {CONFIG} and {WEIGHTS} of a bottleneck: {error}") from error
        return made.eval()


def _blocks(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of a model's language model."""
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    for part in (decoder, getattr(decoder, "language_model", None), getattr(decoder, "model", None)):
        blocks = getattr(part, "layers", None)
        if isinstance(blocks, nn.ModuleList):
            return blocks
    raise InputError(f"model: expected a vision-language model of transformers, got {type(model).__name__}.")
