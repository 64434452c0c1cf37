"""Reports: one self-contained HTML page, or tables and plots in other formats."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.data.study import BUILT_IN, BUNDLED, load_study
from lmms_eval_emi.errors import InputError, UnavailableError
from lmms_eval_emi.report.finding import (
    MOST_NAMED,
    comparability_lines,
    comparable_groups,
    decimals_of,
    findings_of,
    findings_of_all,
    numeral,
    short_name,
    short_splits,
)
from lmms_eval_emi.report.latex import to_latex
from lmms_eval_emi.report.plots import MOST_CELLS, MOST_SERIES, pictures_of, root_of, severity_series
from lmms_eval_emi.report.reading import JSDS, Findings, ReportedResult, published_results
from lmms_eval_emi.scoring.agreement import AgreementResult, CorrelationResult
from lmms_eval_emi.scoring.audit import AuditDocument, FindingResult
from lmms_eval_emi.scoring.rows import LostRow, ShownRow
from lmms_eval_emi.scoring.table import FEW_ROWS
from lmms_eval_emi.util.extras import extra
from lmms_eval_emi.util.files import write_atomically
from lmms_eval_emi.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("html", "md", "csv", "latex", "png")
MEASURES = {"pearson_r": "Pearson", "spearman_r": "Spearman", "kendall_tau": "Kendall"}
PARTS = {"jsd_v": "v", "jsd_t": "t", "jsd_id_response": "id", "jsd_ood_response": "ood"}
PART_NAMES = {"v": "images", "t": "questions", "id": "responses, ID", "ood": "responses, shift"}
MOST_ROWS = 1000  # of a table in the page
# Nothing is fetched and no script but the page's own runs, whatever the results hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
HEADERS = [
    "shift",
    "modality",
    "n",
    "images",
    "EMI",
    "EMI SE",
    "EMID",
    "EMID SE",
    "EMID p",
    "verdict",
    "index",
    "JSD images",
    "JSD questions",
    "JSD resp. ID",
    "JSD resp. shift",
]


def write_report(
    results: Sequence[ReportedResult],
    output: Path,
    *,
    format: str = "html",
    full: bool = False,
    compare: bool = True,
    findings: Findings | None = None,
) -> list[Path]:
    """Write a report.

    Args:
        results: to show.
        output: file to write; for ``png`` a folder, with one file per plot.
        format: one of :data:`FORMATS`.
        full: of LaTeX: every split instead of a line a group of shifts.
        compare: show the published results of the built-in families beside the results.
        findings: what other commands found, for the page.

    Returns:
        The files that were written.

    Raises:
        ValueError: an unknown format.
    """
    if format == "html":
        return [write_atomically(output, to_html(results, compare=compare, findings=findings))]
    if format == "png":
        return _write_pictures(results, output)
    if format not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}.")
    return [write_atomically(output, to_text(results, format, full=full))]


def to_text(results: Sequence[ReportedResult], format: str, *, full: bool = False) -> str:
    """All results as one table, in Markdown, CSV or LaTeX; CSV has all digits, and LaTeX a line a group unless ``full``."""
    if format == "latex" and not full:
        return to_latex(results)
    rows = [[result.study, result.label, *row] for result in results for row in _rows(result, with_id=True)]
    headers = ["study", "model", *HEADERS]
    if format == "csv":
        rows = [
            [*row, result.signature]
            for result in results
            for row in [[result.study, result.label, *cells] for cells in _rows(result, with_id=True)]
        ]
        headers.append("signature")
    if format == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(headers)
        writer.writerows([["" if cell is None else _no_formula(cell) for cell in row] for row in rows])
        return buffer.getvalue()
    texts = [0, 1, 2, 3]
    if format == "md":
        rows = [[_markdown(cell) for cell in row] for row in rows]
    style = {"md": "pipe", "latex": "latex_booktabs"}[format]
    if not rows:
        return tabulate([[None] * len(headers)], headers=headers, tablefmt=style, missingval="") + "\n"
    return tabulate(rows, headers=headers, tablefmt=style, floatfmt=".4g", missingval="", disable_numparse=texts) + "\n"


def to_html(results: Sequence[ReportedResult], *, compare: bool = True, findings: Findings | None = None) -> str:
    """One self-contained page: everything inline, everything from data escaped."""
    with extra("report"):
        import jinja2

    found = findings or Findings()
    results = _told_apart(results)
    page = _Page([], [], {})
    studies: list[dict[str, Any]] = []
    lost: list[dict[str, Any]] = []
    for name in dict.fromkeys(result.study for result in results):
        own = [result for result in results if result.study == name]
        shown = own + (published_results(name) if compare and _is_family(own, name) else [])
        studies.append(_study_context(page, name, own, shown, f"study-{len(studies) + 1}"))
        lost += _lost_context(page, [(one, studies[-1]["series"][place]["number"]) for place, one in enumerate(own)])
    agreements = [_agreement_context(page, one, number) for number, one in enumerate(found.agreements, 1)]
    audits = [{**_audit_context(one), "id": f"audit-{number}"} for number, one in enumerate(found.audits, 1)]
    contents = [{"id": one["id"], "title": one["title"]} for one in studies]
    contents += [{"id": "rows", "title": "Rows that lost most"}] if lost else []
    contents += [{"id": one["id"], "title": f"Beside {one['score']}"} for one in agreements]
    contents += [{"id": one["id"], "title": "What the estimators notice"} for one in audits]
    contents.append({"id": "words", "title": "What the words mean"})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    script, library = _own("page.js"), _library()
    text = environment.from_string(_own("page.html.j2")).render(
        title=_title_of(results),
        findings=findings_of_all(results),
        cautions=[line for result in results for line in _cautions(result)],
        measured=[_measured(result) for result in results[:MOST_NAMED]],
        comparability=[line for one in studies for line in one["comparability"]],
        contents=contents,
        studies=studies,
        parts=list(PART_NAMES.values()),
        lost=lost,
        agreements=agreements,
        audits=audits,
        version=__version__,
        policy=POLICY,
        css=_own("page.css"),
        data=_inline(json.dumps({"results": page.results, "scatters": page.scatters, "images": list(page.images)})),
        library=library,
        script=script,
    )
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in (library, script)
    )
    return text.replace(POLICY, f"{POLICY}; script-src {digests}", 1)


@dataclass
class _Page:
    """What the figures of the page are drawn from.

    Attributes:
        results: by number.
        scatters: by number.
        images: data URIs by themselves, each once, with their numbers.
    """

    results: list[dict[str, Any]]
    scatters: list[dict[str, Any]]
    images: dict[str, int]

    def image(self, uri: str) -> int | None:
        """Number of an image."""
        return self.images.setdefault(uri, len(self.images)) if uri else None


def _own(name: str) -> str:
    return resources.files("lmms_eval_emi.report").joinpath(name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _library() -> str:
    """D3, as the package mpld3 carries it.

    Raises:
        UnavailableError: that package is not there or has moved it.
    """
    found = importlib.util.find_spec("mpld3")  # which would import matplotlib's windows, were it imported
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "js" / "d3.v5.min.js"
        if path.is_file():
            return path.read_text(encoding="utf-8").replace("</script", "<\\/script")
    raise UnavailableError(
        "The figures of a report are drawn by D3, which the package mpld3 carries and which is not installed. Install it: pip install 'lmms_eval_emi[report]'"
    )


def _inline(text: str) -> str:
    """JSON that no browser takes for markup."""
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _told_apart(results: Sequence[ReportedResult]) -> list[ReportedResult]:
    """The results with longer names for models whose short names are the same: "org:model" for org/model."""
    models = list(dict.fromkeys(result.model for result in results))
    names = {}
    for model in models:
        same = [one for one in models if short_name(one) == short_name(model)]
        parts = model.replace("__", "/").replace("\\", "/").split("/")
        length = 1
        while len(same) > 1 and length < len(parts):
            length += 1
            ends = {":".join(one.replace("__", "/").replace("\\", "/").split("/")[-length:]) for one in same}
            if len(ends) == len(same):
                break
        names[model] = model if len(same) == 1 else ":".join(parts[-length:])
    return [
        replace(one, model=names[one.model], label=one.label.replace(one.model, names[one.model], 1)) for one in results
    ]


def _title_of(results: Sequence[ReportedResult]) -> str:
    """A title that people can share: the models' short names and the family, never a path."""
    if not results:
        return "What other scores and estimators say"
    models = list(dict.fromkeys(short_name(result.model) for result in results))
    studies = list(dict.fromkeys(result.study for result in results))
    shown = ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "")
    return f"{shown} under {' and '.join(studies[:3])} shifts"


