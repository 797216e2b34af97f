"""Check the pickles of a checkpoint before torch, Accelerate or the Trainer unpickles them.

Unpickling calls whatever a file names. torch refuses that under `weights_only=True`, with which the Trainer reads
optimizer, schedule and random states; but `torch.distributed.checkpoint`, which reads the shards of FSDP, unpickles
`.metadata` and every object that is no tensor without any restriction. A checkpoint is therefore checked here first.
"""

import io
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import torch
from transformers.trainer_pt_utils import safe_globals

PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
TRAINING_ARGUMENTS_FILE = "training_args.bin"  # the Trainer writes it, and nothing reads it
SHARD_FOLDERS = ("pytorch_model_fsdp_*", "optimizer_*")  # of torch.distributed.checkpoint, in a checkpoint of FSDP


class UnsafePickleError(ValueError):
    """A pickle names something else than the tensors and numbers that a checkpoint consists of."""


def check_pickles(checkpoint: Path) -> None:
    """Refuse a checkpoint whose pickles name anything but tensors and plain values. Nothing in it is executed.

    Truncated files pass: `trivium.storage.checkpoints.find_defect` names them.

    Raises:
        OSError: A file cannot be read.
        UnsafePickleError: A pickle names something else; the message says which file, and what to do.
    """
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix in PICKLE_SUFFIXES and path.name != TRAINING_ARGUMENTS_FILE and path.is_file():
            _check_torch_file(path)
    for pattern in SHARD_FOLDERS:
        for folder in sorted(checkpoint.glob(f"{pattern}/")):
            # torch falls back to `__RANK.metadata` where it cannot read `.metadata`.
            for path in sorted(folder.glob("*.metadata")):
                _check_shards(path)


def _check_torch_file(path: Path) -> None:
    path.open("rb").close()  # raises where the system does not let it be read
    if not zipfile.is_zipfile(path):  # truncated, or of a format that torch has given up: `find_defect` names it
        return
    try:
        with safe_globals():  # numpy's arrays, of which the random states consist
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # TorchScript, for example, is a RuntimeError
        _refuse(path, _reason(path, error), error)


def _check_shards(path: Path) -> None:
    try:
        shards = read_shards(path)
    except EOFError:
        return
    for shard in shards:
        if shard.is_tensor or not shard.is_complete:  # torch itself reads tensors with weights_only=True
            continue
        shard.load()


def _reason(file: Path | io.BytesIO, error: Exception) -> str:
    """Return what a file of torch names that it must not."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # the file is crafted: it can fail in any way
        names = []
    return f"it names {', '.join(names)}" if names else str(error).strip().splitlines()[-1].rstrip(".")


def _refuse(path: Path, reason: str, error: Exception) -> NoReturn:
    raise UnsafePickleError(
        f"{path} is not safe to unpickle and was not unpickled: {reason}. A checkpoint may hold tensors and plain "
        "values only. Do not resume runs from sources that you do not trust; if the run is your own, delete "
        f"{_checkpoint_of(path)} and resume from the checkpoint before it."
    ) from error


def _checkpoint_of(path: Path) -> Path:
    inside = next((pattern for pattern in SHARD_FOLDERS if path.parent.match(pattern)), None)
    return path.parent.parent if inside else path.parent


# --- The list of shards that torch.distributed.checkpoint keeps ------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """One entry of a folder's `.metadata`: a piece of a tensor, or an object that is no tensor.

    Attributes:
        name: The key in the state dict.
        path: The file that holds the bytes.
        offset: Where they begin.
        length: How many they are.
        is_tensor: Whether they hold a tensor.
    """

    name: str
    path: Path
    offset: int
    length: int
    is_tensor: bool

    @property
    def is_complete(self) -> bool:
        """Whether the file is there and long enough."""
        return self.path.is_file() and self.path.stat().st_size >= self.offset + self.length

    def load(self) -> Any:
        """Return the tensor or the plain value.

        Raises:
            UnsafePickleError: It is something else.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = io.BytesIO(file.read(self.length))
        try:
            return torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:
            content.seek(0)
            _refuse(self.path, _reason(content, error), error)


def read_shards(metadata: Path) -> list[Shard]:
    """Read a `.metadata` file of torch.distributed.checkpoint without building any of its objects.

    Raises:
        EOFError: The file is truncated.
        OSError: It cannot be read.
        UnsafePickleError: It names something else than such a file does, or leads out of its folder.
    """
    content = metadata.read_bytes()
    try:
        found = _MetadataUnpickler(io.BytesIO(content)).load()
        return list(_shards_of(metadata.parent, found))
    except EOFError:
        raise
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise EOFError(f"{metadata} is truncated.") from error
        _refuse(metadata, str(error).rstrip("."), error)
    except Exception as error:  # a crafted pickle can fail in any way
        _refuse(metadata, f"it is no list of shards ({error!r})", error)


def _shards_of(folder: Path, found: Any) -> Iterator[Shard]:
    kinds = found.__dict__["state_dict_metadata"]
    for index, info in found.__dict__["storage_data"].items():
        name, place = index.__dict__["fqn"], info.__dict__
        offset, length, file = place["offset"], place["length"], place["relative_path"]
        if not place.keys() <= {"offset", "length", "relative_path"} or type(index).__name__ != "MetadataIndex":
            raise pickle.UnpicklingError("its storage_data has entries of an unknown form")
        if not (type(offset) is type(length) is int and offset >= 0 and length >= 0):
            raise pickle.UnpicklingError(f"offset and length of {name} are {offset!r} and {length!r}")
        if type(file) is not str or PurePosixPath(file).name != file or "\\" in file:
            raise pickle.UnpicklingError(f"it places {name} in {file!r}, outside of its folder")
        yield Shard(name, folder / file, offset, length, type(kinds[name]).__name__ == "TensorStorageMetadata")


class _FixedClass(type):
    """The type of the stand-ins: a pickle can set attributes of an object, but must not change a class."""

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it sets {cls.__name__}.{name}")


class _StandIn(metaclass=_FixedClass):
    """Takes the place of an object of torch: keeps the attributes that the pickle sets, and does nothing."""

    def __setstate__(self, state: Any) -> None:
        if type(self).__name__ == "TensorProperties":  # a tuple, of no interest here
            return
        if type(state) is not dict or any(type(name) is not str or name.startswith("__") for name in state):
            raise pickle.UnpicklingError(f"it sets up {type(self).__name__} in an unknown way")
        self.__dict__.update(state)


class _MetadataUnpickler(pickle.Unpickler):
    """Resolves the names that a `.metadata` file has, to stand-ins; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if name in METADATA_CLASSES.get(module, ()):
            return _FixedClass(name, (_StandIn,), {})
        if name in METADATA_CALLS.get(module, ()) or (module == "torch" and name in DTYPES):
            return lambda *args: args
        raise pickle.UnpicklingError(f"it names {module}.{name}")


METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
        *("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
}
METADATA_CALLS = {
    "torch": ("Size",),
    "torch.distributed.checkpoint.metadata": ("_MEM_FORMAT_ENCODING",),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
}
DTYPES = frozenset(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))
