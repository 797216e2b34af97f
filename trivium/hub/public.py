"""What of a run may be published: recipes and data names without the paths of this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trivium.data import DataArguments
from trivium.recipe import CardArguments, Recipe, _read_overrides, _yaml_errors


def load_card_arguments(overrides: Sequence[str]) -> CardArguments:
    """Make the `card:` section of a model without a recipe from overrides of the form `card.field=value`.

    Raises:
        ValueError: There is no such field, or it cannot have this value.
    """
    with _yaml_errors():
        given = _read_overrides(overrides).get("card", {})
        card = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CardArguments), given))
    assert isinstance(card, CardArguments)  # what the schema is made of
    return card


def data_name(data: DataArguments, split: str) -> str:
    """What to call a part of the data: by the data set, or by its file, but not by where that lies on this machine."""
    expression = getattr(data, split)
    if data.name is None:
        return without_home(expression)
    return " ".join(name for name in (without_home(data.name), data.config_name, expression) if name)


def public_recipe(recipe: Recipe) -> str:
    """As YAML what is not as it is by default, without the folders of this machine."""
    default, given = (OmegaConf.to_container(OmegaConf.structured(each)) for each in (Recipe, recipe))
    assert isinstance(default, dict)
    assert isinstance(given, dict)
    return OmegaConf.to_yaml(OmegaConf.create({"task": recipe.task, **_difference(given, default)}))


def _difference(given: Mapping[Any, Any], default: Mapping[Any, Any]) -> dict[Any, Any]:
    difference: dict[Any, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            if inside := _difference(value, default.get(name) or {}):
                difference[name] = inside
        elif name not in default or value != default[name]:
            difference[name] = without_home(value) if isinstance(value, str) else value
    return difference


def without_home(path: str) -> str:
    """Of an absolute path the last two parts, which tell data apart: the others are nobody's business."""
    return Path(*Path(path).parts[1:][-2:]).as_posix() if Path(path).is_absolute() else path
