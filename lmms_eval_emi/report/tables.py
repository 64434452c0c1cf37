"""All results as one table in Markdown, CSV or LaTeX; for a paper, EMID of each group of shifts with the models side by side."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.report.finding import decimals_of, numeral, short_name
from lmms_eval_emi.report.reading import GroupMean, ReportedResult
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
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
MODALITIES = {"visual": "Visual shifts", "text": "Textual shifts", "joint": "Joint shifts"}


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


def to_latex(results: Sequence[ReportedResult]) -> str:
    """Return a table for each study, with a line for each group of shifts; it needs the package booktabs."""
    studies = dict.fromkeys(result.shift for result in results)
    return "\n".join(_table([result for result in results if result.shift == study]) for study in studies)


def escape(text: str) -> str:
    """Return a text that LaTeX prints unchanged, in one line."""
    plain = "".join(" " if unicodedata.category(letter)[0] == "C" else letter for letter in text)
    return "".join(SPECIAL.get(letter, letter) for letter in plain)


def _comment(text: str) -> str:
    """Return a text in one line, for a comment."""
    return "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)


def _table(results: Sequence[ReportedResult]) -> str:
    decimals = decimals_of(results)
    known = [{(group.modality, group.label): group for group in result.groups} for result in results]
    order = list(dict.fromkeys(key for cells in known for key in cells))
    models = " & ".join(escape(short_name(result.label)) for result in results)
    columns = "lr" + "r" * len(results)
    signatures = dict.fromkeys(
        f"% {_comment(short_name(result.label))}: {_comment(result.signature)}" for result in results
    )
    lines = [*signatures, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf"Shift & splits & {models} \\"]
    for modality, title in MODALITIES.items():
        keys = [key for key in order if key[0] == modality]
        if keys:
            lines += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{title}}}}} \\"]
        lines += [_line(key, [column.get(key) for column in known], decimals) for key in keys]
    means = [result.mean for result in results]
    if any(means):
        count = max(mean.splits for mean in means if mean)
        lines += [r"\midrule", rf"All shifts & {count} & {' & '.join(_cells(means, decimals))} \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _line(key: tuple[str, str], cells: Sequence[GroupMean | None], decimals: int) -> str:
    count = max(cell.splits for cell in cells if cell)
    return rf"{escape(key[1])} & {count} & {' & '.join(_cells(cells, decimals))} \\"


def _cells(cells: Sequence[GroupMean | None], decimals: int) -> list[str]:
    """Return values with their intervals; the smallest loss of several is bold."""
    values = [cell.emid for cell in cells if cell]
    best = min(values) if len(values) > 1 else None
    shown = []
    for cell in cells:
        if cell is None:
            shown.append("--")
            continue
        value = _math(cell.emid, decimals)
        value = rf"\textbf{{{value}}}" if best is not None and cell.emid == best else value
        low_high = f" [{_math(cell.ci95[0], decimals)}, {_math(cell.ci95[1], decimals)}]" if cell.ci95 else ""
        shown.append(value + low_high)
    return shown


def _math(value: float, decimals: int) -> str:
    return numeral(value, decimals).replace("−", "$-$")