def _measured(result: ReportedResult) -> str:
    id_split = result.splits.get(result.id_split)
    rows = sum(split.n or 0 for split in result.splits.values())
    images = f" of {id_split.images} images" if id_split and id_split.images else ""
    parts = [short_name(result.model), result.title or result.study, f"{len(result.shifts)} shifts"]
    if id_split and id_split.n:
        parts.append(f"{id_split.n} rows{images} in distribution, {rows:,} in all")
    if result.estimator:
        parts.append(f"estimator {result.estimator}, fitness for these data: {result.fitness or 'unknown'}")
    return "; ".join(parts) + "."


def _cautions(result: ReportedResult) -> list[str]:
    """What must be known before any number is read."""
    lines = []
    if result.fitness == "far" and result.far_splits:
        names = short_splits(list(result.splits))
        shown = ", ".join(names.get(name, name) for name in result.far_splits[:3])
        lines.append(
            f"{short_name(result.model)}: the estimator is far from what it was trained on in {len(result.far_splits)} of {len(result.splits)} splits ({shown}), so do not trust their scores."
        )
    elif result.fitness in ("doubtful", "far"):
        lines.append(
            f"{short_name(result.model)}: the estimator does not tell references from those of other rows in these data, so do not trust these scores."
        )
    few = [split for split in result.splits.values() if split.n is not None and split.n < FEW_ROWS]
    if few:
        lines.append(
            f"{short_name(result.model)}: {len(few)} of {len(result.splits)} splits have fewer than {FEW_ROWS} rows, which say little."
        )
    return lines


