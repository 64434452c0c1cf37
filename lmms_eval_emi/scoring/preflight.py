"""Checks before anything is generated or encoded: settings, cache, device, encoders, estimators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from lmms_eval_emi.errors import EMIError, UnavailableError
from lmms_eval_emi.settings import Settings, load_settings
from lmms_eval_emi.util.files import check_folder_writable

if TYPE_CHECKING:
    from lmms_eval_emi.encoders import Encoders
    from lmms_eval_emi.estimators import Estimator

T = TypeVar("T")


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
