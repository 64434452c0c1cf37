"""The files of a checkpoint: its configuration, and its tensors, each read when it is used.

A whole model of transformers holds every weight in memory, and importing one costs more memory than some of
them have. Where an encoder uses a part of a checkpoint only (one tower, some rows of a word table), it reads that
part from here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from lmms_eval_emi.util.files import read_json

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BLOCK = 2**24  # bytes that are hashed at a time
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8")}


class EncoderUnavailable(RuntimeError):
    """An encoder's weights or its preprocessing are not on this machine and could not be fetched."""


class Checkpoint:
    """A checkpoint in a folder or on the hub, by safetensors or the older ``.bin`` files, sharded or not.

    Args:
        name: hub name or folder.

    Raises:
        OSError: it is not on this machine and cannot be fetched, or holds no weights.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = read_config(name)
        self._paths = self._find()

    @cached_property
    def _tensors(self) -> dict[str, TensorInFile | torch.Tensor]:
        found: dict[str, TensorInFile | torch.Tensor] = {}
        for path in self._paths:
            found |= _weights(path) if path.suffix == ".safetensors" else _pickled(path)
        return found

    @property
    def identity(self) -> list[list[Any]]:
        """What changes when a file of the weights does: its path, size and time of change."""
        return [
            [str(path.resolve()), (status := path.stat()).st_size, status.st_mtime_ns] for path in sorted(self._paths)
        ]

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def tensor(self, key: str) -> torch.Tensor:
        """One tensor as float32, in the shape that the file has."""
        found = self._tensors[key]
        if isinstance(found, torch.Tensor):
            return found.detach().float()
        return torch.from_numpy(found.read())

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._tensors[key].shape)

    def rows(self, key: str, numbers: np.ndarray) -> np.ndarray:
        """(M, D) float32 rows of a matrix, of which nothing else is read."""
        found = self._tensors[key]
        if isinstance(found, torch.Tensor):
            return found.detach()[torch.from_numpy(numbers)].float().numpy()
        return found.rows(numbers)

    def fingerprint(self, names: dict[str, str]) -> str:
        """Eight hexadecimal digits of some weights in float32, a block of a file at a time.

        Args:
            names: key of every tensor by the name that it counts under; see :func:`~lmms_eval_emi.encoders.base.fingerprint`.
        """
        digest = xxhash.xxh3_64()
        for name, key in sorted(names.items()):
            digest.update(name.encode())
            found = self._tensors[key]
            if isinstance(found, torch.Tensor):
                content: Any = found.detach().float().contiguous().view(torch.uint8).numpy()
                digest.update(content)
            else:
                for block in found.blocks():
                    digest.update(block)
        return digest.hexdigest()[:8]

    def _find(self) -> list[Path]:
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
    """A file of a checkpoint, in its folder or in the hub's cache, fetched if it is not there yet.

    Raises:
        OSError: it is not there and cannot be fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is not there")
        return folder / file
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, HFValidationError) as error:
        raise OSError(str(error)) from error


def read_config(name: str) -> dict[str, Any]:
    """A checkpoint's ``config.json``.

    Raises:
        OSError, ValueError: it is not there, or holds no object.
    """
    found = read_json(checkpoint_file(name, "config.json"))
    if not isinstance(found, dict):
        raise ValueError(f"expected an object in config.json, got {type(found).__name__}")
    return found


