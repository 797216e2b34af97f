"""Property-based test: both searches match transformers' loops for random tiny models and options."""

import random
import re
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from searches import search, search_with_transformers
from tiny import BOS, EOS, NORM_POSITIONS, NORMS, PAD, POSITIONS, shake

from trivium import TriviumConfig, TriviumForCausalLM, TriviumForConditionalGeneration

pytestmark = pytest.mark.filterwarnings("ignore:Unfeasible length constraints:UserWarning")
CASES_PER_MODEL = 10  # Cache models, because building one takes longer than both searches.


@lru_cache(maxsize=1)
def draw_model(seed: int) -> Any:
    """Return a tiny float64 model with peaked next-token distributions."""
    rng = random.Random(f"model {seed}")
    is_encoder_decoder = rng.random() < 0.5
    vocab_size = rng.choice((4, 5, 6, 8, 12, 20, 40))
    config = TriviumConfig(
        vocab_size=vocab_size,
        decoder_vocab_size=rng.choice((None, None, rng.randint(4, 40))) if is_encoder_decoder else None,
        d_model=8,
        ffn_dim=8,
        encoder_layers=int(is_encoder_decoder),
        decoder_layers=rng.choice((1, 1, 2)),
        num_attention_heads=2,
        num_key_value_heads=rng.choice((1, 2)),
        max_position_embeddings=32,
        position_embedding_type=rng.choice(POSITIONS),
        norm_type=rng.choice(NORMS),
        norm_position=rng.choice(NORM_POSITIONS),
        tie_word_embeddings=rng.random() < 0.5,
        attn_implementation=rng.choice(("eager", "sdpa")),
    )
    model_class = TriviumForConditionalGeneration if is_encoder_decoder else TriviumForCausalLM
    torch.manual_seed(seed)
    return shake(model_class(config).double().eval(), std=rng.choice((0.2, 0.5, 1.0)))


def draw_mask(rng: random.Random, rows: int, length: int, side: str) -> torch.Tensor:
    """Return a (rows, length) mask padded on `side`, sometimes with holes or fully masked rows."""
    kind = rng.choices(("padded", "holes", "whole row"), (8, 1, 1))[0]
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in mask:
        if kind == "holes":
            row[:] = torch.tensor([rng.randrange(2) for _ in range(length)])
        elif padding := rng.randrange(length):
            row[slice(-padding, None) if side == "right" else slice(padding)] = 0
    if kind == "whole row":
        mask[rng.randrange(rows)] = 0
    return mask


def draw_inputs(rng: random.Random, model: Any) -> dict[str, torch.Tensor]:
    """Return the inputs of `generate`: prompts, or sources that sometimes come with decoder prompts."""
    rows, length, vocab_size = rng.randint(1, 4), rng.randint(1, 5), model.config.vocab_size
    inputs = {"input_ids": torch.tensor([[rng.randrange(vocab_size) for _ in range(length)] for _ in range(rows)])}
    if rng.random() < 0.75:
        side = "right" if model.config.is_encoder_decoder else "left"
        inputs["attention_mask"] = draw_mask(rng, rows, length, side)
    if model.config.is_encoder_decoder and rng.random() < 0.2:
        length, vocab_size = rng.randint(1, 3), model.config.target_vocab_size
        prompts = torch.tensor([[rng.randrange(vocab_size) for _ in range(length)] for _ in range(rows)])
        inputs["decoder_input_ids"] = torch.cat((torch.full((rows, 1), BOS), prompts), dim=1)
    return inputs


