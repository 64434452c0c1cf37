"""Results of a study: EMI of each split, EMID and index of each shift, and their summary."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_serializer
from tqdm import tqdm

from lmms_eval_emi.core.conventions import EXPONENTS, Adjustment, Signature
from lmms_eval_emi.core.correlation import MEASURES, Correlation, correlations, operator_interval, pearson
from lmms_eval_emi.core.divergence import EMIDBound, check_convention, check_entropy, emid_bound
from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import (
    EMI,
    EMID,
    MutualInformationEstimator,
    emi,
    emi_difference,
    emid_from_emi,
    of_other_images,
    shared_clusters,
)
from lmms_eval_emi.core.exchange_test import DivergenceTest
from lmms_eval_emi.core.jackknife import ALPHA, FEWEST_CLUSTERS, Jackknife, adjust, combine, verdict
from lmms_eval_emi.core.streaming import SplitStatistics, bound_of, emid_of
from lmms_eval_emi.data.response_text import KINDS, counts_by_kind
from lmms_eval_emi.data.rows import Sample
from lmms_eval_emi.data.study import BUILT_IN, SHIFT_MODALITIES, Shift, Study
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.estimators.base import Estimator
from lmms_eval_emi.estimators.fitness import EstimatorFit, fitness
from lmms_eval_emi.scoring.beside import BesideResult, measures_beside
from lmms_eval_emi.settings import Settings
from lmms_eval_emi.util.files import Document, Interval, Plain

# The smallest EMID in the published synthetic results that differs from 0 by the residuals of an additive fit
# of visual and textual shifts (llava-v1.5-13b; docs/statistics.md). It is the smallest loss that could be detected
# there, in that estimator's nats.
PUBLISHED_MARGIN = 0.008
PUBLISHED_ESTIMATOR = "club-global"
WITHOUT_DEGENERATE = "not degenerate"  # text in signatures
FEWEST_FOR_MAXT = 20  # images; at 12 and 13 its family-wise error is .14 and .09
MANY_DEGENERATE = 0.1  # share of a split from which EMID is given without degenerate responses as well
FEWEST_FOR_TREND = 3
MARGINS_OF_SCALE = 3  # a shift is called held only if the scale is this many margins
CHEAP_DRAWS = 1999  # resamples, which take a fraction of the time of one permutation test
VERDICTS = ("lost", "gained", "held", "undecided")


@dataclass(frozen=True)
class Inference:
    """Options of errors and tests.

    Attributes:
        resamples: draws of a permutation test; 0 for none.
        seed: seed of all draws.
        adjust: adjustment of the p-values of EMID over a study.
        margin: EMID within which a shift counts as held, in the unit of the scores; default: that of the published
            scores for their estimator on their data, and none for any other.
        margin_share: the same as a fraction of I(input; response) of the ID split.
    """

    resamples: int = 499
    seed: int = 0
    adjust: Adjustment = "holm"
    margin: float | None = None
    margin_share: float | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Inference:
        """Return the part of the settings that errors and tests depend on."""
        return cls(settings.resamples, settings.seed, settings.adjust, settings.margin, settings.margin_share)

    def held_within(self, study: Study, estimator: str, id_emi: EMI | None) -> float | None:
        """Return the margin in the unit of the scores, or ``None`` if no shift can be called held.

        Args:
            study: study that is scored.
            estimator: its signature.
            id_emi: EMI of the ID split.
        """
        if self.margin is not None:
            return self.margin
        if self.margin_share is not None:
            return self.margin_share * id_emi.mi_response if id_emi and id_emi.mi_response > 0 else None
        published = study.name in BUILT_IN and estimator.partition("@")[0] == PUBLISHED_ESTIMATOR
        return PUBLISHED_MARGIN if published else None

    def __str__(self) -> str:
        margin = "none" if self.margin is None else f"{self.margin:g}"
        if self.margin_share is not None:
            margin = f"{self.margin_share:.3g} of I(input; response)"
        return f"jackknife,resamples={self.resamples},seed={self.seed},adjust={self.adjust},margin={margin}"


@dataclass(frozen=True)
class SplitScores:
    """Scores of one split with all that they were computed from; ``emid`` and ``bound`` are ``None`` for the ID split.

    Attributes:
        emi: EMI of the split.
        emid, bound: EMID and shift index of its shift.
        tests: permutation tests of the divergences, by name.
        p_adjusted: p of EMID differing from 0, adjusted over the study.
        verdict: ``lost``, ``gained``, ``held`` or ``undecided``; ``None`` for too few images.
    """

    emi: EMI
    emid: EMID | None = None
    bound: EMIDBound | None = None
    tests: Mapping[str, DivergenceTest] = field(default_factory=dict)
    p_adjusted: float | None = None
    verdict: str | None = None


class SplitResult(Plain):
    """Scores of one split in a results file; ``None`` where there are too few images.

    A field with a ``column`` is a column of the table, after those of the scores themselves.
    """

    modality: str = "id"
    shifts: list[Shift] = []
    variant_of: str | None = None
    n: int | None = Field(None, ge=0, description="number of rows")
    images: int | None = Field(None, ge=0, description="number of distinct images, or of rows without images")
    emi: float = Field(description="I(x; response) - I(x; reference)")
    emi_stderr: float | None = None
    emi_ci95: Interval | None = None
    emi_corrected: float | None = Field(None, description="EMI without its bias of order 1/images")
    emi_design_effect: float | None = Field(
        None, description="variance of EMI over images, divided by that of as many independent rows"
    )
    mi_response: float | None = None
    mi_reference: float | None = None
    emi_estimator_stderr: float | None = Field(None, description="error from the seeds of the estimator's networks")
    emid: float | None = Field(None, description="EMI of the ID split less EMI of this one")
    emid_stderr: float | None = None
    emid_ci95: Interval | None = None
    emid_corrected: float | None = None
    emid_share: float | None = Field(None, description="EMID as a share of I(input; response) of the ID split")
    emid_paired: bool | None = Field(None, description="whether rows were matched with those of the ID split")
    emid_p: float | None = None
    emid_p_adjusted: float | None = None
    verdict: str | None = Field(None, description="lost, gained, held or undecided")
    emid_estimator_stderr: float | None = None
    emid_inputs: float | None = Field(None, description="the part of EMID from inputs that moved")
    emid_inputs_stderr: float | None = None
    emid_responses: float | None = Field(None, description="the part of EMID from responses that changed")
    emid_responses_stderr: float | None = None
    emid_translation: float | None = Field(
        None, description="what correct responses in the split's language lose: the part of EMID from the encoder"
    )
    emid_translation_stderr: float | None = None
    emid_bound: float | None = Field(None, description="the shift index, or the plug-in of the theorem")
    emid_bound_stderr: float | None = None
    emid_bound_ci95: Interval | None = Field(
        None, description="of 95 %; of paired splits with fewer than 30 images it covers 90 to 92 %"
    )
    emid_bound_baseline: float | None = Field(None, description="the index without any shift")
    jsd_v: float | None = Field(None, description="divergence of the images, in nats")
    jsd_v_p: float | None = None
    jsd_v_floor: float | None = Field(None, description="mean divergence without a shift at these sizes")
    jsd_v_excess: float | None = None
    jsd_v_identical: bool | None = None
    jsd_t: float | None = Field(None, description="divergence of the questions, in nats")
    jsd_t_p: float | None = None
    jsd_t_floor: float | None = None
    jsd_t_excess: float | None = None
    jsd_t_identical: bool | None = None
    jsd_id_response: float | None = Field(None, description="divergence of responses and references, ID split")
    jsd_id_response_p: float | None = None
    jsd_id_response_floor: float | None = None
    jsd_id_response_excess: float | None = None
    jsd_id_response_identical: bool | None = None
    jsd_ood_response: float | None = Field(None, description="divergence of responses and references, this split")
    jsd_ood_response_p: float | None = None
    jsd_ood_response_floor: float | None = None
    jsd_ood_response_excess: float | None = None
    jsd_ood_response_identical: bool | None = None
    degenerate: dict[str, int] | None = Field(None, description="number of degenerate responses by kind")
    emid_without_degenerate: float | None = Field(
        None, description="EMID without rows whose response is degenerate in either split, where many are"
    )
    beside: dict[str, BesideResult] = Field({}, description="other measures of the same rows, by name")

    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """Name of the split in its result."""
        return self._name

    @property
    def roots(self) -> dict[str, float]:
        """The four parts that add up to the scaled index, by divergence; empty if one of the divergences is missing.

        A divergence below 0, as the published convention may give, has no root and adds 0.
        """
        known = {key: getattr(self, key) for key in EXPONENTS}
        if None in known.values():
            return {}
        return {key: max(0.0, value) ** EXPONENTS[key] for key, value in known.items()}

    def label(self, modality: str) -> str:
        """Return the shifts of one modality in words."""
        names = [str(shift).replace("_", " ") for shift in self.shifts if shift.modality == modality]
        return " + ".join(names) or "unshifted"

    @field_serializer("shifts")
    def _without_severities(self, shifts: list[Shift]) -> list[dict[str, Any]]:
        return [shift.model_dump(exclude_none=True) for shift in shifts]

    @property
    def differs(self) -> bool:
        """Whether EMID differs from 0 after adjustment."""
        return self.emid_p_adjusted is not None and self.emid_p_adjusted < ALPHA

    @property
    def estimate(self) -> float | None:
        """EMID that its interval is around, without its bias of order 1/images; EMID itself if it has no interval."""
        return self.emid if self.emid_ci95 is None or self.emid_corrected is None else self.emid_corrected

    @property
    def is_shift(self) -> bool:
        """Whether the split counts in means and correlations: it has EMID and index, and is not a control or variant."""
        known = self.emid is not None and self.emid_bound is not None
        return known and self.variant_of is None and self.modality != "control"

    @classmethod
    def of(
        cls,
        study: Study,
        name: str,
        scores: SplitScores,
        degenerate: Mapping[str, int] | None = None,
        **more: Any,
    ) -> SplitResult:
        """Return the result of a split from its scores, and of further fields that are not ``None``."""
        spec, emi = study.splits[name], scores.emi
        found: dict[str, Any] = {"modality": spec.modality, "shifts": list(spec.shifts)}
        if spec.variant_of:
            found["variant_of"] = spec.variant_of
        found |= {"n": emi.n, "images": emi.images, **_fields("emi", emi, "corrected", "design_effect")}
        found |= {"mi_response": emi.mi_response, "mi_reference": emi.mi_reference}
        if emi.estimator_stderr is not None:
            found["emi_estimator_stderr"] = emi.estimator_stderr
        if scores.emid is not None and scores.bound is not None:
            found |= _emid_fields(scores, scores.emid) | _index_fields(scores, scores.bound)
        if degenerate is not None:
            found["degenerate"] = dict(degenerate)
        return cls(**found, **{name: value for name, value in more.items() if value is not None})


def _emid_fields(scores: SplitScores, emid: EMID) -> dict[str, Any]:
    found: dict[str, Any] = {
        **_fields("emid", emid, "corrected"),
        "emid_share": emid.value / emid.id.mi_response if emid.id.mi_response > 0 else None,
        "emid_paired": emid.paired,
        "emid_p": emid.p_value,
        "emid_p_adjusted": scores.p_adjusted,
        "verdict": scores.verdict,
    }
    if emid.estimator_stderr is not None:
        found["emid_estimator_stderr"] = emid.estimator_stderr
    for name, part in (("emid_inputs", emid.inputs), ("emid_responses", emid.responses)):
        if part is not None:
            found |= {name: part.value, f"{name}_stderr": part.stderr}
    return found


def _index_fields(scores: SplitScores, bound: EMIDBound) -> dict[str, Any]:
    found = _fields("emid_bound", bound, "baseline")
    for name in EXPONENTS:
        found[name] = getattr(bound, name)
        test = scores.tests.get(name)
        if test is not None:
            found |= {f"{name}_p": test.p_value, f"{name}_floor": test.floor, f"{name}_excess": test.excess}
        elif bound.is_identical(name):
            found[f"{name}_identical"] = True
    return found


def _fields(name: str, score: Any, *more: str) -> dict[str, Any]:
    """Return a score with its error, and more of its attributes, as fields whose names begin with that of the score."""
    return {name: score.value} | {f"{name}_{part}": getattr(score, part) for part in ("stderr", "ci95", *more)}


class ModalitySummary(Plain):
    """Means over some shifts, and how EMID correlates with the index over them; ``None`` if that is not defined."""

    n_shifts: int = 0
    mean_emi: float | None = None
    mean_emid: float | None = None
    mean_bound: float | None = None
    pearson_r: float | None = None
    pearson_r_ci95: Interval | None = None
    mean_emid_stderr: float | None = None
    mean_emid_ci95: Interval | None = None
    verdicts: dict[str, int] = {}

    @classmethod
    def of(cls, shifts: Iterable[SplitResult], **errors: Any) -> ModalitySummary:
        """Return the means over some shifts; ``errors`` are further fields, which the caller computes."""
        shifts = list(shifts)
        emis = [split.emi for split in shifts]
        emids = [split.emid or 0.0 for split in shifts]
        bounds = [split.emid_bound or 0.0 for split in shifts]
        verdicts = [split.verdict for split in shifts]
        return cls(
            n_shifts=len(shifts),
            mean_emi=mean(emis),
            mean_emid=mean(emids),
            mean_bound=mean(bounds),
            pearson_r=pearson(emids, bounds),
            verdicts={name: verdicts.count(name) for name in VERDICTS},
            **errors,
        )


class GroupCorrelation(Plain):
    """Pearson's r of EMID and index within a group of shifts of one kind."""

    n_shifts: int
    pearson_r: float
    pearson_r_ci95: Interval | None = None


