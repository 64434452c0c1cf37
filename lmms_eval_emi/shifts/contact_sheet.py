"""One image of every operator at every level: what a shift does to an image and to a text."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import regex
from PIL import Image, ImageDraw, ImageFont

from lmms_eval_emi.errors import EMIError
from lmms_eval_emi.shifts.apply import Step, shift_image, shift_text, shiftable
from lmms_eval_emi.shifts.operators import RefusedError, ShiftOptions
from lmms_eval_emi.util.extras import extra

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
    if image is not None:
        try:
            blocks += _image_blocks(shiftable(image).copy(), visual, seed, row_id)
        except RefusedError as reason:
            blocks.append(_row("as it is", [str(reason)]))
            image = None
    if text.strip() and (textual or image is None):
        blocks += _text_blocks(text, textual, seed, row_id, options)
    height = 2 * MARGIN + sum(block.height for block in blocks)
    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    top = MARGIN
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _image_blocks(image: Image.Image, steps: Sequence[Step], seed: int, row_id: object) -> list[Image.Image]:
    """Return a row of the sheet for the image itself, and one for each operator with a cell per level."""
    image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    blocks = [_row("as it is", [image])]
    for name, steps_of in _by_operator(steps).items():
        cells: list[Image.Image | str] = []
        for step in steps_of:
            try:
                cells.append(shift_image(image, name, step.level, seed=seed, row_id=row_id))  # type: ignore[arg-type]
            except (RefusedError, EMIError) as reason:
                cells.append(str(reason).splitlines()[0])
        levels = [str(step.level) for step in steps_of]
        same = isinstance(cells[0], str) and len(set(map(str, cells))) == 1
        blocks.append(
            _row(name, cells[:1] if same else cells, [] if same else levels, group=steps_of[0].operator.group)
        )
    return blocks


def _text_blocks(
    text: str, steps: Sequence[Step], seed: int, row_id: object, options: ShiftOptions | None
) -> list[Image.Image]:
    """Return a row of the sheet for the text itself, and one for each operator with a line per level."""
    blocks = [_text_row("as it is", [("", text, text)])]
    for name, levels in _by_operator(steps).items():
        lines: list[tuple[str, str | None, str]] = []
        for step in levels:
            try:
                shifted = shift_text(text, name, step.level, seed=seed, row_id=row_id, options=options)
                lines.append((str(step.level or ""), text, shifted))
            except (RefusedError, EMIError) as reason:
                lines.append((str(step.level or ""), None, str(reason).splitlines()[0]))
        if len({line[2] for line in lines}) == 1:
            lines = [("", *lines[0][1:])]
        blocks.append(_text_row(name, lines, group=levels[0].operator.group))
    return blocks


def _by_operator(steps: Sequence[Step]) -> dict[str, list[Step]]:
    grouped: dict[str, list[Step]] = {}
    for step in steps:
        grouped.setdefault(step.operator.name, []).append(step)
    return grouped


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    with extra("shifts"):
        import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _label(draw: ImageDraw.ImageDraw, name: str, group: str) -> None:
    draw.line((MARGIN, 3, WIDTH - MARGIN, 3), fill=RULE)
    draw.text((MARGIN, 12), name.replace("_", " "), font=_font(15, bold=True), fill=INK)
    draw.text((MARGIN, 34), group, font=_font(12), fill=FAINT)


def _row(name: str, cells: Sequence[Image.Image | str], levels: Sequence[str] = (), group: str = "") -> Image.Image:
    height = max(60, *(cell.height + 34 if isinstance(cell, Image.Image) else 60 for cell in cells))
    block = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(block)
    _label(draw, name, group)
    for place, cell in enumerate(cells):
        left = MARGIN + LABEL + place * (THUMB + GAP)
        if isinstance(cell, str):
            draw.text((left, 12), "\n".join(_wrapped(cell, _font(13), 5 * THUMB)), font=_font(13), fill=FAINT)
            continue
        if place < len(levels):
            draw.text((left, 10), levels[place], font=_font(12), fill=FAINT)
        block.paste(cell, (left, 28))
    return block


def _text_row(name: str, lines: Sequence[tuple[str, str | None, str]], group: str = "") -> Image.Image:
    """Return lines of level, text before and text after, which is marked where it differs; without a text before it is a note."""
    font = _font(15)
    room = WIDTH - 2 * MARGIN - LABEL - 30
    set_lines: list[tuple[str, list[tuple[str, bool]], str]] = []
    for level, before, after in lines:
        for number, part in enumerate(_set(after if before is None else before, after[:600], font, room)):
            set_lines.append((level if number == 0 else "", part, FAINT if before is None else INK))
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
