"""Sentences on the findings in results, and the decision which results may be compared."""

from __future__ import annotations

from collections.abc import Sequence

from lmms_eval_emi.core.jackknife import ALPHA, difference
from lmms_eval_emi.data.response_text import KINDS
from lmms_eval_emi.report.reading import ReportedResult
from lmms_eval_emi.scoring.result import SplitResult
from lmms_eval_emi.scoring.table import beside_to_lines

MOST_NAMED = 3
MOST_HEADLINES = 6
COMPARED = {
    "encoders": "the encoders differ",
    "estimator": "the estimator differs",
    "convention": "the convention of the RJSD differs",
    "kind": "the kind of index differs",
    "unit": "the unit of EMI differs",
}


def short_name(model: str, most: int = 60) -> str:
    """Return a model's name as people say it: the last part of a path or hub name."""
    parts = [part for part in model.replace("__", "/").replace("\\", "/").split("/") if part.strip()]
    name = parts[-1] if parts else model
    return name if len(name) <= most else f"{name[: most - 3]}..."


def short_splits(names: Sequence[str]) -> dict[str, str]:
    """Return names of splits without the words, up to underscores, that all of them begin with."""
    words = {name: name.split("_") for name in names}
    shared = 0
    if len(words) > 1:
        first = next(iter(words.values()))
        while all(len(parts) > shared + 1 and parts[shared] == first[shared] for parts in words.values()):
            shared += 1
    return {name: "_".join(parts[shared:]) for name, parts in words.items()}


def decimals_of(results: Sequence[ReportedResult]) -> int:
    """Return the decimals that show the scores of some results: four for published scores, two for large ones."""
    largest = [
        max((abs(split.emid) for split in result.shifts().values() if split.emid is not None), default=1.0)
        for result in results
    ]
    smallest = min(largest, default=1.0)
    return 4 if smallest < 0.1 else 3 if smallest < 2 else 2


def numeral(value: float | None, decimals: int) -> str:
    """Return a number with a true minus sign; a dash for none."""
    if value is None:
        return "–"
    text = f"{value:.{decimals}f}"
    return (text if float(text) else text.lstrip("-")).replace("-", "−")


def in_words(split: SplitResult) -> str:
    """Return a shift as people say it: "defocus blur 5 + keyboard 7"."""
    return " + ".join(str(shift).replace("_", " ") for shift in split.shifts) or split.name


def findings_of_all(results: Sequence[ReportedResult]) -> list[str]:
    """Return the findings of several results: of one, all; of more, the first sentence of each and its subject."""
    if len(results) == 1:
        return findings_of(results[0])
    studies = len({result.shift for result in results}) > 1
    estimators = len({(result.shift, result.model) for result in results}) < len(results)
    lines = []
    for result in results[:MOST_HEADLINES]:
        subject = f"{_capital(result.shift)} shifts: " if studies else ""
        subject += f"By {result.estimator.partition('@')[0]}: " if estimators and result.estimator else ""
        lines.append(subject + findings_of(result)[0])
    rest = len(results) - len(lines)
    return [*lines, f"{rest} more results are below."] if rest else lines


def findings_of(result: ReportedResult) -> list[str]:
    """Return sentences about one result, the most important first."""
    model, decimals = short_name(result.model), decimals_of([result])
    shifts = sorted(result.shifts().values(), key=lambda split: -(split.estimate or 0.0))
    if not shifts:
        return [f"No shift of {model} was scored, so there is nothing to compare."]
    if result.scale is not None and result.scale.distinguishable is False:
        return [_nothing_to_lose(result), *beside_to_lines(result)]
    lost = [split for split in shifts if split.verdict == "lost"]
    gained = [split for split in reversed(shifts) if split.verdict == "gained"]
    undecided = [split for split in shifts if split.verdict == "undecided"]
    lines = []
    if lost:
        lines += _about_losses(result, lost, decimals)
        larger = [split for split in undecided if (split.estimate or 0.0) > (lost[0].estimate or 0.0)]
        if larger:
            lines.append(
                f"Larger, but with an interval that includes 0: {_listed([_with_value(split, decimals) for split in larger[:MOST_NAMED]])}."
            )
    elif gained and len(gained) == len(shifts):
        lines.append(f"{model} gains under all {len(shifts)} shifts, which by this measure is no loss anywhere.")
    elif any(split.verdict for split in shifts):
        lines.append(
            f"No shift costs {model} a loss that differs from 0; the largest EMID is that of {in_words(shifts[0])}: {_cost(shifts[0], decimals)}."
        )
    else:
        lines.append(
            f"The largest EMID of {model} is that of {in_words(shifts[0])}: {_cost(shifts[0], decimals)}. There are too few images for a test."
        )
    lines += _about_degenerate(result, lost or shifts[:1], decimals)
    lines += beside_to_lines(result)
    if gained and len(gained) < len(shifts):
        lines.append(f"{model} gains under {in_words(gained[0])}: {_cost(gained[0], decimals)}.")
    lines += _first_levels(result)
    counts = {name: sum(split.verdict == name for split in shifts) for name in ("held", "undecided")}
    parts = [f"{count} {'within the margin' if name == 'held' else name}" for name, count in counts.items() if count]
    if parts:
        lines.append(f"Of the {'other' if lost or gained else len(shifts)} shifts, {_listed(parts)}.")
    return lines