def _study_context(
    page: _Page, name: str, own: Sequence[ReportedResult], shown: Sequence[ReportedResult], identity: str
) -> dict[str, Any]:
    """A study: its figures, models side by side, and every model's table."""
    numbers = [_add_result(page, result, shown) for result in shown]
    groups = comparable_groups(shown)
    ranked = []
    for group in groups:
        chosen = [shown[one] for one in group if shown[one].shifts]
        if chosen:
            finding = " ".join(findings_of(chosen[0])[:2])
            ranked.append(
                {
                    "numbers": ",".join(str(numbers[one]) for one in group if shown[one].shifts),
                    "caption": ", ".join(_label(one) for one in chosen),
                    "alt": f"Shifts ranked by EMID. {finding} The table below has all numbers.",
                }
            )
    decimals = decimals_of(shown)
    rows = [
        _row([_label(result), *(_shown(value, decimals) for value in result.summary().values())]) for result in shown
    ]
    return {
        "id": identity,
        "title": next((result.title for result in own if result.title), _title(name)),
        "ranked": ranked,
        "modalities": [
            one for one in ("visual", "text", "joint") if any(s.modality == one for r in shown for s in r.shifts)
        ],
        "series": [{"number": number, "label": _label(result)} for number, result in zip(numbers, shown, strict=True)],
        "comparability": comparability_lines(shown),
        "summary": {"headers": ["model", *shown[0].summary()], "rows": rows},
        "results": [_context(page, result, number) for result, number in zip(own, numbers, strict=False)],
    }


def _add_result(page: _Page, result: ReportedResult, shown: Sequence[ReportedResult]) -> int:
    names = short_splits(list(dict.fromkeys(name for one in shown for name in one.splits)))
    series = severity_series(result)
    operator = {split.name: (name, severity) for name, points in series.items() for severity, split in points}
    number_of = len(page.results)
    page.results.append(
        {
            "number": number_of,
            "label": _label(result),
            "digits": decimals_of(shown),
            "splits": [
                {
                    "name": split.name,
                    "short": names[split.name],
                    "modality": split.modality,
                    "emi": split.emi,
                    "emid": split.emid,
                    "ci": list(split.emid_ci95) if split.emid_ci95 else None,
                    "p": split.emid_p_adjusted,
                    "verdict": split.verdict,
                    "index": split.bound,
                    "n": split.n,
                    "images": split.images,
                    "operator": operator.get(split.name, (None, None))[0],
                    "level": operator.get(split.name, (None, None))[1],
                    "roots": {short: root_of(split, key) for key, short in PARTS.items()}
                    if split.jsds.keys() >= set(JSDS)
                    else None,
                    "floors": {PARTS[key]: max(0.0, value) ** EXPONENTS[key] for key, value in split.floors.items()},
                }
                for split in result.shifts
            ],
            "rows": {},
        }
    )
    return number_of


