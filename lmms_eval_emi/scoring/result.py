"""Results of a study: EMI of each split, EMID and index of each shift, their summary, and their JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmms_eval_emi.core.conventions import EXPONENTS, Adjustment
from lmms_eval_emi.core.correlation import MEASURES, Correlation, correlations, operator_interval, pearson
from lmms_eval_emi.core.divergence import EMIDBound, batch_entropies, check_convention, check_entropy, emid_bound
from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import (
    EMI,
    EMID,
    MutualInformationEstimator,
    emi,
    emid_from_emi,
    shared_clusters,
)
from lmms_eval_emi.core.exchange_test import DivergenceTest
from lmms_eval_emi.core.jackknife import FEWEST_CLUSTERS, Jackknife, combine
from lmms_eval_emi.core.multiple import ALPHA, adjust, verdict
from lmms_eval_emi.core.signature import Signature
from lmms_eval_emi.core.streaming import SplitStatistics, bound_of, emid_of
from lmms_eval_emi.data.sample import Sample
from lmms_eval_emi.data.study import SHIFT_MODALITIES, Study
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.estimators.base import Estimator
from lmms_eval_emi.estimators.fitness import fitness
from lmms_eval_emi.scoring.degenerate import KINDS
from lmms_eval_emi.settings import Settings
from lmms_eval_emi.util.files import to_json, write_atomically

FORMAT_VERSION = 1  # of the JSON; a reader refuses a greater one
# The smallest EMID in the published synthetic results that differs from 0 by the residuals of an additive fit
# of visual and textual shifts (llava-v1.5-13b; docs/statistics.md).
PUBLISHED_MARGIN = 0.008
CHEAP_DRAWS = 1999  # of resampling that costs nothing beside one permutation test
VERDICTS = ("lost", "gained", "held", "undecided")


@dataclass(frozen=True)
class Inference:
    """How errors and tests are made.

    Attributes:
        resamples: draws of a permutation test; 0 for none.
        seed: of all draws.
        adjust: of the p-values of EMID over a study.
        margin: EMID within which a shift counts as held; default: the published one, for scores in nats.
    """

    resamples: int = 499
    seed: int = 0
    adjust: Adjustment = "holm"
    margin: float | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Inference:
        """Return what some settings say."""
        return cls(settings.resamples, settings.seed, settings.adjust, settings.margin)

    def held_within(self, unit: str) -> float | None:
        """The margin in use for scores in some unit; the published one means nothing in others than nats."""
        if self.margin is not None:
            return self.margin
        return PUBLISHED_MARGIN if unit.endswith("nats") else None

    def __str__(self) -> str:
        margin = "published" if self.margin is None else f"{self.margin:g}"
        return f"jackknife,resamples={self.resamples},seed={self.seed},adjust={self.adjust},margin={margin}"


@dataclass(frozen=True)
class SplitScores:
    """Scores of one split; ``emid`` and ``bound`` are those of its shift, and ``None`` for the ID split.

    Attributes:
        emi: of the split.
        emid, bound: EMID and shift index of its shift.
        tests: permutation tests of the divergences, by name, where there are any.
        p_adjusted: p of EMID differing from 0, adjusted over the study.
        verdict: ``lost``, ``gained``, ``held`` or ``undecided``; ``None`` for too few images.
    """

    emi: EMI
    emid: EMID | None = None
    bound: EMIDBound | None = None
    tests: Mapping[str, DivergenceTest] = field(default_factory=dict)
    p_adjusted: float | None = None
    verdict: str | None = None

    @property
    def differs(self) -> bool:
        """Whether EMID differs from 0 after adjustment."""
        return self.p_adjusted is not None and self.p_adjusted < ALPHA

    def to_dict(self) -> dict[str, Any]:
        """As written to JSON; what is not known is left out, and what too few images do not give is null."""
        scores: dict[str, Any] = {
            "n": self.emi.n,
            "images": self.emi.images,
            "emi": self.emi.value,
            "emi_stderr": self.emi.stderr,
            "emi_ci95": _pair(self.emi.ci95),
            "emi_corrected": self.emi.corrected,
            "mi_response": self.emi.mi_response,
            "mi_reference": self.emi.mi_reference,
        }
        if self.emi.estimator_stderr is not None:
            scores["emi_estimator_stderr"] = self.emi.estimator_stderr
        if self.emid is not None and self.bound is not None:
            scores |= {
                "emid": self.emid.value,
                "emid_stderr": self.emid.stderr,
                "emid_ci95": _pair(self.emid.ci95),
                "emid_corrected": self.emid.corrected,
                "emid_paired": self.emid.paired,
                "emid_p": self.emid.p_value,
                "emid_p_adjusted": self.p_adjusted,
                "verdict": self.verdict,
            }
            if self.emid.estimator_stderr is not None:
                scores["emid_estimator_stderr"] = self.emid.estimator_stderr
            for name, part in (("emid_inputs", self.emid.inputs), ("emid_responses", self.emid.responses)):
                if part is not None:
                    scores |= {name: part.value, f"{name}_stderr": part.stderr}
            scores |= {
                "emid_bound": self.bound.value,
                "emid_bound_stderr": self.bound.stderr,
                "emid_bound_ci95": _pair(self.bound.ci95),
                "emid_bound_baseline": self.bound.baseline,
            }
            for name in EXPONENTS:
                scores[name] = getattr(self.bound, name)
                test = self.tests.get(name)
                if test is not None:
                    scores |= {f"{name}_p": test.p_value, f"{name}_floor": test.floor, f"{name}_excess": test.excess}
                elif self.bound.is_identical(name):
                    scores[f"{name}_identical"] = True
        return scores


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


@dataclass(frozen=True)
class Summary:
    """Means over some shifts, and how EMID correlates with the index over them; ``None`` where not defined."""

    n_shifts: int
    mean_emi: float | None
    mean_emid: float | None
    mean_bound: float | None
    pearson_r: float | None

    @classmethod
    def of(cls, shifts: Iterable[tuple[float, float, float]]) -> Summary:
        """Summarise the EMI, EMID and index of some shifts."""
        columns = list(zip(*shifts, strict=True)) or [(), (), ()]
        emis, emids, bounds = (list(column) for column in columns)
        return cls(len(emis), mean(emis), mean(emids), mean(bounds), pearson(emids, bounds))


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, or ``None`` of nothing."""
    return math.fsum(values) / len(values) if values else None


