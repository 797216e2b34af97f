"""Fuzz recipes and overrides: each raises a ValueError, or loads and is unchanged after saving and reloading."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from trivium.recipe import available_recipes, load_recipe

pytestmark = pytest.mark.slow
SECRET = "hf_the_value_of_a_secret"
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3.5,
        float("nan"),
        float("inf"),
        10**30,
        "",
        " ",
        "no",
        "text",
        "\0",
        "\ud800x",
        "🙂",
    ),
    *([], [[]], ["a", 1], {}, {"a": {"b": 1}}, "1e-3", "!!python/object:os.system", "../../etc/passwd", "x" * 10_000),
]
INTERPOLATIONS = [
    *(
        "${oc.env:TRIVIUM_SECRET}",
        "a ${oc.env:TRIVIUM_SECRET} b",
        "${training.output_dir}",
        "${oc.decode:${oc.env:X}}",
    ),
    *("${oc.env:TRIVIUM_SECRET,fallback}", "${.output_dir}", "${oc.create:[1]}", "${", "$${oc.env:TRIVIUM_SECRET}"),
]


def mutate(tree: Any, rng: random.Random) -> Any:
    """Replace, remove, rename or add one random node of nested dictionaries and lists."""
    if isinstance(tree, dict) and tree and rng.random() < 0.8:
        key = rng.choice(list(tree))
        kind = rng.random()
        if kind < 0.2:
            return {**tree, rng.choice(["unknown", "", "a.b", "trian", INTERPOLATIONS[0], 7]): rng.choice(VALUES)}
        if kind < 0.3:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: mutate(tree[key], rng)}
    return rng.choice([*VALUES, *INTERPOLATIONS])


def test_mutated_recipes(cases: int, rng: random.Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_SECRET", SECRET)
    folder = Path(load_recipe.__code__.co_filename).parent.parent / "recipes"
    trees = [yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in available_recipes()]
    loaded = 0
    for case in range(cases):
        tree = rng.choice(trees)
        for _ in range(rng.randint(1, 3)):
            tree = mutate(tree, rng)
        path = tmp_path / f"{case}.yaml"
        path.write_bytes(yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass"))
        try:
            recipe = load_recipe(path)
        except ValueError as error:
            assert SECRET not in str(error)
            continue
        loaded += 1
        assert SECRET not in repr(recipe)
        recipe.save(tmp_path)
        assert SECRET not in (tmp_path / "recipe.yaml").read_text()
        assert repr(load_recipe(tmp_path)) == repr(recipe)
    assert loaded < cases


def test_mutated_overrides(cases: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_SECRET", SECRET)
    names = ["training.learning_rate", "model.d_model", "data.train", "metrics", "card.title", "", "training", "a.b.c"]
    for _ in range(cases):
        name, value = (
            rng.choice(names),
            rng.choice([*map(str, VALUES), *INTERPOLATIONS, "[", "{a", "a: b: c", "*x", "&x"]),
        )
        try:
            recipe = load_recipe("numbers", [f"{name}={value}"])
        except ValueError as error:
            assert SECRET not in str(error)
            continue
        assert SECRET not in repr(recipe)


def test_random_bytes_as_recipe(cases: int, rng: random.Random, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    original = (Path(load_recipe.__code__.co_filename).parent.parent / "recipes" / "numbers.yaml").read_bytes()
    for _ in range(cases):
        content = bytearray(original)
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(len(content))
            content[place : place + rng.randint(0, 3)] = os.urandom(0) + rng.randbytes(rng.randint(0, 4))
        path.write_bytes(content)
        try:
            load_recipe(path)
        except ValueError:
            continue
