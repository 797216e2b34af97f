"""Averages of saved models against float64, and exponential moving averages during training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import copying_batch, shake, tiny_config
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typer.testing import CliRunner

from trivium import TriviumForConditionalGeneration, TriviumForMaskedLM
from trivium.averaging import average, last_checkpoints
from trivium.interop.checkpoint import Checkpoint
from trivium.recipe import load_recipe
from trivium.tokenization import train_tokenizer
from trivium.training import train
from trivium.training.callbacks import ExponentialAverage
from trivium.training.callbacks.ema import TRAINED_WEIGHTS_FILE
from trivium_cli import app

pytestmark = pytest.mark.trains

Weights = dict[str, torch.Tensor]


def save_model(
    folder: Path, shard: str = "5GB", dtype: torch.dtype = torch.float32, **overrides: Any
) -> TriviumForConditionalGeneration:
    model = shake(TriviumForConditionalGeneration(tiny_config(**overrides))).to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def saved(folder: Path) -> Weights:
    with Checkpoint(folder) as weights:
        return {name: weights[name].clone() for name in weights}


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype, name
        assert torch.equal(found[name], weight), name


def trivium(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join((result.stdout + result.stderr).replace("│", " ").split())


# --- The average -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["one-file", "sharded"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mean_matches_float64(tmp_path: Path, dtype: torch.dtype, tied: bool, shard: str) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        save_model(folder, shard, dtype, tie_word_embeddings=tied)
    average(folders, tmp_path / "mean")
    weights = [saved(folder) for folder in folders]
    mean = {name: torch.stack([each[name] for each in weights]).double().mean(dim=0).to(dtype) for name in weights[0]}
    assert_equal(saved(tmp_path / "mean"), mean)
    files = [{path.name for path in folder.glob("*")} for folder in (tmp_path / "mean", folders[-1])]
    assert files[0] == files[1]
    assert (len(list(folders[0].glob("model*.safetensors"))) > 1) == (shard == "20KB")
    assert (len(mean) < len(TriviumForConditionalGeneration(tiny_config()).state_dict())) == tied

    model = TriviumForConditionalGeneration.from_pretrained(tmp_path / "mean")
    embeddings = model.get_input_embeddings().weight
    assert (model.lm_head.weight is embeddings) == tied
    assert model.dtype == dtype
    assert model.config.tie_word_embeddings == tied
    assert torch.equal(embeddings, mean["model.encoder.embed_tokens.weight"])


def test_mean_of_one_model_is_bit_identical(tmp_path: Path) -> None:
    model = save_model(tmp_path / "one")
    with torch.no_grad():
        model.lm_head.weight[3] = torch.tensor(-0.0)
    model.save_pretrained(tmp_path / "one")
    average([tmp_path / "one"], tmp_path / "mean")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "mean" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def write_pair(tmp_path: Path, first: torch.Tensor, second: torch.Tensor) -> list[Path]:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, tensor in zip(folders, (first, second), strict=True):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        save_file({"steps": tensor}, folder / "model.safetensors", metadata={"format": "pt"})
    return folders


@pytest.mark.parametrize("tensor", [torch.tensor([3, 2**62 + 1]), torch.tensor([True, False])], ids=["int", "bool"])
def test_integer_tensors_must_be_equal(tmp_path: Path, tensor: torch.Tensor) -> None:
    average(write_pair(tmp_path / "x", tensor, tensor), tmp_path / "mean")
    assert_equal(saved(tmp_path / "mean"), {"steps": tensor})
    with pytest.raises(ValueError, match=r"steps is torch\.\w+, .*differs .*/a and .*/b"):
        average(write_pair(tmp_path / "y", tensor, tensor.flip(0)), tmp_path / "other")


def test_mean_of_large_numbers_does_not_overflow(tmp_path: Path) -> None:
    largest = torch.tensor([torch.finfo(torch.float32).max])
    average(write_pair(tmp_path, largest, largest), tmp_path / "mean")
    assert_equal(saved(tmp_path / "mean"), {"steps": largest})


# --- Command line ----------------------------------------------------------------------------------------------------


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    for step in (900, 1000, 1100):
        save_model(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-2000").touch()
    assert [path.name for path in last_checkpoints(tmp_path)] == [
        "checkpoint-900",
        "checkpoint-1000",
        "checkpoint-1100",
    ]
    code, output = trivium("average", tmp_path, tmp_path / "mean", "--last", "2")
    assert (code, "checkpoint-1000" in output, "checkpoint-900" in output) == (0, True, False), output
    weights = [saved(tmp_path / f"checkpoint-{step}") for step in (1000, 1100)]
    assert_equal(saved(tmp_path / "mean"), {name: (weights[0][name] + weights[1][name]) / 2 for name in weights[0]})
    for arguments in ([tmp_path / "checkpoint-900", tmp_path / "checkpoint-1000"], [tmp_path]):
        output_folder = tmp_path / f"of {len(arguments)}"
        assert trivium("average", *arguments, output_folder)[0] == 0
        assert (output_folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "out", "--last", "3"], 1, "at least 3 checkpoints, but has: checkpoint-1, checkpoint-2."),
        (["run/checkpoint-1", "out"], 1, "at least 1 checkpoints, but has: none."),
        (["run/checkpoint-1", "run/checkpoint-2", "out", "--last", "2"], 2, "--last requires one run"),
        (["run/checkpoint-1", "nowhere", "out"], 1, "nowhere is not a saved model: it has no config.json."),
        (["run/checkpoint-1", "run/checkpoint-1", "out"], 1, "each folder once"),
        (["run", "run"], 1, "output is run, which already exists"),
    ],
)
def test_errors_are_one_line_with_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    for step in (1, 2):
        save_model(tmp_path / "run" / f"checkpoint-{step}")
    monkeypatch.chdir(tmp_path)
    found, output = trivium("average", *arguments)
    assert (found, message in output) == (code, True), output
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def edit_json(file: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, edit: Callable[[Weights], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


NORM = "model.encoder.norm.weight"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other field": (
        lambda folder: edit_json(folder / "config.json", lambda config: config.update(dropout=0.5)),
        r"dropout is 0\.5 in .*/b, but 0\.0 in .*/c: only",
    ),
    "other vocabulary": (
        lambda folder: train_tokenizer(["x y"], vocab_size=270).save_pretrained(folder),
        r"tokenizer\.json has different vocabularies in .*/b and .*/c",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"/b has no model\.safetensors"),
    "empty weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "/b/.* is not a complete safetensors file",
    ),
    "cut weights": (lambda folder: truncate(folder / "model.safetensors"), "/b/.* is not a complete safetensors file"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"/b is not a saved model: it has no"),
    "cut configuration": (lambda folder: truncate(folder / "config.json"), r"/b/config\.json is not valid JSON"),
    "less": (
        lambda folder: edit_weights(folder, lambda weights: weights.pop(NORM)),
        rf"{NORM} is missing in .*/b, but of shape \(24,\) in .*/c",
    ),
    "more": (
        lambda folder: edit_weights(folder, lambda weights: weights.update(more=torch.ones(1))),
        r"more is of shape \(1,\) in .*/b, but missing in .*/c",
    ),
    "other shape": (
        lambda folder: edit_weights(folder, lambda weights: weights.update({NORM: torch.ones(7)})),
        rf"{NORM} is of shape \(7,\) in .*/b, but of shape \(24,\) in .*/c",
    ),
    "other type": (
        lambda folder: edit_weights(folder, lambda weights: weights.update({NORM: weights[NORM].half()})),
        rf"{NORM} is torch\.float32 in .*/a, but torch\.float16 in .*/b",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_incompatible_folder_is_named_and_nothing_written(tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        save_model(folder, norm_position="pre")
        train_tokenizer(["a b c"], vocab_size=270).save_pretrained(folder)
    break_it, message = BROKEN[kind]
    break_it(folders[1])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        average(folders, tmp_path / "mean")
    assert sorted(tmp_path.iterdir()) == folders


def test_missing_shard_is_named(tmp_path: Path) -> None:
    for name in "ab":
        save_model(tmp_path / name, "20KB")
    (gone := sorted((tmp_path / "b").glob("*.safetensors"))[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"/b/.*{gone.name}.*file"):
        average([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    with pytest.raises(ValueError, match=r"folders.*empty"):
        average([], tmp_path / "mean")


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
    """There is one update per step of two batches; the decay of 0.3 is reached, that of 0.9 is still warming up."""
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
    """With greater_is_better, the first average is the best."""
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
    """If a stream has too few batches, the next epoch restarts the step."""
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
    # The average has 2 / 11 of the initial and 9 / 11 of the later weights.
    assert model.weight.item() == pytest.approx(start + 9)


def test_only_rank_0_writes_ema_and_before_the_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, state, control = torch.nn.Linear(2, 3), TrainerState(), TrainerControl()
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    callback = ExponentialAverage(0.9)
    callback.on_train_begin(args, state, control, model=model)
    callback.on_push_begin(args, state, control)  # The checkpoint has not been written yet.
    (tmp_path / "checkpoint-0").mkdir()
    with monkeypatch.context() as another_process:
        another_process.setattr(TrainingArguments, "should_save", False)
        callback.on_push_begin(args, state, control)
    assert not list((tmp_path / "checkpoint-0").iterdir())
    callback.on_push_begin(args, state, control)
    assert_equal(load_file(tmp_path / "checkpoint-0" / TRAINED_WEIGHTS_FILE), weights_of(model))


# --- Refusals --------------------------------------------------------------------------------------------------------


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
    code, output = trivium("average", folder, tmp_path / "mean", "--last", "3")
    assert code == 0, output
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
    code, output = trivium("evaluate", tmp_path / "mean")
    assert code == 0, output
    assert (tmp_path / "mean" / "evaluation_test.json").is_file()


def test_mean_of_encoders(tmp_path: Path) -> None:
    models = [shake(TriviumForMaskedLM(tiny_config(decoder_layers=0))) for _ in range(2)]
    for name, model in zip("ab", models, strict=True):
        model.save_pretrained(tmp_path / name)
    average([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    mean = TriviumForMaskedLM.from_pretrained(tmp_path / "mean").state_dict()
    for name, weight in models[0].state_dict().items():
        torch.testing.assert_close(mean[name], (weight + models[1].state_dict()[name]) / 2, rtol=0, atol=1e-7)