@dataclass(frozen=True)
class StudyResult:
    """All scores of one model in one study.

    Attributes:
        study: what was scored.
        model: whose responses.
        splits: scores by split, in the study's order.
        signature: what the scores depend on.
        left_out: what could not be scored, by split, with the reasons.
        notes: what a reader should know of a split, such as how many of its responses are empty.
        estimator_fit: whether the estimator is fit for these data; see
            :func:`lmms_eval_emi.estimators.fitness.fitness`.
        inference: how errors and tests were made.
        degenerate: how many responses of every split are degenerate, by kind; see
            :mod:`lmms_eval_emi.scoring.degenerate`. Without them scored or not, they are counted.
    """

    study: Study
    model: str
    splits: dict[str, SplitScores]
    signature: Signature
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    estimator_fit: dict[str, Any] = field(default_factory=lambda: {"verdict": "unknown"})
    inference: Inference = field(default_factory=Inference)
    degenerate: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def unit(self) -> str:
        """Unit of EMI and EMID."""
        return str(self.estimator_fit.get("unit", "nats"))

    @property
    def unfit(self) -> set[str]:
        """Splits that the estimator is not fit for."""
        return {*self.estimator_fit.get("far_splits", ()), *self.estimator_fit.get("doubtful_splits", ())}

    def summary(self, modality: str | None = None) -> Summary:
        """Means and correlation over all shifts, or those of one modality."""
        return Summary.of(
            (one.emi.value, one.emid.value, one.bound.value)
            for one in self._shifts(modality).values()
            if one.emid and one.bound
        )

    def _shifts(self, modality: str | None = None) -> dict[str, SplitScores]:
        return {
            name: scores
            for name in self.study.shifts(modality)
            if (scores := self.splits.get(name)) is not None and scores.emid and scores.bound
        }

    def mean_emid(self, modality: str | None = None) -> Jackknife | None:
        """Mean EMID over the shifts, with and without each image; ``None`` without shifts."""
        parts = [one.emid.jackknife for one in self._shifts(modality).values() if one.emid]
        return combine(lambda values: math.fsum(values) / len(values), parts) if parts else None

    def correlation(self, measure: str = "pearson_r", modality: str | None = None) -> Correlation | None:
        """Correlation of EMID and index over the shifts; ``None`` for fewer than 8.

        Args:
            measure: ``pearson_r``, ``spearman_r`` or ``kendall_tau``.
            modality: of the shifts; default: all.
        """
        return self._correlations(MEASURES if modality is None else [measure], self._shifts(modality)).get(measure)

    def _correlations(self, measures: Iterable[str], shifts: Mapping[str, SplitScores]) -> dict[str, Correlation]:
        """By measure; the table, the JSON and a report ask for the same."""
        key = (tuple(measures), tuple(shifts))
        if key not in self._known:
            emids = [one.emid.jackknife for one in shifts.values() if one.emid]
            indices = [one.bound.jackknife for one in shifts.values() if one.bound]
            draws = CHEAP_DRAWS if self.inference.resamples else 0
            self._known[key] = correlations(key[0], emids, indices, draws, self.inference.seed)
        return self._known[key]

    def correlations_within(self) -> dict[str, tuple[int, Correlation]]:
        """Pearson's r within groups of shifts of one kind, with the number of shifts; groups of fewer than 8 are left out.

        The r over all shifts may be one contrast, such as two sets of images, and no relation within them.
        """
        groups: dict[str, dict[str, SplitScores]] = {}
        for name, scores in self._shifts().items():
            shifts = {shift.modality: shift.name for shift in self.study.splits[name].shifts}
            for modality in ("visual", "text"):
                kinds = [f"{modality} {shifts[modality]}", f"{modality} shifted"] if modality in shifts else []
                for kind in kinds or [f"{modality} unshifted"]:
                    groups.setdefault(kind, {})[name] = scores
        total = len(self._shifts())
        found = {}
        for kind, members in sorted(groups.items()):
            correlation = self._correlations(["pearson_r"], members).get("pearson_r") if len(members) < total else None
            if correlation is not None:
                found[kind] = (len(members), correlation)
        return found

    def operator_interval(self) -> tuple[float, float] | None:
        """Interval of Pearson's r over operators, where visual and textual shifts are crossed."""
        cells = {}
        for name, scores in self._shifts().items():
            kinds = {
                modality: " + ".join(str(one) for one in self.study.splits[name].shifts if one.modality == modality)
                for modality in ("visual", "text")
            }
            if scores.emid and scores.bound:
                cells[kinds["visual"], kinds["text"]] = (scores.emid.value, scores.bound.value)
        draws = CHEAP_DRAWS if self.inference.resamples else 0
        if "operators" not in self._known:
            self._known["operators"] = operator_interval(cells, draws, self.inference.seed) if draws else None
        return self._known["operators"]

    def count_verdicts(self, modality: str | None = None) -> dict[str, int]:
        """How many shifts were lost, gained, held and undecided."""
        verdicts = [one.verdict for one in self._shifts(modality).values()]
        return {name: verdicts.count(name) for name in VERDICTS}

    def to_dict(self) -> dict[str, Any]:
        """As written to JSON: plain types, no NaN."""
        overall = self.summary()
        return {
            "format_version": FORMAT_VERSION,
            "signature": str(self.signature),
            "model": self.model,
            "shift": self.study.name,
            "title": self.study.title,
            "id_split": self.study.id_split,
            "study": self.study.model_dump(mode="json", exclude={"source"}, exclude_defaults=True),
            "unit": self.unit,
            "settings": dict(self.signature.parts),
            "splits": {
                name: {
                    "modality": self.study.splits[name].modality,
                    "shifts": [shift.model_dump(exclude_none=True) for shift in self.study.splits[name].shifts],
                    **({"variant_of": of} if (of := self.study.splits[name].variant_of) else {}),
                    **scores.to_dict(),
                    **({"degenerate": dict(self.degenerate[name])} if name in self.degenerate else {}),
                }
                for name, scores in self.splits.items()
            },
            "summary": {
                **vars(overall),
                **self._summary_errors(),
                "by_modality": {
                    modality: {**vars(self.summary(modality)), **self._mean_errors(modality)}
                    for modality in SHIFT_MODALITIES
                },
            },
            "left_out": self.left_out,
            "notes": self.notes,
            "estimator_fit": self.estimator_fit,
        }

    def _mean_errors(self, modality: str | None = None) -> dict[str, Any]:
        found = self.mean_emid(modality)
        return {
            "mean_emid_stderr": found.stderr if found else None,
            "mean_emid_ci95": _pair(found.ci95) if found else None,
            "verdicts": self.count_verdicts(modality),
        }

    def _summary_errors(self) -> dict[str, Any]:
        found: dict[str, Any] = self._mean_errors()
        for measure in MEASURES:
            correlation = self.correlation(measure)
            if measure != "pearson_r":
                found[measure] = correlation.value if correlation else None
            found[f"{measure}_ci95"] = _pair(correlation.ci95) if correlation else None
        return {
            **found,
            "pearson_r_operators_ci95": _pair(self.operator_interval()),
            "pearson_r_within": {
                kind: {"n_shifts": count, "pearson_r": one.value, "pearson_r_ci95": _pair(one.ci95)}
                for kind, (count, one) in self.correlations_within().items()
            },
            "n_differ": sum(one.differs for one in self._shifts().values()),
            "adjust": self.inference.adjust,
            "margin": self.inference.held_within(self.unit),
        }

    def write(self, path: str | Path) -> Path:
        """Write the results as JSON, all of it or nothing."""
        return write_atomically(Path(path), to_json(self.to_dict()))


