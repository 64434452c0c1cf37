"""Responses joined with the rows of their study: what is scored, what is not, and why."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.data.response_text import is_failed_request, without_thoughts
from lmms_eval_emi.data.responses import (
    ModelResponses,
    SplitResponses,
    choose_models,
    expected_files,
    find_responses,
    responses_of_study,
)
from lmms_eval_emi.data.rows import RowKey, Sample, column_values, id_text, image_roots, row_key, to_samples
from lmms_eval_emi.data.study import BUILT_IN, Study
from lmms_eval_emi.errors import ResponsesError
from lmms_eval_emi.settings import Settings, load_settings
from lmms_eval_emi.shifts.at_load import load_splits
from lmms_eval_emi.util.printing import one_line

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("lmms_eval_emi")

SHOWN_PROBLEMS = 10


@dataclass
class StudySamples:
    """The responses of one model in one study, as samples.

    Attributes:
        study: study whose splits.
        model: model whose responses.
        samples: samples by split, in the study's order.
        left_out: what could not be used, by split, with the reasons.
        lost: keys of the rows that a split should have and lacks, by split; where splits are compared
            row by row, their partners are left out too.
        notes: what a reader should know of a split, such as that only a part of its rows was asked.
    """

    study: Study
    model: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    lost: dict[str, set[RowKey]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def with_translations(self) -> StudySamples:
        """Return the splits of which every row has a translated reference, with these as the responses."""
        translated = {
            name: [replace(sample, response=sample.translation) for sample in samples if sample.translation]
            for name, samples in self.samples.items()
        }
        return StudySamples(
            self.study,
            self.model,
            {name: rows for name, rows in translated.items() if len(rows) == len(self.samples[name])},
        )

    def copy(self) -> StudySamples:
        """Return an entry with the same reasons, lost rows and notes, and no samples."""
        return replace(
            self,
            samples={},
            left_out={name: list(reasons) for name, reasons in self.left_out.items()},
            lost={name: set(keys) for name, keys in self.lost.items()},
        )

    def keep(self, split: str, samples: list[Sample], reason: str) -> None:
        """Take the samples of a split, or note the reason if there are none."""
        if samples:
            self.samples[split] = samples
        else:
            self.leave_out(split, f"split {split}: {reason}")

    def leave_out(self, split: str, reason: str) -> None:
        """Note why a row or the whole of a split is not used."""
        reasons = self.left_out.setdefault(split, [])
        if reason not in reasons:
            reasons.append(reason)


def collect_samples(
    study: Study,
    folders: Sequence[Path] = (),
    settings: Settings | None = None,
    *,
    splits: Iterable[str] | None = None,
    models: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    allow_missing: bool = False,
) -> list[StudySamples]:
    """Return the samples of each model whose responses are in some folders, or in the files that the study names.

    Args:
        study: study with the rows.
        folders: folders with the responses; default: the files that the study names.
        settings: default: those of the environment.
        splits: splits to use, in addition to the ID split; default: all.
        models: which to take; see :func:`lmms_eval_emi.data.responses.choose_models`.
        renamed: new name of a model by its old one.
        allow_missing: use what is there, and report the rest in ``left_out``.

    Raises:
        ResponsesError: responses are missing or cannot be read, and that is not allowed; or none can be used.
        StudyError: a dataset is not there, or lacks a split or columns.
    """
    names, settings = chosen_splits(study, list(splits or ())), settings or load_settings()
    if not folders:
        if study.source in BUILT_IN:
            raise ResponsesError(f"responses: expected a folder with the responses of {study.name}: --responses DIR.")
        found = {study.name: responses_of_study(study, settings.images)}
    else:
        found = {str(folder): find_responses(folder, study) for folder in folders}
    chosen = choose_models(found, models, renamed)
    labelled = [(model.model or Path(folder).resolve().name, model) for folder, model in chosen]
    seen: Counter[str] = Counter()
    unique = []
    for name, model in labelled:  # two folders may hold runs of one model
        seen[name] += 1
        unique.append((name if seen[name] == 1 else f"{name} ({seen[name]})", model))
    return join_responses(study, unique, names, settings, allow_missing=allow_missing)


def chosen_splits(study: Study, chosen: Sequence[str] = ()) -> list[str]:
    """Return the splits to work on: all, or the chosen ones and the ID split.

    Raises:
        StudyError: a name is not a split of the study.
    """
    if not chosen:
        return list(study.splits)
    wanted = {study.id_split, *(study.split(name).name for name in chosen)}
    return [name for name in study.splits if name in wanted]


def join_responses(
    study: Study,
    models: Sequence[tuple[str, ModelResponses]],
    names: Sequence[str],
    settings: Settings,
    *,
    allow_missing: bool = False,
) -> list[StudySamples]:
    """Join every model's responses with the rows of the study's splits, by question id or row number."""
    joined = []
    for label, model in models:
        entry = StudySamples(study, label)
        for name in names:
            if name not in model.splits:
                entry.leave_out(
                    name, f"{label}: no responses of the split {name}. Expected {expected_files(study, name)}."
                )
        joined.append(entry)
    refuse_unless(allow_missing, joined)
    needed = [name for name in names if any(name in model.splits for _, model in models)]
    rows = load_splits(study, needed, settings)
    for (_, model), entry in zip(models, joined, strict=True):
        for name in needed:
            if name in model.splits:
                add_split(entry, name, rows[name], model.splits[name], settings)
    for (_, model), entry in zip(models, joined, strict=True):
        for line in unmatched_responses(entry.study, model, rows):
            log.warning("%s: %s", entry.model, line)
    refuse_unless(allow_missing, joined)
    for entry in joined:
        if not entry.samples:
            raise ResponsesError(f"{entry.model}: none of the responses can be used.")
    return joined


def unmatched_responses(study: Study, model: ModelResponses, rows: Mapping[str, datasets.Dataset]) -> list[str]:
    """Return lines about responses whose question is in none of the splits that share their file."""
    lines = []
    for path in dict.fromkeys(split.path for split in model.splits.values()):
        sharing = [name for name, split in model.splits.items() if split.path == path]
        if not set(sharing) <= rows.keys():
            continue  # what is not loaded may have them
        known: set[object] = set()
        for name in sharing:
            keyed_by_row = model.splits[name].keyed_by == "row"
            column = study.split(name).dataset.columns.id
            ids = range(len(rows[name])) if keyed_by_row else map(id_text, column_values(rows[name], column))
            known |= set(ids)
        strange = [str(key) for name in sharing[:1] for key in model.splits[name].texts if key not in known]
        if strange:
            shown = ", ".join(strange[:SHOWN_PROBLEMS]) + (", ..." if len(strange) > SHOWN_PROBLEMS else "")
            lines.append(
                f"{path}: {len(strange)} responses are to questions that {' and '.join(sharing[:3])} does not have, and are not used: {shown}."
            )
    return lines


def add_split(
    entry: StudySamples, name: str, rows: datasets.Dataset, responses: SplitResponses, settings: Settings
) -> None:
    """Add the samples of a split to an entry, and note what is missing."""
    ids = column_values(rows, entry.study.split(name).dataset.columns.id)
    for problem in responses.problems:
        entry.leave_out(name, problem)
    doubled = [key for key, count in Counter(map(id_text, ids)).items() if count > 1]
    if responses.keyed_by == "id" and doubled:
        entry.leave_out(
            name,
            f"{name}: question id {doubled[0]} stands in several rows of the dataset, so responses cannot be told apart by it. Name another id column.",
        )
        return
    by_row = responses.by_row(ids)
    missing = [str(key) for row, key in enumerate(ids) if row not in by_row]
    if missing:
        shown = ", ".join(missing[:SHOWN_PROBLEMS]) + (", ..." if len(missing) > SHOWN_PROBLEMS else "")
        entry.leave_out(
            name,
            f"{responses.path}: {len(missing)} of the {len(ids)} questions of {name} have no usable response: question_id {shown}. Add the responses.",
        )
    add_rows(entry, name, rows, by_row, settings)


def add_rows(
    entry: StudySamples,
    name: str,
    rows: datasets.Dataset,
    by_row: Mapping[int, str],
    settings: Settings,
    asked: Iterable[int] | None = None,
) -> None:
    """Add the samples of the rows of a split that have a response.

    Args:
        entry: entry to add to.
        name: name of the split.
        rows: rows of the split.
        by_row: response by row number.
        settings: settings with the folder of images.
        asked: numbers of the rows that should have one; default: all.
    """
    spec = entry.study.split(name).dataset
    problems: dict[int, str] = {}
    asked = range(len(rows)) if asked is None else list(asked)
    by_row = _without_failed(entry, name, by_row)
    if settings.thoughts == "strip":
        by_row = _without_thoughts(entry, name, by_row)
    samples = to_samples(rows, spec.columns, by_row, image_roots(entry.study, spec, settings.images), problems)
    for reason in problems.values():
        entry.leave_out(name, f"split {name}, {reason}")
    if samples:
        entry.samples[name] = samples
    lacking = [row for row in asked if row not in by_row or row in problems]
    if lacking:
        ids, references = (column_values(rows, column) for column in (spec.columns.id, spec.columns.reference))
        keys = {row_key(ids[row], references[row]) for row in lacking}
        entry.lost.setdefault(name, set()).update(keys)


def _without_failed(entry: StudySamples, name: str, by_row: Mapping[int, str]) -> dict[int, str]:
    """Return the responses that are no error messages; how many are is a reason for leaving rows out."""
    kept = {row: text for row, text in by_row.items() if not is_failed_request(text)}
    failed = [text for row, text in by_row.items() if row not in kept]
    if failed:
        entry.leave_out(
            name,
            f"split {name}: {len(failed)} of {len(by_row)} responses are the error message of a failed request, such as {one_line(failed[0], 80)!r}. Ask these again: lmms-eval-emi run keeps the others.",
        )
    return kept


def _without_thoughts(entry: StudySamples, name: str, by_row: Mapping[int, str]) -> dict[int, str]:
    """Return the responses without their thoughts; how many had some is a note."""
    kept = {row: without_thoughts(text) for row, text in by_row.items()}
    changed = [row for row, text in kept.items() if text != by_row[row]]
    if changed:
        nothing = sum(not kept[row] for row in changed)
        entry.notes.setdefault(name, []).append(
            f"the thoughts (such as <think>...</think>) of {len(changed)} of {len(kept)} responses were stripped"
            + (f", and {nothing} are nothing but thoughts" if nothing else "")
        )
    return kept


def refuse_unless(allow_missing: bool, entries: Sequence[StudySamples]) -> None:
    """Raise ``ResponsesError`` with everything that was left out, unless that is allowed."""
    problems = list(
        dict.fromkeys(problem for entry in entries for reasons in entry.left_out.values() for problem in reasons)
    )
    if problems and not allow_missing:
        shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise ResponsesError(
            f"the responses or their rows are not complete:\n{shown}{more}\nFix them, or pass --allow-missing to score the rest."
        )
