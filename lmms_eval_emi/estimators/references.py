"""Measures of responses and references alone, without training: their cosine, and R² of predicting the one from the other.

For R², responses and references, centred, are put on their first k = min(30, rank) principal components, A (N, k) and B (N, k').
With K = A A^T, lambda = 0.1 tr K / N and H = 11^T / N + K (K + lambda I)^-1, ridge regression of B on A has the residuals
e = B - H B, and without the rows of an image g, in closed form, e_g = (I - H_gg)^-1 e_g. The value of a row is

    r_i = 1 - |e_i|^2 / mean_j |B_j - mean of B without j's image|^2

and R^2 is their mean: at most 1, and about 0 where responses say nothing about the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.linalg import eigh

from lmms_eval_emi.core.emi import Information
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.estimators.base import Estimator

COMPONENTS = 30
RIDGE = 0.1  # ridge as a fraction of the mean variance of A
MOST_WHOLE = 150  # rows of a matrix below which all its eigenvectors take less time than the first 30
NOTHING = 1e-12  # share of the variance below which a component is rounding


class ReferenceR2(Estimator):
    """R² of the references given the responses, on images left out.

    The score of a split is R² - 1: 0 at best, and about -1 where responses say nothing about the references. It moves
    little with style, and never sees the image: references are all that it knows of what is right.
    """

    kind = "reference-r2"
    unit = "share of variance"
    against = "reference"
    range = "0 at best, about -1 if unrelated, for EMI"

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) float64 values of references (N, D) and responses (N, D'), each row an image of its own.

        Raises:
            ValueError: the numbers of rows differ.
        """
        self.check_rows(x, y)
        return torch.from_numpy(reference_r2(_plain(y), _plain(x), np.arange(len(x)))).to(x.device)

    @torch.no_grad()
    def analyse_all(
        self, x: torch.Tensor, targets: Sequence[torch.Tensor], clusters: torch.Tensor, count: int
    ) -> list[Information]:
        """Return R² of the references given each of the targets, with its leave-one-image-out values.

        Args:
            x: (N, D) references.
            targets: responses, and the references themselves, whose R² is 1 by definition.
            clusters: (N,) number of each row's image, below ``count``.
            count: number of images.
        """
        found = []
        for y in targets:
            self.check_rows(x, y)
            if y is x:
                ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
                deleted = torch.ones(count, dtype=torch.float64, device=x.device)
                found.append(Information(ones, ones - 1, deleted))
                continue
            arguments = _plain(y), _plain(x), clusters.cpu().numpy()
            values = torch.from_numpy(reference_r2(*arguments)).to(x.device)
            # R² is out of sample, so it has no bias that more images would take away. Its values without an image
            # are fits on fewer images and lower: centred, they give the error alone (docs/statistics.md).
            deleted = torch.from_numpy(reference_r2_without(*arguments, count)).to(x.device)
            deleted += values.mean() - deleted.nanmean()
            found.append(Information(values, values - values.mean(), deleted))
        return found


def _plain(rows: torch.Tensor) -> np.ndarray:
    return rows.detach().double().cpu().numpy()


