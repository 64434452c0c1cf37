"""Base of encoders: the files of a checkpoint, a fingerprint, full precision, and a fallback when a device runs out of memory.

A checkpoint's tensors are mapped from its files, so only what is used is read.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file

from lmms_eval_emi.errors import InputError, UnavailableError
from lmms_eval_emi.util.files import content_hexdigest, read_json, write_atomically
from lmms_eval_emi.util.hub import go_offline_unless_reachable
from lmms_eval_emi.version import __version__

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
log = logging.getLogger("lmms_eval_emi")
CACHE_REVISION = 3  # raise it when the same weights give other rows


class Checkpoint:
    """A checkpoint in a folder or on the hub: safetensors or ``.bin`` files, sharded or not.

    Args:
        name: hub name or folder.

    Raises:
        OSError: the checkpoint is not on this machine and cannot be fetched, or has no weights.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = read_config(name)
        self.paths = self._find_weights()

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by key, mapped from the files, so only what is used is read.

        Raises:
            OSError: a file is damaged.
        """
        found: dict[str, torch.Tensor] = {}
        for path in self.paths:
            try:
                found |= load_file(path) if path.suffix == ".safetensors" else _load_bin(path)
            except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                raise OSError(f"{path} is damaged: {error}") from error
        return found

    def select(self, prefixes: Sequence[str], names: Collection[str]) -> dict[str, torch.Tensor]:
        """Return some tensors by name, wherever the checkpoint nests them.

        Args:
            prefixes: prefixes that the names may have in the checkpoint.
            names: names of the tensors, without a prefix.

        Raises:
            UnavailableError: a tensor is missing under each of the prefixes.
        """
        found = max(({n: p + n for n in names if p + n in self.tensors} for p in prefixes), key=len)
        check_loaded(self.name, sorted(set(names) - set(found)))
        return {name: self.tensors[key] for name, key in found.items()}

    @property
    def identity(self) -> list[list[Any]]:
        """Path, size and times of every weights file; it changes when a file is replaced."""
        return [
            [str(path.resolve()), (status := path.stat()).st_size, status.st_mtime_ns, status.st_ctime_ns]
            for path in sorted(self.paths)
        ]

    def _find_weights(self) -> list[Path]:
        problem: Exception | None = None
        for file in WEIGHT_FILES:
            try:
                path = checkpoint_file(self.name, file)
                if path.suffix != ".json":
                    return [path]
                shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
                return [checkpoint_file(self.name, shard) for shard in shards]
            except (OSError, ValueError, KeyError) as error:
                problem = problem or error
        raise OSError(f"{self.name} holds none of {', '.join(WEIGHT_FILES)}: {problem}")


def checkpoint_file(name: str, file: str) -> Path:
    """Return a file of a checkpoint, from its folder or the hub's cache; it is fetched if it is not there yet.

    Raises:
        OSError: the file is missing and cannot be fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is not there")
        return folder / file
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    go_offline_unless_reachable()
    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, HFValidationError) as error:
        raise OSError(str(error)) from error


