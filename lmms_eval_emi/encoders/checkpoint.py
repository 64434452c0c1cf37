"""The files of a checkpoint: its configuration, and its tensors, memory-mapped."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file

from lmms_eval_emi.errors import InputError, UnavailableError
from lmms_eval_emi.util.files import read_json
from lmms_eval_emi.util.hub import go_offline_unless_reachable

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


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
        for file in FILES:
            try:
                path = checkpoint_file(self.name, file)
                if path.suffix != ".json":
                    return [path]
                shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
                return [checkpoint_file(self.name, shard) for shard in shards]
            except (OSError, ValueError, KeyError) as error:
                problem = problem or error
        raise OSError(f"{self.name} holds none of {', '.join(FILES)}: {problem}")


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
    """Check that a checkpoint has every weight that is used; transformers initialises missing ones at random.

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
