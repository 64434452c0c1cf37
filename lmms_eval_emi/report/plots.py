"""Figures of results, drawn with matplotlib: as PNG files, and as SVG inside the page.

Every ``plot_*`` function draws on the ``ax`` it is given, or makes one, and returns it. Colours are those of Okabe &
Ito, which colour-blind people can distinguish; modalities differ in their markers as well.

A mark that belongs to a split has the id ``mark:NUMBER:SPLIT``, with the number of the result in the figure. The page
makes it a button with a tooltip (:func:`lmms_eval_emi.report.plots.to_svg`).
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmms_eval_emi.errors import InputError
from lmms_eval_emi.report.finding import short_splits
from lmms_eval_emi.report.reading import ReportedResult
from lmms_eval_emi.scoring.beside import BesideResult
from lmms_eval_emi.scoring.result import SplitResult
from lmms_eval_emi.scoring.table import UNFIT, measures_of
from lmms_eval_emi.util.imports import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # colour of text and axes, which the page replaces by its own
PLAIN_ID = re.compile(r' id="(?!mark:)[A-Za-z][A-Za-z0-9]*(?:\.[a-z]+)?_\d+"')
MARK = re.compile(r'<g id="mark:(\d+):([^"]*)">')
MODALITY = {
    "visual": ("#0072B2", "o"),
    "text": ("#D55E00", "s"),
    "joint": ("#009E73", "^"),
    "control": ("#777777", "D"),
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#777777")
PARTS = {
    "jsd_v": ("images", "#0072B2", ""),
    "jsd_t": ("questions", "#E69F00", "//"),
    "jsd_id_response": ("responses, ID", "#999999", ".."),
    "jsd_ood_response": ("responses, shift", "#009E73", "xx"),
}
SOFT = "#888888"
PAPER = "#fefdfc"  # inside a hollow marker; the page puts its own colour there
MOST_SHIFTS = 100  # shifts in a figure with one line each; the others lost less
MOST_SERIES = 12  # operators in the figures of severity
MOST_CELLS = 600  # cells of the largest heat map
FAR_SCALE = 1.6  # times the end of the intervals from which the scale is named and not drawn


def render(ax: Axes, format: str, salt: str = "") -> bytes:
    """Return the figure of some axes as a file; the same figure gives the same bytes.

    Args:
        ax: axes of the figure.
        format: ``png`` or ``svg``.
        salt: salt of the ids inside an SVG, so that two figures of one page share none.
    """
    with extra("report"):
        import matplotlib as mpl

    figure: Any = ax.get_figure(root=True)
    if figure is None:
        raise InputError("ax: expected axes of a figure.")
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"lmms_eval_emi{salt}"}):
        if format == "svg":
            _recolour(figure)
        metadata = {"Date": None} if format == "svg" else {}
        figure.savefig(buffer, format=format, dpi=200, metadata=metadata, transparent=format == "svg")
    return buffer.getvalue()


def _recolour(figure: Any) -> None:
    """Give black texts and lines of the axes a colour that can be replaced."""
    import matplotlib.spines
    import matplotlib.text

    for text in figure.findobj(matplotlib.text.Text):
        if text.get_color() == "black":
            text.set_color(INK)
    for spine in figure.findobj(matplotlib.spines.Spine):
        spine.set_edgecolor(INK)
    for axes in figure.axes:
        axes.tick_params(color=INK)


def to_svg(ax: Axes, alt: str, describe: Callable[[int, str], str], *, salt: str, classes: str = "") -> str:
    """Return a figure as an ``<svg>`` element.

    Args:
        ax: axes of the figure.
        alt: what the figure shows, for those who do not see it.
        describe: text of the tooltip of a mark, by the number of its result in the figure and the name of its split.
        salt: differs between the figures of a page.
        classes: classes of the element.
    """
    text = render(ax, "svg", salt).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = PLAIN_ID.sub("", re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL))
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")

    def button(found: re.Match[str]) -> str:
        name = html.unescape(found[2])
        shown, title = html.escape(name, quote=True), html.escape(describe(int(found[1]), name))
        return f'<g class="mark" data-split="{shown}"><title>{title}</title>'

    text, marks = MARK.subn(button, text)
    role = "group" if marks else "img"  # an image has no buttons inside
    opening = f'<svg class="{classes}" role="{role}" aria-label="{html.escape(alt, quote=True)}"'
    return text.replace("<svg", opening, 1)


def _most_lost(shifts: Sequence[SplitResult]) -> tuple[list[SplitResult], str]:
    """Return the shifts that a figure shows, least lost first, and an addition to its title if these are not all."""
    ranked = sorted(shifts, key=lambda split: split.emid or 0.0)
    kept = ranked[-MOST_SHIFTS:]
    return kept, "" if len(kept) == len(ranked) else f", the {len(kept)} of {len(ranked):,} that lost most"


def plain_text(name: str, most: int = 60) -> str:
    """Return a name from data as plain text of limited length: no mathematics, and never hidden from a legend."""
    shown = name if len(name) <= most else f"{name[: most - 3]}..."
    shown = shown.replace("\\", "/").replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _axes(ax: Axes | None, width: float = 6.4, height: float = 4.2) -> Axes:
    if ax is not None:
        return ax
    with extra("report"):
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def _mark(number: int, split: SplitResult) -> str:
    return f"mark:{number}:{split.name}"


def _draw_mark(ax: Axes, x: float, y: float, number: int, split: SplitResult, colour: str, **more: Any) -> None:
    """Draw the marker of a split: filled if its EMID differs from 0, hollow if not, a cross if it has no error."""
    marker = MODALITY.get(split.modality, MODALITY["control"])[1]
    face = colour if more.pop("filled", split.verdict in ("lost", "gained")) else PAPER
    if split.emid_ci95 is None and split.verdict is None:
        marker, face = "x", colour
    edge: dict[str, Any] = {} if marker == "x" else {"edgecolor": colour}
    ax.scatter([x], [y], marker=marker, s=30, facecolor=face, zorder=3, gid=_mark(number, split), **edge, **more)


def plot_emid_against_bound(result: ReportedResult, ax: Axes | None = None) -> Axes:
    """Draw EMID of each shift against its index, with the least-squares line and Pearson's r."""
    ax, shifts = _axes(ax, 5.6, 4.0), list(result.shifts().values())
    for split in shifts:
        colour = MODALITY.get(split.modality, MODALITY["control"])[0]
        _draw_mark(ax, split.emid_bound or 0.0, split.emid or 0.0, 0, split, colour, filled=True)
    for modality, (colour, marker) in MODALITY.items():
        if any(split.modality == modality for split in shifts):
            ax.scatter([], [], c=colour, marker=marker, label=modality)
    bounds, emids = (
        np.array([getattr(split, name) for split in shifts], dtype=float) for name in ("emid_bound", "emid")
    )
    r = result.means()["Pearson r"]
    if r is not None:
        slope, intercept = np.polyfit(bounds, emids, 1)
        ends = np.array([bounds.min(), bounds.max()])
        ax.plot(ends, slope * ends + intercept, color=SOFT, linewidth=1.2, label=f"r = {r:.2f}")
    ax.axhline(0, color=SOFT, linewidth=0.8, zorder=0)
    ax.set(xlabel="shift index", ylabel="EMID", title="EMID against the shift index")
    ax.legend(frameon=False, fontsize=9)
    return ax


