"""Test the command that `--resume` suggests after a changed recipe: it starts a new run from the run's weights."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from trivium.data import numbers_corpus
from trivium.recipe import load_recipe
from trivium.training import train
from trivium_cli import app

pytestmark = pytest.mark.trains

SETTINGS = [
    *("model.preset=transformer-micro", "model.d_model=16", "model.ffn_dim=32", "model.num_attention_heads=2"),
    *("model.encoder_layers=1", "model.decoder_layers=1", "tokenizer.vocab_size=300", "metrics=[]"),
    *("data.name=null", "data.max_train_samples=40", "data.max_validation_samples=4"),
    "generation.max_length=8",
    *("training.max_steps=2", "training.save_steps=1", "training.eval_strategy='no'", "training.logging_steps=1"),
    *("training.per_device_train_batch_size=4", "training.report_to=none", "training.disable_tqdm=true"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for two steps in a folder whose name must be quoted in a shell."""
    folder = tmp_path_factory.mktemp("second thoughts")
    for split, pairs in numbers_corpus(40, 4, 4).items():
        for ending, column in (("en", "source"), ("de", "target")):
            (folder / f"{split}.{ending}").write_text("\n".join(pairs[column]) + "\n")
    files = [f"data.{split}={json.dumps(str(folder / split))}" for split in ("train", "validation")]
    train(load_recipe("numbers", [*SETTINGS, *files, f"training.output_dir={json.dumps(str(folder / 'run'))}"]))
    return folder / "run"


def refusal_of(run: Path, *changes: str) -> str:
    result = CliRunner().invoke(app, ["train", str(run), "--resume", *changes])
    assert result.exit_code == 1, result.output
    return result.stderr


def test_advised_command_starts_from_the_weights(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ["training.learning_rate=1.0e-9", "training.warmup_steps=0", "model.dropout=0.2", "inputs.max_length=12"]
    changes += ["training.lr_scheduler_type=cosine_with_min_lr", "training.lr_scheduler_kwargs={min_lr: 0.0}"]
    message = refusal_of(run, *changes)
    assert "was 0.002, is now 1e-09" in message
    command = message.strip().splitlines()[-1]
    program, *arguments = shlex.split(command)
    assert (program, arguments[:2]) == ("trivium", ["train", str(run)])
    assert {"model.preset=null", f"init_from={run}/checkpoint-2"} <= {shlex.split(word)[0] for word in arguments[2:]}
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    second = run.with_name("run-2")
    recipe = load_recipe(second)
    assert (recipe.training["learning_rate"], recipe.model["dropout"], recipe.inputs.max_length) == (1e-9, 0.2, 12)
    before, after = (load_file(folder / "model.safetensors") for folder in (run, second))
    for name, weight in before.items():
        torch.testing.assert_close(weight, after[name], rtol=0, atol=1e-6)
    assert "run-3" in refusal_of(run, *changes), "another folder than that of the second run"


@pytest.mark.parametrize("change", ["model.d_model=32", "tokenizer.vocab_size=200", "ema_decay=0.9"])
def test_no_command_is_advised_that_cannot_work(run: Path, change: str) -> None:
    assert ("init_from" in refusal_of(run, change)) == (change == "ema_decay=0.9")


def test_preset_is_unset_as_the_refusal_says(run: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.preset is 'transformer-micro'.*Set model\.preset=null"):
        load_recipe(run, [f"init_from={json.dumps(str(run))}"])
    assert load_recipe(run, ["init_from=somewhere", "model.preset=null"]).config_fields["d_model"] == 16
    recipe = load_recipe(run, ["model.dropout=0.3", "init_from=somewhere", "model=null"])
    assert recipe.model == {"dropout": 0.3}, "only the model fields of the file are dropped"
    assert load_recipe("numbers", ["model.preset=null"]).model_config(vocab_size=300).vocab_size == 300


def test_evaluation_needs_only_its_own_split(run: Path) -> None:
    train_file = run.with_name("train.en")
    hidden = train_file.rename(train_file.with_suffix(".hidden"))
    try:
        test = json.dumps(str(run.with_name("test")))
        result = CliRunner().invoke(app, ["evaluate", str(run), f"data.test={test}", "metrics=[chrf]"])
        assert result.exit_code == 0, result.output
        assert json.loads((run / "evaluation_test.json").read_text())["rows"] == 4
        result = CliRunner().invoke(app, ["evaluate", str(run)])
        assert "split is 'test', but must be one of train, validation, or set data.test" in result.stderr
    finally:
        hidden.rename(train_file)
