"""The benchmark of known truth in short: its truths are right, and the estimators see what is large."""

from __future__ import annotations

import math
import random
from collections import Counter

import known_truth
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore:.*L2-normalised")


def empirical_loss(channel, attribute, draws=60_000):
    """H(attribute) - I(attribute; what is said of it), from counts."""
    draw = random.Random(0)
    pairs = Counter()
    for _ in range(draws):
        truth = {name: draw.choice(values) for name, values in known_truth.ATTRIBUTES.items()}
        said = channel(truth, draw)
        pairs[truth[attribute], said.get(attribute)] += 1
    first, second = Counter(), Counter()
    for (a, b), count in pairs.items():
        first[a] += count
        second[b] += count
    information = sum(n / draws * math.log(n * draws / (first[a] * second[b])) for (a, b), n in pairs.items())
    return math.log(len(known_truth.ATTRIBUTES[attribute])) - information


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("shape wrong in 30%", "shape"),
        ("colour wrong in 60%", "colour"),
        ("star always called square", "shape"),
        ("place not mentioned", "place"),
        ("something invented", "shape"),
    ],
)
def test_a_channel_loses_what_is_said(name, attribute):
    channel, loss = known_truth.CHANNELS[name]
    assert empirical_loss(channel, attribute) == pytest.approx(loss, abs=0.01)


def test_the_gaussians_share_what_is_said():
    random_ = np.random.default_rng(0)
    x = random_.normal(size=(200_000, 2))
    y = known_truth.related(random_, x, 1.5)
    rho = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    assert -np.log(1 - rho**2) == pytest.approx(1.5, abs=0.02)  # 2 dimensions


def test_large_losses_and_gains_have_the_right_sign():
    results = {one.scenario: one for one in known_truth.gaussians((2, "plain"), repetitions=2, training_rows=400)}
    for effect, sign in (("loss", 1), ("gain", -1)):
        for name in ("club", "infonce", "hsic", "dcor"):
            for outcome in results[f"2 dimensions, plain, {effect}"].outcomes[name]:
                assert sign * outcome.value > 0
    assert "right sign" in known_truth.page(list(results.values()))
    assert len(known_truth.CHANNELS) + 9 * len(known_truth.EFFECTS) >= 40
