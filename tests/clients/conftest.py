"""Fixtures for tests of third-party clients on folders written by `save_pretrained`."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from paths import DOCS
from tiny import tiny_model

from trivium import TriviumForCausalLM, TriviumTokenizer
from trivium.tokenization import train_tokenizer

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_EVALUATE_OFFLINE="1")

TEXTS = [
    "a cat sat on the mat",
    "two dogs ran across the road",
    "birds sing in the morning",
    "the children sleep until the evening",
    "it rains and the road is wet",
    "she reads a book about the sea",
]

PAGE = DOCS / "clients.md"
WITHOUT_TRIVIUM = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
from importlib.util import find_spec
assert find_spec("trivium") is None
import torch
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force offline mode, even if huggingface_hub was imported before the environment variable was set."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> TriviumTokenizer:
    """Return a tokenizer for encoders: `<s> text </s>`."""
    return train_tokenizer(TEXTS * 3, vocab_size=300, add_bos_token=True, add_eos_token=True, model_max_length=64)


@pytest.fixture(scope="session")
def open_tokenizer() -> TriviumTokenizer:
    """Return a tokenizer for decoders: `<s> text`, without EOS."""
    return train_tokenizer(TEXTS * 3, vocab_size=300, add_bos_token=True, add_eos_token=False, model_max_length=64)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory, open_tokenizer: TriviumTokenizer) -> Path:
    """Return the folder of a small float32 language model with random weights; tests must not modify it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("decoder")
    tiny_model(TriviumForCausalLM, encoder_layers=0, vocab_size=len(open_tokenizer)).float().save_pretrained(folder)
    open_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Return a function that runs the Python under a heading of docs/clients.md in a temporary folder."""

    def run(heading: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
        variables: dict[str, Any] = {}
        exec("\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL)), variables)
        return variables

    return run


@pytest.fixture
def without_trivium(tmp_path: Path) -> Callable[[str], torch.Tensor]:
    """Return a function that runs a program without Trivium and returns the tensor it saves as result.pt."""

    def run(program: str) -> torch.Tensor:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
        subprocess.run(
            [sys.executable, "-I", "-c", WITHOUT_TRIVIUM + program], cwd=tmp_path, env=environment, check=True
        )
        return torch.load(tmp_path / "result.pt", weights_only=True)

    return run
