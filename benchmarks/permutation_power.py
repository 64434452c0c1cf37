"""The permutation test of a divergence by its second order, beside the test by the divergence itself.

    python benchmarks/permutation_power.py [--repetitions 400]

Both are exact tests, of the same draws' designs, on the same data. The table has how often each rejects at 5 %, at
no shift and at growing ones, the times of both in this process and their ratio, and how well each estimates the
divergence's floor: its error beside the mean over 1,000 further draws, in units of the divergence's spread over draws.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from tabulate import tabulate
from threadpoolctl import threadpool_limits

from lmms_eval_emi.core.exchange_test import PairedKernels

D = 48
DRAWS = 499
ENOUGH = 20  # draws that reach the observed value, after which the slow test stops (Besag & Clifford 1991)


def make(seed: int, images: int, shift: float, paired: bool) -> PairedKernels:
    random = np.random.default_rng(seed)
    scale = 1 / np.sqrt(1 + np.arange(D))  # a spectrum that falls, as that of embeddings
    counts = images if paired else images // 2
    image = random.normal(size=(2, images, 1, D))
    if paired:
        image[1] = image[0]
    rows = (image + random.normal(size=(2, images, 3, D))) * scale + np.eye(D)[0] * 2
    rows[1] += shift * scale[4] * np.eye(D)[4]
    rows /= np.linalg.norm(rows, axis=3, keepdims=True)
    x, y = torch.from_numpy(rows[0].reshape(-1, D)), torch.from_numpy(rows[1, :counts].reshape(-1, D))
    groups = np.repeat(np.arange(images), 3).tolist()
    others = groups if paired else [("other", group) for group in groups[: 3 * counts]]
    return PairedKernels(x, y, groups, others)


def draws_of(
    both: PairedKernels, count: int, random: np.random.Generator, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    clusters = len(both.clusters)
    if paired:
        first = random.random((count, clusters)) < 0.5
        shares = np.stack([first, ~first]).astype(float)
    else:
        of_x = int(both.counts[0].any(axis=1).sum())
        first = np.zeros((count, clusters))
        np.put_along_axis(first, np.argsort(random.random((count, clusters)), axis=1)[:, :of_x], 1, axis=1)
        shares = np.stack([first, first])
    x = np.einsum("sbc,scu->bu", shares, both.counts)
    return x, both.counts.sum(axis=(0, 1)) - x


def by_divergence(both: PairedKernels, draws: int, seed: int, paired: bool) -> tuple[float, float]:
    """p-value and floor by the divergence of every draw, sequentially."""
    convention = both.convention if paired else "equal_weight"
    x, y = both.counts.sum(axis=1)
    observed = both.divergences(x[None], y[None], None, convention)[0]
    mixed = float(both.entropies((x + y)[None])[0]) if paired else None
    random = np.random.default_rng(seed)
    drawn: list[float] = []
    reached = 0
    while len(drawn) < draws and reached < ENOUGH:
        values = both.divergences(*draws_of(both, min(25, draws - len(drawn)), random, paired), mixed, convention)
        drawn += values.tolist()
        reached += int((values >= observed - 1e-12).sum())
    p_value = reached / len(drawn) if reached >= ENOUGH else (reached + 1) / (len(drawn) + 1)
    return p_value, float(np.mean(drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=400, help="data sets of each line (default: %(default)s)")
    arguments = parser.parse_args()
    table = []
    with threadpool_limits(1):
        for paired in (True, False):
            for images in (12, 30):
                for shift in (0.0, 0.5, 1.0, 2.0):
                    found: dict[str, list[float]] = {"ours": [], "theirs": [], "floor": [], "their floor": []}
                    times = [0.0, 0.0]
                    for seed in range(arguments.repetitions):
                        start = time.perf_counter()
                        ours = make(seed, images, shift, paired).test(DRAWS, seed, paired)
                        middle = time.perf_counter()
                        p_value, floor = by_divergence(make(seed, images, shift, paired), DRAWS, seed, paired)
                        times[0] += middle - start
                        times[1] += time.perf_counter() - middle
                        found["ours"].append(ours.p_value < 0.05)
                        found["theirs"].append(p_value < 0.05)
                        if seed < 12:
                            both = make(seed, images, shift, paired)
                            convention = both.convention if paired else "equal_weight"
                            x, y = draws_of(both, 1000, np.random.default_rng(10**6 + seed), paired)
                            values = both.divergences(x, y, None, convention)
                            found["floor"].append((ours.floor - values.mean()) / values.std())
                            found["their floor"].append((floor - values.mean()) / values.std())
                    table.append(
                        [
                            "paired" if paired else "unpaired",
                            images,
                            shift,
                            f"{np.mean(found['ours']):.3f}",
                            f"{np.mean(found['theirs']):.3f}",
                            f"{np.sqrt(np.mean(np.square(found['floor']))):.3f}",
                            f"{np.sqrt(np.mean(np.square(found['their floor']))):.3f}",
                            f"{times[1] / times[0]:.1f}",
                        ]
                    )
    headers = ["design", "images", "shift", "rejects: second order", "divergence", "floor error: second order", "divergence", "times faster"]  # fmt: skip
    print(tabulate(table, headers=headers, disable_numparse=True, tablefmt="pipe"))
    print(f"\n{arguments.repetitions} data sets a line, {DRAWS} draws a test, one thread.")


if __name__ == "__main__":
    main()
