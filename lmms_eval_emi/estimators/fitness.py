"""Fitness of an estimator for some data.

Two kinds of evidence. Without a card: does it tell references from those of other rows, on these very data, and is
its variance saturated? With one: could these images come from where those of the training came from? The second
is a test. Four distances between two sets of images are measured,

- ``inputs``, ``references``: squared distance of the mean random Fourier features of a Gaussian kernel, an
  estimate of the maximum mean discrepancy (Gretton et al. 2012; Rahimi & Recht 2007), of x and of y;
- ``likelihood``: how far the scores of references fall, as ranks among those of the training data, for scores
  have long tails;
- ``matching``: the same of what references score above those of other rows (their influence values),

whole images at a time, and their limits come from random halves of the training images, which differ by chance
alone. What a half differs by scales with 1/G + 1/G' of both numbers of images, so one table serves any number. The
largest of the four, each by its own limit, has a p-value, and those of several splits are adjusted by Holm.
Where several splits were trained on, it is enough to be like one of them, or like their pool; a split whose rows
were all trained on is not tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import EMI, clusters_of
from lmms_eval_emi.core.jackknife import ALPHA, FEWEST_CLUSTERS, holm
from lmms_eval_emi.estimators.base import Estimator
from lmms_eval_emi.util.files import Plain

RANKED = ("likelihood", "matching")
QUANTILES = 201
FEATURES = 128
HALVES = 2000
MOST_IMAGES = 2000  # images of the training data that halves are sampled from
P_VALUES = tuple(float(p) for p in np.geomspace(1 / HALVES, 1, 60))
SATURATED = 0.5  # share of saturated outputs from which nats are nominal


def _features(rows: torch.Tensor, basis: Mapping[str, Any]) -> np.ndarray:
    """Return (N, 128) random Fourier features of (N, D) rows; their inner products are those of a Gaussian kernel."""
    dimension = rows.shape[1]
    # The legacy generator, whose stream is the same in every version of numpy.
    random = np.random.RandomState(basis["seed"])
    directions = random.standard_normal((dimension, FEATURES)) / basis["bandwidth"]
    phases = random.uniform(0, 2 * np.pi, FEATURES)
    return np.sqrt(2 / FEATURES) * np.cos(rows.double().cpu().numpy() @ directions + phases)


def _by_image(values: np.ndarray, clusters: np.ndarray, count: int) -> np.ndarray:
    """Return (G, ...) means over the rows of each image."""
    sums = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, clusters, values)
    sizes = np.bincount(clusters, minlength=count)
    return sums / sizes.reshape(-1, *[1] * (values.ndim - 1))


def _profile(estimator: Estimator, embeddings: Embeddings, bases: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the mean features and mean scores of each image, from which distances are computed."""
    keys = clusters_of(embeddings)
    number = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    clusters = np.array([number[key] for key in keys])
    found = {
        "inputs": _features(embeddings.x, bases["inputs"]),
        "references": _features(embeddings.y, bases["references"]),
    }
    scores = _row_scores(estimator, embeddings, len(number)) if any(name in bases for name in RANKED) else None
    if scores is not None:
        for name, values in zip(RANKED, scores, strict=True):
            if name in bases:
                quantiles = bases[name]["quantiles"]
                found[name] = np.interp(values.cpu().numpy(), quantiles, np.linspace(0, 1, len(quantiles)))
    return {name: _by_image(values, clusters, len(number)) for name, values in found.items()}