class StudySummary(ModalitySummary):
    """Means, correlations and counts over all shifts of a study."""

    spearman_r: float | None = None
    spearman_r_ci95: Interval | None = None
    kendall_tau: float | None = None
    kendall_tau_ci95: Interval | None = None
    pearson_r_operators_ci95: Interval | None = Field(None, description="over operators drawn with replacement")
    pearson_r_within: dict[str, GroupCorrelation] = {}
    n_differ: int = 0
    adjust: str = "holm"
    margin: float | None = None
    by_modality: dict[str, ModalitySummary] = {}


def mean(values: Sequence[float]) -> float | None:
    """Return the arithmetic mean, or ``None`` for no values."""
    return math.fsum(values) / len(values) if values else None


class RowsReference(Plain):
    """Location of the rows of a result: file, its SHA-256, and position in it."""

    file: str
    sha256: str
    entry: int


class Scale(Plain):
    """Cost of exchanging the responses of the ID split between images: the maximum that a shift can cost by this estimator.

    Attributes:
        value: EMI of the ID split less that of the same rows with the responses to other images.
        stderr, ci95: its error, over images.
        distinguishable: whether the interval lies above 0. Where it does not, responses have next to nothing to do with
            their own image, and no shift can show that they lose it.
    """

    value: float
    stderr: float | None = None
    ci95: Interval | None = None
    distinguishable: bool | None = None

    @classmethod
    def of(cls, jackknife: Jackknife) -> Scale:
        """Return the scale of a difference and its error."""
        interval = jackknife.ci95
        return cls(
            value=jackknife.value,
            stderr=jackknife.stderr,
            ci95=interval,
            distinguishable=None if interval is None else interval[0] > 0,
        )


