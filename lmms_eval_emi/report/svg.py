"""Figures of matplotlib as PNG files, and as SVG that belongs to the page: its fonts, its colours, its links."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.errors import InputError
from lmms_eval_emi.report.plots import PAPER
from lmms_eval_emi.util.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # colour of text and axes, which the page replaces by its own
PLAIN_ID = re.compile(r' id="(?!mark:)[A-Za-z][A-Za-z0-9]*(?:\.[a-z]+)?_\d+"')
MARK = re.compile(r'<g id="mark:(\d+):([^"]*)">')


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
