"""Audit of estimators: EMI of responders with known faults, which are made from the references.

EMI of the references themselves is 0. A responder that is plainly worse, such as one that shuffles words or answers
another question, should be distinguished from them; an estimator, or an encoder, that does not tell it cannot tell a model
that answers like that either.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import regex

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import MutualInformationEstimator, clusters_of, emi, of_other_images
from lmms_eval_emi.data.images import content_key
from lmms_eval_emi.data.rows import Sample, without_images
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.errors import InputError, SampleError, UnavailableError
from lmms_eval_emi.scoring.join import StudySamples
from lmms_eval_emi.scoring.pipeline import Instruments, load_instruments, score_samples
from lmms_eval_emi.scoring.result import SplitResult
from lmms_eval_emi.scoring.rows import Scored
from lmms_eval_emi.settings import Settings
from lmms_eval_emi.util.files import Document, Interval, Plain

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SHORTEST_WORD = 4  # letters of a word that is exchanged for another
REFERENCES = "references"
MODEL = "model "  # before the name of a model, among the responders
SHARES = (0.5, 0.75)
DRAWS = 20  # random subsets of each size, and exchanges
FEWEST_IMAGES = 8
TOLERANCE = 0.1  # share of the value on all images below which a deviation is not marked
SURE = 2.0  # standard errors of the mean over draws that a deviation must exceed


@dataclass(frozen=True)
class Rows:
    """Rows that responders are made from."""

    samples: Sequence[Sample]  # samples of one split
    others: Sequence[str] = ()  # references of other splits, without those of this one
    rewrite: Callable[[str], str] | None = None  # says a text in another way, where a model for that is given
    seed: int = 0  # seed of whatever is drawn

    @property
    def images(self) -> list[Any]:
        """Image of each row; a row without one counts as a separate image."""
        return [
            ("row", row) if sample.image is None else content_key(sample.image)
            for row, sample in enumerate(self.samples)
        ]


Responder = Callable[[Rows, random.Random], list[str] | None]


def _each(change: Callable[[Sample, random.Random], str]) -> Responder:
    """Return a responder that looks at each row by itself."""
    return lambda rows, draw: [change(sample, draw) for sample in rows.samples]


def _shuffled(sample: Sample, draw: random.Random) -> str:
    words = sample.reference.split()
    draw.shuffle(words)
    return " ".join(words)


def _first_half(sample: Sample, _: random.Random) -> str:
    words = sample.reference.split()
    return " ".join(words[: (len(words) + 1) // 2])


def _another_row(of_the_image: bool) -> Responder:
    """Return a responder that gives the reference of another row, of the same image or of another one."""

    def respond(rows: Rows, draw: random.Random) -> list[str] | None:
        images = rows.images
        found = []
        for number, image in enumerate(images):
            choices = [row for row, other in enumerate(images) if row != number and (other == image) == of_the_image]
            if not choices:
                return None
            found.append(rows.samples[draw.choice(choices)].reference)
        return found

    return respond


def _other_object(rows: Rows, draw: random.Random) -> list[str] | None:
    """Return the reference of the image's most similar other question: an answer about another object of the same image."""
    images = rows.images
    words = [set(regex.findall(r"\p{L}+", sample.question.casefold())) for sample in rows.samples]
    found = []
    for number, image in enumerate(images):
        others = [row for row, other in enumerate(images) if row != number and other == image]
        if not others:
            return None
        closest = max(others, key=lambda row: len(words[number] & words[row]) / max(1, len(words[number] | words[row])))
        found.append(rows.samples[closest].reference)
    return found


def _other_split(rows: Rows, draw: random.Random) -> list[str] | None:
    return [draw.choice(rows.others) for _ in rows.samples] if rows.others else None