class Trend(Plain):
    """Change of EMI over the splits of a series, per step of their ``order``: the slope of a least-squares line.

    Attributes:
        splits: names, in order.
        slope: change of EMI per step; below 0, responses lose relevance.
        stderr, ci95, p: its error over images, and the p-value of no change. Images that several splits share are
            deleted from all of them at once.
    """

    splits: list[str]
    slope: float
    stderr: float | None = None
    ci95: Interval | None = None
    p: float | None = None

    @classmethod
    def of(cls, study: Study, scores: Mapping[str, SplitScores]) -> Trend | None:
        """Return the trend of the splits that have an order; ``None`` for fewer than three of different order."""
        order = {name: place for name in scores if (place := study.splits[name].order) is not None}
        names = sorted(order, key=lambda name: order[name])
        if len(set(order.values())) < FEWEST_FOR_TREND:
            return None
        mean = math.fsum(order.values()) / len(order)
        weights = [order[name] - mean for name in names]
        spread = math.fsum(weight**2 for weight in weights)
        slope = combine(
            lambda values: math.fsum(a * b for a, b in zip(weights, values, strict=True)) / spread,
            [scores[name].emi.jackknife for name in names],
        )
        return cls(splits=names, slope=slope.value, stderr=slope.stderr, ci95=slope.ci95, p=slope.p_value)


