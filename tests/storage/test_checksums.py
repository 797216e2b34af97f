"""Test checksums: training resumes from a checkpoint only if all of its files are unchanged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from paths import TESTS
from safetensors.torch import load_file, save_file

from trivium.recipe import load_recipe
from trivium.storage.checkpoints import find_defect
from trivium.storage.checksums import CHECKSUMS_FILE, read_checksums, write_checksums
from trivium.training.resume import checkpoint_to_resume

OLD_RUN = TESTS / "fixtures" / "run-0.1.0"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(OLD_RUN / "checkpoint-3", tmp_path / "checkpoint-3"))
    write_checksums(folder)
    return folder


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file, within the tensors rather than the header."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trained_weights.safetensors"])
def test_flipped_bit_is_detected(checkpoint: Path, name: str) -> None:
    assert find_defect(checkpoint) is None
    flip(checkpoint / name)
    assert find_defect(checkpoint) == f"{name} has changed since it was written: its checksum differs"


def test_optimizer_of_another_checkpoint_is_detected(checkpoint: Path) -> None:
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    state["param_groups"][0]["lr"] = 1.0
    torch.save(state, checkpoint / "optimizer.pt")
    assert find_defect(checkpoint) == "optimizer.pt has changed since it was written: its checksum differs"


def test_missing_file_and_broken_checksums_are_detected(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert find_defect(checkpoint) == "config.json is missing"
    (checkpoint / CHECKSUMS_FILE).write_text("{")
    assert "is not a list of checksums" in str(find_defect(checkpoint))
    (checkpoint / CHECKSUMS_FILE).write_text(json.dumps({"version": 1, "algorithm": "md4", "files": {}}))
    assert "has checksums of 'md4'" in str(find_defect(checkpoint))


def test_training_arguments_are_optional(checkpoint: Path) -> None:
    """A checkpoint without training arguments is complete: they are never read, and pushes leave them out."""
    (checkpoint / "training_args.bin").write_bytes(b"")
    write_checksums(checkpoint)
    listed = read_checksums(checkpoint)
    assert listed is not None
    assert set(listed) == {path.name for path in checkpoint.iterdir()} - {CHECKSUMS_FILE, "training_args.bin"}


def test_checkpoint_without_checksums_resumes_with_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "run"))
    recipe = load_recipe(run, [f"training.output_dir={run}"])
    assert checkpoint_to_resume(recipe, recipe.training_arguments()) == (run / "checkpoint-3", [])
    assert "checkpoint-3 has no checksums" in caplog.text


def test_non_finite_weights_are_a_defect(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "trained_weights.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, checkpoint / "trained_weights.safetensors")
    write_checksums(checkpoint)
    assert find_defect(checkpoint) == f"trained_weights.safetensors has weights that are not finite ({name})"
