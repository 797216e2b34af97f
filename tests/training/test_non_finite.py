"""Test that a run whose loss becomes NaN stops with an explanation and keeps its last finite checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_runs import run_distributed
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from typer.testing import CliRunner

from trivium.recipe import load_recipe
from trivium.storage.checkpoints import checkpoints_of, find_defect
from trivium.training import train
from trivium.training.callbacks.non_finite import NonFiniteError, NonFiniteGuard, has_finite_weights
from trivium_cli import app

pytestmark = pytest.mark.trains

SMALL = [
    *("data.max_train_samples=60", "data.max_validation_samples=4", "tokenizer.vocab_size=300", "model.dropout=0"),
    *("model.d_model=16", "model.ffn_dim=24", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("training.per_device_train_batch_size=4", "training.warmup_steps=0", "training.lr_scheduler_type=constant"),
    *("training.eval_strategy='no'", "training.report_to=none", "training.disable_tqdm=true", "training.use_cpu=true"),
    *("training.max_steps=40", "training.save_steps=2", "training.save_total_limit=1", "training.logging_steps=50"),
]
NAN = float("nan")


def settings_of(folder: Path, *more: str) -> list[str]:
    return [*SMALL, f"training.output_dir={folder}", *more]


def inject_nan(monkeypatch: pytest.MonkeyPatch, first: int, last: int = 10**9, weights: bool = True) -> None:
    """Make the loss NaN from step `first` to `last`, and the gradients as well if `weights` is True."""
    step = Trainer.training_step

    def step_with_nan(self: Trainer, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(self, model, *args, **kwargs)
        if not first <= self.state.global_step + 1 <= last:
            return loss
        for parameter in model.parameters() if weights else ():
            parameter.grad.fill_(NAN)
        return loss * NAN

    monkeypatch.setattr(Trainer, "training_step", step_with_nan)


def test_guard_counts_consecutive_steps(tmp_path: Path) -> None:
    skipped = False
    guard = NonFiniteGuard(lambda: skipped)
    args, state, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(), TrainerControl()

    def steps(count: int, *values: float) -> None:
        for _ in range(count):
            for value in values:
                guard.observe(torch.tensor(value))
            state.global_step += 1
            guard.on_step_end(args, state, control)

    steps(9, 1.0, NAN)
    steps(1, 1.0, 2.0)
    steps(9, float("inf"), 1.0)
    skipped = True  # as if a float16 loss scaler skipped these steps
    steps(20, float("inf"))
    skipped = False
    with pytest.raises(NonFiniteError, match=r"at step 40: .* not finite for 10 optimizer steps in a row"):
        steps(1, NAN)


def test_nan_run_stops_and_keeps_last_finite_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        inject_nan(patched, first=6)
        result = CliRunner().invoke(app, ["train", "numbers", *settings_of(run, "training.learning_rate=0.01")])
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "Training stopped at step 15: the loss or the gradient norm was not finite for 10 optimizer" in message
    assert "at a learning rate of 0.01. Start a new run with a lower training.learning_rate" in message
    assert ("init_from=" in message, "checkpoint-4" in message) == (True, True)
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-4"]
    assert find_defect(run / "checkpoint-4") is None
    assert not (run / "model.safetensors").exists()
    trainer = train(load_recipe("numbers", settings_of(run, "training.learning_rate=0.01")), resume=True)
    assert trainer.state.global_step == 40


def test_nan_loss_alone_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject_nan(monkeypatch, first=2, weights=False)
    with pytest.raises(NonFiniteError, match="Training stopped at step 11"):
        train(load_recipe("numbers", settings_of(tmp_path / "run", "training.max_grad_norm=0")))


def test_run_that_ends_with_nan_saves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    inject_nan(monkeypatch, first=4)
    with pytest.raises(NonFiniteError, match="at step 6: the trained weights are not finite"):
        train(load_recipe("numbers", settings_of(run, "training.max_steps=6", "ema_decay=0.9")))
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-2"]
    assert not (run / "model.safetensors").exists()


def test_weights_are_checked() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert has_finite_weights(model)
    with torch.no_grad():
        model[1].bias[0] = float("inf")
    assert not has_finite_weights(model)
    assert has_finite_weights(torch.nn.Identity())


def _train_with_nan(settings: list[str]) -> str:
    with pytest.MonkeyPatch.context() as patched:
        inject_nan(patched, first=6)
        try:
            train(load_recipe("numbers", settings))
        except NonFiniteError as error:
            return str(error)
    return "no error"


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    errors = run_distributed(_train_with_nan, settings_of(tmp_path / "run"), folder=tmp_path)
    assert errors[0] == errors[1]
    assert "Training stopped at step 20: " in errors[0]
