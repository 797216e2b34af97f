"""Test that a run killed at any moment resumes, and ends with the weights of an uninterrupted run."""

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import KillMoment, folder_of, log_of, run_training
from matrices import slow_unless
from safetensors.torch import load_file

from trivium.recipe import load_recipe
from trivium.storage.checkpoints import BROKEN, STATE_FILE, checkpoints_of, find_defect, last_valid_checkpoint
from trivium.storage.manifest import ROOM, RunFolder
from trivium.training import train
from trivium.training.callbacks.ema import TRAINED_WEIGHTS_FILE

pytestmark = [pytest.mark.trains, pytest.mark.subprocess]

STEPS, EVERY = 9, 3  # An epoch has 7 steps, so step 9 is in the second.
SETTINGS = [
    "model.d_model=16",
    "model.ffn_dim=32",
    "model.num_attention_heads=2",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "model.dropout=0.1",
    "tokenizer.vocab_size=300",
    "data.max_train_samples=100",
    "data.max_validation_samples=10",
    f"training.max_steps={STEPS}",
    f"training.save_steps={EVERY}",
    "training.save_total_limit=2",
    "training.eval_steps=3",
    "training.predict_with_generate=false",
    "training.logging_steps=1",
    "training.warmup_steps=2",
    "training.per_device_train_batch_size=8",
    "training.gradient_accumulation_steps=2",
    "training.disable_tqdm=true",
    "training.report_to=none",
    "training.use_cpu=true",
    "metrics=[]",
    "ema_decay=0.9",
]


def settings_of(folder: Path, *more: str) -> list[str]:
    return [*SETTINGS, f"training.output_dir={folder}", *more]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = settings_of(tmp_path_factory.mktemp("unbroken") / "run")
    assert run_training(settings) == 0, output_of(folder_of(settings))
    return folder_of(settings)


@pytest.fixture
def run(unbroken: Path, tmp_path: Path) -> Path:
    """Return a copy of the uninterrupted run, which a test may damage."""
    return Path(shutil.copytree(unbroken, tmp_path / "run"))


def output_of(folder: Path) -> str:
    return log_of(folder).read_text()


def log_history(folder: Path) -> list[dict[str, Any]]:
    """Return the log history without timings."""
    log = json.loads((folder / STATE_FILE).read_text())["log_history"]
    return [
        {
            k: v
            for k, v in entry.items()
            if not any(name in k for name in ("runtime", "per_second", "data_wait", "total_flos"))
        }
        for entry in log
        if "train_runtime" not in entry
    ]


def assert_same_end(folder: Path, unbroken: Path) -> None:
    """Compare models, weights, optimizer, schedule and random states, and the logs."""
    for name in (
        "model.safetensors",
        f"checkpoint-{STEPS}/model.safetensors",
        f"checkpoint-{STEPS}/{TRAINED_WEIGHTS_FILE}",
    ):
        actual, expected = load_file(folder / name), load_file(unbroken / name)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in actual), name
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        actual, expected = (
            torch.load(run_folder / f"checkpoint-{STEPS}" / name, weights_only=False)
            for run_folder in (folder, unbroken)
        )
        assert_same(actual, expected, name)
    assert log_history(folder) == log_history(unbroken)
    assert [path.name for path in checkpoints_of(folder)] == [path.name for path in checkpoints_of(unbroken)]
    assert [path.name for path in (folder / ROOM).iterdir()] == ["manifest.json"]
    assert not RunFolder(folder).foreign
    assert not list(folder.rglob("*.partial"))
    assert all(find_defect(path, [TRAINED_WEIGHTS_FILE]) is None for path in checkpoints_of(folder))


def assert_same(one: Any, other: Any, place: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place} {key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{place} {i}")
    else:
        assert bool((one == other) if not hasattr(one, "all") else (one == other).all()), place


# Moments at which to kill the run: when half of a file has been written, before a folder is moved or deleted, and
# while the final model is saved.
MOMENTS: dict[str, KillMoment] = {
    **{
        f"half of {name}": ("half", f"checkpoint-6/{name}")
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE_FILE)
    },
    "half of the trained weights": ("half", f"checkpoint-6/{TRAINED_WEIGHTS_FILE}"),
    "before a checkpoint is renamed": ("os.rename", "partial/checkpoint-6"),
    "before the partial folder is deleted": ("shutil.rmtree", "/partial"),
    "before an old checkpoint is deleted": ("shutil.rmtree", "checkpoint-3"),
    "before the final model is renamed": ("os.rename", "/model.safetensors"),
    "before the final state is written": ("os.rename", f"/{STATE_FILE}"),
}
QUICK = ("half of model.safetensors", "half of trainer_state.json", "before a checkpoint is renamed")


