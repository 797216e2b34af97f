"""Test the generation strategies of transformers on Trivium models."""

import inspect
import itertools
import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from searches import assert_row_matches
from tiny import (
    BOS,
    EOS,
    EXACT,
    PAD,
    POSITIONS,
    all_variants,
    copying_batch,
    mask_of,
    random_ids,
    tiny_config,
    tiny_model,
    train_to_copy,
)
from transformers import TextIteratorStreamer

from trivium import TriviumDecoderModel, TriviumForCausalLM, TriviumForConditionalGeneration, TriviumModel

Tensors = dict[str, torch.Tensor]
VOCABULARY, LONGEST = 16, 5


def copier(steps: int, learning_rate: float = 1e-2, **overrides: Any) -> TriviumForConditionalGeneration:
    """Return a small model trained for `steps` steps on the copy task."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "d_model": 32, "ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 1}
    model = TriviumForConditionalGeneration(tiny_config(**{**shape, "label_smoothing": 0.0, **overrides}))
    return train_to_copy(model, steps, learning_rate, sentences=32, longest=LONGEST, vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def half_trained() -> TriviumForConditionalGeneration:
    """Return a partly trained model, whose errors make strategies differ and sentences end at different lengths."""
    return copier(steps=80, decoder_layers=2, num_key_value_heads=2)


@pytest.fixture(scope="module")
def assistant() -> TriviumForConditionalGeneration:
    """Return a partly trained assistant model with other sizes."""
    return copier(steps=40, d_model=16)


def sources(sentences: int = 12) -> Tensors:
    data = copying_batch(sentences, LONGEST, VOCABULARY)
    return {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"], "max_new_tokens": LONGEST + 3}


def one_source() -> Tensors:
    return {"input_ids": random_ids(1, LONGEST, vocab_size=VOCABULARY), "max_new_tokens": LONGEST + 3}


@torch.no_grad()
def greedy_by_hand(model: TriviumForConditionalGeneration, inputs: Tensors) -> torch.Tensor:
    """Decode greedily with a full forward pass per token and no cache; pad after EOS."""
    target = torch.full((len(inputs["input_ids"]), 1), BOS)
    ended = torch.zeros(len(target)).bool()
    for _ in range(inputs["max_new_tokens"]):
        logits = model(inputs["input_ids"], inputs.get("attention_mask"), target, use_cache=False).logits
        best = logits[:, -1].argmax(dim=-1).masked_fill(ended, PAD)
        target = torch.cat((target, best[:, None]), dim=1)
        ended |= best == EOS
        if ended.all():
            break
    return target


# --- Learning to copy: encoder, decoder and cross-attention work together ---


@pytest.mark.parametrize("norm_position", ["post", pytest.param("pre", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "position", ["sinusoidal", *(pytest.param(position, marks=pytest.mark.slow) for position in ("learned", "rotary"))]
)
def test_trained_model_copies_unseen_sentences(position: str, norm_position: str) -> None:
    """Copy unseen sentences; a model that guesses would get almost none right."""
    model = copier(steps=300, position_embedding_type=position, norm_position=norm_position)
    data = copying_batch(100, LONGEST, VOCABULARY)
    output = model.generate(data["input_ids"], attention_mask=data["attention_mask"], max_length=LONGEST + 2)
    expected = data["labels"].clamp(min=PAD)
    output = torch.nn.functional.pad(output[:, 1:], (0, LONGEST + 2 - output.shape[1]))
    right = (output == expected).all(dim=1).double().mean().item()
    # Training takes longer, because the model must infer absolute positions from relative ones.
    assert right > (0.6 if position == "rotary" else 0.95)


# --- Strategies ---


def test_greedy_matches_manual_loop(half_trained: TriviumForConditionalGeneration) -> None:
    inputs = sources()
    output = half_trained.generate(**inputs)
    assert torch.equal(output, greedy_by_hand(half_trained, inputs))
    ends = (output == EOS).int().argmax(dim=1)
    assert len(ends.unique()) > 2, "the sentences end all alike: the test would not see a difference"


def test_only_padding_follows_eos(half_trained: TriviumForConditionalGeneration) -> None:
    output = half_trained.generate(**sources())
    after = (output == EOS).cumsum(dim=1) - (output == EOS).int() > 0
    assert after.any()
    assert output[after].eq(PAD).all()


def test_any_of_several_eos_tokens_ends_generation(half_trained: TriviumForConditionalGeneration) -> None:
    inputs = sources()
    free = half_trained.generate(**inputs)
    stop = free[0, 2].item()
    end = free[0].tolist().index(stop) + 1
    assert stop != EOS
    stopped = half_trained.generate(**inputs, eos_token_id=[EOS, stop])
    assert stopped[0].tolist() == [*free[0, :end].tolist(), *[PAD] * (stopped.shape[1] - end)]


@pytest.mark.parametrize(
    "length_penalty", [pytest.param(0.0, marks=pytest.mark.slow), pytest.param(1.0, marks=pytest.mark.slow), 2.0]
)
@torch.no_grad()
def test_full_width_beam_search_is_exhaustive(length_penalty: float) -> None:
    """With as many beams as there are sentences of three tokens, beam search must equal exhaustive search."""
    vocab_size, length = 6, 3
    model = tiny_model(vocab_size=vocab_size, std=0.3)
    source = random_ids(1, 4, vocab_size=vocab_size)
    scores = {}
    for tokens in itertools.product(range(vocab_size), repeat=length):
        if EOS in tokens:
            tokens = tokens[: tokens.index(EOS) + 1]
        target = torch.tensor([[BOS, *tokens]])
        log_probs = model(source, decoder_input_ids=target).logits[0, :-1].log_softmax(dim=-1)
        score = log_probs.gather(1, target[0, 1:, None]).sum().item()
        scores[tokens] = score / len(tokens) ** length_penalty
    best = sorted(scores, key=lambda tokens: -scores[tokens])[:5]
    output = model.generate(
        source,
        num_beams=vocab_size**length,
        num_return_sequences=5,
        max_new_tokens=length,
        length_penalty=length_penalty,
        early_stopping="never",
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = [tuple(row[1:].tolist()) for row in output.sequences]
    found = [row[: row.index(EOS) + 1] if EOS in row else row for row in found]
    assert found == best
    assert output.sequences_scores.tolist() == pytest.approx([scores[tokens] for tokens in best])


def test_beam_search_finds_higher_scores_than_greedy(half_trained: TriviumForConditionalGeneration) -> None:
    inputs = sources(32)

    def log_probability(target: torch.Tensor) -> torch.Tensor:
        """Sum the log-probabilities up to the first EOS; beam search pads with EOS if the padding id is 0."""
        with torch.no_grad():
            logits = half_trained(inputs["input_ids"], inputs["attention_mask"], target[:, :-1]).logits
        scores = logits.log_softmax(dim=-1).gather(2, target[:, 1:, None])[..., 0]
        ended = (target[:, 1:] == EOS).cumsum(dim=1) - (target[:, 1:] == EOS).int() > 0
        return scores.masked_fill(ended, 0).sum(dim=1)

    greedy = half_trained.generate(**inputs)
    beam = half_trained.generate(**inputs, num_beams=4, length_penalty=0.0)
    assert log_probability(beam).mean() > log_probability(greedy).mean()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["sampling", "beam-sampling"])
def test_sampling_is_reproducible_with_seed(
    half_trained: TriviumForConditionalGeneration, options: dict[str, int]
) -> None:
    inputs, outputs = sources(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(half_trained.generate(**inputs, do_sample=True, temperature=1.5, **options).tolist())
    assert outputs[0] == outputs[1] != outputs[2]


def test_sampling_follows_distribution(half_trained: TriviumForConditionalGeneration) -> None:
    source = one_source()["input_ids"]
    output = half_trained.generate(source, do_sample=True, top_k=0, num_return_sequences=4000, max_new_tokens=1)
    with torch.no_grad():
        expected = half_trained(source, decoder_input_ids=torch.tensor([[BOS]])).logits[0, 0].softmax(dim=-1)
    frequencies = output[:, 1].bincount(minlength=VOCABULARY) / 4000
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.03)


def test_top_1_sampling_matches_greedy(half_trained: TriviumForConditionalGeneration) -> None:
    inputs = sources()
    assert half_trained.generate(**inputs, do_sample=True, top_k=1).equal(half_trained.generate(**inputs))


def test_prompt_lookup_matches_greedy(half_trained: TriviumForConditionalGeneration) -> None:
    for _ in range(5):
        inputs = one_source()
        expected = half_trained.generate(**inputs)
        assert half_trained.generate(**inputs, prompt_lookup_num_tokens=3).equal(expected)


# transformers' candidate generator passes both arguments.
@pytest.mark.filterwarnings("ignore:Passing `generation_config` together with generation-related arguments")
def test_assisted_generation_matches_greedy(
    half_trained: TriviumForConditionalGeneration, assistant: TriviumForConditionalGeneration
) -> None:
    for _ in range(5):
        inputs = one_source()
        expected = half_trained.generate(**inputs)
        assert half_trained.generate(**inputs, assistant_model=assistant).equal(expected)
        assert half_trained.generate(**inputs, assistant_model=half_trained).equal(expected)


# --- Constraints and streams ---


def test_logits_processors(half_trained: TriviumForConditionalGeneration) -> None:
    inputs = sources()
    free = half_trained.generate(**inputs)
    banned = free[0, 1].item()
    assert not (half_trained.generate(**inputs, bad_words_ids=[[banned]]) == banned).any()
    assert not (half_trained.generate(**inputs, suppress_tokens=[banned]) == banned).any()
    assert half_trained.generate(**inputs, forced_bos_token_id=7)[:, 1].eq(7).all()
    forced = half_trained.generate(**inputs, min_new_tokens=7, forced_eos_token_id=EOS)
    assert forced.shape[1] == 1 + inputs["max_new_tokens"]
    assert forced[:, -1].eq(EOS).all()
    assert not (half_trained.generate(**inputs, min_new_tokens=7)[:, 1:7] == EOS).any()
    unrepeated = half_trained.generate(**inputs, no_repeat_ngram_size=1)
    for row in unrepeated.tolist():
        words = [token for token in row if token != PAD]
        assert len(words) == len(set(words))
    allowed = half_trained.generate(**inputs, prefix_allowed_tokens_fn=lambda *_: [5, EOS])
    assert set(allowed[:, 1:].unique().tolist()) <= {5, EOS, PAD}


def test_repetition_penalty(half_trained: TriviumForConditionalGeneration) -> None:
    inputs = {**sources(), "min_new_tokens": 8}

    def repetitions(**options: float) -> int:
        output = half_trained.generate(**inputs, **options)
        return sum(len(row) - len(set(row)) for row in output.tolist())

    assert repetitions(repetition_penalty=20.0) < repetitions()


def test_streamer(half_trained: TriviumForConditionalGeneration) -> None:
    inputs = one_source()
    expected = half_trained.generate(**inputs)[0].tolist()
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(f"{token} " for token in ids))
    streamer = TextIteratorStreamer(tokenizer)
    half_trained.generate(**inputs, streamer=streamer)
    assert [int(token) for token in "".join(streamer).split()] == expected


# --- Caches, padding, batches ---


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cache_does_not_change_output(
    half_trained: TriviumForConditionalGeneration, cache: str, num_beams: int
) -> None:
    inputs = {**sources(), "num_beams": num_beams}
    expected = half_trained.generate(**inputs, use_cache=False)
    assert half_trained.generate(**inputs, cache_implementation=cache).equal(expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads from CUDA devices only")
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_offloaded_cache_matches_default(cache: str, num_beams: int) -> None:
    model = tiny_model(num_key_value_heads=2, std=0.3).cuda()
    inputs: dict[str, Any] = {"input_ids": random_ids(3, 6).cuda(), "max_new_tokens": 6, "num_beams": num_beams}
    expected = model.generate(**inputs, use_cache=False)
    assert model.generate(**inputs, cache_implementation=cache).equal(expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
@all_variants
def test_cached_generation_matches_uncached(variant: dict[str, Any], attention: str, cache: str) -> None:
    model = tiny_model(**variant, attn_implementation=attention, std=0.3)
    inputs = {"input_ids": random_ids(2, 6), "attention_mask": mask_of([6, 4], "left"), "max_new_tokens": 4}
    outputs = [
        model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
        for options in ({"use_cache": False}, {"cache_implementation": cache})
    ]
    assert outputs[0].sequences.equal(outputs[1].sequences)
    for uncached, cached in zip(outputs[0].logits, outputs[1].logits, strict=True):
        torch.testing.assert_close(cached.double(), uncached.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("position", POSITIONS)
def test_left_padded_decoder_prompts(position: str, num_beams: int, cache: str) -> None:
    """Left-padded prompts of different lengths must be continued like each prompt alone."""
    model = tiny_model(position_embedding_type=position, std=0.3)
    cached = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
    source, prompts, mask = random_ids(3, 6), random_ids(3, 4), mask_of([4, 2, 1], "left")
    prompts[range(3), mask.argmax(dim=1)] = BOS
    options = {
        **cached,
        "num_beams": num_beams,
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "length_penalty": 0.0,
        "return_dict_in_generate": True,
        "output_logits": True,
        "output_scores": True,
    }
    together = model.generate(
        source, decoder_input_ids=prompts.where(mask.bool(), PAD), decoder_attention_mask=mask, **options
    )
    for row in range(3):
        prompt = prompts[row, mask[row].bool()][None]
        alone = model.generate(source[[row]], decoder_input_ids=prompt, **options)
        assert_row_matches(together, row, alone, 5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_batched_generation_matches_single(
    half_trained: TriviumForConditionalGeneration, num_beams: int, side: str
) -> None:
    mask = mask_of([5, 3, 2, 1, 4], side)
    ids = random_ids(*mask.shape, vocab_size=VOCABULARY)
    options = {"num_beams": num_beams, "max_new_tokens": 8}
    together = half_trained.generate(ids.where(mask.bool(), PAD), attention_mask=mask, **options)
    for row in range(5):
        alone = half_trained.generate(ids[row, mask[row].bool()][None], **options)[0].tolist()
        assert together[row, : len(alone)].tolist() == alone
        assert set(together[row, len(alone) :].tolist()) <= {PAD, EOS}


def test_generation_from_encoder_outputs_and_embeds(half_trained: TriviumForConditionalGeneration) -> None:
    inputs = sources()
    expected = half_trained.generate(**inputs)
    ids = inputs.pop("input_ids")
    encoder = half_trained.get_encoder()
    with torch.no_grad():
        encoded = encoder(input_ids=ids, attention_mask=inputs["attention_mask"])
    assert half_trained.generate(**inputs, encoder_outputs=encoded).equal(expected)
    assert half_trained.generate(**inputs, inputs_embeds=encoder.embed_tokens(ids)).equal(expected)


def test_num_return_sequences(half_trained: TriviumForConditionalGeneration) -> None:
    inputs = sources()
    best = half_trained.generate(**inputs, num_beams=4)
    several = half_trained.generate(**inputs, num_beams=4, num_return_sequences=3).unflatten(0, (-1, 3))
    width = min(best.shape[1], several.shape[2])
    assert several[:, 0, :width].equal(best[:, :width])
    for rows in several.tolist():
        assert len({tuple(row) for row in rows}) == 3


@pytest.mark.slow(reason="compiles with C++: half a minute")
@torch.no_grad()
def test_compiled_generation_matches_eager(half_trained: TriviumForConditionalGeneration) -> None:
    data = copying_batch(8, LONGEST, VOCABULARY)
    compiled = torch.compile(half_trained, fullgraph=True)
    torch.testing.assert_close(compiled(**data).logits, half_trained(**data).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@torch.no_grad()
def test_cache_is_accepted_under_both_names(name: str) -> None:
    """The deprecated parameter name works with a warning, as in transformers' own models."""
    model, ids, target = tiny_model(), random_ids(2, 5), random_ids(2, 4)
    cache = model(ids, decoder_input_ids=target[:, :3]).cache
    with nullcontext() if name == "cache" else pytest.warns(FutureWarning, match="Use `cache` instead"):
        second = model(ids, decoder_input_ids=target[:, 3:], **{name: cache})
    assert cache.get_seq_length() == 4
    torch.testing.assert_close(second.logits, model(ids, decoder_input_ids=target).logits[:, 3:], **EXACT)