def score_study(
    study: Study,
    embeddings: Mapping[str, Embeddings],
    estimator: MutualInformationEstimator,
    *,
    model: str,
    convention: str = "published",
    entropy: float | None = None,
    left_out: Mapping[str, list[str]] | None = None,
    notes: Mapping[str, list[str]] | None = None,
    lost: Mapping[str, set] | None = None,
    inference: Inference | None = None,
    degenerate: Mapping[str, Mapping[str, int]] | None = None,
    without_degenerate: bool = False,
) -> StudyResult:
    """Score the splits of a study that have embeddings.

    Args:
        study: which split is in distribution, and what shifts the others.
        embeddings: by split; without those of the ID split no EMID and no index can be given.
        estimator: of mutual information.
        model: whose responses these are.
        convention, entropy: as in :func:`lmms_eval_emi.emid_bound`.
        left_out: what the caller left out already, by split.
        notes: what the caller has to say of a split; see :func:`notes_on_samples`.
        lost: ids of the rows that a split should have and lacks, by split. Where two splits are compared,
            their partners are left out too, so that EMID is over the rows that both have.
        inference: how errors and tests are made.
        degenerate: how many responses of every split are degenerate, by kind.
        without_degenerate: whether the embeddings are without those.

    Returns:
        :class:`StudyResult`. A split that cannot be scored is left out with the reason, and the
        others are scored all the same.

    Raises:
        ValueError: an unknown split, convention or entropy.
    """
    check_convention(convention)
    check_entropy(entropy)
    inference = inference or Inference()
    for name in embeddings:
        study.split(name)
    omitted = {name: list(reasons) for name, reasons in (left_out or {}).items()}
    remarks = {name: list(lines) for name, lines in (notes or {}).items()}
    present = [name for name in study.splits if name in embeddings]
    id_embeddings = embeddings.get(study.id_split)

    scores: dict[str, SplitScores] = {}
    if id_embeddings is not None:
        alike = [own for own in embeddings.values() if own.dimension == id_embeddings.dimension]
        batch_entropies(id_embeddings, [own for own in alike if own is not id_embeddings], convention)
    id_emi: EMI | None = None
    for name in sorted(present, key=lambda name: name != study.id_split):  # the ID split first
        own = embeddings[name]
        try:
            shared = (
                shared_clusters(id_embeddings, own) if id_embeddings is not None and own is not id_embeddings else None
            )
            value = emi(own, estimator, groups=shared)
            scores[name] = SplitScores(value)
            if name == study.id_split:
                id_emi = value
            elif id_emi is not None:
                emid, bound, remark = _compare(
                    study, name, embeddings, lost or {}, id_emi, value, estimator, convention, entropy
                )
                scores[name] = SplitScores(value, emid, bound)
                if remark:
                    remarks.setdefault(name, []).append(remark)
        except InputError as error:
            omitted.setdefault(name, []).append(f"split {name}: {error}")
        if name in scores and isinstance(estimator, Estimator) and (said := estimator.remarks(own)):
            remarks.setdefault(name, [])[:0] = said
    scores = {name: scores[name] for name in present if name in scores}
    return _to_result(
        study,
        model,
        scores,
        estimator,
        {name: embeddings[name] for name in scores},
        omitted,
        remarks,
        convention=convention,
        entropy=entropy,
        inference=inference,
        degenerate=degenerate,
        without_degenerate=without_degenerate,
    )


