"""Training an estimator on the pairs (input, response) and (input, reference) of some splits.

The defaults are those of Oh et al. (ICML 2025): AdamW, learning rate 1e-3, batches of 1,024 pairs,
5,000 iterations, hidden width 250. They trained one network and scored the same rows by it; here one is trained
for each of five folds of images, without that fold.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.estimators.base import Assignment, TrainedEstimator, row_to_keys
from lmms_eval_emi.estimators.crossfit import CrossFitted
from lmms_eval_emi.estimators.fitness import training_domain
from lmms_eval_emi.estimators.registry import trainable
from lmms_eval_emi.util.files import write_atomically
from lmms_eval_emi.version import __version__

log = logging.getLogger("lmms_eval_emi")

FEWEST_PAIRS = 300  # below these, what is trained may have the wrong sign
FEWEST_IMAGES = 20
EARLY = (1, 2, 5, 10, 20, 50)  # iterations with a held-out score, beside every hundredth


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training.

    Attributes:
        kind: ``club``, ``club-free``, ``infonce``, or one that another package registers.
        iterations: optimiser steps.
        batch_size: pairs a step.
        lr: learning rate of AdamW.
        hidden: width of the networks.
        seed: seed of the initial weights, the held-out part and the batches.
        held_out: fraction of a network's images that its training never sees, to stop it; 0 for none.
        keep: the state with the ``best`` held-out score, or the ``last``.
        every: steps between two held-out scores and checkpoints; there are some in the first of them too.
        folds: sets of images, each of which one network does not see; 1 for one network that sees all.
        seeds: how many such sets of networks, from ``seed`` on; their spread is the estimator's own error.
        patience: steps without a better held-out score after which a network's training stops, if the best state
            is kept; 0 for never.
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
    folds: int = 5
    seeds: int = 1
    patience: int = 1000

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "hidden", "every", "folds", "seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if self.patience < 0:
            raise InputError(f"patience: expected 0 or more steps, got {self.patience}.")
        if not self.lr > 0:
            raise InputError(f"lr: expected a positive learning rate, got {self.lr}.")
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out: expected a share in [0, 1), got {self.held_out}.")
        if self.kind not in trainable():
            raise InputError(f"kind: expected one of {', '.join(trainable())}, got {self.kind!r}.")
        if self.keep not in {"best", "last"}:
            raise InputError(f"keep: expected 'best' or 'last', got {self.keep!r}.")
        if self.keep == "best" and self.held_out == 0:
            raise InputError("keep: the best state is told by held-out pairs. Hold some out, or keep the last.")

    @property
    def networks(self) -> int:
        """Number of networks to train."""
        return self.folds * self.seeds

    def members(self) -> list[tuple[int, int, str]]:
        """Return seed, left-out fold and label of each network, in the order of training."""
        return [
            (
                seed,
                fold,
                ", ".join(
                    [f"seed {seed}"] * (self.seeds > 1) + [f"fold {fold + 1} of {self.folds}"] * (self.folds > 1)
                ),
            )
            for seed in range(self.seed, self.seed + self.seeds)
            for fold in range(self.folds)
        ]

    def identity(self) -> dict[str, Any]:
        """Return the options that a checkpoint must share with the training that continues it."""
        return {**dataclasses.asdict(self), "iterations": None, "keep": None, "patience": None}

    def is_due(self, iteration: int) -> bool:
        """Return whether held-out pairs are scored now. A network may overfit within the first hundred steps."""
        return iteration % self.every == 0 or iteration == self.iterations or iteration in EARLY


@dataclass(frozen=True)
class Pairs:
    """Pooled pairs: x (M, D), y (M, D'), float32, the cluster that each pair's image belongs to, and clusters by row key."""

    x: torch.Tensor
    y: torch.Tensor
    clusters: torch.Tensor
    keys: Mapping[int, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max()) + 1

    def to(self, device: torch.device) -> Pairs:
        """Return the same pairs on a device; their clusters stay on the CPU."""
        return dataclasses.replace(self, x=self.x.to(device), y=self.y.to(device))


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

    nodes, owners = [], []
    for name, split in splits.items():
        for row in range(split.n):
            identity = split.ids[row] if split.ids is not None else (name, row)
            twin = ("row", str(identity), xxhash.xxh3_64_intdigest(split.y[row].cpu().numpy().tobytes()))
            nodes.append(twin)
            group = split.groups[row] if split.groups is not None else None
            if group is not None:
                parent[find(twin)] = find(("image", group))
            owners.append(row_to_keys(split.ids[row] if split.ids is not None else None, group))
    numbers = {root: number for number, root in enumerate(dict.fromkeys(map(find, nodes)))}
    of_row = [numbers[find(node)] for node in nodes]
    keys = {key: cluster for keys_of_row, cluster in zip(owners, of_row, strict=True) for key in keys_of_row}
    x = torch.cat([split.x for split in splits.values()]).float()
    responses, references = (
        torch.cat([getattr(split, name) for split in splits.values()]).float() for name in ("y_hat", "y")
    )
    clusters = torch.tensor(of_row)
    return Pairs(torch.cat([x, x]), torch.cat([responses, references]), torch.cat([clusters, clusters]), keys)


def train_estimator(
    splits: Mapping[str, Embeddings],
    options: TrainingOptions,
    *,
    name: str,
    about: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> TrainedEstimator | CrossFitted:
    """Train an estimator.

    Args:
        splits: embeddings of the training data, by split.
        options: how to train.
        name: name of the estimator.
        about: further entries of the card: encoders, studies, models.
        checkpoint: file for the state of the training; the caller removes it once the result is saved.
        resume: continue from the checkpoint.
        device: ``cpu`` or a CUDA device, which holds all pairs; without enough memory there, the CPU is used.
            Batches are the same on every device, so a checkpoint can be continued on another one.

    Returns:
        The estimator, on the CPU, with its card: one network, or one per fold and seed.

    Raises:
        ValueError: there are too few images for the folds or for a held-out part, the checkpoint is of another
            training, or the training diverged.
    """
    pairs = embeddings_to_pairs(splits)
    if pairs.images < options.folds:
        raise InputError(
            f"folds: expected at least as many images as folds, got {pairs.images} and {options.folds}. Use fewer --folds."
        )
    if few := too_few(len(pairs.x), pairs.images):
        log.warning("%s", few)
    data_hash = xxhash.xxh3_128_hexdigest(torch.cat([pairs.x, pairs.y], dim=1).numpy().tobytes())
    states = _Checkpoint(checkpoint, {"data": data_hash, "options": options.identity()})
    if resume:
        states.read(options)
    order = torch.randperm(pairs.images, generator=torch.Generator().manual_seed(options.seed))
    fold_of = torch.empty_like(order)
    fold_of[order] = torch.arange(pairs.images) % options.folds
    networks, reports, held = _train_networks(pairs, options, fold_of, states, torch.device(device), name)
    folds = fold_of.tolist()
    seen = Assignment({key: folds[cluster] for key, cluster in pairs.keys.items() if cluster not in held})
    estimator = _assemble(networks, options, seen, name)
    sizes = {split: embeddings.n for split, embeddings in splits.items()}
    estimator.card = {
        **(about or {}),
        "kind": options.kind,
        "options": dataclasses.asdict(options),
        "data": {"hash": data_hash, "splits": sizes, "pairs": len(pairs.x), "images": pairs.images},
        "networks": reports,
        "domain": training_domain(estimator, splits, seed=options.seed),
        "version": __version__,
    }
    encoders = estimator.card.get("encoders", {})
    estimator.vision_encoder, estimator.text_encoder = encoders.get("vision"), encoders.get("text")
    return estimator


def _train_networks(
    pairs: Pairs, options: TrainingOptions, fold_of: torch.Tensor, states: _Checkpoint, device: torch.device, name: str
) -> tuple[list[TrainedEstimator], list[dict[str, Any]], set[int]]:
    """Train one network for each seed and fold.

    Args:
        pairs: training pairs.
        options: how to train.
        fold_of: (G,) fold of each image.
        states: checkpoint to continue from and to save to.
        device: where to train.
        name: name of the estimator.

    Returns:
        The networks; their reports for the card; and the images that a single network held out to choose its state,
        which are new to it.
    """
    placed = _placed(pairs, device)
    networks: list[TrainedEstimator] = []
    reports: list[dict[str, Any]] = []
    held: set[int] = set()
    with tqdm(total=options.iterations * options.networks, unit="it", dynamic_ncols=True, leave=False) as bar:
        for seed, fold, label in options.members():
            bar.set_description(f"Training{', ' if label else ''}{label}")
            training = _Training(placed, options, seed, name)
            if options.folds > 1:
                training.leave_out(fold_of[pairs.clusters] == fold)
            states.restore(training, len(networks))
            training.run(bar, states.save, label)
            states.finish(training, len(networks))
            networks.append(training.finish())
            reports.append({"seed": seed, "fold": fold, **training.report()})
            held = set(training.held_clusters.tolist()) if options.networks == 1 else set()
    return networks, reports, held


def _assemble(
    networks: list[TrainedEstimator], options: TrainingOptions, seen: Assignment, name: str
) -> TrainedEstimator | CrossFitted:
    """Make one estimator of the networks of all seeds and folds, with the fold in which each row was left out."""
    if options.networks == 1:
        (estimator,) = networks
        estimator.seen = seen
        return estimator
    of_seed = [networks[start : start + options.folds] for start in range(0, len(networks), options.folds)]
    return CrossFitted(of_seed, seen, name=name)


def too_few(pairs: int, images: int) -> str | None:
    """Return the message for data that are too few to train on, or ``None`` if there are enough."""
    if pairs >= FEWEST_PAIRS and images >= FEWEST_IMAGES:
        return None
    return (
        f"{pairs} pairs (two per row, its response and its reference) of {images} images or rows are few to train on: from fewer than {FEWEST_PAIRS} pairs or {FEWEST_IMAGES} images an estimator may give "
        "EMID the wrong sign. Pool more splits, models or studies, or use one that needs no training (--estimator dcor)."
    )


def _placed(pairs: Pairs, device: torch.device) -> Pairs:
    """Return the pairs where they are trained on."""
    try:
        return pairs.to(device) if device.type == "cuda" else pairs
    except torch.OutOfMemoryError:
        log.warning("training on the CPU: %s has no room for %d pairs", device, len(pairs.x))
        return pairs


class _Training:
    """The training of one network, from its first iteration or from where a checkpoint stopped."""

    def __init__(self, pairs: Pairs, options: TrainingOptions, seed: int, name: str) -> None:
        self.pairs, self.options = pairs, options
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            kind = trainable()[options.kind]
            self.network = kind(pairs.x.shape[1], pairs.y.shape[1], options.hidden, name=name, sha256=None)
        self.network.fit_data(pairs.x.cpu(), pairs.y.cpu())  # where a decomposition has the same signs every time
        self.network.to(pairs.x.device)
        learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=options.lr, fused=True)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"score": -float("inf"), "iteration": 0, "state": None}
        self.iteration = 0
        # Losses since the last check: asking a GPU for each would make it wait every time, and a tensor each, kept
        # between what an iteration takes and frees, would let the process grow by megabytes in every iteration.
        self.losses, self.unchecked = torch.empty(min(options.every, options.iterations), device=pairs.x.device), 0
        self._split(torch.ones(len(pairs.x), dtype=torch.bool))

    def leave_out(self, rows: torch.Tensor) -> None:
        """Leave some pairs (M,) out for good."""
        self._split(~rows)

    def _split(self, own: torch.Tensor) -> None:
        """Choose what is trained on and what tells when to stop, whole images each."""
        clusters = self.pairs.clusters[own].unique()
        share = self.options.held_out
        if share and len(clusters) < 2:
            raise InputError(
                "held_out: expected at least two images, got one, so that none can be held out. Train with --held-out 0 --keep last."
            )
        chosen = torch.randperm(len(clusters), generator=self.generator)
        count = min(max(1, round(share * len(clusters))), len(clusters) - 1) if share else 0
        self.held_clusters = clusters[chosen[:count]]
        held = own & torch.isin(self.pairs.clusters, self.held_clusters)
        self.train, self.held = torch.nonzero(own & ~held).flatten(), torch.nonzero(held).flatten()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.iteration, self.history, self.best = state["iteration"], state["history"], state["best"]

    def state(self) -> dict[str, Any]:
        """Return the state of the training for :meth:`restore`: weights, optimizer, random generator and losses."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "history": self.history,
            "best": self.best,
        }

    def run(self, bar: tqdm[Any], save: Callable[[dict[str, Any]], None], label: str) -> None:
        """Train to the last iteration, or until the held-out score has stopped improving.

        Args:
            bar: progress bar of all networks.
            save: is called with the state every ``options.every`` iterations.
            label: the network's label in the log.
        """
        options = self.options
        bar.update(self.iteration)
        while self.iteration < options.iterations and not self.is_stopped:
            loss = self.advance()
            bar.update()
            if not options.is_due(self.iteration):
                continue
            self._check()
            entry = {"iteration": self.iteration, "loss": loss.item()}
            if len(self.held):
                entry["held_out"] = float(self._scores(self.held).mean())
                bar.set_postfix_str(f"held-out {entry['held_out']:.4g} nats")
                self._note_best(entry["held_out"])
            self.history.append(entry)
            last = self.iteration == options.iterations or self.is_stopped
            if last or self.iteration % max(options.every, options.iterations // 10) == 0:
                values = (f"{key.replace('_', '-')} {value:.5g}" for key, value in entry.items() if key != "iteration")
                where = f"{label}, " if label else ""
                log.info("%siteration %d of %d: %s", where, self.iteration, options.iterations, ", ".join(values))
            if last or self.iteration % options.every == 0:
                save(self.state())
        bar.update(options.iterations - self.iteration)

    @property
    def is_stopped(self) -> bool:
        """Whether the held-out score has not improved for ``patience`` iterations."""
        options = self.options
        waited = (self.history[-1]["iteration"] if self.history else 0) - self.best["iteration"]
        return options.keep == "best" and 0 < options.patience <= waited

    def _note_best(self, score: float) -> None:
        """Keep a copy of the network if its held-out score is the best so far."""
        if score > self.best["score"]:
            state = {key: tensor.clone() for key, tensor in self.network.state_dict().items()}
            self.best = {"score": score, "iteration": self.iteration, "state": state}

    def advance(self) -> torch.Tensor:
        """Train for one iteration; returns its loss."""
        pairs, size = self.pairs, min(self.options.batch_size, len(self.train))
        batch = self.train[torch.randint(len(self.train), (size,), generator=self.generator)].to(pairs.x.device)
        loss = self.network.loss(pairs.x[batch], pairs.y[batch])
        if self.unchecked == len(self.losses):
            self._check()
        self.losses[self.unchecked] = loss.detach()
        self.unchecked += 1
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        return loss

    def _check(self) -> None:
        """Raise if a loss since the last time was not finite."""
        finite = torch.isfinite(self.losses[: self.unchecked]).tolist()
        if not all(finite):
            first = self.iteration - len(finite) + finite.index(False) + 1
            raise InputError(
                f"the training diverged in iteration {first}. Use a smaller --lr than {self.options.lr:g}."
            )
        self.unchecked = 0

    def finish(self) -> TrainedEstimator:
        """Return the network in the state that is kept, on the CPU."""
        usable = bool(torch.isfinite(self._scores(self.train[: self.options.batch_size])).all())
        if not usable or (self.options.keep == "best" and self.best["state"] is None):
            raise InputError(
                f"the training diverged by iteration {self.options.iterations}. Use a smaller --lr than {self.options.lr:g}."
            )
        if self.options.keep == "best":
            self.network.load_state_dict(self.best["state"])
        return self.network.cpu().eval()

    def report(self) -> dict[str, Any]:
        """Return the entries of an estimator's card about its training."""
        return {
            "iterations": self.iteration,
            "kept_iteration": self.best["iteration"] if self.options.keep == "best" else self.iteration,
            "held_out_pairs": len(self.held),
            "history": self.history,
        }

    @torch.no_grad()
    def _scores(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (M,) scores of the pairs at some positions."""
        parts = rows.to(self.pairs.x.device).split(1024)
        return torch.cat([self.network.score(self.pairs.x[part], self.pairs.y[part]) for part in parts])


class _Checkpoint:
    """The states of a training on disk: those of the finished networks, and that of the current one.

    Args:
        path: file; ``None`` keeps nothing.
        identity: what a continued training must share with the interrupted one.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.done: list[dict[str, Any]] = []
        self.current: dict[str, Any] | None = None

    def read(self, options: TrainingOptions) -> None:
        """Read the file.

        Raises:
            InputError: the checkpoint is missing, damaged, or of another training.
        """
        if self.path is None or not self.path.is_file():
            raise InputError(
                f"resume: expected the checkpoint of an unfinished training at {self.path}, which is not there. Train without --resume."
            )
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"resume: {self.path} is damaged. Remove it and train without --resume. ({error})"
            ) from error
        if saved["identity"] != self.identity:
            raise InputError(
                f"resume: {self.path} is of a training with other data or options. Use the same ones, or train without --resume."
            )
        self.done, self.current = saved["done"], saved["state"]
        reached = max(checkpoint["iteration"] for checkpoint in [self.current, *self.done] if checkpoint)
        if reached > options.iterations:
            raise InputError(
                f"resume: {self.path} has done {reached} iterations already. Ask for as many or more than these with --iterations."
            )

    def restore(self, training: _Training, number: int) -> None:
        """Put the saved state of a network, if there is one, into its training."""
        if number < len(self.done):
            training.restore(self.done[number])
        elif number == len(self.done) and self.current is not None:
            training.restore(self.current)
            self.current = None

    def finish(self, training: _Training, number: int) -> None:
        """Keep the last state of a network."""
        if number == len(self.done):
            self.done.append(training.state())

    def save(self, state: dict[str, Any]) -> None:
        """Write the file with the state of the current network."""
        if self.path is not None:
            buffer = io.BytesIO()
            torch.save({"identity": self.identity, "done": self.done, "state": state}, buffer)
            write_atomically(self.path, buffer.getvalue())
