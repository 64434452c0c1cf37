"""A study's figures as a table for a terminal, with what it takes to read it."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from lmms_eval_emi.scoring.results import StudyResult
from lmms_eval_emi.studies.schema import SHIFT_MODALITIES

DIGITS = ".4g"


def result_to_table(result: StudyResult) -> str:
    """All splits with their figures, the means of every modality, and a legend."""
    study = result.study
    rows: list[list[object]] = []
    for modality in ("id", *SHIFT_MODALITIES):
        for name, split in study.splits.items():
            if split.modality == modality and name in result.splits:
                figures = result.splits[name]
                rows.append(
                    [
                        name,
                        modality,
                        figures.emi.n,
                        figures.emi.value,
                        *(
                            (figures.emid.value, figures.bound.value)
                            if figures.emid and figures.bound
                            else (None, None)
                        ),
                    ]
                )
    table = tabulate(
        rows,
        headers=["split", "shift", "n", "EMI", "EMID", "bound"],
        floatfmt=DIGITS,
        missingval="-",
        disable_numparse=[0, 1],
    )
    return "\n\n".join((f"{study.title}\nmodel: {result.model}", table, summary_to_table(result), legend(result)))


def results_to_table(results: Sequence[StudyResult]) -> str:
    """One result as :func:`result_to_table`, several of one study side by side."""
    if len(results) == 1:
        return result_to_table(results[0])
    study = results[0].study
    columns = column_names(results)
    rows: list[list[object]] = []
    for modality in ("id", *SHIFT_MODALITIES):
        for name, split in study.splits.items():
            figures = [result.splits.get(name) for result in results]
            if split.modality == modality and any(figures):
                rows.append(
                    [
                        name,
                        modality,
                        *(figure.emi.value if figure else None for figure in figures),
                        *(figure.emid.value if figure and figure.emid else None for figure in figures),
                    ]
                )
    headers = ["split", "shift", *(f"EMI\n{column}" for column in columns), *(f"EMID\n{column}" for column in columns)]
    table = tabulate(rows, headers=headers, floatfmt=DIGITS, missingval="-", disable_numparse=[0, 1])
    summaries = [result.summary() for result in results]
    means = [
        [column, summary.n_shifts, summary.mean_emi, summary.mean_emid, summary.mean_bound, summary.pearson_r]
        for column, summary in zip(columns, summaries, strict=True)
    ]
    overview = tabulate(
        means,
        headers=["column", "shifts", "mean EMI", "mean EMID", "mean bound", "Pearson r"],
        floatfmt=DIGITS,
        missingval="-",
        disable_numparse=[0],
    )
    fits = "\n".join(dict.fromkeys(fit_to_line(result) for result in results))
    signatures = (
        fits
        + "\n"
        + "\n".join(
            f"signature of {column}  {result.signature}" for column, result in zip(columns, results, strict=True)
        )
    )
    return "\n\n".join((study.title, table, overview, _meaning(results[0]) + "\n" + signatures))


def column_names(results: Sequence[StudyResult]) -> list[str]:
    """What tells several results apart: the models, the estimators, or both."""
    estimators = [dict(result.signature.parts)["estimator"] for result in results]
    models = [result.model for result in results]
    if len(set(models)) == len(results):
        return models
    return (
        estimators
        if len(set(estimators)) == len(results)
        else [f"{model}, {estimator}" for model, estimator in zip(models, estimators, strict=True)]
    )


def summary_to_table(result: StudyResult) -> str:
    """Means over the shifts of each modality, and Pearson's r between EMID and bound."""
    rows = []
    for label, modality in (*((modality, modality) for modality in SHIFT_MODALITIES), ("all", None)):
        summary = result.summary(modality)
        if summary.n_shifts:
            rows.append(
                [label, summary.n_shifts, summary.mean_emi, summary.mean_emid, summary.mean_bound, summary.pearson_r]
            )
    if len(rows) == 2:  # one modality alone is all
        rows.pop()
    return (
        tabulate(
            rows,
            headers=["shifts", "count", "mean EMI", "mean EMID", "mean bound", "Pearson r"],
            floatfmt=DIGITS,
            missingval="-",
            disable_numparse=[0],
        )
        if rows
        else "No shift was scored."
    )


def legend(result: StudyResult) -> str:
    """What the columns mean, in nats and with their sign, and the signature."""
    return f"{_meaning(result)}\n{fit_to_line(result)}\nsignature  {result.signature}"


def fit_to_line(result: StudyResult) -> str:
    """Whether the estimator is fit for the data, in one line."""
    fit = result.estimator_fit
    estimator = dict(result.signature.parts)["estimator"]
    scores = [checks["reference_score"] for checks in fit.get("splits", {}).values()]
    likelihood = f"; score of references {min(scores):.4g} to {max(scores):.4g} nats" if scores else ""
    if fit["verdict"] == "unknown":
        return f"estimator  {estimator}: unknown whether it is fit for these data, for nothing says what it was trained on{likelihood}"
    worst: dict[str, dict[str, float]] = {}
    for checks in fit["splits"].values():
        for key, check in checks.items():
            if key == "reference_score":
                continue
            if key not in worst or check["value"] - check["limit"] > worst[key]["value"] - worst[key]["limit"]:
                worst[key] = check
    figures = ", ".join(
        f"{key.replace('_', ' ')} {check['value']:.3g} of {check['limit']:.3g}" for key, check in worst.items()
    )
    far = (
        f"; far: {', '.join(fit['far_splits'][:3])}{' and more' if len(fit['far_splits']) > 3 else ''}"
        if fit["far_splits"]
        else ""
    )
    return f"estimator  {estimator}: {fit['verdict']} ({figures} allowed{likelihood}){far}"


def _meaning(result: StudyResult) -> str:
    scaled = dict(result.signature.parts)["kind"] == "scaled"
    guarantee = "an index that goes with EMID, no guarantee" if scaled else "the theorem's bound on EMID"
    return "\n".join(
        (
            "EMI    I(input; response) - I(input; reference), in nats; higher is better",
            f"EMID   EMI({result.study.id_split}) - EMI(split); positive: the model lost relevance under the shift",
            f"bound  of EMID from the RJSD of images, questions and responses; {guarantee}",
            "r      Pearson's correlation of EMID and bound over the shifts",
        )
    )