def _label(result: ReportedResult) -> str:
    """What a result is called on the page: never a path."""
    return result.label.replace(result.model, short_name(result.model), 1)


def _is_family(results: Sequence[ReportedResult], study: str) -> bool:
    """Whether results of a study of this name are of the built-in family, and not of another that is called so."""
    return study in BUILT_IN and all(set(result.splits) <= set(load_study(study).splits) for result in results)


def _context(page: _Page, result: ReportedResult, number_of: int) -> dict[str, Any]:
    decimals, names = decimals_of([result]), short_splits(list(result.splits))
    ordered = sorted([*result.shifts, *result.controls], key=lambda split: -(split.emid or 0.0))
    rows = [
        _row(
            [
                names[split.name],
                split.modality,
                split.n,
                split.images,
                *(_shown(value, decimals) for value in (split.emi, split.emi_stderr, split.emid, split.emid_stderr)),
                split.verdict,
                _p_value(split.emid_p_adjusted),
                *(_shown(value, 3) for value in (split.bound, *(split.jsds.get(key) for key in JSDS))),
            ],
            split=split.name,
        )
        for split in ordered[:MOST_ROWS]
    ]
    scatter = None
    if len(result.shifts) > 2:
        r = result.summary()["Pearson r"]
        caption = f"EMID against the index, a point a shift{'' if r is None else f'; Pearson r {numeral(r, 2)}'}."
        points = [
            {"name": s.name, "short": names[s.name], "modality": s.modality, "x": s.bound, "y": s.emid}
            for s in result.shifts
        ]
        page.scatters.append({"result": number_of, "x": "shift index", "y": "EMID", "points": points})
        scatter = {"number": len(page.scatters) - 1, "caption": caption}
    operators = []
    for name, series in list(severity_series(result).items())[:MOST_SERIES]:
        told = ", ".join(f"level {severity} {numeral(split.emid, decimals)}" for severity, split in series)
        operators.append(
            {
                "name": name,
                "label": name.replace("_", " "),
                "modality": series[0][1].modality,
                "alt": f"EMID of {name.replace('_', ' ')}: {told}.",
            }
        )
    moved = [split for split in result.shifts if split.jsds.keys() >= set(JSDS)]
    largest = max(moved, key=lambda split: sum(root_of(split, key) for key in JSDS), default=None)
    headers = ["shift", "modality", "rows", "images", "EMI", "SE", "EMID", "SE", "verdict", "p", "index"]
    return {
        "label": _label(result),
        "number": number_of,
        "headers": [*headers, *(f"RJSD {name}" for name in PART_NAMES.values())],
        "rows": rows,
        "more": max(0, len(result.shifts) - MOST_ROWS),
        "operators": operators,
        "heat": _heat(result, decimals),
        "scatter": scatter,
        "moved": f"Parts of the index of every shift; the inputs and responses of {names[largest.name]} moved most."
        if largest
        else "",
        "footer": result.footer,
        "signature": result.signature,
        "source": f"From {Path(result.source).name}" if not result.published else result.source,
    }


def _heat(result: ReportedResult, decimals: int) -> dict[str, Any] | None:
    """EMI by visual (rows) and textual (columns) shift, coloured by how far it is from that of the unshifted rows."""
    splits = [one for one in result.splits.values() if one.variant_of is None and one.modality != "control"]
    rows = list(dict.fromkeys(split.label("visual") for split in splits))
    columns = list(dict.fromkeys(split.label("text") for split in splits))
    if (
        min(len(rows), len(columns)) < 2
        or len(rows) * len(columns) > MOST_CELLS
        or result.id_split not in result.splits
    ):
        return None
    base = result.splits[result.id_split].emi
    values = {(split.label("visual"), split.label("text")): split.emi for split in splits}
    reach = max((abs(value - base) for value in values.values()), default=0.0) or 1.0

    def cell(value: float | None) -> dict[str, Any]:
        if value is None:
            return {"shown": "", "colour": "", "ink": ""}
        share = abs(value - base) / reach
        ends = (230, 240, 248), (0, 114, 178) if value >= base else (213, 94, 0)
        mixed = [round(a + (b - a) * share * 0.75) for a, b in zip(*ends, strict=True)]
        light = (0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2]) > 140
        return {
            "shown": numeral(value, decimals),
            "colour": f"rgb({', '.join(map(str, mixed))})",
            "ink": "#111" if light else "#fff",
        }

    return {
        "columns": columns,
        "rows": [{"label": row, "cells": [cell(values.get((row, column))) for column in columns]} for row in rows],
    }


