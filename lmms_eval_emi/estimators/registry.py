"""Finding, fetching, verifying and loading estimators.

A kind is a subclass of :class:`lmms_eval_emi.estimators.base.Estimator`: in a file of this folder, or of another
package that registers it under the entry-point group ``lmms_eval_emi.estimators``. A kind that needs no training
is known by its name. Files of the others are listed in ``estimator_ckpt/registry.yaml``, which an installed
package holds as ``lmms_eval_emi.estimator_ckpt``.
"""

from __future__ import annotations

import http.client
import logging
import re
import socket
import sys
import warnings
from functools import lru_cache
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lmms_eval_emi.errors import InputError, UnavailableError
from lmms_eval_emi.estimators.base import SEEN, Assignment, Estimator, TrainedEstimator, check_version, read_card
from lmms_eval_emi.estimators.crossfit import CrossFitted
from lmms_eval_emi.settings import is_offline, load_settings
from lmms_eval_emi.util.files import file_hexdigest
from lmms_eval_emi.util.imports import subclasses_in
from lmms_eval_emi.util.printing import suggest

if TYPE_CHECKING:
    from lmms_eval_emi.encoders import Encoders

log = logging.getLogger("lmms_eval_emi")

CHECKPOINT_FOLDER = "estimator_ckpt"
TEXT_ONLY = "text-only"  # stands for the vision encoder of inputs without images
GROUP = "lmms_eval_emi.estimators"
TIMEOUT = 30  # seconds without an answer of a download


@lru_cache(maxsize=1)
def kinds() -> dict[str, type[Estimator]]:
    """Return every kind of estimator by its name: those of other packages, then ours."""
    found: dict[str, type[Estimator]] = {}
    for entry in entry_points(group=GROUP):
        try:
            loaded = entry.load()
        except Exception as error:
            log.warning("The estimator %s of another package (%s) cannot be loaded: %s", entry.name, entry.value, error)
            continue
        if not (isinstance(loaded, type) and issubclass(loaded, Estimator)):
            log.warning(
                "The estimator %s of another package (%s) is no subclass of lmms_eval_emi.estimators.Estimator.",
                entry.name,
                entry.value,
            )
            continue
        found[entry.name] = loaded
    package = sys.modules["lmms_eval_emi.estimators"]
    return found | {kind.kind: kind for kind in subclasses_in(package, Estimator) if "kind" in vars(kind)}


def trainable() -> dict[str, type[TrainedEstimator]]:
    """Return the kinds that ``estimators train`` trains, by name."""
    return {name: kind for name, kind in kinds().items() if issubclass(kind, TrainedEstimator)}


