"""Are the intervals and tests right? Coverage, size and family-wise error by simulation with known truth.

    python benchmarks/intervals.py                  # 500 repetitions of every scenario, about 20 minutes on 2 cores
    python benchmarks/intervals.py --repetitions 100

Images are drawn, and several questions about each. With a linear q of fixed variance, EMI is
tr Cov(W x, y_hat - y), so its true value follows from the covariances of the simulation. A shift adds
noise to the inputs and changes how responses depend on them.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from lmms_eval_emi import EMID, Embeddings, emid, emid_bound
from lmms_eval_emi.core.correlation import MEASURES, correlate
from lmms_eval_emi.core.exchange_test import PairedKernels
from lmms_eval_emi.core.jackknife import adjust
from lmms_eval_emi.estimators import CLUB

D = 6
GOALS = {
    "coverage, G >= 30": (0.93, 0.97),
    "coverage, G = 12": (0.92, 1.0),
    "size": (0.03, 0.07),
    "family-wise": (0.0, 0.06),
}


class LinearCLUB(CLUB):
    """CLUB whose mean is linear and whose variance is 1, so that its value is a covariance."""

    def build(self) -> None:
        self.p_mu = nn.Linear(self.input_dimension, self.output_dimension, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu = self.p_mu(x)
        return mu, torch.zeros_like(mu)


@dataclass(frozen=True)
class World:
    """What images, questions and responses are like.

    Attributes:
        w: of the estimator; b, c, b_shifted: how responses, references and shifted responses follow inputs.
        keep: how much of an input a shift keeps.
        tails: degrees of freedom of everything drawn; 0 for normal.
    """

    w: np.ndarray
    b: np.ndarray
    c: np.ndarray
    b_shifted: np.ndarray
    keep: float
    tails: int

    @classmethod
    def make(cls, effect: bool, tails: int) -> World:
        random = np.random.default_rng(7)
        w, b, c = (random.normal(size=(D, D)) / D**0.5 for _ in range(3))
        return cls(w, b, c, 0.6 * b if effect else b, 0.8 if effect else 1.0, tails)

    def emi(self, inputs: float, responses: np.ndarray) -> float:
        """True EMI of inputs that keep a share of the latent ones; the latent covariance is 1 + 1/2."""
        return float(1.5 * inputs * np.trace(self.w @ (responses - self.c).T))

    @property
    def emid(self) -> float:
        return self.emi(1, self.b) - self.emi(self.keep, self.b_shifted)

    @property
    def parts(self) -> tuple[float, float]:
        pp, qp, pq, qq = (self.emi(x, y) for y in (self.b, self.b_shifted) for x in (1, self.keep))
        return (pp - qp + pq - qq) / 2, (pp - pq + qp - qq) / 2

    def estimator(self) -> LinearCLUB:
        """The estimator whose mean is W x."""
        estimator = LinearCLUB(D, D)
        with torch.no_grad():
            estimator.p_mu.weight.copy_(torch.from_numpy(self.w))
        return estimator

    def draw(self, random: np.random.Generator, *shape: int) -> np.ndarray:
        """Values of variance 1."""
        if not self.tails:
            return random.normal(size=shape)
        return random.standard_t(self.tails, size=shape) / (self.tails / (self.tails - 2)) ** 0.5

    def latent(self, random: np.random.Generator, sizes: np.ndarray) -> np.ndarray:
        """Inputs of all rows: what an image has in common, and what a question adds."""
        image = np.repeat(self.draw(random, len(sizes), D), sizes, axis=0)
        return image + self.draw(random, int(sizes.sum()), D) / 2**0.5

    def split(
        self,
        random: np.random.Generator,
        latent: np.ndarray,
        sizes: np.ndarray,
        shifted: bool,
        y: np.ndarray | None,
        ids: bool,
    ) -> tuple[Embeddings, np.ndarray]:
        x, y_hat, y = self.rows(random, latent, sizes, shifted, y)
        groups = np.repeat(np.arange(len(sizes)), sizes).tolist()
        return Embeddings(v=None, t=x, y_hat=y_hat, y=y, ids=list(range(len(x))) if ids else None, groups=groups), y

    def rows(
        self, random: np.random.Generator, latent: np.ndarray, sizes: np.ndarray, shifted: bool, y: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, responses and references (N, D) of all rows; references are those given, if any."""
        n = len(latent)
        keep, b = (self.keep, self.b_shifted) if shifted else (1.0, self.b)
        x = keep * latent + (0.5 * self.draw(random, n, D) if shifted else 0)
        y = latent @ self.c.T + self.draw(random, n, D) if y is None else y
        return x, latent @ b.T + self.draw(random, n, D), y

    def shift(
        self, random: np.random.Generator, images: int, unequal: bool, paired: bool, shifts: int = 1
    ) -> list[EMID]:
        """EMID of some shifts of one ID split."""
        estimator = self.estimator()
        sizes = random.integers(1, 6, size=images) if unequal else np.full(images, 3)
        latent = self.latent(random, sizes)
        id_split, y = self.split(random, latent, sizes, False, None, paired)
        found = []
        for _ in range(shifts):
            if paired:
                ood, _ = self.split(random, latent, sizes, True, y, True)
            else:
                other = random.integers(1, 6, size=images) if unequal else np.full(images, 3)
                ood, _ = self.split(random, self.latent(random, other), other, True, None, False)
            found.append(emid(id_split, ood, estimator))
        return found


