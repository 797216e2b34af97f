"""Test the check before publishing: it refuses folders that are broken, modified or incompatible."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clean import run_without_trivium
from hub_folders import save
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from test_portable import CLASSES
from tiny import tiny_model
from transformers import PreTrainedModel

from trivium import TriviumTokenizer
from trivium.hub import check_folder, probe, push
from trivium.tokenization import train_tokenizer

REPO = "someone/model"
TEXTS = ["the cat sat on the mat.", "two dogs ran across the road.", "über den Wolken"] * 2


@pytest.mark.slow  # the default suite runs one check in `test_command_checks_previews_and_publishes`
def test_saved_folder_passes_the_check(folder: Path) -> None:
    check_folder(folder)


@pytest.mark.slow  # starts 18 processes that import transformers
@pytest.mark.parametrize("shard_size", ["1GB", "30KB"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_every_saved_folder_passes_the_check(
    tmp_path: Path, model_class: type[PreTrainedModel], tokenizer: TriviumTokenizer, shard_size: str
) -> None:
    model = tiny_model(model_class, vocab_size=len(tokenizer), **CLASSES[model_class])
    save(tmp_path, model, tokenizer, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "30KB")
    check_folder(tmp_path)


@pytest.mark.slow  # starts processes that import transformers
def test_two_vocabularies_pass_the_check(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, target_texts=[text[::-1] for text in TEXTS] * 2)
    sizes = {"vocab_size": len(tokenizer), "decoder_vocab_size": tokenizer.target_vocab_size}
    check_folder(save(tmp_path, tiny_model(**sizes), tokenizer))


def change_json(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def with_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[min(weights)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_token(folder: Path) -> None:
    tokenizer = TriviumTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder)


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


# Ways to break a folder, and the expected error message.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "garbled config": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "another model": (
        lambda f: change_json(f / "config.json", lambda c: c.update(architectures=["BertModel"])),
        "holds a BertModel, but must hold a model of trivium",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors.$"),
    "only pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "Only safetensors are published, not pytorch_model.bin",
    ),
    "garbled weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "model.safetensors is corrupt",
    ),
    "a missing shard": (
        lambda f: (
            (f / "model.safetensors").rename(f / "x")
            and (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-1.safetensors"}}')
        ),
        "lacks model-1-of-1.safetensors",
    ),
    "missing weights": (without_a_tensor, "has no weights for"),
    "NaN": (with_nan, r"not finite \(NaN or infinity\)"),
    "no auto_map": (
        lambda f: change_json(f / "config.json", lambda c: c.pop("auto_map")),
        "has no auto_map entry for TriviumForConditionalGeneration",
    ),
    "no code": (lambda f: (f / "modeling_trivium.py").unlink(), "lacks modeling_trivium.py"),
    "imported code missing": (lambda f: (f / "layers.py").unlink(), "lacks layers.py"),
    "garbled code": (lambda f: append(f / "layers.py", "\ndef ("), "layers.py is not valid Python"),
    "code that imports trivium": (
        lambda f: append(f / "layers.py", "\nimport trivium.tasks"),
        "layers.py imports trivium",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer_config.json").unlink(), "has no tokenizer"),
    "a larger tokenizer": (
        with_another_token,
        r"a tokenizer with \d+ tokens, but its model's vocab_size is \d+",
    ),
    "code with a missing import": (
        lambda f: append(f / "layers.py", "\nimport absent"),
        "does not load .*absent",
    ),
}

# Only loading the folder in a fresh process detects this.
LONG = "code with a missing import"


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == LONG else k for k in BROKEN])
def test_broken_folder_is_refused(
    tmp_path: Path, kind: str, model: PreTrainedModel, tokenizer: TriviumTokenizer, hub: HubServer
) -> None:
    damage, message = BROKEN[kind]
    save(tmp_path / "saved", model, tokenizer)
    damage(tmp_path / "saved")
    with pytest.raises(ValueError, match=message) as refusal:
        push(tmp_path / "saved", REPO, trust_remote_code=True)
    assert "\n" not in str(refusal.value)
    assert hub.requests == []


# Runs the probe as a script, in a process without Trivium.
PROBE = """
import runpy
sys.argv = arguments
runpy.run_path(arguments[0], run_name="__main__")
"""


def test_code_with_other_results_is_refused(
    folder: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the probe in a fork of a process that has imported transformers, which a fresh one does in seconds."""

    def compute_in_fork(folder: Path, auto_class: str) -> dict[str, torch.Tensor]:
        results = tmp_path / "results.safetensors"
        run_without_trivium(PROBE, probe.__file__, str(folder), auto_class, str(results), folder=tmp_path)
        return load_file(results)

    monkeypatch.setattr("trivium.hub.checking._compute_without_trivium", compute_in_fork)
    check_folder(folder)
    append(folder / "loss.py", "\nimport torch\ntorch.nn.functional.linear = lambda x, w, b=None: x @ w.T * 2")
    with pytest.raises(ValueError, match="computes different"):
        push(folder, REPO, trust_remote_code=True)
    assert hub.requests == []


def test_modified_code_is_not_executed(
    tmp_path: Path, model: PreTrainedModel, tokenizer: TriviumTokenizer, hub: HubServer
) -> None:
    for name in ("loss.py", "configuration_trivium.py"):
        folder = tmp_path / name.removesuffix(".py")
        save(folder, model, tokenizer)
        append(folder / name, f"\nfrom pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
        with pytest.raises(ValueError, match=rf"{name} is not the code of the installed trivium.*trust_remote_code"):
            push(folder, REPO)
        assert not (tmp_path / "ran").exists()
    assert hub.requests == []
