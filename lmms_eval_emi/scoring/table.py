"""The scores of a study as a table for a terminal, with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmms_eval_emi.data.study import SHIFT_MODALITIES
from lmms_eval_emi.scoring.beside import BesideResult, disagreements
from lmms_eval_emi.scoring.result import SplitResult, StudyResult
from lmms_eval_emi.util.printing import MARK, NOTHING, number, table, with_error

FEW_ROWS = 30  # rows of a split; fewer say little
UNFIT = "?"  # behind an EMI that the estimator is not fit for


def result_to_table(result: StudyResult) -> str:
    """Return all splits with their scores, the means of every modality, and a legend."""
    degenerate = any(split.degenerate for split in result.splits.values())
    extra = extra_columns()
    beside = measures_of(result)
    rows = []
    for modality, name in _order(result):
        split = result.splits[name]
        rows.append(
            [
                name,
                modality,
                split.n,
                split.images,
                *([sum((split.degenerate or {}).values())] if degenerate else []),
                _emi(split, UNFIT if name in result.unfit else ""),
                _emid(split, UNFIT if name in result.unfit else ""),
                number(split.emid_p_adjusted, ".2g"),
                (split.verdict or NOTHING) + (UNFIT if split.verdict and name in result.unfit else ""),
                *(_emid_beside(split.beside.get(kind)) for kind in beside),
                number(split.emid_bound),
                *(_cell(getattr(split, field)) for field in extra),
            ]
        )
    shown = table(
        rows,
        headers=[
            *("split", "shift", "n", "images"),
            *(["degenerate"] if degenerate else []),
            *("EMI ± SE", "EMID ± SE", "p", "verdict"),
            *(f"EMID,\n{kind}" for kind in beside),
            "index",
            *extra.values(),
        ],
        colalign=("left", "left", *["right"] * (5 + degenerate), "left", *["right"] * (1 + len(beside) + len(extra))),
    )
    title = f"{result.title}\nmodel: {result.model}"
    return "\n\n".join((title, shown, summary_to_table(result), legend(result)))


def extra_columns() -> dict[str, str]:
    """Return the fields of a split that ask for a column of the table, by the column's name."""
    found = {}
    for name, field in SplitResult.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "column" in extra:
            found[name] = str(extra["column"])
    return found


def _cell(value: object) -> str:
    return number(value) if value is None or isinstance(value, float) else str(value)


def _order(result: StudyResult) -> list[tuple[str, str]]:
    """Return the modality and name of each split: the ID split, the shifts by modality, the controls, the variants."""
    splits = result.splits
    names = [("id", result.id_split)] if result.id_split in splits else []
    plain = {name: split for name, split in splits.items() if split.variant_of is None and name != result.id_split}
    for modality in (*SHIFT_MODALITIES, "control"):
        names += [(modality, name) for name, split in plain.items() if split.modality == modality]
    names += [(f"as {split.variant_of}", name) for name, split in splits.items() if split.variant_of is not None]
    return names


def results_to_table(results: Sequence[StudyResult]) -> str:
    """Return one result as :func:`result_to_table`, several of one study side by side."""
    if len(results) == 1:
        return result_to_table(results[0])
    columns = column_names(results)
    # Once for every model, whatever the number of estimators.
    counted = list({result.model: result for result in results}.values())
    if not any(split.degenerate for result in counted for split in result.splits.values()):
        counted = []
    rows = []
    known = {name: modality for result in results for modality, name in _order(result)}
    for name, modality in known.items():
        scores = [result.splits.get(name) for result in results]
        marks = [UNFIT if name in result.unfit else "" for result in results]
        counts = [sum(_degenerate(result, name).values()) for result in counted]
        rows.append([name, modality, *counts, *map(_emi, scores, marks), *map(_emid, scores)])
    headers = [
        "split",
        "shift",
        *(f"degenerate\n{result.model}" if len(counted) > 1 else "degenerate" for result in counted),
    ]
    headers += [*(f"EMI ± SE\n{column}" for column in columns), *(f"EMID ± SE\n{column}" for column in columns)]
    colalign = ("left", "left", *["right"] * (len(headers) - 2))
    shown = table(rows, headers, colalign=colalign)
    overview = table(
        [[column, *_summary_row(result)] for column, result in zip(columns, results, strict=True)],
        ["column", "shifts", "mean EMI", "mean EMID ± SE", "mean index", "Pearson r"],
    )
    footer = [line for result in results for line in (scale_to_line(result), trend_to_line(result)) if line]
    footer += [fit_to_line(result) for result in results]
    footer += [f"signature of {column}  {result.signature}" for column, result in zip(columns, results, strict=True)]
    differ = "\n".join(f"{column}: {differ_to_line(result)}" for column, result in zip(columns, results, strict=True))
    title = results[0].title
    meaning = "\n".join((_meaning(results), *dict.fromkeys(footer)))
    parts = (title, shown, overview, differ, "\n".join(disagreements_to_lines(results)), meaning)
    return "\n\n".join(part for part in parts if part)


