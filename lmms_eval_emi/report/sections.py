"""Sections of the page about results of other commands, such as agreements with another score and audits of estimators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.study import BUILT_IN, BUNDLED, load_study
from lmms_eval_emi.report.finding import numeral, short_name, short_splits
from lmms_eval_emi.report.plots import plot_points
from lmms_eval_emi.scoring.agreement import Agreement
from lmms_eval_emi.scoring.audit import AuditDocument, Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = {"pearson_r": "Pearson", "spearman_r": "Spearman", "kendall_tau": "Kendall"}
MOST_ROWS = 1000  # rows of the largest table in the page
AUDIT = (
    "EMI of responses that are made from the references with one known fault each. The references themselves have 0. "
    "* differs from that: the interval of 95 % leaves 0 out. A fault that an estimator misses here, it misses in a model as well."
)


@dataclass(frozen=True)
class Section:
    """A section of tables that any command can add to the page.

    Attributes:
        title: heading.
        contents: its entry in the table of contents.
        intro: first paragraph.
        sentences: findings.
        headers, rows: the table; rows as of :func:`table_row`.
        caption: description of the table for screen readers.
        notes: small print below the table.
        figure: drawn above the table, with ``caption`` as its text alternative.
    """

    title: str
    contents: str
    intro: str
    sentences: list[str]
    headers: list[str]
    rows: list[dict[str, Any]]
    caption: str
    notes: list[str]
    figure: Axes | None = None


def study_title(study: str) -> str:
    """Return the title of a study that the package has, or its name."""
    return load_study(study).title if study in (*BUILT_IN, *BUNDLED) else study


def table_row(cells: Sequence[Any], split: str = "", image: int | None = None) -> dict[str, Any]:
    """Return a row of a table of the page.

    Args:
        cells: what is shown, or a pair of that and the value that it sorts by.
        split: split that the row is about.
        image: number of an image beside its name.
    """
    made = [
        {"shown": "–" if cell is None else cell, "value": cell if isinstance(cell, int | float) else None}
        if not isinstance(cell, tuple)
        else {"shown": cell[0], "value": cell[1]}
        for cell in cells
    ]
    return {"cells": made, "split": split, "image": image}


def number_cell(value: float | None, decimals: int) -> tuple[str, float | None] | int:
    """Return a number as it is shown, and as it sorts."""
    return value if isinstance(value, int) else (numeral(value, decimals), value)


def agreement_context(found: Agreement, place: int) -> tuple[dict[str, Any], Axes]:
    """Return the template's variables for an agreement, and the figure of its splits.

    Args:
        found: the agreement of one model's scores with another score.
        place: number of the agreement in the page.
    """
    names = {"emi": "EMI", "emid": "EMID", "index": "index", "cosine": "cosine", "lead": "lead over the cosine"}
    rows = [
        table_row([names.get(what, what), target, *(str(correlation.get(measure) or "–") for measure in MEASURES)])
        for target, known in ((found.score, found.over_splits), (f"loss of {found.score}", found.over_shifts))
        for what, correlation in known.items()
        if any(correlation.values())
    ]
    short = short_splits([point.split for point in found.points])
    lost = [point for point in found.points if point.loss is not None and point.emid is not None]
    across, upwards = (f"loss of {found.score}", "EMID") if lost else (found.score, "EMI")
    known = [
        (point.split, *((point.loss, point.emid) if lost else (point.score, point.emi)))
        for point in (lost or found.points)[:MOST_ROWS]
    ]
    ax = plot_points([(name, x, y) for name, x, y in known if x is not None and y is not None], across, upwards)
    headers = ["split", found.score, "its loss", "EMI", "EMID", "index", "cosine"]
    context = {
        "id": f"agreement-{place}",
        "score": found.score,
        "title": f"{short_name(found.model)}, {study_title(found.study)}: {found.score}",
        "headers": ["what", "with", *MEASURES.values()],
        "rows": rows,
        "sentences": found.findings,
        "scatter": {"caption": f"{upwards} against {across}; each point is a split."},
        "points": {
            "headers": headers,
            "rows": [
                table_row(
                    [
                        short[p.split],
                        *(number_cell(number, 4) for number in (p.score, p.loss, p.emi, p.emid, p.index, p.cosine)),
                    ],
                    split=p.split,
                )
                for p in found.points[:MOST_ROWS]
            ],
        },
    }
    return context, ax


def audit_section(audit: AuditDocument) -> Section:
    """Return a table of responders by estimator, with a sentence on the faults that each estimator misses."""
    names = list(dict.fromkeys(name for found_by in audit.findings for name in found_by.responders))
    encoders = list(dict.fromkeys(finding.encoders for finding in audit.findings))
    headers = ["responder"]
    sentences = []
    for finding in audit.findings:
        label = finding.estimator + (f", encoders {encoders.index(finding.encoders) + 1}" if len(encoders) > 1 else "")
        headers.append(f"EMI ± SE, {label}")
        missed = f"does not notice {_listed(finding.not_noticed)}" if finding.not_noticed else "notices all of them"
        preferred = f", and prefers {_listed(finding.preferred)} to the references" if finding.preferred else ""
        unreliable = "".join(f"; it {mark}" for mark in (finding.reliability.marks if finding.reliability else ()))
        sentences.append(f"{label} ({finding.unit}) {missed}{preferred}{unreliable}.")
    rows = [table_row([name, *(_audit_cell(finding, name) for finding in audit.findings)]) for name in names]
    return Section(
        title=f"Estimators on known faults: {study_title(audit.study)}, split {audit.split}",
        contents="Estimators on known faults",
        intro=AUDIT,
        sentences=sentences,
        headers=headers,
        rows=rows,
        caption="EMI of responses with known faults",
        notes=[
            f"Encoders{f' {number}' if len(encoders) > 1 else ''}: {name}" for number, name in enumerate(encoders, 1)
        ],
    )


def _audit_cell(finding: Finding, name: str) -> str:
    responder = finding.responders.get(name)
    if responder is None:
        return "–"
    error = "" if responder.emi_stderr is None else f" ± {responder.emi_stderr:.2g}"
    return f"{responder.emi:.3f}{error}{'*' if responder.told_from_references else ''}"


def _listed(names: Sequence[str]) -> str:
    quoted = [f"“{name}”" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
