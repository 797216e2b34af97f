"""Test that a recipe changes the initial weights of a model."""

from pathlib import Path

import pytest
import torch
from small_recipes import small_recipe
from tiny import random_ids

from trivium.recipe import load_recipe
from trivium.training.train import Start, build_trainer, check_arguments


def test_zero_output_projections_start_without_effect(tmp_path: Path) -> None:
    more = ["model.norm_position=pre", "learning.zero_output_projections=true", "training.use_cpu=true"]
    recipe = load_recipe("numbers", small_recipe(tmp_path / "run", *more))
    model = build_trainer(recipe, check_arguments(recipe), Start(tmp_path / "run", None, [])).model.eval()
    zeros = {name for name, weight in model.named_parameters() if weight.ndim == 2 and not weight.any()}
    projections = ("o_proj.weight", "down_proj.weight")
    assert zeros == {name for name, _ in model.named_parameters() if name.endswith(projections)} != set()
    ids = random_ids(2, 5)
    encoder = model.model.encoder
    embedded = encoder.embed_positions(encoder.embed_tokens(ids), torch.arange(5)[None])[0]
    torch.testing.assert_close(encoder(ids).last_hidden_state, encoder.norm(embedded))


def test_zero_output_projections_of_a_trained_model_are_refused() -> None:
    overrides = ["learning.zero_output_projections=true", "init_from=model", "model.preset=null"]
    with pytest.raises(ValueError, match=r"learning\.zero_output_projections is True.*init_from='model'"):
        load_recipe("numbers", overrides)