def read_config(name: str) -> dict[str, Any]:
    """Return a checkpoint's ``config.json``.

    Raises:
        OSError: the file is missing.
        InputError: the file is not a JSON object.
    """
    found = read_json(checkpoint_file(name, "config.json"))
    if not isinstance(found, dict):
        raise InputError(f"expected an object in config.json, got {type(found).__name__}")
    return found


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return eight hexadecimal digits of some weights in float32, the same whatever file format they came from."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        for block in tensor.detach().reshape(-1).split(2**22):
            digest.update(block.float().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def check_loaded(name: str, missing: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Check that a checkpoint has every weight that is used, because transformers initialises missing ones at random.

    Raises:
        UnavailableError: weights are missing.
    """
    needed = sorted(key for key in missing if not key.startswith(tuple(optional)))
    if needed:
        raise UnavailableError(
            f"{name}: its checkpoint lacks {len(needed)} of the weights that the encoder uses, such as {needed[0]}. "
            "Give a checkpoint of the same architecture."
        )


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``.bin`` file; nothing that is pickled in it is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):  # files before PyTorch 1.6 cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, torch.Tensor)}


class Encoder:
    """Turns items, images or texts, into L2-normalised rows. Its model is loaded when the first item is encoded.

    Its signature needs a fingerprint of the weights. With a ``cache`` folder, the fingerprint of unchanged files is
    remembered there, so a run whose embeddings are all cached reads no weights.

    Args:
        name: hub name or folder of a checkpoint.
        device: where to run.
        cache: folder that remembers fingerprints; ``None`` remembers nothing.

    Raises:
        UnavailableError: the checkpoint is not available locally and cannot be fetched, or lacks weights.
    """

    pooling: ClassVar[str]
    role: ClassVar[str]  # name in error messages
    kinds: ClassVar[tuple[str, ...]] = ()  # model types, or prefixes of names, that the class reads
    variable: ClassVar[str]  # the environment variable that chooses it
    settings_files: ClassVar[tuple[str, ...]] = ("config.json", "preprocessor_config.json")

    def __init__(self, name: str, device: torch.device, cache: Path | None = None) -> None:
        self.name, self.device = name, device
        try:
            self.checkpoint = Checkpoint(name)
        except (OSError, ValueError) as error:
            raise unavailable(name, self.role, self.variable, error) from error
        self.check_files()
        self._fingerprint = self._remembered_fingerprint(cache)

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
        """Everything that a row depends on, apart from the item."""
        parts = (self._fingerprint, self.pooling, "float32", self.device.type, self._hash_of_files(), CACHE_REVISION)
        return f"{type(self).__name__}#{'/'.join(map(str, parts))}"

    def _hash_of_files(self) -> str:
        """Return the hash of the files beside the weights that rows depend on, such as the configuration."""
        found = []
        for file in self.settings_files:
            with suppress(OSError):
                found.append(content_hexdigest(checkpoint_file(self.name, file).read_bytes()))
        return content_hexdigest(" ".join(found))

    initialised: ClassVar[set[str]] = set()  # weights that the checkpoint lacks and rows do not depend on

    def check_files(self) -> None:
        """Check anything else the encoder reads, before any weights are read."""

    def load(self) -> torch.nn.Module:
        """Load the model, on the CPU."""
        raise NotImplementedError

    def load_from_transformers(
        self, class_name: str, options: Mapping[str, Any], optional_weights: Sequence[str]
    ) -> torch.nn.Module:
        """Load the checkpoint as a model of transformers, in float32.

        Args:
            class_name: name of the model.
            options: options of ``from_pretrained``.
            optional_weights: beginnings of the keys that rows do not depend on.

        Raises:
            UnavailableError: the checkpoint cannot be read, or lacks weights.
        """
        import transformers

        try:
            with quiet_transformers():
                model, info = getattr(transformers, class_name).from_pretrained(
                    self.name, dtype=torch.float32, output_loading_info=True, **options
                )
        except (OSError, ValueError, SafetensorError) as error:
            raise unavailable(self.name, self.role, self.variable, error) from error
        check_loaded(self.name, info["missing_keys"], optional=optional_weights)
        self.initialised = set(info["missing_keys"])  # type: ignore[misc]
        return model.eval()

    def prepare(self, item: Any) -> Any:
        """Return what :meth:`encode` takes for one item: the pixels of an image, a text unchanged."""
        raise NotImplementedError

    def encode(self, prepared: Sequence[Any]) -> torch.Tensor:
        """Return (M, D) float32 L2-normalised rows of M prepared items, on the CPU. A row depends on its item alone."""
        raise NotImplementedError

    def compute_fingerprint(self) -> str:
        """Return eight hexadecimal digits of the weights that rows depend on."""
        raise NotImplementedError

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model; loaded on first use."""
        return self.load()

    def place_model(self) -> torch.device:
        """Put the model on the encoder's device, or on the CPU if that has no room; returns where it is."""
        try:
            self.model.to(self.device)
        except torch.OutOfMemoryError:
            log.warning("%s: %s has no room left; encoding on the CPU.", self.name, self.device)
            self.device = torch.device("cpu")
            self.model.to(self.device)
        return self.device

    def to(self, device: torch.device) -> Encoder:
        """Move to a device."""
        self.device = device
        return self

    def release(self) -> None:
        """Drop the model from memory until something has to be encoded again."""
        self.__dict__.pop("model", None)
        self.checkpoint.__dict__.pop("tensors", None)

    def _remembered_fingerprint(self, cache: Path | None) -> str:
        identity = [__version__, type(self).__qualname__, self.pooling, *self.checkpoint.identity]
        path = cache / "fingerprints" / f"{content_hexdigest(repr(identity))}.json" if cache else None
        if path is not None:
            try:
                known = read_json(path)
                if known["identity"] == identity and len(str(known["fingerprint"])) == 8:
                    return str(known["fingerprint"])
            except (OSError, ValueError, KeyError, TypeError):
                pass
        try:
            found = self.compute_fingerprint()
        except OSError as error:
            raise unavailable(self.name, self.role, self.variable, error) from error
        self.release()
        if path is not None:
            try:
                write_atomically(path, json.dumps({"identity": identity, "fingerprint": found}) + "\n", durable=False)
            except (OSError, RuntimeError) as error:
                log.debug("%s: its fingerprint is not remembered: %s", self.name, error)
        return found


def resolve_device(name: str) -> torch.device:
    """Return the device that a setting means; ``auto`` is this process's CUDA device, or else the CPU.

    Raises:
        InputError: the device was named but is not there.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(
            f"device: expected one of {torch.cuda.device_count()} CUDA devices, got {name!r}. "
            "Set LMMS_EVAL_EMI_DEVICE=auto or cpu."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: mps is not available here. Set LMMS_EVAL_EMI_DEVICE=auto or cpu.")
    return device


def encode_batches(encoder: Encoder, prepared: Sequence[Any], batch_size: int) -> Iterator[torch.Tensor]:
    """Yield float32 rows of prepared items, batch by batch, so that an error loses only the batch it occurs in.

    If the device runs out of memory, the batch is made smaller, and finally the CPU takes over.

    Args:
        encoder: encoder of the items.
        prepared: M items, as :meth:`Encoder.prepare` gives them.
        batch_size: items per forward pass.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}.")
    batch_size, start = min(batch_size, getattr(encoder, "max_batch", batch_size)), 0
    while start < len(prepared):
        batch = prepared[start : start + batch_size]
        try:
            with full_precision():
                rows = encoder.encode(batch)
        except torch.OutOfMemoryError:
            batch_size = smaller_batch(encoder, len(batch))
            encoder.max_batch = batch_size  # type: ignore[attr-defined]
            continue
        start += len(batch)
        yield rows


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep CUDA from rounding float32 products to TF32 inside the block.

    TF32 has 10 bits of mantissa. PyTorch allows it for convolutions by default, and some of lmms-eval's models allow
    it for all products of the process.
    """
    matmul: Any = torch.backends.cuda.matmul
    convolution: Any = torch.backends.cudnn
    exact: str | bool = "ieee"
    if hasattr(matmul, "fp32_precision"):
        places = ((matmul, "fp32_precision"), (convolution.conv, "fp32_precision"))
    else:  # PyTorch before 2.9
        places, exact = ((matmul, "allow_tf32"), (convolution, "allow_tf32")), False
    before = [getattr(place, name) for place, name in places]
    for place, name in places:
        setattr(place, name, exact)
    try:
        yield
    finally:
        for (place, name), value in zip(places, before, strict=True):
            setattr(place, name, value)


def smaller_batch(encoder: Encoder, batch_size: int) -> int:
    """Return the batch size to continue with after a device ran out of memory; move to the CPU if 8 items were too many.

    Raises:
        UnavailableError: the CPU itself has no memory left.
    """
    if encoder.device.type == "cpu":
        raise UnavailableError(
            f"{encoder.name}: no memory for a batch of {batch_size} on the CPU. Set a smaller LMMS_EVAL_EMI_BATCH_SIZE."
        )
    if encoder.device.type == "cuda":
        torch.cuda.empty_cache()
    if batch_size > 8:
        smaller = batch_size // 4
        log.warning("%s: %s has no room for a batch of %d; going on with %d.", encoder.name, encoder.device, batch_size, smaller)  # fmt: skip
        return smaller
    log.warning("%s: %s has no room left; going on with the CPU.", encoder.name, encoder.device)
    encoder.to(torch.device("cpu"))
    return 64


def unavailable(name: str, role: str, variable: str, error: Exception) -> UnavailableError:
    """Return the error for an encoder that could not be read, with the command that fixes it."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if Path(name).is_dir():
        return UnavailableError(
            f"The folder {name!r} does not hold the {role}: {reason}\n"
            f"Point to one that does:\n  export {variable}=/path/to/folder"
        )
    return UnavailableError(
        f"The {role} {name!r} is not on this machine and could not be fetched: {reason}\n"
        f"Fetch it on a machine with a connection:\n"
        f"  hf download {name}\n"
        f"then copy the Hugging Face cache here, or point to a folder with its files:\n"
        f"  export {variable}=/path/to/{name.rsplit('/', 1)[-1]}"
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and its report of unused keys inside the block."""
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
    """Return (M, D) means over the positions of (M, L, D) states, where a mask (M, L) is 1.

    Summed in float64 where the device has it.
    """
    if mask is not None:
        states = (states if states.device.type == "mps" else states.double()) * mask[..., None]
        return states.sum(dim=1) / mask[..., None].sum(dim=1)
    return states.mean(dim=1, dtype=None if states.device.type == "mps" else torch.float64)


def normalised(pooled: torch.Tensor) -> torch.Tensor:
    """Return (M, D) float32 L2-normalised rows on the CPU."""
    return torch.nn.functional.normalize(pooled, dim=1).float().cpu()