def disagreements_to_lines(results: Sequence[StudyResult]) -> list[str]:
    """Return where an estimator gives the EMIDs of a model's shifts another sign than the first, and how often both are sure."""
    lines = []
    leading: dict[tuple[str, str], StudyResult] = {}
    for second in results:
        first = leading.setdefault((second.model, second.shift), second)
        if first is second:
            continue
        pairs = [
            (name, split, second.splits[name]) for name, split in first.shifts().items() if name in second.shifts()
        ]
        other = [(name, first, second) for name, first, second in pairs if (first.emid or 0) * (second.emid or 0) < 0]
        sure = [name for name, first, second in other if sign_of(first.emid_ci95) and sign_of(second.emid_ci95)]
        names = [result.estimator for result in (first, second)]
        shown = f": {', '.join(name for name, _, _ in other[:3])}{' and more' if len(other) > 3 else ''}"
        lines.append(
            f"{names[0]} and {names[1]} give EMID another sign in {len(other)} of {len(pairs)} shifts of {first.model}"
            + (shown if other else "")
            + (f"; in {len(sure)} of them both intervals leave 0 out" if other else "")
        )
    return lines


def sign_of(interval: Sequence[float] | None) -> int:
    """Return 1 for an interval above 0, -1 for one below 0, and 0 otherwise."""
    return 0 if interval is None else (interval[0] > 0) - (interval[1] < 0)


def _degenerate(result: StudyResult, name: str) -> Mapping[str, int]:
    return (result.splits[name].degenerate if name in result.splits else None) or {}


def _emi(split: SplitResult | None, mark: str) -> str:
    return with_error(split.emi, split.emi_stderr, mark) if split else NOTHING


def _emid(split: SplitResult | None, mark: str = "") -> str:
    return with_error(split.emid, split.emid_stderr, (MARK if split.differs else "") + mark) if split else NOTHING


def measures_of(result: StudyResult) -> list[str]:
    """Return the names of the measures that a result has beside its score."""
    return list(dict.fromkeys(kind for split in result.splits.values() for kind in split.beside))


def _emid_beside(measure: BesideResult | None) -> str:
    return with_error(measure.emid, measure.emid_stderr, MARK if measure.sign else "") if measure else NOTHING


def beside_to_lines(result: StudyResult) -> list[str]:
    """Return a sentence for each measure beside the score that is sure of another sign of EMID."""
    shifts = result.shifts()
    signs = {name: sign_of(split.emid_ci95) for name, split in shifts.items()}
    found = disagreements({name: split.beside for name, split in shifts.items()}, signs)
    return [
        f"{kind} is sure of another sign of EMID than {result.estimator.partition('@')[0]} in {len(names)} of {len(shifts)} shifts: {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
        for kind, names in found.items()
    ]


def design_to_line(result: StudyResult) -> str:
    """Return how much rows of one image are worth, in one line; empty where every row has its own image."""
    known = [
        split.emi_design_effect
        for split in result.splits.values()
        if split.emi_design_effect is not None and split.n and split.images and split.n > split.images
    ]
    if not known:
        return ""
    return f"design     rows of one image are not independent: the variance of EMI is {min(known):.2g} to {max(known):.2g} times that of as many independent rows"


def column_names(results: Sequence[StudyResult]) -> list[str]:
    """Return a column name for each result: its model, its estimator, or both."""
    estimators = [result.estimator for result in results]
    models = [result.model for result in results]
    if len(set(models)) == len(results):
        return models
    return (
        estimators
        if len(set(estimators)) == len(results)
        else [f"{model}, {estimator}" for model, estimator in zip(models, estimators, strict=True)]
    )


def _summary_row(result: StudyResult, modality: str | None = None) -> list[object]:
    summary = result.summary if modality is None else result.summary.by_modality[modality]
    r = number(summary.pearson_r)
    if summary.pearson_r_ci95:
        r += f" [{summary.pearson_r_ci95[0]:.2f}, {summary.pearson_r_ci95[1]:.2f}]"
    elif summary.pearson_r is not None:
        r = f"{NOTHING} (too few shifts or images)"
    return [
        summary.n_shifts,
        number(summary.mean_emi),
        with_error(summary.mean_emid, summary.mean_emid_stderr),
        number(summary.mean_bound),
        r,
    ]


