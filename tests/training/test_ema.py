"""Compare the exponential moving average of the weights during training with a reference in float64."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import copying_batch, tiny_config
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typer.testing import CliRunner
from weights import Weights, assert_equal, saved

from trivium import TriviumForConditionalGeneration
from trivium.recipe import load_recipe
from trivium.training import train
from trivium.training.callbacks import ExponentialAverage
from trivium.training.callbacks.ema import TRAINED_WEIGHTS_FILE
from trivium_cli import app

pytestmark = pytest.mark.trains


# --- Exponential moving average in any Trainer -----------------------------------------------------------------------


class Recorder(TrainerCallback):
    """Record the trained weights after every optimizer step, before the step ends."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.steps.append(weights_of(kwargs["model"]))


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def make_trainer(
    folder: Path, *callbacks: TrainerCallback, seed: int = 0, tied: bool = True, **arguments: Any
) -> Trainer:
    torch.manual_seed(0)
    batch = copying_batch(24)
    torch.manual_seed(seed)
    model = TriviumForConditionalGeneration(tiny_config(tie_word_embeddings=tied, dropout=0.1))
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(24)]
    options: dict[str, Any] = {
        "max_steps": 6,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": True,
    }
    args = TrainingArguments(str(folder), **{**options, **arguments})
    return Trainer(model, args, train_dataset=rows, eval_dataset=rows[:8], callbacks=list(callbacks))


@pytest.mark.parametrize("decay", [0.9, 0.3])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_ema_matches_float64(tmp_path: Path, tied: bool, decay: float) -> None:
    """Each step of two batches updates the EMA once; within 7 steps, warmup reaches a decay of 0.3, but not 0.9."""
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path, recorder, ExponentialAverage(decay), tied=tied, gradient_accumulation_steps=2, max_steps=7
    )
    expected = {name: weight.double() for name, weight in weights_of(trainer.model).items()}
    trainer.train()
    assert len(recorder.steps) == 7
    for t, weights in enumerate(recorder.steps, start=1):
        now = min(decay, (1 + t) / (10 + t))
        expected = {name: now * mean + (1 - now) * weights[name].double() for name, mean in expected.items()}
    for name, weight in weights_of(trainer.model).items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=0, atol=1e-6)
        assert not torch.equal(weight, recorder.steps[-1][name]), name
    assert (trainer.model.lm_head.weight is trainer.model.get_input_embeddings().weight) == tied


def test_ema_does_not_change_training(tmp_path: Path) -> None:
    plain, averaged = Recorder(), Recorder()
    often: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1}
    make_trainer(tmp_path / "plain", plain, **often).train()
    make_trainer(tmp_path / "averaged", averaged, ExponentialAverage(0.9), **often).train()
    for actual, expected in zip(averaged.steps, plain.steps, strict=True):
        assert_equal(actual, expected)


def test_ema_is_evaluated_and_saved_then_swapped_out(tmp_path: Path) -> None:
    recorder = Recorder()
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    trainer = make_trainer(tmp_path, recorder, ExponentialAverage(0.9), **options)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    for step, loss in zip((2, 4), losses, strict=True):
        folder = tmp_path / f"checkpoint-{step}"
        assert_equal(load_file(folder / TRAINED_WEIGHTS_FILE), recorder.steps[step - 1])
        model = TriviumForConditionalGeneration.from_pretrained(folder)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        trainer.model.load_state_dict(model.state_dict())
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-6)
    with safe_open(tmp_path / "checkpoint-4" / TRAINED_WEIGHTS_FILE, "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (the value is not a dictionary)


def test_best_ema_is_loaded_at_end(tmp_path: Path) -> None:
    """With `greater_is_better`, the averaged weights of the first checkpoint are the best."""
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "greater_is_better": True}
    trainer = make_trainer(tmp_path, ExponentialAverage(0.9), load_best_model_at_end=True, **options)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    best = saved(tmp_path / "checkpoint-2")
    assert_equal({name: weight for name, weight in weights_of(trainer.model).items() if name in best}, best)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "save_steps": 1}], ids=["plain", "parts"])
