"""Which estimators give EMID its right sign and size where the truth is known? ``--output FILE`` for the page.

    python benchmarks/known_truth.py --output known_truth.md

Two families of scenarios. Gaussians, as they are and through monotone maps of each coordinate, which change no
information (Czyz et al. 2023): responses and references follow inputs with known correlations. Drawn scenes of one
object: its attributes go through a channel with a known error rate, are worded, and are embedded by the demo's
encoders; information is that of the channel.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from demo.scenes import COLOURS, GROUNDS, PLACES, SHAPES, SIDE, SIZES, Scene, Thing, draw
from scipy import stats
from tabulate import tabulate
from tqdm import tqdm

from lmms_eval_emi import Embeddings, embed_splits, emid, load_encoders
from lmms_eval_emi.data.rows import Sample
from lmms_eval_emi.estimators import HSIC, KSG, DistanceCorrelation, Estimator, load_estimator
from lmms_eval_emi.estimators.references import Cosine
from lmms_eval_emi.estimators.training import TrainingOptions, train_estimator
from lmms_eval_emi.slices.demo.command import ASSETS

ROWS = 90
TRAINED = ("club", "club-free", "infonce")
NATS = (*TRAINED, "ksg")
UNTRAINED: tuple[Estimator, ...] = (KSG(), HSIC(), DistanceCorrelation(), Cosine())
DIMENSIONS = (2, 16, 64)
MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda rows: rows,
    "half-cube": lambda rows: np.sign(rows) * np.abs(rows) ** 1.5,
    "arcsinh": np.arcsinh,
}
# Nats between input and response, on the ID split and under the shift; the reference has 2 on both.
EFFECTS = {"none": (1.5, 1.5), "small loss": (1.5, 1.2), "loss": (1.5, 0.5), "gain": (0.5, 1.5)}
REFERENCE = 2.0


@dataclass(frozen=True)
class Outcome:
    """EMID of one estimator in one repetition of a scenario."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Result:
    """A scenario with its truth in nats, and outcomes by estimator."""

    family: str
    scenario: str
    truth: float
    outcomes: dict[str, list[Outcome]]


# Gaussians.


def related(random: np.random.Generator, x: np.ndarray, information: float) -> np.ndarray:
    """Rows that share some nats with x: -d/2 ln(1 - r^2)."""
    rho = math.sqrt(1 - math.exp(-2 * information / x.shape[1]))
    return rho * x + math.sqrt(1 - rho**2) * random.normal(size=x.shape)


def gaussian_split(
    random: np.random.Generator, rows: int, dimension: int, kind: str, information: float, label: str
) -> Embeddings:
    x = random.normal(size=(rows, dimension))
    y_hat, y = related(random, x, information), related(random, x, REFERENCE)
    matrices = [MAPS[kind](one) for one in (x, y_hat, y)]
    return Embeddings(
        v=None, t=matrices[0], y_hat=matrices[1], y=matrices[2], groups=[f"{label}{row}" for row in range(rows)]
    )


