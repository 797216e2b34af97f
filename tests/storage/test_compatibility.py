"""Test that a run of version 0.1.0 loads and resumes in this version (see tests/fixtures/README.md)."""

import shutil
from pathlib import Path

import pytest
import torch
from clean import run_without_trivium
from paths import TESTS
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from trivium.recipe import load_recipe
from trivium.training import train

pytestmark = pytest.mark.trains

OLD_RUN = TESTS / "fixtures" / "run-0.1.0"
TEXT = "half past seven"


def test_saved_model_loads_with_package() -> None:
    model, report = AutoModelForSeq2SeqLM.from_pretrained(OLD_RUN, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    saved = load_file(OLD_RUN / "model.safetensors")
    weights = model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in saved.items())
    tokenizer = AutoTokenizer.from_pretrained(OLD_RUN)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"], skip_special_tokens=True) == TEXT


def test_saved_code_loads_without_package(tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(OLD_RUN).eval()
    tokenizer = AutoTokenizer.from_pretrained(OLD_RUN)
    inputs = tokenizer(TEXT, text_target=TEXT, return_tensors="pt")
    with torch.no_grad():
        torch.save(model(**inputs).logits, tmp_path / "logits.pt")
    program = """
    from transformers import AutoModelForSeq2SeqLM
    folder, text, expected = arguments
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(text, text_target=text, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, torch.load(expected))
    model.generate(**inputs, max_new_tokens=4)
    """
    folder = shutil.copytree(OLD_RUN, tmp_path / "model")
    run_without_trivium(
        "\n".join(line[4:] for line in program.splitlines()),
        str(folder),
        TEXT,
        str(tmp_path / "logits.pt"),
        folder=tmp_path,
    )


def test_checkpoint_resumes_to_same_weights(tmp_path: Path) -> None:
    """Resume at step 3, and compare the weights at step 6 with those of version 0.1.0."""
    run = shutil.copytree(OLD_RUN, tmp_path / "run")
    trainer = train(load_recipe(run, [f"training.output_dir={run}"]), resume=True)
    assert trainer.state.global_step == 6
    expected, weights = load_file(OLD_RUN / "model.safetensors"), load_file(run / "model.safetensors")
    assert expected.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
