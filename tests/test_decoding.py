"""Test Trivium's searches: they match transformers' loops token for token, and fall back to them where necessary."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from matrices import slow_unless
from searches import search, search_with_transformers
from tiny import BOS, EOS, PAD, POSITIONS, mask_of, random_ids, tiny_config, train_to_copy
from torch import nn
from torch._dynamo.utils import counters
from transformers import (
    CompileConfig,
    EosTokenCriteria,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration

VOCABULARY, LONGEST = 16, 6
SEARCHES = [
    {},
    {"num_beams": 4},
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 3, "early_stopping": True},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
    {"num_beams": 4, "length_penalty": 0.0, "num_return_sequences": 2},
    {"num_beams": 2, "length_penalty": -1.0},
    {"num_beams": 3, "eos_token_id": [EOS, 5, 7]},
    {"num_beams": 12},  # selects 24 candidates from a vocabulary of 16 tokens
    {"num_beams": 3, "eos_token_id": None},
    {"eos_token_id": None},
    {"eos_token_id": [EOS, 5]},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    {"suppress_tokens": [4], "forced_eos_token_id": EOS},
    {"num_beams": 3, "bad_words_ids": [[6], [8, 9]]},
]
every_search = pytest.mark.parametrize(
    "options", SEARCHES, ids=lambda options: "-".join(map(str, options.values())) or "greedy"
)


@cache
def half_trained(model_class: Any, shape: tuple[tuple[str, Any], ...]) -> Any:
    """Return a partly trained model that copies its source, or continues counting, with frequent errors."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "d_model": 32, "ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 2}
    sizes |= {"label_smoothing": 0.0, "attn_implementation": "sdpa", **dict(shape)}
    model = model_class(tiny_config(**sizes))
    if model.config.is_encoder_decoder:
        known_to_both = model.config.target_vocab_size
        train_to_copy(model, 60, 1e-2, sentences=32, longest=LONGEST, vocab_size=known_to_both)
    else:
        optimizer = torch.optim.Adam(model.train().parameters(), 1e-2)
        for _ in range(40):
            ids = (torch.randint(EOS + 1, VOCABULARY, (32, 1)) + torch.arange(8)).clamp(max=VOCABULARY)
            ids[ids == VOCABULARY] = EOS
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval().generation_config.update(max_length=14, pad_token_id=PAD, eos_token_id=EOS)
    return model


def half_trained_copy(model_class: Any, **shape: Any) -> Any:
    """Return a copy of a partly trained model, which the test may modify."""
    return copy.deepcopy(half_trained(model_class, tuple(shape.items())))


def sources(sentences: int = 7) -> dict[str, torch.Tensor]:
    mask = mask_of([LONGEST, *torch.randint(2, LONGEST + 1, (sentences - 1,)).tolist()])
    ids = random_ids(*mask.shape, vocab_size=VOCABULARY)
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


def prompts(sentences: int = 7, padded: bool = True) -> dict[str, torch.Tensor]:
    mask = mask_of([4, *torch.randint(1, 5, (sentences - 1,)).tolist()], "left")
    mask = mask if padded else torch.ones_like(mask)
    ids = random_ids(*mask.shape, vocab_size=VOCABULARY)
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
@every_search
def test_translations_match_transformers(options: dict[str, Any], attention: str) -> None:
    model = half_trained_copy(TriviumForConditionalGeneration, attn_implementation=attention, num_key_value_heads=2)
    inputs = {**sources(), **options}
    found, search_count = search(model, **inputs)
    assert search_count == 1
    assert torch.equal(found, search_with_transformers(model, **inputs))
    if options == {}:
        assert (found != PAD).sum(dim=1).unique().numel() > 2  # sentences finished at different steps


