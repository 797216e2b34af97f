"""Load and compare the weights of saved models."""

from pathlib import Path

import torch

from trivium.interop.checkpoint import Checkpoint

Weights = dict[str, torch.Tensor]


def saved(folder: Path) -> Weights:
    with Checkpoint(folder) as weights:
        return {name: weights[name].clone() for name in weights}


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype, name
        assert torch.equal(found[name], weight), name