class StudyResult(Document):
    """All scores of one model in one study: what is in memory, in the JSON file, and in its schema.

    Attributes:
        signature: what the scores depend on, in one line; ``settings`` has the same by name.
        model: model whose responses.
        shift: name of the study.
        title: title of the study.
        id_split: the split in distribution.
        study: what was scored.
        unit: unit of EMI and EMID.
        splits: scores by split, in the study's order.
        summary: over the shifts.
        left_out: what could not be scored, by split, with the reasons.
        notes: what a reader should know of a split, such as how many of its responses are degenerate.
        estimator_fit: whether the estimator is fit for these data.
        scale: what responses to other images of the ID split cost; ``None`` without the ID split.
        trend: change of EMI over splits that have an order; ``None`` for fewer than three.
        rows: where the results by row are, if they were written.
    """

    kind: Literal["result"] = "result"
    signature: str
    model: str
    shift: str
    title: str = ""
    id_split: str
    study: Study | None = None
    unit: str = "nats"
    settings: dict[str, Any] = {}
    splits: dict[str, SplitResult]
    summary: StudySummary = StudySummary()
    left_out: dict[str, list[str]] = {}
    notes: dict[str, list[str]] = {}
    estimator_fit: EstimatorFit = EstimatorFit()
    scale: Scale | None = None
    trend: Trend | None = None
    rows: RowsReference | None = None

    _scores: dict[str, SplitScores] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Tell every split its name."""
        super().model_post_init(context)
        for name, split in self.splits.items():
            split._name = name

    @field_serializer("study")
    def _without_defaults(self, study: Study | None) -> Any:
        return study.model_dump(mode="json", exclude={"source"}, exclude_defaults=True) if study else None

    @property
    def scores(self) -> Mapping[str, SplitScores]:
        """Scores by split with all that they were computed from; empty if the result was read from a file."""
        return self._scores

    @property
    def estimator(self) -> str:
        """Signature of the estimator."""
        return str(self.settings.get("estimator", ""))

    @property
    def unfit(self) -> set[str]:
        """Splits that the estimator is not fit for."""
        return self.estimator_fit.unfit_splits

    def shifts(self, modality: str | None = None) -> dict[str, SplitResult]:
        """Return the shifts that count in means and correlations: all, or those of one modality."""
        return {
            name: split for name, split in self.splits.items() if split.is_shift and modality in (None, split.modality)
        }


@dataclass(frozen=True)
class ScoringOptions:
    """Options of scoring a study.

    Attributes:
        convention: how the two marginals of a joint split are weighted in the index; see :func:`lmms_eval_emi.emid_bound`.
        entropy: entropy of the theorem's bound, or ``None`` for the scaled index; see :func:`lmms_eval_emi.emid_bound`.
        inference: how errors and tests are made.
        responses: how responses were changed before scoring, other than by default, for the signature.
    """

    convention: str = "published"
    entropy: float | None = None
    inference: Inference = field(default_factory=Inference)
    responses: str = ""

    @classmethod
    def from_settings(cls, settings: Settings) -> ScoringOptions:
        """Return the options that settings ask for."""
        changed = [WITHOUT_DEGENERATE] * settings.without_degenerate + ["with thoughts"] * (settings.thoughts == "keep")
        return cls(settings.convention, settings.entropy, Inference.from_settings(settings), ", ".join(changed))

    def check(self, study: Study, names: Iterable[str]) -> None:
        """Raise ``ValueError`` for an unknown convention or entropy, or for a split that the study lacks."""
        check_convention(self.convention)
        check_entropy(self.entropy)
        for name in names:
            study.split(name)


@dataclass(frozen=True)
class RowsKnown:
    """Facts about the rows of a study that are known before it is scored.

    Attributes:
        left_out: reasons why rows or splits were left out, by split.
        notes: remarks by split; see :func:`notes_on_samples`.
        lost: keys of the rows that a split should have and lacks, by split. Where two splits are compared, the
            partners of these rows are left out, so that EMID is over the rows that both have.
        degenerate: kind of each degenerate response and ``None`` for the others, by split in the order of the rows.
        translations: embeddings of the rows with translated references as responses, by split; see
            ``emid_translation`` of :class:`SplitResult`.
    """

    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    notes: Mapping[str, list[str]] = field(default_factory=dict)
    lost: Mapping[str, set[Any]] = field(default_factory=dict)
    degenerate: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    translations: Mapping[str, Embeddings] = field(default_factory=dict)


@dataclass
class _ScoredSplits:
    """Scores of the splits of a study, before tests and verdicts.

    Attributes:
        samples: embeddings by split, on which the estimator's fitness is checked.
        scores: scores by split.
        omitted: reasons why rows or splits were left out, by split.
        remarks: remarks by split.
        pairs: embeddings of the ID split and of the shift without rows that lack their partner, by shift.
        scale: cost of exchanging the responses of the ID split between images.
        more: further fields of :class:`SplitResult`, by split.
        degenerate: number of degenerate responses by kind, by split.
    """

    samples: Mapping[str, Embeddings]
    scores: dict[str, SplitScores] = field(default_factory=dict)
    omitted: dict[str, list[str]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    pairs: dict[str, tuple[Embeddings, Embeddings]] = field(default_factory=dict)
    scale: Scale | None = None
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    degenerate: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def omit(self, name: str, error: InputError) -> None:
        """Note why a split, or its comparison with the ID split, was left out."""
        self.omitted.setdefault(name, []).append(f"split {name}: {error}")

    def remark(self, name: str, text: str) -> None:
        """Add a remark on a split."""
        self.remarks.setdefault(name, []).append(text)


def _copy_lists(lists: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: list(lines) for name, lines in lists.items()}


def score_study(
    study: Study,
    embeddings: Mapping[str, Embeddings],
    estimator: MutualInformationEstimator,
    *,
    model: str,
    options: ScoringOptions | None = None,
    known: RowsKnown | None = None,
) -> StudyResult:
    """Score the splits of a study that have embeddings.

    Args:
        study: study with the splits: which one is in distribution, and what shifts the others.
        embeddings: embeddings by split; without the ID split there is no EMID and no index.
        estimator: estimator of mutual information.
        model: name of the model that gave the responses.
        options: convention, entropy and inference; default: those of the paper.
        known: what is known about the rows, such as those that were left out; default: nothing.

    Returns:
        The result. A split that cannot be scored is left out with the reason, and the others are scored.

    Raises:
        ValueError: an unknown split, convention or entropy.
    """
    options, known = options or ScoringOptions(), known or RowsKnown()
    options.check(study, embeddings)
    present = [name for name in study.splits if name in embeddings]
    scored = _ScoredSplits(embeddings, omitted=_copy_lists(known.left_out), remarks=_copy_lists(known.notes))
    for name in sorted(present, key=lambda name: name != study.id_split):  # the ID split first
        try:
            _score_split(scored, study, name, estimator, options, known.lost)
        except InputError as error:
            scored.omit(name, error)
        if name in scored.scores and isinstance(estimator, Estimator):
            scored.remarks[name] = [*estimator.remarks(embeddings[name]), *scored.remarks.get(name, [])]
    scored.scores = {name: scored.scores[name] for name in present if name in scored.scores}
    scored.samples = {name: embeddings[name] for name in scored.scores}
    scored.degenerate = counts_by_kind(known.degenerate)
    beside = measures_beside(estimator, scored.samples, scored.pairs)
    for name in scored.scores:
        scored.more[name] = {
            "beside": beside.get(name, {}),
            "emid_without_degenerate": _without_degenerate(study, name, scored.pairs, known.degenerate, estimator),
            **_translation(known.translations.get(name), estimator),
        }
    return _to_result(study, model, estimator, scored, options)


def _score_split(
    scored: _ScoredSplits,
    study: Study,
    name: str,
    estimator: MutualInformationEstimator,
    options: ScoringOptions,
    lost: Mapping[str, set[Any]],
) -> None:
    """Add the scores of a split to those that exist: EMI, and EMID and index if the ID split has been scored.

    Raises:
        InputError: the split has too few rows, or does not fit the ID split. Its EMI is kept if it has one.
    """
    embeddings, id_embeddings = scored.samples[name], scored.samples.get(study.id_split)
    shared = (
        shared_clusters(id_embeddings, embeddings)
        if id_embeddings is not None and embeddings is not id_embeddings
        else None
    )
    value = emi(embeddings, estimator, groups=shared)
    scored.scores[name] = SplitScores(value)
    if name == study.id_split:
        scored.scale = _scale(embeddings, value, estimator)
        return
    if id_embeddings is None or study.id_split not in scored.scores:
        return
    first, second = scored.pairs[name] = _without_partners(study, name, scored.samples, lost)
    id_emi = scored.scores[study.id_split].emi if first is id_embeddings else emi(first, estimator)
    difference = emid_from_emi(id_emi, first, second, estimator, value if second is embeddings else None)
    bound = emid_bound(first, second, options.convention, options.entropy)
    scored.scores[name] = SplitScores(value, difference, bound)
    if first is not id_embeddings or second is not embeddings:
        scored.remark(
            name,
            f"EMID and index compare {second.n} of its rows with {first.n} of {study.id_split}: partners of rows that were left out are left out",
        )
    elif (
        study.splits[name].modality != "control"
        and first.n == second.n
        and first.ids is not None
        and second.ids is not None
        and not difference.paired
    ):
        scored.remark(
            name,
            f"it has as many rows as {study.id_split} and shares none with it by id and reference, so they are compared unpaired, with a larger error: check the ids if these are the same questions",
        )


def _translation(embeddings: Embeddings | None, estimator: MutualInformationEstimator) -> dict[str, float | None]:
    """Return EMI lost by translated references, as fields of :class:`SplitResult`."""
    if embeddings is None:
        return {}
    value = emi(embeddings, estimator)
    return {"emid_translation": -value.value, "emid_translation_stderr": value.stderr}


def _without_degenerate(
    study: Study,
    name: str,
    pairs: Mapping[str, tuple[Embeddings, Embeddings]],
    kinds: Mapping[str, Sequence[str | None]],
    estimator: MutualInformationEstimator,
) -> float | None:
    """Return EMID without the rows whose response is degenerate in either split; ``None`` where fewer than a tenth are."""
    if name not in pairs:
        return None
    bad = []
    for split, pair in zip((study.id_split, name), pairs[name], strict=True):
        if len(kinds.get(split, ())) != pair.n or pair.ids is None:
            return None
        bad.append({key for key, kind in zip(pair.ids, kinds[split], strict=True) if kind})
    if len(bad[1]) < MANY_DEGENERATE * pairs[name][1].n:
        return None
    rows = [[row for row, key in enumerate(pair.ids or ()) if key not in bad[0] | bad[1]] for pair in pairs[name]]
    if min(map(len, rows)) < FEWEST_CLUSTERS:
        return None
    first, second = (emi(pair.select(kept), estimator).value for pair, kept in zip(pairs[name], rows, strict=True))
    return first - second


def _scale(embeddings: Embeddings, score: EMI, estimator: MutualInformationEstimator) -> Scale | None:
    """Return the loss of EMI in the ID split if each image gets the responses to another one."""
    shuffled = of_other_images(embeddings)
    return Scale.of(emi_difference(score, emi(shuffled, estimator), paired=True)) if shuffled else None


def score_statistics(
    study: Study,
    statistics: Mapping[str, SplitStatistics],
    estimator: MutualInformationEstimator,
    *,
    model: str,
    options: ScoringOptions | None = None,
    known: RowsKnown | None = None,
) -> StudyResult:
    """Score the splits of a study whose rows were read once and summed; see :mod:`lmms_eval_emi.core.streaming`.

    Args:
        study: study with the splits.
        statistics: sums by split; those of shifts with the ID split's partners.
        estimator: estimator that the sums were made with.
        model: name of the model that gave the responses.
        options: convention, entropy and inference; default: those of the paper.
        known: reasons why rows were left out; the rest of it is not used.

    Returns:
        The result as of :func:`score_study`, without scores of single rows, errors of the index and tests of divergences.

    Raises:
        ValueError: an unknown split, convention or entropy.
    """
    options, known = options or ScoringOptions(), known or RowsKnown()
    options.check(study, statistics)
    samples = {name: split.sample for name, split in statistics.items() if split.sample is not None}
    scored = _ScoredSplits(samples, omitted=_copy_lists(known.left_out))
    scored.scores = {name: SplitScores(statistics[name].emi) for name in study.splits if name in statistics}
    id = statistics.get(study.id_split)
    for name, split_scores in scored.scores.items():
        if id is not None and name != study.id_split:
            try:
                difference = emid_of(id, statistics[name], scored.scores[study.id_split].emi)
                bound = bound_of(id, statistics[name], options.convention, options.entropy)
                scored.scores[name] = SplitScores(split_scores.emi, difference, bound)
            except InputError as error:
                scored.omit(name, error)
    return _to_result(study, model, estimator, scored, options)


def _to_result(
    study: Study, model: str, estimator: MutualInformationEstimator, scored: _ScoredSplits, options: ScoringOptions
) -> StudyResult:
    """Return the result of a study whose splits are scored, with tests, verdicts, remarks, fitness and summary."""
    id_emi = scored.scores[study.id_split].emi if study.id_split in scored.scores else None
    inference = _fitting_adjustment(scored, options.inference)
    margin = inference.held_within(study, estimator.signature, id_emi)
    if inference.margin_share is None:
        inference = replace(inference, margin=margin)
    signature = _signature(study, estimator, scored, replace(options, inference=inference))
    fit = fitness(estimator, scored.samples, {name: split.emi for name, split in scored.scores.items()})
    tested = _with_inference(study, scored.scores, inference, margin)
    scores = _withheld(tested, scored.scale, fit.unfit_splits, margin)
    counted = {name: dict(kinds) for name, kinds in scored.degenerate.items() if name in scores}
    _remark_on_rows(scored, counted, left_out=WITHOUT_DEGENERATE in options.responses)
    splits = {
        name: SplitResult.of(study, name, split, counted.get(name), **scored.more.get(name, {}))
        for name, split in scores.items()
    }
    result = StudyResult(
        signature=str(signature),
        model=model,
        shift=study.name,
        title=study.title,
        id_split=study.id_split,
        study=study,
        unit=fit.unit,
        settings=dict(signature.parts),
        splits=splits,
        summary=_summarise(study, splits, scores, inference, margin),
        left_out=scored.omitted,
        notes={name: lines for name, lines in scored.remarks.items() if name in scores and lines},
        estimator_fit=fit,
        scale=scored.scale,
        trend=Trend.of(study, scores),
    )
    result._scores.update(scores)
    return result


def _fitting_adjustment(scored: _ScoredSplits, inference: Inference) -> Inference:
    """Return the inference with Holm's adjustment in place of max-t if a shift has too few images for max-t."""
    clusters = {name: split.emid.jackknife.clusters for name, split in scored.scores.items() if split.emid}
    fewest = min(clusters.values(), default=0)
    if inference.adjust != "maxt" or not 0 < fewest < FEWEST_FOR_MAXT:
        return inference
    first = next(name for name, count in clusters.items() if count == fewest)
    scored.remark(
        first,
        f"{fewest} images are too few for max-t, whose errors over all shifts are too many below {FEWEST_FOR_MAXT}; Holm is used",
    )
    return replace(inference, adjust="holm")