def _compare(
    study: Study,
    name: str,
    embeddings: Mapping[str, Embeddings],
    lost: Mapping[str, set],
    id_emi: EMI,
    own_emi: EMI,
    estimator: MutualInformationEstimator,
    convention: str,
    entropy: float | None,
) -> tuple[EMID, EMIDBound, str]:
    """EMID and index of a shift over the rows that both splits have, and a remark if that is not all of them."""
    first, second = _without_partners(study, name, embeddings, lost)
    whole = first is embeddings[study.id_split] and second is embeddings[name]
    first_emi = id_emi if first is embeddings[study.id_split] else emi(first, estimator)
    difference = emid_from_emi(first_emi, first, second, estimator, own_emi if second is embeddings[name] else None)
    remark = f"EMID and index compare {second.n} of its rows with {first.n} of {study.id_split}: partners of rows that were left out are left out"
    return difference, emid_bound(first, second, convention, entropy), "" if whole else remark


def score_statistics(
    study: Study,
    statistics: Mapping[str, SplitStatistics],
    estimator: MutualInformationEstimator,
    *,
    model: str,
    convention: str = "published",
    entropy: float | None = None,
    left_out: Mapping[str, list[str]] | None = None,
    inference: Inference | None = None,
) -> StudyResult:
    """Score the splits of a study that were read once; see :mod:`lmms_eval_emi.core.streaming`.

    Args:
        study, estimator, model, convention, entropy, left_out, inference: as in :func:`score_study`.
        statistics: by split; those of shifts with the ID split's partners.

    Returns:
        As :func:`score_study`, without what belongs to single rows, without errors of the index and tests of
        divergences.

    Raises:
        ValueError: as :func:`score_study`.
    """
    check_convention(convention)
    check_entropy(entropy)
    for name in statistics:
        study.split(name)
    omitted = {name: list(reasons) for name, reasons in (left_out or {}).items()}
    id = statistics.get(study.id_split)
    scores = {name: SplitScores(statistics[name].emi) for name in study.splits if name in statistics}
    for name, one in scores.items():
        if id is not None and name != study.id_split:
            try:
                difference = emid_of(id, statistics[name], scores[study.id_split].emi)
                scores[name] = SplitScores(one.emi, difference, bound_of(id, statistics[name], convention, entropy))
            except InputError as error:
                omitted.setdefault(name, []).append(f"split {name}: {error}")
    samples = {name: one.sample for name, one in statistics.items() if one.sample is not None}
    return _to_result(
        study,
        model,
        scores,
        estimator,
        samples,
        omitted,
        {},
        convention=convention,
        entropy=entropy,
        inference=inference or Inference(),
    )