def test_resumed_ema_matches_unbroken_run(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = make_trainer(tmp_path / "run", ExponentialAverage(0.9), **options)
    whole.train()
    expected = load_file(tmp_path / "run" / "checkpoint-6" / TRAINED_WEIGHTS_FILE)
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    resumed = make_trainer(tmp_path / "run", ExponentialAverage(0.9), seed=1, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.state.global_step == 6
    assert_equal(weights_of(resumed.model), weights_of(whole.model))
    assert_equal(load_file(tmp_path / "run" / "checkpoint-6" / TRAINED_WEIGHTS_FILE), expected)


def test_only_trainable_parameters_are_averaged(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ExponentialAverage(0.9), max_steps=2)
    trainer.model.model.encoder.requires_grad_(False)
    trainer.model.get_input_embeddings().weight.requires_grad_(True)
    frozen = weights_of(trainer.model.model.encoder.layers)
    trainer.train()
    assert_equal(weights_of(trainer.model.model.encoder.layers), frozen)
    names = load_file(tmp_path / "checkpoint-2" / TRAINED_WEIGHTS_FILE).keys()
    assert names == {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def test_ema_is_updated_when_epoch_ends_within_a_step() -> None:
    """If a stream runs out of batches in the middle of a step, the next epoch starts that step again."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    args, state, control = TrainingArguments("x", use_cpu=True), TrainerState(), TrainerControl()
    callback = ExponentialAverage(0.9)
    callback.on_train_begin(args, state, control, model=model)
    start = model.weight.item()
    callback.on_step_begin(args, state, control)
    with torch.no_grad():
        model.weight.add_(11.0)
    callback.on_epoch_end(args, state, control)
    assert model.weight.item() == start
    for _ in range(2):
        callback.on_step_begin(args, state, control)
        assert model.weight.item() == start + 11
    state.global_step = 1
    callback.on_step_end(args, state, control)
    # The average is 2/11 of the initial weights plus 9/11 of the updated weights.
    assert model.weight.item() == pytest.approx(start + 9)


def test_only_rank_0_writes_ema_and_before_the_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, state, control = torch.nn.Linear(2, 3), TrainerState(), TrainerControl()
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    callback = ExponentialAverage(0.9)
    callback.on_train_begin(args, state, control, model=model)
    callback.on_push_begin(args, state, control)  # The checkpoint folder does not exist yet.
    (tmp_path / "checkpoint-0").mkdir()
    with monkeypatch.context() as another_process:
        another_process.setattr(TrainingArguments, "should_save", False)
        callback.on_push_begin(args, state, control)
    assert not list((tmp_path / "checkpoint-0").iterdir())
    callback.on_push_begin(args, state, control)
    assert_equal(load_file(tmp_path / "checkpoint-0" / TRAINED_WEIGHTS_FILE), weights_of(model))


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_decay_must_be_between_0_and_1(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"decay.*{decay}.*greater.*0.*less.*1"):
        ExponentialAverage(decay)
    with pytest.raises(ValueError, match=rf"ema_decay.*{decay}.*greater.*0.*less.*1"):
        load_recipe("numbers", [f"ema_decay={str(decay).replace('nan', '.nan')}"])


def test_low_precision_weights_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ExponentialAverage(0.9))
    trainer.model.bfloat16()
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*coarse.*dtype=torch\.float32"):
        trainer.train()


@pytest.mark.parametrize("asked_by", ["arguments", "accelerate launch", "DeepSpeed"])
def test_sharded_weights_are_refused(asked_by: str) -> None:
    args, model = TrainingArguments("x", use_cpu=True), torch.nn.Linear(1, 1)
    if asked_by == "arguments":
        args.fsdp = "full_shard"
    elif asked_by == "DeepSpeed":
        args.deepspeed_plugin = object()
    else:
        model = Mock(spec=FSDPModule)
    with pytest.raises(ValueError, match="needs whole weights"):
        ExponentialAverage(0.9).on_train_begin(args, TrainerState(), TrainerControl(), model=model)


def test_checkpoint_without_matching_ema_is_refused(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        make_trainer(tmp_path / name, ExponentialAverage(0.9), max_steps=2, seed=seed).train()
    with pytest.raises(ValueError, match=r"run.*resumed.*another"):
        make_trainer(tmp_path / "a", ExponentialAverage(0.9)).train(str(tmp_path / "b" / "checkpoint-2"))
    (tmp_path / "a" / "checkpoint-2" / TRAINED_WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"made.*one"):
        make_trainer(tmp_path / "a", ExponentialAverage(0.9)).train(str(tmp_path / "a" / "checkpoint-2"))


# --- EMA in a recipe -------------------------------------------------------------------------------------------------

SMALL = [
    *("ema_decay=0.9", "model.d_model=32", "model.ffn_dim=64", "metrics=[exact_match]"),
    *("data.max_train_samples=200", "data.max_validation_samples=10", "data.max_test_samples=10"),
    *("training.max_steps=6", "training.save_steps=2", "training.eval_steps=6", "training.save_total_limit=3"),
    *("training.logging_steps=2", "training.warmup_steps=1", "training.per_device_train_batch_size=16"),
    "training.disable_tqdm=true",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "numbers"
    train(load_recipe("numbers", [*SMALL, f"training.output_dir={folder}"]))
    return folder


def test_recipe_enables_ema(run: Path) -> None:
    assert load_recipe(run).ema_decay == 0.9
    assert_equal(saved(run), saved(run / "checkpoint-6"))
    trained = load_file(run / "checkpoint-6" / TRAINED_WEIGHTS_FILE)
    assert any(not torch.equal(weight, trained[name]) for name, weight in saved(run).items() if name in trained)
    assert not (run / TRAINED_WEIGHTS_FILE).exists()


def test_resumed_run_is_bit_identical(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(folder / f"checkpoint-{step}")
    train(load_recipe(folder, [f"training.output_dir={folder}"]), resume=True)
    for name in ("model.safetensors", f"checkpoint-6/{TRAINED_WEIGHTS_FILE}"):
        assert_equal(load_file(folder / name), load_file(run / name))


def test_mean_of_a_run_is_a_complete_model(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    for name in ("README.md", "evaluation_test.json", "predictions_test.txt", "attention.png", "model.onnx"):
        (folder / "checkpoint-6" / name).touch()
    result = CliRunner().invoke(app, ["average", str(folder), str(tmp_path / "mean"), "--last", "3"])
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "mean").iterdir()}
    checkpoint_names = {path.name for path in (run / "checkpoint-6").iterdir()}
    no_model = {
        "trainer_state.json",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "manifest.json",
    }
    assert names == checkpoint_names - no_model - {TRAINED_WEIGHTS_FILE} | {"recipe.yaml"}
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "mean")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "mean" / "evaluation_test.json").is_file()
