"""Training an estimator on the pairs (input, response) and (input, reference) of some splits.

The defaults are those of Oh et al. (ICML 2025): AdamW, learning rate 1e-3, batches of 1,024 pairs,
5,000 iterations, hidden width 250.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.estimators.base import TrainedEstimator
from lmms_eval_emi.estimators.fitness import training_domain
from lmms_eval_emi.estimators.registry import KINDS
from lmms_eval_emi.files import write_atomically
from lmms_eval_emi.version import __version__

log = logging.getLogger("lmms_eval_emi")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        kind: ``club`` or ``infonce``.
        iterations: optimiser steps.
        batch_size: pairs a step.
        lr: learning rate of AdamW.
        hidden: width of the networks.
        seed: of the initial weights, the held-out part and the batches.
        held_out: share of the images that training never sees; 0 for none.
        keep: the state with the ``best`` held-out score, or the ``last``.
        every: steps between two held-out scores and checkpoints.
    """

    kind: str = "club"
    iterations: int = 5000
    batch_size: int = 1024
    lr: float = 1e-3
    hidden: int = 250
    seed: int = 0
    held_out: float = 0.1
    keep: str = "best"
    every: int = 100

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "hidden", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not self.lr > 0:
            raise ValueError(f"lr: expected a positive learning rate, got {self.lr}.")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out: expected a share in [0, 1), got {self.held_out}.")
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}.")
        if self.keep not in {"best", "last"}:
            raise ValueError(f"keep: expected 'best' or 'last', got {self.keep!r}.")
        if self.keep == "best" and self.held_out == 0:
            raise ValueError("keep: the best state is told by held-out pairs. Hold some out, or keep the last.")


@dataclass(frozen=True)
class Pairs:
    """Pooled pairs: x (M, D), y (M, D'), float32, and the cluster that each pair's image belongs to."""

    x: torch.Tensor
    y: torch.Tensor
    clusters: torch.Tensor


def embeddings_to_pairs(splits: Mapping[str, Embeddings]) -> Pairs:
    """Pool (input, response) and (input, reference) of all splits.

    Rows are of one cluster if they share an image, or an id and a reference answer, as the shifted
    twins of one row do; so that what is held out by cluster is new in every shift.
    """
    parent: dict[Any, Any] = {}

    def find(node: Any) -> Any:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    nodes = []
    for name, split in splits.items():
        for row in range(split.n):
            identity = split.ids[row] if split.ids is not None else (name, row)
            twin = ("row", str(identity), xxhash.xxh3_64_intdigest(split.y[row].cpu().numpy().tobytes()))
            nodes.append(twin)
            if split.groups is not None:
                parent[find(twin)] = find(("image", split.groups[row]))
    numbers = {root: number for number, root in enumerate(dict.fromkeys(map(find, nodes)))}
    clusters = torch.tensor([numbers[find(node)] for node in nodes])
    x = torch.cat([split.x for split in splits.values()]).float()
    responses, references = (
        torch.cat([getattr(split, name) for split in splits.values()]).float() for name in ("y_hat", "y")
    )
    return Pairs(torch.cat([x, x]), torch.cat([responses, references]), torch.cat([clusters, clusters]))


