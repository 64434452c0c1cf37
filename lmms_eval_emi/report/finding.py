"""What was found, in sentences made from results, and which results may be compared."""

from __future__ import annotations

from collections.abc import Sequence

from lmms_eval_emi.core.jackknife import difference
from lmms_eval_emi.core.multiple import ALPHA
from lmms_eval_emi.report.reading import ReportedResult, ReportedSplit

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
    """A model's name as people say it: the last part of a path or hub name."""
    parts = [part for part in model.replace("__", "/").replace("\\", "/").split("/") if part.strip()]
    name = parts[-1] if parts else model
    return name if len(name) <= most else f"{name[: most - 3]}..."


def short_splits(names: Sequence[str]) -> dict[str, str]:
    """Names of splits without the words, up to underscores, that all of them begin with."""
    words = {name: name.split("_") for name in names}
    shared = 0
    if len(words) > 1:
        first = next(iter(words.values()))
        while all(len(own) > shared + 1 and own[shared] == first[shared] for own in words.values()):
            shared += 1
    return {name: "_".join(own[shared:]) for name, own in words.items()}


def decimals_of(results: Sequence[ReportedResult]) -> int:
    """Decimals that show the scores of some results: four for published scores, two for large ones."""
    largest = [
        max((abs(split.emid) for split in result.shifts if split.emid is not None), default=1.0) for result in results
    ]
    smallest = min(largest, default=1.0)
    return 4 if smallest < 0.1 else 3 if smallest < 2 else 2


def numeral(value: float | None, decimals: int) -> str:
    """A number with a true minus sign; a dash for none."""
    if value is None:
        return "–"
    text = f"{value:.{decimals}f}"
    return (text if float(text) else text.lstrip("-")).replace("-", "−")


def in_words(split: ReportedSplit) -> str:
    """A shift as people say it: "defocus blur 5 + keyboard 7"."""
    return " + ".join(str(shift).replace("_", " ") for shift in split.shifts) or split.name


def findings_of_all(results: Sequence[ReportedResult]) -> list[str]:
    """What was found of several results: of one, everything; of more, the first sentence of each."""
    if len(results) == 1:
        return findings_of(results[0])
    several = len({result.study for result in results}) > 1
    lines = [
        (f"{_capital(result.study)} shifts: " if several else "") + findings_of(result)[0]
        for result in results[:MOST_HEADLINES]
    ]
    rest = len(results) - len(lines)
    return [*lines, f"{rest} more results are below."] if rest else lines


def findings_of(result: ReportedResult) -> list[str]:
    """What was found of one model, the most important first."""
    model, decimals = short_name(result.model), decimals_of([result])
    shifts = sorted(result.shifts, key=lambda split: -(split.emid or 0.0))
    if not shifts:
        return [f"No shift of {model} was scored, so there is nothing to compare."]

    def cost(split: ReportedSplit) -> str:
        interval = ""
        if split.emid_ci95:
            interval = f" [{numeral(split.emid_ci95[0], decimals)}, {numeral(split.emid_ci95[1], decimals)}]"
        return f"EMID {numeral(split.emid, decimals)}{interval}"

    lost = [split for split in shifts if split.verdict == "lost"]
    gained = [split for split in reversed(shifts) if split.verdict == "gained"]
    lines = _about_the_scale(result, lost[0] if lost else None)
    if lost:
        most = "most" if _is_first(result, lost) else "as much as any"
        lines.insert(0, f"{_capital(in_words(lost[0]))} costs {model} {most}: {cost(lost[0])}.")
        others = [f"{in_words(split)} ({numeral(split.emid, decimals)})" for split in lost[1 : 1 + MOST_NAMED]]
        if others:
            lines.append(f"Then {'come' if len(others) > 1 else 'comes'} {_listed(others)}.")
        lines.append(f"{len(lost)} of {len(shifts)} shifts cost it something that is told from 0.")
    elif any(split.verdict for split in shifts):
        lines.append(
            f"No loss of {model} is told from 0; the largest EMID is that of {in_words(shifts[0])}, {cost(shifts[0])}."
        )
    elif result.scale is None or result.scale.told_apart is not False:
        lines.append(
            f"The largest EMID of {model} is that of {in_words(shifts[0])}, {cost(shifts[0])}; there are too few images, or no errors, to tell it from noise."
        )
    if gained:
        lines.append(f"{model} gains under {in_words(gained[0])}: {cost(gained[0])}.")
    lines += _within_noise(result)
    counts = {name: sum(split.verdict == name for split in shifts) for name in ("held", "undecided")}
    parts = [
        f"{count} {'held within the margin' if name == 'held' else name}" for name, count in counts.items() if count
    ]
    if parts:
        lines.append(f"Of the {'others' if lost or gained else 'shifts'}: {_listed(parts)}.")
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _within_noise(result: ReportedResult) -> list[str]:
    """Operators whose lower levels are told from nothing while a higher one is lost: "fog up to 3 is within noise"."""
    series: dict[str, list[tuple[int, bool]]] = {}
    for split in result.shifts:
        if len(split.shifts) == 1 and split.shifts[0].severity is not None and split.verdict:
            series.setdefault(split.shifts[0].name, []).append((split.shifts[0].severity, split.differs))
    found = []
    for name, own in series.items():
        levels = sorted(own)
        quiet = [level for level, differs in levels if not differs]
        loud = [level for level, differs in levels if differs]
        if quiet and loud and max(quiet) < min(loud):
            found.append(f"{name.replace('_', ' ')} up to level {max(quiet)}")
    return [f"Not told from 0: {_listed(found[:MOST_NAMED])}."] if found else []


