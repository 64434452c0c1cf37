"""Base classes of all estimators, and of those with networks, which have encoders and a file.

The file says what an estimator was trained on: its card, and the fold of each row (:class:`Assignment`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import Information
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.util.files import newer_version, parse_json, write_atomically

FORMAT_VERSION = 1  # version of estimator files; files without a version have the first
Positive = Annotated[float, Field(gt=0)]
SEEN = "seen."  # before the names of its tensors in a file
UNSEEN = -1
Self = TypeVar("Self", bound="TrainedEstimator")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class _Encoders(_Part):
    vision: str | None = None
    text: str | None = None


class _Feature(_Part):
    """Random features of embeddings."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    bandwidth: Positive


class _Ranks(_Part):
    """Quantiles that scores are ranked by."""

    quantiles: Annotated[list[float], Field(min_length=2)]


class _Bases(_Part):
    inputs: _Feature
    references: _Feature


class _Sample(_Part):
    images: Annotated[int, Field(gt=0)]
    mean: dict[str, list[float] | float]
    limits: Annotated[dict[str, Positive], Field(min_length=1)]
    quantiles: Annotated[list[float], Field(min_length=2)]


class _Domain(_Part):
    """Training data that new data are compared with; empty for estimators without samples."""

    bases: _Bases | None = None
    samples: list[_Sample] | None = None


class _Card(_Part):
    encoders: _Encoders = _Encoders()
    domain: _Domain = _Domain()


