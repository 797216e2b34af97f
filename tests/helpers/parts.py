"""Build pairs of an encoder and a decoder to join."""

from typing import Any

import torch
from tiny import tiny_model

from trivium import (
    TriviumEncoderModel,
    TriviumForCausalLM,
)
from trivium.surgery import Weights


def assert_same_weights(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def halves(encoder: dict[str, Any] | None = None, decoder: dict[str, Any] | None = None) -> Any:
    """Return an encoder and a decoder with independent weights."""
    return (
        tiny_model(TriviumEncoderModel, decoder_layers=0, **(encoder or {})),
        tiny_model(TriviumForCausalLM, encoder_layers=0, **(decoder or {})),
    )
