"""Fixtures for publishing: a small model, its tokenizer, and a run folder."""

from pathlib import Path

import pytest
import torch
from cards import TEXTS as CARD_TEXTS
from cards import save_small
from hub_folders import save
from tiny import tiny_model
from transformers import PreTrainedModel

from trivium import TriviumForConditionalGeneration, TriviumTokenizer
from trivium.tokenization import train_tokenizer

TEXTS = ["the cat sat on the mat.", "two dogs ran across the road.", "über den Wolken"] * 2


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS, vocab_size=400)


@pytest.fixture(scope="module")
def model(tokenizer: TriviumTokenizer) -> TriviumForConditionalGeneration:
    torch.manual_seed(0)
    return tiny_model(vocab_size=len(tokenizer)).float()


@pytest.fixture
def folder(tmp_path: Path, model: PreTrainedModel, tokenizer: TriviumTokenizer) -> Path:
    """Return a run folder with sharded weights and many private files."""
    folder = save(tmp_path / "run", model, tokenizer, max_shard_size="30KB")
    (folder / "checkpoint-10").mkdir()
    for name in ("training_args.bin", "optimizer.pt", "rng.pth", "predictions_test.txt", "checkpoint-10/config.json"):
        (folder / name).write_bytes(b"secret")
    (folder / "LICENSE").write_text("Apache-2.0")
    return folder


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the portability check, which takes seconds, in tests of the upload itself."""
    # `push()` and the command look up `check_folder` in different modules.
    for module in ("trivium.hub.pushing", "trivium.hub"):
        monkeypatch.setattr(f"{module}.check_folder", lambda folder, trust_remote_code: None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing the pictures of cards, which takes seconds; `test_card.py` draws them."""
    monkeypatch.setattr("trivium.hub.card.draw_attention", lambda *arguments: b"attention")
    monkeypatch.setattr("trivium.hub.card.draw_curves", lambda *arguments: b"curves")


@pytest.fixture(scope="session")
def card_tokenizer() -> TriviumTokenizer:
    return train_tokenizer(CARD_TEXTS * 2, vocab_size=330)


@pytest.fixture
def bare(card_tokenizer: TriviumTokenizer, tmp_path: Path) -> Path:
    """Return a folder written by `save_pretrained`, which is not a run."""
    save_small(TriviumForConditionalGeneration, card_tokenizer, tmp_path / "bare")
    return tmp_path / "bare"
