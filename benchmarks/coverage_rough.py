"""Coverage on data that are not nice: ``python benchmarks/coverage_rough.py --repetitions 400``.

The generator of coverage_simulation.py draws smooth noise of one variance. Here the noise of an image has a variance of its
own, responses and references are rounded, so that rows tie, and one image in five has the same degenerate response to
all of its questions. EMI is tr Cov(W x, y_hat - y); its true value is that of a million rows.

Rows that are right or wrong, with an image effect, are drawn as well: for the AUC and the rank correlation of row values
with them, and for the relative loss of accuracy (MMI) and its paired test.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from coverage_simulation import GOALS, World, _start, covers, goal_of, run
from scipy import special
from tabulate import tabulate

from lmms_eval_emi.scoring.agreement import _rank_jackknife, bounded_interval
from lmms_eval_emi.slices.robustness.comparison import ScoredTask, ShiftedTask, measure
from lmms_eval_emi.slices.robustness.metrics import RowMetric

GRID = 0.5  # responses are multiples of it
DEGENERATE = 0.2  # share of images
TRUE_ROWS = 1_000_000


class RoughWorld(World):
    """Images with noise of their own variance, ties, and clusters of degenerate responses."""

    def rows(
        self, random: np.random.Generator, latent: np.ndarray, sizes: np.ndarray, shifted: bool, y: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, responses and references of all rows."""
        keep, b = (self.keep, self.b_shifted) if shifted else (1.0, self.b)
        scale = np.repeat(np.exp(0.5 * random.normal(size=len(sizes))), sizes)[:, None]
        x = keep * latent + (0.5 * scale * self.draw(random, *latent.shape) if shifted else 0)
        if y is None:
            y = _rounded(latent @ self.c.T + scale * self.draw(random, *latent.shape))
        y_hat = _rounded(latent @ b.T + scale * self.draw(random, *latent.shape))
        y_hat[np.repeat(random.random(len(sizes)) < DEGENERATE, sizes)] = 1.0
        return x, y_hat, y

    def truth(self, shifted: bool) -> float:
        """True EMI: the covariance over a million rows, three to an image."""
        random = np.random.default_rng(123)
        sizes = np.full(TRUE_ROWS // 3, 3)
        x, y_hat, y = self.rows(random, self.latent(random, sizes), sizes, shifted, None)
        mu = x @ self.w.T
        return float(((mu - mu.mean(0)) * (y_hat - y)).sum(axis=1).mean())


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values / GRID) * GRID


def rough_world() -> RoughWorld:
    """The world with an effect."""
    base = World.make(True, 0)
    return RoughWorld(base.w, base.b, base.c, base.b_shifted, base.keep, 0)


def emi_once(seed: int, images: int, paired: bool, truths: tuple[float, float]) -> dict[str, bool]:
    """Whether the intervals of EMI and EMID hold the truth."""
    (found,) = rough_world().shift(np.random.default_rng(seed), images, False, paired)
    return {"EMI": covers(found.id.ci95, truths[0]), "EMID": covers(found.ci95, truths[0] - truths[1])}


def _effects(random: np.random.Generator, images: int, rows: int) -> np.ndarray:
    """Standard normal values with a correlation of 0.3 within an image."""
    common = np.repeat(random.normal(size=images), rows)
    return math.sqrt(0.3) * common + math.sqrt(0.7) * random.normal(size=images * rows)


def ranking_once(seed: int, images: int, right: float, gap: float) -> bool:
    """Whether the interval of AUC holds the truth: values of right rows lie ``gap`` standard deviations higher."""
    random = np.random.default_rng(seed)
    is_right = (_effects(random, images, 3) < special.ndtri(right)).astype(float)
    values = _effects(random, images, 3) + gap * is_right
    found = _rank_jackknife("auc", values, is_right, np.repeat(np.arange(images), 3).tolist())
    return found is None or covers(bounded_interval(found, "auc"), float(special.ndtr(gap / math.sqrt(2))))


