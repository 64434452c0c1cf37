"""Plots of results. Every function takes an ``ax`` to draw on, or makes one, and returns it.

Colours are those of Okabe & Ito, which colour-blind people tell apart; modalities differ in their
markers as well, so that a print in grey is legible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.report.reading import JSDS, ReportedResult, ReportedSplit
from lmms_eval_emi.util.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODALITY = {"visual": ("#0072B2", "o"), "text": ("#D55E00", "s"), "joint": ("#009E73", "^")}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
PARTS = {
    "jsd_v": ("images", "#0072B2", ""),
    "jsd_t": ("questions", "#E69F00", "//"),
    "jsd_id_response": ("responses, ID", "#999999", ".."),
    "jsd_ood_response": ("responses, shift", "#009E73", "xx"),
}


MOST_SHIFTS = 100  # that a plot with a line for each shows: those that lost most
MOST_SERIES = 12  # of a plot of severities
MOST_CELLS = 600  # of a heat map
MOST_NAMED = 60  # points of a scatter that are named


def _most_lost(shifts: Sequence[ReportedSplit]) -> tuple[list[ReportedSplit], str]:
    """The shifts that a plot shows, least lost first, and what its title adds where these are not all."""
    ranked = sorted(shifts, key=lambda split: split.emid or 0.0)
    kept = ranked[-MOST_SHIFTS:]
    return kept, "" if len(kept) == len(ranked) else f", the {len(kept)} of {len(ranked):,} that lost most"


def _text(name: str, most: int = 60) -> str:
    """A name from data as plain text of bearable length: no mathematics, and never hidden from a legend."""
    shown = name if len(name) <= most else f"{name[: most - 3]}..."
    shown = shown.replace("\\", "/").replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _axes(ax: Axes | None, width: float = 6.4, height: float = 4.2) -> Axes:
    if ax is not None:
        return ax
    with extra("report"):
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def plot_emid_against_bound(result: ReportedResult, ax: Axes | None = None) -> Axes:
    """EMID of every shift against its index, with the least-squares line and Pearson's r."""
    ax = _axes(ax)
    for modality, (colour, marker) in MODALITY.items():
        points = [split for split in result.shifts if split.modality == modality]
        if points:
            ax.scatter(
                [split.bound or 0.0 for split in points],
                [split.emid or 0.0 for split in points],
                c=colour,
                marker=marker,
                s=36,
                label=modality,
                edgecolors="white",
                linewidths=0.5,
                zorder=3,
            )
    bounds, emids = (
        np.array([getattr(split, name) for split in result.shifts], dtype=float) for name in ("bound", "emid")
    )
    r = result.summary()["Pearson r"]
    if r is not None:
        slope, intercept = np.polyfit(bounds, emids, 1)
        ends = np.array([bounds.min(), bounds.max()])
        ax.plot(ends, slope * ends + intercept, color="#444444", linewidth=1.2, label=f"r = {r:.3f}")
    ax.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    ax.set(xlabel="shift index", ylabel="EMID", title="EMID against the shift index")
    ax.legend(frameon=False, fontsize=9)
    return ax


def plot_emid_ranked(result: ReportedResult, ax: Axes | None = None) -> Axes:
    """Shifts ranked by EMID with their intervals of 95 %; those that differ from 0 are filled."""
    shifts, part = _most_lost(result.shifts)
    ax = _axes(ax, 7.2, 1.4 + 0.24 * len(shifts))
    for row, split in enumerate(shifts):
        colour, marker = MODALITY.get(split.modality, ("#444444", "o"))
        if split.emid_ci95:
            ax.plot(split.emid_ci95, (row, row), color=colour, linewidth=1.6, zorder=2)
        face = colour if split.differs else "white"
        ax.scatter([split.emid or 0.0], [row], marker=marker, s=30, facecolor=face, edgecolor=colour, zorder=3)
    for modality, (colour, marker) in MODALITY.items():
        if any(split.modality == modality for split in shifts):
            ax.scatter([], [], marker=marker, facecolor=colour, edgecolor=colour, label=modality)
    ax.scatter([], [], marker="o", facecolor="white", edgecolor="#444444", label="not told from 0")
    ax.set_yticks(range(len(shifts)), [_text(split.name) for split in shifts], fontsize=8)
    ax.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    ax.set(xlabel="EMID with its interval of 95 %", title=f"Shifts ranked by EMID{part}")
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return ax


def plot_emi_heat_map(result: ReportedResult, ax: Axes | None = None) -> Axes:
    """EMI of every split by its visual (rows) and textual (columns) shift."""
    splits = [one for one in result.splits.values() if one.variant_of is None and one.modality != "control"]
    rows = list(dict.fromkeys(split.label("visual") for split in splits))
    columns = list(dict.fromkeys(split.label("text") for split in splits))
    values = np.full((len(rows), len(columns)), np.nan)
    row_of, column_of = ({label: place for place, label in enumerate(labels)} for labels in (rows, columns))
    for split in splits:
        values[row_of[split.label("visual")], column_of[split.label("text")]] = split.emi
    ax = _axes(ax, 2.6 + 0.95 * len(columns), 1.5 + 0.48 * len(rows))
    image = ax.imshow(values, cmap="cividis", aspect="auto")
    low, high = np.nanmin(values), np.nanmax(values)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = high > low and (value - low) / (high - low) < 0.55
            ax.text(
                column, row, f"{value:.3g}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
    ax.set_xticks(range(len(columns)), list(map(_text, columns)), rotation=30, ha="right", fontsize=9)
    ax.set_yticks(range(len(rows)), list(map(_text, rows)), fontsize=9)
    ax.set(title="EMI by visual and textual shift")
    ax.figure.colorbar(image, ax=ax, shrink=0.9)
    return ax


def severity_series(result: ReportedResult) -> dict[str, list[tuple[int, ReportedSplit]]]:
    """Splits shifted in one way only, by what shifts them, with their severities in order."""
    series: dict[str, list[tuple[int, ReportedSplit]]] = {}
    for split in result.shifts:
        if len(split.shifts) == 1 and split.shifts[0].severity is not None:
            series.setdefault(split.shifts[0].name, []).append((split.shifts[0].severity, split))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in series.items() if len(points) > 1}


