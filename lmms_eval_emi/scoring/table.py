"""The scores of a study as a table for a terminal, with what it takes to read it."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.data.study import SHIFT_MODALITIES
from lmms_eval_emi.scoring.result import SplitScores, StudyResult

DIGITS = ".4g"
NOTHING = "-"
FEW_ROWS = 30  # of a split; fewer say little
MARK = "*"  # behind an EMID that differs from 0
UNFIT = "?"  # behind an EMI that the estimator is not fit for


def result_to_table(result: StudyResult) -> str:
    """All splits with their scores, the means of every modality, and a legend."""
    study = result.study
    rows = []
    degenerate = any(result.degenerate.values())
    for modality, name in _order(result):
        scores = result.splits[name]
        emid = with_error(scores.emid.jackknife, MARK if scores.differs else "") if scores.emid else NOTHING
        rows.append(
            [
                name,
                modality,
                scores.emi.n,
                scores.emi.images,
                *([sum(result.degenerate.get(name, {}).values())] if degenerate else []),
                with_error(scores.emi.jackknife, UNFIT if name in result.unfit else ""),
                emid,
                NOTHING if scores.p_adjusted is None else f"{scores.p_adjusted:.2g}",
                scores.verdict or NOTHING,
                f"{scores.bound.value:{DIGITS}}" if scores.bound else NOTHING,
            ]
        )
    table = tabulate(
        rows,
        headers=[
            *("split", "shift", "n", "images"),
            *(["degenerate"] if degenerate else []),
            *("EMI ± SE", "EMID ± SE", "p", "verdict", "index"),
        ],
        disable_numparse=True,
        colalign=("left", "left", *["right"] * (5 + degenerate), "left", "right"),
    )
    return "\n\n".join((f"{study.title}\nmodel: {result.model}", table, summary_to_table(result), legend(result)))


def _order(result: StudyResult) -> list[tuple[str, str]]:
    """Modality and name of every split that was scored: the ID split, the shifts by modality, the controls, the variants."""
    study = result.study
    names = [("id", study.id_split)]
    names += [(modality, name) for modality in SHIFT_MODALITIES for name in study.shifts(modality)]
    names += [("control", name) for name in study.controls()]
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
    # Once for every model, whatever the number of estimators.
    counted = list({result.model: result for result in results}.values())
    counted = counted if any(any(result.degenerate.values()) for result in counted) else []
    rows = []
    known = {name: modality for result in results for modality, name in _order(result)}
    for name, modality in known.items():
        scores = [result.splits.get(name) for result in results]
        marks = [UNFIT if name in result.unfit else "" for result in results]
        counts = [sum(result.degenerate.get(name, {}).values()) for result in counted]
        rows.append([name, modality, *counts, *map(_emi, scores, marks), *map(_emid, scores)])
    headers = [
        "split",
        "shift",
        *(f"degenerate\n{result.model}" if len(counted) > 1 else "degenerate" for result in counted),
    ]
    headers += [*(f"EMI ± SE\n{column}" for column in columns), *(f"EMID ± SE\n{column}" for column in columns)]
    colalign = ("left", "left", *["right"] * (len(headers) - 2))
    table = tabulate(rows, headers=headers, disable_numparse=True, colalign=colalign)
    overview = tabulate(
        [[column, *_summary_row(result)] for column, result in zip(columns, results, strict=True)],
        headers=["column", "shifts", "mean EMI", "mean EMID ± SE", "mean index", "Pearson r"],
        disable_numparse=True,
    )
    footer = [fit_to_line(result) for result in results]
    footer += [f"signature of {column}  {result.signature}" for column, result in zip(columns, results, strict=True)]
    differ = "\n".join(f"{column}: {differ_to_line(result)}" for column, result in zip(columns, results, strict=True))
    title = results[0].study.title
    meaning = "\n".join((_meaning(results), *dict.fromkeys(footer)))
    parts = (title, table, overview, differ, "\n".join(disagreements_to_lines(results)), meaning)
    return "\n\n".join(part for part in parts if part)


def disagreements_to_lines(results: Sequence[StudyResult]) -> list[str]:
    """Where an estimator gives the EMIDs of a model's shifts another sign than the first, and how often both are sure."""
    lines = []
    leading: dict[tuple[str, str], StudyResult] = {}
    for second in results:
        first = leading.setdefault((second.model, second.study.name), second)
        if first is second:
            continue
        pairs = [
            (name, one.emid, two.emid)
            for name in first.study.shifts()
            if (one := first.splits.get(name)) and (two := second.splits.get(name)) and one.emid and two.emid
        ]
        other = [(name, one, two) for name, one, two in pairs if one.value * two.value < 0]
        sure = [name for name, one, two in other if _is_sure(one.ci95) and _is_sure(two.ci95)]
        names = [dict(result.signature.parts)["estimator"] for result in (first, second)]
        shown = f": {', '.join(name for name, _, _ in other[:3])}{' and more' if len(other) > 3 else ''}"
        lines.append(
            f"{names[0]} and {names[1]} give EMID another sign in {len(other)} of {len(pairs)} shifts of {first.model}"
            + (shown if other else "")
            + (f"; in {len(sure)} of them both intervals leave 0 out" if other else "")
        )
    return lines


