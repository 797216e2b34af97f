"""Overrides that shorten a run of the recipe `numbers` from minutes to seconds."""

from pathlib import Path

SMALL = [
    "model.d_model=32",
    "model.ffn_dim=64",
    "data.max_train_samples=400",
    "data.max_validation_samples=20",
    "data.max_test_samples=30",
    "training.max_steps=6",
    "training.save_steps=3",
    "training.eval_steps=3",
    "training.logging_steps=1",
    "training.warmup_steps=1",
    "training.per_device_train_batch_size=16",
    "training.disable_tqdm=true",
]


def small_recipe(folder: Path, *overrides: str) -> list[str]:
    """Return the overrides that shorten the recipe `numbers` and write its run to `folder`."""
    return [*SMALL, f"training.output_dir={folder}", *overrides]
