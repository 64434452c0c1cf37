"""The one way from responses to results, which a harness, the command line and Python users share.

Encoders and estimators are loaded and checked, rows are embedded, and each study is scored.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tqdm import tqdm

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.streaming import SplitStatistics
from lmms_eval_emi.data.response_text import degenerate_kinds
from lmms_eval_emi.data.rows import without_images
from lmms_eval_emi.data.study import Study, load_study
from lmms_eval_emi.errors import (
    EMIError,
    InputError,
    MissingDatasetError,
    ResultsError,
    SampleError,
    UnavailableError,
)
from lmms_eval_emi.estimators import Estimator
from lmms_eval_emi.scoring.embed import (
    BadRow,
    CacheFactory,
    embed_good_rows,
    embedding_cache,
    merge_statistics,
    rank,
    row_range,
)
from lmms_eval_emi.scoring.embedding_files import SplitFiles, StoredEmbeddings, open_embeddings, write_embeddings
from lmms_eval_emi.scoring.join import StudySamples, chosen_splits, collect_samples
from lmms_eval_emi.scoring.result import (
    RowsKnown,
    ScoringOptions,
    StudyResult,
    notes_on_samples,
    score_statistics,
    score_study,
)
from lmms_eval_emi.scoring.rows import Scored
from lmms_eval_emi.settings import Settings, load_settings
from lmms_eval_emi.util.files import check_folder_writable

if TYPE_CHECKING:
    from lmms_eval_emi.encoders import Encoders
    from lmms_eval_emi.estimators import Estimator

T = TypeVar("T")
log = logging.getLogger("lmms_eval_emi")
MAX_ROWS_IN_MEMORY = 20_000  # rows of a split; larger splits are read once, in parts


@dataclass(frozen=True)
class Instruments:
    """The encoders and estimators of a run, which fit each other."""

    encoders: Encoders
    estimators: tuple[Estimator, ...]


def load_instruments(
    settings: Settings,
    estimators: Sequence[str] | None = (),
    *,
    text_only: bool | None = None,
    device: str | None = None,
) -> Instruments:
    """Load encoders and estimators, and make sure that they fit each other.

    Args:
        settings: settings of the run.
        estimators: names or paths; default: the one of the settings. ``None``: encoders alone.
        text_only: whether the run's inputs are text alone; ``None`` where that is not known yet, so that
            an estimator of text alone passes.
        device: where to put the encoders; default: that of the settings.

    Raises:
        UnavailableError: with everything that is missing.
    """
    from lmms_eval_emi.encoders import Encoders, load_text_encoder, load_vision_encoder, resolve_device
    from lmms_eval_emi.estimators import TEXT_ONLY, load_estimator

    problems: list[str] = []

    def attempt(work: Callable[[], T]) -> T | None:
        try:
            return work()
        except (EMIError, OSError) as error:
            problems.append(str(error))
            return None

    sources = [] if estimators is None else list(estimators) or [settings.estimator]
    loaded = [attempt(lambda source=source: load_estimator(source, cache=settings.cache)) for source in sources]  # type: ignore[misc]
    settings = _with_encoders_of(settings, [estimator for estimator in loaded if estimator is not None])
    where = device or settings.device
    if attempt(lambda: resolve_device(settings.device)) is None:
        where = "cpu"
    vision = None if text_only else attempt(lambda: load_vision_encoder(settings.vision_encoder, where, settings.cache))
    text = attempt(lambda: load_text_encoder(settings.text_encoder, where, settings.cache))
    if text and (vision or text_only):
        encoders = Encoders(vision, text)
        attempt(encoders.check_widths)
        for estimator in loaded:
            if estimator is not None:
                alone = estimator.vision_encoder == TEXT_ONLY if text_only is None else text_only
                problems += _misfits(estimator, encoders, text_only=alone, allow_other=settings.allow_other_encoders)
        if not problems:
            return Instruments(encoders, tuple(estimator for estimator in loaded if estimator is not None))
    raise UnavailableError("\n\n".join(dict.fromkeys(problems)))


def _misfits(estimator: Estimator, encoders: Encoders, *, text_only: bool, allow_other: bool) -> list[str]:
    """Return the reasons why an estimator does not fit the encoders: it was trained with others, or with other widths."""
    from lmms_eval_emi.estimators import check_encoders

    problems = []
    try:
        check_encoders(estimator, encoders, text_only=text_only, allow_other=allow_other)
    except (EMIError, OSError) as error:
        problems.append(str(error))
    for name, encoder, expected in (
        ("vision", encoders.vision, None if text_only else estimator.input_dimension),
        ("text", encoders.text, estimator.input_dimension),
        ("text", encoders.text, estimator.output_dimension),
    ):
        width = encoder.dimension if encoder else 0
        if expected is not None and width != expected:
            problems.append(
                f"The estimator {estimator.name} takes embeddings of dimension {expected}, and the {name} encoder gives {width}. Set the encoders that it was trained with."
            )
    return problems


def _with_encoders_of(settings: Settings, estimators: Sequence[Estimator]) -> Settings:
    """Return the settings with the encoders that the estimators were trained with, where nobody chose others."""
    from lmms_eval_emi.estimators import TEXT_ONLY, place_of_encoder

    chosen = {}
    for name in ("vision_encoder", "text_encoder"):
        known = {
            str(getattr(estimator, name))
            for estimator in estimators
            if getattr(estimator, name) not in (None, "", TEXT_ONLY)
        }
        if name not in settings.model_fields_set and len(known) == 1:
            place = place_of_encoder(known.pop())
            if place is not None:
                chosen[name] = place
    return settings.model_copy(update=chosen) if chosen else settings


def load_estimators(settings: Settings, estimators: Sequence[str] = (), encoders: str | None = None) -> list[Estimator]:
    """Load the estimators for embeddings that exist already.

    Args:
        settings: settings of the run.
        estimators: names or paths; default: the one of the settings.
        encoders: signature of what made the embeddings; ``None`` where that is not known.

    Raises:
        UnavailableError: an estimator is missing, or was trained with other encoders.
    """
    from lmms_eval_emi.estimators import check_signatures, load_estimator

    problems, loaded = [], []
    for source in list(estimators) or [settings.estimator]:
        try:
            estimator = load_estimator(source, cache=settings.cache)
            check_signatures(estimator, encoders, allow_other=settings.allow_other_encoders)
            loaded.append(estimator)
        except (EMIError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise UnavailableError("\n\n".join(dict.fromkeys(problems)))
    return loaded


def preflight(settings: Settings | None = None) -> None:
    """Check, before the first response is generated, whatever the scores will need.

    Args:
        settings: default: those of the environment.

    Raises:
        UnavailableError: with everything that is missing.
    """
    settings = settings or load_settings()
    problems: list[str] = []
    try:
        check_folder_writable(settings.cache)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        problems.append(
            f"The cache {settings.cache} is not writable: {error}\nPoint to one that is: export LMMS_EVAL_EMI_CACHE=/path/to/folder"
        )
    try:
        load_instruments(settings, device="cpu")
    except UnavailableError as error:
        problems.append(str(error))
    if problems:
        raise UnavailableError("\n\n".join(problems))


class Engine(Protocol):
    """Machines that encode responses and read embeddings, such as a Ray cluster."""

    def encode(
        self, entry: StudySamples, settings: Settings, folder: Path, *, allow_missing: bool = False
    ) -> StoredEmbeddings:
        """Encode the samples of a study into files of a folder that all machines see."""
        ...

    def accumulate(
        self, study: Study, splits: Mapping[str, SplitFiles], estimator: Estimator
    ) -> dict[str, SplitStatistics]:
        """Read splits once and return their statistics, as :func:`accumulate` does on this machine."""
        ...


def score(  # noqa: PLR0913
    study: Study | str | Path,
    responses: Sequence[str | Path] | str | Path = (),
    *,
    embeddings: str | Path | None = None,
    engine: Engine | None = None,
    save_embeddings: str | Path | None = None,
    models: Sequence[str] = (),
    splits: Sequence[str] = (),
    estimators: Sequence[str] = (),
    allow_missing: bool = False,
    settings: Settings | None = None,
    **overrides: Any,
) -> list[StudyResult]:
    """Score the responses of models in a study, or embeddings of them that exist already.

    Args:
        study: a built-in name (``natural``, ``synthetic``, ``demo``), the path of a study file, or a study.
        responses: folders of response files, or output folders of a harness; default: the files that the
            study names.
        embeddings: score these instead of responses; see :mod:`lmms_eval_emi.scoring.embedding_files`.
        engine: machines that do the work; default: this process. Without ``embeddings`` it needs ``save_embeddings``.
        save_embeddings: folder to write the embeddings to.
        models: which models to take; ``all`` takes every one. Without any, each folder must hold one.
        splits: splits to score, in addition to the ID split; default: all.
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
        SampleError: rows that cannot be embedded, all of them.
        ResultsError: embeddings are missing or cannot be read.
        UnavailableError: an encoder or estimator is missing, or they do not fit each other.
    """
    request = ScoreRequest(
        responses=[Path(responses)] if isinstance(responses, str | Path) else [Path(folder) for folder in responses],
        embeddings=Path(embeddings) if embeddings else None,
        engine=engine,
        save_embeddings=Path(save_embeddings) if save_embeddings else None,
        models=models,
        splits=splits,
        estimators=estimators,
        allow_missing=allow_missing,
    )
    studies = [study if isinstance(study, Study) else load_study(study)]
    return [item.result for item in score_sources(studies, request, _with_overrides(settings, overrides))]


def _with_overrides(settings: Settings | None, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings, or those of the environment, with single values replaced and checked."""
    checked = load_settings(**overrides)
    if settings is None:
        return checked
    return settings.model_copy(update={name: getattr(checked, name) for name in overrides})