def plot_emid_ranked(
    results: ReportedResult | Sequence[ReportedResult], ax: Axes | None = None, *, narrow: bool = False
) -> Axes:
    """Draw shifts ranked by EMID with their intervals of 95 %, several results side by side.

    Args:
        results: one or several of one study; the first one gives the order.
        ax: axes to draw on; without one, the measures beside a single result have panels of their own.
        narrow: put the names above the marks, for a small screen.
    """
    results = [results] if isinstance(results, ReportedResult) else list(results)
    ranked = {split.name: split for result in results for split in [*result.shifts().values(), *result.controls]}
    ranked = {**ranked, **{split.name: split for split in [*results[0].shifts().values(), *results[0].controls]}}
    splits, part = _most_lost(list(ranked.values()))
    unpublished = [result for result in results if not result.published]
    beside = measures_of(unpublished[0]) if len(unpublished) == 1 and ax is None and not narrow else []
    height = 1.4 + (0.48 if narrow else 0.25) * len(splits) * (0.6 + 0.4 * len(results))
    if ax is None:
        with extra("report"):
            from matplotlib.figure import Figure

        figure = Figure(figsize=(3.5 if narrow else 6.6 + 2.2 * len(beside), height), layout="constrained")
        widths = [2.2, *[1.0] * len(beside)]
        panels = figure.subplots(1, 1 + len(beside), sharey=True, squeeze=False, width_ratios=widths)[0]
        ax = panels[0]
        for kind, panel in zip(beside, panels[1:], strict=True):
            _draw_beside(panel, kind, [unpublished[0].splits.get(split.name, split) for split in splits])
    _draw_names(ax, results, splits, narrow=narrow)
    for number, result in enumerate(results):
        for row, name in enumerate(split.name for split in splits):
            if name in result.splits and result.splits[name].emid is not None:
                place = row - (number - (len(results) - 1) / 2) * 0.6 / len(results) - 0.12 * narrow
                _draw_interval(ax, result, number, name, place, several=len(results) > 1)
    for place, result in enumerate(results):
        if len(results) > 1:
            ax.scatter([], [], color=SERIES[place % len(SERIES)], label=plain_text(result.label, 40))
    if len(results) == 1:
        for modality, (colour, marker) in MODALITY.items():
            if any(split.modality == modality for split in splits):
                ax.scatter([], [], marker=marker, facecolor=colour, edgecolor=colour, label=modality)
    ax.axvline(0, color=SOFT, linewidth=0.8, zorder=0)
    note = "" if len(results) > 1 else _draw_scale(ax, results[0], splits)
    ax.locator_params(axis="x", nbins=4 if narrow else 6)
    ax.set(xlabel="EMID, interval of 95 %" + note)
    ax.set_title(f"Shifts ranked by EMID{part}", fontsize=10)
    ax.figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=1 if len(results) > 1 else 4)
    return ax