def test_signature_names_cache_like_transformers() -> None:
    for model_class in (TriviumForConditionalGeneration, TriviumForCausalLM, TriviumModel, TriviumDecoderModel):
        names = set(inspect.signature(model_class.forward).parameters)
        assert {"cache", "past_key_values"} & names == {"cache"}


def test_generation_uses_no_deprecated_names() -> None:
    """Generation must not use deprecated names, which a later version of transformers would remove."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        tiny_model().generate(random_ids(2, 5), max_new_tokens=3)
        tiny_model(TriviumForCausalLM, encoder_layers=0).generate(random_ids(2, 5), max_new_tokens=3, num_beams=2)


@pytest.mark.filterwarnings("ignore:Passing `generation_config` together with generation-related arguments")
@torch.no_grad()
def test_assistant_early_exit_matches_greedy() -> None:
    """Draft with the lower layers; the output must match greedy search, and the configuration must be restored."""
    model, ids = tiny_model(TriviumForCausalLM, encoder_layers=0), random_ids(1, 5)
    calls: list[int] = []
    for index, layer in enumerate(model.model.decoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    drafted = model.generate(ids, assistant_early_exit=1, max_new_tokens=6, do_sample=False)
    assert calls.count(0) > calls.count(1) == calls.count(2) > 0
    assert drafted.tolist() == model.generate(ids, max_new_tokens=6, do_sample=False).tolist()
    assert model.config.decoder_layers == 3