def summary_to_table(result: StudyResult) -> str:
    """Return means over the shifts of each modality, Pearson's r between EMID and index, and how many shifts differ from 0."""
    labels = [(name, name) for name, summary in result.summary.by_modality.items() if summary.n_shifts]
    if not labels:
        return "No shift was scored."
    rows = [[label, *_summary_row(result, modality)] for label, modality in labels]
    if len(labels) > 1:
        rows.append(["all", *_summary_row(result)])
    headers = ["shifts", "count", "mean EMI", "mean EMID ± SE", "mean index", "Pearson r [95 %]"]
    lines = [
        table(rows, headers, colalign=("left", *["right"] * 4, "left")),
        *([f"Means are over shifts: {result.study.means}."] if result.study and result.study.means else []),
        differ_to_line(result),
    ]
    few = few_rows_to_line(result)
    if few:
        lines.append(few)
    within = result.summary.pearson_r_within
    if within:
        listed = "; ".join(f"{kind} {group.pearson_r:.2f} ({group.n_shifts} shifts)" for kind, group in within.items())
        lines.append(f"r within groups of shifts: {listed}")
    operators = result.summary.pearson_r_operators_ci95
    if operators:
        lines.append(f"r over operators drawn with replacement: [{operators[0]:.2f}, {operators[1]:.2f}]")
    return "\n".join(lines)


def few_rows_to_line(result: StudyResult) -> str | None:
    """Return the warning about splits with very few rows, or ``None``."""
    few = {name: split.n for name, split in result.splits.items() if split.n is not None and split.n < FEW_ROWS}
    if not few:
        return None
    name = min(few, key=lambda split: few[split])
    return f"{len(few)} of {len(result.splits)} splits have fewer than {FEW_ROWS} rows, such as {name} with {few[name]}: their scores, and any correlation of them, say little."


def left_out_to_lines(result: StudyResult, limit: int = 10) -> list[str]:
    """Return the rows and splits that were left out of a result, as lines for a log; long lists are cut."""
    lines = []
    for reasons in result.left_out.values():
        lines += [*reasons[:limit], *([f"and {len(reasons) - limit} more"] if len(reasons) > limit else [])]
    return lines


def notes_to_lines(result: StudyResult) -> list[str]:
    """Return the remarks on the splits, each once."""
    splits: dict[str, list[str]] = {}
    for name, notes in result.notes.items():
        for note in notes:
            splits.setdefault(note, []).append(name)
    return [
        f"{'split' if len(names) == 1 else f'{len(names)} splits, such as'} {names[0]}: {note}"
        for note, names in splits.items()
    ]


def differ_to_line(result: StudyResult) -> str:
    """Return in one line how many shifts have an EMID that differs from 0, and the verdicts on the others."""
    summary = result.summary
    if all(split.emid_p_adjusted is None for split in result.shifts().values()):
        return "No shift has images enough for an interval."
    methods = {"holm": "Holm", "bh": "Benjamini-Hochberg", "maxt": "max-t", "none": "no adjustment"}
    counts = ", ".join(f"{count} {name}" for name, count in summary.verdicts.items() if count)
    margin = summary.margin
    held = f"held: within ±{margin:.3g}" if margin is not None else "held needs --margin or --margin-share"
    return f"{summary.n_differ} of {summary.n_shifts} shifts differ from 0 ({methods[summary.adjust]}, 5 %): {counts or 'no verdicts'} ({held})"


def scale_in_words(result: StudyResult) -> str:
    """Return a sentence on the scale of EMID, the loss with responses to other images; empty if it is not known."""
    scale = result.scale
    if scale is None:
        return ""
    error = "" if scale.stderr is None else f" ± {scale.stderr:.4g}"
    cost = f"responses to other images of the ID split cost {scale.value:.4g}{error}"
    if scale.distinguishable is False:
        return (
            f"{cost}, which does not differ from 0: the responses hardly depend on the images, so no verdict is given"
        )
    shifts = {name: split.emid for name, split in result.shifts().items() if split.emid is not None}
    if not shifts or scale.value <= 0:
        return cost
    worst = max(shifts, key=lambda name: shifts[name])
    return (
        f"{cost}, which is all that a shift can take; {worst} takes {max(0.0, shifts[worst]) / scale.value:.0%} of it"
    )


def trend_in_words(result: StudyResult) -> str:
    """Return how EMI changes over a series of splits; empty if there is none."""
    trend = result.trend
    if trend is None:
        return ""
    error = "" if trend.stderr is None else f" ± {trend.stderr:.2g}"
    p = "" if trend.p is None else f", p {trend.p:.2g}"
    return f"EMI changes by {trend.slope:+.3g}{error} per step from {trend.splits[0]} to {trend.splits[-1]}{p}"