def _cost(split: SplitResult, decimals: int) -> str:
    """Return EMID with the interval that is around it."""
    interval = split.emid_ci95
    within = f" [{numeral(interval[0], decimals)}, {numeral(interval[1], decimals)}]" if interval else ""
    return f"EMID {numeral(split.estimate, decimals)}{within}"


def _with_value(split: SplitResult, decimals: int) -> str:
    return f"{in_words(split)} ({numeral(split.estimate, decimals)})"


def _about_losses(result: ReportedResult, lost: Sequence[SplitResult], decimals: int) -> list[str]:
    """Return sentences about the largest loss, its share of the maximum loss, and the next ones."""
    model = short_name(result.model)
    if _is_first(result, lost):
        lines = [f"{_capital(in_words(lost[0]))} costs {model} most: {_cost(lost[0], decimals)}."]
    else:
        lines = [
            f"{_capital(in_words(lost[0]))} has the largest loss of {model}, {_cost(lost[0], decimals)}, but the next one is not significantly smaller."
        ]
    lines += _beside_the_scale(result, lost[0])
    if lost[0].modality == "text" and lost[0].emid_inputs is not None:
        inputs, responses = (numeral(part, decimals) for part in (lost[0].emid_inputs, lost[0].emid_responses))
        lines.append(
            f"Of it, {inputs} come from the changed questions alone, with the responses held fixed, and {responses} from the responses."
        )
    if lost[0].emid_translation is not None:
        translation, left = (
            numeral(part, decimals)
            for part in (lost[0].emid_translation, (lost[0].estimate or 0.0) - lost[0].emid_translation)
        )
        lines.append(
            f"Correct responses in its language lose {translation}, which is the encoder's part; {left} of the loss is left."
        )
    others = [_with_value(split, decimals) for split in lost[1 : 1 + MOST_NAMED]]
    if others:
        lines.append(f"Then {'come' if len(others) > 1 else 'comes'} {_listed(others)}.")
    lines.append(f"{len(lost)} of {len(result.shifts())} shifts cost it a loss that differs from 0.")
    return lines


def _about_degenerate(result: ReportedResult, splits: Sequence[SplitResult], decimals: int) -> list[str]:
    """Return a sentence on the loss without loops, refusals and other degenerate responses, for splits with many of them."""
    lines = []
    for split in splits[:MOST_NAMED]:
        if split.emid_without_degenerate is None or not split.degenerate or not split.n:
            continue
        kind = max(split.degenerate, key=lambda kind: (split.degenerate or {})[kind])
        share = sum(split.degenerate.values()) / split.n
        lines.append(
            f"{_capital(in_words(split))}: {share:.0%} of the responses are degenerate, most of them {KINDS[kind]}; without them EMID {numeral(split.emid, decimals)} becomes {numeral(split.emid_without_degenerate, decimals)}."
        )
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _first_levels(result: ReportedResult) -> list[str]:
    """Return operators whose higher severities differ from 0 while the lower ones do not."""
    series: dict[str, list[tuple[int, bool]]] = {}
    for split in result.shifts().values():
        if len(split.shifts) == 1 and split.shifts[0].severity is not None and split.verdict:
            differs = split.verdict in ("lost", "gained")
            series.setdefault(split.shifts[0].name, []).append((split.shifts[0].severity, differs))
    found = []
    for name, values in series.items():
        quiet = [level for level, differs in values if not differs]
        loud = [level for level, differs in values if differs]
        if quiet and loud and max(quiet) < min(loud):
            found.append(f"{name.replace('_', ' ')} from severity {min(loud)}")
    return [f"A loss is first significant for {_listed(found[:MOST_NAMED])}."] if found else []


def _nothing_to_lose(result: ReportedResult) -> str:
    scale = result.scale
    value, error = (scale.value, scale.stderr or 0.0) if scale else (0.0, 0.0)
    return f"By this measure the responses of {short_name(result.model)} hardly depend on the images: exchanging them between images costs {value:.3f} ± {error:.3f}. Where there is nothing to lose, no verdict on a shift is given."


