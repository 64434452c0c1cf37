"""Whether an estimator is fit for some data: how far they are from what it was trained on.

An estimator is valid only near its training data. Its card keeps, of that data, the mean and the
spectrum of the inputs and the distribution of its score on references, and how far the single
training splits lie from their pool. Data that lie no farther than twice that, with allowance for
the sampling noise of their n rows, are in its domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lmms_eval_emi.core.divergence import embeddings_to_kernel, kernel_to_spectrum
from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.estimators.base import TrainedEstimator

MARGIN = 2.0
# Each statistic with its allowance for sampling, in units of 1/sqrt(n): the mean of n rows of unit
# radius lies that far from the true one, and so does a mean score of unit deviation.
NOISE = {"mean_distance": 2.0, "spectrum_distance": 1.0, "score_distance": 3.0}


@torch.no_grad()
def inputs_to_profile(estimator: TrainedEstimator, embeddings: Sequence[Embeddings]) -> dict[str, Any]:
    """What is kept of the inputs and references of some splits, as plain numbers.

    Returns:
        ``mean`` (D), ``radius`` (root mean square distance from the mean), ``spectrum`` (D,
        normalised, descending), ``score`` and ``score_std`` of the references, in nats, and ``rows``.
    """
    x = torch.cat([split.x for split in embeddings])
    y = torch.cat([split.y.double() for split in embeddings])
    estimator.check_shapes(x, y)
    network = estimator.in_float64(x.device)
    scores = torch.cat([network.score(xs, ys) for xs, ys in zip(x.split(1024), y.split(1024), strict=True)])
    mean = x.mean(dim=0)
    spectrum = kernel_to_spectrum(embeddings_to_kernel(x)).flip(0)
    padded = torch.zeros(x.shape[1], dtype=torch.float64)
    padded[: len(spectrum)] = spectrum.cpu()[: x.shape[1]]
    return {
        "mean": mean.tolist(),
        "radius": float((x - mean).norm(dim=1).square().mean().sqrt()),
        "spectrum": padded.tolist(),
        "score": float(scores.mean()),
        "score_std": float(scores.std(unbiased=False)),
        "rows": len(x),
    }


def profiles_to_distances(profile: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """How far a profile is from a reference: 0 for the same.

    ``mean_distance`` is in units of the reference's radius, ``spectrum_distance`` is the total
    variation of the spectra, in [0, 1], and ``score_distance`` is how far the mean score falls below
    the reference's, in its standard deviations.
    """
    mean, spectrum = (torch.tensor(profile[name], dtype=torch.float64) for name in ("mean", "spectrum"))
    other_mean, other_spectrum = (torch.tensor(reference[name], dtype=torch.float64) for name in ("mean", "spectrum"))
    return {
        "mean_distance": float((mean - other_mean).norm() / max(reference["radius"], 1e-12)),
        "spectrum_distance": float((spectrum - other_spectrum).abs().sum() / 2),
        "score_distance": max(0.0, (reference["score"] - profile["score"]) / max(reference["score_std"], 1e-12)),
    }


def training_domain(
    estimator: TrainedEstimator, embeddings: Sequence[Embeddings], held_out: torch.Tensor | None = None
) -> dict[str, Any]:
    """The part of a card that :func:`fitness` compares with: the pool's profile, and how far its splits lie from it.

    Args:
        estimator: just trained.
        embeddings: of the training splits.
        held_out: (M,) scores of pairs that training did not see. New data are compared with these,
            for the pairs that it did see score better than any others.
    """
    pool = inputs_to_profile(estimator, embeddings)
    if held_out is not None and len(held_out) > 1:
        pool |= {"score": float(held_out.mean()), "score_std": float(held_out.std())}
    distances = [profiles_to_distances(inputs_to_profile(estimator, [split]), pool) for split in embeddings]
    return {**pool, "farthest": {name: max(distance[name] for distance in distances) for name in NOISE}}


def fitness(estimator: object, embeddings: Mapping[str, Embeddings]) -> dict[str, Any]:
    """Whether an estimator is fit for some splits.

    Args:
        estimator: with or without a card.
        embeddings: of the splits that it is used on.

    Returns:
        ``verdict``: ``in domain``, ``far``, or ``unknown`` where the card does not say what the
        estimator was trained on; ``reference_score``: mean score of the references it was trained
        on, in nats (for CLUB their log-likelihood); ``splits``: of every split the same, and each
        statistic's ``value`` and ``limit``; ``far_splits``: those beyond a limit.
    """
    if not isinstance(estimator, TrainedEstimator) or not embeddings:
        return {"verdict": "unknown", "splits": {}, "far_splits": []}
    profiles = {name: inputs_to_profile(estimator, [split]) for name, split in embeddings.items()}
    splits: dict[str, dict[str, Any]] = {
        name: {"reference_score": profile["score"]} for name, profile in profiles.items()
    }
    domain = estimator.card.get("domain")
    if not domain:
        return {"verdict": "unknown", "splits": splits, "far_splits": []}
    far = []
    for name, profile in profiles.items():
        distances = profiles_to_distances(profile, domain)
        limits = {
            key: MARGIN * domain["farthest"][key] + noise / profile["rows"] ** 0.5 for key, noise in NOISE.items()
        }
        splits[name] |= {key: {"value": distances[key], "limit": limits[key]} for key in NOISE}
        if any(distances[key] > limits[key] for key in NOISE):
            far.append(name)
    return {
        "verdict": "far" if far else "in domain",
        "reference_score": domain["score"],
        "splits": splits,
        "far_splits": far,
    }
