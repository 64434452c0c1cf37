"""Measures of responses and references alone, without training: their cosine, and R² of predicting the one from the other.

For R², responses and references, centred, are put on their first k = min(30, rank) principal components, A (N, k) and B (N, k').
With K = A A^T, lambda = 0.1 tr K / N and H = 11^T / N + K (K + lambda I)^-1, ridge regression of B on A has the residuals
e = B - H B, and without the rows of an image g, in closed form, e_g = (I - H_gg)^-1 e_g. The value of a row is

    r_i = 1 - |e_i|^2 / mean_j |B_j - mean of B without j's image|^2

and R^2 is their mean: at most 1, and about 0 where responses say nothing about the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

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
    order, _, sizes = _by_size(images)
    found = np.empty(len(order))
    found[order] = _values(_components(_reduced(responses)[order]), _components(_reduced(references)[order]), sizes)
    return found


def reference_r2_without(responses: np.ndarray, references: np.ndarray, images: np.ndarray, count: int) -> np.ndarray:
    """Return (G,) R^2 on the rows without each of ``count`` images, with components and fit recomputed; NaN if only one image is left."""
    found = np.full(count, np.nan)
    _, distinct, sizes = _by_size(images)
    if len(distinct) > 1:  # without an image that has no rows here, all rows are left
        found[np.isin(np.arange(count), distinct, invert=True)] = reference_r2(responses, references, images).mean()
    if len(distinct) > 2:
        parts = [_components_without(*_key(rows, images)) for rows in (responses, references)]
        for size, a, b in zip(np.unique(sizes), *parts, strict=True):
            others = np.delete(sizes, np.searchsorted(sizes, size))
            found[distinct[sizes == size]] = _values(a, b, others).mean(axis=-1)
    return found


def _by_size(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an order of rows (N,) by the size of their image and by image, the images (G,) in it, and their sizes (G,)."""
    distinct, numbers, sizes = np.unique(images, return_inverse=True, return_counts=True)
    by_size = np.argsort(sizes, kind="stable")
    return np.lexsort((numbers, sizes[numbers])), distinct[by_size], sizes[by_size]


def _key(rows: np.ndarray, images: np.ndarray) -> tuple[bytes, bytes, int]:
    return rows.astype(np.float64).tobytes(), images.astype(np.int64).tobytes(), len(rows)


@lru_cache(maxsize=8)  # most shifts have the references of the ID split
def _components_without(content: bytes, image_numbers: bytes, n: int) -> list[np.ndarray]:
    """Return components without each image, from the bytes of (N, D) float64 rows and of their images.

    Returns:
        (G, N - size, k) for every size, of the G images with as many rows; rows and images in the order of :func:`_by_size`.
    """
    order, _, sizes = _by_size(np.frombuffer(image_numbers, np.int64))
    rows, ends = _reduced(np.frombuffer(content, np.float64).reshape(n, -1)), np.cumsum(sizes)
    return [
        _components(rows[np.stack([np.delete(order, slice(end - size, end)) for end in ends[sizes == size]])])
        for size in np.unique(sizes)
    ]


def _reduced(rows: np.ndarray) -> np.ndarray:
    """Return the centred rows of at most N columns with the same inner products, which makes later decompositions small."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    if centred.shape[1] <= centred.shape[0]:
        return centred
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return vectors * np.sqrt(values.clip(0))


def _components(rows: np.ndarray) -> np.ndarray:
    """Return (..., N, k) scores of (..., N, D) rows on their first principal components; 0 on those that are rounding."""
    centred = rows - rows.mean(axis=-2, keepdims=True)
    turned = centred.swapaxes(-1, -2)
    wide = centred.shape[-1] > centred.shape[-2]
    products = centred @ turned if wide else turned @ centred
    last = products.shape[-1] - 1
    if last < MOST_WHOLE:
        values, vectors = (part[..., -COMPONENTS:] for part in np.linalg.eigh(products))
    else:
        first = partial(eigh, subset_by_index=(last + 1 - COMPONENTS, last), check_finite=False)
        pairs = map(first, products.reshape(-1, last + 1, last + 1))
        values, vectors = (
            np.stack(part).reshape(*products.shape[:-2], *part[0].shape) for part in zip(*pairs, strict=True)
        )
    real = values > NOTHING * np.trace(products, axis1=-2, axis2=-1)[..., None]
    scales = np.sqrt(np.where(real, values, 0)) if wide else real
    return (vectors if wide else centred @ vectors) * scales[..., None, :]


def _values(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the values r_i of rows.

    Args:
        a: (..., N, k) scores of responses, the rows of an image next to each other, images by size.
        b: (..., N, k') scores of references, likewise.
        sizes: (G,) number of rows of each image, ascending.

    Returns:
        (..., N) values; 0 where all references are the same, or there is one image.
    """
    n = b.shape[-2]
    if len(sizes) < 2:
        return np.zeros(b.shape[:-1])
    ridge = RIDGE * np.square(a).sum(axis=(-2, -1), keepdims=True) / n
    turned = a.swapaxes(-1, -2)
    half = np.linalg.solve(turned @ a + np.where(ridge > 0, ridge, 1) * np.eye(a.shape[-1]), turned)  # (..., k, N)
    residuals = b - a @ (half @ b)  # B is centred, so that the mean's part of H takes nothing from it
    left_out = np.empty_like(residuals)
    end = 0
    for size, images in zip(*np.unique(sizes, return_counts=True), strict=True):
        start, end = end, end + size * images
        shape = (*b.shape[:-2], images, size, -1)
        left, right = a[..., start:end, :].reshape(shape), half.swapaxes(-1, -2)[..., start:end, :].reshape(shape)
        leverage = 1.0 / n + left @ right.swapaxes(-1, -2)  # (..., images, size, size)
        solved = np.linalg.solve(np.eye(size) - leverage, residuals[..., start:end, :].reshape(shape))
        left_out[..., start:end, :] = solved.reshape(residuals[..., start:end, :].shape)
    sums = np.add.reduceat(b, np.cumsum(sizes) - sizes, axis=-2)
    means = -sums / (n - sizes[:, None])  # means of B without each image; all rows sum to 0
    scale = np.square(b - np.repeat(means, sizes, axis=-2)).sum(axis=-1).mean(axis=-1, keepdims=True)
    lost = np.square(left_out).sum(axis=-1)
    return 1 - np.divide(lost, scale, out=np.ones_like(lost), where=scale > 0)


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
