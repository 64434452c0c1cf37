"""All results as one table in Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.report.latex import to_latex
from lmms_eval_emi.report.reading import ReportedResult
from lmms_eval_emi.scoring.table import extra_columns, measures_of

COLUMNS = {
    "name": "shift",
    "modality": "modality",
    "n": "n",
    "images": "images",
    "emi": "EMI",
    "emi_stderr": "EMI SE",
    "emid": "EMID",
    "emid_stderr": "EMID SE",
    "emid_p_adjusted": "EMID p",
    "verdict": "verdict",
    "emid_share": "EMID share",
    "emid_bound": "index",
    **dict(zip(EXPONENTS, ("JSD images", "JSD questions", "JSD resp. ID", "JSD resp. shift"), strict=True)),
}


def to_text(results: Sequence[ReportedResult], format: str, *, full: bool = False) -> str:
    """Return all results as one table.

    Args:
        results: results to show.
        format: ``md``, ``csv`` or ``latex``. CSV has all digits and the signatures.
        full: whether LaTeX has a row for each split, instead of one for each group of shifts.
    """
    if format == "latex" and not full:
        return to_latex(results)
    columns = {**COLUMNS, **extra_columns()}
    measures = list(dict.fromkeys(kind for result in results for kind in measures_of(result)))
    headers = ["study", "model", *columns.values(), *(f"EMID {kind}" for kind in measures)]
    rows = [
        [
            result.shift,
            result.label,
            *(getattr(split, name) for name in columns),
            *(split.beside[kind].emid if kind in split.beside else None for kind in measures),
        ]
        for result in results
        for split in result.splits.values()
    ]
    if format == "csv":
        signatures = [result.signature for result in results for _ in result.splits]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*headers, "signature"])
        for row, signature in zip(rows, signatures, strict=True):
            writer.writerow(["" if cell is None else _no_formula(cell) for cell in [*row, signature]])
        return buffer.getvalue()
    if format == "md":
        rows = [[_markdown(cell) for cell in row] for row in rows]
    style = {"md": "pipe", "latex": "latex_booktabs"}[format]
    table = rows or [[None] * len(headers)]
    return (
        tabulate(table, headers=headers, tablefmt=style, floatfmt=".4g", missingval="", disable_numparse=[0, 1, 2, 3])
        + "\n"
    )


def _no_formula(cell: Any) -> Any:
    """Return a text that no spreadsheet takes for a formula, whatever blanks or wide letters it begins with."""
    if not isinstance(cell, str):
        return cell
    begins = "".join(
        letter for letter in unicodedata.normalize("NFKC", cell[:50]) if unicodedata.category(letter)[0] not in "ZC"
    )
    return f"'{cell}" if begins[:1] in tuple("=+-@") or cell[:1] in tuple("\t\r\n") else cell


def _markdown(cell: Any) -> Any:
    """Return a text that Markdown shows as it is: in one line, without markup, links, images or HTML."""
    if not isinstance(cell, str):
        return cell
    plain = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in cell)
    escaped = re.sub(r"([\\`\[\]|])", r"\\\1", plain)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