def _draw_names(ax: Axes, results: Sequence[ReportedResult], splits: Sequence[SplitResult], *, narrow: bool) -> None:
    """Write the names of the splits beside the rows or above the marks, with a question mark for unfit ones."""
    short = short_splits(list(dict.fromkeys(name for result in results for name in result.splits)))
    names = [
        plain_text(short[split.name], 40) + (f" {UNFIT}" if split.name in results[0].unfit else "") for split in splits
    ]
    ax.set_ylim(-0.7, len(splits) - 0.2)
    if not narrow:
        ax.set_yticks(range(len(splits)), names, fontsize=8)
        return
    ax.set_yticks([])
    for row, name in enumerate(names):
        ax.text(0.01, row + 0.26, name, transform=ax.get_yaxis_transform(), fontsize=8, va="bottom")


def _draw_interval(ax: Axes, result: ReportedResult, number: int, name: str, place: float, *, several: bool) -> None:
    split = result.splits[name]
    colour = SERIES[number % len(SERIES)] if several else MODALITY.get(split.modality, MODALITY["control"])[0]
    faint: dict[str, Any] = {"alpha": 0.45} if name in result.unfit else {}
    if split.emid_ci95:
        ax.plot(split.emid_ci95, (place, place), color=colour, linewidth=1.8, zorder=2, **faint)
    _draw_mark(ax, split.estimate or 0.0, place, number, split, colour, **faint)


def _draw_beside(ax: Axes, kind: str, splits: Sequence[SplitResult]) -> None:
    """EMID by another measure, in the same rows; filled where its interval leaves 0 out."""
    for row, split in enumerate(splits):
        measure: BesideResult | None = split.beside.get(kind)
        if measure is None or measure.emid is None:
            continue
        colour = MODALITY.get(split.modality, MODALITY["control"])[0]
        if measure.emid_ci95:
            ax.plot(measure.emid_ci95, (row, row), color=colour, linewidth=1.4, zorder=2)
        _draw_mark(ax, measure.emid, row, 0, split, colour, filled=bool(measure.sign))
    ax.axvline(0, color=SOFT, linewidth=0.8, zorder=0)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=3)
    ax.set(xlabel=f"EMID, {kind}")