def correlation_once(seed: int, images: int, strength: float) -> bool:
    """Whether the interval of Spearman's correlation holds the truth of two normal values."""
    random = np.random.default_rng(seed)
    first, other = _effects(random, images, 3), _effects(random, images, 3)
    second = strength * first + math.sqrt(1 - strength**2) * other
    found = _rank_jackknife("spearman_r", first, second, np.repeat(np.arange(images), 3).tolist())
    truth = 6 / math.pi * math.asin(strength / 2)
    return found is None or covers(bounded_interval(found, "spearman_r"), truth)


def loss_once(seed: int, images: int, clean: float, shifted: float) -> dict[str, bool]:
    """Whether the interval of MMI holds the truth, and whether the paired test rejects."""
    random = np.random.default_rng(seed)
    shared = _effects(random, images, 3)
    tasks = []
    for rate in (clean, shifted):
        latent = math.sqrt(0.6) * shared + math.sqrt(0.4) * random.normal(size=3 * images)
        values = {row: (float(one), 1.0) for row, one in enumerate(latent < special.ndtri(rate))}
        metric = RowMetric("acc", values, binary=True)
        rows = dict.fromkeys(values, "")
        clusters = {row: row // 3 for row in values}
        tasks.append(ScoredTask("task", "model", rows, rows, rows, clusters, [metric]))
    found = measure(ShiftedTask(tasks[0], tasks[1], "shift"), "acc", seed)
    if found is None or found.mmi is None:
        return {}
    hits = {"MMI": covers(found.mmi_ci95, (clean - shifted) / clean)}
    return hits | ({"paired test of accuracy": found.p is not None and found.p < 0.05} if clean == shifted else {})


def simulate(repetitions: int, pool: object = None, images: tuple[int, ...] = (12, 30, 100)) -> list[list[object]]:
    """Rows of the table: what, scenario, images, rate, repetitions, whether that is within its goal."""
    table: list[list[object]] = []

    def add(task: Callable[[int], object], what: str, scenario: str, count: int) -> None:
        hits: dict[str, list[bool]] = {}
        for one in run(task, range(repetitions), pool, f"{what}, G = {count}: {scenario}"):
            for name, hit in (one if isinstance(one, dict) else {what: one}).items():
                hits.setdefault(name, []).append(bool(hit))
        for name, own in hits.items():
            low, high = GOALS["size" if "test" in name else goal_of(count)]
            rate = float(np.mean(own))
            noise = 2 * math.sqrt(rate * (1 - rate) / len(own))
            table.append([name, scenario, count, rate, len(own), low - noise <= rate <= high + noise])

    world = rough_world()
    truths = (world.truth(False), world.truth(True))
    for count in images:
        for paired in (True, False):
            add(
                partial(emi_once, images=count, paired=paired, truths=truths),
                "EMI",
                "paired" if paired else "unpaired",
                count,
            )
        for right, gap in ((0.5, 0.6), (0.8, 0.6), (0.9, 1.2)):
            scenario = f"{right:.0%} right, true AUC {special.ndtr(gap / math.sqrt(2)):.2f}"
            add(partial(ranking_once, images=count, right=right, gap=gap), "AUC of rows", scenario, count)
        for strength in (0.0, 0.5, 0.9):
            scenario = f"r = {strength}"
            add(partial(correlation_once, images=count, strength=strength), "Spearman of rows", scenario, count)
        for clean, shifted in ((0.5, 0.5), (0.9, 0.6), (0.9, 0.15), (0.15, 0.1)):
            scenario = f"accuracy {clean} to {shifted}"
            add(partial(loss_once, images=count, clean=clean, shifted=shifted), "MMI", scenario, count)
    return table


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400, help="per scenario (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count(), help="default: one per core")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with multiprocessing.get_context("spawn").Pool(args.processes, _start) as pool:
        table = simulate(args.repetitions, pool)
    headers = ["what", "scenario", "images", "rate", "repetitions", "within its goal"]
    shown = [[*row[:3], f"{row[3]:.3f}", row[4], "yes" if row[5] else "NO"] for row in table]
    print(tabulate(shown, headers=headers, disable_numparse=True, tablefmt="pipe"))
    inside = sum(bool(row[5]) for row in table)
    print(f"\n{inside} of {len(table)} within their goals, allowing two standard errors of the simulation.")


if __name__ == "__main__":
    main()
