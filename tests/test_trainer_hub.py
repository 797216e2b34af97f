"""The Trainer and the Hub: whatever it pushes, and whenever, is a whole model."""

import json
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
from trivium.callbacks import CompletePush
from trivium.hub.card import MARK
from trivium.recipe import Recipe, load_recipe
from trivium.training import train

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

# After the function `said`.
LOAD_COMMITS = """
results = {}
for folder in arguments[0]:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    results[folder] = said(model, AutoTokenizer.from_pretrained(folder))
torch.save(results, "results.pt")
"""


def said(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[torch.Tensor]:
    inputs = tokenizer("half past seven", return_tensors="pt")
    return [model.generate(**inputs), model(**inputs, decoder_input_ids=torch.tensor([[1, 7, 8]])).logits.detach()]


@pytest.fixture(autouse=True)
def pushes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer leaves out a push while another goes on: which, must not be up to chance."""
    upload = HfApi.upload_folder

    def upload_at_once(self: HfApi, *args: Any, run_as_future: bool = False, **kwargs: Any) -> Any:
        done = Future[Any]()
        done.set_result(upload(self, *args, **kwargs))
        return done if run_as_future else done.result()

    monkeypatch.setattr(HfApi, "upload_folder", upload_at_once)


def pushing_recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe("numbers", [*SMALL, f"training.output_dir={folder}", *overrides])


def download(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


TITLES = {
    "end": [],
    "every_save": ["Training in progress, step 1", "Training in progress, step 2"],
    "checkpoint": [
        title
        for step in (1, 2)
        for title in (f"Training in progress, step {step}", f"Training in progress, step {step}, checkpoint")
    ],
}
TITLES["all_checkpoints"] = TITLES["checkpoint"]
INSIDE = {
    "end": set[str](),
    "every_save": set[str](),
    "checkpoint": {"last-checkpoint"},
    "all_checkpoints": {"checkpoint-1", "checkpoint-2"},
}


@pytest.mark.slow
def test_every_commit_of_a_run_is_a_whole_model(hub: HubServer, tmp_path: Path) -> None:
    """Of all strategies; the last one has the card and what it tells of."""
    folders = []
    for strategy, titles in TITLES.items():
        repository, output = f"someone/{strategy}", tmp_path / "runs" / strategy
        train(pushing_recipe(output, f"training.hub_model_id={repository}", f"training.hub_strategy={strategy}"))
        commits = hub.commits(repository)[-2::-1]  # oldest first, without the Hub's own
        assert [commit.title for commit in commits] == [*titles, "Model save"]
        for index, commit in enumerate(commits):
            folder = download(hub.files(repository, commit.id), tmp_path / "commits" / f"{strategy}-{index}")
            assert not list(folder.rglob("training_args.bin"))
            folders += [str(folder), *(str(each) for each in sorted(folder.glob("*checkpoint*")))]
        assert {path.name for path in folder.iterdir() if path.is_dir()} == INSIDE[strategy]
        names = {path.name for path in folder.iterdir() if path.is_file()}
        assert {"README.md", "recipe.yaml", "trainer_state.json", "generation_config.json"} <= names
        assert {path.suffix for path in folder.iterdir() if path.is_file()} <= {
            *(".md", ".yaml", ".json", ".safetensors", ".py", ".png", ""),
        }
        card = (folder / "README.md").read_text()
        assert MARK in card
        assert f"{repository}" in card
        assert "RunFacts" in json.loads((folder / "trainer_state.json").read_text())["stateful_callbacks"]
    run_without_trivium(LOAD_COMMITS, folders, folder=tmp_path, functions=[said])
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert len(results) == len(folders) == 1 + 3 + (5 + 4) + (5 + 6)  # commits, and checkpoints in them
    for folder, result in results.items():
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        for ours, theirs in zip(said(model, tokenizer), result, strict=True):
            torch.testing.assert_close(ours, theirs)
    # What is told apart is different: the commits of step 1 and 2 have the weights of step 1 and 2.
    first, second = (results[str(tmp_path / "commits" / f"every_save-{index}")][1] for index in (0, 1))
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, results[str(tmp_path / "commits" / "all_checkpoints-4" / "checkpoint-1")][1])


def test_a_card_of_ones_own_is_pushed_as_it_is(hub: HubServer, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    train(pushing_recipe(output, "training.hub_model_id=someone/mine", "training.max_steps=1"))
    assert hub.files("someone/mine")["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


def test_a_branch_of_the_hub_is_created_when_the_run_begins(hub: HubServer, tmp_path: Path) -> None:
    draft = ["training.hub_model_id=someone/drafted", "training.hub_revision=draft", "training.max_steps=1"]
    train(pushing_recipe(tmp_path / "run", *draft))
    assert "model.safetensors" in hub.files("someone/drafted", "draft")
    assert not hub.files("someone/drafted")


def test_a_token_does_not_get_into_a_recipe(tmp_path: Path) -> None:
    recipe = pushing_recipe(tmp_path / "run", "training.hub_token=hf_secret")
    with pytest.raises(ValueError, match=r"training\.hub_token is set, but a recipe is no place for a secret"):
        train(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("complete", [True, False])
def test_a_plain_trainer_pushes_whole_models_with_the_callback(hub: HubServer, tmp_path: Path, complete: bool) -> None:
    """Without it, the commits before the last one cannot be loaded; once they can, there is no need for it."""
    ids = random_ids(4, 5)
    arguments: dict[str, Any] = {"max_steps": 1, "save_steps": 1, "report_to": "none", "use_cpu": True}
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
    assert any(b"hf_writes" in content for content in files.values()) != complete
    if complete:
        code = {name: text.decode() for name, text in files.items() if name.endswith(".py")}
        assert not [name for name, text in code.items() if "from trivium" in text]
        folder = download(files, tmp_path / "downloaded")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(loaded.lm_head.weight, trainer.model.lm_head.weight)