def _lost_context(page: _Page, results: Sequence[tuple[ReportedResult, int]]) -> list[dict[str, Any]]:
    """The rows that lost most, the shift that lost most first; the page makes them when they are opened."""
    found: list[tuple[float, dict[str, Any]]] = []
    for result, number_of in results:
        names = short_splits(list(result.splits))
        for name, rows in list(result.lost_rows.items())[:MOST_ROWS]:
            split = result.splits.get(name)
            if not rows or split is None:
                continue
            page.results[number_of]["rows"][name] = [_row_data(page, row) for row in rows]
            model = f", {_label(result)}" if len(results) > 1 else ""
            label = f"{names[name]}: EMID {numeral(split.emid, decimals_of([result]))}{model}"
            context = {"rows": json.dumps([number_of, name]), "split": name, "label": label, "modality": split.modality}
            found.append((-(split.emid or 0.0), context))
    return [context for _, context in sorted(found, key=lambda one: one[0])]


def _row_data(page: _Page, row: ShownRow) -> dict[str, Any]:
    found = row.model_dump(exclude={"image", "clean"})
    clean = row.clean if isinstance(row, LostRow) else None
    return {**found, "image": page.image(row.image), "clean": _row_data(page, clean) if clean else None}


def _row(cells: Sequence[Any], split: str = "") -> dict[str, Any]:
    """A row of a table of the page; a cell is what is shown, or a pair of that and the value that it sorts by."""
    made = [
        {"shown": "–" if cell is None else cell, "value": cell if isinstance(cell, int | float) else None}
        if not isinstance(cell, tuple)
        else {"shown": cell[0], "value": cell[1]}
        for cell in cells
    ]
    return {"cells": made, "split": split, "title": split}


def _p_value(p: float | None) -> tuple[str, float | None]:
    return ("–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"), p


def _shown(value: float | None, decimals: int) -> tuple[str, float | None] | int:
    """A number as it is shown, and as it sorts."""
    if isinstance(value, int):
        return value
    return numeral(value, decimals), value


def _agreement_context(page: _Page, found: AgreementResult, place: int) -> dict[str, Any]:
    """Correlations as a table, a scatter of the splits, and what they mean in sentences."""
    names = {"emi": "EMI", "emid": "EMID", "index": "index", "cosine": "cosine", "lead": "lead over the cosine"}
    rows = [
        _row([names.get(what, what), target, *(_correlation_cell(own.get(measure)) for measure in MEASURES)])
        for target, known in ((found.score, found.over_splits), (f"loss of {found.score}", found.over_shifts))
        for what, own in known.items()
        if any(own.values())
    ]
    short = short_splits([point.split for point in found.points])
    lost = [point for point in found.points if point.loss is not None and point.emid is not None]
    points = [
        {
            "name": p.split,
            "short": short[p.split],
            "modality": None,
            "x": p.loss if lost else p.score,
            "y": p.emid if lost else p.emi,
        }
        for p in (lost or found.points)[:MOST_ROWS]
    ]
    across, upwards = (f"loss of {found.score}", "EMID") if lost else (found.score, "EMI")
    page.scatters.append({"result": None, "x": across, "y": upwards, "points": points})
    headers = ["split", found.score, "its loss", "EMI", "EMID", "index", "cosine"]
    return {
        "id": f"agreement-{place}",
        "score": found.score,
        "title": f"{short_name(found.model)}, {_title(found.study)}: {found.score}",
        "headers": ["what", "with", *MEASURES.values()],
        "rows": rows,
        "sentences": found.findings,
        "scatter": {"number": len(page.scatters) - 1, "caption": f"{upwards} against {across}, a point a split."},
        "points": {
            "headers": headers,
            "rows": [
                _row(
                    [short[p.split], *(_shown(one, 4) for one in (p.score, p.loss, p.emi, p.emid, p.index, p.cosine))],
                    split=p.split,
                )
                for p in found.points[:MOST_ROWS]
            ],
        },
    }