class TensorInFile:
    """A tensor that stays in its file until it is read.

    Args:
        path: of the file.
        begin: first byte of the tensor.
        dtype: of the file.
        shape: of the tensor.
    """

    def __init__(self, path: Path, begin: int, dtype: str, shape: Sequence[int]) -> None:
        self.path, self.begin, self.kind, self.shape = path, begin, dtype, tuple(shape)

    @property
    def _width(self) -> int:
        return 2 if self.kind == "BF16" else DTYPES[self.kind].itemsize

    def read(self) -> np.ndarray:
        """The whole of it as float32."""
        return self._part(0, int(np.prod(self.shape))).reshape(self.shape)

    def read_as(self, dtype: Any) -> np.ndarray:
        """The whole of it as the file has it.

        Raises:
            ValueError: it is of another type, or cut off.
        """
        kind, count = np.dtype(dtype), int(np.prod(self.shape))
        with self.path.open("rb") as file:
            file.seek(self.begin)
            content = file.read(count * kind.itemsize)
        if self.kind != f"{kind.kind.upper()}{8 * kind.itemsize}" or len(content) != count * kind.itemsize:
            raise ValueError(f"{self.path}: expected {count} values of {kind}")
        return np.frombuffer(content, kind).reshape(self.shape)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """(M, D) float32 rows of a matrix."""
        columns = self.shape[1]
        found = np.empty((len(numbers), columns), dtype=np.float32)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            for place, number in enumerate(numbers.tolist()):
                where = self.begin + number * columns * self._width
                if self.kind == "F32":
                    if os.preadv(handle, [found[place]], where) != columns * self._width:
                        raise OSError(f"{self.path} is cut off")
                else:
                    found[place] = self._decode(os.pread(handle, columns * self._width, where))
        finally:
            os.close(handle)
        return found

    def blocks(self) -> Iterator[Any]:
        """The bytes of the tensor in float32, a block at a time."""
        count, step = int(np.prod(self.shape)), BLOCK // 4
        for start in range(0, count, step):
            yield self._part(start, min(step, count - start)).view(np.uint8)

    def _part(self, start: int, count: int) -> np.ndarray:
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.begin + start * self._width)
            if self.kind == "F32":
                found = np.empty(count, dtype=np.float32)
                view = memoryview(found).cast("B")  # type: ignore[arg-type]
                done = 0
                while done < len(view):
                    got = file.readinto(view[done:])
                    if not got:
                        raise OSError(f"{self.path} is cut off")
                    done += got
                return found
            return self._decode(file.read(count * self._width))

    def _decode(self, content: bytes) -> np.ndarray:
        if self.kind == "BF16":  # the upper half of a float32
            return (np.frombuffer(content, np.dtype("<u2")).astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(content, DTYPES[self.kind]).astype(np.float32)


def _weights(path: Path) -> dict[str, TensorInFile | torch.Tensor]:
    return {key: one for key, one in tensors_of_safetensors(path).items() if one.kind in {*DTYPES, "BF16"}}


def tensors_of_safetensors(path: Path) -> dict[str, TensorInFile]:
    """Tensors of a safetensors file, none of which is read: JSON behind its length in eight bytes says where each begins behind it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise OSError(f"{path} is no safetensors file: {error}") from error
    return {
        key: TensorInFile(path, 8 + length + one["data_offsets"][0], one["dtype"], one["shape"])
        for key, one in header.items()
        if key != "__metadata__"
    }


def _pickled(path: Path) -> dict[str, TensorInFile | torch.Tensor]:
    """Tensors of a ``.bin`` file, without running what is pickled in it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):  # files before PyTorch 1.6 cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def check_loaded(name: str, missing: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raise unless the checkpoint had every weight that is used, for transformers makes up those that it lacks.

    Raises:
        EncoderUnavailable: weights are missing.
    """
    needed = sorted(key for key in missing if not key.startswith(tuple(optional)))
    if needed:
        raise EncoderUnavailable(
            f"{name}: its checkpoint lacks {len(needed)} of the weights that the encoder uses, such as {needed[0]}. Give a checkpoint of the same architecture."
        )


def tensors_below(checkpoint: Checkpoint, prefixes: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Key of every tensor by its name, behind the prefix that the checkpoint has.

    Args:
        checkpoint: to look in.
        prefixes: that the names may have there.
        names: of the tensors.

    Raises:
        EncoderUnavailable: one is missing under each of the prefixes.
    """
    found = max(
        ({name: prefix + name for name in names if prefix + name in checkpoint} for prefix in prefixes), key=len
    )
    check_loaded(checkpoint.name, list(set(names) - set(found)))
    return found
