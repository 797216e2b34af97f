"""Compare sliding-window attention with full attention under an explicit mask: caches, generation and packed texts."""

from typing import Any

import pytest
import torch
from tiny import EXACT, copying_batch, mask_of, random_ids, tiny_model
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache, StaticCache

from trivium import TriviumEncoderModel, TriviumForCausalLM, TriviumForConditionalGeneration, TriviumModel
from trivium.modeling.attention import eager_attention_forward
from trivium.modeling.incremental_decoder import IncrementalDecoder
from trivium.modeling.positions import token_positions

WINDOW, LENGTH = 4, 11
DECODER_ONLY = {"encoder_layers": 0, "position_embedding_type": "rotary", "num_key_value_heads": 2}
functions = pytest.mark.parametrize("attention", ["eager", "sdpa"])
sides = pytest.mark.parametrize("side", [None, "left", "right"])


def local_mask(length: int, causal: bool, window: int = WINDOW) -> torch.Tensor:
    """Return the boolean mask (queries, keys) of a sliding window.

    A causal query sees the last `window` tokens, itself included; a bidirectional query sees itself and `window`
    tokens on either side.
    """
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window) if causal else distance.abs() <= window


def explicit(padding: torch.Tensor, causal: bool) -> dict[str, torch.Tensor]:
    """Return the inputs that emulate a window in a model with full attention: a 4D mask, and the default positions."""
    visible = local_mask(padding.shape[1], causal) & padding[:, None, None].bool()  # (batch, 1, length, length)
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float64).min)
    return {"attention_mask": mask, "position_ids": token_positions(padding, padding.shape[1], 0, padding.device)}


def with_and_without_window(model_class: Any, **overrides: Any) -> tuple[Any, Any]:
    model = tiny_model(model_class, 0.3, sliding_window=WINDOW, **overrides)
    full = tiny_model(model_class, **{**overrides, "attn_implementation": "eager"})
    full.load_state_dict(model.state_dict())
    return model, full


@functions
@sides
def test_stacks_match_explicit_masks(attention: str, side: str | None) -> None:
    """Compare both stacks; the source is longer than the window, which must not limit cross-attention."""
    model, full = with_and_without_window(TriviumModel, attn_implementation=attention)
    padding = mask_of([LENGTH, 7], side) if side else torch.ones(2, LENGTH, dtype=torch.long)
    ids = random_ids(2, LENGTH)
    source = model.encoder(input_ids=ids, attention_mask=padding).last_hidden_state
    expected = full.encoder(input_ids=ids, **explicit(padding, causal=False)).last_hidden_state
    torch.testing.assert_close(source[padding == 1], expected[padding == 1], **EXACT)

    memory = {"encoder_hidden_states": expected, "encoder_attention_mask": padding}
    states = model.decoder(input_ids=ids, attention_mask=padding, **memory).last_hidden_state
    expected = full.decoder(input_ids=ids, **explicit(padding, causal=True), **memory).last_hidden_state
    torch.testing.assert_close(states[padding == 1], expected[padding == 1], **EXACT)


@pytest.mark.slow(reason="flex attention compiles a kernel for every mask: more than a minute on a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile calls deprecated torch functions
@torch.no_grad()
def test_flex_matches_eager() -> None:
    """Compare the forward pass in float32: on a CPU, flex attention has neither a backward pass nor float64."""
    model = tiny_model(TriviumModel, sliding_window=WINDOW).float()
    padding = mask_of([LENGTH, 7], "left")
    inputs = {"input_ids": random_ids(2, LENGTH), "decoder_input_ids": random_ids(2, 9), "attention_mask": padding}
    expected = model(**inputs).last_hidden_state
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [2, 5, LENGTH + 1])
def test_weights_are_renormalized_within_the_window(causal: bool, window: int) -> None:
    """Compare the first layer's attention weights with those of full attention, masked and renormalized."""
    model_class, shape = (TriviumForCausalLM, DECODER_ONLY) if causal else (TriviumEncoderModel, {"decoder_layers": 0})
    model = tiny_model(model_class, 0.3, sliding_window=window, **shape)
    full = tiny_model(model_class, **shape)
    full.load_state_dict(model.state_dict())
    ids = random_ids(2, LENGTH)
    weights, unlimited = (each(input_ids=ids, output_attentions=True).attentions[0] for each in (model, full))
    visible = unlimited * local_mask(LENGTH, causal, window)
    torch.testing.assert_close(weights, visible / visible.sum(dim=-1, keepdim=True), **EXACT)


