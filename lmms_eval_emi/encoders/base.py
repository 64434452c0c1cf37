"""What an encoder is, and what all of them need: precision, room on a device, errors that say what to do."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import xxhash
from tqdm import tqdm

from lmms_eval_emi.encoders.checkpoint import Checkpoint, EncoderUnavailable, check_loaded
from lmms_eval_emi.util.files import read_json, write_atomically
from lmms_eval_emi.memory import give_back
from lmms_eval_emi.settings import cache_folder

Self = TypeVar("Self", bound="CheckpointEncoder")

log = logging.getLogger("lmms_eval_emi")
CACHE_REVISION = 2  # goes up when rows of the same weights change


class Encoder(Protocol):
    """Turns items, images or texts, into L2-normalised rows."""

    name: str
    device: torch.device

    @property
    def dimension(self) -> int:
        """D, the width of a row."""
        ...

    @property
    def signature(self) -> str:
        """Name, fingerprint of the weights, and pooling, as they stand in signatures."""
        ...

    @property
    def cache_key(self) -> str:
        """What rows depend on beside their items."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move to a device."""
        ...

    def prepare(self, item: Any) -> Any:
        """What :meth:`encode` takes, of one item: the pixels of an image, a text as it is."""
        ...

    def encode(self, prepared: Sequence[Any]) -> torch.Tensor:
        """(M, D) float32 L2-normalised rows of M prepared items, on the CPU. A row depends on its item alone."""
        ...


