"""Results of a study: EMI of each split, EMID and index of each shift, their summary, and their JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.core.divergence import EMIDBound, check_convention, check_entropy, emid_bound
from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.information import EMI, EMID, MutualInformationEstimator, emi, emid_from_emi
from lmms_eval_emi.core.signature import Signature
from lmms_eval_emi.estimators.fitness import fitness
from lmms_eval_emi.files import to_json, write_atomically
from lmms_eval_emi.samples import Sample
from lmms_eval_emi.studies.schema import SHIFT_MODALITIES, Study

FORMAT_VERSION = 1  # of the JSON; a reader refuses a greater one


@dataclass(frozen=True)
class SplitScores:
    """Scores of one split; ``emid`` and ``bound`` are those of its shift, and ``None`` for the ID split."""

    emi: EMI
    emid: EMID | None = None
    bound: EMIDBound | None = None

    def to_dict(self) -> dict[str, Any]:
        """As written to JSON; what is not known is left out."""
        scores: dict[str, Any] = {
            "n": self.emi.n,
            "emi": self.emi.value,
            "mi_response": self.emi.mi_response,
            "mi_reference": self.emi.mi_reference,
        }
        if self.emid is not None and self.bound is not None:
            scores |= {"emid": self.emid.value, "emid_bound": self.bound.value}
            scores |= {name: getattr(self.bound, name) for name in EXPONENTS}
        return scores


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
        return cls(len(emis), mean(emis), mean(emids), mean(bounds), pearson_r(emids, bounds))


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, or ``None`` of nothing."""
    return math.fsum(values) / len(values) if values else None


def pearson_r(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation, or ``None`` for fewer than three pairs or a constant."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return statistics.correlation(a, b)


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
    """

    study: Study
    model: str
    splits: dict[str, SplitScores]
    signature: Signature
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    estimator_fit: dict[str, Any] = field(default_factory=lambda: {"verdict": "unknown"})

    def summary(self, modality: str | None = None) -> Summary:
        """Means and correlation over all shifts, or those of one modality."""
        scored = [self.splits[name] for name in self.study.shifts(modality) if name in self.splits]
        return Summary.of((one.emi.value, one.emid.value, one.bound.value) for one in scored if one.emid and one.bound)

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
            "settings": dict(self.signature.parts),
            "splits": {
                name: {
                    "modality": self.study.splits[name].modality,
                    "shifts": [shift.model_dump(exclude_none=True) for shift in self.study.splits[name].shifts],
                    **({"variant_of": of} if (of := self.study.splits[name].variant_of) else {}),
                    **scores.to_dict(),
                }
                for name, scores in self.splits.items()
            },
            "summary": {
                **vars(overall),
                "by_modality": {modality: vars(self.summary(modality)) for modality in SHIFT_MODALITIES},
            },
            "left_out": self.left_out,
            "notes": self.notes,
            "estimator_fit": self.estimator_fit,
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

    Returns:
        :class:`StudyResult`. A split that cannot be scored is left out with the reason, and the
        others are scored all the same.

    Raises:
        ValueError: an unknown split, convention or entropy.
    """
    check_convention(convention)
    check_entropy(entropy)
    for name in embeddings:
        study.split(name)
    omitted = {name: list(reasons) for name, reasons in (left_out or {}).items()}
    remarks = {name: list(lines) for name, lines in (notes or {}).items()}
    emis: dict[str, EMI] = {}
    for name in study.splits:
        if name in embeddings:
            try:
                emis[name] = emi(embeddings[name], estimator)
            except ValueError as error:
                omitted.setdefault(name, []).append(str(error))
    scores: dict[str, SplitScores] = {}
    id_emi, id_embeddings = emis.get(study.id_split), embeddings.get(study.id_split)
    encoders = next((split.encoders for split in embeddings.values()), None)
    for name, value in emis.items():
        scores[name] = SplitScores(value)
        if name == study.id_split or id_emi is None or id_embeddings is None:
            continue
        try:
            first, second = _without_partners(study, name, embeddings, lost or {})
            first_emi = id_emi if first is id_embeddings else emi(first, estimator)
            difference = emid_from_emi(first_emi, first, second, estimator)
            bound = emid_bound(first, second, convention, entropy)
        except ValueError as error:
            omitted.setdefault(name, []).append(str(error))
            continue
        if first is not id_embeddings or second is not embeddings[name]:
            remarks.setdefault(name, []).append(
                f"EMID and index compare {second.n} of its rows with {first.n} of {study.id_split}: partners of rows that were left out are left out"
            )
        scores[name] = SplitScores(value, difference, bound)
    kind = "scaled" if entropy is None else f"theorem(entropy={entropy:g})"
    signature = Signature.of(
        "emi-study",
        study=study.name,
        encoders=encoders,
        estimator=estimator.signature,
        convention=convention,
        kind=kind,
        n_id=id_emi.n if id_emi else 0,
        n=sum(value.n for value in emis.values()),
    )
    remarks = {name: lines for name, lines in remarks.items() if name in scores}
    scored = {name: embeddings[name] for name in scores}
    return StudyResult(study, model, scores, signature, omitted, remarks, fitness(estimator, scored))


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
    """What may mislead in the scores of splits with these samples: empty responses, and one row alone."""
    notes: dict[str, list[str]] = {}
    for name, rows in samples.items():
        empty = sum(not row.response.strip() for row in rows)
        if empty:
            notes.setdefault(name, []).append(f"{empty} of {len(rows)} responses are empty")
        if len(rows) == 1:
            notes.setdefault(name, []).append("it has one row, for which EMI is 0 whatever the response")
    return notes