def test_attention_functions_receive_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sliding_window` counts the visible tokens on one side, including the token itself, as in flash attention."""
    received = set[tuple[bool, int | None]]()

    def record(module: Any, *args: Any, sliding_window: int | None, **kwargs: Any) -> Any:
        received.add((module.is_causal, sliding_window))
        return eager_attention_forward(module, *args, **kwargs)

    monkeypatch.setattr("trivium.modeling.attention.eager_attention_forward", record)
    tiny_model(TriviumModel, sliding_window=WINDOW)(input_ids=random_ids(2, 6), decoder_input_ids=random_ids(2, 6))
    assert received == {(False, WINDOW + 1), (True, WINDOW), (False, None)}


# --- Caches ----------------------------------------------------------------------------------------------------------


def caches(config: Any, length: int, source_length: int | None) -> dict[str, Cache | None]:
    """Return caches of every kind that a user can pass, by name; set `source_length` for an encoder-decoder."""
    made = {"sliding": DynamicCache(config=config), "full": DynamicCache(), "static": StaticCache(config, length)}
    if source_length is None:
        return {"default": None, **made}
    cross = {"sliding": DynamicCache(config=config), "full": DynamicCache()}
    cross["static"] = StaticCache(config, source_length)
    return {"default": None, **{name: EncoderDecoderCache(made[name], cross[name]) for name in made}}


@functions
@pytest.mark.parametrize("side", [None, "left"])
def test_cached_chunks_match_one_pass(attention: str, side: str | None) -> None:
    model = tiny_model(TriviumForCausalLM, 0.3, sliding_window=WINDOW, attn_implementation=attention, **DECODER_ONLY)
    ids, padding = random_ids(2, LENGTH), mask_of([LENGTH, 7], side) if side else torch.ones(2, LENGTH)
    expected = model(input_ids=ids, attention_mask=padding).logits
    for sizes in ([1] * LENGTH, [5, 1, 3, 2], [2, 9]):
        for name, cache in caches(model.config, LENGTH, None).items():
            logits, end = [], 0
            for size in sizes:
                start, end = end, end + size
                inputs = {"input_ids": ids[:, start:end], "attention_mask": padding[:, :end]}
                outputs = model(**inputs, cache=cache, use_cache=True)
                cache = outputs.cache
                logits.append(outputs.logits)
            actual = torch.cat(logits, dim=1)
            message = f"{name} cache, chunks of {sizes}"
            torch.testing.assert_close(actual[padding == 1], expected[padding == 1], **EXACT, msg=message)
            if name in ("default", "sliding"):
                assert cache.layers[0].keys.shape[2] == WINDOW - 1  # the next token completes the window


def test_cached_encoder_decoder_matches_one_pass() -> None:
    """Cross-attention must see the whole source, even if its cache was created from a configuration with a window."""
    model = tiny_model(std=0.3, sliding_window=WINDOW)
    source, target = {"input_ids": random_ids(2, 9), "attention_mask": mask_of([9, 6])}, random_ids(2, LENGTH)
    expected = model(**source, decoder_input_ids=target).logits
    for name, cache in caches(model.config, LENGTH, 9).items():
        logits = []
        for step in range(LENGTH):
            outputs = model(**source, decoder_input_ids=target[:, step : step + 1], cache=cache, use_cache=True)
            cache = outputs.cache
            logits.append(outputs.logits)
        torch.testing.assert_close(torch.cat(logits, dim=1), expected, **EXACT, msg=f"{name} cache")


def test_packed_texts_match_separate_ones() -> None:
    model = tiny_model(TriviumForCausalLM, 0.3, sliding_window=WINDOW, **DECODER_ONLY)
    texts = [random_ids(1, length) for length in (7, 3, 6)]
    positions = torch.cat([torch.arange(text.shape[1]) for text in texts])[None]
    packed = model(input_ids=torch.cat(texts, dim=1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed, torch.cat([model(input_ids=text).logits for text in texts], dim=1), **EXACT)


@functions
def test_loss_without_padding_matches(attention: str) -> None:
    """The loss skips padding tokens, but attention pads the states again: the window depends on positions."""
    model = tiny_model(std=0.3, sliding_window=2, attn_implementation=attention)
    data = copying_batch(sentences=5)
    torch.testing.assert_close(model(**data, skip_logits=True).loss, model(**data).loss, **EXACT)


# --- Generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [None, "left"])
def test_incremental_decoder_matches_one_pass(side: str | None) -> None:
    model = tiny_model(TriviumForCausalLM, 0.3, sliding_window=WINDOW, **DECODER_ONLY)
    ids, padding = random_ids(2, LENGTH), mask_of([LENGTH, 9], side) if side else torch.ones(2, LENGTH)
    expected = model(input_ids=ids, attention_mask=padding).logits.float()
    decoder = IncrementalDecoder(model, ids[:, :6], attention_mask=padding[:, :6])
    torch.testing.assert_close(decoder.prefill(), expected[:, 5])
    for step in range(6, LENGTH):
        torch.testing.assert_close(decoder.step(ids[:, step]), expected[:, step])


def test_incremental_encoder_decoder_matches_one_pass() -> None:
    model = tiny_model(std=0.3, sliding_window=WINDOW)
    source, target, mask = random_ids(2, 9), random_ids(2, LENGTH), mask_of([9, 6])
    expected = model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits.float()
    memory = model.get_encoder()(input_ids=source, attention_mask=mask)
    decoder = IncrementalDecoder(model, target[:, :2], attention_mask=mask, encoder_outputs=memory)
    torch.testing.assert_close(decoder.prefill(), expected[:, 1])
    for step in range(2, LENGTH):
        torch.testing.assert_close(decoder.step(target[:, step]), expected[:, step])


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("way", ["decoder-only", "encoder-decoder"])
def test_generation_matches_transformers(way: str, num_beams: int) -> None:
    """Compare Trivium's searches with transformers' loops, with and without a cache, far beyond the window."""
    vocabulary = {"decoder_vocab_size": 37} if way == "encoder-decoder" else DECODER_ONLY
    model_class = TriviumForConditionalGeneration if way == "encoder-decoder" else TriviumForCausalLM
    model: Any = tiny_model(model_class, 0.3, sliding_window=WINDOW, attn_implementation="sdpa", **vocabulary)
    inputs = {"input_ids": random_ids(3, 9), "attention_mask": mask_of([9, 6, 3], "left")}
    length = {"num_beams": num_beams, "max_new_tokens": 12, "min_new_tokens": 12, "no_repeat_ngram_size": 1}
    expected = model.generate(**inputs, **length, use_cache=False)
    other_caches: list[dict[str, Any]] = [{"cache_implementation": "static", "disable_compile": True}]
    if way == "decoder-only" and num_beams == 1:
        other_caches += [{"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 2}]
    for options in ({}, {"return_dict_in_generate": True}, *other_caches):
        batch = (
            {name: tensor[:1] for name, tensor in inputs.items()} if "prompt_lookup_num_tokens" in options else inputs
        )
        result = model.generate(**batch, **length, **options)
        sequences = result.sequences if "return_dict_in_generate" in options else result
        assert sequences.tolist() == expected[: len(sequences)].tolist(), options
