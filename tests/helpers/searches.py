"""Run `generate()` with Trivium's searches, or with transformers' loops."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from transformers import GenerationMixin

from trivium.modeling import generation


def search(model: Any, **inputs: Any) -> tuple[torch.Tensor, int]:
    """Return the output of `generate()`, and how many of Trivium's searches ran (0 after a fallback, else 1)."""
    found = 0

    def count(search: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            nonlocal found
            sequences = search(*args)
            found += sequences is not None
            return sequences

        return counted

    searches = {name: count(getattr(generation, name)) for name in ("greedy_search", "beam_search")}
    with patch.multiple(generation, **searches):
        return model.generate(**inputs), found


def search_with_transformers(model: Any, **inputs: Any) -> torch.Tensor:
    """Return the output of `generate()` with transformers' mixin instead of Trivium's override."""
    overridden = ("_sample", "_beam_search", "_prepare_cache_for_generation")
    with patch.multiple(type(model), **{name: getattr(GenerationMixin, name) for name in overridden}):
        return model.generate(**inputs)
