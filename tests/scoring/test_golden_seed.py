"""Scores of data that a seed makes, against numbers in the repository: they must not move unnoticed.

``python tests/scoring/test_golden_seed.py`` writes the numbers again. A change of any of them is a change of scores, and
belongs in the changelog as one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lmms_eval_emi import Embeddings, emi, emid, emid_bound, load_estimator
from lmms_eval_emi.core.jackknife import adjust
from lmms_eval_emi.estimators.club import CLUB

GOLDEN = Path(__file__).with_name("golden_seed.json")
IMAGES, PER_IMAGE, WIDTH = 12, 3, 16
ESTIMATORS = ("cosine", "dcor", "dcor-reference", "hsic", "hsic-reference", "ksg", "reference-r2", "club")


def make_splits() -> dict[str, Embeddings]:
    """Return an ID split and two shifts of its rows; ``RandomState`` gives the same numbers in every version of numpy."""
    random = np.random.RandomState(7)
    n = IMAGES * PER_IMAGE
    image = np.repeat(random.standard_normal((IMAGES, WIDTH)), PER_IMAGE, axis=0)
    question, noise = random.standard_normal((n, WIDTH)), random.standard_normal((3, n, WIDTH))
    truth = image + question
    found = {}
    for number, (name, strength) in enumerate({"clean": 0.3, "near": 0.8, "far": 3.0}.items()):
        matrices = {
            "v": image + (0.2 * number) * noise[number],
            "t": question,
            "y_hat": truth + strength * noise[number],
            "y": truth,
        }
        unit = {
            key: torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)) for key, rows in matrices.items()
        }
        groups = [f"image {row // PER_IMAGE}" for row in range(n)]
        found[name] = Embeddings(**unit, ids=[(row,) for row in range(n)], groups=groups)
    return found


def make_estimator(name: str):
    """Return an estimator by name; CLUB has weights that the seed makes."""
    if name != "club":
        return load_estimator(name)
    estimator, random = CLUB(WIDTH, WIDTH, 8), np.random.RandomState(11)
    for parameter in estimator.parameters():
        parameter.data = torch.from_numpy(0.3 * random.standard_normal(tuple(parameter.shape))).float()
    return estimator


def compute() -> dict[str, dict[str, float]]:
    """Return every score that the golden file has."""
    splits = make_splits()
    found: dict[str, dict[str, float]] = {}
    for name in ESTIMATORS:
        estimator = make_estimator(name)
        own = found.setdefault(name, {})
        for split, embeddings in splits.items():
            value = emi(embeddings, estimator)
            own |= {f"{split} emi": value.value, f"{split} stderr": value.stderr, f"{split} corrected": value.corrected}
        for split in ("near", "far"):
            value = emid(splits["clean"], splits[split], estimator)
            own |= {f"{split} emid": value.value, f"{split} emid stderr": value.stderr, f"{split} p": value.p_value}
    for convention in ("published", "equal_weight"):
        own = found.setdefault(f"index {convention}", {})
        for split in ("near", "far"):
            bound = emid_bound(splits["clean"], splits[split], convention)
            own |= {
                f"{split} {part}": getattr(bound, part)
                for part in ("value", "stderr", "jsd_v", "jsd_t", "jsd_id_response", "jsd_ood_response")
            }
            own[f"{split} p of jsd_v"] = bound.test("jsd_v", 199, 3).p_value
    jackknives = [emid(splits["clean"], splits[split], make_estimator("cosine")).jackknife for split in ("near", "far")]
    for method in ("holm", "bh", "maxt"):
        found[f"adjusted {method}"] = dict(zip(("near", "far"), adjust(jackknives, method, 499, 5), strict=True))
    return found


@pytest.fixture(scope="module")
def computed():
    return compute()


@pytest.mark.parametrize("group", json.loads(GOLDEN.read_text()) if GOLDEN.exists() else [])
def test_scores_are_those_of_the_repository(group, computed):
    golden = json.loads(GOLDEN.read_text())
    assert computed.keys() == golden.keys() and computed[group].keys() == golden[group].keys()
    # The published convention computes in float32, as the published script does.
    tolerance = 1e-5 if group in ("index published", "club") else 1e-9
    for name, value in golden[group].items():
        assert computed[group][name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


def test_the_scores_order_the_shifts(computed):
    for name in ("cosine", "dcor", "reference-r2"):
        assert computed[name]["far emid"] > computed[name]["near emid"] > 0


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(compute(), indent=1) + "\n")
