"""Test `trivium prepare`: training is identical with and without it, interruptions are harmless, errors are clear."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipes import small_recipe
from typer.testing import CliRunner

from trivium.data import numbers_corpus
from trivium.recipe import load_recipe
from trivium.training import prepare, train
from trivium_cli import app

pytestmark = pytest.mark.trains

MODULE = "trivium.training.prepare"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce encoding groups to 20 rows and pieces to 60, so that a small data set has several of each."""
    for name in (MODULE, "trivium.tasks.task"):
        monkeypatch.setattr(sys.modules[name], "ENCODED_ROWS", 20)
    monkeypatch.setattr(sys.modules[MODULE], "PIECE_ROWS", 60)


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Write texts, and return the recipe overrides that train a tiny language model on them, with dropout."""
    for split, count in (("train", 150), ("validation", 30)):
        lines = numbers_corpus()[split][:count]["target"]
        (tmp_path / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return [
        *("model.d_model=32", "model.ffn_dim=64", "model.decoder_layers=1", "model.dropout=0.1"),
        *("inputs.max_length=24", "inputs.packing_strategy=best-fit", "data.whole_files=false"),
        *("training.max_steps=6", "training.save_steps=3", "training.eval_steps=3", "training.logging_steps=1"),
        *("training.per_device_train_batch_size=8", "training.disable_tqdm=true", "training.report_to=none"),
        *(f"data.{split}={tmp_path}/{split}.txt" for split in ("train", "validation")),
    ]


def losses_of(trainer: Any) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history for name in ("loss", "eval_loss") if name in entry]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow(reason="two processes"))])
def test_prepared_language_model_trains_alike(
    tmp_path: Path, texts: list[str], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(load_recipe("shakespeare", [*texts, f"training.output_dir={tmp_path}/plain"]))
    prepared = [*texts, f"training.output_dir={tmp_path}/run", f"data.prepared={tmp_path}/prepared"]
    manifest = prepare(load_recipe("shakespeare", prepared), processes=processes)
    assert manifest["splits"]["train"]["examples"] == 150
    assert len(manifest["splits"]["train"]["pieces"]) == 3
    monkeypatch.setattr(sys.modules["trivium.training.train"], "encode_data", None)  # training must not tokenize
    trainer = train(load_recipe("shakespeare", prepared))
    assert losses_of(trainer) == losses_of(plain)
    facts = [run.state.stateful_callbacks["RunFacts"]["attributes"] for run in (plain, trainer)]
    for name in ("data", "packing", "examples"):
        assert facts[0][name] == facts[1][name] is not None
    assert facts[0]["encoding"]["rows_per_second"] > 0
    assert facts[1]["encoding"] is None
    assert facts[1]["packing"]["cuts"] == manifest["splits"]["train"]["cuts"]
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name])
    # Resume, with prepared data, a run that was started without it.
    shutil.rmtree(tmp_path / "plain" / "checkpoint-6")
    (tmp_path / "plain" / "model.safetensors").unlink()
    resumed = train(load_recipe("shakespeare", [*prepared, f"training.output_dir={tmp_path}/plain"]), resume=True)
    assert losses_of(resumed) == losses_of(plain)


def test_prepared_translation_trains_alike(tmp_path: Path) -> None:
    small = small_recipe(tmp_path / "plain", "training.max_steps=3", "data.max_train_samples=150")
    plain = train(load_recipe("numbers", small))
    overrides = [*small, f"training.output_dir={tmp_path}/run", f"data.prepared={tmp_path}/prepared"]
    prepare(load_recipe("numbers", overrides))
    assert losses_of(train(load_recipe("numbers", overrides))) == losses_of(plain)


def test_interrupted_preparation_goes_on(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "prepared"
    recipe = load_recipe("shakespeare", [*texts, f"data.prepared={folder}"])
    whole = prepare(load_recipe("shakespeare", [*texts, f"data.prepared={tmp_path}/whole"]))
    with monkeypatch.context() as patch:
        rename = Path.rename
        patch.setattr(Path, "rename", lambda path, to: exit(1) if to.name == "00001" else rename(path, to))
        with pytest.raises(SystemExit):
            prepare(recipe)
    assert (folder / "train" / "00000").is_dir()
    assert not (folder / "train" / "00001").exists()
    with pytest.raises(ValueError, match="unfinished"):
        train(recipe)
    with pytest.raises(ValueError, match=r"inputs.max_length.* was 24, is now 12"):
        prepare(load_recipe("shakespeare", [*texts, f"data.prepared={folder}", "inputs.max_length=12"]))
    finished = (folder / "train" / "00000" / "state.json").stat().st_mtime_ns
    manifest = prepare(recipe)
    assert (folder / "train" / "00000" / "state.json").stat().st_mtime_ns == finished
    assert sorted(path.name for path in (folder / "train").iterdir()) == ["00000", "00001", "00002"]
    for split in ("train", "validation"):
        for facts in (manifest, whole):
            del facts["splits"][split]["seconds"]
    assert manifest == whole


def test_interrupted_start_and_deletion_go_on(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("shakespeare", [*texts, f"data.prepared={tmp_path}/prepared"])
    with monkeypatch.context() as patch:
        rename = Path.rename
        patch.setattr(Path, "rename", lambda path, to: exit(1) if to.name == "tokenizer" else rename(path, to))
        with pytest.raises(SystemExit):
            prepare(recipe)
    manifest = prepare(recipe)
    with monkeypatch.context() as patch:
        rmtree = shutil.rmtree
        patch.setattr(shutil, "rmtree", lambda path, **kw: exit(1) if path.name == "tokenizer" else rmtree(path, **kw))
        with pytest.raises(SystemExit):
            prepare(recipe, overwrite=True)
    with pytest.raises(ValueError, match="unfinished"):
        train(recipe)
    assert prepare(recipe, overwrite=True)["data"] == manifest["data"]


def test_changed_fields_and_files_are_refused(tmp_path: Path, texts: list[str]) -> None:
    base = [*texts, f"training.output_dir={tmp_path}/run", f"data.prepared={tmp_path}/prepared"]
    prepare(load_recipe("shakespeare", base))
    for override, message in (
        ("tokenizer.vocab_size=90", r"tokenizer.vocab_size was 100, is now 90"),
        ("inputs.packing_strategy=concatenate", r"inputs.packing_strategy was \"best-fit\""),
        ("inputs.max_length=25", r"inputs.max_length .* was 24, is now 25"),
        ("data.max_train_samples=9", r"data.max_train_samples was null, is now 9"),
        (f"data.prepared={tmp_path}/other", r"data.prepared is .*other, which holds no prepared data"),
        ("data.streaming=true", r"data.streaming=false"),
    ):
        with pytest.raises(ValueError, match=message):
            train(load_recipe("shakespeare", [*base, override]))
    assert not (tmp_path / "run").exists()
    tokenizer = tmp_path / "prepared" / "tokenizer" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    before = tokenizer.read_text()
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the fingerprint of the tokenizer"):
        train(load_recipe("shakespeare", base))
    tokenizer.write_text(before)
    (tmp_path / "train.txt").write_text("changed\n")
    with pytest.raises(ValueError, match=r"train.txt has changed since it was prepared"):
        train(load_recipe("shakespeare", base))


def test_prepare_command_overwrites_only_its_own(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    command = ["prepare", "shakespeare", *texts, f"data.prepared={folder}"]
    result = CliRunner().invoke(app, [*command, "--overwrite"])
    assert result.exit_code == 1
    assert "notes.txt" in result.stderr
    (folder / "notes.txt").unlink()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "150 rows encoded as" in result.stdout
    assert "% padding" in result.stdout
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    (folder / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, [*command, "--overwrite"])
    assert result.exit_code == 0, result.output
    assert (folder / "notes.txt").read_text() == "mine"
    result = CliRunner().invoke(app, command[:-1])
    assert result.exit_code == 1
    assert "data.prepared is null" in result.stderr