def train_estimator(
    splits: Mapping[str, Embeddings],
    options: TrainingOptions,
    *,
    name: str,
    about: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> TrainedEstimator:
    """Train an estimator.

    Args:
        splits: embeddings of the training data, by split.
        options: how to train.
        name: of the estimator.
        about: what else the card shall say: encoders, studies, models.
        checkpoint: where to keep the state of the training; the caller removes it once the result is safe.
        resume: go on from the checkpoint.

    Returns:
        The estimator, on the CPU, with its card.

    Raises:
        ValueError: too few images to hold some out, a checkpoint of another training, or a training
            that diverged.
    """
    pairs = embeddings_to_pairs(splits)
    data_hash = xxhash.xxh3_128_hexdigest(torch.cat([pairs.x, pairs.y], dim=1).numpy().tobytes())
    generator = torch.Generator().manual_seed(options.seed)
    train, held = _hold_out(pairs.clusters, options.held_out, generator)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = KINDS[options.kind](pairs.x.shape[1], pairs.y.shape[1], options.hidden, name=name, sha256=None)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr)
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {"score": -float("inf"), "iteration": 0, "state": None}
    start = 0
    identity = {"data": data_hash, "options": {**dataclasses.asdict(options), "iterations": None, "keep": None}}
    if resume:
        if checkpoint is None or not checkpoint.is_file():
            raise ValueError(
                f"resume: expected the checkpoint of an unfinished training at {checkpoint}, which is not there. Train without --resume."
            )
        try:
            saved = torch.load(checkpoint, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"resume: {checkpoint} is damaged. Remove it and train without --resume. ({error})"
            ) from error
        if saved["identity"] != identity:
            raise ValueError(
                f"resume: {checkpoint} is of a training with other data or options. Use the same ones, or train without --resume."
            )
        if saved["iteration"] > options.iterations:
            raise ValueError(
                f"resume: {checkpoint} has done {saved['iteration']} iterations already. Ask for as many or more than these with --iterations."
            )
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        start, history, best = saved["iteration"], saved["history"], saved["best"]
    with tqdm(
        total=options.iterations, initial=start, desc="Training", unit="it", dynamic_ncols=True, leave=False
    ) as bar:
        for iteration in range(start + 1, options.iterations + 1):
            batch = train[torch.randint(len(train), (min(options.batch_size, len(train)),), generator=generator)]
            loss = network.loss(pairs.x[batch], pairs.y[batch])
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the training diverged in iteration {iteration}. Use a smaller --lr than {options.lr:g}."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
            if iteration % options.every == 0 or iteration == options.iterations:
                entry = {"iteration": iteration, "loss": loss.item()}
                if len(held):
                    entry["held_out"] = float(_scores(network, pairs, held).mean())
                    bar.set_postfix_str(f"held-out {entry['held_out']:.4g} nats")
                    if entry["held_out"] > best["score"]:
                        state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
                        best = {"score": entry["held_out"], "iteration": iteration, "state": state}
                history.append(entry)
                if iteration % max(options.every, options.iterations // 10) == 0 or iteration == options.iterations:
                    log.info(
                        "iteration %d of %d: %s",
                        iteration,
                        options.iterations,
                        ", ".join(
                            f"{key.replace('_', '-')} {value:.5g}" for key, value in entry.items() if key != "iteration"
                        ),
                    )
                if checkpoint:
                    _save_checkpoint(checkpoint, identity, network, optimizer, generator, iteration, history, best)
    usable = bool(torch.isfinite(_scores(network, pairs, train[: options.batch_size])).all())
    if not usable or (options.keep == "best" and best["state"] is None):
        raise ValueError(
            f"the training diverged by iteration {options.iterations}. Use a smaller --lr than {options.lr:g}."
        )
    if options.keep == "best":
        network.load_state_dict(best["state"])
    network.eval()
    network.card = {
        **(about or {}),
        "kind": options.kind,
        "options": dataclasses.asdict(options),
        "data": {
            "hash": data_hash,
            "splits": {split: embeddings.n for split, embeddings in splits.items()},
            "pairs": len(pairs.x),
            "held_out_pairs": len(held),
            "images": int(pairs.clusters.max()) + 1,
        },
        "kept_iteration": best["iteration"] if options.keep == "best" else options.iterations,
        "history": history,
        "domain": training_domain(network, list(splits.values()), _scores(network, pairs, held) if len(held) else None),
        "version": __version__,
    }
    network.vision_encoder, network.text_encoder = (
        network.card.get("encoders", {}).get(kind) for kind in ("vision", "text")
    )
    return network


def _hold_out(clusters: torch.Tensor, share: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the pairs to train on, and of those held out, whole clusters each."""
    count = int(clusters.max()) + 1
    if share and count < 2:
        raise ValueError(
            "held_out: expected at least two images, got one, so that none can be held out. Train with --held-out 0 --keep last."
        )
    held_clusters = torch.randperm(count, generator=generator)[
        : min(max(1, round(share * count)), count - 1) if share else 0
    ]
    held = torch.isin(clusters, held_clusters)
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


@torch.no_grad()
def _scores(network: TrainedEstimator, pairs: Pairs, rows: torch.Tensor) -> torch.Tensor:
    """(M,) scores of the pairs at some positions."""
    return torch.cat([network.score(pairs.x[part], pairs.y[part]) for part in rows.split(1024)])


def _save_checkpoint(
    path: Path,
    identity: dict,
    network: TrainedEstimator,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    iteration: int,
    history: list,
    best: dict,
) -> None:
    content = {
        "identity": identity,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "iteration": iteration,
        "history": history,
        "best": best,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())