def reference_r2(responses: np.ndarray, references: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return values of rows whose mean is R^2.

    Args:
        responses: (N, D) embeddings.
        references: (N, D') embeddings.
        images: (N,) number of each row's image; all rows of an image are left out of the fit together.

    Returns:
        (N,) float64; 0 where all references are the same, or all rows are of one image.
    """
    return _values(_components(_reduced(responses)), _components(_reduced(references)), images)


def reference_r2_without(responses: np.ndarray, references: np.ndarray, images: np.ndarray, count: int) -> np.ndarray:
    """Return (G,) R^2 on the rows without each of ``count`` images, with components and fit recomputed; NaN if only one image is left."""
    found = np.full(count, np.nan)
    parts = [_components_without(*_key(rows, images), count) for rows in (responses, references)]
    for image, (a, b) in enumerate(zip(*parts, strict=True)):
        kept = images[images != image]
        if len(np.unique(kept)) > 1:
            found[image] = _values(a, b, kept).mean()
    return found


def _key(rows: np.ndarray, images: np.ndarray) -> tuple[bytes, bytes, int]:
    return rows.astype(np.float64).tobytes(), images.astype(np.int64).tobytes(), len(rows)


@lru_cache(maxsize=8)  # most shifts have the references of the ID split
def _components_without(content: bytes, image_numbers: bytes, n: int, count: int) -> list[np.ndarray]:
    """Return the components of (N, D) float64 rows without each of ``count`` images, from the bytes of both."""
    images = np.frombuffer(image_numbers, np.int64)
    rows = _reduced(np.frombuffer(content, np.float64).reshape(n, -1))
    return [_components(rows[images != image]) if (images != image).any() else rows[:0] for image in range(count)]


def _reduced(rows: np.ndarray) -> np.ndarray:
    """Return the centred rows of at most N columns with the same inner products, which makes later decompositions small."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    if centred.shape[1] <= centred.shape[0]:
        return centred
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return vectors * np.sqrt(values.clip(0))


def _components(rows: np.ndarray) -> np.ndarray:
    """Return (N, k) scores of (N, D) rows on their first principal components."""
    centred = rows - rows.mean(axis=0)
    wide = centred.shape[1] > centred.shape[0]
    products = centred @ centred.T if wide else centred.T @ centred
    last = len(products) - 1
    if last < MOST_WHOLE:
        values, vectors = (part[..., -COMPONENTS:] for part in np.linalg.eigh(products))
    else:
        values, vectors = eigh(products, subset_by_index=(last + 1 - COMPONENTS, last), check_finite=False)
    real = values > NOTHING * np.trace(products)
    return vectors[:, real] * np.sqrt(values[real]) if wide else centred @ vectors[:, real]


def _values(a: np.ndarray, b: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the values r_i of rows with the scores A of their responses and B of their references."""
    n = len(b)
    _, numbers, sizes = np.unique(images, return_inverse=True, return_counts=True)
    if b.shape[1] == 0 or len(sizes) < 2:
        return np.zeros(n)
    ridge = RIDGE * (a * a).sum() / n * np.eye(a.shape[1])
    half = np.linalg.solve(a.T @ a + ridge, a.T)  # (k, N)
    residuals = b - a @ (half @ b)  # B is centred, so that the mean's part of H takes nothing from it
    left_out = np.empty_like(residuals)
    order, ends = np.argsort(numbers, kind="stable"), np.cumsum(sizes)
    for size in np.unique(sizes):  # images of as many rows together
        rows = np.stack([order[end - size : end] for end in ends[sizes == size]])  # (M, size)
        leverage = 1.0 / n + a[rows] @ half[:, rows].transpose(1, 0, 2)
        left_out[rows] = np.linalg.solve(np.eye(size) - leverage, residuals[rows])
    sums = np.zeros((len(sizes), b.shape[1]))
    np.add.at(sums, numbers, b)
    means = -sums / (n - sizes[:, None])  # means of B without each image; all rows sum to 0
    scale = ((b - means[numbers]) ** 2).sum(axis=1).mean()
    return 1 - (left_out**2).sum(axis=1) / scale


class Cosine(Estimator):
    """cos(response, reference), whatever the input.

    A reference's cosine with itself is 1, so the score of a split is the mean cosine minus 1: 0 at best.
    """

    kind = "cosine"
    unit = "cosine"
    against = "reference"
    range = "0 at best, for EMI"

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) float64 cosines of rows (N, D) and (N, D).

        Raises:
            ValueError: the numbers of rows or the dimensions differ.
        """
        self.check_rows(x, y)
        if x.shape[1] != y.shape[1]:
            raise InputError(f"y: expected dimension {x.shape[1]}, that of the references, got {y.shape[1]}.")
        return torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=1)

    def analyse(self, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int) -> Information:
        """Return the mean with its leave-one-cluster-out values; the influence of a row is how far it is from the mean.

        Args:
            x: (N, D) references.
            y: (N, D) responses.
            clusters: (N,) number of each row's cluster, below ``count``.
            count: number of clusters.
        """
        found = self.contributions(x, y)
        sums, sizes = (
            torch.zeros(count, dtype=torch.float64, device=x.device).index_add_(0, clusters, values)
            for values in (found, torch.ones_like(found))
        )
        return Information(found, found - found.mean(), (found.sum() - sums) / (len(found) - sizes))
