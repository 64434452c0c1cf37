"""The scores of a study as a table for a terminal, with what it takes to read it."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.scoring.results import SplitScores, StudyResult
from lmms_eval_emi.studies.schema import SHIFT_MODALITIES

DIGITS = ".4g"
NOTHING = "-"
MARK = "*"  # behind an EMID that differs from 0


def result_to_table(result: StudyResult) -> str:
    """All splits with their scores, the means of every modality, and a legend."""
    study = result.study
    rows = []
    for modality, name in _order(result):
        scores = result.splits[name]
        emid = with_error(scores.emid.jackknife, MARK if scores.differs else "") if scores.emid else NOTHING
        rows.append(
            [
                name,
                modality,
                scores.emi.n,
                scores.emi.images,
                with_error(scores.emi.jackknife),
                emid,
                NOTHING if scores.p_adjusted is None else f"{scores.p_adjusted:.2g}",
                scores.verdict or NOTHING,
                f"{scores.bound.value:{DIGITS}}" if scores.bound else NOTHING,
            ]
        )
    table = tabulate(
        rows,
        headers=["split", "shift", "n", "images", "EMI ± SE", "EMID ± SE", "p", "verdict", "index"],
        disable_numparse=True,
        colalign=("left", "left", *["right"] * 5, "left", "right"),
    )
    return "\n\n".join((f"{study.title}\nmodel: {result.model}", table, summary_to_table(result), legend(result)))


def _order(result: StudyResult) -> list[tuple[str, str]]:
    """Modality and name of every split that was scored: the ID split, the shifts by modality, the variants."""
    study = result.study
    names = [("id", study.id_split)]
    names += [(modality, name) for modality in SHIFT_MODALITIES for name in study.shifts(modality)]
    names += [(f"as {study.splits[name].variant_of}", name) for name in study.variants()]
    return [(modality, name) for modality, name in names if name in result.splits]


def with_error(jackknife: Jackknife, mark: str = "") -> str:
    """A score and its standard error, to the error's second digit: ``0.0123 ± 0.0018``.

    >>> with_error(Jackknife(1.5, ()))
    '1.5'
    """
    error = jackknife.stderr
    if error is None:
        return f"{jackknife.value:{DIGITS}}{mark}"
    shown = f"{error:.2g}"
    digits = len(shown.partition(".")[2]) if "e" not in shown else 0
    value = f"{jackknife.value:.{digits}f}" if digits else f"{jackknife.value:{DIGITS}}"
    return f"{value} ± {shown}{mark}"


def results_to_table(results: Sequence[StudyResult]) -> str:
    """One result as :func:`result_to_table`, several of one study side by side."""
    if len(results) == 1:
        return result_to_table(results[0])
    columns = column_names(results)
    rows = []
    known = {name: modality for result in results for modality, name in _order(result)}
    for name, modality in known.items():
        scores = [result.splits.get(name) for result in results]
        rows.append([name, modality, *map(_emi, scores), *map(_emid, scores)])
    headers = ["split", "shift", *(f"EMI ± SE\n{column}" for column in columns)]
    headers += [f"EMID ± SE\n{column}" for column in columns]
    table = tabulate(
        rows, headers=headers, disable_numparse=True, colalign=("left", "left", *["right"] * 2 * len(columns))
    )
    overview = tabulate(
        [[column, *_summary_row(result)] for column, result in zip(columns, results, strict=True)],
        headers=["column", "shifts", "mean EMI", "mean EMID ± SE", "mean index", "Pearson r"],
        disable_numparse=True,
    )
    footer = [fit_to_line(result) for result in results]
    footer += [f"signature of {column}  {result.signature}" for column, result in zip(columns, results, strict=True)]
    differ = "\n".join(f"{column}: {differ_to_line(result)}" for column, result in zip(columns, results, strict=True))
    title = results[0].study.title
    return "\n\n".join((title, table, overview, differ, "\n".join((_meaning(results[0]), *dict.fromkeys(footer)))))


def _emi(scores: SplitScores | None) -> str:
    return with_error(scores.emi.jackknife) if scores else NOTHING


def _emid(scores: SplitScores | None) -> str:
    return with_error(scores.emid.jackknife, MARK if scores.differs else "") if scores and scores.emid else NOTHING


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


def _summary_row(result: StudyResult, modality: str | None = None) -> list[object]:
    summary, emid = result.summary(modality), result.mean_emid(modality)
    correlation = result.correlation(modality=modality)
    r = NOTHING if summary.pearson_r is None else f"{summary.pearson_r:{DIGITS}}"
    if correlation and correlation.ci95:
        r += f" [{correlation.ci95[0]:.2f}, {correlation.ci95[1]:.2f}]"
    return [
        summary.n_shifts,
        NOTHING if summary.mean_emi is None else f"{summary.mean_emi:{DIGITS}}",
        with_error(emid) if emid else NOTHING,
        NOTHING if summary.mean_bound is None else f"{summary.mean_bound:{DIGITS}}",
        r,
    ]


def summary_to_table(result: StudyResult) -> str:
    """Means over the shifts of each modality, Pearson's r between EMID and index, and how many shifts differ from 0."""
    labels = [(modality, modality) for modality in SHIFT_MODALITIES if result.summary(modality).n_shifts]
    if not labels:
        return "No shift was scored."
    rows = [[label, *_summary_row(result, modality)] for label, modality in labels]
    if len(labels) > 1:
        rows.append(["all", *_summary_row(result)])
    headers = ["shifts", "count", "mean EMI", "mean EMID ± SE", "mean index", "Pearson r [95 %]"]
    table = tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", *["right"] * 4, "left"))
    lines = [table, differ_to_line(result)]
    within = result.correlations_within()
    if within:
        listed = "; ".join(f"{kind} {one.value:.2f} ({count} shifts)" for kind, (count, one) in within.items())
        lines.append(f"r within groups of shifts: {listed}")
    operators = result.operator_interval()
    if operators:
        lines.append(f"r over operators drawn with replacement: [{operators[0]:.2f}, {operators[1]:.2f}]")
    return "\n".join(lines)