def _draw_scale(ax: Axes, result: ReportedResult, splits: Sequence[SplitResult]) -> str:
    """Return a line at the cost of responses to other images; where that is far off, words for the label of the axis."""
    scale = result.scale
    if scale is None or scale.distinguishable is False or scale.value <= 0:
        return ""
    end = max((max(split.emid_ci95 or [split.emid or 0.0]) for split in splits), default=0.0)
    if scale.value > FAR_SCALE * max(end, 1e-12):
        return f"\n(responses to other images cost {scale.value:.3g}, beyond the right end)"
    ax.axvline(scale.value, color=SOFT, linewidth=1.2, linestyle="--", zorder=0)
    ax.text(
        scale.value,
        1.0,
        "other images ",
        rotation=90,
        ha="right",
        va="top",
        fontsize=7,
        transform=ax.get_xaxis_transform(),
    )
    return "\n(dashed: responses to other images)"


def plot_emi_heat_map(result: ReportedResult, ax: Axes | None = None) -> Axes:
    """Draw EMI of each split by its visual (rows) and textual (columns) shift."""
    splits = [split for split in result.splits.values() if split.variant_of is None and split.modality != "control"]
    rows = list(dict.fromkeys(split.label("visual") for split in splits))
    columns = list(dict.fromkeys(split.label("text") for split in splits))
    values = np.full((len(rows), len(columns)), np.nan)
    row_of, column_of = ({label: place for place, label in enumerate(labels)} for labels in (rows, columns))
    for split in splits:
        values[row_of[split.label("visual")], column_of[split.label("text")]] = split.emi
    ax = _axes(ax, 2.6 + 0.95 * len(columns), 1.5 + 0.48 * len(rows))
    image = ax.imshow(values, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.45 else "#111111"
            ax.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=8, color=ink)
    ax.set_xticks(range(len(columns)), list(map(plain_text, columns)), rotation=30, ha="right", fontsize=9)
    ax.set_yticks(range(len(rows)), list(map(plain_text, rows)), fontsize=9)
    ax.set(title="EMI by visual and textual shift")
    ax.figure.colorbar(image, ax=ax, shrink=0.9)
    return ax


def has_heat_map(result: ReportedResult) -> bool:
    """Return whether visual and textual shifts of a result are crossed, in a table that is not too large."""
    rows, columns = (len({split.label(kind) for split in result.splits.values()}) for kind in ("visual", "text"))
    return min(rows, columns) > 1 and rows * columns <= MOST_CELLS


def severity_series(result: ReportedResult) -> dict[str, list[tuple[int, SplitResult]]]:
    """Return splits shifted in one way only, by what shifts them, with their severities in order."""
    series: dict[str, list[tuple[int, SplitResult]]] = {}
    for split in result.shifts().values():
        if len(split.shifts) == 1 and split.shifts[0].severity is not None:
            series.setdefault(split.shifts[0].name, []).append((split.shifts[0].severity, split))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in series.items() if len(points) > 1}


def plot_severity(result: ReportedResult, operator: str, ax: Axes | None = None) -> Axes:
    """Draw EMID of one operator over its severity, with intervals of 95 %."""
    ax = _axes(ax, 3.0, 2.0)
    points = severity_series(result)[operator]
    colour = MODALITY.get(points[0][1].modality, MODALITY["control"])[0]
    ax.plot([level for level, _ in points], [split.estimate or 0.0 for _, split in points], color=colour, linewidth=1.4)
    for level, split in points:
        if split.emid_ci95:
            ax.plot((level, level), split.emid_ci95, color=colour, linewidth=1.6)
        _draw_mark(ax, level, split.estimate or 0.0, 0, split, colour)
    ax.axhline(0, color=SOFT, linewidth=0.8, zorder=0)
    ax.set_xticks([level for level, _ in points])
    ax.set(xlabel="severity", ylabel="EMID")
    ax.set_title(plain_text(operator.replace("_", " "), 30), fontsize=9)
    return ax