def covers(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and interval[0] <= truth <= interval[1]


def coverage_once(seed: int, images: int, unequal: bool, paired: bool, tails: int, effect: bool) -> dict[str, bool]:
    world = World.make(effect, tails)
    (found,) = world.shift(np.random.default_rng(seed), images, unequal, paired)
    hits = {
        "EMI": covers(found.id.ci95, world.emi(1, world.b)),
        "EMID": covers(found.ci95, world.emid),
    }
    if found.inputs and found.responses:
        inputs, responses = world.parts
        hits |= {
            "inputs moved": covers(found.inputs.ci95, inputs),
            "responses changed": covers(found.responses.ci95, responses),
        }
    if not effect:
        hits["test of EMID"] = found.p_value is not None and found.p_value < 0.05
    return hits


def index_once(seed: int, images: int, paired: bool) -> tuple[float, tuple[float, float] | None]:
    """The index of a shift and its interval; its truth is its mean over all draws."""
    world = World.make(True, 0)
    random = np.random.default_rng(seed)
    sizes = np.full(images, 3)
    latent = world.latent(random, sizes)
    id_split, y = world.split(random, latent, sizes, False, None, paired)
    other = latent if paired else world.latent(random, sizes)
    ood, _ = world.split(random, other, sizes, True, y if paired else None, paired)
    with_images = [
        Embeddings(v=one.t, t=one.t[:, :], y_hat=one.y_hat, y=one.y, ids=one.ids, groups=one.groups)
        for one in (id_split, ood)
    ]
    bound = emid_bound(*with_images)
    return bound.value, bound.ci95


def permutation_once(seed: int, images: int, paired: bool) -> bool:
    """Whether a test of no shift rejects where there is none."""
    random = np.random.default_rng(seed)
    image = random.normal(size=(2, images, 1, D)) * (random.normal(size=(2, images, 1, 1)) if not paired else 1)
    if paired:
        image[1] = image[0]
    rows = torch.from_numpy((image + random.normal(size=(2, images, 3, D))).reshape(2, 3 * images, D))
    groups = np.repeat(np.arange(images), 3).tolist()
    others = groups if paired else [("other", group) for group in groups]
    return PairedKernels(rows[0], rows[1], groups, others).test(199, seed, paired).p_value < 0.05


def family_once(seed: int, images: int, shifts: int) -> dict[str, bool]:
    """Whether anything in a family without effects is rejected."""
    world = World.make(False, 0)
    family = [one.jackknife for one in world.shift(np.random.default_rng(seed), images, False, True, shifts)]
    return {
        method: min(p for p in adjust(family, method, draws=999, seed=seed) if p is not None) < 0.05
        for method in ("holm", "maxt")
    }


def correlations_once(seed: int, images: int, shifts: int = 12) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """Correlations of EMID and index over shifts of growing strength, with their intervals."""
    base = World.make(True, 0)
    random, fixed = np.random.default_rng(seed), np.random.default_rng(3)
    estimator = base.estimator()
    sizes = np.full(images, 3)
    latent = base.latent(random, sizes)
    id_split, y = base.split(random, latent, sizes, False, None, True)
    emids, indices = [], []
    for number in range(shifts):
        strength = (number + 1) / shifts
        kept = 1 - 0.9 * strength + 0.1 * fixed.normal()
        world = World(base.w, base.b, base.c, kept * base.b, 1 - 0.7 * strength, 0)
        ood, _ = world.split(random, latent, sizes, True, y, True)
        emids.append(emid(id_split, ood, estimator).jackknife)
        indices.append(emid_bound(id_split, ood).jackknife)
    found = {name: correlate(name, emids, indices, 499, seed) for name in MEASURES}
    return {name: (one.value, one.ci95) for name, one in found.items() if one}


def goal_of(images: int) -> str:
    return "coverage, G = 12" if images == 12 else "coverage, G >= 30"


def run(task: Callable[[int], object], seeds: Iterable[int], pool: object, label: str) -> list:
    # Scenarios share no draws.
    first = int(hashlib.sha256(label.encode()).hexdigest()[:8], 16)
    seeds = [first + seed for seed in seeds]
    found = pool.imap_unordered(task, seeds, chunksize=8) if pool else map(task, seeds)  # type: ignore[attr-defined]
    return list(tqdm(found, total=len(seeds), desc=label, leave=False))


def simulate(repetitions: int, pool: object = None, images: tuple[int, ...] = (12, 30, 100)) -> list[list[object]]:
    """Rows of the table: what, scenario, images, rate, repetitions, whether that is within its goal."""
    table: list[list[object]] = []

    def add(what: str, scenario: str, count: int, hits: list[bool], goal: str) -> None:
        low, high = GOALS[goal]
        rate = float(np.mean(hits))
        noise = 2 * (rate * (1 - rate) / len(hits)) ** 0.5
        table.append([what, scenario, count, rate, len(hits), low - noise <= rate <= high + noise])

    for count in images:
        goal = goal_of(count)
        for paired in (True, False):
            for unequal in (False, True):
                for tails in (0, 5):
                    for effect in (True, False):
                        scenario = f"{'paired' if paired else 'unpaired'}, {'1 to 5 rows' if unequal else '3 rows'} per image, {'heavy tails' if tails else 'normal'}, {'shifted' if effect else 'no effect'}"
                        task = partial(
                            coverage_once, images=count, unequal=unequal, paired=paired, tails=tails, effect=effect
                        )
                        hits = defaultdict(list)
                        for found in run(task, range(repetitions), pool, f"G = {count}: {scenario}"):
                            for what, hit in found.items():
                                hits[what].append(hit)
                        for what, own in hits.items():
                            add(what, scenario, count, own, "size" if what.startswith("test") else goal)
    for count in [one for one in images if one <= 30]:
        for paired in (True, False):
            design = "paired" if paired else "unpaired"
            found = run(
                partial(index_once, images=count, paired=paired), range(repetitions), pool, f"index, G = {count}"
            )
            truth = float(np.mean([value for value, _ in found]))
            add("index", design, count, [covers(interval, truth) for _, interval in found], goal_of(count))
            hits = run(
                partial(permutation_once, images=count, paired=paired),
                range(repetitions),
                pool,
                f"permutation, G = {count}",
            )
            add("permutation test", "exchange within pairs" if paired else "relabelling of images", count, hits, "size")
        found = run(partial(correlations_once, images=count), range(repetitions), pool, f"correlations, G = {count}")
        for name in MEASURES:
            values, intervals = zip(*(one[name] for one in found), strict=True)
            truth = float(np.tanh(np.arctanh(values).mean()))
            add(name, "12 paired shifts", count, [covers(one, truth) for one in intervals], goal_of(count))
    families = run(partial(family_once, images=30, shifts=20), range(max(1, repetitions // 2)), pool, "families")
    for method in ("holm", "maxt"):
        add(f"family of 20 shifts, {method}", "paired, no effect", 30, [one[method] for one in families], "family-wise")
    return table


def _start() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # rows of a simulation are not normalised


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of every interval, size of every test, family-wise error.")
    parser.add_argument("--repetitions", type=int, default=500, help="per scenario (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count(), help="default: one per core")
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(arguments.processes, _start) as pool:
        table = simulate(arguments.repetitions, pool)
    headers = ["what", "scenario", "images", "rate", "repetitions", "within its goal"]
    shown = [[*row[:3], f"{row[3]:.3f}", row[4], "yes" if row[5] else "NO"] for row in table]
    print(tabulate(shown, headers=headers, disable_numparse=True, tablefmt="pipe"))
    print("\nGoals: " + "; ".join(f"{name} {low:.0%} to {high:.0%}" for name, (low, high) in GOALS.items()))
    print(
        f"{sum(bool(row[5]) for row in table)} of {len(table)} within their goals, allowing two standard errors of the simulation."
    )


if __name__ == "__main__":
    main()