def draw_options(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """Return random arguments of `generate`."""

    def tokens(longest: int) -> list[int]:
        return rng.sample(range(vocab_size), rng.randint(1, min(longest, vocab_size - 1)))

    num_beams = rng.randint(1, 6)
    options: dict[str, Any] = {
        "num_beams": num_beams,
        "max_new_tokens": rng.randint(1, 8),
        "eos_token_id": rng.choices((EOS, None, tokens(3)), (7, 1, 2))[0],
        "pad_token_id": rng.choices((PAD, EOS, None), (8, 1, 1))[0],
    }
    if num_beams > 1:
        options["num_return_sequences"] = rng.randint(1, num_beams)
        options["early_stopping"] = rng.choice((False, True, "never"))
        options["length_penalty"] = rng.choice((1.0, 1.0, 0.0, -1.0, 0.6, 2.0, 8.0, -8.0))
    rare = {
        "no_repeat_ngram_size": rng.randint(1, 3),
        "bad_words_ids": [tokens(2) for _ in range(rng.randint(1, 3))],
        "forced_bos_token_id": rng.randrange(vocab_size),
        "forced_eos_token_id": EOS,
        "suppress_tokens": tokens(vocab_size),
        "min_new_tokens": rng.randint(1, 4),
        "min_length": rng.randint(1, 8),
    }
    return options | {name: value for name, value in rare.items() if rng.random() < 0.2}


def draw_case(seed: int) -> tuple[Any, dict[str, Any]]:
    """Return a model and all arguments of `generate`."""
    rng, model = random.Random(seed), draw_model(seed // CASES_PER_MODEL)
    return model, draw_inputs(rng, model) | draw_options(rng, model.config.target_vocab_size)


def capture(model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Return the prompts, logits processors and generation config that `generate` passes to a search."""
    return input_ids.shape[1], kwargs["logits_processor"], kwargs["generation_config"]


@torch.no_grad()
def score(model: Any, inputs: dict[str, Any], row: int, sequence: torch.Tensor) -> float:
    """Recompute the score of a returned sequence of prompt `row` in float64, without a cache."""
    with patch.multiple(type(model), _sample=capture, _beam_search=capture):
        prompt_length, processors, config = model.generate(**inputs)
    ids, mask = inputs["input_ids"][row : row + 1], inputs.get("attention_mask")
    total, length = 0.0, prompt_length
    for length in range(prompt_length, len(sequence)):
        written, token = sequence[None, :length], sequence[length]
        if model.config.is_encoder_decoder:
            source_mask = None if mask is None else mask[row : row + 1]
            logits = model(input_ids=ids, attention_mask=source_mask, decoder_input_ids=written).logits
        else:
            real = torch.ones_like(ids) if mask is None else mask[row : row + 1]
            real = torch.cat((real, torch.ones_like(written[:, ids.shape[1] :])), dim=1)
            logits = model(input_ids=written, attention_mask=real).logits
        total += processors(written, logits[:, -1].log_softmax(dim=-1))[0, token].item()
        if config._eos_token_tensor is not None and torch.isin(token, config._eos_token_tensor):
            break
    return total / (length + 1 - prompt_length) ** (config.length_penalty or 0.0)


def are_ties(model: Any, inputs: dict[str, Any], found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return True if sequences that differ have equal scores."""
    if len(found) != len(expected):
        return False
    returned = len(found) // len(inputs["input_ids"])
    for i, (sequence_a, sequence_b) in enumerate(zip(found, expected, strict=True)):
        if sequence_a.tolist() != sequence_b.tolist():
            scores = [score(model, inputs, i // returned, sequence) for sequence in (sequence_a, sequence_b)]
            if scores[0] != pytest.approx(scores[1], rel=1e-6, abs=1e-6):
                return False
    return True


def check_cases(seeds: range) -> None:
    """Compare both searches, and check that most cases use Trivium's searches."""
    found_by_search = ties = 0
    for seed in seeds:
        model, inputs = draw_case(seed)
        try:
            expected = search_with_transformers(model, **inputs)
        except (IndexError, RuntimeError, ValueError) as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                model.generate(**inputs)
            continue
        found, search_count = search(model, **inputs)
        found_by_search += search_count
        if not torch.equal(found, expected):
            ties += 1
            assert are_ties(model, inputs, found, expected), f"seed {seed}: {inputs}\n{found}\n{expected}"
    print(f"{len(seeds)} cases, {found_by_search} of them found by our searches, {ties} with ties")
    assert found_by_search > 0.6 * len(seeds)
    assert ties < 0.02 * len(seeds)


def test_searches_match_transformers() -> None:
    check_cases(range(60))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(60, 5260, 520))
def test_searches_match_transformers_in_many_cases(start: int) -> None:
    check_cases(range(start, start + 520))
