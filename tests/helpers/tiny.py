"""Tiny models shared by the tests. All sizes differ, so that swapped dimensions raise an error."""

from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

from trivium import TriviumConfig, TriviumForConditionalGeneration

Model = TypeVar("Model", bound=nn.Module)
Tensors = dict[str, torch.Tensor]

PAD, BOS, EOS = 0, 1, 2
POSITIONS = ("sinusoidal", "learned", "rotary")
NORM_POSITIONS = ("post", "pre")
NORMS = ("layernorm", "rmsnorm")
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}  # Tolerance between two implementations, in float64.
# Tolerance within one implementation in float64: rounding may depend on the memory layout of a product.
SAME_WEIGHTS: dict[str, Any] = {"rtol": 0, "atol": 1e-13}

# All combinations of options that change the computation: positions, norms, norm position, and the number of key-value
# heads, for MHA (4), GQA (2) and MQA (1).
VARIANTS = [
    {
        "position_embedding_type": position,
        "norm_type": norm,
        "norm_position": norm_position,
        "num_key_value_heads": key_value_heads,
    }
    for position in POSITIONS
    for norm in NORMS
    for norm_position in NORM_POSITIONS
    for key_value_heads in (4, 2, 1)
]
# Nine variants that cover all pairs of option values; `make test-slow` runs all variants.
PAIRWISE = [
    ("sinusoidal", "layernorm", "post", 4),
    ("sinusoidal", "rmsnorm", "post", 2),
    ("sinusoidal", "layernorm", "pre", 1),
    ("learned", "rmsnorm", "post", 4),
    ("learned", "layernorm", "pre", 2),
    ("learned", "rmsnorm", "pre", 1),
    ("rotary", "layernorm", "pre", 4),
    ("rotary", "rmsnorm", "pre", 2),
    ("rotary", "layernorm", "post", 1),
]


def all_variants(test: Any) -> Any:
    """Parametrize `test` over VARIANTS as `variant`: nine by default, the others marked slow."""
    params = [
        pytest.param(
            variant,
            id="-".join(map(str, variant.values())),
            marks=() if tuple(variant.values()) in PAIRWISE else pytest.mark.slow,
        )
        for variant in VARIANTS
    ]
    return pytest.mark.parametrize("variant", params)(test)


def tiny_config(**overrides: Any) -> TriviumConfig:
    """Return a configuration with pairwise different sizes, and without dropout unless requested."""
    defaults = {
        "vocab_size": 31,
        "d_model": 24,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "attn_implementation": "eager",
    }
    return TriviumConfig(**{**defaults, **overrides})


@torch.no_grad()
def shake(model: Model, std: float = 0.1) -> Model:
    """Add noise to every parameter, since initial ones and zeros would hide a norm or bias that is not applied."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * std)
    return model


def tiny_model(
    model_class: type[Model] = TriviumForConditionalGeneration, std: float = 0.1, **overrides: Any
) -> Model:
    """Return a float64 model in evaluation mode, with noise added to all parameters."""
    return shake(model_class(tiny_config(**overrides)).double().eval(), std)


def random_ids(*shape: int, vocab_size: int = 31) -> torch.Tensor:
    """Return random token ids, excluding padding, BOS and EOS."""
    return torch.randint(EOS + 1, vocab_size, shape)


def mask_of(lengths: list[int], side: str = "right") -> torch.Tensor:
    """Return the (batch, max length) mask of rows of `lengths` real tokens, padded on `side`."""
    longest = max(lengths)
    rows = [[1] * n + [0] * (longest - n) for n in lengths]
    return torch.tensor([row if side == "right" else row[::-1] for row in rows])


def copy_weights(model: nn.Module, weights: Tensors) -> None:
    """Load `weights`, which must be complete and contain each tied weight once."""
    assert set(weights) == {name for name, _ in model.named_parameters()}
    model.load_state_dict(weights, strict=False)


def assert_same_gradients(model: nn.Module, expected: Tensors) -> None:
    """Assert that the gradients of all parameters of `model` match."""
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected[name], **EXACT, msg=partial("{}: {}".format, name))


def copying_batch(sentences: int = 16, longest: int = 8, vocab_size: int = 31) -> dict[str, torch.Tensor]:
    """Return random sentences of random length, without repeated tokens, as source and target."""
    mask = mask_of([longest, *torch.randint(2, longest + 1, (sentences - 1,)).tolist()])
    shuffled = torch.rand(sentences, vocab_size - EOS - 1).argsort(dim=1) + EOS + 1
    ids = shuffled[:, :longest].where(mask.bool(), PAD)
    labels = torch.cat((ids, torch.full((sentences, 1), PAD)), dim=1)
    labels[torch.arange(sentences), mask.sum(dim=1)] = EOS
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(labels == PAD, -100)}


def train_to_copy(model: Model, steps: int, learning_rate: float = 3e-3, **batch_shape: int) -> Model:
    """Train on the copy task with warmup and the paper's Adam settings; return the model in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), 2 * (1 - step / steps), 1)
    )
    model.train()
    for _ in range(steps):
        model(**copying_batch(**batch_shape)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()