def gaussians(task: tuple[int, str], repetitions: int, training_rows: int) -> list[Result]:
    """All effects of one dimension and map; estimators are trained on other rows of all of them."""
    dimension, kind = task
    random = np.random.default_rng([dimension, len(kind)])
    levels = sorted({one for pair in EFFECTS.values() for one in pair})
    training = {
        str(one): gaussian_split(random, training_rows // len(levels), dimension, kind, one, f"{one} ")
        for one in levels
    }
    estimators = trained_on(training)
    found = []
    for effect, (first, second) in EFFECTS.items():
        outcomes: dict[str, list[Outcome]] = {name: [] for name in estimators}
        for _ in range(repetitions):
            pair = [
                gaussian_split(random, ROWS, dimension, kind, one, label)
                for one, label in ((first, "a"), (second, "b"))
            ]
            measure(pair[0], pair[1], estimators, outcomes)
        found.append(Result("Gaussians", f"{dimension} dimensions, {kind}, {effect}", first - second, outcomes))
    return found


def trained_on(training: dict[str, Embeddings]) -> dict[str, Estimator]:
    options = {"iterations": 1000, "batch_size": 256, "hidden": 128, "folds": 1, "every": 50}
    found: dict[str, Estimator] = {
        kind: train_estimator(training, TrainingOptions(kind=kind, **options), name=kind)
        for kind in TRAINED  # type: ignore[arg-type]
    }
    return found | {one.kind: one for one in UNTRAINED}


def measure(
    first: Embeddings, second: Embeddings, estimators: dict[str, Estimator], into: dict[str, list[Outcome]]
) -> None:
    for name, estimator in estimators.items():
        result = emid(first, second, estimator)
        into[name].append(Outcome(result.value, result.ci95))


# Drawn scenes of one object.

ATTRIBUTES = {"size": sorted(SIZES), "colour": sorted(COLOURS), "shape": list(SHAPES), "place": list(range(9))}


def symmetric(attribute: str, rate: float) -> Callable[[dict, random.Random], dict]:
    """Another value with some probability."""

    def channel(truth: dict, draw: random.Random) -> dict:
        if draw.random() >= rate:
            return truth
        return {**truth, attribute: draw.choice([one for one in ATTRIBUTES[attribute] if one != truth[attribute]])}

    return channel


def always(attribute: str, value: object, instead: object) -> Callable[[dict, random.Random], dict]:
    """One value is always called another."""
    return lambda truth, _: {**truth, attribute: instead if truth[attribute] == value else truth[attribute]}


def dropped(attribute: str) -> Callable[[dict, random.Random], dict]:
    """An attribute is not mentioned."""
    return lambda truth, _: {key: value for key, value in truth.items() if key != attribute}


def invented(truth: dict, draw: random.Random) -> dict:
    """Something that is not in the picture is mentioned, whatever is."""
    return {**truth, "beside": draw.choice(ATTRIBUTES["shape"])}


def symmetric_loss(attribute: str, rate: float) -> float:
    """Nats that are lost of a uniform attribute: its conditional entropy given what was said."""
    count = len(ATTRIBUTES[attribute])
    kept = 0.0 if rate in (0.0, 1.0) else -(1 - rate) * math.log(1 - rate)
    return kept - (rate * math.log(rate / (count - 1)) if rate else 0.0)


def merged_loss(attribute: str) -> float:
    """Nats that are lost where two of the values are called one."""
    return 2 / len(ATTRIBUTES[attribute]) * math.log(2)


CHANNELS: dict[str, tuple[Callable[[dict, random.Random], dict], float]] = {
    **{
        f"{name} wrong in {rate:.0%}": (symmetric(name, rate), symmetric_loss(name, rate))
        for name in ("shape", "colour")
        for rate in (0.1, 0.3, 0.6)
    },
    "star always called square": (always("shape", "star", "square"), merged_loss("shape")),
    "red always called blue": (always("colour", "red", "blue"), merged_loss("colour")),
    **{f"{name} not mentioned": (dropped(name), math.log(len(values))) for name, values in ATTRIBUTES.items()},
    "something invented": (invented, 0.0),
    "right": (lambda truth, _: truth, 0.0),
}


def worded(attributes: dict, draw: random.Random) -> str:
    """A sentence with the attributes that are there; which of two wordings tells nothing."""
    name = " ".join(str(attributes[key]) for key in ("size", "colour") if key in attributes)
    thing = f"{name} {attributes.get('shape', 'object')}".strip()
    where = f" in the {PLACES[attributes['place']]}" if "place" in attributes else ""
    beside = f" beside a {attributes['beside']}" if "beside" in attributes else ""
    return draw.choice((f"A {thing} sits{where}{beside}.", f"There is a {thing}{where}{beside}."))


def objects(draw_from: random.Random, count: int) -> list[tuple[dict, Scene]]:
    found = []
    for _ in range(count):
        truth = {name: draw_from.choice(values) for name, values in ATTRIBUTES.items()}
        column, row = truth["place"] % 3, truth["place"] // 3
        x, y = ((side + 0.5) * SIDE / 3 + draw_from.uniform(-7, 7) for side in (column, row))
        thing = Thing(truth["colour"], truth["shape"], truth["size"], truth["place"], x, y)
        found.append((truth, Scene((thing,), draw_from.choice(sorted(GROUNDS)))))
    return found


def scenes(repetitions: int, training_rows: int) -> list[Result]:
    """ID responses are right, shifted ones go through a channel; EMID is what the channel loses."""
    encoders = load_encoders(str(ASSETS / "vision_encoder"), str(ASSETS / "text_encoder"), "cpu")
    seed = random.Random(5)

    def split(channel: str, count: int, label: str) -> list[Sample]:
        rows = []
        for number, (truth, scene) in enumerate(objects(seed, count)):
            said = CHANNELS[channel][0](truth, seed)
            rows.append(
                Sample(
                    draw(scene),
                    "What is in the picture?",
                    worded(said, seed),
                    worded(truth, seed),
                    id=f"{label} {number}",
                )
            )
        return rows

    training = {name: split(name, max(40, training_rows // len(CHANNELS)), f"training {name}") for name in CHANNELS}
    embedded = embed_splits(training, encoders)
    estimators = trained_on(embedded)
    estimators["demo"] = load_estimator("demo")
    found = []
    for name, (_, loss) in CHANNELS.items():
        outcomes: dict[str, list[Outcome]] = {one: [] for one in estimators}
        for repetition in range(repetitions):
            pair = {"a": split("right", ROWS, f"a{repetition}"), "b": split(name, ROWS, f"b{repetition}")}
            rows = embed_splits(pair, encoders)
            measure(rows["a"], rows["b"], estimators, outcomes)
        found.append(Result("drawn scenes", name, loss, outcomes))
    return found


# The page.


def sign_table(results: Sequence[Result]) -> list[list[str]]:
    """Of every estimator: rank correlation with the truth, right signs, and how much of the truth it sees."""
    rows = []
    for name in dict.fromkeys(name for one in results for name in one.outcomes):
        own = [one for one in results if name in one.outcomes]
        effects = [one for one in own if one.truth]
        means = [float(np.mean([outcome.value for outcome in one.outcomes[name]])) for one in own]
        rank = float(stats.spearmanr([one.truth for one in own], means).statistic)
        every = [(outcome, one.truth) for one in effects for outcome in one.outcomes[name]]
        right = float(np.mean([outcome.value * truth > 0 for outcome, truth in every]))
        beyond = [(outcome, truth) for outcome, truth in every if _excludes(outcome, 0.0)]
        sure = float(np.mean([outcome.value * truth > 0 for outcome, truth in beyond])) if beyond else float("nan")
        nothing = [outcome for one in own if not one.truth for outcome in one.outcomes[name]]
        alarms = float(np.mean([_excludes(outcome, 0.0) for outcome in nothing])) if nothing else float("nan")
        bias = (
            float(np.mean([np.mean([o.value for o in one.outcomes[name]]) - one.truth for one in own]))
            if name in NATS
            else None
        )
        missed = (
            float(np.mean([_excludes(o, one.truth) for one in own for o in one.outcomes[name]]))
            if name in NATS
            else None
        )
        rows.append(
            [
                name,
                f"{rank:.2f}",
                f"{right:.0%}",
                f"{len(beyond) / len(every):.0%}",
                f"{sure:.0%}" if beyond else "-",
                f"{alarms:.0%}" if nothing else "-",
                "-" if bias is None else f"{bias:+.2f}",
                "-" if missed is None else f"{missed:.0%}",
            ]
        )
    return rows


def _excludes(outcome: Outcome, value: float) -> bool:
    return outcome.interval is not None and not outcome.interval[0] <= value <= outcome.interval[1]


def page(results: Sequence[Result]) -> str:
    parts = []
    headers = [
        "estimator",
        "rank correlation with truth",
        "right sign",
        "interval leaves 0 out",
        "right sign of those",
        "false alarms",
        "bias, nats",
        "truth beyond its interval",
    ]
    for family in dict.fromkeys(one.family for one in results):
        own = [one for one in results if one.family == family]
        parts.append(
            f"### {family}: {len(own)} scenarios\n\n"
            + tabulate(sign_table(own), headers=headers, tablefmt="pipe", disable_numparse=True)
        )
        names = list(own[0].outcomes)
        rows = [
            [
                one.scenario,
                f"{one.truth:.2f}",
                *(f"{np.mean([o.value for o in one.outcomes[name]]):.3f}" for name in names),
            ]
            for one in own
        ]
        parts.append(tabulate(rows, headers=["scenario", "true EMID", *names], tablefmt="pipe", disable_numparse=True))
    return "\n\n".join(parts)


def picture(results: Sequence[Result], path: Path) -> None:
    """EMID of every estimator against the truth, a panel for each family and estimator; bars from the lowest to the highest repetition."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    families = list(dict.fromkeys(one.family for one in results))
    names = {family: list(next(one for one in results if one.family == family).outcomes) for family in families}
    columns = max(map(len, names.values()))
    figure = Figure(figsize=(1.9 * columns, 2.2 * len(families)), layout="constrained")
    axes = figure.subplots(len(families), columns, squeeze=False)
    for row, family in enumerate(families):
        own = [one for one in results if one.family == family]
        for column in range(columns):
            ax = axes[row][column]
            if column >= len(names[family]):
                ax.set_axis_off()
                continue
            name = names[family][column]
            for one in own:
                values = [outcome.value for outcome in one.outcomes[name]]
                sure = np.mean([_excludes(outcome, 0.0) for outcome in one.outcomes[name]]) > 0.5
                ax.plot([one.truth] * 2, [min(values), max(values)], color="#0072B2", linewidth=0.8)
                ax.scatter(one.truth, np.mean(values), s=14, facecolor="#0072B2" if sure else "white", edgecolor="#0072B2", zorder=3)  # fmt: skip
            ax.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
            ax.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
            ax.set_title(f"{family}\n{name}" if column == 0 else f"\n{name}", fontsize=8, loc="left")
            ax.tick_params(labelsize=6)
        axes[row][0].set_ylabel("EMID", fontsize=8)
    figure.supxlabel("true EMID in nats", fontsize=8)
    options = {"svg.fonttype": "none", "svg.hashsalt": "lmms_eval_emi", "font.family": ["DejaVu Sans", "sans-serif"]}
    with mpl.rc_context(options):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def _work(task: tuple, repetitions: int, training_rows: int) -> list[Result]:
    if task == ("scenes",):
        return scenes(repetitions, training_rows)
    return gaussians(task, repetitions, training_rows)  # type: ignore[arg-type]


def _start() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # rows of a simulation are not normalised
    logging.disable(logging.WARNING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the tables as Markdown")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="where to draw EMID against the truth (.svg or .png)"
    )
    parser.add_argument("--repetitions", type=int, default=4, help="of every scenario (default: %(default)s)")
    parser.add_argument("--training-rows", type=int, default=1500, help="of every cell (default: %(default)s)")
    arguments = parser.parse_args()
    tasks: list[tuple] = [("scenes",), *((dimension, kind) for dimension in DIMENSIONS for kind in MAPS)]
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(multiprocessing.cpu_count(), _start) as pool:
        work = partial(_work, repetitions=arguments.repetitions, training_rows=arguments.training_rows)
        found = list(tqdm(pool.imap(work, tasks), total=len(tasks), desc="Known truth"))
    results = [one for own in found for one in own]
    text = page(results)
    print(text)
    print(f"\n{len(results)} scenarios, {arguments.repetitions} repetitions each, {time.monotonic() - began:.0f} s")
    if arguments.picture:
        picture(results, arguments.picture)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