def read_card(text: str, source: str) -> dict[str, Any]:
    """Return the card of an estimator.

    Args:
        text: JSON.
        source: source of the file, for messages.

    Raises:
        ValueError: the data are not a card; the message lists the fields that are wrong.
    """
    try:
        card = parse_json(text)
    except ValueError as error:
        raise InputError(f"estimator {source}: its card is not JSON: {error}. The file is damaged.") from error
    if not isinstance(card, dict):
        raise InputError(
            f"estimator {source}: expected a card that is a JSON object, got {type(card).__name__}. The file is damaged."
        )
    try:
        checked = _Card.model_validate({"encoders": card.get("encoders") or {}, "domain": card.get("domain") or {}})
        for name, base in ((card.get("domain") or {}).get("bases") or {}).items():
            if name not in _Bases.model_fields:
                _Ranks.model_validate(base)
    except (ValidationError, AttributeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"])) or "domain"
        raise InputError(f"estimator {source}: its card is damaged: {where}: {first['msg']}.") from error
    samples = checked.domain.samples
    if samples is not None and (
        not samples or checked.domain.bases is None or any(set(sample.limits) - set(sample.mean) for sample in samples)
    ):
        raise InputError(f"estimator {source}: its card is damaged: domain: samples without what they are compared by.")
    return card


def check_version(metadata: Mapping[str, str], source: str) -> None:
    """Raise ``ValueError`` for a file of a newer version than this package reads."""
    version = metadata.get("format_version", "1")
    if not (version.isascii() and version.isdigit() and 1 <= int(version[:9]) <= FORMAT_VERSION):
        raise InputError(newer_version(f"estimator {source}", version[:20], FORMAT_VERSION))


def row_to_keys(id: Hashable | None, group: Hashable | None) -> list[int]:
    """Return the keys of a row: its image and its id, each as a signed 64-bit hash."""
    found = []
    for kind, value in (("image", group), ("row", id)):
        if value is not None:
            digest = hashlib.blake2b(f"{kind} {value!r}".encode(), digest_size=8).digest()
            found.append(int.from_bytes(digest, "little", signed=True))
    return found


class Assignment:
    """The fold of each row of the training data.

    Args:
        folds: fold by key, as :func:`row_to_keys` gives keys.
    """

    def __init__(self, folds: Mapping[int, int]) -> None:
        self.folds = dict(folds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Assignment) and self.folds == other.folds

    def of(self, embeddings: Embeddings) -> torch.Tensor:
        """Return (N,) fold of each row, on the device of the rows; -1 for rows that were not among the training data."""
        ids = embeddings.ids if embeddings.ids is not None else [None] * embeddings.n
        groups = embeddings.groups if embeddings.groups is not None else [None] * embeddings.n
        found = [self._fold(row_to_keys(id, group)) for id, group in zip(ids, groups, strict=True)]
        return torch.tensor(found, device=embeddings.t.device)

    def _fold(self, keys: Iterable[int]) -> int:
        return next((self.folds[key] for key in keys if key in self.folds), UNSEEN)

    def to_state(self) -> dict[str, torch.Tensor]:
        """Return the assignment as tensors for a file."""
        keys = sorted(self.folds)
        return {
            f"{SEEN}keys": torch.tensor(keys, dtype=torch.int64),
            f"{SEEN}folds": torch.tensor([self.folds[key] for key in keys], dtype=torch.int16),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> Assignment | None:
        """Make the assignment from the tensors of a file; return ``None`` if it has none.

        Raises:
            ValueError: a tensor is missing, or their sizes differ.
        """
        if not state:
            return None
        keys, folds = state.get(f"{SEEN}keys"), state.get(f"{SEEN}folds")
        if keys is None or folds is None or keys.shape != folds.shape or keys.ndim != 1:
            raise InputError(f"estimator: expected {SEEN}keys and {SEEN}folds of one length, got {', '.join(state)}.")
        return cls(dict(zip(keys.tolist(), folds.tolist(), strict=True)))


class Estimator:
    """A measure of how much inputs x and targets y have to do with each other.

    A new one is a subclass with a ``kind`` and :meth:`contributions`; see docs/estimators.md. Whatever else is
    here has a default.

    Attributes:
        kind: what ``--estimator`` and files call it.
        trained: whether it needs a file.
        unit: unit of its values.
        against: what responses are compared with: the ``input``, or the ``reference`` in its place.
        range: what its values may be, for the documents.
        name: what signatures call it.
        card: what it was trained on and how; empty where that is not known.
        vision_encoder, text_encoder: what made the embeddings that it was trained on; ``None`` for any.
        input_dimension, output_dimension: D and D' that it takes; ``None`` for any.
    """

    kind: ClassVar[str]
    trained: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    against: ClassVar[str] = "input"
    range: ClassVar[str] = "any"

    name: str
    card: dict[str, Any]
    vision_encoder: str | None = None
    text_encoder: str | None = None
    input_dimension: int | None = None
    output_dimension: int | None = None

    def __init__(self, *, name: str | None = None) -> None:
        self.name = name or self.kind
        self.card = {}

    @property
    def signature(self) -> str:
        """Name of the estimator with everything that changes its values, for signatures."""
        return self.name

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) float64 contributions whose mean is the value for inputs (N, D) and targets (N, D')."""
        raise NotImplementedError

    def trained_on(self, embeddings: Embeddings) -> int:
        """Return how many rows of a split it was trained on and would score by the same network; 0 if that is not known."""
        return 0

    def known_rows(self, embeddings: Embeddings) -> int:
        """Return how many rows of a split were among its training data, whichever network saw them; 0 if that is not known."""
        return self.trained_on(embeddings)

    def row_scores(self, embeddings: Embeddings) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return two (N,) tensors in nats: scores of the references, and their excess over other rows' references.

        Each row is scored by networks that did not see it, where there are such. ``None`` without a density.
        """
        return None

    def remarks(self, embeddings: Embeddings) -> list[str]:
        """Return remarks on the scores of a split, as parts of a sentence."""
        return []

    def saturation(self, x: torch.Tensor) -> float | None:
        """Return the fraction of outputs at the limit of their range, in [0, 1]; ``None`` if the range has no limit."""
        return None

    def ceiling(self, n: int) -> float | None:
        """Return the greatest value that ``n`` rows can give, or ``None``."""
        return None

    def check_rows(self, x: torch.Tensor, y: torch.Tensor, fewest: int = 1) -> None:
        """Raise ``ValueError`` unless there are as many targets as inputs, and enough of them."""
        if len(x) != len(y):
            raise InputError(f"y: expected {len(x)} rows, as many as x has, got {len(y)}.")
        if len(x) < fewest:
            raise InputError(f"x: expected at least {fewest} samples for {self.name}, got {len(x)}.")


class TrainedEstimator(nn.Module, Estimator):
    """A network that estimates mutual information, and what is known of its training.

    Args:
        input_dimension: D of the inputs x.
        output_dimension: D' of the targets y.
        hidden: width of the hidden layers.
        name: what signatures call it; default: its kind.
        sha256: SHA-256 of the file that it came from, if it came from one.

    Attributes:
        sha256: SHA-256 of the file that it came from, if it came from one.
        seen: the rows that it was trained on, where that is known.
        has_density: whether the score of a pair depends on the pair alone.
    """

    trained = True
    has_density: ClassVar[bool] = True
    input_dimension: int
    output_dimension: int

    def __init__(
        self,
        input_dimension: int,
        output_dimension: int,
        hidden: int = 250,
        *,
        name: str | None = None,
        sha256: str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        Estimator.__init__(self, name=name)
        self.input_dimension = input_dimension
        self.output_dimension = output_dimension
        self.hidden = hidden
        self.sha256 = sha256
        self.seen: Assignment | None = None
        self.build()

    def build(self) -> None:
        """Create the networks from the input dimension, the output dimension and the hidden width of the estimator."""
        raise NotImplementedError

    def mlp(self, inputs: int, outputs: int) -> nn.Sequential:
        """Return layers from ``inputs`` over the hidden width to ``outputs``, with tanh between."""
        return nn.Sequential(nn.Linear(inputs, self.hidden), nn.Tanh(), nn.Linear(self.hidden, outputs))

    @property
    def signature(self) -> str:
        """Name and the first eight digits of the file's SHA-256."""
        return f"{self.name}@{self.sha256[:8]}" if self.sha256 else self.name

    @staticmethod
    def shapes(state: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
        """Return the input dimension, output dimension and hidden width that a state dict describes."""
        raise NotImplementedError

    @classmethod
    def keys(cls) -> list[str]:
        """Return names of the tensors of a state dict."""
        return list(cls(1, 1, 1, name="", sha256=None).state_dict())

    @classmethod
    def from_state_dict(
        cls: type[Self], state: Mapping[str, torch.Tensor], *, name: str, sha256: str | None = None
    ) -> Self:
        """Build the network that a state dict describes.

        Args:
            state: the tensors named by :meth:`keys`; weights are (out, in).
            name: what signatures call it.
            sha256: SHA-256 of the file that it came from.

        Raises:
            ValueError: keys are missing or unknown, or the tensors do not belong together.
        """
        keys = cls.keys()
        missing, unknown = sorted(set(keys) - set(state)), sorted(set(state) - set(keys))
        if missing or unknown:
            raise InputError(
                f"estimator {name}: expected the keys {', '.join(keys)}; missing: {', '.join(missing) or 'none'}; unknown: {', '.join(map(str, unknown)) or 'none'}."
            )
        odd = next((key for key, tensor in state.items() if not tensor.dtype.is_floating_point), None)
        if odd:
            raise InputError(f"estimator {name}: expected floating-point weights, got {odd} of {state[odd].dtype}.")
        flat = next((key for key, tensor in state.items() if tensor.ndim != (2 if key.endswith("weight") else 1)), None)
        if flat:
            raise InputError(
                f"estimator {name}: expected 2-D weights and 1-D biases, got {flat} of shape {tuple(state[flat].shape)}."
            )
        estimator = cls(*cls.shapes(state), name=name, sha256=sha256)
        try:
            estimator.load_state_dict(dict(state))
        except RuntimeError as error:
            raise InputError(f"estimator {name}: its tensors do not fit together: {error}") from error
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
            raise InputError(
                f"estimator {name}: expected finite weights, got NaN or infinity. The file is damaged or its training diverged."
            )
        return estimator.eval()

    def save(self, path: str | Path) -> None:
        """Write the weights and the card as safetensors, all of it or nothing."""
        seen = self.seen.to_state() if self.seen else {}
        save_state(path, {**self.state_dict(), **seen}, {"kind": self.kind, "name": self.name}, self.card)

    def fit_data(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set what follows from the training data (M, D) and (M, D') without learning; called once before it."""

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the training loss of a batch of pairs, a scalar."""
        raise NotImplementedError

    def score(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (B,) scores of held-out pairs that training reports, in nats; higher is better."""
        raise NotImplementedError

    @classmethod
    def analyse_by(
        cls: type[Self],
        networks: Sequence[Self],
        which: torch.Tensor,
        x: torch.Tensor,
        targets: Sequence[torch.Tensor],
        clusters: torch.Tensor,
        count: int,
    ) -> list[Information]:
        """Return the estimates with their leave-one-cluster-out values, every row's inputs seen by a network of its own.

        Args:
            networks: networks in float64, on the device of the rows.
            which: (N,) number of each row's network.
            x: (N, D) inputs.
            targets: (N, D') each; one estimate is of the inputs with one of them.
            clusters: (N,) number of each row's cluster, below ``count``.
            count: G, the number of clusters.
        """
        raise NotImplementedError

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) float64 contributions whose mean is the value for inputs (N, D) and targets (N, D').

        Raises:
            ValueError: D or D' is not that of the estimator, or the numbers of rows differ.
        """
        return undivided(self, x, y).contributions

    @torch.no_grad()
    def analyse(self, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int) -> Information:
        """Return the estimate with its leave-one-cluster-out values, and the influence of each row; see :meth:`analyse_by`.

        Raises:
            ValueError: as :meth:`contributions`.
        """
        return self.analyse_all(x, (y,), clusters, count)[0]

    @torch.no_grad()
    def analyse_all(
        self, x: torch.Tensor, targets: Sequence[torch.Tensor], clusters: torch.Tensor, count: int
    ) -> list[Information]:
        """Return what :meth:`analyse` returns, for several targets of the same inputs."""
        for y in targets:
            self.check_shapes(x, y)
        which = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.analyse_by([self.in_float64(x.device)], which, x, targets, clusters, count)

    def trained_on(self, embeddings: Embeddings) -> int:
        """Return how many rows of a split it was trained on; 0 if that is not known."""
        return int((self.seen.of(embeddings) >= 0).sum()) if self.seen else 0

    @torch.no_grad()
    def row_scores(self, embeddings: Embeddings) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return two (N,) tensors in nats: scores of the references, and their excess over other rows' references."""
        if not self.has_density:
            return None
        x, y = embeddings.x, embeddings.y
        self.check_shapes(x, y)
        network = self.in_float64(x.device)
        scores = [network.score(xs, ys.double()) for xs, ys in zip(x.split(1024), y.split(1024), strict=True)]
        found = undivided(self, x, y)
        return torch.cat(scores), found.value + found.influence

    def check_shapes(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Raise ``ValueError`` unless (N, D) inputs and (N, D') targets are those of the estimator."""
        for label, tensor, expected in (("x", x, self.input_dimension), ("y", y, self.output_dimension)):
            if tensor.ndim != 2 or tensor.shape[1] != expected:
                raise InputError(
                    f"{label}: expected shape (N, {expected}) for the estimator {self.name}, got {tuple(tensor.shape)}. Use the encoders that it was trained with, or another estimator."
                )
        self.check_rows(x, y)

    def in_float64(self: Self, device: torch.device) -> Self:
        """Return a copy of the network in float64 on a device, made once as long as its weights stay what they are."""
        key = (device, [(tensor.data_ptr(), tensor._version) for tensor in self.state_dict().values()])
        known = self.__dict__.get("_exact")
        if known is not None and known[0] == key:
            return known[1]
        with torch.device("meta"):  # without initial weights, which would take longer than the copy
            copy = type(self)(
                self.input_dimension, self.output_dimension, self.hidden, name=self.name, sha256=self.sha256
            )
        exact = {key: tensor.detach().to(device, torch.float64) for key, tensor in self.state_dict().items()}
        copy.load_state_dict(exact, assign=True)
        self.__dict__["_exact"] = (key, copy.eval())  # past the module's own attributes, of which it is no part
        return copy


def undivided(estimator: Any, x: torch.Tensor, y: torch.Tensor) -> Information:
    """Return the estimate of an estimator without leave-one-cluster-out values."""
    return estimator.analyse(x, y, torch.zeros(len(x), dtype=torch.long, device=x.device), 1)


def save_state(
    path: str | Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str], card: Mapping[str, Any]
) -> None:
    """Write tensors and a card as safetensors, all of it or nothing; equal content gives equal bytes."""
    from safetensors.torch import save

    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    described = {**metadata, "format_version": str(FORMAT_VERSION), "card": json.dumps(card, sort_keys=True)}
    write_atomically(Path(path), in_fixed_order(save(tensors, described)))


def in_fixed_order(content: bytes) -> bytes:
    """Return the bytes of a safetensors file with its header sorted, because the library writes its entries in any order.

    The header is JSON behind its length in eight bytes, padded with blanks so that the tensors begin at a
    multiple of eight.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def by_network(networks: Sequence[Self], which: torch.Tensor, run: Any, *rows: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs of some rows, each row by its own network, in the order of the rows.

    Args:
        networks: networks of one kind.
        which: (B,) number of each row's network.
        run: takes a network and its rows, and returns a tuple of tensors with a row for each.
        rows: (B, ...) what ``run`` takes.
    """
    if len(networks) == 1:
        return list(run(networks[0], *rows))
    found: list[torch.Tensor] = []
    for number in which.unique().tolist():
        members = which == number
        outputs = run(networks[number], *(row[members] for row in rows))
        if not found:
            found = [output.new_zeros(len(which), *output.shape[1:]) for output in outputs]
        for whole, output in zip(found, outputs, strict=True):
            whole[members] = output
    return found
