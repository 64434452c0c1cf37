"""A table for a paper: EMID of each group of shifts with its interval, the models side by side, the best in bold."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from lmms_eval_emi.report.finding import decimals_of, numeral, short_name
from lmms_eval_emi.report.reading import GroupMean, ReportedResult

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
MODALITIES = {"visual": "Visual shifts", "text": "Textual shifts", "joint": "Joint shifts"}


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
