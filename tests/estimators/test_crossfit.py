"""Estimators that believe no row that they were trained on, and the verdict on their fitness."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lmms_eval_emi import Embeddings, emi, emid, load_estimator
from lmms_eval_emi.estimators import CLUB, KSG, CrossFitted
from lmms_eval_emi.estimators.base import Assignment, row_to_keys
from lmms_eval_emi.estimators.fitness import fitness
from lmms_eval_emi.estimators.training import TrainingOptions, embeddings_to_pairs, too_few, train_estimator

FAST = TrainingOptions(iterations=150, batch_size=256, hidden=32, lr=3e-3)
D = 16


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def split(seed, images=20, label="", noise=0.0, broken=False, moved=0.0, told=1.0, world=7, error=0.8):
    """Three rows an image; references follow inputs by a linear map, responses too, less exactly."""
    fixed, random = np.random.default_rng(world), np.random.default_rng(seed)
    w, mean = fixed.normal(size=(D, D)) / 4, fixed.normal(size=D)
    latent = np.repeat(random.normal(size=(images, D)), 3, axis=0) + 0.7 * random.normal(size=(3 * images, D))
    x = unit(latent + mean + moved * np.roll(mean, 3))
    y, y_hat = (unit(told * latent @ w.T + 0.5 * mean + s * random.normal(size=latent.shape)) for s in (0.5, error))
    if noise:
        x, y, y_hat = (unit(rows + noise * random.normal(size=rows.shape)) for rows in (x, y, y_hat))
    if broken:
        y, y_hat = np.roll(y, 9, axis=0), np.roll(y_hat, 9, axis=0)
    groups = [f"{label}{seed}-{row // 3}" for row in range(3 * images)]
    ids = [f"{label}{seed}-{row}" for row in range(3 * images)]
    return Embeddings(v=x, t=x, y_hat=y_hat, y=y, ids=ids, groups=groups)


@pytest.fixture(scope="module")
def trained():
    return train_estimator({"train": split(0)}, FAST, name="mine")


def test_a_row_is_scored_by_the_network_that_did_not_see_its_image(trained):
    rows = split(0)
    which = trained.bind(rows).which
    assert set(which.tolist()) == set(range(5))
    for image in range(20):  # whole images
        assert len(set(which[3 * image : 3 * image + 3].tolist())) == 1
    network = trained.networks[0]
    expected = torch.zeros(60, dtype=torch.float64)
    for fold in range(5):
        own = network[fold].in_float64(rows.t.device)
        expected[which == fold] = own.contributions(rows.x, rows.y)[which == fold]
    assert torch.allclose(trained.bind(rows).contributions(rows.x, rows.y), expected, atol=1e-12)
    assert emi(rows, trained).mi_reference == pytest.approx(float(expected.mean()), abs=1e-12)


def test_rows_that_no_network_saw_are_scored_by_all(trained):
    rows = split(1)
    assert set(trained.bind(rows).which.tolist()) == {-1}
    each = [emi(rows, network).value for network in trained.networks[0]]
    found = emi(rows, trained)
    assert found.value == pytest.approx(np.mean(each), abs=1e-12)
    assert float(found.influence.sum()) == pytest.approx(0, abs=1e-9)


def test_there_is_no_information_where_there_is_none():
    """One network finds some in the rows that it was trained on; those of the folds do not."""
    nothing = split(3, images=40, told=0.0)
    options = {**vars(FAST), "iterations": 400, "held_out": 0.0, "keep": "last"}
    alone = train_estimator({"a": nothing}, TrainingOptions(**{**options, "folds": 1}), name="a")
    folds = train_estimator({"a": nothing}, TrainingOptions(**options), name="a")
    inflated, honest = (emi(nothing, estimator) for estimator in (alone, folds))
    assert inflated.reference.ci95[0] > 0
    assert honest.reference.ci95[0] < 0.02 < inflated.mi_reference
    assert alone.trained_on(nothing) == 120 and folds.trained_on(nothing) == 0
    assert fitness(alone, {"a": nothing}).trained_on == 120


@pytest.mark.parametrize("kind", ["club", "club-free", "infonce"])
def test_the_jackknife_deletes_images_exactly_with_folds_and_seeds(kind):
    estimator = train_estimator(
        {"a": split(0)}, TrainingOptions(**{**vars(FAST), "iterations": 20, "kind": kind, "seeds": 2}), name="a"
    )
    rows = split(0)
    score = emi(rows, estimator)
    (deleted,) = score.jackknife.strata
    for image in list(deleted)[:4]:
        kept = [row for row in range(rows.n) if rows.groups[row] != image]
        assert deleted[image] == pytest.approx(emi(rows.select(kept), estimator).value, abs=1e-9)
    assert len(score.by_seed) == 2 and score.value == pytest.approx(np.mean(score.by_seed))
    assert score.estimator_stderr == pytest.approx(np.std(score.by_seed, ddof=1) / 2**0.5)
    assert emid(rows, split(2), estimator).estimator_stderr is not None


def test_a_file_has_all_networks_and_knows_its_rows_again(trained, tmp_path):
    trained.save(tmp_path / "mine.safetensors")
    loaded = load_estimator(tmp_path / "mine.safetensors")
    assert isinstance(loaded, CrossFitted) and loaded.seen == trained.seen
    assert loaded.signature.startswith("mine@") and loaded.signature.endswith("(folds=5,seeds=1)")
    assert loaded.card == json.loads(json.dumps(trained.card))
    assert emi(split(0), loaded).value == emi(split(0), trained).value
    alone = train_estimator({"a": split(0)}, TrainingOptions(**{**vars(FAST), "folds": 1}), name="a")
    alone.save(tmp_path / "alone.safetensors")
    assert load_estimator(tmp_path / "alone.safetensors").trained_on(split(0)) == alone.trained_on(split(0)) == 54


def test_a_damaged_file_of_folds_is_refused(trained, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    trained.save(tmp_path / "mine.safetensors")
    with safe_open(tmp_path / "mine.safetensors", framework="pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    without = {key: one for key, one in state.items() if not key.startswith("seen.")}
    cases = {
        "expected the fold of every row": (without, metadata),
        "below 5": ({**state, "seen.folds": state["seen.folds"] + 3}, metadata),
        "expected the networks of 1 seeds and 6 folds": (state, {**metadata, "folds": "6"}),
        "expected numbers of folds and seeds": (state, {**metadata, "folds": "five"}),
        "missing: p_mu.0.weight": ({key: one for key, one in state.items() if key != "0.2.p_mu.0.weight"}, metadata),
    }
    for message, (tensors, own) in cases.items():
        save_file(tensors, tmp_path / "damaged.safetensors", own)
        with pytest.raises(ValueError, match=message):
            load_estimator(tmp_path / "damaged.safetensors")


def test_an_interrupted_training_of_folds_goes_on(tmp_path, monkeypatch):
    options = TrainingOptions(**{**vars(FAST), "iterations": 30, "every": 10})
    whole = train_estimator({"a": split(0)}, options, name="a", checkpoint=tmp_path / "b.checkpoint")
    plain, calls = CLUB.loss, {"n": 0}

    def interrupted(self, x, y):
        calls["n"] += 1
        if calls["n"] > 75:  # in the third fold
            raise KeyboardInterrupt
        return plain(self, x, y)

    monkeypatch.setattr(CLUB, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_estimator({"a": split(0)}, options, name="a", checkpoint=tmp_path / "a.checkpoint")
    steps = {"n": 0}

    def counted(self, x, y):
        steps["n"] += 1
        return plain(self, x, y)

    monkeypatch.setattr(CLUB, "loss", counted)
    resumed = train_estimator({"a": split(0)}, options, name="a", checkpoint=tmp_path / "a.checkpoint", resume=True)
    assert steps["n"] == 150 - 70
    assert resumed.card == whole.card
    assert emi(split(0), resumed).value == emi(split(0), whole).value


def test_twins_are_known_by_their_rows():
    rows, twin = split(0), split(0, label="other")
    twin = Embeddings(v=twin.v, t=twin.t, y_hat=twin.y_hat, y=twin.y, ids=rows.ids, groups=twin.groups)
    pairs = embeddings_to_pairs({"a": rows, "b": twin})
    assert pairs.images == 20
    folds = Assignment(dict(pairs.keys))
    assert torch.equal(folds.of(rows), folds.of(twin))
    assert Assignment.from_state(folds.to_state()) == folds
    assert len(row_to_keys("a", None)) == 1 and row_to_keys("a", None) != row_to_keys(None, "a")


def test_few_data_are_called_few():
    assert too_few(300, 20) is None
    assert "wrong sign" in too_few(120, 20) and "wrong sign" in too_few(900, 19)


# Fitness.


def test_a_shift_that_matters_is_far_and_new_images_are_not(trained):
    """The rates are in docs/estimators.md; here one of each."""
    assert trained.card["domain"]["samples"][0]["limits"].keys() == {"inputs", "references", "likelihood", "matching"}
    new = split(21)
    assert fitness(trained, {"new": new}, {"new": emi(new, trained)}).verdict == "in domain"
    for far in (split(21, broken=True), split(21, noise=0.35), split(21, moved=1.0), split(21, world=8)):
        found = fitness(trained, {"new": new, "far": far}, {"far": emi(far, trained)})
        assert (found.verdict, found.far_splits, found.basis) == ("far", ["far"], "card")
        assert any(one["value"] > one["limit"] for one in found.splits["far"].distances.values())


def test_what_was_trained_on_is_in_domain_and_so_is_what_is_like_one_of_its_splits():
    """A split is no random part of a pool of unlike ones."""
    splits = {"plain": split(0), "moved": split(1, moved=1.0)}
    estimator = train_estimator(splits, FAST, name="a")
    assert len(estimator.card["domain"]["samples"]) == 3
    found = fitness(estimator, splits)
    assert found.verdict == "in domain" and found.splits["moved"].to_data() == {"in_training_data": True}
    assert fitness(estimator, {"new": split(41, moved=1.0)}).verdict == "in domain"
    assert fitness(estimator, {"new": split(41, moved=-2.0)}).verdict == "far"


def test_an_estimator_without_a_density_is_judged_by_its_inputs():
    options = TrainingOptions(**{**vars(FAST), "kind": "infonce"})
    estimator = train_estimator({"a": split(0)}, options, name="a")
    assert estimator.card["domain"]["samples"][0]["limits"].keys() == {"inputs", "references"}
    assert fitness(estimator, {"far": split(21, moved=1.0)}).verdict == "far"
    assert fitness(estimator, {"new": split(21)}).ceiling == pytest.approx(np.log(60))


def test_without_a_card_the_references_speak(trained):
    trained_alone = trained.networks[0][0]
    trained_alone.card = {}
    good, broken = split(5, images=40), split(5, images=40, broken=True)
    fit = {
        name: fitness(trained_alone, {"a": rows}, {"a": emi(rows, trained_alone)})
        for name, rows in {"good": good, "broken": broken}.items()
    }
    assert (fit["good"].verdict, fit["good"].basis) == ("plausible", "checks")
    assert (fit["broken"].verdict, fit["broken"].doubtful_splits) == ("doubtful", ["a"])
    assert fit["good"].splits["a"].references_over_shuffled > 0


def test_a_saturated_variance_makes_nats_nominal():
    rows = split(0)
    network = CLUB(D, D, 4)
    assert fitness(network, {"a": rows}).unit == "nats" and fitness(network, {"a": rows}).saturated == 0
    with torch.no_grad():
        network.p_logvar[2].bias.fill_(-9.0)
    found = fitness(network, {"a": rows})
    assert (found.unit, found.saturated) == ("nominal nats", 1.0)
    assert fitness(KSG(), {"a": rows}).unit == "nats"


@pytest.mark.parametrize("seed", [2, 3])
def test_twenty_images_that_flipped_a_sign(seed):
    """New images to which the responses are better: EMID is about -0.19. One network scores the 20 images that it
    was trained on, pulls that to 0 or beyond, and nothing but its being trained on them tells. Folds see it."""
    rows, gain = split(100 + seed), split(300 + seed, error=0.5)
    options = {"iterations": 3000, "hidden": 128, "held_out": 0.0, "keep": "last", "folds": 1}
    alone = train_estimator({"a": rows}, TrainingOptions(**{**vars(FAST), "lr": 1e-3, **options}), name="a")
    folds = train_estimator({"a": rows}, TrainingOptions(**{**vars(FAST), "iterations": 300}), name="a")
    assert too_few(2 * rows.n, embeddings_to_pairs({"a": rows}).images)
    wrong, right = emid(rows, gain, alone), emid(rows, gain, folds)
    assert right.ci95[1] < 0 and wrong.value > 0.5 * right.value
    fit = [fitness(one, {"id": rows, "ood": gain}, {"id": emi(rows, one)}) for one in (alone, folds)]
    assert fit[0].trained_on == 60 and fit[1].trained_on is None