def _one_wrong(rows: Rows, draw: random.Random) -> list[str] | None:
    """Change one number of each reference, or else replace one word by a word of another reference."""
    vocabulary = sorted({word for sample in rows.samples for word in _words(sample.reference)})
    found = []
    for sample in rows.samples:
        text = sample.reference
        numbers = [
            match for match in regex.finditer(r"\p{L}+|\d+", text) if match[0].isdigit() or match[0].lower() in NUMBERS
        ]
        if numbers:
            match = draw.choice(numbers)
            value = int(match[0]) if match[0].isdigit() else NUMBERS.index(match[0].lower())
            other = draw.choice([number for number in range(len(NUMBERS)) if number != value])
            new = str(other) if match[0].isdigit() else NUMBERS[other]
        else:
            words = [match for match in regex.finditer(r"\p{L}+", text) if len(match[0]) >= SHORTEST_WORD]
            choices = [word for word in vocabulary if word not in _words(text)]
            if not words or not choices:
                return None
            match, new = draw.choice(words), draw.choice(choices)
        found.append(text[: match.start()] + new + text[match.end() :])
    return found


def _words(text: str) -> set[str]:
    return {word for word in regex.findall(r"\p{L}+", text) if len(word) >= SHORTEST_WORD}


def _rewritten(rows: Rows, _: random.Random) -> list[str] | None:
    return [rows.rewrite(sample.reference) for sample in rows.samples] if rows.rewrite else None


# By name; a responder gives None where the rows do not have what it needs.
RESPONDERS: dict[str, Responder] = {
    REFERENCES: _each(lambda sample, _: sample.reference),
    "empty": _each(lambda sample, _: ""),
    "question copied": _each(lambda sample, _: sample.question),
    "words shuffled": _each(_shuffled),
    "reference of another image": _another_row(of_the_image=False),
    "other reference of the image": _another_row(of_the_image=True),
    "most similar question of the image": _other_object,
    "reference of another split": _other_split,
    "reference three times": _each(lambda sample, _: " ".join([sample.reference] * 3)),
    "first half": _each(_first_half),
    "one word or number wrong": _one_wrong,
    "I don't know": _each(lambda sample, _: "I don't know."),
    "rewritten": _rewritten,
}


class ResponderResult(Plain):
    """EMI of one responder whose faults are known, or of a model."""

    emi: float
    emi_stderr: float | None = None
    emi_ci95: Interval | None = None
    told_from_references: bool | None = None


class Finding(Plain):
    """Scores of the responders by one estimator with one pair of encoders.

    Attributes:
        encoders: encoders that made the embeddings.
        estimator: signature of the estimator.
        unit: unit of the scores.
        responders: scores by responder, and by model for real responses.
        not_noticed: responders that are not distinguished from the references: their interval of 95 % contains 0.
        preferred: responders that score above the references, although they are worse.
        reliability: reliability of the estimator, on the responses of the first model; ``None`` for too few images.
    """

    encoders: str
    estimator: str
    unit: str = "nats"
    responders: dict[str, ResponderResult]
    not_noticed: list[str] = []
    preferred: list[str] = []
    reliability: ReliabilityResult | None = None

    @classmethod
    def of(cls, scores: Mapping[str, SplitResult], **fields: Any) -> Finding:
        """Return the finding on the scores of responders and models, by name, with its other fields."""
        responders = {}
        for name, scored in scores.items():
            interval = scored.emi_ci95
            tells = None if interval is None else not interval[0] <= 0 <= interval[1]
            responders[name] = ResponderResult(
                emi=scored.emi, emi_stderr=scored.emi_stderr, emi_ci95=interval, told_from_references=tells
            )
        made = {name: responder for name, responder in responders.items() if name in RESPONDERS and name != REFERENCES}
        return cls(
            responders=responders,
            not_noticed=[name for name, responder in made.items() if responder.told_from_references is False],
            preferred=[
                name
                for name, responder in made.items()
                if responder.told_from_references and (scores[name].emi_corrected or 0.0) > 0
            ],
            **fields,
        )


class AuditDocument(Document):
    """Document that ``lmms-eval-emi estimators audit`` writes."""

    kind: Literal["audit"] = "audit"
    study: str
    split: str
    findings: list[Finding]
    left_out: list[str] = []


