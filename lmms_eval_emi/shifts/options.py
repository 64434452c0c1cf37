"""Options of shift operators, and the resources they read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval_emi.settings import Settings


@dataclass(frozen=True)
class ShiftOptions:
    """Options and resources of shift operators.

    Attributes:
        keep: words and phrases that textual operators leave unchanged, whatever their case.
        synonyms: a YAML or JSON file of synonyms by word, instead of WordNet.
        wordnet: WordNet's ``dict`` folder; default: NLTK's, or that of the system's package.
        frost: folder of ImageNet-C's frost images; default: those of the package imagecorruptions.
        endpoint: base URL of an OpenAI-compatible endpoint, for the operators on sentences.
        model: model to ask of the endpoint.
        cache: folder that keeps the endpoint's replies; ``None`` keeps none.
    """

    keep: tuple[str, ...] = ()
    synonyms: Path | None = None
    wordnet: Path | None = None
    frost: Path | None = None
    endpoint: str | None = None
    model: str | None = None
    cache: Path | None = None

    @classmethod
    def from_settings(cls, settings: Settings, **given: Any) -> ShiftOptions:
        """Return the options of some settings; keyword arguments other than ``None`` take precedence."""
        options = {
            "synonyms": settings.synonyms,
            "wordnet": settings.wordnet,
            "frost": settings.frost,
            "endpoint": settings.endpoint,
            "model": settings.endpoint_model,
            "cache": settings.cache,
        }
        return cls(**(options | {name: value for name, value in given.items() if value is not None}))
