"""Fuzz checkpoints and run folders: damage is detected, no code is executed, and foreign files are kept."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import TESTS

from trivium.recipe import load_recipe
from trivium.storage.checkpoints import find_defect
from trivium.storage.checksums import write_checksums
from trivium.storage.manifest import MANIFEST, RunFolder, read_manifest, start_manifest
from trivium.storage.pickles import UnsafePickleError, check_pickles
from trivium.training.train import Start, choose_start, prepare_folder

pytestmark = pytest.mark.slow
OLD_RUN = TESTS / "fixtures" / "run-0.1.0"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN, tmp_path / "run"))


def test_any_damaged_byte_is_found(cases: int, rng: random.Random, run: Path) -> None:
    """Flip a bit, truncate a file, append bytes, or swap two files; the checksums must reveal each of them."""
    checkpoint = run / "checkpoint-3"
    write_checksums(checkpoint)
    assert find_defect(checkpoint) is None
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json")
    for _ in range(cases):
        path = rng.choice(files)
        original = path.read_bytes()
        damaged = bytearray(original)
        kind = rng.choice(["flip", "cut", "add", "empty", "delete"])
        if kind == "flip":
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del damaged[-rng.randint(1, len(damaged)) :]
        elif kind == "add":
            damaged += rng.randbytes(rng.randint(1, 9))
        elif kind == "empty":
            damaged.clear()
        path.unlink() if kind == "delete" else path.write_bytes(damaged)
        assert find_defect(checkpoint) is not None, (path.name, kind)
        path.write_bytes(original)
    assert find_defect(checkpoint) is None


class Call:
    """An object that makes unpickling call a function."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def test_no_hostile_pickle_is_executed(cases: int, rng: random.Random, run: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    gadgets: list[tuple[Any, tuple[Any, ...]]] = [
        (os.system, (f"touch {canary}",)),
        (eval, (f"open({str(canary)!r}, 'w').close()",)),
        (exec, (f"open({str(canary)!r}, 'w').close()",)),
        (open, (str(canary), "w")),
        (Path.touch, (canary,)),
        (getattr, ("text", "__class__")),
        (__import__, ("antigravity",)),
        (torch.load, (str(canary),)),
        (torch.hub.load, ("owner/name", "model")),
        (shutil.rmtree, (str(tmp_path / "victim"),)),
    ]
    places = [
        "pytorch_model_fsdp_0/.metadata",
        "optimizer_0/.metadata",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    ]
    (tmp_path / "victim").mkdir()
    for case in range(cases):
        checkpoint = Path(shutil.copytree(run / "checkpoint-3", tmp_path / f"checkpoint-{case}"))
        hostile: Any = Call(*rng.choice(gadgets))
        for _ in range(rng.randint(0, 4)):  # a malicious object nested in allowed containers
            hostile = rng.choice([{"state": hostile}, [1, hostile], (hostile, torch.ones(2))])
        path = checkpoint / rng.choice(places)
        path.parent.mkdir(exist_ok=True)
        if path.suffix and rng.random() < 0.5:
            torch.save(hostile, path)
        else:
            path.write_bytes(pickle.dumps(hostile, protocol=rng.randint(0, 5)))
        try:
            # A file that is not a torch archive is reported as a defect and never unpickled.
            if find_defect(checkpoint) is None:
                check_pickles(checkpoint)
                raise AssertionError(f"{path} is not refused")
        except UnsafePickleError as error:
            assert path.name in str(error)
        assert not canary.exists()
        assert (tmp_path / "victim").exists()
        shutil.rmtree(checkpoint)


def test_mutated_metadata_is_refused_or_read(cases: int, rng: random.Random, run: Path) -> None:
    """A shard index with mutated bytes loads, raises UnsafePickleError, or is reported as a defect."""
    folder = run / "checkpoint-3" / "optimizer_0"
    folder.mkdir()
    original = pickle.dumps(torch.distributed.checkpoint.metadata.Metadata({}, storage_data={}))
    for _ in range(cases):
        content = bytearray(original)
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (folder / ".metadata").write_bytes(content)
        try:
            find_defect(run / "checkpoint-3")
        except UnsafePickleError:
            continue


HOSTILE_NAMES = [
    *(
        "../victim.txt",
        "/etc/passwd",
        "a/../../victim.txt",
        "./../victim.txt",
        "link/victim.txt",
        "link",
        "..",
        ".",
        "",
    ),
    *("recipe.yaml", "notes.txt", "checkpoint-3", "checkpoint-3/notes.txt", "C:\\victim.txt", "a\0b", "~/victim.txt"),
]


def test_hostile_manifests_delete_nothing_outside(cases: int, rng: random.Random, tmp_path: Path) -> None:
    """Overwriting with a crafted manifest deletes nothing outside the run, and nothing behind symbolic links."""
    outside = tmp_path / "outside"
    outside.mkdir()
    victims = [tmp_path / "victim.txt", outside / "victim.txt"]
    for victim in victims:
        victim.write_text("precious")
    refused = 0
    for case in range(cases):
        run = Path(shutil.copytree(OLD_RUN, tmp_path / f"run-{case}"))
        (run / "link").symlink_to(outside)
        (run / "notes.txt").write_text("notes")
        names = [path.name for path in OLD_RUN.iterdir() if path.is_file()]
        listed = [*names, *rng.sample(HOSTILE_NAMES, rng.randint(0, 3))]
        content: Any = {"version": 1, "files": listed}
        if rng.random() < 0.2:
            content = rng.choice([[], None, {"files": {}}, {"files": [1, None]}, {"files": "recipe.yaml"}, "text", 3])
        (run / MANIFEST).parent.mkdir()
        (run / MANIFEST).write_text(json.dumps(content))
        recipe = load_recipe("numbers", [f"training.output_dir={run}", "training.use_cpu=true"])
        try:
            start = choose_start(recipe, recipe.training_arguments(), resume=False, overwrite=True)
            prepare_folder(recipe, Start(start.run, None, []))
        except ValueError:
            refused += 1
        assert all(victim.read_text() == "precious" for victim in victims), listed
        assert (run / "link").is_symlink()
        if "notes.txt" not in listed:
            assert (run / "notes.txt").read_text() == "notes"
        shutil.rmtree(run)
    assert 0 < refused < cases


def test_foreign_files_survive_overwriting(cases: int, rng: random.Random, tmp_path: Path) -> None:
    """Either files that no run has written survive, or the run is rejected and the folder stays unchanged."""
    names = ["notes.txt", "data/train.en", "checkpoint-3/notes.txt", "evaluation_mine.json", "predictions_mine.txt"]
    names += ["_partial-mine/x", "checkpoint-mine/x", "checkpoint-99/x", ".hidden", "model.bin", "_trivium/mine"]
    for case in range(cases):
        run = Path(shutil.copytree(OLD_RUN, tmp_path / f"run-{case}"))
        if rng.random() < 0.5:
            start_manifest(run, ["recipe.yaml", "model.safetensors"])
        foreign = rng.sample(names, rng.randint(1, 4))
        for name in foreign:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("mine")
        recipe = load_recipe("numbers", [f"training.output_dir={run}", "training.use_cpu=true"])
        try:
            start = choose_start(recipe, recipe.training_arguments(), resume=False, overwrite=True)
            prepare_folder(recipe, Start(start.run, None, []))
        except ValueError:
            pass
        if "_trivium/mine" in foreign and read_manifest(run) is not None:
            foreign.remove("_trivium/mine")  # the folder was created by the run
        assert all((run / name).read_text() == "mine" for name in foreign), foreign
        assert RunFolder(run).run == run
        shutil.rmtree(run)
