"""Test crafted checkpoints: callables in their pickles are never called, and the error names the file."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from paths import TESTS
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from trivium.recipe import load_recipe
from trivium.storage.checkpoints import find_defect
from trivium.storage.pickles import UnsafePickleError, check_pickles, read_shards
from trivium.training import train

OLD_RUN = TESTS / "fixtures" / "run-0.1.0"


class CallOnUnpickling:
    """An object that makes unpickling call a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def listing(storage_data: Any, kinds: Any = None) -> Metadata:
    return Metadata(kinds or {}, storage_data=storage_data)


SHARD = _StorageInfo("__0_0.distcp", 0, 1)
# A pickle whose slot state modifies the class itself. `getattr`, below, reaches dangerous callables via harmless ones.
CHANGES_A_CLASS = (
    b"\x80\x04\x8c\x27torch.distributed.checkpoint.filesystem\x8c\x0c_StorageInfo\x93N}\x8c\x06lengthK\x01s\x86b."
)
CRAFTED: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda canary: pickle.dumps(CallOnUnpickling(os.system, f"touch {canary}")),
    "eval": lambda canary: pickle.dumps(CallOnUnpickling(eval, f"open({str(canary)!r}, 'w')")),
    "getattr": lambda canary: pickle.dumps(CallOnUnpickling(getattr, torch.Size, "__class__")),
    "nested": lambda canary: pickle.dumps(
        listing({MetadataIndex("a"): CallOnUnpickling(os.system, f"touch {canary}")})
    ),
    "protocol 0": lambda canary: pickle.dumps(CallOnUnpickling(os.system, f"touch {canary}"), protocol=0),
    "cut off after a call": lambda canary: pickle.dumps(CallOnUnpickling(os.system, f"touch {canary}"), 0)[:-1],
    "a class is changed": lambda canary: CHANGES_A_CLASS,
    "another folder": lambda canary: pickle.dumps(listing({MetadataIndex("a"): _StorageInfo("../../x", 0, 1)})),
    "no list": lambda canary: pickle.dumps([1, 2]),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN, tmp_path / "run"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(run: Path, canary: Path, file: str) -> None:
    """Assert that resuming fails with an error that names the file, nothing is called, and the run is unchanged."""
    before = content_of(run)
    with pytest.raises(UnsafePickleError, match=f"{file} is not safe to unpickle") as error:
        train(load_recipe(run, [f"training.output_dir={run}"]), resume=True)
    assert "delete " in str(error.value)
    assert content_of(run) == before
    assert not canary.exists()


@pytest.mark.parametrize("place", ["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "optimizer_1/.metadata"])
def test_crafted_shard_metadata_is_refused_in_any_folder(run: Path, canary: Path, place: str) -> None:
    path = run / "checkpoint-3" / place
    path.parent.mkdir()
    path.write_bytes(CRAFTED["os.system"](canary))
    assert_refused(run, canary, place)


@pytest.mark.parametrize("kind", CRAFTED)
def test_crafted_shard_metadata_is_refused(tmp_path: Path, canary: Path, kind: str) -> None:
    folder = tmp_path / "optimizer_0"
    folder.mkdir()
    (folder / ".metadata").write_bytes(CRAFTED[kind](canary))
    with pytest.raises(UnsafePickleError, match=r"optimizer_0/\.metadata is not safe to unpickle"):
        check_pickles(tmp_path)
    assert not canary.exists()


def sharded(folder: Path, **objects: Any) -> Path:
    """Write the shards of an optimizer as FSDP does, including non-tensor objects."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "model": model.state_dict(), **objects}
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    return folder


def test_shard_metadata_of_torch_is_read(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "optimizer_0")
    shards = {shard.name: shard for shard in read_shards(folder / ".metadata")}
    expected = dcp.FileSystemReader(folder).read_metadata().storage_data
    assert {(index.fqn, info.offset, info.length) for index, info in expected.items()} == {
        (shard.name, shard.offset, shard.length) for shard in shards.values()
    }
    assert torch.equal(torch.as_tensor(shards["optimizer.param_groups.0.lr"].load()), torch.tensor(1e-3))
    assert shards["model.weight"].is_tensor
    check_pickles(tmp_path)


def test_crafted_object_in_shards_is_refused(tmp_path: Path, canary: Path) -> None:
    """The shards must be checked, because torch.distributed.checkpoint unpickles non-tensor objects unrestricted."""
    folder = sharded(tmp_path / "optimizer_0", crafted=CallOnUnpickling(os.system, f"touch {canary}"))
    with pytest.raises(UnsafePickleError, match=r"__0_0\.distcp is not safe to unpickle .*posix\.system"):
        check_pickles(tmp_path)
    # The metadata must not declare a tensor, which torch would load safely, with `weights_only`.
    assert isinstance(
        dcp.FileSystemReader(folder).read_metadata().state_dict_metadata["crafted"], BytesStorageMetadata
    )
    assert not canary.exists()


def test_crafted_metadata_of_one_rank_is_refused(tmp_path: Path, canary: Path) -> None:
    """torch falls back to the metadata of a single rank if it cannot read `.metadata`."""
    folder = sharded(tmp_path / "optimizer_0")
    (folder / "__0.metadata").write_bytes(CRAFTED["os.system"](canary))
    with pytest.raises(UnsafePickleError, match=r"__0\.metadata is not safe"):
        check_pickles(tmp_path)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"])
def test_crafted_torch_file_is_named(run: Path, canary: Path, file: str) -> None:
    torch.save({"state": CallOnUnpickling(os.system, f"touch {canary}")}, run / "checkpoint-3" / file)
    assert_refused(run, canary, rf"checkpoint-3/{file}")


def test_crafted_best_checkpoint_is_refused(run: Path, canary: Path) -> None:
    """The best checkpoint must be checked too: it is loaded at the end, even if training resumes from another one."""
    shutil.copytree(run / "checkpoint-3", run / "checkpoint-2")
    (run / "checkpoint-2" / "optimizer_0").mkdir()
    (run / "checkpoint-2" / "optimizer_0" / ".metadata").write_bytes(CRAFTED["os.system"](canary))
    state = run / "checkpoint-3" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "best_model_checkpoint": "elsewhere/checkpoint-2"}))
    assert_refused(run, canary, r"checkpoint-2/optimizer_0/\.metadata")


def test_training_arguments_are_never_read(run: Path, canary: Path) -> None:
    torch.save(CallOnUnpickling(os.system, f"touch {canary}"), run / "checkpoint-3" / "training_args.bin")
    check_pickles(run / "checkpoint-3")
    assert find_defect(run / "checkpoint-3") is None
    assert not canary.exists()