def responses_of(rows: Rows) -> tuple[dict[str, list[str]], list[str]]:
    """Return the responses of every responder, and the names of those that these rows cannot have."""
    made: dict[str, list[str]] = {}
    missing = []
    for name, responder in RESPONDERS.items():
        found = responder(rows, random.Random(f"{rows.seed} {name}"))
        if found is None:
            missing.append(name)
        else:
            made[name] = found
    return made, missing


def audit(
    entries: Sequence[StudySamples],
    settings: Settings,
    *,
    split: str | None = None,
    estimators: Sequence[str] = (),
    encoders: Sequence[tuple[str, str]] = (),
    rewrite: Callable[[str], str] | None = None,
) -> tuple[list[Finding], list[str]]:
    """Score responses with one known fault each, and return which faults every estimator and pair of encoders notices.

    Args:
        entries: samples of some models in one study, whose rows responders are made from.
        settings: settings of the run.
        split: split whose rows; default: the ID split.
        estimators: names or paths; default: that of the settings.
        encoders: pairs of image and text encoder; default: those of the settings.
        rewrite: says a text in another way.

    Returns:
        A finding for every pair of encoders and every estimator that fits them, and what was left out.

    Raises:
        InputError: the split has no rows, or no estimator fits any pair of encoders.
        SampleError: rows that cannot be embedded.
    """
    first = entries[0]
    name = split or first.study.id_split
    first.study.split(name)
    samples = first.samples.get(name)
    if not samples:
        raise InputError(
            f"audit: expected rows of the split {name}, got none. Give responses that have it, or --split another."
        )
    references = {sample.reference for sample in samples}
    others = sorted({row.reference for rows in first.samples.values() for row in rows} - references)
    made, missing = responses_of(Rows(samples, others, rewrite, settings.seed))
    left_out = [f"{responder}: these rows, or this command, do not have what it needs" for responder in missing]
    audited = _with_responders(entries, name, made)
    findings = []
    for vision, text in encoders or [(settings.vision_encoder, settings.text_encoder)]:
        own_settings = settings.model_copy(
            # Empty responders, and the like, are what is asked about.
            update={"vision_encoder": vision, "text_encoder": text, "resamples": 0, "without_degenerate": False}
        )
        text_only = without_images({name: samples})
        instruments = _fitting_instruments(
            estimators or [settings.estimator], own_settings, left_out, text_only=text_only
        )
        if instruments:
            scored = score_samples(audited, own_settings, instruments=instruments)
            findings += _findings(scored, name, instruments, settings.seed)
    if not findings:
        raise InputError("audit: no estimator fits any pair of encoders:\n  " + "\n  ".join(left_out))
    return findings, left_out


def _with_responders(
    entries: Sequence[StudySamples], split: str, made: Mapping[str, Sequence[str]]
) -> list[StudySamples]:
    """Return one entry of the split for each responder, and one for each model."""
    study = _study_of_one(entries[0].study, split)
    samples = entries[0].samples[split]
    responders = [
        StudySamples(
            study, label, {split: [replace(sample, response=text) for sample, text in zip(samples, texts, strict=True)]}
        )
        for label, texts in made.items()
    ]
    models = [
        StudySamples(study, f"{MODEL}{entry.model}", {split: list(entry.samples[split])})
        for entry in entries
        if entry.samples.get(split)
    ]
    return responders + models


def _fitting_instruments(
    estimators: Sequence[str], settings: Settings, left_out: list[str], *, text_only: bool
) -> Instruments | None:
    """Return the settings' encoders with the estimators that fit them; others are added to ``left_out``."""
    fitting: list[Instruments] = []
    for source in estimators:
        try:
            fitting.append(load_instruments(settings, [source], text_only=text_only))
        except UnavailableError as error:
            encoders = f"{settings.vision_encoder} and {settings.text_encoder}"
            left_out.append(f"{source} with {encoders}: {str(error).splitlines()[0]}")
    return (
        Instruments(fitting[0].encoders, tuple(instrument.estimators[0] for instrument in fitting)) if fitting else None
    )


