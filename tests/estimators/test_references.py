"""R² of references given responses, beside a fit that is made again without each image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import emi
from lmms_eval_emi.estimators import load_estimator
from lmms_eval_emi.estimators.references import RIDGE, reference_r2, reference_r2_without


def rows_of(n, d, seed, like=None, share=0.0):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, 8)) @ np.random.default_rng(99).standard_normal((8, d))  # embeddings have low rank
    noise += 0.05 * rng.standard_normal((n, d))
    own = noise if like is None else share * like + (1 - share) * noise
    return own / np.linalg.norm(own, axis=1, keepdims=True)


def refitted(responses, references, images, k=30):
    """The definition: principal components of all rows, then a ridge regression without each image."""

    def components(rows):
        u, s, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        kept = s**2 > 1e-12 * (s**2).sum()
        return (u * s)[:, kept][:, :k]

    a, b = components(responses), components(references)
    penalty = RIDGE * (a**2).sum() / len(a)
    errors, scale = np.zeros(len(a)), []
    for image in np.unique(images):
        out = images == image
        # The intercept and the slope are penalised as in the closed form: the mean freely, the slope by a ridge.
        design = np.column_stack([np.ones((~out).sum()), a[~out]])
        ridge = penalty * np.eye(design.shape[1])
        ridge[0, 0] = 0
        slopes = np.linalg.solve(design.T @ design + ridge, design.T @ b[~out])
        errors[out] = ((b[out] - np.column_stack([np.ones(out.sum()), a[out]]) @ slopes) ** 2).sum(axis=1)
        scale += list(((b[out] - b[~out].mean(axis=0)) ** 2).sum(axis=1))
    return 1 - errors / np.mean(scale)


@pytest.mark.parametrize(("n", "d", "per_image"), [(24, 50, 1), (60, 20, 3), (45, 64, 3)])
def test_it_is_what_refitting_without_each_image_gives(n, d, per_image):
    references = rows_of(n, d, 0)
    responses = rows_of(n, d, 1, references, 0.7)
    images = np.arange(n) // per_image
    ours = reference_r2(responses, references, images)
    np.testing.assert_allclose(ours, refitted(responses, references, images), rtol=1e-8)
    without = reference_r2_without(responses, references, images, n // per_image)
    for image in (0, n // per_image - 1):
        kept = images != image
        expected = refitted(responses[kept], references[kept], images[kept]).mean()
        assert float(without[image]) == pytest.approx(expected, rel=1e-8)


def test_unrelated_responses_are_at_zero_and_the_references_at_one():
    references = rows_of(300, 40, 0)
    images = np.arange(300) // 3
    nothing = reference_r2(rows_of(300, 40, 1), references, images)
    assert abs(float(nothing.mean())) < 0.12
    same = reference_r2(references, references, images)
    assert 0.6 < float(same.mean()) < 1
    constant = reference_r2(np.ones((300, 40)), references, images)
    assert float(constant.mean()) == pytest.approx(0, abs=1e-9)  # no better than the mean of the others


def test_a_split_is_scored_by_name_with_an_error():
    references = torch.from_numpy(rows_of(90, 32, 0)).float()
    responses = torch.from_numpy(rows_of(90, 32, 1, references.numpy(), 0.6)).float()
    split = Embeddings(v=None, t=references, y_hat=responses, y=references, groups=[row // 3 for row in range(90)])
    scores = {name: emi(split, load_estimator(name)) for name in ("reference-r2", "dcor-reference", "hsic-reference")}
    for name, score in scores.items():
        assert -2 < score.value < 0 < score.jackknife.stderr, name
        assert name in score.signature.__str__()
    assert (
        emi(Embeddings(v=None, t=references, y_hat=references, y=references), load_estimator("reference-r2")).value
        < 0.0
    )
