"""From the embeddings of a study's splits to its figures: EMI of each split, EMID and bound of each shift."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval_emi.core.divergence import EMIDBound, check_convention, check_entropy, emid_bound
from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.information import EMI, EMID, MutualInformationEstimator, emi, emid_from_emis
from lmms_eval_emi.core.signature import Signature
from lmms_eval_emi.estimators.fitness import fitness
from lmms_eval_emi.files import write_atomically
from lmms_eval_emi.samples import Sample
from lmms_eval_emi.studies.catalogue import SHIFT_MODALITIES, Study


@dataclass(frozen=True)
class SplitFigures:
    """Figures of one split; ``emid`` and ``bound`` are those of its shift, and ``None`` for the ID split."""

    emi: EMI
    emid: EMID | None = None
    bound: EMIDBound | None = None

    def to_dict(self) -> dict[str, Any]:
        """As written to JSON; what is not known is left out."""
        figures: dict[str, Any] = {
            "n": self.emi.n,
            "emi": self.emi.value,
            "mi_response": self.emi.mi_response,
            "mi_reference": self.emi.mi_reference,
        }
        if self.emid is not None and self.bound is not None:
            figures |= {"emid": self.emid.value, "emid_bound": self.bound.value}
            figures |= {
                name: getattr(self.bound, name) for name in ("jsd_v", "jsd_t", "jsd_id_response", "jsd_ood_response")
            }
        return figures


@dataclass(frozen=True)
class Summary:
    """Means over some shifts, and how the bound goes with EMID over them; ``None`` where not defined."""

    n_shifts: int
    mean_emi: float | None
    mean_emid: float | None
    mean_bound: float | None
    pearson_r: float | None

    @classmethod
    def of(cls, figures: Iterable[SplitFigures]) -> Summary:
        """Summarise the figures of shifts; those whose EMID is not known do not count."""
        shifts = [
            (split.emi.value, split.emid.value, split.bound.value) for split in figures if split.emid and split.bound
        ]
        emis, emids, bounds = ([shift[column] for shift in shifts] for column in range(3))
        return cls(len(shifts), mean(emis), mean(emids), mean(bounds), pearson_r(emids, bounds))


def mean(values: list[float]) -> float | None:
    """Arithmetic mean, or ``None`` of nothing."""
    return math.fsum(values) / len(values) if values else None


def pearson_r(a: list[float], b: list[float]) -> float | None:
    """Pearson's correlation, or ``None`` for fewer than three pairs or a constant."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return statistics.correlation(a, b)


@dataclass(frozen=True)
class StudyResult:
    """All figures of one model in one study.

    Attributes:
        study: what was scored.
        model: whose answers.
        splits: figures by split, in the study's order.
        signature: what the figures depend on.
        left_out: what could not be scored, by split, with the reasons.
        notes: what a reader should know of a split, such as how many of its answers are empty.
        estimator_fit: whether the estimator is fit for these data; see
            :func:`lmms_eval_emi.estimators.fitness.fitness`.
    """

    study: Study
    model: str
    splits: dict[str, SplitFigures]
    signature: Signature
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    estimator_fit: dict[str, Any] = field(default_factory=lambda: {"verdict": "unknown"})

    def summary(self, modality: str | None = None) -> Summary:
        """Means and correlation over all shifts, or those of one modality."""
        return Summary.of(self.splits[name] for name in self.study.shifts(modality) if name in self.splits)

    def to_dict(self) -> dict[str, Any]:
        """As written to JSON: plain types, no NaN."""
        overall = self.summary()
        return {
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
                    **figures.to_dict(),
                }
                for name, figures in self.splits.items()
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
        """Write the figures as JSON, all of it or nothing."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        return write_atomically(Path(path), text + "\n")


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
) -> StudyResult:
    """Score the splits of a study that have embeddings.

    Args:
        study: which split is in distribution, and what shifts the others.
        embeddings: by split; without those of the ID split no EMID and no bound can be given.
        estimator: of mutual information.
        model: whose answers these are.
        convention, entropy: as in :func:`lmms_eval_emi.emid_bound`.
        left_out: what the caller left out already, by split.
        notes: what the caller has to say of a split; see :func:`notes_on_samples`.

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
    emis: dict[str, EMI] = {}
    for name in study.splits:
        if name in embeddings:
            try:
                emis[name] = emi(embeddings[name], estimator)
            except ValueError as error:
                omitted.setdefault(name, []).append(str(error))
    figures: dict[str, SplitFigures] = {}
    id_emi, id_embeddings = emis.get(study.id_split), embeddings.get(study.id_split)
    encoders = next((split.encoders for split in embeddings.values()), None)
    for name, value in emis.items():
        figures[name] = SplitFigures(value)
        if name == study.id_split or id_emi is None or id_embeddings is None:
            continue
        try:
            bound = emid_bound(id_embeddings, embeddings[name], convention, entropy)
        except ValueError as error:
            omitted.setdefault(name, []).append(str(error))
            continue
        difference = emid_from_emis(id_emi, value, encoders=encoders, estimator=estimator)
        figures[name] = SplitFigures(value, difference, bound)
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
    remarks = {name: list(lines) for name, lines in (notes or {}).items() if name in figures}
    scored = {name: embeddings[name] for name in figures}
    return StudyResult(study, model, figures, signature, omitted, remarks, fitness(estimator, scored))


def notes_on_samples(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[str]]:
    """What may mislead in the figures of splits with these samples: empty answers, and one row alone."""
    notes: dict[str, list[str]] = {}
    for name, rows in samples.items():
        empty = sum(not row.response.strip() for row in rows)
        if empty:
            notes.setdefault(name, []).append(f"{empty} of {len(rows)} answers are empty")
        if len(rows) == 1:
            notes.setdefault(name, []).append("it has one row, of which EMI is 0 whatever the answer")
    return notes