def _study_of_one(study: Study, split: str) -> Study:
    """Return the study with one split alone, as its ID split."""
    spec = study.splits[split].model_copy(update={"modality": "id", "shifts": (), "variant_of": None})
    return study.model_copy(update={"id_split": split, "splits": {split: spec}, "means": ""})


def _findings(scored: Sequence[Scored], split: str, instruments: Instruments, seed: int) -> list[Finding]:
    found = []
    count = len(instruments.estimators)
    for number, estimator in enumerate(instruments.estimators):
        of_instrument = scored[number::count]
        results = [instrument.result for instrument in of_instrument]
        missing = [result for result in results if split not in result.splits]
        if missing:
            reasons = "; ".join(
                reason
                for instrument in missing
                for of_instrument in instrument.left_out.values()
                for reason in of_instrument
            )
            raise SampleError(f"audit: {missing[0].model} cannot be scored: {reasons}")
        real = next((instrument for instrument in of_instrument if instrument.result.model.startswith(MODEL)), None)
        found.append(
            Finding.of(
                {result.model: result.splits[split] for result in results},
                encoders=str(results[0].settings["encoders"]),
                estimator=results[0].estimator,
                unit=results[0].unit,
                reliability=reliability(real.embeddings[split], estimator, seed) if real else None,
            )
        )
    return found


class ReliabilityResult(Plain):
    """I(input; response) on all images, on subsets of them, and with responses exchanged between images."""

    value: float
    by_share: dict[str, float]
    exchanged: float
    marks: list[str] = []


def reliability(
    embeddings: Embeddings, estimator: MutualInformationEstimator, seed: int = 0
) -> ReliabilityResult | None:
    """Check an estimator on the rows of a split.

    Args:
        embeddings: the split, N samples of at least 8 images.
        estimator: estimator of mutual information.
        seed: random seed of the subsets and exchanges.

    Returns:
        The values and the marks of what deviates; ``None`` for fewer than 8 images, or if the estimator cannot take half
        of them.
    """
    keys = clusters_of(embeddings)
    images = list(dict.fromkeys(keys))
    if len(images) < FEWEST_IMAGES:
        return None
    draw = random.Random(seed)
    by_share: dict[str, float] = {}
    marks = []
    try:
        whole = emi(embeddings, estimator).mi_response
        for share in SHARES:
            values = []
            for _ in range(DRAWS):
                kept = set(draw.sample(images, round(share * len(images))))
                rows = [row for row, image in enumerate(keys) if image in kept]
                values.append(emi(embeddings.select(rows), estimator).mi_response)
            by_share[f"{share:g}"] = mean = float(np.mean(values))
            if _deviates(values, whole, whole):
                marks.append(f"drifts with the number of images: {mean:.3g} on {share:.0%} of them, {whole:.3g} on all")
        exchanged = []
        for _ in range(DRAWS):
            rows = draw.sample(range(embeddings.n), embeddings.n)  # responses go to the next image in this order
            others = of_other_images(embeddings.select(rows)) or embeddings
            exchanged.append(emi(others, estimator).mi_response)
    except ValueError:  # half of the images are too few for the estimator
        return None
    if _deviates(exchanged, 0.0, whole):
        marks.append(
            f"is not 0 for responses to other images: {np.mean(exchanged):.3g}, where the right ones have {whole:.3g}"
        )
    return ReliabilityResult(value=whole, by_share=by_share, exchanged=float(np.mean(exchanged)), marks=marks)


def _deviates(values: Sequence[float], expected: float, whole: float) -> bool:
    """Return whether the mean of some draws is off by more than chance and by more than a tenth of the value on all images."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    off = abs(float(np.mean(values)) - expected)
    return off > SURE * error and off > TOLERANCE * abs(whole)
