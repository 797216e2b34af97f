"""Recipes, batch samplers and random lengths for tests of token-budget batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trivium.data.token_batches import TokenBatchSampler
from trivium.recipe import Recipe, load_recipe

BY_TOKENS = [
    "training.per_device_train_batch_size=null",
    "training.train_sampling_strategy=null",
    "model.d_model=32",
    "model.ffn_dim=64",
    "data.max_train_samples=200",
    "data.max_validation_samples=20",
    "training.eval_strategy='no'",
    "training.save_steps=3",
    "training.max_steps=6",
    "training.logging_steps=1",
    "training.warmup_steps=1",
    "training.disable_tqdm=true",
]


def sampler(pairs: Sequence[tuple[int, int]], max_tokens: int, **options: Any) -> TokenBatchSampler:
    return TokenBatchSampler(list(np.array(pairs).T), max_tokens, **options)


def random_pairs(count: int) -> list[tuple[int, int]]:
    source = torch.randint(3, 30, (count,))
    target = (source + torch.randint(-2, 6, (count,))).clamp(1, 30)
    return list(zip(source.tolist(), target.tolist(), strict=True))


def recipe_for(folder: Path, *overrides: str, max_tokens: int = 400) -> Recipe:
    settings = [*BY_TOKENS, f"training.output_dir={folder}", f"inputs.max_tokens={max_tokens}", *overrides]
    return load_recipe("numbers", settings)