def _row_scores(estimator: Estimator, embeddings: Embeddings, images: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the estimator's row scores against references of other images only: pairs of one image shrink them by 1/G."""
    found = estimator.row_scores(embeddings)
    if found is None or images < 2:
        return found
    return found[0], found[1] * images / (images - 1)


def _distance(name: str, reference: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return distances of (..., F) or (...,) means of training and new images, for which larger is farther."""
    if name not in RANKED:
        return ((reference - new) ** 2).sum(axis=-1)
    return reference - new


def _scale(name: str, first: float, second: float) -> float:
    """Return the scale of the distance between two samples of one distribution, by their numbers of images."""
    spread = 1 / first + 1 / second
    return spread**0.5 if name in RANKED else spread


def training_domain(estimator: Estimator, splits: Mapping[str, Embeddings], seed: int = 0) -> dict[str, Any]:
    """Return the part of a card that :func:`fitness` compares with.

    Args:
        estimator: just trained; with folds, every row is scored by networks that did not see it.
        splits: splits of the training data.
        seed: seed of the features and the halves.

    Returns:
        Plain numbers: ``bases`` of the features and ranks, and ``samples``: of the pool, and of each split if
        there are several, the number of ``images``, the ``mean`` of every distance's values over them, the
        ``limits`` of the distances at 5 % in units of :func:`_scale`, and ``quantiles`` of the largest ratio to
        them. Empty for fewer than 8 images.
    """
    pooled = _pooled(splits)
    images = len(set(clusters_of(pooled)))
    if images < FEWEST_CLUSTERS:
        return {}
    bases: dict[str, dict[str, Any]] = {
        name: {"seed": seed, "bandwidth": _bandwidth(rows)}
        for name, rows in (("inputs", pooled.x), ("references", pooled.y))
    }
    scores = None if estimator.trained_on(pooled) else _row_scores(estimator, pooled, images)
    if scores is not None:  # one network's scores of rows that it saw say nothing of new ones
        grid = np.linspace(0, 1, QUANTILES)
        bases |= {
            name: {"quantiles": np.quantile(values.cpu().numpy(), grid).tolist()}
            for name, values in zip(RANKED, scores, strict=True)
        }
    profile = _profile(estimator, pooled, bases)
    found = [_sample(profile, seed)]
    if len(splits) > 1:  # a split that was trained on is no random part of their pool
        profiles = [_profile(estimator, split, bases) for split in splits.values()]
        kept = [
            {name: values for name, values in values_by_name.items() if name in profile} for values_by_name in profiles
        ]
        found += [_sample(of_split, seed) for of_split in kept if len(of_split["inputs"]) >= FEWEST_CLUSTERS]
    return {"bases": bases, "samples": found}


def _sample(profile: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Return a sample that new images are compared with: its means, and the distances between its random halves."""
    count = len(profile["inputs"])
    random = np.random.RandomState(seed)
    if count > MOST_IMAGES:
        chosen = random.permutation(count)[:MOST_IMAGES]
        profile = {name: values[chosen] for name, values in profile.items()}
        count = MOST_IMAGES
    half = count // 2
    ratios = {}
    order = np.argsort(random.uniform(size=(HALVES, count)), axis=1)
    first = np.zeros((HALVES, count))
    np.put_along_axis(first, order[:, :half], 1.0, axis=1)
    for name, values in profile.items():
        means = first @ values / half, (1 - first) @ values / (count - half)
        ratios[name] = _distance(name, *means) / _scale(name, half, count - half)
    limits = {name: max(float(np.quantile(ratio, 1 - ALPHA)), 1e-12) for name, ratio in ratios.items()}
    largest = np.max([ratios[name] / limit for name, limit in limits.items()], axis=0)
    return {
        "images": count,
        "mean": {name: values.mean(axis=0).tolist() for name, values in profile.items()},
        "limits": limits,
        "quantiles": np.quantile(largest, [1 - p for p in P_VALUES]).tolist(),
    }


def _pooled(splits: Mapping[str, Embeddings]) -> Embeddings:
    """Return all rows of some splits; shifted twins of one row are of one image, as in training."""
    parts = list(splits.values())
    image_of: dict[Any, Any] = {}
    groups = []
    for split in parts:
        for row, cluster in enumerate(clusters_of(split)):
            key = cluster if split.ids is None else image_of.setdefault(("row", split.ids[row]), cluster)
            groups.append(key)
    with_images = all(split.v is not None for split in parts)

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(split, name) for split in parts])

    every_id = all(split.ids is not None for split in parts)
    ids = [row_id for split in parts for row_id in split.ids or ()] if every_id else None
    return Embeddings(
        v=joined("v") if with_images else None,
        t=joined("t"),
        y_hat=joined("y_hat"),
        y=joined("y"),
        ids=ids,
        groups=groups,
    )


def _bandwidth(rows: torch.Tensor) -> float:
    """Return the median distance of two rows, of the first thousand."""
    distances = torch.pdist(rows[:1000].double())
    return max(float(distances.median()), 1e-6) if len(distances) else 1.0


class SplitFit(Plain):
    """Checks of an estimator on one split."""

    references_over_shuffled: float | None = None
    references_over_shuffled_stderr: float | None = None
    references_distinguishable: bool | None = None
    in_training_data: bool | None = None
    distances: dict[str, dict[str, float]] | None = None
    p: float | None = None


class EstimatorFit(Plain):
    """Fitness of an estimator for some data.

    Attributes:
        verdict: ``far`` if a split is too unlike the training data, or ``doubtful`` if the references of most splits
            cannot be distinguished from those of other rows; otherwise ``in domain`` if a card says so, else ``plausible``,
            and ``unknown`` if nothing could be checked.
        basis: ``card``, ``checks`` or ``none``.
        unit: unit of the scores.
        trained: whether the estimator has a file.
        saturated: fraction of saturated outputs.
        ceiling: the greatest value that the smallest split can have.
        trained_on: how many of the rows it was trained on.
        splits: checks of each split, with ``p`` adjusted over the splits.
        far_splits, doubtful_splits: their names.
    """

    verdict: str = "unknown"
    basis: str = "none"
    unit: str = "nats"
    trained: bool | None = None
    saturated: float | None = None
    ceiling: float | None = None
    trained_on: int | None = None
    splits: dict[str, SplitFit] = {}
    far_splits: list[str] = []
    doubtful_splits: list[str] = []

    @property
    def unfit_splits(self) -> set[str]:
        """Splits that it is not fit for."""
        return {*self.far_splits, *self.doubtful_splits}