def notes_to_lines(result: StudyResult) -> list[str]:
    """What a reader should know of the splits, each remark once."""
    splits: dict[str, list[str]] = {}
    for name, notes in result.notes.items():
        for note in notes:
            splits.setdefault(note, []).append(name)
    return [
        f"{'split' if len(names) == 1 else f'{len(names)} splits, such as'} {names[0]}: {note}"
        for note, names in splits.items()
    ]


def differ_to_line(result: StudyResult) -> str:
    """How many shifts differ from 0, and what became of the others, in one line."""
    total = result.summary().n_shifts
    shifts = [result.splits[name] for name in result.study.shifts() if name in result.splits]
    known = [one for one in shifts if one.p_adjusted is not None]
    if not known:
        return "No shift has images enough for an interval."
    inference = result.inference
    method = {"holm": "Holm", "bh": "Benjamini-Hochberg", "maxt": "max-t", "none": "no adjustment"}[inference.adjust]
    counts = ", ".join(f"{count} {name}" for name, count in result.count_verdicts().items() if count)
    return f"{sum(one.differs for one in shifts)} of {total} shifts differ from 0 ({method}, 5 %): {counts} (held: within ±{inference.held_within:g})"


def legend(result: StudyResult) -> str:
    """What the columns mean, with their sign, and the signature."""
    return f"{_meaning(result)}\n{fit_to_line(result)}\nsignature  {result.signature}"


def fit_to_line(result: StudyResult) -> str:
    """Whether the estimator is fit for the data, in one line."""
    fit = result.estimator_fit
    estimator = dict(result.signature.parts)["estimator"]
    scores = [checks["reference_score"] for checks in fit.get("splits", {}).values()]
    likelihood = f"; log-likelihood of references {min(scores):.4g} to {max(scores):.4g} nats" if scores else ""
    if fit["verdict"] == "unknown":
        return f"estimator  {estimator}: fit for these data unknown, because its file does not record its training data{likelihood}"
    worst: dict[str, dict[str, float]] = {}
    for checks in fit["splits"].values():
        for key, check in checks.items():
            if key == "reference_score":
                continue
            if key not in worst or check["value"] - check["limit"] > worst[key]["value"] - worst[key]["limit"]:
                worst[key] = check
    distances = ", ".join(
        f"{key.replace('_', ' ')} {check['value']:.3g} of {check['limit']:.3g}" for key, check in worst.items()
    )
    far = (
        f"; far: {', '.join(fit['far_splits'][:3])}{' and more' if len(fit['far_splits']) > 3 else ''}"
        if fit["far_splits"]
        else ""
    )
    return f"estimator  {estimator}: {fit['verdict']} ({distances} allowed{likelihood}){far}"


def _meaning(result: StudyResult) -> str:
    scaled = dict(result.signature.parts)["kind"] == "scaled"
    index = "sum of roots of the RJSD" if scaled else "plug-in of the theorem, from the RJSD"
    baselines = [scores.bound.baseline for scores in result.splits.values() if scores.bound]
    without = f"; {baselines[0]:{DIGITS}} without a shift" if baselines else ""
    return "\n".join(
        (
            "EMI      I(input; response) - I(input; reference), in nominal nats; higher is better",
            f"EMID     EMI({result.study.id_split}) - EMI(split); positive: the model lost relevance under the shift",
            "SE       standard error over images; p: EMID differs from 0, adjusted over the shifts; * below 5 %",
            f"index    {index} of images, questions and responses; it correlates with EMID and bounds nothing{without}",
        )
    )
