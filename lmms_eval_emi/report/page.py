"""The page: results, their figures and the rows that lost most, in one HTML file that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.study import BUILT_IN, load_study
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.report import plots
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
from lmms_eval_emi.report.plots import render, to_svg
from lmms_eval_emi.report.reading import Findings, ReportedResult, published_results
from lmms_eval_emi.report.sections import (
    MOST_ROWS,
    agreement_context,
    audit_section,
    number_cell,
    study_title,
    table_row,
)
from lmms_eval_emi.report.tables import to_text
from lmms_eval_emi.scoring.result import SplitResult
from lmms_eval_emi.scoring.rows import LostRow, ShownRow
from lmms_eval_emi.scoring.table import FEW_ROWS, UNFIT, extra_columns, measures_of, scale_in_words, trend_in_words
from lmms_eval_emi.util.files import write_atomically
from lmms_eval_emi.util.imports import extra
from lmms_eval_emi.util.printing import printable, shorten
from lmms_eval_emi.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("html", "md", "csv", "latex", "png")
# Nothing is fetched and no script but the page's own runs, whatever the results hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


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
        results: results to show.
        output: file to write; for ``png`` a folder, with one file for each figure.
        format: one of :data:`FORMATS`.
        full: whether LaTeX has a row for each split, instead of one for each group of shifts.
        compare: show the published results of the built-in families beside the results.
        findings: results of other commands, for the page.

    Returns:
        The files that were written.

    Raises:
        InputError: an unknown format.
    """
    if format == "html":
        return [write_atomically(output, to_html(results, compare=compare, findings=findings))]
    if format == "png":
        return _write_pictures(results, output)
    if format not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}.")
    return [write_atomically(output, to_text(results, format, full=full))]


