"""Test that a recipe changes the initial weights of a model."""

from pathlib import Path

import pytest
import torch
from small_recipes import small_recipe
from tiny import random_ids, tiny_model

from trivium import TriviumModel
from trivium.recipe import load_recipe
from trivium.training.initial_weights import reinitialize_layers
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


def test_last_layers_of_each_stack_start_anew() -> None:
    model = tiny_model(TriviumModel, encoder_layers=3, decoder_layers=2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    reinitialize_layers(model, 1)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    last_layers = ("encoder.layers.2.", "decoder.layers.1.")
    assert changed == {name for name in before if name.startswith(last_layers)} != set()
    with pytest.raises(ValueError, match=r"reinitialized_layers is 3.*at most 2.*decoder"):
        reinitialize_layers(model, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learning.reinitialized_layers=-1"], r"reinitialized_layers is -1.*at least 0"),
        (["learning.reinitialized_layers=1"], r"reinitialized_layers is 1.*Set init_from"),
    ],
)
def test_reinitialized_layers_are_checked(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("numbers", overrides)
