"""Check the pickles of a checkpoint before torch, Accelerate or the Trainer unpickles them.

Unpickling can call any function that the file names. torch prevents that with `weights_only=True`, with which the
Trainer loads optimizer, scheduler and RNG states. `torch.distributed.checkpoint`, however, which loads FSDP shards,
unpickles `.metadata` and all non-tensor objects without restrictions. A checkpoint is therefore checked here first.
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
TRAINING_ARGUMENTS_FILE = "training_args.bin"  # written by the Trainer, but never loaded
# folders of torch.distributed.checkpoint in an FSDP checkpoint
SHARD_FOLDERS = ("pytorch_model_fsdp_*", "optimizer_*")


class UnsafePickleError(ValueError):
    """Raised for a pickle that refers to classes or functions not needed for tensors and plain values."""


def check_pickles(checkpoint: Path) -> None:
    """Check, without executing them, that a checkpoint's pickles contain only tensors and plain values.

    Truncated files pass: `trivium.storage.checkpoints.find_defect` reports them.

    Raises:
        OSError: A file cannot be read.
        UnsafePickleError: A pickle contains other objects; the message names the file and the remedy.
    """
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix in PICKLE_SUFFIXES and path.name != TRAINING_ARGUMENTS_FILE and path.is_file():
            _check_torch_file(path)
    for pattern in SHARD_FOLDERS:
        for folder in sorted(checkpoint.glob(f"{pattern}/")):
            # torch falls back to `__RANK.metadata` if it cannot read `.metadata`.
            for path in sorted(folder.glob("*.metadata")):
                _check_shards(path)


def _check_torch_file(path: Path) -> None:
    path.open("rb").close()  # Opening the file here raises an OSError if it cannot be read.
    if not zipfile.is_zipfile(path):  # The file is truncated, or in torch's legacy format: `find_defect` reports it.
        return
    try:
        with safe_globals():  # These globals belong to NumPy arrays, which RNG states contain.
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # The exception type varies: TorchScript files, for example, raise a RuntimeError.
        _refuse(path, _reason(path, error), error)


def _check_shards(path: Path) -> None:
    try:
        shards = read_shards(path)
    except EOFError:
        return
    for shard in shards:
        if shard.is_tensor or not shard.is_complete:  # torch loads tensors with weights_only=True.
            continue
        shard.load()


def _reason(file: Path | io.BytesIO, error: Exception) -> str:
    """Return the globals that make a torch file unsafe, or the error that prevents determining them."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # A malicious file can raise any error.
        names = []
    return f"it names {', '.join(names)}" if names else str(error).strip().splitlines()[-1].rstrip(".")


def _refuse(path: Path, reason: str, error: Exception) -> NoReturn:
    raise UnsafePickleError(
        f"{path} is not safe to unpickle and was not unpickled: {reason}. A checkpoint may hold tensors and plain "
        "values only. Do not resume runs from sources that you do not trust; if the run is your own, delete "
        f"{_checkpoint_of(path)} and resume from the checkpoint before it."
    ) from error


def _checkpoint_of(path: Path) -> Path:
    in_shard_folder = any(path.parent.match(pattern) for pattern in SHARD_FOLDERS)
    return path.parent.parent if in_shard_folder else path.parent


# --- Shard metadata of torch.distributed.checkpoint ------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """An entry of a `.metadata` file: a shard of a tensor, or a non-tensor object.

    Attributes:
        name: Key in the state dict.
        path: File that contains the bytes.
        offset: Offset of the first byte in the file.
        length: Number of bytes.
        is_tensor: True for a tensor, False for any other object.
    """

    name: str
    path: Path
    offset: int
    length: int
    is_tensor: bool

    @property
    def is_complete(self) -> bool:
        """Return True if the file exists and is long enough."""
        return self.path.is_file() and self.path.stat().st_size >= self.offset + self.length

    def load(self) -> Any:
        """Load the tensor or plain value.

        Raises:
            UnsafePickleError: The shard contains any other object.
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
    """Read a `.metadata` file of torch.distributed.checkpoint without instantiating any of its classes.

    Raises:
        EOFError: The file is truncated.
        OSError: The file cannot be read.
        UnsafePickleError: The file refers to unexpected classes, or to files outside its folder.
    """
    content = metadata.read_bytes()
    try:
        contents = _MetadataUnpickler(io.BytesIO(content)).load()
        return list(_shards_of(metadata.parent, contents))
    except EOFError:
        raise
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise EOFError(f"{metadata} is truncated.") from error
        _refuse(metadata, str(error).rstrip("."), error)
    except Exception as error:  # A malicious pickle can raise any error.
        _refuse(metadata, f"it is not a list of shards ({error!r})", error)


def _shards_of(folder: Path, metadata: Any) -> Iterator[Shard]:
    types = metadata.__dict__["state_dict_metadata"]
    for index, info in metadata.__dict__["storage_data"].items():
        name, location = index.__dict__["fqn"], info.__dict__
        offset, length, file = location["offset"], location["length"], location["relative_path"]
        if not location.keys() <= {"offset", "length", "relative_path"} or type(index).__name__ != "MetadataIndex":
            raise pickle.UnpicklingError("its storage_data has entries of an unknown form")
        if not (type(offset) is type(length) is int and offset >= 0 and length >= 0):
            raise pickle.UnpicklingError(f"offset and length of {name} are {offset!r} and {length!r}")
        if type(file) is not str or PurePosixPath(file).name != file or "\\" in file:
            raise pickle.UnpicklingError(f"it places {name} in {file!r}, outside its folder")
        yield Shard(name, folder / file, offset, length, type(types[name]).__name__ == "TensorStorageMetadata")


class _FrozenClass(type):
    """Metaclass of the placeholders, which prevents a pickle from setting their class attributes."""

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it sets {cls.__name__}.{name}")


class _Placeholder(metaclass=_FrozenClass):
    """Placeholder that stores the attributes of a torch object, without its behavior."""

    def __setstate__(self, state: Any) -> None:
        if type(self).__name__ == "TensorProperties":  # The state is a tuple here; its content is not needed.
            return
        if type(state) is not dict or any(type(name) is not str or name.startswith("__") for name in state):
            raise pickle.UnpicklingError(f"it has an unexpected state of {type(self).__name__}")
        self.__dict__.update(state)


class _MetadataUnpickler(pickle.Unpickler):
    """Resolve the globals of a `.metadata` file to placeholders, and reject all others."""

    def find_class(self, module: str, name: str) -> Any:
        if name in METADATA_CLASSES.get(module, ()):
            return _FrozenClass(name, (_Placeholder,), {})
        if name in METADATA_CALLS.get(module, ()) or (module == "torch" and name in DTYPES):
            return lambda *args: args
        raise pickle.UnpicklingError(f"it names {module}.{name}")


METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorStorageMetadata",
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