def _to_result(
    study: Study,
    model: str,
    scores: dict[str, SplitScores],
    estimator: MutualInformationEstimator,
    embeddings: Mapping[str, Embeddings],
    omitted: dict[str, list[str]],
    remarks: dict[str, list[str]],
    *,
    convention: str,
    entropy: float | None,
    inference: Inference,
    degenerate: Mapping[str, Mapping[str, int]] | None = None,
    without_degenerate: bool = False,
) -> StudyResult:
    """The result of a study whose splits are scored: signature, tests, remarks and fitness."""
    id_emi = scores[study.id_split].emi if study.id_split in scores else None
    encoders = next((split.encoders for split in embeddings.values()), None)
    kind = "scaled" if entropy is None else f"theorem(entropy={entropy:g})"
    signature = Signature.of(
        "emi-study",
        study=study.name,
        encoders=encoders,
        estimator=estimator.signature,
        convention=convention,
        kind=kind,
        n_id=id_emi.n if id_emi else 0,
        n=sum(one.emi.n for one in scores.values()),
        errors=inference,
        **({"responses": "not degenerate"} if without_degenerate else {}),
    )
    scores = _with_inference(study, scores, inference)
    for name, one in scores.items():
        if one.emi.stderr is None:
            remarks.setdefault(name, []).append(
                f"{one.emi.images} images are too few for an interval: at least {FEWEST_CLUSTERS} are needed"
            )
    counted = {name: dict(kinds) for name, kinds in (degenerate or {}).items() if name in scores}
    for name, kinds in counted.items():
        if kinds:
            listed = ", ".join(f"{count} {KINDS[kind]}" for kind, count in kinds.items())
            remarks.setdefault(name, []).append(
                f"degenerate responses{', left out' if without_degenerate else ''}: {listed}"
            )
    remarks = {name: lines for name, lines in remarks.items() if name in scores}
    return StudyResult(
        study,
        model,
        scores,
        signature,
        omitted,
        remarks,
        fitness(estimator, embeddings, {name: one.emi for name, one in scores.items()}),
        inference,
        counted,
    )