def _beside_the_scale(result: ReportedResult, worst: SplitResult) -> list[str]:
    """Return the largest loss as a fraction of the cost of exchanging all responses between images."""
    scale = result.scale
    if scale is None or worst.emid is None or scale.value <= 0:
        return []
    share = worst.emid / scale.value
    if share >= 1:
        return [
            f"Exchanging the responses between images costs no more than that ({scale.value:.3f}): the responses keep nothing that is specific to their image."
        ]
    return [f"That is {share:.0%} of the cost of exchanging the responses between images, {scale.value:.3f}."]


def _is_first(result: ReportedResult, lost: Sequence[SplitResult]) -> bool:
    """Return whether the largest loss differs significantly from the next one, if both are known with their leave-one-image-out values."""
    known = [result.emid_jackknives.get(split.name) for split in lost[:2]]
    if len(known) < 2 or known[0] is None or known[1] is None:
        return len(lost) < 2
    p = difference(known[0], known[1]).p_value
    return p is not None and p < ALPHA


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def differences(first: ReportedResult, second: ReportedResult) -> list[str]:
    """Return why two results cannot be compared, one clause each; nothing if they can."""
    if first.shift != second.shift:
        return [f"the study differs ({first.shift} and {second.shift})"]
    found = []
    for key, clause in COMPARED.items():
        first_value, other = _setting(first, key), _setting(second, key)
        if not first_value or not other or _same(key, first_value, other):
            continue
        if key == "encoders":
            found += _differing_encoders(first_value, other)
        else:
            found.append(f"{clause} ({first_value} and {other})")
    return found


def _setting(result: ReportedResult, key: str) -> str:
    return result.unit if key == "unit" and result.settings else str(result.settings.get(key, ""))


def _same(key: str, first: str, other: str) -> bool:
    if first == other:
        return True
    # Published scores name encoders and estimators without the fingerprints that ours have.
    if key == "encoders":
        return all(_same_part(a, b) for a, b in zip(first.split("+"), other.split("+"), strict=False))
    return key == "estimator" and _same_part(first, other)


def _same_part(first: str, other: str) -> bool:
    (name, _, mark), (other_name, _, other_mark) = (
        marked.replace("@", "#").partition("#") for marked in (first, other)
    )
    return name == other_name and (not mark or not other_mark or mark == other_mark)


def _differing_encoders(first: str, other: str) -> list[str]:
    found = []
    for what, a, b in zip(("image", "text"), first.split("+"), other.split("+"), strict=False):
        if not _same_part(a, b):
            names = [side.partition("#")[0] for side in (a, b)]
            weights = f"its weights, of {names[0]}" if names[0] == names[1] else f"{names[0]} and {names[1]}"
            found.append(f"the {what} encoder differs ({weights})")
    return found


def comparable_groups(results: Sequence[ReportedResult]) -> list[list[int]]:
    """Return the numbers of the results that may be compared with each other, group by group."""
    groups: list[list[int]] = []
    for place, result in enumerate(results):
        for group in groups:
            if not differences(results[group[0]], result):
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


def _differ_by_measure_alone(results: Sequence[ReportedResult]) -> bool:
    """Return whether results are those of one model's responses by several estimators."""
    estimators = {result.estimator for result in results}
    others = {key for key in COMPARED if key not in ("estimator", "unit")}
    alike = all(len({_setting(result, key) for result in results}) == 1 for key in others)
    return alike and len(estimators) == len(results)


def _agreement_of_measures(results: Sequence[ReportedResult]) -> str:
    """Return a sentence on how many shifts have the same sign of EMID by all estimators."""
    names = [result.estimator.partition("@")[0] for result in results]
    emids = [{name: split.emid for name, split in result.shifts().items() if split.emid} for result in results]
    shared = [name for name in emids[0] if all(name in emid for emid in emids)]
    apart = [name for name in shared if len({emid[name] > 0 for emid in emids}) > 1]
    found = f"they agree in the sign of EMID on {len(shared) - len(apart)} of {len(shared)} shifts"
    where = f", and not on {_listed(apart[:MOST_NAMED])}" if apart else ""
    return f"{len(results)} measures of the same responses ({_listed(names)}): {found}{where}. Their scales differ, so values are not compared."


def comparability_lines(results: Sequence[ReportedResult]) -> list[str]:
    """Return whether several results are comparable, in sentences; none for a single result."""
    if len(results) < 2:
        return []
    if len({(result.shift, result.model) for result in results}) == 1 and _differ_by_measure_alone(results):
        return [_agreement_of_measures(results)]
    groups = comparable_groups(results)
    if len(groups) == 1:
        return [f"Comparable: {_listed([result.label for result in results])}."]
    first = results[groups[0][0]]
    lines = []
    for group in groups[1:]:
        other = results[group[0]]
        lines.append(
            f"Not comparable: {_listed([results[position].label for position in group])} with {first.label}, because {_listed(differences(first, other))}."
        )
    return lines
