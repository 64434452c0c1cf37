"""One image of every operator at every level: what a shift does to an image and to a text."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import regex
from PIL import Image, ImageDraw, ImageFont

from lmms_eval_emi.errors import EMIError
from lmms_eval_emi.shifts.apply import Step, shift_image, shift_text, shiftable
from lmms_eval_emi.shifts.operators import RefusedError, ShiftOptions
from lmms_eval_emi.util.imports import extra

THUMB, LABEL, GAP, MARGIN = 224, 170, 8, 24
WIDTH = 2 * MARGIN + LABEL + 5 * (THUMB + GAP)
INK, FAINT, PAPER, CHANGED, RULE = "#1b1f24", "#6a737d", "#ffffff", "#b3261e", "#d8dee4"


def contact_sheet(
    image: Image.Image | None,
    text: str,
    visual: Sequence[Step],
    textual: Sequence[Step],
    *,
    seed: int = 0,
    row_id: object = 0,
    options: ShiftOptions | None = None,
) -> Image.Image:
    """Draw an image and a text under all given steps, one operator per row.

    The image is shrunk to at most 224 pixels a side first, the size that the published levels are meant
    for. What an operator lacks or refuses is said in its place.

    Args:
        image: image of any mode, or ``None`` for the text alone.
        text: a question.
        visual: steps for the image.
        textual: steps for the text.
        seed: seed of the study.
        row_id: ID of the row.
        options: options of textual operators.
    """
    blocks: list[Image.Image] = []
    how: dict[str, Any] = {"seed": seed, "row_id": row_id}
    if image is not None:
        try:
            small = shiftable(image).copy()
        except RefusedError as reason:
            blocks.append(_row("as it is", [("", str(reason))]))
            image = None
        else:
            small.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
            blocks.append(_row("as it is", [("", small)]))
            blocks += _blocks(visual, lambda step: shift_image(small, step.operator.name, step.level, **how), _row)  # type: ignore[arg-type]
    if text.strip() and (textual or image is None):
        how["options"] = options
        draw = partial(_text_row, before=text)
        blocks.append(draw("as it is", [("", text)]))
        blocks += _blocks(textual, lambda step: shift_text(text, step.operator.name, step.level, **how), draw)
    height = 2 * MARGIN + sum(block.height for block in blocks)
    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    top = MARGIN
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _blocks(
    steps: Sequence[Step], shift: Callable[[Step], Any], draw: Callable[[str, list[tuple[str, Any]], str], Image.Image]
) -> list[Image.Image]:
    """Return a row of the sheet for each operator, drawn from its levels with what they give, or why they give nothing."""
    grouped: dict[str, list[Step]] = {}
    for step in steps:
        grouped.setdefault(step.operator.name, []).append(step)
    blocks = []
    for name, members in grouped.items():
        cells: list[tuple[str, Any]] = []
        for step in members:
            try:
                cells.append((str(step.level or ""), shift(step)))
            except (RefusedError, EMIError) as reason:
                cells.append((str(step.level or ""), _Note(str(reason).splitlines()[0])))
        if all(isinstance(cell, str) and cell == cells[0][1] for _, cell in cells):
            cells = [("", cells[0][1])]  # a text or a reason that all levels share
        blocks.append(draw(name, cells, members[0].operator.group))
    return blocks


class _Note(str):
    """Why an operator gives nothing."""


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    with extra("shifts"):
        import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _label(draw: ImageDraw.ImageDraw, name: str, group: str) -> None:
    draw.line((MARGIN, 3, WIDTH - MARGIN, 3), fill=RULE)
    draw.text((MARGIN, 12), name.replace("_", " "), font=_font(15, bold=True), fill=INK)
    draw.text((MARGIN, 34), group, font=_font(12), fill=FAINT)


def _row(name: str, cells: Sequence[tuple[str, Image.Image | str]], group: str = "") -> Image.Image:
    """Return images side by side, each below its level."""
    height = max(60, *(cell.height + 34 if isinstance(cell, Image.Image) else 60 for _, cell in cells))
    block = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(block)
    _label(draw, name, group)
    for place, (level, cell) in enumerate(cells):
        left = MARGIN + LABEL + place * (THUMB + GAP)
        if isinstance(cell, str):
            draw.text((left, 12), "\n".join(_wrapped(cell, _font(13), 5 * THUMB)), font=_font(13), fill=FAINT)
            continue
        draw.text((left, 10), level, font=_font(12), fill=FAINT)
        block.paste(cell, (left, 28))
    return block


def _text_row(name: str, cells: Sequence[tuple[str, str]], group: str = "", *, before: str) -> Image.Image:
    """Return texts below each other, each behind its level and marked where it differs from the text before."""
    font = _font(15)
    room = WIDTH - 2 * MARGIN - LABEL - 30
    set_lines: list[tuple[str, list[tuple[str, bool]], str]] = []
    for level, cell in cells:
        note = isinstance(cell, _Note)
        for number, part in enumerate(_set(cell if note else before, cell[:600], font, room)):
            set_lines.append((level if number == 0 else "", part, FAINT if note else INK))
    block = Image.new("RGB", (WIDTH, max(60, 24 + 24 * len(set_lines))), PAPER)
    draw = ImageDraw.Draw(block)
    _label(draw, name, group)
    for number, (level, parts, ink) in enumerate(set_lines):
        top, left = 12 + 24 * number, float(MARGIN + LABEL + 30)
        draw.text((left - 30, top + 2), level, font=_font(12), fill=FAINT)
        for word, changed in parts:
            draw.text((left, top), word, font=font, fill=CHANGED if changed else ink)
            left += draw.textlength(word, font=font)
    return block


def _set(before: str, after: str, font: ImageFont.FreeTypeFont, room: float) -> list[list[tuple[str, bool]]]:
    """Return a text in lines that fit, in parts that are marked where they differ from what it was."""
    old, new = (regex.findall(r"\s+|[^\s]+", regex.sub(r"[\n\r\t]", " ", text)) for text in (before, after))
    changed = [True] * len(new)
    for match in difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        changed[match.b : match.b + match.size] = [False] * match.size
    lines: list[list[tuple[str, bool]]] = [[]]
    used = 0.0
    for word, differs in zip(new, changed, strict=True):
        length = font.getlength(word)
        if used + length > room and lines[-1]:
            lines.append([])
            used = 0.0
            if word.isspace():
                continue
        lines[-1].append((word, differs))
        used += length
    return lines


def _wrapped(text: str, font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    return ["".join(part for part, _ in line) for line in _set(text, text, font, room)]