def plot_severity(result: ReportedResult, ax: Axes | None = None) -> Axes:
    """EMID of shifts of one kind over their severity."""
    ax = _axes(ax)
    series = severity_series(result)
    steepest = sorted(series, key=lambda name: -abs((series[name][-1][1].emid or 0) - (series[name][0][1].emid or 0)))
    kept = [name for name in series if name in steepest[:MOST_SERIES]]
    part = "" if len(kept) == len(series) else f", the {len(kept)} of {len(series):,} series that change most"
    for number, (name, points) in enumerate((name, series[name]) for name in kept):
        colour = SERIES[number % len(SERIES)]
        ax.plot(
            [severity for severity, _ in points],
            [split.emid or 0.0 for _, split in points],
            color=colour,
            marker="os^Dv"[number % 5],
            label=_text(name.replace("_", " ")),
        )
    ax.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    ax.set(xlabel="severity", ylabel="EMID", title=f"EMID over severity{part}")
    ax.legend(frameon=False, fontsize=9)
    return ax


def plot_divergences(result: ReportedResult, ax: Axes | None = None) -> Axes:
    """The four roots that add up to the scaled index of every shift, stacked."""
    whole = [split for split in result.shifts if split.jsds.keys() >= set(JSDS)]
    kept, part = _most_lost(whole)
    shifts = sorted(kept, key=lambda split: sum(root_of(split, key) for key in JSDS))
    ax = _axes(ax, 7.2, 1.4 + 0.24 * len(shifts))
    left = np.zeros(len(shifts))
    for key, (label, colour, hatch) in PARTS.items():
        width = np.array([root_of(split, key) for split in shifts])
        ax.barh(
            [_text(split.name) for split in shifts],
            width,
            left=left,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
            label=label,
        )
        left += width
    ax.tick_params(axis="y", labelsize=8)
    ax.set(xlabel="root of the divergence", title=f"What moved: the four parts of the shift index{part}")
    ax.margins(y=0.01)
    ax.legend(
        frameon=False,
        fontsize=8,
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.4, -0.55 / (1.4 + 0.24 * len(shifts)) - 0.02),
    )
    return ax


def root_of(split: ReportedSplit, key: str) -> float:
    """The part of the index that a divergence is; one below 0, as the published convention may give, is none."""
    return max(0.0, split.jsds[key]) ** EXPONENTS[key]


def plot_models(results: Sequence[ReportedResult], ax: Axes | None = None) -> Axes:
    """EMID of every shift, the models side by side."""
    most = {split.name for result in results for split in _most_lost(result.shifts)[0]}
    names = [
        name for name in dict.fromkeys(split.name for result in results for split in result.shifts) if name in most
    ]
    ax = _axes(ax, 7.2, 1.4 + 0.26 * len(names))
    for number, result in enumerate(results):
        known: dict[str, Any] = {split.name: split.emid for split in result.shifts}
        shown = [(known[name], row) for row, name in enumerate(names) if name in known]
        if shown:
            ax.scatter(
                [value for value, _ in shown],
                [row for _, row in shown],
                color=SERIES[number % len(SERIES)],
                marker="os^Dv"[number % 5],
                s=26,
                label=_text(result.label),
                zorder=3,
            )
    ax.set_yticks(range(len(names)), list(map(_text, names)), fontsize=8)
    ax.invert_yaxis()
    ax.grid(axis="y", color="#eeeeee", linewidth=0.8)
    ax.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    ax.set(xlabel="EMID", title="EMID of every shift, model by model")
    ax.legend(
        frameon=False,
        fontsize=8,
        loc="upper center",
        ncols=1,
        bbox_to_anchor=(0.4, -0.55 / (1.4 + 0.26 * len(names)) - 0.02),
    )
    return ax


def _short_names(names: Sequence[str]) -> list[str]:
    """Names without the words, up to underscores, that all of them begin with."""
    words = [name.split("_") for name in names]
    shared = 0
    while len(words) > 1 and all(len(own) > shared + 1 and own[shared] == words[0][shared] for own in words):
        shared += 1
    return ["_".join(own[shared:]) for own in words]


def pictures_of(result: ReportedResult) -> dict[str, Axes]:
    """All plots that a result has the scores for, by a short name."""
    pictures = {}
    if any(split.emid_ci95 for split in result.shifts):
        pictures["emid-ranked"] = plot_emid_ranked(result)
    if result.shifts:
        pictures["emid-against-bound"] = plot_emid_against_bound(result)
    labels = [{split.label(kind) for split in result.splits.values()} for kind in ("visual", "text")]
    if len(result.splits) > 1 and len(labels[0]) * len(labels[1]) <= MOST_CELLS:
        pictures["emi-heat-map"] = plot_emi_heat_map(result)
    if severity_series(result):
        pictures["severity"] = plot_severity(result)
    if any(split.jsds.keys() >= set(JSDS) for split in result.shifts):
        pictures["divergences"] = plot_divergences(result)
    return pictures