def _signature(
    study: Study, estimator: MutualInformationEstimator, scored: _ScoredSplits, options: ScoringOptions
) -> Signature:
    """Return everything that the scores depend on."""
    entropy = options.entropy
    return Signature.of(
        "emi-study",
        study=study.name,
        encoders=next((split.encoders for split in scored.samples.values()), None),
        estimator=estimator.signature,
        convention=options.convention,
        kind="scaled" if entropy is None else f"theorem(entropy={entropy:g})",
        n_id=scored.scores[study.id_split].emi.n if study.id_split in scored.scores else 0,
        n=sum(split.emi.n for split in scored.scores.values()),
        errors=options.inference,
        **({"responses": options.responses} if options.responses else {}),
    )


def _remark_on_rows(scored: _ScoredSplits, degenerate: Mapping[str, Mapping[str, int]], *, left_out: bool) -> None:
    """Add remarks on splits with too few images for an interval, and on degenerate responses."""
    for name, split in scored.scores.items():
        if split.emi.stderr is None:
            scored.remark(
                name,
                f"{split.emi.images} images are too few for an interval: at least {FEWEST_CLUSTERS} are needed",
            )
    for name, kinds in degenerate.items():
        if kinds:
            listed = ", ".join(f"{count} {KINDS[kind]}" for kind, count in kinds.items())
            scored.remark(name, f"degenerate responses{', left out' if left_out else ''}: {listed}")


