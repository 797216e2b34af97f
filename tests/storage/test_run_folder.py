"""Test the run folder: which files a training run may delete, and that only one process trains in it."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from distributed_runs import run_distributed
from paths import TESTS

from trivium.recipe import Recipe, load_recipe
from trivium.storage.checkpoints import checkpoints_of, delete_old_checkpoints, set_aside
from trivium.storage.manifest import (
    BROKEN,
    LOCK,
    MANIFEST,
    ROOM,
    RunFolder,
    read_manifest,
    record,
    run_files,
    start_manifest,
)
from trivium.storage.names import RECIPE_FILE
from trivium.training.distributed import lock_run
from trivium.training.train import Start, choose_start, prepare_folder, train

OLD_RUN = TESTS / "fixtures" / "run-0.1.0"
REPORT = {"scores": {}, "data": "numbers", "rows": 3, "generation": {}, "date": "2026-01-01", "versions": {}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a finished run without a manifest, as old versions wrote it."""
    return Path(shutil.copytree(OLD_RUN, tmp_path / "run"))


def recipe_for(run: Path) -> Recipe:
    return load_recipe(OLD_RUN, [f"training.output_dir={run}", "training.report_to=none"])


def start_run(run: Path, resume: bool = False, overwrite: bool = False) -> Start:
    """Prepare the folder as `train` does before the first step."""
    recipe = recipe_for(run)
    start = choose_start(recipe, recipe.training_arguments(), resume, overwrite)
    run.mkdir(exist_ok=True)
    prepare_folder(recipe, start)
    return start


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def assert_refused(run: Path, message: str, **how: bool) -> None:
    """Assert that training fails and all files are unchanged."""
    before = {name: (run / name).read_bytes() for name in names_in(run)}
    with pytest.raises(ValueError, match=message):
        train(recipe_for(run), **how)
    assert {name: (run / name).read_bytes() for name in names_in(run)} == before


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_run_starts_in_new_or_empty_folder(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", tmp_path / "empty"):
        start_run(folder)
        assert names_in(folder) == {RECIPE_FILE, MANIFEST.as_posix()}
        assert read_manifest(folder) == {RECIPE_FILE}


def test_finished_run_without_checkpoints_is_refused(run: Path) -> None:
    shutil.rmtree(run / "checkpoint-3")
    assert_refused(run, r"already holds a run .*: resume it .*overwrite it")


def test_run_killed_before_first_checkpoint_is_refused(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    assert_refused(tmp_path / "run", r"already holds a run \(.*recipe\.yaml\)")
    assert_refused(tmp_path / "run", "There is no checkpoint .*--overwrite", resume=True)
    start_run(tmp_path / "run", overwrite=True)


@pytest.mark.parametrize("name", ["notes.txt", "data/train.de", "checkpoint-best/model.bin", "model.safetensors"])
def test_folder_with_foreign_files_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert_refused(tmp_path / "run", f"is not empty: it holds {name}, which Trivium did not write")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "recipe.yaml", "attention.py", "checkpoint-3/notes.txt", "_trivium/x"]
)
def test_foreign_files_are_refused_with_overwrite(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert_refused(tmp_path / "run", f"holds {name}, .* They are not deleted: move them away", overwrite=True)


def test_foreign_file_in_checkpoint_is_named(run: Path) -> None:
    (run / "checkpoint-3" / "thesis.txt").write_text("mine")
    assert_refused(run, r"holds checkpoint-3/thesis\.txt", overwrite=True)


def test_existing_card_does_not_block_a_run(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    start_run(tmp_path)
    start_run(tmp_path, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


# --- Deletion --------------------------------------------------------------------------------------------------------

FOREIGN = ("notes.txt", "evaluation_mine.json", "predictions_mine.txt", "_partial-mine/thesis.txt", "data/train.de")


def add_foreign_files(run: Path) -> None:
    for name in FOREIGN:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")


def test_overwrite_deletes_only_files_of_runs(run: Path) -> None:
    """Overwrite a run without a manifest, then a run with one: all foreign files are kept."""
    add_foreign_files(run)
    (run / "evaluation_test.json").write_text(json.dumps(REPORT))
    (run / "predictions_test.txt").write_text("x\n")
    (run / "_partial" / "checkpoint-4").mkdir(parents=True)
    (run / "_partial" / "checkpoint-4" / "optimizer.pt").write_text("half")
    (run / "runs").mkdir()
    (run / "runs" / "events.out.tfevents.1").write_text("log")
    logs = {"runs/events.out.tfevents.1"}
    start_run(run, overwrite=True)
    assert names_in(run) == {*FOREIGN, *logs, RECIPE_FILE, MANIFEST.as_posix()}

    with run_files(run) as partial:
        for name in ("config.json", "model.safetensors"):
            (partial / name).write_text("{}")
    record(run, "evaluation_test.json", "predictions_test.txt")
    (run / "evaluation_test.json").write_text("{}")
    (run / "recipe.yaml.partial").write_text("half")
    start_run(run, overwrite=True)
    assert names_in(run) == {*FOREIGN, *logs, RECIPE_FILE, MANIFEST.as_posix()}


def test_resume_deletes_no_foreign_files(run: Path) -> None:
    add_foreign_files(run)
    (run / "evaluation_test.json").write_text(json.dumps(REPORT))
    before = names_in(run) - {"evaluation_test.json"}
    start_run(run, resume=True)
    assert names_in(run) == before | {MANIFEST.as_posix()}
    assert "model.safetensors" in (read_manifest(run) or ())  # resuming has written a manifest
    start_run(run, overwrite=True)
    assert names_in(run) == {*FOREIGN, RECIPE_FILE, MANIFEST.as_posix()}


def test_new_recipe_is_not_written_beside_old_weights(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Recipe, folder: Path) -> None:
        assert names_in(folder) == {MANIFEST.as_posix()}
        raise KeyboardInterrupt

    monkeypatch.setattr(Recipe, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start_run(run, overwrite=True)
    monkeypatch.undo()
    start_run(run, overwrite=True)  # the folder is still recognized as a run


def test_run_killed_during_deletion_is_still_recognized(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, left = Path.unlink, 10

    def interrupt(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start_run(run, overwrite=True)
    monkeypatch.undo()
    assert (run / RECIPE_FILE).read_text() == (OLD_RUN / RECIPE_FILE).read_text()
    start_run(run, overwrite=True)
    assert names_in(run) == {RECIPE_FILE, MANIFEST.as_posix()}


def test_checkpoint_with_foreign_files_is_not_rotated(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (4, 5):
        shutil.copytree(run / "checkpoint-3", run / f"checkpoint-{step}")
    shutil.copytree(run / "checkpoint-3", run / "checkpoint-3-backup")
    (run / "checkpoint-3" / "thesis.txt").write_text("mine")
    delete_old_checkpoints(run, 1, None)
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-3", "checkpoint-5"]
    assert (run / "checkpoint-3-backup").is_dir()
    assert "checkpoint-3 is not deleted: it holds thesis.txt, which training did not write" in caplog.text


def test_rotation_keeps_the_best_checkpoint(run: Path) -> None:
    for step in (4, 5, 6):
        shutil.copytree(run / "checkpoint-3", run / f"checkpoint-{step}")
    delete_old_checkpoints(run, None, None)
    delete_old_checkpoints(run, 4, None)
    assert len(checkpoints_of(run)) == 4
    delete_old_checkpoints(run, 2, "elsewhere/checkpoint-3")
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-3", "checkpoint-6"]
    delete_old_checkpoints(run, 1, "elsewhere/checkpoint-3")
    assert len(checkpoints_of(run)) == 2


def test_defective_checkpoints_are_moved_aside(run: Path) -> None:
    shutil.copytree(run / "checkpoint-3", run / BROKEN / "checkpoint-3")
    set_aside([run / "checkpoint-3"])
    assert {path.name for path in (run / BROKEN).iterdir()} == {"checkpoint-3", "checkpoint-3-2"}
    start_run(run, overwrite=True)
    assert names_in(run) == {RECIPE_FILE, MANIFEST.as_posix()}


# --- Untrusted manifests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../victim", "/victim", "a/../../victim", "..", "", "./a", "a\\b", "C:/victim", "a//b"]
)
def test_manifest_with_outside_paths_is_refused(run: Path, name: str) -> None:
    (run.parent / "victim").write_text("mine")
    start_manifest(run, ["recipe.yaml", name])
    for how in ({}, {"overwrite": True}):
        assert_refused(run, "a manifest may only name relative paths inside its own folder", **how)
    with pytest.raises(ValueError, match="a manifest may only name"):
        record(run, "evaluation_test.json")
    assert (run.parent / "victim").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "[]", '{"files": "recipe.yaml"}', '{"files": [1]}', "null"])
def test_broken_manifest_is_refused(run: Path, content: str) -> None:
    start_manifest(run, [])
    (run / MANIFEST).write_text(content)
    assert_refused(run, "is not the manifest of a run", overwrite=True)


def test_symlinks_are_never_followed(run: Path) -> None:
    outside = run.parent / "outside"
    outside.mkdir()
    (outside / "victim.txt").write_text("mine")
    (run / "link").symlink_to(outside)
    (run / "config.json").unlink()
    (run / "notes").symlink_to(outside / "victim.txt")
    start_manifest(run, ["link/victim.txt", "notes", "recipe.yaml", *(path.name for path in run.iterdir())])
    start_run(run, overwrite=True)
    assert (outside / "victim.txt").read_text() == "mine"
    assert names_in(run) == {"link", "notes", RECIPE_FILE, MANIFEST.as_posix()}
    (run / "checkpoint-3").symlink_to(outside)
    with pytest.raises(ValueError, match="holds checkpoint-3, which Trivium did not write"):
        start_run(run, overwrite=True)


def test_checkpoint_lists_no_files_outside(run: Path) -> None:
    (run.parent / "victim").write_text("mine")
    listed = {"version": 1, "algorithm": "xxh3_128", "files": {"../../victim": "0"}}
    (run / "checkpoint-3" / "manifest.json").write_text(json.dumps(listed))
    assert_refused(run, "checkpoint-3: .*a manifest may only name relative paths", resume=True)
    start_run(run, overwrite=True)
    assert (run.parent / "victim").read_text() == "mine"


def test_evaluation_writes_no_manifest(run: Path) -> None:
    record(run, "evaluation_test.json")
    assert not (run / ROOM).exists()


# --- One training at a time ------------------------------------------------------------------------------------------


def _hold_lock(run: Path, held: Any) -> None:
    with lock_run(run):
        held.set()
        time.sleep(600)


def test_concurrent_training_is_refused_until_first_ends(tmp_path: Path) -> None:
    run, context = tmp_path / "runs" / "run", multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trivium.training"])
    held = context.Event()
    process = context.Process(target=_hold_lock, args=(run, held), daemon=True)
    process.start()
    assert held.wait(120)
    for how in ({}, {"resume": True}, {"overwrite": True}):
        assert_refused(run, f"run is in use: .*{LOCK}.* Wait until it ends, stop it, or", **how)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with lock_run(run):
        assert not RunFolder(run).foreign
    assert not names_in(run)


def test_refused_run_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no checkpoint"):
        train(recipe_for(tmp_path / "runs" / "run"), resume=True)
    assert not (tmp_path / "runs").exists()


def _lock_error(run: Path) -> str:
    PartialState(cpu=True)
    try:
        with lock_run(run):
            return "held"
    except ValueError as error:
        return str(error)


@pytest.mark.slow
def test_all_ranks_report_a_folder_in_use(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_distributed(_lock_error, run, folder=tmp_path) == ["held", "held"]
    with lock_run(run):
        errors = run_distributed(_lock_error, run, folder=tmp_path)
    assert errors[0] == errors[1]
    assert "is in use" in errors[0]