@pytest.mark.parametrize(
    "moment", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in MOMENTS]
)
def test_killed_run_ends_like_unbroken_run(moment: str, unbroken: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "run")
    assert run_training(settings, kill_at=MOMENTS[moment]) == -9, output_of(tmp_path / "run")
    assert run_training(settings, resume=bool(checkpoints_of(tmp_path / "run"))) == 0, output_of(tmp_path / "run")
    assert_same_end(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_repeatedly_killed_run_ends_like_unbroken_run(seed: int, unbroken: Path, tmp_path: Path) -> None:
    """Kill the run at random times until it has been killed five times or finishes."""
    settings, chance, kills = settings_of(tmp_path / "run"), random.Random(seed), 0
    while kills < 5 and run_training(
        settings, resume=bool(checkpoints_of(tmp_path / "run")), kill_at=chance.uniform(0.2, 4.0)
    ):
        kills += 1
    if kills == 5:
        assert run_training(settings, resume=bool(checkpoints_of(tmp_path / "run"))) == 0, output_of(tmp_path / "run")
    assert_same_end(tmp_path / "run", unbroken)


def test_full_disk_is_reported_and_run_can_be_resumed(unbroken: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "run", "training.max_steps=4")
    assert run_training(settings) == 0, output_of(tmp_path / "run")
    max_file_size = (unbroken / "model.safetensors").stat().st_size // 2
    settings = settings_of(tmp_path / "run")
    assert run_training(settings, resume=True, max_file_size=max_file_size) == 1
    message = output_of(tmp_path / "run")
    assert "checkpoint-6 could not be written" in message
    assert "resume from checkpoint-4" in message
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["checkpoint-3", "checkpoint-4"]
    assert [path.name for path in (tmp_path / "run" / ROOM).iterdir()] == ["manifest.json"]
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")  # checkpoint-4 was the last step of the shorter schedule
    assert run_training(settings_of(tmp_path / "run"), resume=True) == 0


# --- Defective checkpoints -------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FLAWS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no state": (lambda folder: (folder / STATE_FILE).unlink(), f"it has no {STATE_FILE}"),
    "half a state": (lambda folder: truncate(folder / STATE_FILE), f"{STATE_FILE} is not valid JSON"),
    "another state": (lambda folder: (folder / STATE_FILE).write_text("[]"), f"{STATE_FILE} is not valid JSON"),
    "no step": (lambda folder: (folder / STATE_FILE).write_text('{"global_step": "6"}'), "has no global_step"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no weights"),
    "half the weights": (lambda folder: truncate(folder / "model.safetensors"), "model.safetensors is truncated"),
    "no optimizer": (lambda folder: (folder / "optimizer.pt").unlink(), "it has no optimizer"),
    "half an optimizer": (lambda folder: truncate(folder / "optimizer.pt"), "optimizer.pt is truncated"),
    "no random states": (lambda folder: (folder / "rng_state.pth").unlink(), "it has no random states"),
    "no average": (lambda folder: (folder / TRAINED_WEIGHTS_FILE).unlink(), f"it has no {TRAINED_WEIGHTS_FILE}"),
    "only a model": (
        lambda folder: [(folder / name).unlink() for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")],
        "training.save_only_model",
    ),
    "a missing shard": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        "it has no b.safetensors",
    ),
    "half an index": (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "complete index"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_defective_checkpoint_falls_back_to_previous(run: Path, flaw: str) -> None:
    damage, message = FLAWS[flaw]
    assert last_valid_checkpoint(run, [TRAINED_WEIGHTS_FILE]) == (run / f"checkpoint-{STEPS}", {})
    damage(run / f"checkpoint-{STEPS}")
    checkpoint, flaws = last_valid_checkpoint(run, [TRAINED_WEIGHTS_FILE])
    assert checkpoint == run / "checkpoint-6"
    assert list(flaws) == [run / f"checkpoint-{STEPS}"]
    assert message in flaws[run / f"checkpoint-{STEPS}"]


def test_defective_checkpoint_is_moved_aside_on_resume(
    run: Path, unbroken: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    truncate(run / f"checkpoint-{STEPS}" / "optimizer.pt")
    train(load_recipe("numbers", settings_of(run)), resume=True)
    assert f"checkpoint-{STEPS} is defective: optimizer.pt is truncated. Resuming from" in caplog.text
    assert "missing keys" not in caplog.text, "tied weights are saved once"
    assert (run / BROKEN / f"checkpoint-{STEPS}" / "optimizer.pt").exists()
    actual, expected = load_file(run / "model.safetensors"), load_file(unbroken / "model.safetensors")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(run: Path, message: str, *more: str, kind: type[Exception] = ValueError) -> None:
    """Assert that resuming fails and the run is byte-identical afterwards."""
    before = content_of(run)
    with pytest.raises(kind, match=message):
        train(load_recipe("numbers", settings_of(run, *more)), resume=True)
    assert content_of(run) == before


def test_run_without_complete_checkpoint_is_not_restarted(run: Path) -> None:
    for checkpoint in checkpoints_of(run):
        truncate(checkpoint / "model.safetensors")
    assert_refused(run, r"No checkpoint in .* \(checkpoint-9: .*; checkpoint-6: .*\)")


def test_unreadable_checkpoint_is_not_a_defect(run: Path) -> None:
    """An I/O error must not make the run resume from an older checkpoint: this one may become readable again."""
    weights = run / f"checkpoint-{STEPS}" / "model.safetensors"
    weights.unlink()
    weights.mkdir()  # a folder, because root can read files without permission
    assert_refused(run, "model.safetensors", kind=OSError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.learning_rate=0.1", r"training\.learning_rate was 0\.002, is now 0\.1"),
        ("model.dropout=0.2", r"model\.dropout was 0\.1, is now 0\.2"),
        ("training.seed=1", r"training\.seed was 42, is now 1"),
        ("data.max_train_samples=50", r"data\.max_train_samples was 100, is now 50"),
        ("ema_decay=0.8", r"ema_decay was 0\.9, is now 0\.8"),
        ("training.per_device_train_batch_size=4", r"had 16 rows \(8 x 2 x 1\).* now have 8 rows"),
        ("training.eval_steps=1", "is finished after 9 steps"),
    ],
)
def test_resume_with_changed_recipe_is_refused(run: Path, change: str, message: str) -> None:
    assert_refused(run, message, change)


def test_changed_micro_batching_resumes_with_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(run / f"checkpoint-{STEPS}")
    parts = ("training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=4")
    assert train(load_recipe("numbers", settings_of(run, *parts)), resume=True).state.global_step == STEPS
    assert "had 16 rows (8 x 2 x 1), and now has 16 rows (4 x 4 x 1)" in caplog.text


def test_save_and_eval_intervals_may_change(run: Path) -> None:
    shutil.rmtree(run / f"checkpoint-{STEPS}")
    changes = (
        "training.save_steps=1",
        "training.save_total_limit=4",
        "training.eval_steps=1",
        "training.logging_steps=3",
    )
    train(load_recipe("numbers", settings_of(run, *changes)), resume=True)
    assert [path.name for path in checkpoints_of(run)] == [f"checkpoint-{step}" for step in (6, 7, 8, 9)]
    assert [entry["step"] for entry in log_history(run) if "eval_loss" in entry] == [3, 6, 7, 8, 9]


# --- State that the Trainer does not restore -------------------------------------------------------------------------


def steps_of(folder: Path, *more: str, resume: bool = False) -> dict[str, torch.Tensor]:
    train(load_recipe("numbers", settings_of(folder, "ema_decay=null", *more)), resume=resume)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("steps", slow_unless([6, 7, 8], [8]))
def test_repeated_stream_resumes_at_its_position(tmp_path: Path, steps: int) -> None:
    """Resume before, at, and after the end of the first epoch, which has 7 steps."""
    stream = ("data.streaming=true", "training.train_sampling_strategy=null", f"training.save_steps={steps}")
    whole = steps_of(tmp_path / "run", *stream)
    shutil.rmtree(tmp_path / "run" / f"checkpoint-{STEPS}")
    resumed = steps_of(tmp_path / "run", *stream, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_early_stopping_keeps_its_patience_counter(tmp_path: Path) -> None:
    """With a learning rate of 0, training must stop two evaluations after the first, even if resumed in between."""
    patience = (
        *("early_stopping_patience=2", "training.learning_rate=0", "training.load_best_model_at_end=true"),
        *("training.save_steps=1", "training.eval_steps=1", "training.save_total_limit=9"),
        "training.metric_for_best_model=loss",
    )
    run = tmp_path / "run"
    steps_of(run, *patience)
    assert [path.name for path in checkpoints_of(run)] == [f"checkpoint-{step}" for step in (1, 2, 3)]
    shutil.rmtree(run / "checkpoint-3")
    steps_of(run, *patience, resume=True)
    assert [path.name for path in checkpoints_of(run)] == [f"checkpoint-{step}" for step in (1, 2, 3)]
