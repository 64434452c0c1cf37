"""Training an estimator, the estimators on Gaussians of known information, and fitness for other data."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tinyhub as builder
import torch
from conftest import fit

from lmms_eval_emi import Embeddings, emi, load_estimator
from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.estimators import CLUB, KSG, InfoNCE, check_encoders, training
from lmms_eval_emi.estimators.training import TrainingOptions, embeddings_to_pairs, train_estimator

FAST = TrainingOptions(iterations=40, batch_size=64, hidden=16, every=10, folds=1)


def gaussian(n: int, dimension: int, rho: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Correlated Gaussians and their mutual information, -D/2 ln(1 - rho^2)."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(n, dimension, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, rho * x + math.sqrt(1 - rho**2) * noise, -dimension / 2 * math.log(1 - rho**2)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ksg_recovers_the_information_of_gaussians(rho):
    """Kraskov et al. (2004), fig. 4: for two scalars the error is of a few hundredths of a nat at N = 1,000."""
    x, y, information = gaussian(1000, 1, rho)
    assert float(KSG(k=3).contributions(x, y).mean()) == pytest.approx(information, abs=0.06)


def test_ksg_agrees_with_its_definition():
    x, y, _ = gaussian(60, 2, 0.6)
    k, n = 3, 60
    total = 0.0
    for i in range(n):
        d_x, d_y = (torch.cat([(z - z[i]).norm(dim=1)[:i], (z - z[i]).norm(dim=1)[i + 1 :]]) for z in (x, y))
        radius = torch.maximum(d_x, d_y).sort().values[k - 1]
        total += sum(float(torch.digamma(((d < radius).sum() + 1).double())) for d in (d_x, d_y))
    expected = float(torch.digamma(torch.tensor([k, n], dtype=torch.float64)).sum()) - total / n
    assert float(KSG(k=k).contributions(x, y).mean()) == pytest.approx(expected, abs=1e-12)


def test_ksg_refuses_too_few_samples():
    with pytest.raises(ValueError, match="expected at least 4 samples for ksg, got 3"):
        KSG().contributions(torch.randn(3, 2), torch.randn(3, 2))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_infonce_is_a_tight_lower_bound_on_gaussians(rho):
    """Poole et al. (2019): close to the truth while that is well below ln N, and not above it but for noise."""
    x, y, information = gaussian(4000, 2, rho)
    network = fit(InfoNCE(2, 2, 64), x, y)
    x, y, _ = gaussian(2000, 2, rho, seed=1)
    estimate = float(network.contributions(x, y).mean())
    assert information - 0.15 <= estimate <= information + 0.05


def test_infonce_cannot_exceed_the_logarithm_of_n():
    x, y, information = gaussian(20, 40, 0.99)
    network = fit(InfoNCE(40, 40, 32), *gaussian(2000, 40, 0.99, seed=2)[:2], steps=300)
    assert information > 70
    assert float(network.contributions(x, y).mean()) <= math.log(20)


def test_club_is_an_upper_bound_that_its_bounded_variance_loosens():
    """With the true conditional CLUB gives D rho^2 / (1 - rho^2), above the information.

    Its log variance stays in (-1, 1), so it cannot follow a conditional variance below 1/e: at
    rho = 0.95 that is 0.0975, and the estimate falls far short of what CLUB would give.
    """
    for rho, reachable in ((0.5, True), (0.95, False)):
        x, y, information = gaussian(4000, 1, rho)
        network = fit(CLUB(1, 1, 64), x, y)
        x, y, _ = gaussian(4000, 1, rho, seed=1)
        estimate, ideal = float(network.contributions(x, y).mean()), rho**2 / (1 - rho**2)
        assert ideal > information
        if reachable:
            assert estimate == pytest.approx(ideal, abs=0.06)
        else:
            assert estimate < 0.5 * ideal
            assert estimate == pytest.approx(rho**2 * math.e, rel=0.15)  # the same with variance 1/e


def splits_of(
    count: int = 3, n: int = 40, dimension: int = 8, seed: int = 0, offset: float = 0.0
) -> dict[str, Embeddings]:
    rng = np.random.default_rng(seed)
    out = {}
    for number in range(count):
        x = rng.normal(size=(n, dimension)) + offset
        y = x + 0.5 * rng.normal(size=(n, dimension))
        matrices = [x, x, y, x + 0.5 * rng.normal(size=(n, dimension))]
        rows = [matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in matrices]
        out[f"s{number}"] = Embeddings(
            *rows, ids=list(range(n)), groups=[number * 100 + row // 4 for row in range(n)], encoders="e"
        )
    return out


def test_training_is_determined_by_its_seed():
    first, again = (train_estimator(splits_of(), FAST, name="a").state_dict() for _ in range(2))
    other = train_estimator(splits_of(), TrainingOptions(**{**vars(FAST), "seed": 1}), name="a").state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["p_mu.0.weight"], other["p_mu.0.weight"])


def test_training_learns_and_says_how(tmp_path):
    estimator = train_estimator(
        splits_of(), TrainingOptions(**{**vars(FAST), "iterations": 200}), name="mine", about={"study": "s"}
    )
    (network,) = estimator.card["networks"]
    history = network["history"]
    assert [entry["iteration"] for entry in history[:6]] == [1, 2, 5, 10, 20, 30]  # early enough to stop
    assert history[-1]["loss"] < history[0]["loss"]
    assert network["kept_iteration"] == max(history, key=lambda entry: entry["held_out"])["iteration"]
    estimator.save(tmp_path / "mine.safetensors")
    loaded = load_estimator(tmp_path / "mine.safetensors")
    assert loaded.card == json.loads(json.dumps(estimator.card)) and loaded.card["data"]["pairs"] == 240
    split = splits_of()["s0"]
    assert emi(split, loaded).value == emi(split, estimator).value


def test_an_interrupted_training_goes_on_where_it_was(tmp_path, monkeypatch):
    checkpoint = tmp_path / "a.checkpoint"
    whole = train_estimator(splits_of(), FAST, name="a", checkpoint=tmp_path / "b.checkpoint")
    calls = {"n": 0}
    plain = CLUB.loss

    def interrupted(self, x, y):
        calls["n"] += 1
        if calls["n"] > 25:
            raise KeyboardInterrupt
        return plain(self, x, y)

    monkeypatch.setattr(CLUB, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_estimator(splits_of(), FAST, name="a", checkpoint=checkpoint)
    monkeypatch.setattr(CLUB, "loss", plain)
    with pytest.raises(ValueError, match="is of a training with other data or options"):
        train_estimator(splits_of(seed=5), FAST, name="a", checkpoint=checkpoint, resume=True)
    resumed = train_estimator(splits_of(), FAST, name="a", checkpoint=checkpoint, resume=True)
    assert all(torch.equal(tensor, resumed.state_dict()[key]) for key, tensor in whole.state_dict().items())
    assert resumed.card == whole.card
    with pytest.raises(ValueError, match="has done 40 iterations already"):
        train_estimator(
            splits_of(),
            TrainingOptions(**{**vars(FAST), "iterations": 20}),
            name="a",
            checkpoint=checkpoint,
            resume=True,
        )
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(ValueError, match="a.checkpoint is damaged"):
        train_estimator(splits_of(), FAST, name="a", checkpoint=checkpoint, resume=True)
    checkpoint.unlink()
    with pytest.raises(ValueError, match="which is not there"):
        train_estimator(splits_of(), FAST, name="a", checkpoint=checkpoint, resume=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["club", "club-free", "infonce"])
def test_a_gpu_trains_what_the_cpu_trains(kind, tmp_path, monkeypatch):
    options = TrainingOptions(**{**vars(FAST), "kind": kind})
    expected = train_estimator(splits_of(), options, name="a")
    saved = []
    write = training.write_atomically
    monkeypatch.setattr(
        training,
        "write_atomically",
        lambda path, content: saved.append(1) or (write(path, content) if len(saved) == 3 else None),
    )
    found = train_estimator(splits_of(), options, name="a", device="cuda", checkpoint=tmp_path / "a.checkpoint")
    assert all(one.device.type == "cpu" for one in found.state_dict().values())
    monkeypatch.undo()
    resumed = train_estimator(
        splits_of(), options, name="a", checkpoint=tmp_path / "a.checkpoint", resume=True
    )  # on the CPU
    split = splits_of()["s0"]
    for one in (found, resumed):
        assert emi(split, one).value == pytest.approx(emi(split, expected).value, rel=1e-3)


def test_no_image_is_on_both_sides():
    """Also not by way of a shifted twin, which has the same id and reference and another image."""
    splits = splits_of(2)
    twin = Embeddings(
        splits["s0"].v.flip(1),
        splits["s0"].t,
        splits["s0"].y_hat,
        splits["s0"].y,
        ids=splits["s0"].ids,
        groups=[900 + group for group in splits["s0"].groups],
    )
    pairs = embeddings_to_pairs({**splits, "twin": twin})
    clusters = pairs.clusters[: len(pairs.clusters) // 2].view(3, 40)
    assert torch.equal(clusters[0], clusters[2])
    assert not set(clusters[0].tolist()) & set(clusters[1].tolist())
    assert all(len(set(clusters[0][start : start + 4].tolist())) == 1 for start in range(0, 40, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
        ({"lr": 0.0}, "lr: expected a positive"),
        ({"held_out": 1.0}, r"held_out: expected a share in \[0, 1\), got 1.0"),
        ({"held_out": 0.0}, "Hold some out, or keep the last"),
        ({"kind": "mine"}, "kind: expected one of club, club-free, infonce, got 'mine'"),
        ({"folds": 0}, "folds: expected at least 1"),
    ],
)
def test_options_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**changes)


def test_a_training_that_diverges_says_so():
    with pytest.raises(ValueError, match="the training diverged in iteration .* Use a smaller --lr"):
        train_estimator(splits_of(), TrainingOptions(**{**vars(FAST), "lr": 1e30, "kind": "infonce"}), name="a")


def test_a_training_that_diverges_in_its_last_step():
    for keep in ("best", "last"):
        with pytest.raises(ValueError, match="the training diverged"):
            train_estimator(
                splits_of(),
                TrainingOptions(**{**vars(FAST), "lr": 1e30, "iterations": 1, "keep": keep, "kind": "infonce"}),
                name="a",
            )


def test_something_is_always_left_to_train_on():
    (network,) = train_estimator(splits_of(), TrainingOptions(**{**vars(FAST), "held_out": 0.999}), name="a").card[
        "networks"
    ]
    assert network["held_out_pairs"] < 240


def test_fewer_images_than_folds():
    with pytest.raises(ValueError, match="folds: expected at least as many images as folds, got 10 and 11"):
        train_estimator(splits_of(1), TrainingOptions(**{**vars(FAST), "folds": 11}), name="a")


# From the command line.


@pytest.fixture
def answers(tmp_path):
    folder = tmp_path / "answers"
    for number, name in enumerate(load_study("synthetic").splits):
        write_response_file(
            folder / f"{name}.jsonl", [(row, "", f"a red star {row * number}") for row in range(builder.ROWS)], "tiny"
        )
    return folder


@pytest.mark.parametrize("kind", ["club", "club-free", "infonce"])
def test_train_and_score(in_tinyhub, answers, tmp_path, capsys, caplog, kind):
    output, results = tmp_path / "mine.safetensors", tmp_path / "results.json"
    common = ["--study", "synthetic", "--responses", str(answers)]
    assert (
        main(
            [
                "estimators",
                "train",
                *common,
                "--output",
                str(output),
                "--kind",
                kind,
                "--iterations",
                "20",
                "--hidden",
                "8",
                "--folds",
                "2",
                "--held-out",
                "0",
                "--keep",
                "last",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "network 2: iteration 20 of 20" in printed and f"--estimator {output}" in printed
    card = load_estimator(output).card
    assert "are few to train on" in caplog.text and card["options"]["folds"] == 2
    assert card["models"] == ["tiny"] and card["data"]["pairs"] == 2 * 35 * builder.ROWS
    assert card["encoders"]["vision"].startswith("openai/clip-vit-base-patch32#")
    assert main(["score", *common, "--estimator", str(output), "--output", str(results)]) == 0
    written = json.loads(results.read_text())
    assert "(folds=2,seeds=1)" in written["settings"]["estimator"] and "trained_on" not in written["estimator_fit"]
    assert not output.with_suffix(".checkpoint").exists()
    assert "estimator  mine@" in capsys.readouterr().out


def test_one_network_says_that_it_scores_what_it_was_trained_on(in_tinyhub, answers, tmp_path, capsys, caplog):
    output = tmp_path / "mine.safetensors"
    common = ["--study", "synthetic", "--responses", str(answers)]
    options = ["--iterations", "5", "--hidden", "8", "--folds", "1", "--seeds", "2"]
    assert main(["estimators", "train", *common, "--output", str(output), *options]) == 0
    assert main(["score", *common, "--estimator", str(output), "--output", str(tmp_path / "r.json")]) == 0
    assert "was trained on these data" in caplog.text and "trained on these data" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["splits"]["llava_bench_coco"]["emi_estimator_stderr"] > 0


def test_several_studies_are_pooled(in_tinyhub, answers, tmp_path):
    output = tmp_path / "mine.safetensors"
    options = ["--output", str(output), "--iterations", "2", "--hidden", "4", "--folds", "1"]
    for name in load_study("natural").splits:
        write_response_file(answers / f"{name}.jsonl", [(row, "", "a star") for row in range(builder.ROWS)], "tiny")
    assert main(["estimators", "train", "--study", "synthetic", "natural", "--responses", str(answers), *options]) == 0
    card = load_estimator(output).card
    assert card["data"]["pairs"] == 2 * sum(card["data"]["splits"].values())
    assert len(card["data"]["splits"]) == 63 and card["study"] == "synthetic + natural"


def test_an_estimator_is_refused_to_other_encoders(in_tinyhub, answers, tmp_path, capsys, caplog):
    output = tmp_path / "mine.safetensors"
    common = ["--study", "synthetic", "--responses", str(answers)]
    assert (
        main(
            [
                "estimators",
                "train",
                *common,
                "--output",
                str(output),
                "--iterations",
                "5",
                "--hidden",
                "8",
                "--folds",
                "1",
            ]
        )
        == 0
    )
    torch.manual_seed(9)
    builder.write_text_encoder(tmp_path / "xlm-roberta-base")
    other = ["score", *common, "--estimator", str(output), "--text-encoder", str(tmp_path / "xlm-roberta-base")]
    assert main(other) == 1
    assert "was trained with the text encoder xlm-roberta-base#" in capsys.readouterr().err
    assert main([*other, "--allow-other-encoders"]) == 0
    assert "It is used all the same, as asked." in caplog.text


def test_a_registered_estimator_is_told_by_the_names_of_its_encoders(in_tinyhub):
    from lmms_eval_emi import load_encoders

    encoders = load_encoders("openai/clip-vit-base-patch32", "xlm-roberta-base", "cpu")
    estimator = CLUB(builder.DIMENSION, builder.DIMENSION, 4)
    estimator.vision_encoder, estimator.text_encoder = "elsewhere/clip-vit-base-patch32", "xlm-roberta-base"
    check_encoders(estimator, encoders)
    assert load_estimator("tiny.safetensors", encoders).name == "tiny"
    estimator.text_encoder = "xlm-roberta-large"
    with pytest.raises(
        ValueError, match="trained with the text encoder xlm-roberta-large, and this run has xlm-roberta-base#"
    ):
        check_encoders(estimator, encoders)


def test_an_output_that_is_no_safetensors(answers, capsys):
    assert (
        main(["estimators", "train", "--study", "synthetic", "--responses", str(answers), "--output", "mine.pt"]) == 1
    )
    assert "output: expected a .safetensors file" in capsys.readouterr().err


def test_prefetch(in_tinyhub, tmp_path, monkeypatch, capsys):
    assert main(["tasks", "prefetch", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "35 splits, 175 rows" in printed and "missing" not in printed
    monkeypatch.chdir(tmp_path)
    assert main(["tasks", "prefetch", "--study", "natural", "--check"]) == 1
    printed = capsys.readouterr().out
    assert (
        printed.count("missing: ") == 3
        and "hf download xlm-roberta-base" in printed
        and "dataset synthetic" not in printed
    )


def test_a_training_stops_once_its_held_out_score_no_longer_improves(make_embeddings):
    """Twelve images went through 25,000 steps; the state that is kept is the same without the rest of them."""
    splits = {"all": make_embeddings(0, 36)}
    options = TrainingOptions(iterations=3000, batch_size=8, hidden=4, folds=1, every=50, patience=200)
    (report,) = train_estimator(splits, options, name="one").card["networks"]
    assert report["iterations"] == report["kept_iteration"] + 200 or report["kept_iteration"] < 50
    assert report["iterations"] < 3000
    short = dataclasses.replace(options, iterations=report["iterations"], patience=0)
    (full,) = train_estimator(splits, short, name="one").card["networks"]
    assert full["kept_iteration"] == report["kept_iteration"] and full["history"] == report["history"]


def test_held_out_scores_may_be_wanted_never(make_embeddings):
    """Nothing is as large as the steps between them."""
    splits = {"all": make_embeddings(0, 40)}
    options = TrainingOptions(iterations=3, batch_size=8, hidden=4, folds=1, seeds=1, every=10**13)
    assert [
        one["iteration"] for one in train_estimator(splits, options, name="one").card["networks"][0]["history"]
    ] == [1, 2, 3]


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs the memory of this process as Linux tells it")
def test_memory_does_not_grow_with_iterations():
    """Small tensors that are kept between large ones that are freed made it grow by a megabyte an iteration."""

    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    v, t, y_hat, y = (torch.nn.functional.normalize(torch.randn(1200, 768), dim=1) for _ in range(4))
    pairs = embeddings_to_pairs({"all": Embeddings(v=v, t=t, y_hat=y_hat, y=y)})
    options = TrainingOptions(
        iterations=400, batch_size=1024, hidden=64, folds=1, seeds=1, held_out=0.0, keep="last", every=400
    )
    one = training._Training(pairs, options, 0, "one")
    for _ in range(30):
        one.advance()
    before = taken()
    for _ in range(100):
        one.advance()
    assert taken() - before < 30e6
