"""Drawn scenes and what can be asked about them: the demo's benchmark and, from other seeds, its training data.

A scene is three or four objects, each of a colour and a shape of its own, in different ninths of a picture.
Three kinds of questions are asked of each, as in llava-bench: a short one about an object (conversation), a
description, and one that needs relations between objects (reasoning).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 224  # pixels, what the operators' published levels are meant for
SHARPNESS = 2  # drawn so many times as large and averaged down
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 140, 60),
    "blue": (38, 84, 200),
    "yellow": (240, 196, 25),
    "purple": (126, 60, 170),
    "orange": (240, 120, 20),
    "black": (30, 30, 34),
    "pink": (240, 130, 180),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring")
SIZES = {"small": 17, "large": 29}  # radius in pixels
PLACES = (
    "top left", "top middle", "top right",
    "middle left", "centre", "middle right",
    "bottom left", "bottom middle", "bottom right",
)  # fmt: skip
GROUNDS = {"pale grey": (232, 233, 236), "pale blue": (220, 232, 245), "pale green": (224, 240, 224), "cream": (247, 240, 222)}  # fmt: skip
KINDS = ("conversation", "description", "reasoning")
SCENES = 30  # of each set below
# Everything was chosen on the development scenes. The test scenes, which are the demo's, and those of the control were
# drawn when all of that was frozen.
DEVELOPMENT_SEED, TEST_SEED, CONTROL_SEED, TRAINING_SEED = 1, 1001, 1002, 2


@dataclass(frozen=True)
class Thing:
    """An object of a scene: what it is, which ninth it is in, and where its middle is in pixels."""

    colour: str
    shape: str
    size: str
    place: int
    x: float
    y: float

    @property
    def name(self) -> str:
        """What it is called, as in "red star"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things in reading order on a plain ground."""

    things: tuple[Thing, ...]
    ground: str

    @property
    def key(self) -> tuple:
        """What makes it the same scene as another, whatever the pixels: its things, their sizes and places."""
        return tuple((thing.name, thing.size, thing.place) for thing in self.things)


@dataclass(frozen=True)
class Question:
    """A question, its reference answer, and the names of the objects that an answer must name."""

    kind: str
    question: str
    reference: str
    asked: tuple[str, ...]


def scene(rng: random.Random) -> Scene:
    """A random scene."""
    count = rng.choice((3, 4))
    places = sorted(rng.sample(range(9), count))
    colours, shapes = rng.sample(sorted(COLOURS), count), rng.sample(SHAPES, count)
    things = []
    for place, colour, shape in zip(places, colours, shapes, strict=True):
        column, row = place % 3, place // 3
        x, y = ((side + 0.5) * SIDE / 3 + rng.uniform(-7, 7) for side in (column, row))
        things.append(Thing(colour, shape, rng.choice(sorted(SIZES)), place, x, y))
    return Scene(tuple(things), rng.choice(sorted(GROUNDS)))


def scenes_of(seed: int) -> list[Scene]:
    """The scenes of one of the sets that are not trained on, by its seed."""
    rng = random.Random(seed)
    return [scene(rng) for _ in range(SCENES)]


def training_scenes(count: int, seed: int = TRAINING_SEED) -> Iterator[Scene]:
    """``count`` scenes, none of which is one of development, test or control."""
    held_out = {one.key for held in (DEVELOPMENT_SEED, TEST_SEED, CONTROL_SEED) for one in scenes_of(held)}
    rng = random.Random(seed)
    made = 0
    while made < count:
        one = scene(rng)
        if one.key not in held_out:
            made += 1
            yield one


def draw(one: Scene, side: int = SIDE) -> Image.Image:
    """The scene as an RGB picture of ``side`` pixels."""
    large = Image.new("RGB", (side * SHARPNESS, side * SHARPNESS), GROUNDS[one.ground])
    pen = ImageDraw.Draw(large)
    scale = side * SHARPNESS / SIDE
    for thing in one.things:
        x, y, r = thing.x * scale, thing.y * scale, SIZES[thing.size] * scale
        colour = COLOURS[thing.colour]
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif thing.shape == "ring":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
            pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=GROUNDS[one.ground])
        else:
            pen.polygon([(x + u * r, y + v * r) for u, v in OUTLINES[thing.shape]], fill=colour)
    return large.resize((side, side), Image.Resampling.BOX)


def _star() -> list[tuple[float, float]]:
    angles = [math.pi * (point / 5 - 0.5) for point in range(10)]
    return [(math.cos(a) * r, math.sin(a) * r) for a, r in zip(angles, (1.1, 0.45) * 5, strict=True)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * step / 48 for step in range(48)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in turns
    ]


OUTLINES = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0, -1.05), (1.05, 0.85), (-1.05, 0.85)],
    "star": _star(),
    "heart": _heart(),
    "cross": [
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ],
}  # fmt: skip


def ask(one: Scene, kind: str, rng: random.Random) -> Question:
    """A random question of a kind about a scene, in random words, and its reference answer."""
    return {"conversation": _conversation, "description": _description, "reasoning": _reasoning}[kind](one, rng)


def _conversation(one: Scene, rng: random.Random) -> Question:
    thing = rng.choice(one.things)
    where, full = _where(thing), f"a {thing.size} {thing.name}"
    form = rng.randrange(3)
    if form == 0:
        question = rng.choice(
            (f"What color is the {thing.shape}?", f"Which color does the {thing.shape} in the picture have?")
        )
        reference = rng.choice(
            (f"The {thing.shape} is {thing.colour}: {full}.", f"It is {full}.", f"In the picture there is {full}.")
        )
    elif form == 1:
        question = rng.choice(
            (f"What shape is the {thing.colour} object?", f"Which shape does the {thing.colour} object have?")
        )
        reference = rng.choice((f"The {thing.colour} object is {full}.", f"It is {full}."))
    else:
        question = rng.choice((f"What is {where} of the picture?", f"Which object do you see {where} of the image?"))
        reference = rng.choice(
            (f"There is {full} {where}.", f"It is {full}.", f"You can see {full} {where} of the picture.")
        )
    return Question("conversation", question, reference, (thing.name,))


def _description(one: Scene, rng: random.Random) -> Question:
    question = rng.choice(
        (
            "Describe the picture in detail.",
            "Describe all objects in this image.",
            "What can you see in the picture? Describe it in detail.",
        )
    )
    number = {3: "three", 4: "four"}[len(one.things)]
    opening = rng.choice(
        (
            f"The picture shows {number} objects on a {one.ground} ground.",
            f"There are {number} objects in the image, on a {one.ground} ground.",
        )
    )
    verb = rng.choice(("is", "sits"))
    lines = [f"A {thing.size} {thing.name} {verb} {_where(thing)}." for thing in one.things]
    return Question("description", question, " ".join([opening, *lines]), tuple(thing.name for thing in one.things))


def _reasoning(one: Scene, rng: random.Random) -> Question:
    extremes = {
        "highest": (lambda thing: thing.place // 3, min),
        "lowest": (lambda thing: thing.place // 3, max),
        "furthest to the left": (lambda thing: thing.place % 3, min),
        "furthest to the right": (lambda thing: thing.place % 3, max),
    }
    usable = []
    for word, (measure, extreme) in extremes.items():
        values = [measure(thing) for thing in one.things]
        if values.count(extreme(values)) == 1:
            usable.append((word, one.things[values.index(extreme(values))]))
    form = rng.randrange(2) if usable else 1
    if form == 0:
        word, thing = rng.choice(usable)
        question = rng.choice((f"Which object is {word}?", f"Compare the places of the objects: which one is {word}?"))
        reference = rng.choice(
            (
                f"The {thing.name} is {word}, because it is {_where(thing)}.",
                f"It is the {thing.name}, {_where(thing)} of the picture.",
            )
        )
        return Question("reasoning", question, reference, (thing.name,))
    gone = rng.choice(one.things)
    rest = [thing for thing in one.things if thing is not gone]
    question = rng.choice(
        (
            f"If someone took the {gone.name} away, which objects would remain?",
            f"Which objects would be left without the {gone.name}?",
        )
    )
    names = ", ".join(f"the {thing.name}" for thing in rest[:-1]) + f" and the {rest[-1].name}"
    reference = rng.choice((f"Without it, {names} would remain.", f"There would still be {names}."))
    return Question("reasoning", question, reference, tuple(thing.name for thing in rest))


def _where(thing: Thing) -> str:
    return f"in the {PLACES[thing.place]}"