def _summarise(
    study: Study,
    splits: Mapping[str, SplitResult],
    scores: Mapping[str, SplitScores],
    inference: Inference,
    margin: float | None,
) -> StudySummary:
    shifts = {name: splits[name] for name in study.shifts() if name in splits and splits[name].is_shift}
    draws = CHEAP_DRAWS if inference.resamples else 0

    def correlate(measures: Iterable[str], names: Iterable[str]) -> dict[str, Correlation]:
        parts = [scores[name] for name in names]
        emids = [part.emid.jackknife for part in parts if part.emid]
        indices = [part.bound.jackknife for part in parts if part.bound]
        return correlations(tuple(measures), emids, indices, draws, inference.seed)

    def errors(names: Sequence[str]) -> dict[str, Any]:
        parts = [emid.jackknife for name in names if (emid := scores[name].emid)]
        found = combine(lambda values: math.fsum(values) / len(values), parts) if parts else None
        return {
            "mean_emid_stderr": found.stderr if found else None,
            "mean_emid_ci95": found.ci95 if found else None,
        }

    by_modality: dict[str, ModalitySummary] = {}
    for modality in SHIFT_MODALITIES:
        of_modality = {name: split for name, split in shifts.items() if split.modality == modality}
        correlation = correlate(["pearson_r"], of_modality).get("pearson_r")
        interval = correlation.ci95 if correlation else None
        by_modality[modality] = ModalitySummary.of(
            of_modality.values(), pearson_r_ci95=interval, **errors(list(of_modality))
        )
    found = correlate(MEASURES, shifts)
    ranked: dict[str, Any] = {
        name: found[name].value if name in found else None for name in MEASURES if name != "pearson_r"
    }
    intervals: dict[str, Any] = {f"{name}_ci95": found[name].ci95 if name in found else None for name in MEASURES}
    overall = ModalitySummary.of(shifts.values(), **errors(list(shifts)))
    return StudySummary(
        **overall.to_data(),
        **ranked,
        **intervals,
        pearson_r_operators_ci95=_operator_interval(study, shifts, draws, inference.seed),
        pearson_r_within=_correlations_within(study, shifts, correlate),
        n_differ=sum(split.differs for split in shifts.values()),
        adjust=inference.adjust,
        margin=margin,
        by_modality=by_modality,
    )


