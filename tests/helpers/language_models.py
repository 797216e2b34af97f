"""Tiny language models, and random token batches for them."""

from typing import Any

import torch
from tiny import mask_of, random_ids, tiny_model

from trivium import TriviumForCausalLM

Tensors = dict[str, torch.Tensor]


def language_model(std: float = 0.1, **overrides: Any) -> TriviumForCausalLM:
    return tiny_model(TriviumForCausalLM, std, encoder_layers=0, **overrides)


def texts(lengths: list[int], side: str = "right") -> Tensors:
    """Return rows of random tokens, padded on one side; padding positions contain random tokens as well."""
    mask = mask_of(lengths, side)
    return {"input_ids": random_ids(*mask.shape), "attention_mask": mask}