@pytest.mark.parametrize("padded", [True, pytest.param(False, marks=pytest.mark.slow)])
@every_search
def test_continuations_match_transformers(options: dict[str, Any], padded: bool) -> None:
    model = half_trained_copy(
        TriviumForCausalLM, encoder_layers=0, position_embedding_type="rotary", norm_position="pre"
    )
    inputs = {**prompts(padded=padded), **options}
    found, search_count = search(model, **inputs)
    assert search_count == 1
    assert torch.equal(found, search_with_transformers(model, **inputs))


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("position", slow_unless(POSITIONS, ["learned", "rotary"]))
def test_all_positions_and_two_vocabularies_match(position: str, num_beams: int) -> None:
    for shape in ({"decoder_vocab_size": 13}, {"encoder_layers": 0}):
        model_class = TriviumForCausalLM if "encoder_layers" in shape else TriviumForConditionalGeneration
        model = half_trained_copy(model_class, position_embedding_type=position, **shape)
        inputs = {**(sources() if model.config.is_encoder_decoder else prompts()), "num_beams": num_beams}
        assert torch.equal(search(model, **inputs)[0], search_with_transformers(model, **inputs))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_longer_decoder_prompts_match(num_beams: int) -> None:
    model = half_trained_copy(TriviumForConditionalGeneration)
    begun = torch.cat((torch.full((7, 1), BOS), random_ids(7, 2, vocab_size=VOCABULARY)), dim=1)
    inputs = {**sources(), "decoder_input_ids": begun}
    found, search_count = search(model, **inputs, num_beams=num_beams)
    assert search_count == 1
    assert torch.equal(found, search_with_transformers(model, **inputs, num_beams=num_beams))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_custom_positions_fall_back(num_beams: int) -> None:
    """The search falls back unless the position ids equal those that `generate()` derives from the mask."""
    model = half_trained_copy(TriviumForCausalLM, encoder_layers=0)
    inputs = {**prompts(), "num_beams": num_beams}
    positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    for position_ids, expected in ((positions, 1), (positions + 1, 0)):
        found, search_count = search(model, **inputs, position_ids=position_ids)
        assert search_count == expected
        assert torch.equal(found, search_with_transformers(model, **inputs, position_ids=position_ids))


def test_encoder_outputs_may_be_a_tuple() -> None:
    model, inputs = half_trained_copy(TriviumForConditionalGeneration), sources()
    encoded = model.model.encoder(**inputs, return_dict=False)
    found, search_count = search(model, encoder_outputs=encoded, attention_mask=inputs["attention_mask"])
    assert search_count == 1
    assert torch.equal(found, model.generate(**inputs))


class CustomProcessor(LogitsProcessor):
    """A custom logits processor, which favors token 6."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, 6] += 3.0
        return scores


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"return_dict_in_generate": True, "output_scores": True},
        {"do_sample": True},
        {"repetition_penalty": 1.5},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"logits_processor": LogitsProcessorList([CustomProcessor()])},
        {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(100.0)])},
        {"decoder_attention_mask": torch.ones(7, 1, dtype=torch.long)},
        {"cache": None},
    ],
    ids=lambda options: next(iter(options)),
)
def test_unsupported_options_fall_back(options: dict[str, Any], num_beams: int) -> None:
    model = half_trained_copy(TriviumForConditionalGeneration)
    if "cache" in options:
        options = {"cache": EncoderDecoderCache(DynamicCache(), DynamicCache())}
    found, search_count = search(model, **sources(), num_beams=num_beams, **options)
    assert search_count == 0
    assert len(found[0] if "return_dict_in_generate" in options else found) == 7
    if "cache" in options:
        assert options["cache"].get_seq_length() > 0  # the caller's cache is filled


@pytest.mark.parametrize("model_class", [TriviumForConditionalGeneration, TriviumForCausalLM])
@pytest.mark.parametrize("options", [search for search in SEARCHES if "num_beams" in search], ids=str)
def test_sequences_scores_match_transformers(model_class: Any, options: dict[str, Any]) -> None:
    if model_class is TriviumForCausalLM:
        shape = {"encoder_layers": 0, "position_embedding_type": "rotary", "norm_position": "pre"}
        inputs: dict[str, Any] = {**prompts(), **options, "return_dict_in_generate": True}
    else:
        shape = {"attn_implementation": "sdpa", "num_key_value_heads": 2}
        inputs = {**sources(), **options, "return_dict_in_generate": True}
    model = half_trained_copy(model_class, **shape)
    found, search_count = search(model, **inputs)
    expected = model.generate(**inputs, output_scores=True)
    assert search_count == 1
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


def test_fallback_returns_sequences_scores() -> None:
    model, processors = half_trained_copy(TriviumForConditionalGeneration), LogitsProcessorList([CustomProcessor()])
    options = {**sources(), "num_beams": 2, "logits_processor": processors, "return_dict_in_generate": True}
    found, search_count = search(model, **options)
    expected = model.generate(**options, output_scores=True)
    assert (search_count, found.scores) == (0, None)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("criterion", [MaxLengthCriteria(4), EosTokenCriteria(5)], ids=["length", "eos"])
def test_custom_stopping_criteria_are_applied(criterion: Any, num_beams: int) -> None:
    """Custom criteria, even of a type that the search knows, make it fall back to transformers' loop."""
    model = half_trained_copy(TriviumForConditionalGeneration)
    inputs = {**sources(), "num_beams": num_beams, "stopping_criteria": StoppingCriteriaList([criterion])}
    found, search_count = search(model, **inputs)
    assert search_count == 0
    assert torch.equal(found, search_with_transformers(model, **inputs))


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("padding", ["last token", "whole row"])
def test_prompts_that_end_in_padding_fall_back(padding: str, num_beams: int) -> None:
    model = half_trained_copy(TriviumForCausalLM, encoder_layers=0, position_embedding_type="rotary")
    inputs = {**prompts(), "num_beams": num_beams}
    inputs["attention_mask"][1, -1 if padding == "last token" else slice(None)] = 0
    found, search_count = search(model, **inputs)
    assert search_count == 0
    assert torch.equal(found, search_with_transformers(model, **inputs))


