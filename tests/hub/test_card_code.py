"""Run the code and the commands on model cards."""

import ast
import json
import shlex
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from cards import TEXTS, card_of, code_of, save_small
from clean import run_without_trivium
from model_classes import LAYERS as CLASSES
from transformers import PreTrainedModel
from typer.testing import CliRunner

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumTokenizer,
)
from trivium.recipe import load_recipe
from trivium.tokenization import train_tokenizer
from trivium_cli import app

RUN_CODE = """
import io
from contextlib import redirect_stdout
printed = {}
for name, blocks in arguments[0].items():
    printed[name] = []
    for block in blocks:
        with redirect_stdout(io.StringIO()) as output:
            exec(block, {})
        printed[name].append(output.getvalue())
Path("printed.json").write_text(json.dumps(printed))
"""


@pytest.mark.slow
def test_code_on_card_runs_without_package(card_tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    blocks = {}
    for model_class in CLASSES:
        options: dict[str, dict[str, Any]] = {"": {}}
        if model_class is TriviumForSequenceClassification:
            options["-several"] = {"problem_type": "multi_label_classification"}
            options["-number"] = {"problem_type": "regression", "num_labels": 1}
        for ending, extra in options.items():
            name = model_class.__name__ + ending
            open_ended = model_class is TriviumForCausalLM
            tokenizer = without_end(card_tokenizer) if open_ended else card_tokenizer
            save_small(model_class, tokenizer, tmp_path / name, **extra)
            with chdir(tmp_path):
                blocks[name] = code_of(card_of(Path(name), repo_id=f"{tmp_path}/{name}").text, "python")
    run_without_trivium(RUN_CODE, blocks, folder=tmp_path)
    printed = json.loads((tmp_path / "printed.json").read_text())
    assert {name: len(blocks[name]) for name in blocks} == {
        name: 1 if name == "TriviumModel" else 2 for name in blocks
    }
    assert all(output.strip() for outputs in printed.values() for output in outputs)
    pipe, auto = (ast.literal_eval(output) for output in printed["TriviumForConditionalGeneration"])
    assert [each["translation_text"] for each in pipe] == auto
    pipe, auto = (ast.literal_eval(output) for output in printed["TriviumForMaskedLM"])
    assert [each["token_str"] for each in pipe] == auto
    label = ast.literal_eval(printed["TriviumForSequenceClassification"][0])[0]["label"]
    assert printed["TriviumForSequenceClassification"][1].strip() == label
    scores = ast.literal_eval(printed["TriviumForSequenceClassification-several"][0])
    several = ast.literal_eval(printed["TriviumForSequenceClassification-several"][1])
    assert {each["label"] for each in scores if each["score"] > 0.5} == set(several)
    number = ast.literal_eval(printed["TriviumForSequenceClassification-number"][0])[0]["score"]
    assert float(printed["TriviumForSequenceClassification-number"][1]) == pytest.approx(number, abs=1e-4)


def without_end(tokenizer: TriviumTokenizer) -> TriviumTokenizer:
    return train_tokenizer(TEXTS * 2, vocab_size=len(tokenizer), add_eos_token=False)


@pytest.mark.parametrize(
    "model_class",
    [
        TriviumForConditionalGeneration,
        TriviumForCausalLM,
        TriviumForMaskedLM,
        TriviumForSequenceClassification,
        TriviumForTokenClassification,
    ],
)
def test_commands_on_card_run(
    model_class: type[PreTrainedModel], card_tokenizer: TriviumTokenizer, tmp_path: Path
) -> None:
    save_small(model_class, card_tokenizer, tmp_path / "model")
    download, command = code_of(card_of(tmp_path / "model").text, "bash")[0].splitlines()
    assert download == "hf download someone/model --local-dir model"
    with chdir(tmp_path):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


def test_completion_prompt_matches_training(card_tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    save_small(TriviumForCausalLM, card_tokenizer, tmp_path)
    recipe = load_recipe("numbers", ["task=completion", "inputs.prompt='{source} = '", "metrics=null",
                                     "training.predict_with_generate=false", "card.examples=[two dogs]"])  # fmt: skip
    recipe.save(tmp_path)
    assert all('"two dogs = "' in code for code in code_of(card_of(tmp_path).text, "python"))


def test_saved_max_length_is_kept(bare: Path) -> None:
    assert all("max_new_tokens=100" in code for code in code_of(card_of(bare).text, "python"))
    model = TriviumForConditionalGeneration.from_pretrained(bare)
    model.generation_config.max_length = 64
    model.save_pretrained(bare)
    assert "max_new_tokens" not in card_of(bare).text