def _audit_context(audit: AuditDocument) -> dict[str, Any]:
    """A table of responders by estimator, and what each estimator does not notice in a sentence."""
    names = list(dict.fromkeys(name for one in audit.findings for name in one.responders))
    encoders = list(dict.fromkeys(one.encoders for one in audit.findings))
    headers = ["responder"]
    sentences = []
    for one in audit.findings:
        label = one.estimator + (f", encoders {encoders.index(one.encoders) + 1}" if len(encoders) > 1 else "")
        headers.append(f"EMI ± SE, {label}")
        missed = f"does not notice {_listed(one.not_noticed)}" if one.not_noticed else "notices all of them"
        preferred = f", and prefers {_listed(one.preferred)} to the references" if one.preferred else ""
        sentences.append(f"{label} ({one.unit}) {missed}{preferred}.")
    rows = [_row([name, *(_audit_cell(one, name) for one in audit.findings)]) for name in names]
    return {
        "title": f"{_title(audit.study)}, split {audit.split}",
        "headers": headers,
        "rows": rows,
        "sentences": sentences,
        "encoders": encoders,
    }


def _correlation_cell(one: CorrelationResult | None) -> str:
    if one is None:
        return "–"
    return f"{one.value:+.3f}" + (f" [{one.ci95[0]:+.2f}, {one.ci95[1]:+.2f}]" if one.ci95 else "")


def _audit_cell(finding: FindingResult, name: str) -> str:
    one = finding.responders.get(name)
    if one is None:
        return "–"
    error = "" if one.emi_stderr is None else f" ± {one.emi_stderr:.2g}"
    return f"{one.emi:.3f}{error}{'*' if one.told_from_references else ''}"


def _listed(names: Sequence[str]) -> str:
    quoted = [f"“{name}”" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _rows(result: ReportedResult, *, with_id: bool = False) -> list[list[Any]]:
    splits = list(result.splits.values()) if with_id else [*result.shifts, *result.controls]
    return [
        [
            split.name,
            split.modality,
            split.n,
            split.images,
            split.emi,
            split.emi_stderr,
            split.emid,
            split.emid_stderr,
            split.emid_p_adjusted,
            split.verdict,
            split.bound,
            *(split.jsds.get(key) for key in JSDS),
        ]
        for split in splits
    ]


def _title(study: str) -> str:
    return load_study(study).title if study in (*BUILT_IN, *BUNDLED) else study


def _no_formula(cell: Any) -> Any:
    """A text that no spreadsheet takes for a formula, whatever blanks or wide letters it begins with."""
    if not isinstance(cell, str):
        return cell
    begins = "".join(
        letter for letter in unicodedata.normalize("NFKC", cell[:50]) if unicodedata.category(letter)[0] not in "ZC"
    )
    return f"'{cell}" if begins[:1] in tuple("=+-@") or cell[:1] in tuple("\t\r\n") else cell


def _markdown(cell: Any) -> Any:
    """A text that Markdown shows as it is: in one line, without markup, links, images or HTML."""
    if not isinstance(cell, str):
        return cell
    plain = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in cell)
    escaped = re.sub(r"([\\`\[\]|])", r"\\\1", plain)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _render(ax: Axes, format: str) -> bytes:
    with extra("report"):
        import matplotlib as mpl

    buffer = io.BytesIO()
    # Text stays text, and the same results give the same bytes.
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "lmms_eval_emi", "font.family": ["DejaVu Sans", "sans-serif"]}
    ):
        metadata = {"Date": None} if format == "svg" else {}
        _figure(ax).savefig(buffer, format=format, dpi=200, metadata=metadata, bbox_inches="tight")
    return buffer.getvalue()


def _write_pictures(results: Sequence[ReportedResult], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, result in enumerate(results):
        for name, ax in pictures_of(result).items():
            label = "".join(
                letter if letter.isalnum() or letter in "-._" else "_" for letter in f"{result.study}-{result.label}"
            )
            path = folder / f"{number}-{label}-{name}.png"
            path.write_bytes(_render(ax, "png"))
            written.append(path)
    return written


def _figure(ax: Axes) -> Any:
    figure = ax.get_figure(root=True)
    if figure is None:
        raise InputError("ax: expected axes of a figure.")
    return figure