@pytest.mark.parametrize("num_return_sequences", [1, 4])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # More candidates are needed than there are tokens in the vocabulary.
        ({"no_repeat_ngram_size": 1, "max_length": 20, "eos_token_id": None}, 0),
        ({"suppress_tokens": [PAD, BOS, EOS, *range(4, VOCABULARY)]}, 0),  # four beams, but only one allowed token
        ({"suppress_tokens": [PAD, BOS, EOS, *range(7, VOCABULARY)]}, 1),
        ({"forced_bos_token_id": 5, "forced_eos_token_id": EOS}, 1),
    ],
    ids=["no repetition", "one token", "four tokens", "forced"],
)
def test_beams_without_allowed_tokens_fall_back(
    options: dict[str, Any], expected: int, num_return_sequences: int
) -> None:
    model = half_trained_copy(TriviumForConditionalGeneration)
    inputs = {**sources(), "num_beams": 4, "num_return_sequences": num_return_sequences, **options}
    found, search_count = search(model, **inputs)
    assert search_count == expected
    assert torch.equal(found, search_with_transformers(model, **inputs))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_int32_prompts_return_int64_sequences(num_beams: int) -> None:
    model, inputs = half_trained_copy(TriviumForCausalLM, encoder_layers=0), prompts()
    found, search_count = search(model, **{**inputs, "input_ids": inputs["input_ids"].int()}, num_beams=num_beams)
    assert search_count == 1
    assert found.dtype == torch.int64
    assert torch.equal(found, model.generate(**inputs, num_beams=num_beams))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_labels_do_not_change_the_search(num_beams: int) -> None:
    """`generate()` must ignore labels, which Seq2SeqTrainer passes to it during evaluation."""
    model, inputs = half_trained_copy(TriviumForConditionalGeneration), {**sources(), "num_beams": num_beams}
    expected, _ = search(model, **inputs)
    found, search_count = search(model, **inputs, labels=random_ids(7, 4, vocab_size=VOCABULARY))
    assert search_count == 1
    assert torch.equal(found, expected)


def raise_logit(outputs: Any) -> Any:
    """Raise the logit of token 6."""
    outputs.logits[..., 6] += 30.0
    return outputs