@dataclass(frozen=True)
class ScoreRequest:
    """What is to be scored: the arguments of :func:`score`, and ``model_names``, the new name by old name of a model.

    Raises:
        InputError: two sources exclude each other, or the engine has no folder for embeddings.
    """

    responses: Sequence[Path] = ()
    embeddings: Path | None = None
    engine: Engine | None = None
    save_embeddings: Path | None = None
    models: Sequence[str] = ()
    model_names: Mapping[str, str] = field(default_factory=dict)
    splits: Sequence[str] = ()
    estimators: Sequence[str] = ()
    allow_missing: bool = False

    def __post_init__(self) -> None:
        if self.embeddings and self.responses:
            raise InputError("--embeddings and --responses are mutually exclusive; give one of them.")
        if self.embeddings and self.save_embeddings:
            raise InputError("--save-embeddings needs responses; --embeddings names embeddings that exist already.")
        if self.engine and not (self.embeddings or self.save_embeddings):
            raise InputError(
                "--engine ray: expected --save-embeddings DIR, a folder that all machines see, for what they encode."
            )


def score_sources(studies: Sequence[Study], request: ScoreRequest, settings: Settings) -> list[Scored]:
    """Score responses, or embeddings that exist already, in some studies; texts and images that they share are encoded once.

    Args:
        studies: studies to score; one that has none of the requested splits is left out.
        request: what is to be scored.
        settings: settings of the run.

    Returns:
        One result with its rows for each study, model and estimator; none on ranks other than 0.

    Raises:
        EMIError: as :func:`score`.
    """
    chosen = {study.name: [name for name in request.splits if name in study.splits] for study in studies}
    for name in request.splits:
        if not any(name in names for names in chosen.values()):
            studies[0].split(name)  # raises, and lists the splits
    studies = [study for study in studies if chosen[study.name] or not request.splits]
    if request.embeddings:
        opened = [(study, open_embeddings(request.embeddings, study), chosen[study.name]) for study in studies]
        return [scored for parts in opened for scored in _score_stored(*parts, request, settings)]
    entries = _collect(studies, chosen, request, settings)
    if request.engine and request.save_embeddings:
        results = []
        for entry in entries:  # machines of an engine write and read embeddings
            folder = request.save_embeddings / entry.study.name / entry.model.replace("/", "_")
            stored = request.engine.encode(entry, settings, folder, allow_missing=request.allow_missing)
            results += _score_stored(entry.study, stored, list(entry.samples), request, settings)
        return results
    scored = score_samples(entries, settings, estimators=request.estimators, allow_missing=request.allow_missing)
    if request.save_embeddings and not rank():
        _save(request.save_embeddings, scored)
    return scored


