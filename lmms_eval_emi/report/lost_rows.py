"""The rows of a shift that lost most, with their image, question, answer and reference."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval_emi.encoders.clip import to_rgb
from lmms_eval_emi.files import write_atomically
from lmms_eval_emi.report.reading import rows_path
from lmms_eval_emi.samples import Sample, SampleError, open_image
from lmms_eval_emi.studies.scoring import StudyResult

MOST = 3
THUMBNAIL = 150


def find_lost_rows(result: StudyResult, samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[dict[str, Any]]]:
    """For every shift its rows with the greatest loss of contribution to EMI.

    A row's loss is its twin's contribution in the ID split, the row of the same id and reference,
    less its own; where it has no twin, the mean of the ID split stands in.
    """
    id_figures = result.splits.get(result.study.id_split)
    if id_figures is None:
        return {}
    id_rows = samples[result.study.id_split]
    twins = {
        (row.id, row.reference): float(value) for row, value in zip(id_rows, id_figures.emi.contributions, strict=True)
    }
    lost: dict[str, list[dict[str, Any]]] = {}
    for name in result.study.shifts():
        figures = result.splits.get(name)
        if figures is None:
            continue
        losses = [
            twins.get((row.id, row.reference), id_figures.emi.value) - float(value)
            for row, value in zip(samples[name], figures.emi.contributions, strict=True)
        ]
        worst = sorted(range(len(losses)), key=lambda row: -losses[row])[:MOST]
        lost[name] = [
            {
                "id": str(row.id),
                "loss": losses[number],
                "question": row.question,
                "response": row.response,
                "reference": row.reference,
                "image": _thumbnail(row),
            }
            for number in worst
            for row in (samples[name][number],)
        ]
    return lost


def write_lost_rows(path: Path, entries: Sequence[tuple[StudyResult, Mapping[str, list[dict[str, Any]]]]]) -> Path:
    """Write the lost rows of some results beside their figures, as ``FILE.rows.json``."""
    content = {f"{result.signature}{result.model}": lost for result, lost in entries}
    return write_atomically(rows_path(path), json.dumps(content, ensure_ascii=False) + "\n")


def _thumbnail(row: Sample) -> str:
    if row.image is None:
        return ""
    try:
        image = to_rgb(open_image(row.image)).copy()
    except (SampleError, OSError):
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