class OverriddenForward(TriviumForConditionalGeneration):
    """Model with an overridden `forward`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return raise_logit(super().forward(*args, **kwargs))


@pytest.mark.slow(reason="test_decoding_step.py tests by default that a compiled model is noticed")
@pytest.mark.parametrize("num_beams", [1, 2])
def test_compiled_model_is_called(num_beams: int) -> None:
    model = half_trained_copy(TriviumForConditionalGeneration)
    model.compile(backend="eager")
    assert search(model, **sources(), num_beams=num_beams)[1] == 0


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("change", ["subclass", "forward", "hook", "stack"])
def test_custom_forward_is_called(change: str, num_beams: int) -> None:
    """With an overridden `forward` or a hook, the search falls back, so that both are called."""
    model = half_trained_copy(OverriddenForward if change == "subclass" else TriviumForConditionalGeneration)
    calls = []
    if change == "forward":
        forward = model.forward
        model.forward = lambda *args, **kwargs: raise_logit(forward(*args, **kwargs))
    elif change == "hook":
        model.register_forward_hook(lambda module, args, outputs: raise_logit(outputs))
    elif change == "stack":
        model.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    found, search_count = search(model, **sources(), num_beams=num_beams)
    assert search_count == 0
    if change == "stack":
        assert len(calls) == found.shape[1] - 1
    else:
        assert (found[:, 1:] == 6).all()


def test_custom_layer_is_called() -> None:
    model = half_trained_copy(TriviumForConditionalGeneration)
    calls: list[int] = []
    model.model.decoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    found, search_count = search(model, **sources())
    assert search_count == 1
    assert len(calls) == found.shape[1] - 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_finished_sentences_are_not_computed(num_beams: int) -> None:
    """Each step must compute the beams of unfinished sentences only, with one encoder output per sentence."""
    model = half_trained_copy(TriviumForConditionalGeneration)
    rows, memories = [], []
    model.model.decoder.layers[0].register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    attention = model.model.decoder.layers[0].cross_attn
    attention.register_forward_pre_hook(lambda _, args: memories.append(len(args[2])))
    model.generate(**sources(), num_beams=num_beams)
    assert rows == [memories[0], *(count * num_beams for count in memories[1:])]
    assert memories[0] == 7
    assert memories == sorted(memories, reverse=True)
    assert memories[-1] < 7


def test_returned_sequences_can_be_modified_in_place() -> None:
    model = half_trained_copy(TriviumForConditionalGeneration)
    for num_beams in (1, 2):
        found = model.generate(**sources(), num_beams=num_beams)
        found[found == PAD] = EOS
        assert not found.is_inference()


def test_learned_positions_limit_the_length() -> None:
    shape = {"encoder_layers": 0, "position_embedding_type": "learned", "max_position_embeddings": 10}
    model = half_trained_copy(TriviumForCausalLM, **shape)
    for num_beams in (1, 2):
        with pytest.raises(ValueError, match="max_position_embeddings=10"):
            model.generate(**prompts(), num_beams=num_beams, max_length=12, eos_token_id=None)


def test_mixin_passes_for_that_of_transformers() -> None:
    """transformers must not warn of a class that generates without inheriting from its GenerationMixin."""
    for model_class in (TriviumForConditionalGeneration, TriviumForCausalLM):
        assert issubclass(model_class, GenerationMixin)
        assert "GenerationMixin" in str(model_class.__bases__)
        assert model_class.can_generate()
        assert issubclass(model_class, nn.Module)


@pytest.mark.parametrize(
    ("model_class", "position"),
    [
        pytest.param(TriviumForCausalLM, "rotary", marks=pytest.mark.slow),
        pytest.param(TriviumForCausalLM, "sinusoidal", marks=pytest.mark.slow),
        pytest.param(TriviumForCausalLM, "learned", marks=pytest.mark.slow),
        (TriviumForConditionalGeneration, "sinusoidal"),
        pytest.param(TriviumForConditionalGeneration, "learned", marks=pytest.mark.slow),
        pytest.param(TriviumForConditionalGeneration, "rotary", marks=pytest.mark.slow),
    ],
)
def test_static_cache_compiles_to_one_graph(model_class: Any, position: str) -> None:
    """A new source length must add only one graph, without graph breaks, and the tokens must match eager mode."""
    translates = model_class is TriviumForConditionalGeneration
    shape = {} if translates else {"encoder_layers": 0}
    model = half_trained_copy(model_class, position_embedding_type=position, **shape)
    torch._dynamo.reset()
    counters.clear()
    compiling = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiling._compile_all_devices = True  # Without this option, transformers compiles only on GPUs.
    static = {"cache_implementation": "static", "max_cache_len": 32, "compile_config": compiling}
    for length, longest in ((8, 6), (11, 6), (14, 5), (10, 4)):
        inputs = sources(4) if translates else prompts(4)
        inputs = {name: tensor[:, -longest:] for name, tensor in inputs.items()}
        inputs = {**inputs, "max_length": length, "eos_token_id": None}
        assert torch.equal(model.generate(**inputs, **static), model.generate(**inputs))
    assert 1 <= counters["stats"]["unique_graphs"] <= (2 if translates else 1)
    assert not counters["graph_break"]