def _with_inference(study: Study, scores: Mapping[str, SplitScores], inference: Inference) -> dict[str, SplitScores]:
    """The scores with tests of their divergences, adjusted p-values and verdicts."""
    shifted = [name for name, one in scores.items() if one.emid and one.bound]
    bounds = {name: bound for name in shifted if (bound := scores[name].bound)}

    tests: dict[str, dict[str, DivergenceTest]] = {}
    with tqdm(bounds.items(), desc="Errors and tests", unit="", leave=False, dynamic_ncols=True, delay=1) as bar:
        for name, bound in bar:
            found = {one: bound.test(one, inference.resamples, inference.seed) for one in EXPONENTS}
            tests[name] = {one: test for one, test in found.items() if test}
            _ = bound.jackknife  # computed here, under the progress bar
    family = [name for name in study.shifts() if name in shifted]
    statistics = [emid.jackknife for name in family if (emid := scores[name].emid)]
    adjusted = dict(zip(family, adjust(statistics, inference.adjust, CHEAP_DRAWS, inference.seed), strict=True))
    completed = {}
    for name, one in scores.items():
        if one.emid is None:
            completed[name] = one
            continue
        # Variants and controls are no members of the family: their p-values stand by themselves.
        p_adjusted = adjusted.get(name, one.emid.p_value)
        called = verdict(one.emid.jackknife, p_adjusted, inference.held_within(one.emi.unit))
        completed[name] = replace(one, tests=tests[name], p_adjusted=p_adjusted, verdict=called)
    return completed


def _without_partners(
    study: Study, name: str, embeddings: Mapping[str, Embeddings], lost: Mapping[str, set]
) -> tuple[Embeddings, Embeddings]:
    """The ID split and a shift without the rows whose partner the other one lost; the same objects where there are none."""

    def without(split: str, keys: set) -> Embeddings:
        own = embeddings[split]
        if not keys or own.ids is None:
            return own
        rows = [row for row, key in enumerate(own.ids) if key not in keys]
        return own if len(rows) == own.n else own.select(rows)

    return without(study.id_split, lost.get(name, set())), without(name, lost.get(study.id_split, set()))


def notes_on_samples(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[str]]:
    """What may mislead in the scores of splits with these samples: one row alone."""
    notes: dict[str, list[str]] = {}
    for name, rows in samples.items():
        if len(rows) == 1:
            notes.setdefault(name, []).append("it has one row, for which EMI is 0 whatever the response")
    return notes