class EstimatorEntry(BaseModel):
    """One entry of the registry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    file: str | None = None  # name in the package's estimator_ckpt/
    url: str | None = None
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    dimension: int | None = None
    vision_encoder: str | None = None
    text_encoder: str | None = None
    description: str
    licence: str

    @model_validator(mode="after")
    def _has_a_source(self) -> EstimatorEntry:
        sources = bool(self.file) + bool(self.url)
        if self.kind not in kinds():
            raise InputError(
                f"estimator {self.name}: expected one of the kinds {', '.join(kinds())}, got {self.kind!r}"
            )
        if sources != self.is_trained or sources != bool(self.sha256):
            raise InputError(
                f"estimator {self.name}: expected either file or url, with its sha256, for a trained one, and none for others"
            )
        return self

    @property
    def is_trained(self) -> bool:
        """Whether the estimator has a file with trained weights."""
        return kinds()[self.kind].trained

    @property
    def file_name(self) -> str:
        """Name of its file, wherever that is."""
        return self.file or str(self.url).rsplit("/", 1)[-1]


def registered_estimators() -> dict[str, EstimatorEntry]:
    """Return all that :func:`load_estimator` knows by name: the files of the registry, and the kinds that need none."""
    text = resources.files("lmms_eval_emi.estimator_ckpt").joinpath("registry.yaml").read_text(encoding="utf-8")
    found = {name: EstimatorEntry(name=name, **fields) for name, fields in yaml.safe_load(text).items()}
    for name, kind in kinds().items():
        if not kind.trained:
            description = (kind.__doc__ or "").strip().partition("\n")[0]
            found.setdefault(name, EstimatorEntry(name=name, kind=name, description=description, licence="A formula."))
    return found


def load_estimator(
    source: str | Path,
    encoders: Encoders | None = None,
    *,
    allow_other_encoders: bool = False,
    cache: Path | None = None,
) -> Estimator:
    """Load an estimator of mutual information.

    Args:
        source: a name in the registry, such as ``club-global``, or the path of a ``.safetensors``
            or ``.pt`` file. A registered estimator is fetched once, verified by its SHA-256 and
            kept in the user's cache; a copy in ``./estimator_ckpt/`` is used where its hash is right.
        encoders: encoders of the run; an estimator that was trained with others is refused.
        allow_other_encoders: warn instead.
        cache: folder for fetched estimators; default: that of the settings.

    Returns:
        The estimator, on the CPU.

    Raises:
        ValueError: neither a registered name nor a file, or the file contains no estimator, or other
            encoders made the embeddings that it was trained on.
        UnavailableError: the file is not on this machine and could not be fetched.
    """
    registry = registered_estimators()
    entry = registry.get(str(source))
    if entry and not entry.is_trained:
        return kinds()[entry.kind](name=entry.name)
    path = locate(entry, cache or load_settings().cache) if entry else Path(source).expanduser()
    if not path.is_file():
        raise InputError(
            f"estimator: expected a registered name ({', '.join(registry)}) or the path of a .safetensors or .pt file, got {str(source)!r}, which is neither.{suggest(str(source), registry)}"
        )
    sha256 = file_hexdigest(path)
    known = next((known for known in registry.values() if known.sha256 == sha256), None)
    state, metadata = _read_state(path)
    check_version(metadata, str(path))
    kind = trainable().get(metadata.get("kind", "club"))
    if kind is None:
        raise InputError(
            f"estimator {path}: expected one of the kinds {', '.join(trainable())}, got {metadata['kind']!r}. A newer version of this package may know it, or the package that it is from is not installed."
        )
    name = known.name if known else path.stem
    seen = Assignment.from_state({key: state.pop(key) for key in list(state) if str(key).startswith(SEEN)})
    estimator: TrainedEstimator | CrossFitted
    if "folds" in metadata:
        estimator = CrossFitted.from_state_dict(kind, state, seen, metadata, name=name, sha256=sha256)
    else:
        estimator = kind.from_state_dict(state, name=name, sha256=sha256)
        estimator.seen = seen
    estimator.card = read_card(metadata.get("card", "{}"), str(path))
    trained_with = estimator.card.get("encoders") or {}
    estimator.vision_encoder = trained_with.get("vision") or (known.vision_encoder if known else None)
    estimator.text_encoder = trained_with.get("text") or (known.text_encoder if known else None)
    if encoders is not None:
        check_encoders(estimator, encoders, allow_other=allow_other_encoders)
    return estimator


def check_encoders(
    estimator: Estimator, encoders: Encoders, *, text_only: bool = False, allow_other: bool = False
) -> None:
    """Make sure that an estimator was trained on embeddings of the encoders of this run.

    A registered estimator knows the names of its encoders, a trained one the fingerprints of their
    weights as well. One that knows neither passes. Inputs of text alone pass with a warning where the
    estimator was trained with images, for they share the text encoder.

    Args:
        estimator: estimator to be used.
        encoders: encoders of the run.
        text_only: whether the run's inputs are text alone.
        allow_other: warn instead of raising.

    Raises:
        ValueError: the estimator was trained with other encoders, and ``allow_other`` is not set.
    """
    if text_only and estimator.vision_encoder not in (None, TEXT_ONLY):
        log.warning("The estimator %s was trained with images, and these inputs are text alone.", estimator.signature)
    signature = encoders.text_signature if text_only else encoders.signature
    check_signatures(estimator, signature, allow_other=allow_other)


def check_signatures(estimator: Estimator, signature: str | None, *, allow_other: bool = False) -> None:
    """Check, like :func:`check_encoders`, the encoders of existing embeddings.

    Args:
        estimator: estimator to be used.
        signature: signature of both encoders, ``vision+text``; ``None`` if it is not known, which passes with a warning.
        allow_other: warn instead of raising.

    Raises:
        ValueError: the estimator was trained with other encoders, and ``allow_other`` is not set.
    """
    if signature is None:
        if estimator.vision_encoder or estimator.text_encoder:
            log.warning(
                "It is not known which encoders made these embeddings; the estimator %s was trained with %s and %s.",
                estimator.signature,
                estimator.vision_encoder,
                estimator.text_encoder,
            )
        return
    vision, _, text = signature.partition("+")
    problems = [
        f"{kind} encoder {expected}, and this run has {found}"
        for kind, expected, found in (
            ("vision", estimator.vision_encoder, vision),
            ("text", estimator.text_encoder, text),
        )
        if found != TEXT_ONLY and expected and not _is_encoder(expected, found)
    ]
    if not problems:
        return
    message = f"The estimator {estimator.signature} was trained with the {'; with the '.join(problems)}."
    if not allow_other:
        raise InputError(
            f"{message} Its scores would mean nothing. Set the encoders that it was trained with, or use it all the same with --allow-other-encoders, LMMS_EVAL_EMI_ALLOW_OTHER_ENCODERS=1 or, in Python, allow_other_encoders=True."
        )
    log.warning("%s It is used all the same, as asked.", message)


def _is_encoder(expected: str, signature: str) -> bool:
    """Return whether two encoders are one: by the weights and their pooling, or else by the last part of their names."""
    (name, _, fingerprint), (other_name, _, other_fingerprint) = expected.partition("#"), signature.partition("#")
    if fingerprint:
        return fingerprint.split("/")[:2] == other_fingerprint.split("/")[:2]
    return Path(name).name == Path(other_name).name


def place_of_encoder(signature: str) -> str | None:
    """Return where an encoder is loaded from whose signature an estimator records: its hub name or folder.

    Returns:
        ``None`` for a folder that is not on this machine.
    """
    name = signature.partition("#")[0]
    bundled = Path(str(resources.files("lmms_eval_emi.slices.demo").joinpath("assets"))) / Path(name).name
    if Path(name).is_dir():
        return name
    if bundled.is_dir():  # encoders of the demo, whose estimator records only folder names
        return str(bundled)
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else None


def locate(entry: EstimatorEntry, cache: Path) -> Path:
    """Return the path of a registered estimator's verified file, fetched if it is not available locally.

    Raises:
        UnavailableError: as :func:`load_estimator`.
    """
    if entry.file:
        return Path(str(resources.files("lmms_eval_emi.estimator_ckpt").joinpath(entry.file)))
    cached = cache / "estimators" / f"{entry.sha256[:16]}-{entry.file_name}"
    for path in (cached, Path(CHECKPOINT_FOLDER) / entry.file_name):
        if path.is_file() and file_hexdigest(path) == entry.sha256:
            return path
    return _fetch(entry, cached)


def _fetch(entry: EstimatorEntry, target: Path) -> Path:
    def unavailable(reason: object) -> UnavailableError:
        return UnavailableError(
            f"The estimator {entry.name!r} is not on this machine and could not be fetched: {reason}\n"
            f"  url     {entry.url}\n"
            f"  sha256  {entry.sha256}\n"
            f"  place   {target}\n"
            f"Fetch that file on a machine with a connection, then copy it to the place above, or point to it:\n"
            f"  export LMMS_EVAL_EMI_ESTIMATOR=/path/to/{entry.file_name}   (or --estimator, in Python load_estimator('/path/to/{entry.file_name}'))"
        )

    if is_offline():
        raise unavailable("HF_HUB_OFFLINE is set.")
    from filelock import FileLock

    earlier = socket.getdefaulttimeout()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            socket.setdefaulttimeout(TIMEOUT)
            torch.hub.download_url_to_file(str(entry.url), str(target), hash_prefix=entry.sha256)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # RuntimeError: another hash than expected
        raise unavailable(error) from error
    finally:
        socket.setdefaulttimeout(earlier)
    return target


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors and metadata of a file."""
    import torch
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
            raise InputError(f"estimator {path}: expected a safetensors file: {error}") from error
    if path.suffix not in {".pt", ".pth", ".bin"}:
        raise InputError(f"estimator {path}: expected a .safetensors or .pt file, got the suffix {path.suffix!r}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about formats that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        raise InputError(
            f"estimator {path}: expected a state dict of plain tensors, which this file is not; it is not loaded otherwise, for a pickle may run code. ({error})"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and type(tensor) is torch.Tensor and tensor.layout == torch.strided
        for key, tensor in state.items()
    ):
        raise InputError(f"estimator {path}: expected a state dict of plain tensors, got {type(state).__name__}.")
    # A tensor of a few bytes may claim to be of any size by repeating them.
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if claimed > sum(held.values()):
        raise InputError(
            f"estimator {path}: expected plain tensors, got some of {claimed:,} bytes in a file that holds {sum(held.values()):,}. The file is not what training wrote."
        )
    return state, {}
