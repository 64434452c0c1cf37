"""The one way from responses to results, which a harness, the command line and Python users share."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.streaming import SplitStatistics
from lmms_eval_emi.core.workers import settle_threads
from lmms_eval_emi.estimators import Estimator
from lmms_eval_emi.util.files import threads
from lmms_eval_emi.memory import give_back
from lmms_eval_emi.data.sample import SampleError, without_images
from lmms_eval_emi.scoring.degenerate import counts_by_kind, kinds_of, release_languages
from lmms_eval_emi.scoring.embed import BadRow, CacheOf, TextsReady, cache_of_embeddings, embed_groups
from lmms_eval_emi.scoring.join import StudySamples, chosen_splits, collect_samples
from lmms_eval_emi.scoring.memo import Memo
from lmms_eval_emi.scoring.preflight import Instruments, load_estimators, load_instruments
from lmms_eval_emi.scoring.distributed import merged_over_ranks, part_of_rank, rank
from lmms_eval_emi.scoring.result import (
    Inference,
    StudyResult,
    begin_scores,
    notes_on_samples,
    score_statistics,
    score_study,
)
from lmms_eval_emi.scoring.rows import Scored
from lmms_eval_emi.scoring.embedding_files import SplitStore, Store, StoreError
from lmms_eval_emi.settings import Settings, load_settings, override_settings
from lmms_eval_emi.data.study import Study, load_study

log = logging.getLogger("lmms_eval_emi")
MOST_IN_MEMORY = 20_000  # rows of a split that is scored as a whole


# Statistics of the splits of a study, each read once.
ReadOnce = Callable[[Study, Mapping[str, SplitStore], Estimator], dict[str, SplitStatistics]]


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
    entries: Iterable[StudySamples],
    settings: Settings | None = None,
    *,
    estimators: Sequence[str] = (),
    instruments: Instruments | None = None,
    allow_missing: bool = False,
    to_write: bool = False,
) -> list[Scored]:
    """Score the samples of some models and studies; each distinct image and text of all is encoded once.

    Args:
        entries: samples of each model in each study; they may be made as they are asked for.
        settings: default: those of the environment.
        estimators: names or paths; default: that of the settings.
        instruments: encoders and estimators, if they are loaded already.
        allow_missing: as in :func:`score`.
        to_write: make what is written of every result as well, while others are scored.

    Returns:
        One result for every entry and estimator, entry by entry. A study of which no split can be scored
        has a result without splits, which says why.

    Raises:
        SampleError, PreflightError: as :func:`score`.
    """
    settings = settings or load_settings()
    memo = Memo(settings) if settings.cache_limit else None
    own = instruments is None
    # Kinds are told from texts alone, while images are encoded, and a study is scored while those of the next are.
    with threads(1) as telling, threads(1, settle_threads) as scoring:
        collected, told = [], []
        for entry in entries:
            collected.append(entry)
            told.append(telling.submit(kinds_of, entry.samples, memo))
        telling.submit(release_languages)
        if settings.without_degenerate:
            collected = [_without(entry, one.result()) for entry, one in zip(collected, told, strict=True)]
        instruments = instruments or load_instruments(settings, estimators, text_only=_text_only(collected))

        stopped = threading.Event()

        def begin(number: int, by_text: Mapping[str, Embeddings]) -> None:  # an error comes again where it is scored
            if rank() == 0:
                work = partial(begin_scores, collected[number].study, by_text, convention=settings.convention)
                scoring.submit(work, inference=_inference(settings), memo=memo, stopped=stopped)

        embedded = embed_samples(
            collected,
            instruments,
            batch_size=settings.batch_size,
            allow_missing=allow_missing,
            cache=cache_of_embeddings(settings),
            release=own,
            texts_ready=begin,
        )
        results = []
        with closing(embedded), _set_by_an_error(stopped):
            for (entry, embeddings), kinds in zip(embedded, told, strict=True):
                if rank() == 0:  # the first has all embeddings and scores them
                    results.append(scoring.submit(_scored, entry, embeddings, kinds, instruments, settings, memo))
                    if to_write:  # an error in it costs no score, and comes again where it is written
                        scoring.submit(lambda scored: [(one.rows, one.entry) for one in scored.result()], results[-1])
        return [one for result in results for one in result.result()]


def _scored(
    entry: StudySamples,
    embeddings: Mapping[str, Embeddings],
    kinds: Future[dict[str, list[str | None]]],
    instruments: Instruments,
    settings: Settings,
    memo: Memo | None,
) -> list[Scored]:
    """The results of one model in one study, one of each estimator."""
    notes = notes_on_samples(entry.samples)
    for name, lines in entry.notes.items():
        notes.setdefault(name, []).extend(lines)
    counts = counts_by_kind(kinds.result())
    results = [
        score_study(
            entry.study,
            embeddings,
            estimator,
            model=entry.model,
            convention=settings.convention,
            entropy=settings.entropy,
            left_out=entry.left_out,
            notes=notes,
            lost=entry.lost,
            degenerate=counts,
            without_degenerate=settings.without_degenerate,
            inference=_inference(settings),
            memo=memo,
        )
        for estimator in instruments.estimators
    ]
    give_back()
    return [Scored(result, entry, embeddings) for result in results]


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
        "inference": _inference(settings),
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
    texts_ready: TextsReady | None = None,
) -> Generator[tuple[StudySamples, dict[str, Embeddings]], None, None]:
    """Embed the samples of some models and studies together; each is there as soon as its images are encoded.

    Args:
        entries: samples of each model in each study.
        instruments: whose encoders are taken.
        batch_size, cache, release, texts_ready: as in :func:`~lmms_eval_emi.scoring.embed.embed_groups`, with the
            entries for groups.
        allow_missing: leave bad rows out.

    Yields:
        Every entry in its order, without its bad rows, which its ``left_out`` and ``lost`` name, and its embeddings by split.

    Raises:
        SampleError: bad rows that are not allowed, or no good ones at all.
    """
    labels = _labels(entries)
    groups = [
        {labels[number, name]: samples for name, samples in entry.samples.items() if samples}
        for number, entry in enumerate(entries)
    ]
    if not any(groups):
        raise SampleError("expected rows to embed, got none.")

    def by_split(number: int, texts: Mapping[str, Embeddings]) -> None:
        assert texts_ready
        own = ((name, labels[number, name]) for name in entries[number].samples)
        texts_ready(number, {name: texts[label] for name, label in own if label in texts})

    embedded = embed_groups(
        groups,
        instruments.encoders,
        batch_size=batch_size,
        strict=not allow_missing,
        cache=cache,
        release=release,
        texts_ready=by_split if texts_ready else None,
    )
    with closing(embedded):
        for number, (entry, (rows_of, bad)) in enumerate(zip(entries, embedded, strict=True)):
            bad_rows: dict[str, list[BadRow]] = {}
            for one in bad:
                bad_rows.setdefault(one.split, []).append(one)
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
                    embeddings[name] = rows_of[label]
                else:
                    good.leave_out(name, f"split {name}: none of its rows can be embedded")
            yield good, embeddings


@contextmanager
def _set_by_an_error(event: threading.Event) -> Iterator[None]:
    try:
        yield
    except BaseException:
        event.set()
        raise


def _inference(settings: Settings) -> Inference:
    return Inference(settings.resamples, settings.seed, settings.adjust, settings.margin)


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