def _correlations_within(
    study: Study,
    shifts: Mapping[str, SplitResult],
    correlate: Callable[[Iterable[str], Iterable[str]], dict[str, Correlation]],
) -> dict[str, GroupCorrelation]:
    """Return Pearson's r within groups of shifts of one kind; groups of fewer than 8 are left out.

    The r over all shifts may be one contrast, such as two sets of images, and no relation within them.
    """
    groups: dict[str, list[str]] = {}
    for name in shifts:
        shift_names = {shift.modality: shift.name for shift in study.splits[name].shifts}
        for modality in ("visual", "text"):
            kinds = [f"{modality} {shift_names[modality]}", f"{modality} shifted"] if modality in shift_names else []
            for kind in kinds or [f"{modality} unshifted"]:
                groups.setdefault(kind, []).append(name)
    found = {}
    for kind, members in sorted(groups.items()):
        r = correlate(["pearson_r"], members).get("pearson_r") if len(members) < len(shifts) else None
        if r is not None:
            found[kind] = GroupCorrelation(n_shifts=len(members), pearson_r=r.value, pearson_r_ci95=r.ci95)
    return found


def _operator_interval(
    study: Study, shifts: Mapping[str, SplitResult], draws: int, seed: int
) -> tuple[float, float] | None:
    """Return the interval of Pearson's r over operators, where visual and textual shifts are crossed."""
    cells = {}
    for name, split in shifts.items():
        visual, text = (
            " + ".join(str(shift) for shift in study.splits[name].shifts if shift.modality == modality)
            for modality in ("visual", "text")
        )
        cells[visual, text] = (split.emid or 0.0, split.emid_bound or 0.0)
    return operator_interval(cells, draws, seed) if draws else None


