"""A study's figures as a table for a terminal, with what it takes to read it."""

from __future__ import annotations

from tabulate import tabulate

from lmms_eval_emi.studies.catalogue import SHIFT_MODALITIES
from lmms_eval_emi.studies.scoring import StudyResult

DIGITS = ".4g"


def result_to_table(result: StudyResult) -> str:
    """All splits with their figures, the means of every modality, and a legend."""
    study = result.study
    rows: list[list[object]] = []
    for modality in ("id", *SHIFT_MODALITIES):
        for name, split in study.splits.items():
            if split.modality == modality and name in result.splits:
                figures = result.splits[name]
                rows.append(
                    [
                        name,
                        modality,
                        figures.emi.n,
                        figures.emi.value,
                        *(
                            (figures.emid.value, figures.bound.value)
                            if figures.emid and figures.bound
                            else (None, None)
                        ),
                    ]
                )
    table = tabulate(
        rows,
        headers=["split", "shift", "n", "EMI", "EMID", "bound"],
        floatfmt=DIGITS,
        missingval="-",
        disable_numparse=[0, 1],
    )
    return "\n\n".join((f"{study.title}\nmodel: {result.model}", table, summary_to_table(result), legend(result)))


def summary_to_table(result: StudyResult) -> str:
    """Means over the shifts of each modality, and Pearson's r between EMID and bound."""
    rows = []
    for label, modality in (*((modality, modality) for modality in SHIFT_MODALITIES), ("all", None)):
        summary = result.summary(modality)
        if summary.n_shifts:
            rows.append(
                [label, summary.n_shifts, summary.mean_emi, summary.mean_emid, summary.mean_bound, summary.pearson_r]
            )
    if len(rows) == 2:  # one modality alone is all
        rows.pop()
    return (
        tabulate(
            rows,
            headers=["shifts", "count", "mean EMI", "mean EMID", "mean bound", "Pearson r"],
            floatfmt=DIGITS,
            missingval="-",
            disable_numparse=[0],
        )
        if rows
        else "No shift was scored."
    )


def legend(result: StudyResult) -> str:
    """What the columns mean, in nats and with their sign, and the signature."""
    guarantee = (
        "an index that goes with EMID, no guarantee"
        if "kind:scaled" in str(result.signature)
        else "the theorem's bound on EMID"
    )
    return "\n".join(
        (
            "EMI    I(input; response) - I(input; reference), in nats; higher is better",
            f"EMID   EMI({result.study.id_split}) - EMI(split); positive: the model lost relevance under the shift",
            f"bound  of EMID from the RJSD of images, questions and responses; {guarantee}",
            "r      Pearson's correlation of EMID and bound over the shifts",
            f"signature  {result.signature}",
        )
    )
