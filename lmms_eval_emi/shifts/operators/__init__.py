"""The class of shift operators, their options, and their registry.

A visual operator is a function in a file of ``visual/``, a textual one in a file of ``textual/``. The decorator names its
group and what each level means; every file of the two folders is imported, so a new file needs no other change.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.settings import Settings
from lmms_eval_emi.util.imports import extra, modules_in
from lmms_eval_emi.util.printing import suggest

Family = Literal["visual", "text"]
PACKAGES: dict[Family, str] = {
    "visual": "lmms_eval_emi.shifts.operators.visual",
    "text": "lmms_eval_emi.shifts.operators.textual",
}


class RefusedError(ValueError):
    """One image or text cannot be shifted sensibly; the message says why. Its row stays unchanged."""


@dataclass(frozen=True)
class ShiftOptions:
    """Options and resources of shift operators."""

    keep: tuple[str, ...] = ()  # words and phrases that textual operators leave unchanged, whatever their case
    synonyms: Path | None = None  # a YAML or JSON file of synonyms by word, instead of WordNet
    wordnet: Path | None = None  # WordNet's ``dict`` folder; default: NLTK's, or that of the system's package
    frost: Path | None = None  # folder of ImageNet-C's frost images; default: those of the package imagecorruptions
    endpoint: str | None = None  # base URL of an OpenAI-compatible endpoint, for the operators on sentences
    model: str | None = None  # model to ask of the endpoint
    cache: Path | None = None  # folder that keeps the endpoint's replies; ``None`` keeps none

    @classmethod
    def from_settings(cls, settings: Settings, **given: Any) -> ShiftOptions:
        """Return the options of some settings; keyword arguments other than ``None`` take precedence."""
        options = {
            "synonyms": settings.synonyms,
            "wordnet": settings.wordnet,
            "frost": settings.frost,
            "endpoint": settings.endpoint,
            "model": settings.endpoint_model,
            "cache": settings.cache,
        }
        return cls(**(options | {name: value for name, value in given.items() if value is not None}))


@dataclass(frozen=True, eq=False)  # one object for each operator, whatever its levels are
class Operator:
    """One way to shift an image or a text.

    Attributes:
        name: as in ``--visual name:1,3``.
        family: modality of the operator.
        group: noise, blur, weather, digital, geometry; character, word, sentence.
        levels: the level's parameter by level, in order of severity. Empty: the operator has one form
            only, or takes a word of the user's as its level.
        level_name: what its level is where that is a word of the user's, such as a language.
        function: the shift itself.
        prompt_suffix: what a model is to be told after a question shifted so.
        resources: a fingerprint of the files it reads, given the :class:`ShiftOptions`.
    """

    name: str
    family: Family
    group: str
    levels: tuple[Any, ...]
    function: Callable[..., Any]
    level_name: str | None = None
    prompt_suffix: str = ""
    resources: Callable[[ShiftOptions], str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return operator, (self.family, self.name)

    @property
    def summary(self) -> str:
        """First line of the operator's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def check_level(self, level: int | str | None) -> None:
        """Raise ``ShiftError`` unless the operator has that level."""
        if self.level_name:
            if not isinstance(level, str) or not level.strip():
                raise ShiftError(
                    f"{self.name}: expected a {self.level_name} as its level, got {level!r}. Write {self.name}:German, for one."
                )
        elif not self.levels:
            if level is not None:
                raise ShiftError(f"{self.name}: has one form only, got the level {level!r}. Write {self.name} alone.")
        elif not isinstance(level, int) or not 1 <= level <= len(self.levels):
            raise ShiftError(
                f"{self.name}: expected a level of 1 to {len(self.levels)}, got {level!r}. Write {self.name}:1,3, for one."
            )

    @property
    def takes_options(self) -> bool:
        """Whether its function is given the :class:`ShiftOptions`: a textual one, or one that reads files."""
        return self.family == "text" or self.resources is not None

    def parameter(self, level: int | str | None) -> Any:
        """Return the parameter of the operator's function at a level."""
        self.check_level(level)
        return self.levels[level - 1] if isinstance(level, int) else level


def visual_operator(
    group: str, levels: Sequence[Any], resources: Callable[[ShiftOptions], str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``function(pixels, parameter, random)`` under its own name.

    It gets (H, W, 3) 8-bit RGB pixels, the level's parameter and a random state; it returns pixels of the same shape
    on a scale of 0 to 255, which the caller rounds and clips. One that reads ``resources`` also gets the options.
    """
    return lambda function: _register(
        Operator(function.__name__, "visual", group, tuple(levels), function, resources=resources)
    )


def textual_operator(
    group: str,
    levels: Sequence[Any] = (),
    level_name: str | None = None,
    prompt_suffix: str = "",
    resources: Callable[[ShiftOptions], str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``function(text, parameter, random, options)`` under its own name; it returns the shifted text."""
    return lambda function: _register(
        Operator(function.__name__, "text", group, tuple(levels), function, level_name, prompt_suffix, resources)
    )


_OPERATORS: dict[Family, dict[str, Operator]] = {"visual": {}, "text": {}}


def _register(operator: Operator) -> Callable[..., Any]:
    _OPERATORS[operator.family][operator.name] = operator
    return operator.function


@lru_cache(maxsize=2)
def operators(family: Family) -> dict[str, Operator]:
    """Return all operators of a family by name, sorted by group and name."""
    package = importlib.import_module(PACKAGES[family])
    with extra("shifts"):
        _ = list(modules_in(package))
    groups = ("noise", "blur", "weather", "digital", "geometry", "character", "word", "sentence")

    def order(operator: Operator) -> tuple[Any, ...]:
        return (groups.index(operator.group) if operator.group in groups else len(groups), operator.name)

    return {operator.name: operator for operator in sorted(_OPERATORS[family].values(), key=order)}


def operator(family: Family, name: str) -> Operator:
    """Return an operator by name.

    Raises:
        ShiftError: the family has no operator of that name.
    """
    known = operators(family)
    if name not in known:
        other: Family = "text" if family == "visual" else "visual"
        hint = suggest(name, known)
        if name in operators(other):
            hint = f" It is a {'textual' if other == 'text' else 'visual'} one: --{'textual' if other == 'text' else 'visual'} {name}"
        kind = "visual" if family == "visual" else "textual"
        raise ShiftError(f"{name!r} is not a {kind} operator.{hint} The {kind} operators are {', '.join(known)}.")
    return known[name]


def random_state(seed: int, operator_name: str, row_id: object) -> np.random.RandomState:
    """Return the random generator of one operator and row, independent of other rows, levels, their order and workers.

    Levels share it, so that a row's second level is its first, stronger. ``RandomState`` is the one
    generator of NumPy whose numbers are promised never to change.
    """
    digest = hashlib.blake2b(f"{seed}\0{operator_name}\0{row_id}".encode("utf-8", "surrogatepass"), digest_size=32)
    return np.random.RandomState(np.frombuffer(digest.digest(), dtype="<u4").astype(np.uint32))


def fingerprint_files(files: Iterable[Path]) -> str:
    """Return a hash of the content of some files, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def by_bands(pixels: np.ndarray, function: Callable[[np.ndarray], np.ndarray], rows: int = 256) -> np.ndarray:
    """Apply a pixelwise function to an (H, W, C) image in bands of rows, so that its intermediates stay small."""
    out = np.empty(pixels.shape, dtype=np.float32)
    for top in range(0, len(pixels), rows):
        out[top : top + rows] = function(pixels[top : top + rows])
    return out