def _with_inference(
    study: Study, scores: Mapping[str, SplitScores], inference: Inference, margin: float | None
) -> dict[str, SplitScores]:
    """Return the scores with tests of their divergences, adjusted p-values and verdicts."""
    shifted = [name for name, split in scores.items() if split.emid and split.bound]
    bounds = {name: bound for name in shifted if (bound := scores[name].bound)}

    tests: dict[str, dict[str, DivergenceTest]] = {}
    with tqdm(bounds.items(), desc="Errors and tests", unit="", leave=False, dynamic_ncols=True, delay=1) as bar:
        for name, bound in bar:
            found = {
                divergence: bound.test(divergence, inference.resamples, inference.seed) for divergence in EXPONENTS
            }
            tests[name] = {divergence: test for divergence, test in found.items() if test}
            _ = bound.jackknife  # computed here, under the progress bar
    family = [name for name in study.shifts() if name in shifted]
    statistics = [emid.jackknife for name in family if (emid := scores[name].emid)]
    adjusted = dict(zip(family, adjust(statistics, inference.adjust, CHEAP_DRAWS, inference.seed), strict=True))
    completed = {}
    for name, scored in scores.items():
        if scored.emid is None:
            completed[name] = scored
            continue
        # Variants and controls are no members of the family: their p-values stand by themselves.
        p_adjusted = adjusted.get(name, scored.emid.p_value)
        called = verdict(scored.emid.jackknife, p_adjusted, margin)
        completed[name] = replace(scored, tests=tests[name], p_adjusted=p_adjusted, verdict=called)
    return completed


def _withheld(
    scores: Mapping[str, SplitScores], scale: Scale | None, unfit: Collection[str], margin: float | None
) -> dict[str, SplitScores]:
    """Return the scores without the verdicts that they cannot bear.

    None is given where responses in distribution are not distinguished from responses to other images. *Held* is a claim of
    robustness, and takes an estimator that is fit and a scale of several margins: otherwise it is undecided.
    """
    if scale is not None and scale.distinguishable is False:
        return {name: replace(split, verdict=None) for name, split in scores.items()}
    found = {}
    for name, scored in scores.items():
        small = scale is not None and margin is not None and scale.value < MARGINS_OF_SCALE * margin
        doubt = scored.verdict == "held" and (small or name in unfit)
        found[name] = replace(scored, verdict="undecided") if doubt else scored
    return found


def _without_partners(
    study: Study, name: str, embeddings: Mapping[str, Embeddings], lost: Mapping[str, set[Any]]
) -> tuple[Embeddings, Embeddings]:
    """Return the ID split and a shift without rows whose partner was left out of the other; unchanged if there are none."""

    def without(split: str, keys: set[Any]) -> Embeddings:
        rows_of_split = embeddings[split]
        if not keys or rows_of_split.ids is None:
            return rows_of_split
        rows = [row for row, key in enumerate(rows_of_split.ids) if key not in keys]
        return rows_of_split if len(rows) == rows_of_split.n else rows_of_split.select(rows)

    return without(study.id_split, lost.get(name, set())), without(name, lost.get(study.id_split, set()))


def notes_on_samples(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[str]]:
    """Return remarks on splits whose scores mislead because they have a single row."""
    notes: dict[str, list[str]] = {}
    for name, rows in samples.items():
        if len(rows) == 1:
            notes.setdefault(name, []).append("it has one row, for which EMI is 0 whatever the response")
    return notes
