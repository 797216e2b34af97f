"""Fixtures for publishing: a small model, its tokenizer, and a run folder."""

from pathlib import Path

import pytest
import torch
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
