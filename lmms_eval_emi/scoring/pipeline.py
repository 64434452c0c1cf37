"""The one way from responses to results, which a harness, the command line and Python users share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.streaming import SplitStatistics
from lmms_eval_emi.estimators import Estimator
from lmms_eval_emi.files import threads
from lmms_eval_emi.samples import SampleError, without_images
from lmms_eval_emi.scoring.degenerate import counts_by_kind, kinds_of, release_languages
from lmms_eval_emi.scoring.embedding import CacheOf, cache_of_embeddings, embed_good_rows
from lmms_eval_emi.scoring.joining import StudySamples, chosen_splits, collect_samples
from lmms_eval_emi.scoring.memo import Memo
from lmms_eval_emi.scoring.preflight import Instruments, load_estimators, load_instruments
from lmms_eval_emi.scoring.ranks import merged_over_ranks, part_of_rank, rank
from lmms_eval_emi.scoring.results import Inference, StudyResult, notes_on_samples, score_statistics, score_study
from lmms_eval_emi.scoring.stores import SplitStore, Store, StoreError
from lmms_eval_emi.settings import Settings, load_settings, override_settings
from lmms_eval_emi.studies.schema import Study, load_study

log = logging.getLogger("lmms_eval_emi")
MOST_IN_MEMORY = 20_000  # rows of a split that is scored as a whole


# Statistics of the splits of a study, each read once.
ReadOnce = Callable[[Study, Mapping[str, SplitStore], Estimator], dict[str, SplitStatistics]]


@dataclass(frozen=True)
class Scored:
    """A result with the samples that it was made of, whose rows are in the order of the embeddings.

    Attributes:
        result: of one model and estimator.
        samples: none where embeddings were given.
        embeddings: of the samples, by split.
    """

    result: StudyResult
    samples: StudySamples
    embeddings: Mapping[str, Embeddings] = field(default_factory=dict, repr=False)


def score(
    study: Study | str | Path,
    responses: Sequence[str | Path] | str | Path = (),
    *,
    models: Sequence[str] = (),
    splits: Sequence[str] = (),
    estimators: Sequence[str] = (),
    allow_missing: bool = False,
    settings: Settings | None = None,
    **overrides: Any,
) -> list[StudyResult]:
    """Score the responses of models in a study.

    Args:
        study: a built-in name (``natural``, ``synthetic``, ``demo``), the path of a study file, or a study.
        responses: folders of response files, or output folders of a harness; default: the files that the
            study names.
        models: which models to take; ``all`` takes every one. Without any, each folder must hold one.
        splits: to score, beside the ID split; default: all.
        estimators: names or paths, one result each; default: that of the settings.
        allow_missing: score what is there. A row that cannot be used is left out of its split, with its
            reason, and a split that cannot be scored is left out of the study.
        settings: default: those of the environment.
        overrides: single settings by name, such as ``convention="equal_weight"``.

    Returns:
        One :class:`StudyResult` for every model and estimator.

    Raises:
        ResponsesError: responses are missing or cannot be read.
        StudyError: the study, or one of its datasets, is not there or cannot be read.
        SampleError: rows that cannot be embedded, all of them, before anything is encoded.
        PreflightError: an encoder or estimator is missing, or they do not fit each other.
    """
    study = study if isinstance(study, Study) else load_study(study)
    settings = settings if settings and not overrides else override_settings({**dict(settings or {}), **overrides})
    folders = [Path(responses)] if isinstance(responses, str | Path) else [Path(folder) for folder in responses]
    entries = collect_samples(study, folders, splits=splits, models=models, allow_missing=allow_missing)
    scored = score_samples(entries, settings, estimators=estimators, allow_missing=allow_missing)
    return [one.result for one in scored]


def score_samples(
    entries: Sequence[StudySamples],
    settings: Settings | None = None,
    *,
    estimators: Sequence[str] = (),
    instruments: Instruments | None = None,
    allow_missing: bool = False,
) -> list[Scored]:
    """Score the samples of some models and studies; each distinct image and text of all is encoded once.

    Args:
        entries: samples of each model in each study.
        settings: default: those of the environment.
        estimators: names or paths; default: that of the settings.
        instruments: encoders and estimators, if they are loaded already.
        allow_missing: as in :func:`score`.

    Returns:
        One result for every entry and estimator, entry by entry. A study of which no split can be scored
        has a result without splits, which says why.

    Raises:
        SampleError, PreflightError: as :func:`score`.
    """
    settings = settings or load_settings()
    memo = Memo(settings) if settings.cache_limit else None
    with threads(1) as beside:  # told from texts alone, while images are encoded
        told = [beside.submit(kinds_of, entry.samples, memo) for entry in entries]
        beside.submit(release_languages)
        if settings.without_degenerate:
            entries = [_without(entry, one.result()) for entry, one in zip(entries, told, strict=True)]
        own = instruments is None
        instruments = instruments or load_instruments(settings, estimators, text_only=_text_only(entries))
        embedded = embed_samples(
            entries,
            instruments,
            batch_size=settings.batch_size,
            allow_missing=allow_missing,
            cache=cache_of_embeddings(settings),
            release=own,
        )
        degenerate = [one.result() for one in told]
    scored: list[Scored] = []
    if rank():  # the first has all embeddings and scores them
        return scored
    for (entry, embeddings), kinds in zip(embedded, degenerate, strict=True):
        notes = notes_on_samples(entry.samples)
        for name, lines in entry.notes.items():
            notes.setdefault(name, []).extend(lines)
        for estimator in instruments.estimators:
            result = score_study(
                entry.study,
                embeddings,
                estimator,
                model=entry.model,
                convention=settings.convention,
                entropy=settings.entropy,
                left_out=entry.left_out,
                notes=notes,
                lost=entry.lost,
                degenerate=counts_by_kind(kinds),
                without_degenerate=settings.without_degenerate,
                inference=Inference(settings.resamples, settings.seed, settings.adjust, settings.margin),
                memo=memo,
            )
            scored.append(Scored(result, entry, embeddings))
    return scored


def score_store(
    study: Study,
    store: Store,
    settings: Settings | None = None,
    *,
    estimators: Sequence[str] = (),
    splits: Sequence[str] = (),
    allow_missing: bool = False,
    read: ReadOnce | None = None,
) -> list[Scored]:
    """Score embeddings that exist already.

    Splits of up to 20,000 rows are scored like any others. Larger ones are read once, a part at a time; see
    :mod:`lmms_eval_emi.core.streaming` for what they lack.

    Args:
        study: that the splits are of.
        store: with their embeddings.
        settings: default: those of the environment.
        estimators: names or paths; default: that of the settings.
        splits: to score, beside the ID split; default: all.
        allow_missing: score the splits that are there.
        read: reads large splits in the place of :func:`accumulate`, such as that of an engine.

    Returns:
        One result for every estimator.

    Raises:
        StoreError: a split is missing or cannot be read.
        PreflightError: an estimator is missing, or was trained with other encoders.
    """
    settings = settings or load_settings()
    names = chosen_splits(study, splits)
    missing = [name for name in names if name not in store.splits]
    if missing and not allow_missing:
        raise StoreError(
            f"{store.path}: expected the embeddings of {', '.join(names[:3])} and so on; missing are {', '.join(missing[:10])}. Add them, or pass --allow-missing to score the rest."
        )
    left_out = {name: [f"split {name}: no embeddings in {store.path}"] for name in missing}
    chosen = {name: store.splits[name] for name in names if name in store.splits}
    loaded = load_estimators(settings, estimators, store.encoders)
    common: dict[str, Any] = {
        "model": store.model,
        "convention": settings.convention,
        "entropy": settings.entropy,
        "left_out": left_out,
        "inference": Inference(settings.resamples, settings.seed, settings.adjust, settings.margin),
    }
    try:
        if max(one.n for one in chosen.values()) <= MOST_IN_MEMORY:
            embeddings = {name: one.load() for name, one in chosen.items()}
            memo = Memo(settings) if settings.cache_limit else None
            results = [score_study(study, embeddings, estimator, memo=memo, **common) for estimator in loaded]
        else:
            once = read or accumulate
            results = [
                score_statistics(study, once(study, chosen, estimator), estimator, **common) for estimator in loaded
            ]
    except (OSError, ValueError) as error:
        raise StoreError(f"{store.path}: {error}") from error
    return [Scored(result, StudySamples(study, store.model)) for result in results]


def accumulate(study: Study, splits: Mapping[str, SplitStore], estimator: Estimator) -> dict[str, SplitStatistics]:
    """Statistics of splits, each read once; the ID split first, whose clusters its shifts share.

    In a process group every rank reads its part of each split, and all get the sums of all.
    """
    order = sorted(splits, key=lambda name: name != study.id_split)
    found: dict[str, SplitStatistics] = {}
    total = sum(split.n for split in splits.values())
    with tqdm(total=total, desc="Reading embeddings", unit="", leave=False, dynamic_ncols=True) as bar:
        for name in order:
            id = found.get(study.id_split)
            statistics = SplitStatistics(
                estimator,  # type: ignore[arg-type]
                partners=id.as_partners() if id else None,
                keep_partners=name == study.id_split,
            )
            start, stop = part_of_rank(splits[name].n)
            for rows in splits[name].parts(start, stop):
                statistics.add(rows)
                bar.update(rows.n)
            found[name] = merged_over_ranks(statistics)
    return found


def embed_samples(
    entries: Sequence[StudySamples],
    instruments: Instruments,
    *,
    batch_size: int = 64,
    allow_missing: bool = False,
    cache: CacheOf | None = None,
    release: bool = False,
) -> list[tuple[StudySamples, dict[str, Embeddings]]]:
    """Embed the samples of some models and studies together.

    Args:
        entries: samples of each model in each study.
        instruments: whose encoders are taken.
        batch_size, cache, release: as in :func:`~lmms_eval_emi.scoring.embedding.embed_good_rows`.
        allow_missing: leave bad rows out.

    Returns:
        Every entry without its bad rows, which its ``left_out`` and ``lost`` name, and its embeddings by split.

    Raises:
        SampleError: bad rows that are not allowed, or no good ones at all.
    """
    labels = _labels(entries)
    together = {
        label: entries[number].samples[name]
        for (number, name), label in labels.items()
        if entries[number].samples[name]
    }
    if not together:
        raise SampleError("expected rows to embed, got none.")
    embedded, bad = embed_good_rows(
        together,
        instruments.encoders,
        batch_size=batch_size,
        strict=not allow_missing,
        cache=cache,
        release=release,
    )
    bad_rows: dict[str, list[Any]] = {}
    for one in bad:
        bad_rows.setdefault(one.split, []).append(one)
    cleaned = []
    for number, entry in enumerate(entries):
        good = StudySamples(
            entry.study,
            entry.model,
            left_out={name: list(reasons) for name, reasons in entry.left_out.items()},
            lost={name: set(keys) for name, keys in entry.lost.items()},
            notes=entry.notes,
        )
        embeddings = {}
        for name, samples in entry.samples.items():
            label = labels[number, name]
            excluded = bad_rows.get(label, [])
            for one in excluded:
                good.leave_out(name, f"split {name}, row {one.id}: {one.reason}")
                good.lost.setdefault(name, set()).add(samples[one.row].key)
            numbers = {one.row for one in excluded}
            rows = [sample for row, sample in enumerate(samples) if row not in numbers]
            if rows:
                good.samples[name] = rows
                embeddings[name] = embedded[label]
            else:
                good.leave_out(name, f"split {name}: none of its rows can be embedded")
        cleaned.append((good, embeddings))
    return cleaned


def _without(entry: StudySamples, kinds: Mapping[str, Sequence[str | None]]) -> StudySamples:
    """The samples whose responses are not degenerate; partners of the others are left out of comparisons too."""
    kept = replace(
        entry,
        samples={},
        left_out={name: list(reasons) for name, reasons in entry.left_out.items()},
        lost={name: set(keys) for name, keys in entry.lost.items()},
    )
    for name, samples in entry.samples.items():
        good = [sample for sample, kind in zip(samples, kinds[name], strict=True) if kind is None]
        kept.lost.setdefault(name, set()).update(
            sample.key for sample, kind in zip(samples, kinds[name], strict=True) if kind is not None
        )
        if good:
            kept.samples[name] = good
        else:
            kept.leave_out(name, f"split {name}: all of its {len(samples)} responses are degenerate")
    return kept


def _text_only(entries: Sequence[StudySamples]) -> bool:
    return all(without_images(entry.samples) for entry in entries)


def _labels(entries: Sequence[StudySamples]) -> dict[tuple[int, str], str]:
    """What messages call every split: by its name, and by model and study only where that is needed."""
    labels: dict[tuple[int, str], str] = {}
    names = Counter(name for entry in entries for name in entry.samples)
    owners = Counter((name, entry.model) for entry in entries for name in entry.samples)
    for number, entry in enumerate(entries):
        for name in entry.samples:
            label = name if names[name] == 1 else f"{name} of {entry.model}"
            if owners[name, entry.model] > 1:
                label += f" in {entry.study.name}"
            labels[number, name] = label if label not in labels.values() else f"{label} ({number + 1})"
    return labels


def left_out_lines(entries: Mapping[str, Sequence[str]] | StudySamples, most: int = 10) -> list[str]:
    """What was left out of a result, as lines for a log; long lists are cut, and say so."""
    left_out = entries.left_out if isinstance(entries, StudySamples) else entries
    lines = []
    for reasons in left_out.values():
        lines += list(reasons[:most]) + ([f"and {len(reasons) - most} more"] if len(reasons) > most else [])
    return lines