def _is_sure(interval: tuple[float, float] | None) -> bool:
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def _emi(scores: SplitScores | None, mark: str) -> str:
    return with_error(scores.emi.jackknife, mark) if scores else NOTHING


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
    elif r != NOTHING:
        r = f"{summary.pearson_r:.1f} (of too few shifts or images to say)"
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
    lines = [
        table,
        *([f"Means are over shifts: {result.study.means}."] if result.study.means else []),
        differ_to_line(result),
    ]
    few = few_rows_to_line(result)
    if few:
        lines.append(few)
    within = result.correlations_within()
    if within:
        listed = "; ".join(f"{kind} {one.value:.2f} ({count} shifts)" for kind, (count, one) in within.items())
        lines.append(f"r within groups of shifts: {listed}")
    operators = result.operator_interval()
    if operators:
        lines.append(f"r over operators drawn with replacement: [{operators[0]:.2f}, {operators[1]:.2f}]")
    return "\n".join(lines)


def few_rows_to_line(result: StudyResult) -> str | None:
    """What to say where splits have fewer rows than a score can be read from."""
    few = {name: one.emi.n for name, one in result.splits.items() if one.emi.n < FEW_ROWS}
    if not few:
        return None
    name = min(few, key=lambda one: few[one])
    return f"{len(few)} of {len(result.splits)} splits have fewer than {FEW_ROWS} rows, such as {name} with {few[name]}: their scores, and any correlation of them, say little."


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
    margin = inference.held_within(result.unit)
    held = f"held: within ±{margin:g}" if margin is not None else f"held needs a --margin in {result.unit}"
    return f"{sum(one.differs for one in shifts)} of {total} shifts differ from 0 ({method}, 5 %): {counts} ({held})"


def legend(result: StudyResult) -> str:
    """What the columns mean, with their sign, and the signature."""
    return f"{_meaning([result])}\n{fit_to_line(result)}\nsignature  {result.signature}"


def fit_to_line(result: StudyResult) -> str:
    """Whether the estimator is fit for the data, and by what evidence, in one line."""
    fit = result.estimator_fit
    evidence = []
    saturated = fit.get("saturated")
    if saturated is not None:
        evidence.append(f"{saturated:.0%} of its outputs are saturated")
    checks = [one for one in fit.get("splits", {}).values() if "references_over_shuffled" in one]
    if checks:
        values = [one["references_over_shuffled"] for one in checks]
        told = sum(one.get("references_told_apart") is True for one in checks)
        evidence.append(
            f"references score {min(values):{DIGITS}} to {max(values):{DIGITS}} above shuffled ones, told apart in {told} of {len(checks)} splits"
        )
    if any(one.get("in_training_data") for one in fit.get("splits", {}).values()) and not fit.get("trained_on"):
        evidence.append("trained on these data, each row scored by networks that did not see its image")
    p_values = [one["p"] for one in fit.get("splits", {}).values() if "p" in one]
    if p_values:
        evidence.append(f"nearness to its training images: smallest p {min(p_values):.2g}")
    if fit.get("ceiling") is not None:
        evidence.append(f"it says at most {fit['ceiling']:{DIGITS}} of so few rows")
    if fit.get("trained_on"):
        evidence.append(f"trained on these data ({fit['trained_on']} rows)")
    alone = " by checks alone, for its file does not record its training data" if fit.get("trained") else ""
    basis = {"card": "", "checks": alone, "none": ""}
    verdict = {"unknown": "not checked"}.get(fit["verdict"], fit["verdict"])
    return f"estimator  {_estimator(result)}: {verdict}{basis.get(fit.get('basis', 'none'), '')}" + (
        f" ({'; '.join(evidence)})" if evidence else ""
    )


def fit_to_warnings(result: StudyResult) -> list[str]:
    """What must be said of an estimator that is not fit for the data, a sentence each."""
    fit, estimator = result.estimator_fit, _estimator(result)
    lines = []
    if fit.get("trained_on"):
        lines.append(
            f"The estimator {estimator} was trained on these data ({fit['trained_on']} rows) and finds more in them than there is. Train with --folds 5, so that no row is scored by a network that saw it."
        )
    for key, what in (
        ("far_splits", "is far from what it was trained on in"),
        ("doubtful_splits", "does not tell references from those of other rows in"),
    ):
        names = fit.get(key, ())
        if names and (key == "far_splits" or fit["verdict"] in ("doubtful", "far")):
            shown = ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
            remedy = (
                "Train one on your own data (train-estimator), or use one that needs no training (--estimator dcor)."
                if fit.get("trained")
                else "As these encoders see them, inputs and references have little to do with each other."
            )
            lines.append(
                f"The estimator {estimator} {what} {len(names)} of {len(result.splits)} splits ({shown}; marked {UNFIT}): do not trust their scores. {remedy}"
            )
    return lines


def _estimator(result: StudyResult) -> str:
    return dict(result.signature.parts)["estimator"]


def _meaning(results: Sequence[StudyResult]) -> str:
    result = results[0]
    scaled = dict(result.signature.parts)["kind"] == "scaled"
    index = "sum of roots of the RJSD" if scaled else "plug-in of the theorem, from the RJSD"
    baselines = [scores.bound.baseline for scores in result.splits.values() if scores.bound]
    without = f"; {baselines[0]:{DIGITS}} without a shift" if baselines else ""
    units = list(dict.fromkeys(one.unit for one in results))
    lines = [
        f"EMI      I(input; response) - I(input; reference), in {' or '.join(units)}; higher is better",
        f"EMID     EMI({result.study.id_split}) - EMI(split); positive: the model lost relevance under the shift",
        "SE       standard error over images; p: EMID differs from 0, adjusted over the shifts; * below 5 %",
        f"index    {index} of images, questions and responses; it correlates with EMID and bounds nothing{without}",
    ]
    if any(one.unfit & set(one.splits) for one in results):
        lines.append(f"{UNFIT}        the estimator is not fit for this split; see the line on it")
    if any(any(one.degenerate.values()) for one in results):
        lines.append(
            "degenerate  responses that are empty, loops, refusals, copies of the question or in another language"
        )
    return "\n".join(lines)
