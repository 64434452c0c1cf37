"""Cross-fitting: each network is trained without some images, and a row is scored by networks that did not see its image.

A network scored on the rows that it was trained on finds information if there is none. With K folds of whole
images, network k is trained without fold k, and a row of fold k is scored by it alone; rows that no network saw
are scored by all, on average (cross-fitting; Chernozhukov et al. 2018). With several seeds there is such a set of
networks for each, and their spread is the estimator's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import Information
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.estimators.base import Assignment, Estimator, TrainedEstimator, by_network, save_state, undivided


class CrossFitted(Estimator):
    """Networks of one kind by seed and fold, and which rows each did not see.

    Args:
        networks: networks by seed, of each seed by fold.
        seen: the fold of each row of the training data.
        name: what signatures call it.
        sha256: SHA-256 of the file that it came from, if it came from one.
    """

    trained = True
    which: torch.Tensor | None = None  # (N,) fold of each row of a split, -1 for rows that no network saw

    def __init__(
        self,
        networks: Sequence[Sequence[TrainedEstimator]],
        seen: Assignment | None,
        *,
        name: str,
        sha256: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.networks = [list(network) for network in networks]
        self.seen = seen
        self.sha256 = sha256
        first = self.networks[0][0]
        self.input_dimension, self.output_dimension = first.input_dimension, first.output_dimension

    @property
    def first(self) -> TrainedEstimator:
        """The first network, for attributes that all of them share."""
        return self.networks[0][0]

    @property
    def folds(self) -> int:
        """K, the number of folds; 1 where every network saw all images."""
        return len(self.networks[0])

    @property
    def signature(self) -> str:
        """Name, the first eight digits of the file's SHA-256, folds and seeds."""
        file = f"@{self.sha256[:8]}" if self.sha256 else ""
        return f"{self.name}{file}(folds={self.folds},seeds={len(self.networks)})"

    def ceiling(self, n: int) -> float | None:
        """Return the greatest value that ``n`` rows can give, which is that of a single network."""
        return self.first.ceiling(n)

    def saturation(self, x: torch.Tensor) -> float | None:
        """Return the mean over the networks."""
        shares = [network.saturation(x) for networks in self.networks for network in networks]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known else None

    def bind(self, embeddings: Embeddings) -> CrossFitted:
        """Return the estimator bound to the rows of one split; unbound, every row counts as unseen in training."""
        bound = copy(self)
        bound.which = None if self.seen is None else self.seen.of(embeddings)
        return bound

    def __getattr__(self, name: str) -> Any:
        if name == "gaussians" and "networks" in self.__dict__ and hasattr(self.first, name):
            return lambda embeddings: self.bind(embeddings)._gaussians(embeddings)
        raise AttributeError(name)

    def trained_on(self, embeddings: Embeddings) -> int:
        """Return how many rows would be scored by networks that saw them: none, if there are folds."""
        return self.known_rows(embeddings) if self.folds == 1 else 0

    def known_rows(self, embeddings: Embeddings) -> int:
        """Return how many rows were among the training data, whichever network saw them."""
        return 0 if self.seen is None else int((self.seen.of(embeddings) >= 0).sum())

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) float64 contributions in nats, whose mean is the estimate of I(x; y)."""
        return undivided(self, x, y).contributions

    @torch.no_grad()
    def row_scores(self, embeddings: Embeddings) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return two (N,) tensors in nats: scores of the references, and their excess over other rows' references."""
        if not self.first.has_density:
            return None
        bound, x, y = self.bind(embeddings), embeddings.x, embeddings.y.double()

        def run(networks: list[Any], which: torch.Tensor) -> torch.Tensor:
            return by_network(networks, which, lambda network, *rows: (network.score(*rows),), x, y)[0]

        scores = torch.stack([torch.stack(folds).mean(dim=0) for folds in bound._over_networks(run, x)]).mean(dim=0)
        found = undivided(bound, x, embeddings.y)
        return scores, found.value + found.influence

    @torch.no_grad()
    def analyse(self, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int) -> Information:
        """Return the mean over the networks' estimates, with their leave-one-cluster-out values; see :class:`TrainedEstimator`."""
        return self.analyse_all(x, (y,), clusters, count)[0]

    @torch.no_grad()
    def analyse_all(
        self, x: torch.Tensor, targets: Sequence[torch.Tensor], clusters: torch.Tensor, count: int
    ) -> list[Information]:
        """Return what :meth:`analyse` returns, for several targets of the same inputs."""
        first = self.first
        for y in targets:
            first.check_shapes(x, y)
        found = self._over_networks(
            lambda networks, which: type(first).analyse_by(networks, which, x, targets, clusters, count), x
        )
        informations = []
        for number in range(len(targets)):
            means = [_mean([member[number] for member in of_seed]) for of_seed in found]
            whole = _mean(means)
            by_seed = tuple(mean.value for mean in means) if len(means) > 1 else ()
            informations.append(Information(whole.contributions, whole.influence, whole.deleted, by_seed))
        return informations

    @torch.no_grad()
    def _gaussians(self, embeddings: Embeddings) -> list[list[Any]]:
        """Return, by seed and fold, means and log variances of the targets of some rows, and the map of targets."""
        x = embeddings.x
        self.first.check_shapes(x, embeddings.y)

        def run(networks: list[Any], which: torch.Tensor) -> tuple[Any, ...]:
            return (*by_network(networks, which, lambda network, rows: network(rows), x), networks[0].targets)

        return self._over_networks(run, x, every_fold=True)

    def _over_networks(
        self, run: Callable[[list[Any], torch.Tensor], Any], x: torch.Tensor, *, every_fold: bool = False
    ) -> list[list[Any]]:
        """Return the results of ``run`` for every seed, and for every fold that unseen rows may be scored by."""
        which = torch.full((len(x),), -1, device=x.device) if self.which is None else self.which
        unseen = which < 0
        folds = range(self.folds if every_fold or bool(unseen.any()) else 1)
        found = []
        for of_seed in self.networks:
            networks = [network.in_float64(x.device) for network in of_seed]
            found.append([run(networks, torch.where(unseen, fold, which)) for fold in folds])
        return found

    def save(self, path: str | Path) -> None:
        """Write the networks, the folds of the rows and the card as safetensors, all of it or nothing."""
        state = {
            f"{seed}.{fold}.{key}": tensor
            for seed, by_fold in enumerate(self.networks)
            for fold, network in enumerate(by_fold)
            for key, tensor in network.state_dict().items()
        }
        metadata = {
            "kind": self.first.kind,
            "name": self.name,
            "folds": str(self.folds),
            "seeds": str(len(self.networks)),
        }
        save_state(path, {**state, **(self.seen.to_state() if self.seen else {})}, metadata, self.card)

    @classmethod
    def from_state_dict(
        cls,
        kind: type[TrainedEstimator],
        state: Mapping[str, torch.Tensor],
        seen: Assignment | None,
        metadata: Mapping[str, str],
        *,
        name: str,
        sha256: str | None = None,
    ) -> CrossFitted:
        """Return the networks that a file describes.

        Raises:
            ValueError: networks are missing, or one is damaged.
        """
        try:
            seeds, folds = int(metadata.get("seeds", "1")), int(metadata["folds"])
        except ValueError as error:
            raise InputError(
                f"estimator {name}: expected numbers of folds and seeds in its metadata: {error}"
            ) from error
        parts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        for key, tensor in state.items():
            seed, _, rest = key.partition(".")
            fold, _, parameter = rest.partition(".")
            parts.setdefault((seed, fold), {})[parameter] = tensor
        expected = {(str(seed), str(fold)) for seed in range(seeds) for fold in range(folds)}
        if set(parts) != expected or not expected:
            raise InputError(
                f"estimator {name}: expected the networks of {seeds} seeds and {folds} folds, got {len(parts)}. The file is damaged."
            )
        if folds > 1 and (seen is None or not all(0 <= fold < folds for fold in seen.folds.values())):
            raise InputError(
                f"estimator {name}: expected the fold of every row that it was trained on, below {folds}. The file is damaged, and without them rows would be scored by networks that saw them."
            )
        networks = [
            [
                kind.from_state_dict(parts[str(seed), str(fold)], name=f"{name}, seed {seed}, fold {fold}")
                for fold in range(folds)
            ]
            for seed in range(seeds)
        ]
        return cls(networks, seen, name=name, sha256=sha256)


def _mean(parts: Sequence[Information]) -> Information:
    contributions, influence, deleted = (
        torch.stack([getattr(part, name) for part in parts]).mean(dim=0)
        for name in ("contributions", "influence", "deleted")
    )
    return Information(contributions, influence, deleted)
