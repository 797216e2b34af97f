"""Test learning rates that fall from the head to the embeddings."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from small_recipes import small_recipe
from tiny import tiny_model

from trivium import TriviumForConditionalGeneration, TriviumForSequenceClassification
from trivium.recipe import load_recipe
from trivium.training.layerwise import LayerwiseFactory
from trivium.training.train import Start, build_trainer, check_arguments
from trivium.training.trainer import RunTrainer


@pytest.mark.parametrize(
    ("model_class", "options", "expected"),
    [
        (
            TriviumForSequenceClassification,
            {"encoder_layers": 2, "decoder_layers": 0, "norm_position": "pre", "normalize_embedding": True},
            {"classifier": 1, "norm.": 1, "layers.1": 0.5, "layers.0": 0.25, "embed": 0.125},
        ),
        (
            TriviumForConditionalGeneration,
            {"encoder_layers": 1, "decoder_layers": 3, "tie_word_embeddings": False},
            {"lm_head": 1, "encoder.layers.0": 0.5, "encoder.embed": 0.25, "decoder.layers.2": 0.5}
            | {"decoder.layers.1": 0.25, "decoder.layers.0": 0.125, "decoder.embed": 0.0625},
        ),
    ],
)
def test_rate_falls_from_head_to_embeddings(
    model_class: Any, options: dict[str, Any], expected: dict[str, float]
) -> None:
    model = tiny_model(model_class, **options)
    optimizer = LayerwiseFactory()(model, torch.optim.AdamW, 0.5, lr=0.1, weight_decay=0.3, betas=(0.8, 0.9))
    found = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    decayed = RunTrainer.get_decay_parameter_names(Mock(), model)
    assert optimizer.param_groups[0]["lr"] == 0.1
    for name, weight in model.named_parameters():
        factor = next(value for part, value in reversed(expected.items()) if part in name)
        assert found[id(weight)]["lr"] == pytest.approx(0.1 * factor), name
        assert found[id(weight)]["weight_decay"] == (0.3 if name in decayed else 0), name
        assert found[id(weight)]["betas"] == (0.8, 0.9)


@pytest.mark.trains
def test_recipe_sets_the_rates(tmp_path: Path) -> None:
    more = ["learning.layer_decay=0.5", "training.use_cpu=true", "training.weight_decay=0.1"]
    recipe = load_recipe("numbers", small_recipe(tmp_path / "run", *more))
    trainer = build_trainer(recipe, check_arguments(recipe), Start(tmp_path / "run", None, []))
    optimizer = trainer.create_optimizer()
    layers = recipe.model_config().encoder_layers
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {trainer.args.learning_rate * 0.5**depth for depth in range(1, layers + 2)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learning.layer_decay=0"], r"layer_decay is 0.*greater than 0 and at most 1"),
        (["learning.layer_decay=1.5"], r"layer_decay is 1\.5.*greater than 0 and at most 1"),
        (
            ["learning.layer_decay=0.9", "learning.muon_learning_rate=0.1"],
            r"layer_decay is 0\.9.*muon_learning_rate=0\.1",
        ),
    ],
)
def test_layer_decay_is_checked(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("numbers", overrides)
