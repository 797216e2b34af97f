"""Test Hub pushes during training: every commit contains a complete model."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from clean import run_without_trivium
from datasets import Dataset
from hub_server import HubServer
from huggingface_hub import HfApi
from tiny import random_ids, tiny_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from trivium import TriviumForCausalLM
from trivium.hub import Push, push
from trivium.hub.card import MARK
from trivium.hub.pushing import published_checkpoint, send_in_background
from trivium.recipe import Recipe, load_recipe
from trivium.training import train
from trivium.training.callbacks import CompletePush

pytestmark = pytest.mark.trains

SMALL = [
    "model.d_model=32",
    "model.ffn_dim=64",
    "data.max_train_samples=100",
    "data.max_validation_samples=10",
    "generation={max_length: 8}",
    "training.max_steps=2",
    "training.save_steps=1",
    "training.eval_strategy='no'",
    "training.warmup_steps=1",
    "training.per_device_train_batch_size=8",
    "training.disable_tqdm=true",
    "training.report_to=none",
    "training.push_to_hub=true",
]

# This code is appended to the function `generate_outputs`.
LOAD_COMMITS = """
results = {}
for folder in arguments[0]:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    results[folder] = generate_outputs(model, AutoTokenizer.from_pretrained(folder))
torch.save(results, "results.pt")
"""


def generate_outputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[torch.Tensor]:
    inputs = tokenizer("half past seven", return_tensors="pt")
    return [model.generate(**inputs), model(**inputs, decoder_input_ids=torch.tensor([[1, 7, 8]])).logits.detach()]


@pytest.fixture(autouse=True)
def pushes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pushes synchronous: otherwise timing decides whether the Trainer skips a push."""

    def run_at_once(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        done = Future[Any]()
        done.set_result(function(*args, **kwargs))
        return done

    monkeypatch.setattr(HfApi, "run_as_future", lambda self, *args, **kwargs: run_at_once(*args, **kwargs))
    monkeypatch.setattr("trivium.hub.pushing.run_as_future", run_at_once)


def pushing_recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe("numbers", [*SMALL, f"training.output_dir={folder}", *overrides])


def download(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


PUSHED = {  # commit titles by `hub_strategy`
    "end": ["Model save"],
    "every_save": ["Training in progress, step 1", "Training in progress, step 2", "Model save"],
}


@pytest.mark.slow
def test_every_commit_is_a_complete_model(hub: HubServer, tmp_path: Path) -> None:
    """Push with both strategies and load every commit; the last one contains the card and the run metadata."""
    folders = []
    for strategy, titles in PUSHED.items():
        repository, output = f"someone/{strategy}", tmp_path / "runs" / strategy
        train(pushing_recipe(output, f"training.hub_model_id={repository}", f"training.hub_strategy={strategy}"))
        commits = hub.commits(repository)[-2::-1]  # oldest first, without the initial commit
        assert [commit.title for commit in commits] == titles
        for index, commit in enumerate(commits):
            folders.append(download(hub.files(repository, commit.id), tmp_path / "commits" / f"{strategy}-{index}"))
        card = (folders[-1] / "README.md").read_text()
        assert MARK in card
        assert repository in card
        assert "RunFacts" in json.loads((folders[-1] / "trainer_state.json").read_text())["stateful_callbacks"]
        assert not list(output.glob("_partial*"))
    run_without_trivium(LOAD_COMMITS, list(map(str, folders)), folder=tmp_path, functions=[generate_outputs])
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert len(results) == len(folders) == 1 + 3
    for folder, result in results.items():
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        for actual, expected in zip(generate_outputs(model, tokenizer), result, strict=True):
            torch.testing.assert_close(actual, expected)
    # The commits of steps 1 and 2 contain the weights at these steps, which differ.
    first, second = (results[str(tmp_path / "commits" / f"every_save-{index}")][1] for index in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.usefixtures("unchecked", "undrawn")
def test_trainer_pushes_the_same_files_as_the_command(hub: HubServer, tmp_path: Path) -> None:
    """The commits must not contain pickles, TensorBoard files or local paths."""
    run = tmp_path / "run"
    options = ["training.report_to=tensorboard", "training.hub_strategy=every_save", "training.save_total_limit=1"]
    best = ["training.eval_strategy=steps", "training.eval_steps=1", "training.metric_for_best_model=loss"]
    best += ["training.predict_with_generate=false", "metrics=[]"]
    train(pushing_recipe(run, "training.hub_model_id=someone/run", *options, *best))
    assert list(run.rglob("events.out.tfevents.*"))
    assert list(run.rglob("training_args.bin"))
    commits = hub.commits("someone/run")[-2::-1]
    assert [commit.title for commit in commits] == PUSHED["every_save"]
    for commit in commits:
        files = hub.files("someone/run", commit.id)
        model = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "modeling_trivium.py"}
        assert {*model, "recipe.yaml", "trainer_state.json"} <= files.keys()
        assert {Path(name).suffix for name in files if name != ".gitattributes"} <= {
            *(".md", ".yaml", ".json", ".safetensors", ".py", ".png"),
        }
        assert [name for name, content in files.items() if str(tmp_path).encode() in content] == []
    pushed = push(run, "someone/again")
    by_command = hub.files("someone/again")
    assert by_command.keys() == files.keys()
    differing = {name for name in files if by_command[name] != files[name]}
    assert differing <= {"README.md"}  # The card names the repository.
    assert json.loads(files["trainer_state.json"])["best_model_checkpoint"] in ("checkpoint-1", "checkpoint-2")
    assert pushed.changed


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategies_that_push_pickles_are_refused(strategy: str, tmp_path: Path) -> None:
    recipe = pushing_recipe(tmp_path / "run", f"training.hub_strategy={strategy}")
    with pytest.raises(ValueError, match=rf"hub_strategy.*'{strategy}'.*hub_strategy=every_save"):
        train(recipe)
    assert not (tmp_path / "run").exists()


def test_push_outlives_its_checkpoint(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push must not depend on its checkpoint, which may be deleted while the push is waiting."""
    waiting: list[Callable[[], None]] = []
    monkeypatch.setattr("trivium.hub.pushing.run_as_future", lambda job: waiting.append(job) or Future())
    HfApi().create_repo("someone/late")
    checkpoint = tmp_path / "checkpoint-1"
    tiny_model(TriviumForCausalLM, encoder_layers=0).save_pretrained(checkpoint)
    weights = (checkpoint / "model.safetensors").read_bytes()
    planned = Push("someone/late", "main", published_checkpoint(checkpoint), [], None, None, None)
    send_in_background(planned, tmp_path, message="late")
    shutil.rmtree(checkpoint)
    waiting[0]()
    assert hub.files("someone/late")["model.safetensors"] == weights
    assert not list(tmp_path.glob("_partial*"))


def test_failed_push_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    planned = Push("someone/none", "main", {"config.json": b"{}"}, [], None, None, None)
    send_in_background(planned, tmp_path, message="Training in progress, step 1")
    assert "'Training in progress, step 1' was not pushed to someone/none" in caplog.text
    assert not list(tmp_path.glob("_partial*"))


def test_card_written_by_user_is_pushed_unchanged(hub: HubServer, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    train(pushing_recipe(output, "training.hub_model_id=someone/mine", "training.max_steps=1"))
    assert hub.files("someone/mine")["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


@pytest.mark.usefixtures("undrawn")
def test_hub_branch_is_created_when_run_starts(hub: HubServer, tmp_path: Path) -> None:
    draft = ["training.hub_model_id=someone/drafted", "training.hub_revision=draft", "training.max_steps=1"]
    train(pushing_recipe(tmp_path / "run", *draft))
    assert "model.safetensors" in hub.files("someone/drafted", "draft")
    assert not hub.files("someone/drafted")


def test_token_is_not_saved_in_recipe(tmp_path: Path) -> None:
    recipe = pushing_recipe(tmp_path / "run", "training.hub_token=hf_secret")
    with pytest.raises(ValueError, match=r"training\.hub_token.*recipe.*secret"):
        train(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("complete", [True, False])
def test_callback_completes_pushes_of_plain_trainer(hub: HubServer, tmp_path: Path, complete: bool) -> None:
    """Without the callback, commits lack the model code. If they no longer do, the callback is obsolete."""
    ids = random_ids(4, 5)
    arguments: dict[str, Any] = {"max_steps": 1, "save_steps": 1, "report_to": "tensorboard", "use_cpu": True}
    callbacks: list[TrainerCallback] = [CompletePush()] if complete else []
    trainer = Trainer(
        tiny_model(TriviumForCausalLM, encoder_layers=0).float(),
        TrainingArguments(
            str(tmp_path / "run"),
            push_to_hub=True,
            hub_model_id="someone/plain",
            hub_token="hf_writes",
            disable_tqdm=True,
            **arguments,
        ),
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()}),
        callbacks=callbacks,
    )
    trainer.train()
    files = hub.files("someone/plain")
    assert ("modeling_trivium_decoder.py" in files) == complete
    assert ("training_args.bin" in files) != complete
    assert any("tfevents" in name for name in files) != complete
    assert any(b"hf_writes" in content for content in files.values()) != complete
    if complete:
        code = {name: text.decode() for name, text in files.items() if name.endswith(".py")}
        assert not [name for name, text in code.items() if "from trivium" in text]
        folder = download(files, tmp_path / "downloaded")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(loaded.lm_head.weight, trainer.model.lm_head.weight)
