"""Dependence without training, nearest neighbours with ties, and CLUB with a free variance, on known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import fit
from scipy.spatial import KDTree
from scipy.special import digamma

from lmms_eval_emi import Embeddings, emi, emid, load_estimator
from lmms_eval_emi.estimators import CLUB, HSIC, KSG, Cosine, DistanceCorrelation, FreeCLUB, dependence

KINDS = (HSIC(), DistanceCorrelation())


def rows(n=31, seed=0, rho=0.7):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 5))
    return torch.from_numpy(x), torch.from_numpy(rho * x[:, :4] + random.normal(size=(n, 4)))


def by_definition(estimator, x, y):
    """U-centred matrices (Szekely & Rizzo 2014, section 3), multiplied."""

    def centred(points):
        matrix = estimator.matrix(points, points).clone()
        matrix.fill_diagonal_(0)
        n, sums = len(matrix), matrix.sum(dim=1)
        matrix = matrix - sums[:, None] / (n - 2) - sums / (n - 2) + matrix.sum() / ((n - 1) * (n - 2))
        return matrix.fill_diagonal_(0)

    a, b = centred(x), centred(y)
    return float((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt())


@pytest.mark.parametrize("estimator", KINDS, ids=lambda one: one.kind)
@pytest.mark.parametrize("chunk", [512, 7])
def test_dependence_agrees_with_its_definition_without_each_image_and_row(estimator, chunk, monkeypatch):
    monkeypatch.setattr(dependence, "CHUNK", chunk)
    x, y = rows()
    images = torch.arange(31) // 4
    found = estimator.analyse(x, y, images, 8)
    assert found.value == pytest.approx(by_definition(estimator, x, y), abs=1e-12)
    for image in range(8):
        kept = images != image
        assert float(found.deleted[image]) == pytest.approx(by_definition(estimator, x[kept], y[kept]), abs=1e-12)
    others = [torch.arange(31) != row for row in range(31)]
    expected = np.array([30 * (found.value - by_definition(estimator, x[kept], y[kept])) for kept in others])
    assert found.influence.numpy() == pytest.approx(expected - expected.mean(), abs=1e-9)


@pytest.mark.parametrize("estimator", KINDS, ids=lambda one: one.kind)
def test_independent_rows_have_no_dependence_on_average(estimator):
    values = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        x, y = (torch.from_numpy(random.normal(size=(30, 40))) for _ in range(2))
        values.append(float(estimator.contributions(x, y).mean()))
    assert np.mean(values) == pytest.approx(0, abs=3 * np.std(values) / 200**0.5)
    assert min(values) < 0  # unbiased
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 40)))
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))
    assert float(estimator.contributions(x, 3 * x @ torch.from_numpy(rotation)).mean()) == pytest.approx(1)


def test_rows_that_are_all_the_same_depend_on_nothing():
    x, _ = rows()
    assert float(HSIC().contributions(x, torch.ones(31, 4)).mean()) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="expected at least 4 samples for dcor, got 3"):
        DistanceCorrelation().contributions(x[:3], x[:3])


def split(seed, images=30, error=0.3, rowwise=3):
    random = np.random.default_rng(seed)
    unit = lambda one: one / np.linalg.norm(one, axis=1, keepdims=True)  # noqa: E731
    x = np.repeat(random.normal(size=(images, 12)), rowwise, axis=0) + random.normal(size=(images * rowwise, 12))
    y = x + 0.3 * random.normal(size=x.shape)
    y_hat = x + error * random.normal(size=x.shape)
    groups = [f"{seed} {row // rowwise}" for row in range(len(x))]
    return Embeddings(
        v=unit(x), t=unit(x), y_hat=unit(y_hat), y=unit(y), ids=groups and list(range(len(x))), groups=groups
    )


@pytest.mark.parametrize("name", ["hsic", "dcor", "cosine"])
def test_they_score_and_compare_splits_by_name_with_intervals(name):
    estimator = load_estimator(name)
    good, bad = split(0), split(0, error=2.0)
    found = emid(good, bad, estimator)
    assert found.paired and found.ci95[0] > 0
    assert emi(good, estimator).unit in ("correlation", "cosine") and estimator.unit in str(found)
    if name == "cosine":  # the input plays no part in it
        assert emi(good, estimator).value == pytest.approx(
            float((good.y_hat.double() * good.y.double()).sum(dim=1).mean()) - 1, abs=1e-6
        )
        assert found.inputs.value == 0 and found.responses.value == pytest.approx(found.value)


def test_the_cosine_deletes_images_exactly():
    score = emi(split(0), Cosine())
    (deleted,) = score.jackknife.strata
    kept = [row for row in range(90) if row // 3 != 4]
    assert deleted["0 4"] == pytest.approx(emi(split(0).select(kept), Cosine()).value, abs=1e-12)


# Nearest neighbours.


def test_ksg_agrees_with_a_search_by_trees():
    x, y = (one.numpy() for one in rows(200))
    joint = np.hstack([x, y])
    radius = KDTree(joint).query(joint, k=4, p=np.inf)[0][:, 3]
    counts = [
        KDTree(one).query_ball_point(one, np.nextafter(radius, 0), p=np.inf, return_length=True) for one in (x, y)
    ]
    expected = digamma(3) + digamma(200) - np.mean(digamma(counts[0]) + digamma(counts[1]))
    assert float(KSG(norm="max").contributions(*rows(200)).mean()) == pytest.approx(expected, abs=1e-12)
    assert KSG(norm="max").signature == "ksg(k=3,norm=max)" and KSG().signature == "ksg(k=3)"
    with pytest.raises(ValueError, match="norm: expected one of euclidean, max, got 'l1'"):
        KSG(norm="l1")


def test_ksg_agrees_with_an_independent_implementation():
    """Where infomeasure is installed, which needs numba: pip install infomeasure."""
    infomeasure = pytest.importorskip("infomeasure")
    pytest.importorskip("numba")
    x, y = rows(200)
    expected = infomeasure.mutual_information(x.numpy(), y.numpy(), approach="ksg", k=3)
    assert float(KSG(norm="max").contributions(x, y).mean()) == pytest.approx(expected, abs=1e-12)


def test_ksg_takes_repeated_rows_as_discrete():
    """Independent 4 x 4 symbols have no information; the continuous formula gives them 8 nats."""
    random = np.random.default_rng(0)
    symbols = torch.from_numpy(random.integers(0, 4, size=(400, 2))).double()
    assert float(KSG().contributions(symbols[:, :1], symbols[:, 1:]).mean()) == pytest.approx(0, abs=0.05)
    same = float(KSG().contributions(symbols[:, :1], symbols[:, :1]).mean())
    assert same == pytest.approx(math.log(4), abs=0.05)
    assert KSG().repeated(symbols[:, :1], symbols[:, 1:]) == 400
    x, y = rows(100)
    assert KSG().repeated(x, y) == 0
    # A mixture, as in Gao et al. (2017), section 5: x uniform on 5 symbols, y uniform on [x, x + 2].
    x = torch.from_numpy(random.integers(0, 5, size=(3000, 1))).double()
    y = x + 2 * torch.from_numpy(random.random((3000, 1)))
    assert float(KSG(k=5).contributions(x, y).mean()) == pytest.approx(math.log(5) - 4 / 5 * math.log(2), abs=0.05)


def test_repeated_rows_are_told():
    from lmms_eval_emi import score_study
    from lmms_eval_emi.data.study import load_study

    random = np.random.default_rng(0)
    once = random.normal(size=(10, 6))
    rows = np.repeat(once / np.linalg.norm(once, axis=1, keepdims=True), 5, axis=0)
    study = load_study("synthetic")
    repeated = Embeddings(v=rows, t=rows, y_hat=rows, y=rows, groups=list(range(50)))
    result = score_study(study, {study.id_split: repeated}, KSG(), model="m")
    assert "50 of 50 inputs and responses are repeated, and ksg takes them as discrete" in result.notes[study.id_split]


# A free variance.


def test_a_free_variance_gives_nats_whatever_the_scale():
    """D r^2 / (1 - r^2) for Gaussians, in the units of unit rows in many dimensions, where CLUB saturates."""
    rho, dimension = 0.8, 4
    random = np.random.default_rng(0)

    def draw(n):
        x, noise = (torch.from_numpy(random.normal(size=(n, dimension))) for _ in range(2))
        return 0.02 * x, 0.02 * (rho * x + math.sqrt(1 - rho**2) * noise) + 0.1

    free, bounded = (fit(kind(dimension, dimension, 64), *draw(4000)) for kind in (FreeCLUB, CLUB))
    x, y = draw(2000)
    expected = dimension * rho**2 / (1 - rho**2)
    assert float(free.contributions(x, y).mean()) == pytest.approx(expected, rel=0.12)
    assert float(bounded.contributions(x, y).mean()) < 0.01 * expected
    assert free.saturation(x) < 0.01 and bounded.saturation(x) > 0.9


def test_the_whitening_is_in_the_file(tmp_path):
    x, y = rows(200)
    network = fit(FreeCLUB(5, 4, 8, name="free"), x, y, steps=20)
    white = network.x_map(x.float())
    assert torch.allclose(white.T @ white / 200, torch.eye(5), atol=1e-3)
    network.save(tmp_path / "free.safetensors")
    loaded = load_estimator(tmp_path / "free.safetensors")
    assert torch.equal(loaded.contributions(x, y), network.contributions(x, y))


# Another package's estimator.


def test_another_package_registers_an_estimator(monkeypatch, caplog):
    from importlib.metadata import EntryPoint

    from lmms_eval_emi.estimators import Estimator, registry

    class Mine(Estimator):
        """How alike the norms are."""

        kind = "mine"

        def contributions(self, x, y):
            return -(x.norm(dim=1) - y.norm(dim=1)).abs().double()

    class Loaded(EntryPoint):
        def load(self):
            if self.name == "broken":
                raise ImportError("no such module")
            return Mine

    entries = [Loaded("mine", "a:b", registry.GROUP), Loaded("broken", "c:d", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    registry.kinds.cache_clear()
    try:
        assert registry.registered_estimators()["mine"].description == "How alike the norms are."
        assert emid(split(0), split(0, error=2.0), load_estimator("mine")).ci95 is not None
        assert "The estimator broken of another package (c:d) cannot be loaded" in caplog.text
    finally:
        registry.kinds.cache_clear()