def _collect(
    studies: Sequence[Study], chosen: Mapping[str, Sequence[str]], request: ScoreRequest, settings: Settings
) -> list[StudySamples]:
    """Return the samples of each model in each study.

    Raises:
        MissingDatasetError: a dataset is missing; encoders and estimators that are missing as well are listed with it.
    """
    try:
        return [
            entry
            for study in studies
            for entry in collect_samples(
                study,
                request.responses,
                settings,
                splits=chosen[study.name],
                models=request.models,
                renamed=request.model_names,
                allow_missing=request.allow_missing,
            )
        ]
    except MissingDatasetError as error:
        try:
            load_instruments(settings, request.estimators)
        except UnavailableError as more:
            raise MissingDatasetError(f"{error}\n\n{more}") from error
        raise


def score_samples(
    entries: Iterable[StudySamples],
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
        One result for every entry and estimator, entry by entry; none on ranks other than 0. A study of which no
        split can be scored has a result without splits, which says why.

    Raises:
        SampleError, UnavailableError: as :func:`score`.
    """
    settings, entries = settings or load_settings(), list(entries)
    kinds = [degenerate_kinds(entry.samples) for entry in entries]
    if settings.without_degenerate:
        entries = [_without_degenerate(entry, of_entry) for entry, of_entry in zip(entries, kinds, strict=True)]
    loaded = instruments or load_instruments(
        settings, estimators, text_only=all(without_images(entry.samples) for entry in entries)
    )
    translated = [entry.with_translations() for entry in entries]
    embedded = embed_samples(
        [*entries, *(entry for entry in translated if entry.samples)],
        loaded,
        batch_size=settings.batch_size,
        allow_missing=allow_missing,
        cache=embedding_cache(settings),
        release=instruments is None,
    )
    if rank():
        return []
    translations = iter(embedded[len(entries) :])
    return [
        scored
        for (entry, embeddings), of_entry, partner in zip(embedded[: len(entries)], kinds, translated, strict=True)
        for scored in _score_entry(
            entry, embeddings, of_entry, next(translations)[1] if partner.samples else {}, loaded, settings
        )
    ]


def _score_entry(
    entry: StudySamples,
    embeddings: Mapping[str, Embeddings],
    degenerate: Mapping[str, Sequence[str | None]],
    translations: Mapping[str, Embeddings],
    instruments: Instruments,
    settings: Settings,
) -> list[Scored]:
    """Return the results of one model in one study, one for each estimator."""
    notes = notes_on_samples(entry.samples)
    for name, lines in entry.notes.items():
        notes.setdefault(name, []).extend(lines)
    known = RowsKnown(entry.left_out, notes, entry.lost, degenerate, translations)
    options = ScoringOptions.from_settings(settings)
    results = [
        score_study(entry.study, embeddings, estimator, model=entry.model, options=options, known=known)
        for estimator in instruments.estimators
    ]
    return [Scored(result, entry, embeddings) for result in results]


def _score_stored(
    study: Study, stored: StoredEmbeddings, splits: Sequence[str], request: ScoreRequest, settings: Settings
) -> list[Scored]:
    """Score embeddings that exist already, with the estimators of a request.

    Splits of up to 20,000 rows are scored like any others. Larger ones are read once, a part at a time; see
    :mod:`lmms_eval_emi.core.streaming` for what they lack.

    Raises:
        ResultsError: a split is missing or cannot be read.
        UnavailableError: an estimator is missing, or was trained with other encoders.
    """
    names = chosen_splits(study, splits)
    missing = [name for name in names if name not in stored.splits]
    if missing and not request.allow_missing:
        raise ResultsError(
            f"{stored.path}: expected the embeddings of {', '.join(names[:3])} and so on; missing are {', '.join(missing[:10])}. Add them, or pass --allow-missing to score the rest."
        )
    chosen = {name: stored.splits[name] for name in names if name in stored.splits}
    known = RowsKnown(left_out={name: [f"split {name}: no embeddings in {stored.path}"] for name in missing})
    common: dict[str, Any] = {
        "model": stored.model,
        "options": replace(ScoringOptions.from_settings(settings), responses=""),
        "known": known,
    }
    loaded = load_estimators(settings, request.estimators, stored.encoders)
    if max(split.n for split in chosen.values()) <= MAX_ROWS_IN_MEMORY:
        embeddings = {name: _read(stored.path, split.load) for name, split in chosen.items()}
        results = [score_study(study, embeddings, estimator, **common) for estimator in loaded]
    else:
        read = request.engine.accumulate if request.engine else accumulate
        results = [
            score_statistics(study, _read(stored.path, partial(read, study, chosen, estimator)), estimator, **common)
            for estimator in loaded
        ]
    return [] if rank() else [Scored(result, StudySamples(study, stored.model)) for result in results]


def _read(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, InputError) as error:
        raise ResultsError(f"{path}: {error}") from error


def accumulate(study: Study, splits: Mapping[str, SplitFiles], estimator: Estimator) -> dict[str, SplitStatistics]:
    """Return the statistics of splits, each read once; the ID split first, whose clusters its shifts share.

    In a process group every rank reads its part of each split, and all get the sums of all.
    """
    order = sorted(splits, key=lambda name: name != study.id_split)
    found: dict[str, SplitStatistics] = {}
    total = sum(split.n for split in splits.values())
    with tqdm(total=total, desc="Reading embeddings", unit="", leave=False, dynamic_ncols=True) as bar:
        for name in order:
            id = found.get(study.id_split)
            statistics = SplitStatistics(
                estimator,
                partners=id.as_partners() if id else None,
                keep_partners=name == study.id_split,
            )
            start, stop = row_range(splits[name].n)
            for rows in splits[name].parts(start, stop):
                statistics.add(rows)
                bar.update(rows.n)
            found[name] = merge_statistics(statistics)
    return found


def embed_samples(
    entries: Sequence[StudySamples],
    instruments: Instruments,
    *,
    batch_size: int = 64,
    allow_missing: bool = False,
    cache: CacheFactory | None = None,
    release: bool = False,
) -> list[tuple[StudySamples, dict[str, Embeddings]]]:
    """Embed the samples of some models and studies together.

    Args:
        entries: samples of each model in each study.
        instruments: instruments whose encoders are used.
        batch_size: items per forward pass.
        allow_missing: leave bad rows out.
        cache: the known rows of an encoder.
        release: drop each encoder from memory when all of its items are encoded.

    Returns:
        Every entry in its order, without its bad rows, which its ``left_out`` and ``lost`` name, and its embeddings
        by split.

    Raises:
        SampleError: bad rows that are not allowed, or no good ones at all.
    """
    kinds = {without_images(entry.samples) for entry in entries if entry.samples}
    if len(kinds) > 1:
        raise SampleError("text-only and image studies cannot share a run; score them separately.")
    splits = {
        (number, name): samples
        for number, entry in enumerate(entries)
        for name, samples in entry.samples.items()
        if samples
    }
    if not splits:
        raise SampleError("expected rows to embed, got none.")
    labels = _labels(entries)
    embedded, bad = embed_good_rows(
        splits,
        instruments.encoders,
        batch_size=batch_size,
        strict=not allow_missing,
        cache=cache,
        release=release,
        label=lambda key: labels[key],
    )
    found = []
    for number, entry in enumerate(entries):
        good = _without_rows(entry, [row for row in bad if row.split[0] == number])
        found.append((good, {name: embedded[number, name] for name in good.samples}))
    return found


def _without_rows(entry: StudySamples, bad: Sequence[BadRow]) -> StudySamples:
    good = entry.copy()
    for row in bad:
        name = row.split[1]
        good.leave_out(name, f"split {name}, row {row.id}: {row.reason}")
        good.lost.setdefault(name, set()).add(entry.samples[name][row.row].key)
    for name, samples in entry.samples.items():
        excluded = {row.row for row in bad if row.split[1] == name}
        rows = [sample for row, sample in enumerate(samples) if row not in excluded]
        good.keep(name, rows, "none of its rows can be embedded")
    return good


def _without_degenerate(entry: StudySamples, kinds: Mapping[str, Sequence[str | None]]) -> StudySamples:
    """Return the samples whose responses are not degenerate; partners of the others are left out of comparisons too."""
    kept = entry.copy()
    for name, samples in entry.samples.items():
        pairs = list(zip(samples, kinds[name], strict=True))
        kept.lost.setdefault(name, set()).update(sample.key for sample, kind in pairs if kind is not None)
        rows = [sample for sample, kind in pairs if kind is None]
        kept.keep(name, rows, f"all of its {len(samples)} responses are degenerate")
    return kept


def _labels(entries: Sequence[StudySamples]) -> dict[tuple[int, str], str]:
    """Return the name of each split in messages: its own, with model and study only where that is needed."""
    labels: dict[tuple[int, str], str] = {}
    names = Counter(name for entry in entries for name in entry.samples)
    owners = Counter((name, entry.model) for entry in entries for name in entry.samples)
    for number, entry in enumerate(entries):
        for name in entry.samples:
            label = name if names[name] == 1 else f"{name} of {entry.model}"
            if owners[name, entry.model] > 1:
                label += f" in {entry.study.name}"
            labels[number, name] = label
    return labels


def _save(folder: Path, scored: Sequence[Scored]) -> None:
    """Write the embeddings of each model, each in a folder of its own if there are several."""
    by_model: dict[str, dict[str, Embeddings]] = {}
    for item in scored:
        by_model.setdefault(item.samples.model, {}).update(item.embeddings)
    studies = list(dict.fromkeys(item.samples.study.name for item in scored))
    for model, embeddings in by_model.items():
        target = folder / model.replace("/", "_") if len(by_model) > 1 else folder
        write_embeddings(target, embeddings, model=model, studies=studies)
    log.info("embeddings written to %s", folder)
