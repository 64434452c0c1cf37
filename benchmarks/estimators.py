"""What the estimators give where the truth is known, and how often the verdict on their fitness is right.

python benchmarks/estimators.py gaussians     # 10 to 15 minutes on 2 cores
python benchmarks/estimators.py folds         # training and scoring on the same rows, with and without folds
python benchmarks/estimators.py fitness       # false alarms and power of the verdict; about 10 minutes
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from lmms_eval_emi import Embeddings, emi
from lmms_eval_emi.estimators import HSIC, KSG, DistanceCorrelation
from lmms_eval_emi.estimators.fitness import fitness
from lmms_eval_emi.estimators.training import TrainingOptions, train_estimator

TRUTHS = (0.1, 0.5, 2.0, 6.0)  # nats
WORLDS = ((2, False), (16, False), (16, True), (128, False), (128, True))  # dimension, unit rows
TRAINED = ("club", "club-free", "infonce")
UNTRAINED = (KSG(), HSIC(), DistanceCorrelation())
ROWS = 90
DRAWS = 20


def gaussians(random: np.random.Generator, n: int, dimension: int, information: float, unit: bool) -> Embeddings:
    """Correlated Gaussians of -d/2 ln(1 - r^2) nats; unit rows lose next to none of it in many dimensions."""
    rho = math.sqrt(1 - math.exp(-2 * information / dimension))
    x, noise = random.normal(size=(2, n, dimension))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    if unit:
        x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    return Embeddings(v=None, t=x, y_hat=y, y=y, groups=list(range(n)))


def gaussian_values(task: tuple[int, bool, float]) -> dict[str, float]:
    """Mean estimate of every estimator over some sets of 90 fresh rows."""
    dimension, unit, information = task
    random = np.random.default_rng([dimension, unit, int(10 * information)])
    training = gaussians(random, 5000, dimension, information, unit)
    options = {"iterations": 2000, "batch_size": 512, "folds": 1, "every": 50}
    estimators = {
        kind: train_estimator({"a": training}, TrainingOptions(kind=kind, **options), name=kind) for kind in TRAINED
    }
    estimators |= {one.kind: one for one in UNTRAINED}
    fresh = [gaussians(random, ROWS, dimension, information, unit) for _ in range(DRAWS)]
    found = {
        kind: float(np.mean([float(one.contributions(rows.x, rows.y).mean()) for rows in fresh]))
        for kind, one in estimators.items()
    }
    return {**found, "saturated": estimators["club"].saturation(fresh[0].x)}


def fold_values(kind: str) -> tuple[float, float]:
    """I(x; y) of 300 unrelated rows of 128 dimensions that were trained on, by one network and by five folds."""
    random = np.random.default_rng(0)
    nothing = gaussians(random, 300, 128, 0.0, False)
    options = {"kind": kind, "iterations": 1000, "batch_size": 256}
    one, folds = (
        emi(nothing, train_estimator({"a": nothing}, TrainingOptions(folds=k, **options), name=kind)).mi_reference
        for k in (1, 5)
    )
    return one, folds


# The verdict on fitness.

D = 16
FAR = {
    "new images, same distribution": {},
    "30 new images, same distribution": {"images": 30},
    "references of other rows": {"broken": True},
    "noise on all embeddings": {"noise": 0.35},
    "another domain of inputs": {"moved": 1.0},
}


def world(
    random: np.random.Generator,
    images: int = 20,
    label: str = "",
    noise: float = 0.0,
    broken: bool = False,
    moved: float = 0.0,
) -> Embeddings:
    """Three rows an image; references follow inputs by a linear map, responses less exactly."""
    fixed = np.random.default_rng(99)
    w, mean = fixed.normal(size=(D, D)) / 4, fixed.normal(size=D)
    n = 3 * images
    latent = np.repeat(random.normal(size=(images, D)), 3, axis=0) + 0.7 * random.normal(size=(n, D))
    rows = [
        latent + mean + 0.3 * random.normal(size=(n, D)) + moved * np.roll(mean, 3),
        latent + mean + moved * np.roll(mean, 3),
        latent @ w.T + 0.8 * random.normal(size=(n, D)) + 0.5 * mean,
        latent @ w.T + 0.5 * random.normal(size=(n, D)) + 0.5 * mean,
    ]
    rows = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in rows]
    if noise:
        rows = [one + noise * random.normal(size=one.shape) for one in rows]
        rows = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in rows]
    if broken:
        rows[2:] = [np.roll(one, 9, axis=0) for one in rows[2:]]
    names = [f"{label}{row // 3}" for row in range(n)]
    return Embeddings(*rows, ids=[f"{label} {row}" for row in range(n)], groups=names)


def fitness_once(seed: int, images: int) -> dict[str, bool]:
    """Whether an estimator that was just trained calls new data far."""
    random = np.random.default_rng([seed, images])
    options = TrainingOptions(iterations=150, batch_size=256, hidden=32, lr=3e-3)
    estimator = train_estimator({"a": world(random, images, "training ")}, options, name="a")
    found = {}
    for name, changes in FAR.items():
        rows = world(random, **changes)  # type: ignore[arg-type]
        found[name] = fitness(estimator, {"a": rows}, {"a": emi(rows, estimator)})["verdict"] == "far"
    return found


def run(task: Callable, items: Iterable, pool: object, label: str) -> list:
    items = list(items)
    return list(tqdm(pool.imap(task, items), total=len(items), desc=label, leave=False))  # type: ignore[attr-defined]


def show_gaussians(pool: object, _: int) -> None:
    tasks = [(dimension, unit, truth) for dimension, unit in WORLDS for truth in TRUTHS]
    found = dict(zip(tasks, run(gaussian_values, tasks, pool, "Gaussians"), strict=True))
    names = [*TRAINED, *(one.kind for one in UNTRAINED)]
    rows = []
    for dimension, unit in WORLDS:
        own = [found[dimension, unit, truth] for truth in TRUTHS]
        shown = [" / ".join(f"{one[name]:.2f}" for one in own) for name in names]
        share = max(one["saturated"] for one in own)
        rows.append([f"{dimension}{', unit rows' if unit else ''}", *shown, f"{share:.0%}"])
    print(
        f"Mean estimate of {' / '.join(map(str, TRUTHS))} nats, of {DRAWS} sets of {ROWS} rows, trained on 5,000 others:\n"
    )
    print(tabulate(rows, headers=["dimension", *names, "club saturated"], tablefmt="pipe", disable_numparse=True))


def show_folds(pool: object, _: int) -> None:
    rows = [
        [kind, f"{one:.2f}", f"{folds:.2f}"]
        for kind, (one, folds) in zip(TRAINED, run(fold_values, TRAINED, pool, "Folds"), strict=True)
    ]
    print("Information found in 300 unrelated rows of 128 dimensions, trained and scored on the same rows:\n")
    print(tabulate(rows, headers=["kind", "one network", "5 folds"], tablefmt="pipe", disable_numparse=True))


def show_fitness(pool: object, repetitions: int) -> None:
    table = []
    counts = (20, 60)
    found = {
        images: run(partial(fitness_once, images=images), range(repetitions), pool, f"{images} images")
        for images in counts
    }
    for name in FAR:
        table.append([name, *(f"{np.mean([one[name] for one in found[images]]):.3f}" for images in counts)])
    print(f"Share of data sets that are called far, {repetitions} repetitions each:\n")
    headers = ["data", *(f"trained on {images} images" for images in counts)]
    print(tabulate(table, headers=headers, tablefmt="pipe", disable_numparse=True))


def _start() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # rows of a simulation are not normalised
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shown = {"gaussians": show_gaussians, "folds": show_folds, "fitness": show_fitness}
    parser.add_argument("what", choices=shown)
    parser.add_argument("--repetitions", type=int, default=300, help="of fitness (default: %(default)s)")
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(multiprocessing.cpu_count(), _start) as pool:
        shown[arguments.what](pool, arguments.repetitions)


if __name__ == "__main__":
    main()
