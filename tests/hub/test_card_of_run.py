"""Test the parts of a model card that come from the run, and the file list of a dry run."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from tiny import shake, tiny_config
from transformers import TrainerState
from typer.testing import CliRunner

from trivium import TriviumForConditionalGeneration, TriviumTokenizer
from trivium.hub.card import render_card
from trivium.recipe import load_recipe
from trivium.tokenization import train_tokenizer
from trivium_cli import app

SOURCES = ["the cat sat", "x" * 300, "the cat sat", "two  dogs ran", "birds fly", "one more"]


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(SOURCES[2:] * 2, vocab_size=300)


@pytest.fixture
def run(tokenizer: TriviumTokenizer, tmp_path: Path) -> Path:
    """Return the folder of a run without example texts in its recipe, evaluated twice at step 4."""
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(tokenizer), encoder_layers=1, decoder_layers=1)
    model = shake(TriviumForConditionalGeneration(config), std=0.5)
    model.generation_config.max_length = 8
    folder = tmp_path / "run"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for ending in ("en", "de"):
        (tmp_path / f"validation.{ending}").write_text("\n".join(SOURCES) + "\n")
    files = ["data.train=gone/train", f"data.validation={json.dumps(str(tmp_path / 'validation'))}", "data.test=null"]
    load_recipe("multi30k", [*files, "card.examples=[]"]).save(folder)
    history = [{"step": 2, "loss": 3.0, "epoch": 1.0}, {"step": 2, "eval_loss": 2.5, "epoch": 1.0}]
    history += [{"step": 4, "loss": 2.0, "epoch": 2.0}, *({"step": 4, "eval_loss": loss} for loss in (1.6, 1.5))]
    TrainerState(global_step=4, epoch=2.0, log_history=history).save_to_json(str(folder / "trainer_state.json"))
    return folder


def test_examples_come_from_validation_data(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.hub.card.draw_attention", lambda folder, config, task, text: text.encode())
    monkeypatch.setattr("trivium.hub.card.draw_curves", lambda folder, state: None)
    files = render_card(run)
    card = ModelCard(files["README.md"].decode())
    assert [entry["text"] for entry in card.data.widget] == ["the cat sat", "two dogs ran", "birds fly"]
    assert 'pipe("the cat sat")' in card.text
    assert files["attention.png"] == b"the cat sat"
    own = ModelCard(render_card(run, None, ["card.examples=[mine]"])["README.md"].decode())
    assert own.data.widget == [{"text": "mine"}]
    (tmp_path / "validation.en").unlink()
    files = render_card(run)
    assert "widget" not in ModelCard(files["README.md"].decode()).data.to_dict()
    assert "attention.png" not in files


def test_learning_curve_has_one_row_per_step_and_a_picture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.hub.card.draw_attention", lambda *arguments: None)
    files = render_card(run)
    text = files["README.md"].decode()
    assert text.count("| 4 | 2.000 |") == 1
    assert "| 4 | 2.000 | 1.500 |" in text
    assert "](curves.png)" in text
    assert files["curves.png"].startswith(b"\x89PNG")
    (run / "trainer_state.json").unlink()
    files = render_card(run)
    assert "curves.png" not in files
    assert "curves.png" not in files["README.md"].decode()


def test_dry_run_lists_files_offline(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("trivium.hub.check_folder", lambda folder, **options: None)
    monkeypatch.setattr("trivium.hub.card.draw_attention", lambda *arguments: None)
    monkeypatch.setattr("trivium.hub.card.draw_curves", lambda *arguments: b"a picture")
    result = CliRunner().invoke(app, ["push", str(run), "someone/model", "--dry-run"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for name in ("model.safetensors", "README.md", "curves.png", "recipe.yaml"):
        assert f" {name} " in result.stdout
    assert "not compared with the Hub" in result.stdout
    assert "Nothing was uploaded" in result.stdout
    assert CliRunner().invoke(app, ["push", str(run), "someone/model"]).exit_code == 1