def fitness(
    estimator: object, embeddings: Mapping[str, Embeddings], scores: Mapping[str, EMI] | None = None
) -> EstimatorFit:
    """Check whether an estimator is fit for some splits.

    Args:
        estimator: estimator, with or without a card.
        embeddings: embeddings of the splits that it is used on.
        scores: EMI of the splits, whose references show whether the estimator sees anything in them.
    """
    if not isinstance(estimator, Estimator) or not embeddings:
        return EstimatorFit(verdict="unknown", basis="none", unit="nats", splits={}, far_splits=[], doubtful_splits=[])
    found: dict[str, Any] = {"unit": estimator.unit, "trained": estimator.trained}
    saturation = _saturation(estimator, list(embeddings.values()))
    if saturation is not None:
        found["saturated"] = saturation
        if saturation >= SATURATED and estimator.unit == "nats":
            found["unit"] = "nominal nats"
    ceiling = estimator.ceiling(min(embedding.n for embedding in embeddings.values()))
    if ceiling is not None:
        found["ceiling"] = ceiling
    trained_on = sum(estimator.trained_on(embedding) for embedding in embeddings.values())
    if trained_on:
        found["trained_on"] = trained_on
    checks: dict[str, dict[str, Any]] = {name: {} for name in embeddings}
    if estimator.against == "input":
        for name, score in (scores or {}).items():
            checks[name] |= _distinguishable(score)
    doubtful = [name for name, check in checks.items() if check.get("references_distinguishable") is False]
    domain = estimator.card.get("domain") or {}
    known = "samples" in domain
    far = _far_splits(estimator, embeddings, domain, checks) if known else []
    told = [check["references_distinguishable"] for check in checks.values() if "references_distinguishable" in check]
    if far:
        verdict = "far"
    elif told and 2 * len(doubtful) > len(told):
        verdict = "doubtful"
    else:
        verdict = "in domain" if known else "plausible" if told else "unknown"
    return EstimatorFit(
        verdict=verdict,
        basis="card" if known else "checks" if told else "none",
        **found,
        splits={name: SplitFit(**check) for name, check in checks.items()},
        far_splits=far,
        doubtful_splits=doubtful,
    )


def _far_splits(
    estimator: Estimator,
    embeddings: Mapping[str, Embeddings],
    domain: Mapping[str, Any],
    checks: dict[str, dict[str, Any]],
) -> list[str]:
    """Return the splits that are far from the training data, and add their distances and p-values to ``checks``."""
    p_values: dict[str, float] = {}
    for name, split in embeddings.items():
        if estimator.known_rows(split) == split.n:
            checks[name] |= {"in_training_data": True}
            continue
        profile = _profile(estimator, split, domain["bases"])
        # New images may come from where any of the samples came from.
        distances, p_values[name] = max(
            (_to_sample(profile, sample) for sample in domain["samples"]), key=lambda pair: pair[1]
        )
        checks[name] |= {"distances": distances}
    adjusted = holm(np.array(list(p_values.values()))).tolist() if p_values else []
    for name, p in zip(p_values, adjusted, strict=True):
        checks[name]["p"] = p
    return [name for name, p in zip(p_values, adjusted, strict=True) if p < ALPHA]


def _saturation(estimator: Estimator, splits: Sequence[Embeddings]) -> float | None:
    """Return the fraction of saturated outputs over the rows of all splits."""
    shares = [(estimator.saturation(split.x), split.n) for split in splits]
    known = [(share, n) for share, n in shares if share is not None]
    return sum(share * n for share, n in known) / sum(n for _, n in known) if known else None


def _distinguishable(score: EMI) -> dict[str, Any]:
    """Return whether references are distinguished from those of other rows: I(x; reference) above 0, one-sided at 5 %."""
    reference = score.reference
    found: dict[str, Any] = {
        "references_over_shuffled": reference.value,
        "references_over_shuffled_stderr": reference.stderr,
    }
    interval = reference.interval(1 - 2 * ALPHA)
    if interval is not None:
        found["references_distinguishable"] = interval[0] > 0
    return found


def _to_sample(
    profile: Mapping[str, np.ndarray], domain: Mapping[str, Any]
) -> tuple[dict[str, dict[str, float]], float]:
    """Return distances of a split from a sample of the training data with their limits, and the p-value of the largest."""
    images = len(profile["inputs"])
    found = {}
    for name, limit in domain["limits"].items():
        reference = np.array(domain["mean"][name])
        value = float(_distance(name, reference, profile[name].mean(axis=0)))
        # Networks share most of their training images, so their mean score of these varies more than that of
        # as many independent images (Bengio & Grandvalet 2004): they count half.
        trained = domain["images"] / 2 if name in RANKED else domain["images"]
        found[name] = {"value": value, "limit": limit * _scale(name, trained, images)}
    largest = max(distance["value"] / distance["limit"] for distance in found.values())
    # Quantiles fall as p grows.
    p = float(np.interp(largest, domain["quantiles"][::-1], P_VALUES[::-1]))
    return found, p
