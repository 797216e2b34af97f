"""Test that the code on the page "Extend the model" runs, and that the models that it saves load without Trivium."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clean import put_into_cache, run_without_trivium
from hub_server import HubServer
from pages import EXTEND, blocks
from tiny import tiny_model
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from typer.testing import CliRunner

from trivium import TriviumForConditionalGeneration
from trivium.data import numbers_corpus
from trivium.tokenization import train_tokenizer
from trivium_cli import app

pytestmark = [pytest.mark.trains, pytest.mark.subprocess]

EXTENSIONS = {
    "adapted": ("AutoModelForSeq2SeqLM", "adapter.AdaptedForConditionalGeneration"),
    "choices": ("AutoModelForCausalLM", "choices.ChoicesForCausalLM"),
    "measuring": ("AutoModelForSequenceClassification", "measuring.TriviumForMeasuring"),
}

# This code is appended to the function `compute`.
LOAD = """
results = {}
for address, auto_class in arguments[0]:
    model = getattr(transformers, auto_class).from_pretrained(address, trust_remote_code=True)
    results[address] = type(model).__name__, compute(model)
translate = transformers.pipeline("translation", model="someone/adapted", trust_remote_code=True)
assert type(translate.model).__name__ == "AdaptedForConditionalGeneration"
torch.save(results, "results.pt")
"""


def compute(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7]])
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **inputs)["logits"].detach()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Create an importable working directory with a small untrained model in `runs/numbers`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = train_tokenizer(numbers_corpus(100, 1, 1)["train"]["source"], vocab_size=300)
    model = tiny_model(vocab_size=len(tokenizer)).float()
    model.generation_config.update(max_new_tokens=5)
    model.save_pretrained("runs/numbers")
    tokenizer.save_pretrained("runs/numbers")
    yield tmp_path
    ACT2FN.pop("snake", None)
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def run_page() -> dict[str, Any]:
    """Run the Python blocks of the page; write blocks that begin with `# mine/NAME.py` to that file instead."""
    variables: dict[str, Any] = {}
    for block in blocks(EXTEND):
        if file := re.match(r"# (mine/\w+\.py)\n", block.code):
            Path(file[1]).write_text(block.code)
            importlib.invalidate_caches()
        else:
            exec(compile(block.code, str(block), "exec"), variables)
    return variables


@pytest.mark.slow(reason="an interpreter without the package")
def test_extensions_load_without_the_package(here: Path, hub: HubServer) -> None:
    variables = run_page()
    model = variables["model"]
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[5, 6, 7]])}
    start = TriviumForConditionalGeneration.from_pretrained("runs/numbers")
    torch.testing.assert_close(model(**inputs).logits, start(**inputs).logits)
    trained = {name.split(".")[-2] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"adapter_down", "adapter_up"}
    assert type(variables["loaded"]).__module__.startswith("transformers_modules")

    jobs, expected = [], {}
    for name, (auto_class, reference) in EXTENSIONS.items():
        folder = here / "runs" / name
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        module, model_class = reference.split(".")
        assert set(auto_map) == {"AutoConfig", auto_class}
        assert auto_map[auto_class] == reference
        loaded = getattr(sys.modules[f"mine.{module}"], model_class).from_pretrained(folder)
        jobs.append((str(folder), auto_class))
        expected[str(folder)] = model_class, compute(loaded)
    (here / "pushed").mkdir()
    for name, content in hub.files("someone/adapted").items():
        (here / "pushed" / name).write_bytes(content)
    put_into_cache(here / "home", "someone/adapted", {"a" * 40: here / "pushed"}, main="a" * 40)
    jobs.append(("someone/adapted", "AutoModelForSeq2SeqLM"))
    expected["someone/adapted"] = expected[str(here / "runs/adapted")]

    (here / "elsewhere").mkdir()  # the package `mine` is not importable here
    (here / "elsewhere" / "home").symlink_to(here / "home")
    run_without_trivium(LOAD, jobs, folder=here / "elsewhere", functions=(compute,))
    results = torch.load(here / "elsewhere" / "results.pt", weights_only=True)
    assert list(results) == list(expected)
    for address, (name, logits) in results.items():
        assert name == expected[address][0]
        torch.testing.assert_close(logits, expected[address][1])

    command = ["translate", "runs/adapted", "half past seven", "--trust-remote-code"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