def plot_series(result: ReportedResult, ax: Axes | None = None) -> Axes:
    """Draw EMI over the splits that have an order, with intervals of 95 %."""
    ax = _axes(ax, 5.6, 3.0)
    names = result.trend.splits if result.trend else []
    splits = [result.splits[name] for name in names]
    places = range(len(splits))
    ax.plot(places, [split.emi for split in splits], color=SERIES[0], linewidth=1.4)
    for place, split in zip(places, splits, strict=True):
        if split.emi_ci95:
            ax.plot((place, place), split.emi_ci95, color=SERIES[0], linewidth=1.6)
        _draw_mark(ax, place, split.emi, 0, split, SERIES[0], filled=True)
    short = short_splits(names)
    ax.set_xticks(list(places), [plain_text(short[name], 24) for name in names], rotation=30, ha="right", fontsize=8)
    ax.set(ylabel="EMI, interval of 95 %")
    return ax


def plot_severities(result: ReportedResult) -> Axes:
    """Draw EMID over severity, a panel for each operator with one scale; the first of the panels is returned."""
    with extra("report"):
        from matplotlib.figure import Figure

    names = list(severity_series(result))[:MOST_SERIES]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        plot_severity(result, name, panel)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    return panels[0]


def plot_divergences(result: ReportedResult, ax: Axes | None = None) -> Axes:
    """Draw the four roots that add up to the scaled index of each shift, as stacked bars."""
    kept, part = _most_lost([split for split in result.shifts().values() if split.roots])
    shifts = sorted(kept, key=lambda split: sum(split.roots.values()))
    short = short_splits(list(result.splits))
    ax = _axes(ax, 7.2, 1.6 + 0.24 * len(shifts))
    left = np.zeros(len(shifts))
    for key, (label, colour, hatch) in PARTS.items():
        width = np.array([split.roots[key] for split in shifts])
        names = [plain_text(short[split.name]) for split in shifts]
        ax.barh(names, width, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4, label=label)
        left += width
    ax.tick_params(axis="y", labelsize=8)
    ax.set(xlabel="root of the divergence", title=f"What moved: the four parts of the shift index{part}")
    ax.margins(y=0.01)
    ax.figure.legend(frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    return ax


def plot_points(points: Sequence[tuple[str, float, float]], x: str, y: str, ax: Axes | None = None) -> Axes:
    """Draw two scores against each other, a point for each split.

    Args:
        points: name of the split, and its two scores.
        x: name of the first score.
        y: name of the second score.
        ax: axes to draw on.
    """
    ax = _axes(ax, 5.6, 4.0)
    short = short_splits([name for name, _, _ in points])
    for name, first, second in points:
        ax.scatter([first], [second], s=28, color=SERIES[0], gid=f"mark:0:{name}")
        ax.annotate(plain_text(short[name], 24), (first, second), (5, 3), textcoords="offset points", fontsize=7)
    ax.set(xlabel=plain_text(x), ylabel=plain_text(y))
    return ax


def plot_intervals(values: Sequence[tuple[str, float, Sequence[float] | None]], x: str, ax: Axes | None = None) -> Axes:
    """Draw values with their intervals of 95 %, one per line.

    Args:
        values: name, value and interval, from the bottom up.
        x: label of the axis.
        ax: axes to draw on.
    """
    ax = _axes(ax, 6.4, 1.2 + 0.25 * len(values))
    for row, (_, value, interval) in enumerate(values):
        if interval:
            ax.plot(interval, (row, row), color=SERIES[0], linewidth=1.8)
        ax.scatter([value], [row], s=28, color=SERIES[0], zorder=3)
    ax.axvline(0, color=SOFT, linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(values)), [plain_text(name, 40) for name, *_ in values], fontsize=8)
    ax.set(xlabel=plain_text(x))
    return ax


def pictures_of(result: ReportedResult) -> dict[str, Axes]:
    """Return all figures that a result has the scores for, by a short name."""
    pictures = {}
    if result.trend:
        pictures["emi-over-series"] = plot_series(result)
    if result.shifts():
        pictures["emid-ranked"] = plot_emid_ranked(result)
        pictures["emid-against-bound"] = plot_emid_against_bound(result)
    if has_heat_map(result):
        pictures["emi-heat-map"] = plot_emi_heat_map(result)
    if severity_series(result):
        pictures["severity"] = plot_severities(result)
    if any(split.roots for split in result.shifts().values()):
        pictures["divergences"] = plot_divergences(result)
    return pictures
