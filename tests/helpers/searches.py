"""Run `generate()` with Trivium's searches or with transformers' loops, and compare outputs."""

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


def assert_same_scores(actual: Any, expected: Any, **tolerance: float) -> None:
    """Compare the scores of every step and, after beam search, of the sequences."""
    for step, expected_step in zip(actual.scores, expected.scores, strict=True):
        torch.testing.assert_close(step, expected_step, **tolerance)
    if "sequences_scores" in expected:
        torch.testing.assert_close(actual.sequences_scores, expected.sequences_scores, **tolerance)


def assert_row_matches(together: Any, row: int, alone: Any, length: int) -> None:
    """Compare the last `length` tokens of a row with those of the same row alone, and their logits or score."""
    assert together.sequences[row, -length:].tolist() == alone.sequences[0, -length:].tolist()
    if "sequences_scores" in alone:
        torch.testing.assert_close(together.sequences_scores[row], alone.sequences_scores[0])
    else:  # Compare logits too: the argmax seldom changes if positions are shifted.
        for step, expected in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(step[row], expected[0])