class CheckpointEncoder:
    """An encoder whose model is loaded when something has to be encoded.

    Its signature needs the fingerprint of the weights. That of files which have not changed is remembered in the
    cache folder, so a run whose embeddings are all known reads no weights.

    Args:
        name: hub name or folder of a checkpoint.
        device: where to run.

    Raises:
        EncoderUnavailable: the checkpoint is not here and cannot be fetched, or lacks weights.
    """

    pooling: ClassVar[str]
    what: ClassVar[str]
    variable: ClassVar[str]
    # Items that one call on the CPU spreads over its threads best; 0 where it computes in one.
    together: ClassVar[int] = 0
    threads: int | None = None  # of such a call; default: as many as PyTorch has
    loaded: ClassVar[tuple[str, ...]] = ("model",)  # cached properties that hold what was read of the checkpoint

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        try:
            self.checkpoint = Checkpoint(name)
        except (OSError, ValueError) as error:
            raise unavailable(name, self.what, self.variable, error) from error
        self.check()
        self._fingerprint = self._remembered_fingerprint()

    @property
    def signature(self) -> str:
        """Name, fingerprint of the weights, and pooling."""
        return f"{self.name}#{self._fingerprint}/{self.pooling}"

    @property
    def dimension(self) -> int:
        """Width of a row."""
        raise NotImplementedError

    @property
    def cache_key(self) -> str:
        """What rows depend on beside their items, as the cache of embeddings tells encoders apart."""
        return f"{type(self).__name__}#{self._fingerprint}/{self.pooling}/float32/{self.device.type}/{CACHE_REVISION}"

    def check(self) -> None:
        """Make sure of whatever else the encoder needs; it is called before weights are read."""

    def load(self) -> torch.nn.Module:
        """The model, on the CPU."""
        raise NotImplementedError

    def load_from_transformers(
        self, class_name: str, options: Mapping[str, Any], optional_weights: Sequence[str]
    ) -> torch.nn.Module:
        """The checkpoint as a model of transformers.

        Args:
            class_name: of the model.
            options: of ``from_pretrained``.
            optional_weights: beginnings of the keys that rows do not depend on.

        Raises:
            EncoderUnavailable: the checkpoint cannot be read, or lacks weights.
        """
        import transformers

        try:
            with quiet_transformers():
                model, info = getattr(transformers, class_name).from_pretrained(
                    self.name, dtype=torch.float32, output_loading_info=True, **options
                )
        except (OSError, ValueError) as error:
            raise unavailable(self.name, self.what, self.variable, error) from error
        check_loaded(self.name, info["missing_keys"], optional=optional_weights)
        return model.eval()

    def identify(self) -> str:
        """Eight hexadecimal digits of the weights that rows depend on, the same wherever they were read from."""
        raise NotImplementedError

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model; loaded when first used."""
        return self.load()

    def place_model(self) -> torch.device:
        """Put the model on the encoder's device, or on the CPU where that has no room; returns where it is."""
        self.device = place(self.model, self.name, self.device)
        return self.device

    def to(self: Self, device: torch.device) -> Self:
        """Move to a device."""
        self.device = device
        return self

    def release(self) -> None:
        """Drop what was read of the checkpoint from memory, until something has to be encoded."""
        for name in self.loaded:
            self.__dict__.pop(name, None)
        give_back()

    def _remembered_fingerprint(self) -> str:
        from lmms_eval_emi.version import __version__

        identity = [__version__, type(self).__qualname__, self.pooling, *self.checkpoint.identity]
        key = xxhash.xxh3_128_hexdigest(repr(identity).encode())
        path = cache_folder() / "fingerprints" / f"{key}.json"
        try:
            known = read_json(path)
            if known["identity"] == identity and len(str(known["fingerprint"])) == 8:
                return str(known["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        found = self.identify()
        try:
            write_atomically(path, json.dumps({"identity": identity, "fingerprint": found}) + "\n", durable=False)
        except (OSError, RuntimeError) as error:
            log.debug("%s: its fingerprint is not remembered: %s", self.name, error)
        return found


def resolve_device(name: str) -> torch.device:
    """The device that a setting means; ``auto`` is this process's CUDA device where there is one.

    Raises:
        ValueError: the device was named but is not there.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"device: expected one of {torch.cuda.device_count()} CUDA devices, got {name!r}. Set LMMS_EVAL_EMI_DEVICE=auto or cpu."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: mps is not available here. Set LMMS_EVAL_EMI_DEVICE=auto or cpu.")
    return device


def encode_all(
    encoder: Encoder, count: int, prepared: Callable[[range], Sequence[Any]], *, batch_size: int, label: str = ""
) -> torch.Tensor:
    """Encode items in batches, under a progress bar if it has a label.

    Where the device has no room left, the batch is made smaller, and then the CPU takes over.

    Args:
        encoder: of the items.
        count: M, at least 1.
        prepared: gives the prepared items of some positions.
        batch_size: items per forward pass.
        label: of the progress bar.

    Returns:
        (M, D) float32 rows.
    """
    return torch.cat(list(encode_parts(encoder, count, prepared, batch_size=batch_size, label=label)))


def encode_parts(
    encoder: Encoder, count: int, prepared: Callable[[range], Sequence[Any]], *, batch_size: int, label: str = ""
) -> Iterator[torch.Tensor]:
    """As :func:`encode_all`, batch by batch, for who keeps what was encoded before an error."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")
    batch_size = min(batch_size, getattr(encoder, "most_items", batch_size))
    with tqdm(total=count, desc=label, unit="", leave=False, dynamic_ncols=True, disable=not (label and count)) as bar:
        start = 0
        while start < count:
            positions = range(start, min(start + batch_size, count))
            try:
                with full_precision():
                    rows = encoder.encode(prepared(positions))
            except torch.OutOfMemoryError:
                batch_size = make_room(encoder, len(positions))
                encoder.most_items = batch_size  # type: ignore[attr-defined]
                continue
            start = positions.stop
            bar.update(len(positions))
            yield rows


class _FullPrecision:
    """The settings of CUDA's products, and how many blocks of :func:`full_precision` are open."""

    lock = threading.Lock()
    open = 0
    before: ClassVar[list[Any]] = []


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep CUDA from rounding float32 products to TF32 inside the block, whatever the process has set.

    TF32 has 10 bits of mantissa; PyTorch allows it for convolutions by default, and some of
    lmms-eval's models allow it for all products of the process. Several threads may be inside at once.
    """
    matmul: Any = torch.backends.cuda.matmul
    convolution: Any = torch.backends.cudnn
    exact: str | bool = "ieee"
    if hasattr(matmul, "fp32_precision"):
        places = ((matmul, "fp32_precision"), (convolution.conv, "fp32_precision"))
    else:  # PyTorch before 2.9
        places, exact = ((matmul, "allow_tf32"), (convolution, "allow_tf32")), False
    state = _FullPrecision
    with state.lock:
        if state.open == 0:
            state.before = [getattr(place, name) for place, name in places]
            for place, name in places:
                setattr(place, name, exact)
        state.open += 1
    try:
        yield
    finally:
        with state.lock:
            state.open -= 1
            if state.open == 0:
                for (place, name), value in zip(places, state.before, strict=True):
                    setattr(place, name, value)


def make_room(encoder: Encoder, batch_size: int) -> int:
    """After a device ran out of memory: the batch size to go on with, on the CPU if one item was too much."""
    if encoder.device.type == "cpu":
        raise MemoryError(
            f"{encoder.name}: no memory for a batch of {batch_size} on the CPU. Set a smaller LMMS_EVAL_EMI_BATCH_SIZE."
        )
    if encoder.device.type == "cuda":
        torch.cuda.empty_cache()
    if batch_size > 8:
        log.warning(
            "%s: %s has no room for a batch of %d; going on with %d.",
            encoder.name,
            encoder.device,
            batch_size,
            batch_size // 4,
        )
        return batch_size // 4
    log.warning("%s: %s has no room left; going on with the CPU.", encoder.name, encoder.device)
    encoder.to(torch.device("cpu"))
    return 64


def place(module: torch.nn.Module, name: str, device: torch.device) -> torch.device:
    """Move a module to a device, or to the CPU with a message where that has no room; returns where it is."""
    try:
        module.to(device)
        return device
    except torch.OutOfMemoryError:
        log.warning("%s: %s has no room left; encoding on the CPU.", name, device)
        module.to("cpu")
        return torch.device("cpu")


def fingerprint(module: torch.nn.Module) -> str:
    """Eight hexadecimal digits of the weights themselves, the same wherever they were read from."""
    digest = xxhash.xxh3_64()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:8]


def unavailable(name: str, what: str, variable: str, error: Exception) -> EncoderUnavailable:
    """The error for an encoder that could not be read."""
    if Path(name).is_dir():
        return EncoderUnavailable(
            f"The folder {name!r} does not hold the {what}: {str(error).splitlines()[0] if str(error) else type(error).__name__}\n"
            f"Point to one that does:\n  export {variable}=/path/to/folder"
        )
    return EncoderUnavailable(
        f"The {what} {name!r} is not on this machine and could not be fetched: {str(error).splitlines()[0] if str(error) else type(error).__name__}\n"
        f"Fetch it on a machine with a connection:\n"
        f"  hf download {name}\n"
        f"then copy the Hugging Face cache here, or point to a folder with its files:\n"
        f"  export {variable}=/path/to/{name.rsplit('/', 1)[-1]}"
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and its report of keys that are not needed from the user."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def mean_over_positions(states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(M, D) means over the positions of (M, L, D) states, where a mask (M, L) is 1.

    Summed in float64 where the device has it.
    """
    if mask is not None:
        states = (states if states.device.type == "mps" else states.double()) * mask[..., None]
        return states.sum(dim=1) / mask[..., None].sum(dim=1)
    return states.mean(dim=1, dtype=None if states.device.type == "mps" else torch.float64)


def normalised(pooled: torch.Tensor) -> torch.Tensor:
    """(M, D) float32 L2-normalised rows on the CPU."""
    return torch.nn.functional.normalize(pooled, dim=1).float().cpu()
