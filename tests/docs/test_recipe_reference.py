"""Test that the recipe reference is complete and up to date, and that the recipes explained in it load."""

import importlib.util
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from pages import DOCS
from transformers import Seq2SeqTrainingArguments
from typer.testing import CliRunner

from trivium.data import DataArguments
from trivium.recipe import (
    CardArguments,
    LearningArguments,
    Recipe,
    TokenizerArguments,
    available_recipes,
    load_recipe,
    recipe_path,
)
from trivium.recipe_fields import GENERATION, TRAINING, describe_fields, recipe_summaries
from trivium.tasks import InputArguments
from trivium_cli import app

SECTIONS = {
    **{"": Recipe, "data.": DataArguments, "tokenizer.": TokenizerArguments, "inputs.": InputArguments},
    "learning.": LearningArguments,
}


def test_page_is_generated_from_the_docstrings() -> None:
    spec = importlib.util.spec_from_file_location("make_recipe_reference", DOCS / "make_recipe_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "reference" / "recipes.md").read_text(encoding="utf-8")
    assert page == module.page(), "run: python docs/make_recipe_reference.py"


def test_every_field_is_described() -> None:
    described = describe_fields()
    for prefix, section in {**SECTIONS, "learning.": LearningArguments, "card.": CardArguments}.items():
        assert {f"{prefix}{entry.name}" for entry in fields(section)} <= described.keys()
    assert {entry.name for entry in fields(Seq2SeqTrainingArguments)} >= TRAINING.keys()
    assert all(field.text.endswith(".") for field in described.values())
    used = {
        f"{section}.{name}"
        for recipe in available_recipes()
        for section, values in OmegaConf.to_container(OmegaConf.load(recipe_path(recipe))).items()
        if section in ("training", "generation", "model")
        for name in values
    }
    assert used <= described.keys()
    assert GENERATION.keys() >= {"num_beams", "max_length"}


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["recipes", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.stdout if result.exit_code == 0 else result.stderr


@pytest.mark.parametrize("name", available_recipes())
def test_explained_recipe_is_the_recipe(name: str, tmp_path: Path) -> None:
    text = run(name)
    (tmp_path / "explained.yaml").write_text(text, encoding="utf-8")
    files = [f"data.{split}=file" for split in ("train", "validation", "test")] if name != "numbers" else []
    assert load_recipe(tmp_path / "explained.yaml", files) == load_recipe(name, files)
    assert (
        "  # Folder of the run: model, tokenizer, checkpoints, logs and recipe. Required.\n  output_dir: runs/" in text
    )


def test_recipes_are_listed() -> None:
    listed = run()
    assert all(name in listed for name in available_recipes())
    assert "There is no recipe 'nowhere'" in run("nowhere")
    assert not any(summary.endswith("et al.") for _, summary in recipe_summaries())
