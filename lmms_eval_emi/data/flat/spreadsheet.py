"""Spreadsheets, as VLMEvalKit writes its predictions: ``{model}_{dataset}.xlsx`` with index, question, answer, prediction."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from lmms_eval_emi.data.response_text import is_failed_request
from lmms_eval_emi.errors import ResponsesError

SUFFIXES = (".xlsx",)
LARGEST = 500_000_000  # bytes of a sheet when unpacked


def model_of(path: Path) -> str:
    """Return the model of a file ``{model}_{dataset}``, by the folder that VLMEvalKit names after it, since datasets may contain ``_``."""
    folders = [folder.name for folder in list(path.resolve().parents)[:3]]
    named = [name for name in folders if name and path.stem.startswith(f"{name}_")]
    return named[0] if named else path.stem.rpartition("_")[0] or path.stem


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the first sheet, whose first line has the names; cells are what the sheet shows.

    Raises:
        ResponsesError: the file is not a spreadsheet, or has no rows.
    """
    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise ResponsesError(f"{path}: expected a spreadsheet of at most {LARGEST:,} bytes when unpacked.")
        sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
        lines = sheet.iter_rows(values_only=True)
        names = [str(name) if name is not None else f"column {place}" for place, name in enumerate(next(lines, ()), 1)]
        rows = [dict(zip(names, line, strict=False)) for line in lines if any(cell is not None for cell in line)]
    except ResponsesError:
        raise
    except Exception as error:  # zipfile, XML and openpyxl have their own
        raise ResponsesError(f"{path}: expected a spreadsheet: {error}") from error
    if not rows:
        raise ResponsesError(f"{path}: expected rows below a line of names, found none.")
    texts = [name for name in names if any(isinstance(row.get(name), str) for row in rows)]
    model = model_of(path)
    for row in rows:
        row |= {name: "" if row.get(name) is None else str(row[name]) for name in texts}
        row.setdefault("model", model)
        if is_failed_request(str(row.get("prediction", ""))):
            row["prediction"] = None
    return rows
