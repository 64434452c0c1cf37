"""Settings: read from ``LMMS_EVAL_EMI_*`` variables, options and keywords at the edges, and passed on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lmms_eval_emi.core.conventions import Adjustment, Convention
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.util.printing import suggest

PREFIX = "LMMS_EVAL_EMI_"


def _default_cache() -> Path:
    """Return the user's cache folder, or one of the user's below the temporary folder where there is no home to write to."""
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    temporary = Path(tempfile.gettempdir()) / f"lmms_eval_emi-{user}"
    try:
        usual = Path(platformdirs.user_cache_dir("lmms_eval_emi")).expanduser()
    except RuntimeError:
        return temporary
    there = next(folder for folder in (usual, *usual.parents) if folder.exists())
    strange = temporary.exists() and hasattr(os, "getuid") and temporary.stat().st_uid != os.getuid()
    return usual if os.access(there, os.W_OK) or strange else temporary


class Settings(BaseSettings):
    """Everything that can be set. A field is also the variable ``LMMS_EVAL_EMI_`` and its name in capitals.

    Options of the command line are made from these fields, so a setting has one description and one default.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    @field_validator("cache", "images", "frost", "wordnet", "synonyms")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None and str(value).startswith("~") else value

    estimator: str = Field(
        "club-global", description="Registered name of an estimator, or the path of a .safetensors or .pt file."
    )
    vision_encoder: str = Field(
        "openai/clip-vit-base-patch32",
        description="Hub name or folder of the checkpoint that embeds images (CLIP, SigLIP or DINOv2).",
    )
    text_encoder: str = Field(
        "xlm-roberta-base",
        description="Hub name or folder of the checkpoint that embeds texts: XLM-R, or mean:NAME for a sentence encoder.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="Where to encode, and where estimators train trains: auto, cpu, mps, cuda or cuda:N. auto is CUDA where there is one.",
    )
    batch_size: int = Field(
        64, ge=1, description="Images or texts per forward pass of an encoder; CLIP on the CPU chooses by itself."
    )
    convention: Convention = Field("published", description="Convention of the RJSD.")
    entropy: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Entropy scale in nats: gives the plug-in of the theorem instead of the scaled index.",
    )
    resamples: int = Field(
        499, ge=0, description="Draws of a permutation test. 0 leaves only errors that have a closed form."
    )
    seed: int = Field(0, ge=0, description="Seed of the permutation tests and other draws.")
    adjust: Adjustment = Field("holm", description="Adjustment of the p-values of EMID over the shifts of a study.")
    margin: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="EMID within which a shift counts as held, in the unit of the scores. Default: 0.008 for club-global on llava-bench, the smallest significant loss in the published results; elsewhere no shift is called held.",
    )
    margin_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="The margin as a share of I(input; response) of the ID split, such as 0.05. Give it instead of --margin.",
    )
    without_degenerate: bool = Field(
        False,
        description="Score without responses that are empty, repetition loops, refusals, copies of the question or in another language than the reference.",
    )
    thoughts: Literal["strip", "keep"] = Field(
        "strip",
        description="What to do with thoughts in responses, such as <think>...</think>: strip scores what is left, keep scores all.",
    )
    cache: Path = Field(
        default_factory=_default_cache,
        description="Folder for fetched estimators, embeddings of earlier runs and, without --output_path, the files of a run.",
    )
    cache_limit: float = Field(
        4.0,
        ge=0,
        allow_inf_nan=False,
        description="Gigabytes of embeddings that the cache keeps for later runs. 0 keeps none.",
    )
    allow_other_encoders: bool = Field(
        False, description="Use an estimator although other encoders made the embeddings that it was trained on."
    )
    images: Path | None = Field(
        None,
        description="Folder in which paths of images may lie besides the folders of their dataset and study file.",
    )
    frost: Path | None = Field(
        None, description="Folder of ImageNet-C's pictures of frost; default: those of the package imagecorruptions."
    )
    wordnet: Path | None = Field(
        None, description="WordNet's dict folder; default: NLTK's, or that of the system's package wordnet-base."
    )
    synonyms: Path | None = Field(None, description="YAML or JSON file of synonyms by word, used in WordNet's place.")
    endpoint: str | None = Field(
        None,
        description="Base URL of the OpenAI-compatible endpoint that rewrites sentences or judges responses, such as http://localhost:8000/v1; its key is OPENAI_API_KEY.",
    )
    endpoint_model: str | None = Field(None, description="Name of the endpoint's model.")
    report: bool = Field(True, description="Write report.html beside the results of a harness run.")
    preflight: bool = Field(
        True,
        description="Check estimator, encoders and cache when the tasks load. Set to 0 for a node that only generates (--predict_only).",
    )


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; overrides other than ``None`` take precedence.

    Settings are made once, at the edge (a command, a hook of the harness, a user's Python code), and passed on.

    Raises:
        InputError: a variable with the prefix is unknown, or a value is not accepted.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if variable.upper().startswith(PREFIX) and variable not in known:
            raise InputError(
                f"{variable} is not a setting.{suggest(variable, known)} The settings are {', '.join(sorted(known))}; unset it or correct its name."
            )
    unknown = sorted(overrides.keys() - Settings.model_fields.keys())
    if unknown:
        hint = suggest(unknown[0], Settings.model_fields)
        raise InputError(f"{unknown[0]} is not a setting.{hint} The settings are {', '.join(Settings.model_fields)}.")
    values = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        label = f"--{name.replace('_', '-')}" if name in values else f"{PREFIX}{name.upper()}"
        raise InputError(
            f"{label}: {first['msg']}, got {first['input']!r}. {Settings.model_fields[name].description}"
        ) from error
    if settings.margin is not None and settings.margin_share is not None:
        raise InputError("--margin and --margin-share exclude each other: expected one of them, got both.")
    return settings


def is_offline() -> bool:
    """Return whether nothing may be fetched, as ``HF_HUB_OFFLINE`` says to all of the Hugging Face stack."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