def trend_to_line(result: StudyResult) -> str:
    """Return the trend as a line under a table; empty if there is none."""
    words = trend_in_words(result)
    return f"trend      {words}" if words else ""


def scale_to_line(result: StudyResult) -> str:
    """Return the scale as a line under a table; empty if it is not known."""
    words = scale_in_words(result)
    return f"scale      {words}" if words else ""


def legend(result: StudyResult) -> str:
    """Return the legend of the table: the meaning and sign of each column, and the signature."""
    lines = [_meaning([result]), *beside_to_lines(result), scale_to_line(result), trend_to_line(result)]
    lines += [design_to_line(result)]
    return "\n".join(filter(None, [*lines, fit_to_line(result), f"signature  {result.signature}"]))


def fit_to_line(result: StudyResult) -> str:
    """Return whether the estimator is fit for the data, and by what evidence, in one line."""
    fit = result.estimator_fit
    checks = fit.splits.values()
    evidence = []
    if fit.saturated is not None:
        evidence.append(f"{fit.saturated:.0%} of its outputs are saturated")
    values = [check.references_over_shuffled for check in checks if check.references_over_shuffled is not None]
    if values:
        told = sum(check.references_distinguishable is True for check in checks)
        evidence.append(
            f"references score {min(values):.4g} to {max(values):.4g} above shuffled ones, distinguishable in {told} of {len(values)} splits"
        )
    if any(check.in_training_data for check in checks) and not fit.trained_on:
        evidence.append("trained on these data, each row scored by networks that did not see its image")
    p_values = [check.p for check in checks if check.p is not None]
    if p_values:
        evidence.append(f"nearness to its training images: smallest p {min(p_values):.2g}")
    if fit.ceiling is not None:
        evidence.append(f"it says at most {fit.ceiling:.4g} of so few rows")
    if fit.trained_on:
        evidence.append(f"trained on these data ({fit.trained_on} rows)")
    alone = " by checks alone, for its file does not record its training data" if fit.trained else ""
    basis = alone if fit.basis == "checks" else ""
    verdict = "not checked" if fit.verdict == "unknown" else fit.verdict
    return f"estimator  {result.estimator}: {verdict}{basis}" + (f" ({'; '.join(evidence)})" if evidence else "")


def fit_to_warnings(result: StudyResult) -> list[str]:
    """Return a warning for each reason why an estimator is not fit for the data."""
    fit, estimator = result.estimator_fit, result.estimator
    lines = []
    if fit.trained_on:
        lines.append(
            f"The estimator {estimator} was trained on these data ({fit.trained_on} rows) and finds more in them than there is. Train with --folds 5, so that no row is scored by a network that saw it."
        )
    for names, what, always in (
        (fit.far_splits, "is far from what it was trained on in", True),
        (fit.doubtful_splits, "does not tell references from those of other rows in", False),
    ):
        if names and (always or fit.verdict in ("doubtful", "far")):
            shown = ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
            remedy = (
                "Train one on your own data (estimators train), or use one that needs no training (--estimator dcor)."
                if fit.trained
                else "As these encoders see them, inputs and references have little to do with each other."
            )
            lines.append(
                f"The estimator {estimator} {what} {len(names)} of {len(result.splits)} splits ({shown}; marked {UNFIT}): do not trust their scores. {remedy}"
            )
    return lines


def _meaning(results: Sequence[StudyResult]) -> str:
    result = results[0]
    scaled = result.settings.get("kind") == "scaled"
    index = "sum of roots of the RJSD" if scaled else "plug-in of the theorem, from the RJSD"
    baselines = [split.emid_bound_baseline for split in result.splits.values() if split.emid_bound_baseline is not None]
    without = f"; {baselines[0]:.4g} without a shift" if baselines else ""
    units = list(dict.fromkeys(result.unit for result in results))
    lines = [
        f"EMI      I(input; response) - I(input; reference), in {' or '.join(units)}; higher is better",
        f"EMID     EMI({result.id_split}) - EMI(split); positive: the model lost relevance under the shift",
        "SE       standard error over images; p: EMID differs from 0, adjusted over the shifts; * below 5 %",
        f"index    {index} of images, questions and responses; it correlates with EMID and bounds nothing{without}",
    ]
    if len(results) == 1 and measures_of(result):
        lines.append(
            f"EMID, {' and '.join(measures_of(result))}: the same difference by measures of response and reference alone; * where the interval leaves 0 out, without adjustment"
        )
    if any(result.unfit & set(result.splits) for result in results):
        lines.append(f"{UNFIT}        the estimator is not fit for this split; see the line on it")
    if any(split.degenerate for result in results for split in result.splits.values()):
        lines.append(
            "degenerate  responses that are empty, loops, refusals, copies of the question or in another language"
        )
    return "\n".join(lines)
