"""Reports: one self-contained HTML page, or tables and plots in other formats."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import unicodedata
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from lmms_eval_emi.files import write_atomically
from lmms_eval_emi.report.plots import pictures_of, plot_agreement, plot_models
from lmms_eval_emi.report.reading import JSDS, Findings, ReportedResult, published_results
from lmms_eval_emi.scoring.stored import StoredAgreement, StoredAudit, StoredCorrelation, StoredFinding
from lmms_eval_emi.studies.schema import BUILT_IN, BUNDLED, load_study
from lmms_eval_emi.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("html", "md", "csv", "latex", "png")
MEASURES = {"pearson_r": "Pearson", "spearman_r": "Spearman", "kendall_tau": "Kendall"}
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
    compare: bool = True,
    findings: Findings | None = None,
) -> list[Path]:
    """Write a report.

    Args:
        results: to show.
        output: file to write; for ``png`` a folder, with one file per plot.
        format: one of :data:`FORMATS`.
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
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}.")
    return [write_atomically(output, to_text(results, format))]


def to_text(results: Sequence[ReportedResult], format: str) -> str:
    """All results as one table, in Markdown, CSV or LaTeX; CSV has all digits."""
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
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["figure"] = lambda cell: (
        f"{cell:.4g}" if isinstance(cell, float) else "–" if cell is None else cell
    )
    template = environment.from_string(
        resources.files("lmms_eval_emi.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    studies = []
    for name in dict.fromkeys(result.study for result in results):
        own = [result for result in results if result.study == name]
        shown = own + (published_results(name) if compare and _is_family(own, name) else [])
        summaries = [result.summary() for result in shown]
        studies.append(
            {
                "title": next((result.title for result in own if result.title), _title(name)),
                "signatures": [(result.label, result.signature) for result in shown] if len(shown) > 1 else [],
                "summary_headers": ["model", *summaries[0]],
                "summary_rows": [
                    [result.label, *summary.values()] for result, summary in zip(shown, summaries, strict=True)
                ],
                "models": _data_uri(plot_models(shown))
                if len(shown) > 1 and any(result.shifts for result in shown)
                else "",
                "results": [_context(result) for result in own],
            }
        )
    findings = findings or Findings()
    models = ", ".join(dict.fromkeys(result.model for result in results))
    text = template.render(
        title=f"Shift report: {models}" if results else "Findings",
        studies=studies,
        agreements=[_agreement_context(one) for one in findings.agreements],
        audits=[_audit_context(audit) for audit in findings.audits],
        version=__version__,
        policy=POLICY,
    )
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() if script else ""
    return text.replace(POLICY, f"{POLICY}; script-src 'sha256-{digest}'", 1)


def _is_family(results: Sequence[ReportedResult], study: str) -> bool:
    """Whether results of a study of this name are of the built-in family, and not of another that is called so."""
    return study in BUILT_IN and all(set(result.splits) <= set(load_study(study).splits) for result in results)


def _context(result: ReportedResult) -> dict[str, Any]:
    return {
        "label": result.label,
        "pictures": {name.replace("-", " "): _data_uri(ax) for name, ax in pictures_of(result).items()},
        "headers": HEADERS,
        "rows": sorted(_rows(result), key=lambda row: -row[HEADERS.index("EMID")])[:MOST_ROWS],
        "more": max(0, len(result.shifts) - MOST_ROWS),
        "lost": dict(list(result.lost_rows.items())[:MOST_ROWS]),
        "footer": result.footer,
        "signature": result.signature,
        "source": result.source,
    }


def _audit_context(audit: StoredAudit) -> dict[str, Any]:
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
    rows = [[name, *(_audit_cell(one, name) for one in audit.findings)] for name in names]
    return {
        "title": f"{_title(audit.study)}, split {audit.split}",
        "headers": headers,
        "rows": rows,
        "sentences": sentences,
        "encoders": encoders,
    }


def _agreement_context(found: StoredAgreement) -> dict[str, Any]:
    """Correlations as a table, a scatter of the splits, and what they mean in sentences."""
    names = {"emi": "EMI", "emid": "EMID", "index": "index", "cosine": "cosine", "lead": "lead over the cosine"}
    rows = [
        [names.get(what, what), target, *(_correlation_cell(own.get(measure)) for measure in MEASURES)]
        for target, known in ((found.score, found.over_splits), (f"loss of {found.score}", found.over_shifts))
        for what, own in known.items()
        if any(own.values())
    ]
    return {
        "title": f"{found.model}, {_title(found.study)}: {found.score}",
        "headers": ["", "with", *MEASURES.values()],
        "rows": rows,
        "sentences": found.findings,
        "picture": _data_uri(plot_agreement(found)),
        "alt": f"Every split: EMI or EMID against {found.score}",
        "points": {
            "headers": ["split", found.score, "its loss", "EMI", "EMID", "index", "cosine"],
            "rows": [[p.split, p.score, p.loss, p.emi, p.emid, p.index, p.cosine] for p in found.points[:MOST_ROWS]],
        },
    }


def _correlation_cell(one: StoredCorrelation | None) -> str:
    if one is None:
        return "–"
    return f"{one.value:+.3f}" + (f" [{one.ci95[0]:+.2f}, {one.ci95[1]:+.2f}]" if one.ci95 else "")


def _audit_cell(finding: StoredFinding, name: str) -> str:
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
    import matplotlib as mpl

    buffer = io.BytesIO()
    # Text stays text, and the same results give the same bytes.
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "lmms_eval_emi", "font.family": ["DejaVu Sans", "sans-serif"]}
    ):
        metadata = {"Date": None} if format == "svg" else {}
        _figure(ax).savefig(buffer, format=format, dpi=200, metadata=metadata, bbox_inches="tight")
    return buffer.getvalue()


def _data_uri(ax: Axes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(_render(ax, "svg")).decode("ascii")


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
        raise ValueError("ax: expected axes of a figure.")
    return figure
