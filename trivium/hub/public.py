"""Recipes and data names without local paths, for publication."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trivium.data.arguments import DataArguments, sources_of
from trivium.recipe import Recipe, _read_overrides, _yaml_errors
from trivium.recipe_sections import CardArguments


def load_card_arguments(overrides: Sequence[str]) -> CardArguments:
    """Build the `card:` section of a model without a recipe from overrides of the form `card.field=value`.

    Raises:
        ValueError: A field is unknown, or its value is invalid.
    """
    with _yaml_errors():
        section = _read_overrides(overrides).get("card", {})
        card = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CardArguments), section))
    assert isinstance(card, CardArguments)  # to_object returns an instance of the schema's class
    return card


def data_name(data: DataArguments, split: str) -> str:
    """Return the dataset or file names of a data split, without local paths; a mixture has several names."""
    if split == "train" and data.mix is not None:
        return ", ".join(data_name(source, split) for source in sources_of(data))
    expression = getattr(data, split)
    if data.name is None:
        return without_home(expression)
    return " ".join(name for name in (without_home(data.name), data.config_name, expression) if name)


def public_recipe(recipe: Recipe) -> str:
    """Return the fields of a recipe that differ from the defaults as YAML, without local paths."""
    default, values = (OmegaConf.to_container(OmegaConf.structured(schema)) for schema in (Recipe, recipe))
    assert isinstance(default, dict)
    assert isinstance(values, dict)
    return OmegaConf.to_yaml(OmegaConf.create({"task": recipe.task, **_difference(values, default)}))


def _difference(values: Mapping[Any, Any], default: Mapping[Any, Any]) -> dict[Any, Any]:
    difference: dict[Any, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            if nested := _difference(value, default.get(name) or {}):
                difference[name] = nested
        elif name not in default or value != default[name]:
            difference[name] = _without_homes(value)
    return difference


def _without_homes(value: Any) -> Any:
    """Apply `without_home` to a string or to the strings in a list; drop null fields of mappings in a list."""
    if isinstance(value, dict):
        return {name: _without_homes(entry) for name, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_without_homes(entry) for entry in value]
    return without_home(value) if isinstance(value, str) else value


def without_home(path: str) -> str:
    """Return the last two parts of an absolute path, which identify the data; return other paths unchanged."""
    return Path(*Path(path).parts[1:][-2:]).as_posix() if Path(path).is_absolute() else path