def _about_the_scale(result: ReportedResult, worst: ReportedSplit | None) -> list[str]:
    """What the largest loss is beside the cost of responses to other images, or that there was nothing to lose."""
    scale = result.scale
    if scale is None:
        return []
    if scale.told_apart is False:
        return [
            f"The responses of {short_name(result.model)} hardly depend on the images: responses to other images cost {scale.value:.3f} ± {scale.stderr or 0:.3f}, which is not told from 0. What a shift costs cannot be said."
        ]
    if worst is None or worst.emid is None or scale.value <= 0:
        return []
    share = worst.emid / scale.value
    if share >= 1:
        return [f"Responses to other images cost {scale.value:.3f}, no more than that: nothing is left."]
    return [f"That is {share:.0%} of what responses to other images cost, {scale.value:.3f}."]


def _is_first(result: ReportedResult, lost: Sequence[ReportedSplit]) -> bool:
    """Whether the largest loss is told from the next one, as far as both are known with and without each image."""
    known = [result.emid_jackknives.get(split.name) for split in lost[:2]]
    if len(known) < 2 or known[0] is None or known[1] is None:
        return len(lost) < 2
    p = difference(known[0], known[1]).p_value
    return p is not None and p < ALPHA


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def differences(first: ReportedResult, second: ReportedResult) -> list[str]:
    """Why two results cannot be compared, a clause each; nothing if they can."""
    if first.study != second.study:
        return [f"the study differs ({first.study} and {second.study})"]
    found = []
    for key, clause in COMPARED.items():
        own, other = first.settings.get(key), second.settings.get(key)
        if own is None or other is None or _same(key, own, other):
            continue
        if key == "encoders":
            found += _differing_encoders(own, other)
        else:
            found.append(f"{clause} ({own} and {other})")
    return found


def _same(key: str, own: str, other: str) -> bool:
    if own == other:
        return True
    # Published scores name encoders and estimators without the fingerprints that ours have.
    if key == "encoders":
        return all(_same_part(a, b) for a, b in zip(own.split("+"), other.split("+"), strict=False))
    return key == "estimator" and _same_part(own, other)


def _same_part(own: str, other: str) -> bool:
    (name, _, mark), (other_name, _, other_mark) = (one.replace("@", "#").partition("#") for one in (own, other))
    return name == other_name and (not mark or not other_mark or mark == other_mark)


def _differing_encoders(own: str, other: str) -> list[str]:
    found = []
    for what, a, b in zip(("image", "text"), own.split("+"), other.split("+"), strict=False):
        if not _same_part(a, b):
            names = [one.partition("#")[0] for one in (a, b)]
            weights = f"its weights, of {names[0]}" if names[0] == names[1] else f"{names[0]} and {names[1]}"
            found.append(f"the {what} encoder differs ({weights})")
    return found


def comparable_groups(results: Sequence[ReportedResult]) -> list[list[int]]:
    """Numbers of the results that may be compared with each other, group by group."""
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
    """Whether results are those of one model's responses by several estimators."""
    estimators = {one.settings.get("estimator") for one in results}
    others = {key for key in COMPARED if key not in ("estimator", "unit")}
    alike = all(len({one.settings.get(key) for one in results}) == 1 for key in others)
    return alike and len(estimators) == len(results)


def _agreement_of_measures(results: Sequence[ReportedResult]) -> str:
    """Whether several measures of the same responses agree in the sign of EMID, in a sentence."""
    names = [str(one.settings.get("estimator", "")).partition("@")[0] for one in results]
    emids = [{split.name: split.emid for split in one.shifts if split.emid} for one in results]
    shared = [name for name in emids[0] if all(name in own for own in emids)]
    apart = [name for name in shared if len({own[name] > 0 for own in emids}) > 1]
    found = f"they agree in the sign of EMID on {len(shared) - len(apart)} of {len(shared)} shifts"
    where = f", and not on {_listed(apart[:MOST_NAMED])}" if apart else ""
    return f"{len(results)} measures of the same responses ({_listed(names)}): {found}{where}. Their scales differ, so values are not compared."


def comparability_lines(results: Sequence[ReportedResult]) -> list[str]:
    """Whether several results are comparable, in sentences; none for a single result."""
    if len(results) < 2:
        return []
    if len({(one.study, one.model) for one in results}) == 1 and _differ_by_measure_alone(results):
        return [_agreement_of_measures(results)]
    groups = comparable_groups(results)
    if len(groups) == 1:
        return [f"Comparable: {_listed([one.label for one in results])}."]
    first = results[groups[0][0]]
    lines = []
    for group in groups[1:]:
        other = results[group[0]]
        lines.append(
            f"Not comparable: {_listed([results[one].label for one in group])} with {first.label}, because {_listed(differences(first, other))}."
        )
    return lines