def to_html(results: Sequence[ReportedResult], *, compare: bool = True, findings: Findings | None = None) -> str:
    """Return one self-contained page: everything inline, everything from data escaped."""
    with extra("report"):
        import jinja2

    found = findings or Findings()
    results = _with_distinct_names(results)
    page = _Page()
    studies: list[dict[str, Any]] = []
    lost: list[dict[str, Any]] = []
    for name in dict.fromkeys(result.shift for result in results):
        of_study = [result for result in results if result.shift == name]
        shown = of_study + (published_results(name) if compare and _is_family(of_study, name) else [])
        numbers = [page.add_result(result, decimals_of(shown)) for result in of_study]
        studies.append(_study_context(page, of_study, shown, f"study-{len(studies) + 1}", found))
        lost += _lost_context(page, list(zip(of_study, numbers, strict=True)))
    agreements = []
    for number, agreement in enumerate(found.agreements, 1):
        context, ax = agreement_context(agreement, number)
        context["scatter"] |= {"svg": page.figure(ax, context["scatter"]["caption"])}
        agreements.append(context)
    sections = [
        {**vars(section), "svg": page.figure(section.figure, section.caption) if section.figure is not None else ""}
        for section in (*map(audit_section, found.audits), *found.sections)
    ]
    contents = [{"id": study["id"], "title": study["title"]} for study in studies]
    contents += [{"id": "rows", "title": "Rows that lost most"}] if lost else []
    contents += [{"id": agreement["id"], "title": f"Beside {agreement['score']}"} for agreement in agreements]
    contents += [
        {"id": f"section-{number}", "title": section["contents"]} for number, section in enumerate(sections, 1)
    ]
    contents.append({"id": "words", "title": "Glossary"})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    script = _own("page.js")
    text = environment.from_string(_own("page.html.j2")).render(
        title=_title_of(results),
        findings=findings_of_all(results),
        cautions=[line for result in results for line in _cautions(result)],
        measured=[_measured(result) for result in results[:MOST_NAMED]],
        comparability=[line for study in studies for line in study["comparability"]],
        contents=contents,
        studies=studies,
        lost=lost,
        agreements=agreements,
        sections=sections,
        version=__version__,
        policy=POLICY,
        css=_own("page.css"),
        data=_inline(json.dumps({"results": page.results, "images": list(page.images)})),
        script=script,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return printable(text).replace(POLICY, f"{POLICY}; script-src 'sha256-{digest}'", 1)


@dataclass
class _Page:
    """Data of the page's script, and a number for each figure."""

    results: list[dict[str, Any]] = field(default_factory=list)  # results by number, with their rows
    images: dict[str, int] = field(default_factory=dict)  # data URIs, each once, with their numbers
    figures: int = 0  # how many there are

    def add_result(self, result: ReportedResult, decimals: int) -> int:
        splits = {name: split.to_data() for name, split in result.splits.items()}
        self.results.append({"label": label_of(result), "digits": decimals, "splits": splits, "rows": {}})
        return len(self.results) - 1

    def image(self, uri: str) -> int | None:
        return self.images.setdefault(uri, len(self.images)) if uri else None

    def figure(self, ax: Axes, alt: str, results: Sequence[ReportedResult] = (), classes: str = "") -> str:
        """Return an SVG of a figure whose marks name the splits of some results."""
        self.figures += 1

        def describe(number: int, name: str) -> str:
            return _tooltip(results[number], name) if number < len(results) else name

        return to_svg(ax, alt, describe, salt=f"-{self.figures}", classes=classes)


def _tooltip(result: ReportedResult, name: str) -> str:
    split, decimals = result.splits[name], decimals_of([result])
    interval = split.emid_ci95
    within = f" [{numeral(interval[0], decimals)}, {numeral(interval[1], decimals)}]" if interval else ""
    unfit = f" {UNFIT} the estimator is not fit for it" if name in result.unfit else ""
    return "\n".join(
        (
            f"{name}, {label_of(result)}",
            f"EMID {numeral(split.estimate, decimals)}{within}{f', {split.verdict}' if split.verdict else ''}{unfit}",
            *(
                f"EMID by {kind}: {numeral(measure.emid, 3)}"
                for kind, measure in split.beside.items()
                if measure.emid is not None
            ),
            f"{split.n} rows, {split.images} images" if split.n is not None else "published, without an interval",
        )
    )


def _own(name: str) -> str:
    return resources.files("lmms_eval_emi.report").joinpath(name).read_text(encoding="utf-8")


def _inline(text: str) -> str:
    """Return JSON with ``<``, ``>`` and ``&`` escaped, for a script element."""
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _with_distinct_names(results: Sequence[ReportedResult]) -> list[ReportedResult]:
    """Return the results with longer names for models whose short names are the same: "org:model" for org/model."""
    models = list(dict.fromkeys(result.model for result in results))
    names = {}
    for model in models:
        same = [model_name for model_name in models if short_name(model_name) == short_name(model)]
        parts = model.replace("__", "/").replace("\\", "/").split("/")
        length = 1
        while len(same) > 1 and length < len(parts):
            length += 1
            ends = {":".join(name.replace("__", "/").replace("\\", "/").split("/")[-length:]) for name in same}
            if len(ends) == len(same):
                break
        names[model] = model if len(same) == 1 else ":".join(parts[-length:])
    return [
        result.model_copy(
            update={"model": names[result.model], "label": result.label.replace(result.model, names[result.model], 1)}
        )
        for result in results
    ]


def _title_of(results: Sequence[ReportedResult]) -> str:
    """Return a title that people can share: the models' short names and the family, never a path."""
    if not results:
        return "Other scores and estimators"
    models = list(dict.fromkeys(short_name(result.model) for result in results))
    studies = list(dict.fromkeys(result.shift for result in results))
    shown = shorten(models)
    return f"{shown} under {' and '.join(studies[:3])} shifts"


def _measured(result: ReportedResult) -> str:
    id_split = result.splits.get(result.id_split)
    rows = sum(split.n or 0 for split in result.splits.values())
    images = f" of {id_split.images} images" if id_split and id_split.images else ""
    parts = [short_name(result.model), result.title or result.shift, f"{len(result.shifts())} shifts"]
    if id_split and id_split.n:
        parts.append(f"{id_split.n} rows{images} in distribution, {rows:,} in all")
    if result.estimator:
        parts.append(f"estimator {result.estimator}")
    return "; ".join(parts) + "."


def _cautions(result: ReportedResult) -> list[str]:
    """Return the warnings that the page shows above all numbers."""
    lines = []
    name, fit = short_name(result.model), result.estimator_fit
    if fit.far_splits:
        names = short_splits(list(result.splits))
        shown = ", ".join(names.get(split, split) for split in fit.far_splits[:3])
        lines.append(
            f"{name}: do not trust the scores of {len(fit.far_splits)} of {len(result.splits)} splits ({shown}). Their data are unlike those that the estimator was trained on; they are marked {UNFIT}."
        )
    elif fit.verdict == "doubtful":
        lines.append(
            f"{name}: do not trust these scores. In {len(fit.doubtful_splits)} of {len(result.splits)} splits, marked {UNFIT}, the estimator does not score references above those of other rows."
        )
    few = [split for split in result.splits.values() if split.n is not None and split.n < FEW_ROWS]
    if few:
        lines.append(
            f"{name}: {len(few)} of {len(result.splits)} splits have fewer than {FEW_ROWS} rows, too few to read much from."
        )
    return lines


def _study_context(
    page: _Page, of_study: Sequence[ReportedResult], shown: Sequence[ReportedResult], identity: str, findings: Findings
) -> dict[str, Any]:
    """Return a study: its figures, models side by side, and every model's table."""
    ranked = []
    for group in comparable_groups(shown):
        chosen = [shown[number] for number in group if shown[number].shifts()]
        if chosen:
            alt = f"Shifts ranked by EMID. {' '.join(findings_of(chosen[0])[:2])} The table below has all numbers."
            figures = [
                page.figure(plots.plot_emid_ranked(chosen, narrow=narrow), alt, chosen, classes)
                for narrow, classes in ((False, "wide"), (True, "narrow"))
            ]
            ranked.append({"caption": ", ".join(label_of(result) for result in chosen), "figures": figures})
    decimals = decimals_of(shown)
    means = [
        table_row([label_of(result), *(number_cell(value, decimals) for value in result.means().values())])
        for result in shown
    ]
    return {
        "id": identity,
        "title": next((result.title for result in of_study if result.title), study_title(of_study[0].shift)),
        "ranked": ranked,
        "modalities": [
            modality
            for modality in ("visual", "text", "joint")
            if any(split.modality == modality for result in of_study for split in result.shifts().values())
        ],
        "comparability": comparability_lines(of_study) or comparability_lines(shown),
        "means": {"headers": ["model", *shown[0].means()], "rows": means},
        "results": [_result_context(page, result, findings, several=len(of_study) > 1) for result in of_study],
    }


def label_of(result: ReportedResult) -> str:
    """Return the label of a result on the page, which is never a path."""
    return result.label.replace(result.model, short_name(result.model), 1)


def _is_family(results: Sequence[ReportedResult], study: str) -> bool:
    """Return whether results of a study of this name are of the built-in family, and not of another that is called so."""
    return study in BUILT_IN and all(set(result.splits) <= set(load_study(study).splits) for result in results)


def _result_context(page: _Page, result: ReportedResult, findings: Findings, *, several: bool) -> dict[str, Any]:
    """Return a result: its table, and the figures that a reader opens."""
    shifts = result.shifts()
    headers, rows = _table(page, result, findings)
    figures: dict[str, list[str]] = {}
    if result.trend:
        alt = f"{trend_in_words(result)}. The table has the numbers."
        figures["EMI over the series"] = [page.figure(plots.plot_series(result), alt, [result])]
    series = list(plots.severity_series(result).items())[: plots.MOST_SERIES]
    decimals = decimals_of([result])
    for name, points in series:
        told = ", ".join(f"severity {severity} {numeral(split.estimate, decimals)}" for severity, split in points)
        alt = f"EMID of {name.replace('_', ' ')}: {told}."
        figures.setdefault("EMID over severity", []).append(
            page.figure(plots.plot_severity(result, name), alt, [result])
        )
    if plots.has_heat_map(result):
        alt = "EMI by visual and textual shift; the table has the numbers."
        figures["EMI by visual and textual shift"] = [page.figure(plots.plot_emi_heat_map(result), alt)]
    if len(shifts) > 2:
        r = result.means()["Pearson r"]
        alt = f"EMID of every shift against its index{'' if r is None else f'; Pearson r {numeral(r, 2)}'}."
        figures["EMID and the shift index"] = [page.figure(plots.plot_emid_against_bound(result), alt, [result])]
    if any(split.roots for split in shifts.values()):
        alt = "Parts of the index of every shift: roots of the divergences of images, questions and responses."
        figures["What moved: the parts of the index"] = [page.figure(plots.plot_divergences(result), alt)]
    scale = scale_in_words(result)
    notes = [f"{name}: {'; '.join(lines)}" for name, lines in {**result.notes, **result.left_out}.items()]
    return {
        "label": label_of(result),
        "several": several,
        "headers": headers,
        "rows": rows,
        "more": max(0, len(shifts) - MOST_ROWS),
        "figures": figures,
        "footer": [
            f"{name}: {words}." for name, words in (("Scale", scale), ("Trend", trend_in_words(result))) if words
        ],
        "notes": notes,
        "signature": result.signature,
        "source": f"From {Path(result.source).name}" if not result.published else result.source,
    }


def _table(page: _Page, result: ReportedResult, findings: Findings) -> tuple[list[str], list[dict[str, Any]]]:
    """Return headers and rows of a result's table, the shift that lost most first."""
    decimals, names, extras = decimals_of([result]), short_splits(list(result.splits)), extra_columns()
    accuracy = _scores_beside(result, findings)
    kinds = measures_of(result)
    headers = ["shift", "EMID", "verdict", "p", *(f"EMID, {kind}" for kind in kinds), *accuracy, "EMI", "index"]
    headers += ["rows", "images", "modality", *extras.values()]
    ordered = sorted([*result.shifts().values(), *result.controls], key=lambda split: -(split.emid or 0.0))
    id_split = [result.splits[result.id_split]] if result.id_split in result.splits else []
    rows = []
    for split in [*id_split, *ordered[:MOST_ROWS]]:
        mark = f" {UNFIT}" if split.name in result.unfit else ""
        beside = [split.beside.get(kind) for kind in kinds]
        cells = [
            names[split.name],
            _with_error(split.emid, split.emid_stderr, decimals, mark),
            (split.verdict or "–") + (mark if split.verdict else ""),
            _p_value(split.emid_p_adjusted),
            *(_with_error(measure.emid, measure.emid_stderr, 3) if measure else None for measure in beside),
            *(number_cell(by_split.get(split.name), 3) for by_split in accuracy.values()),
            _with_error(split.emi, split.emi_stderr, decimals, mark),
            number_cell(split.emid_bound, 3),
            split.n,
            split.images,
            split.modality,
            *(getattr(split, name) for name in extras),
        ]
        rows.append(table_row(cells, split=split.name, image=_picture(page, result, split)))
    return headers, rows


def _picture(page: _Page, result: ReportedResult, split: SplitResult) -> int | None:
    """Return the number of an image of a split, if its rows have one."""
    return next((page.image(row.image) for row in result.lost_rows.get(split.name, ()) if row.image), None)


def _scores_beside(result: ReportedResult, findings: Findings) -> dict[str, dict[str, float]]:
    """Return scores of the splits, such as accuracy, that other commands found for the model of a result, by their name."""
    return {
        agreement.score: {point.split: point.score for point in agreement.points if point.score is not None}
        for agreement in findings.agreements
        if agreement.study == result.shift and short_name(agreement.model) == short_name(result.model)
    }


def _lost_context(page: _Page, results: Sequence[tuple[ReportedResult, int]]) -> list[dict[str, Any]]:
    """Return the rows with the largest losses by shift, largest loss first; the page renders them when opened."""
    found: list[tuple[float, dict[str, Any]]] = []
    for result, number in results:
        names = short_splits(list(result.splits))
        for name, rows in list(result.lost_rows.items())[:MOST_ROWS]:
            split = result.splits.get(name)
            if not rows or split is None:
                continue
            page.results[number]["rows"][name] = [_row_data(page, row) for row in rows]
            model = f", {label_of(result)}" if len(results) > 1 else ""
            label = f"{names[name]}: EMID {numeral(split.emid, decimals_of([result]))}{model}"
            context = {"rows": json.dumps([number, name]), "split": name, "label": label, "modality": split.modality}
            found.append((-(split.emid or 0.0), context))
    return [context for _, context in sorted(found, key=lambda pair: pair[0])]


def _row_data(page: _Page, row: ShownRow) -> dict[str, Any]:
    found = row.model_dump(exclude={"image", "clean"})
    clean = row.clean if isinstance(row, LostRow) else None
    return {**found, "image": page.image(row.image), "clean": _row_data(page, clean) if clean else None}


def _p_value(p: float | None) -> tuple[str, float | None]:
    return ("–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"), p


def _with_error(value: float | None, error: float | None, decimals: int, mark: str = "") -> tuple[str, float | None]:
    """Return a score with its standard error as it is shown, and as it sorts."""
    if value is None:
        return "–", None
    return numeral(value, decimals) + ("" if error is None else f" ± {numeral(error, decimals)}") + mark, value


def _write_pictures(results: Sequence[ReportedResult], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, result in enumerate(results):
        for name, ax in plots.pictures_of(result).items():
            label = "".join(
                letter if letter.isalnum() or letter in "-._" else "_" for letter in f"{result.shift}-{result.label}"
            )
            path = folder / f"{number}-{label}-{name}.png"
            path.write_bytes(render(ax, "png"))
            written.append(path)
    return written
