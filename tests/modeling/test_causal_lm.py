"""Test the causal language model: masks, caches, packed rows, generation and loss."""

from typing import Any

import pytest
import torch
from language_models import Tensors, language_model, texts
from searches import assert_row_matches
from tiny import BOS, EOS, NORM_POSITIONS, PAD, POSITIONS, all_variants, random_ids
from torch.nn import functional as F
from transformers import DataCollatorWithFlattening
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from trivium import TriviumForCausalLM

EXACT = {"rtol": 1e-10, "atol": 1e-10}
each_position = pytest.mark.parametrize("position", POSITIONS)
both_attentions = pytest.mark.parametrize("attention", ["eager", "sdpa"])


# --- The model ---


@pytest.mark.parametrize("tied", [True, False])
@all_variants
def test_every_parameter_gets_a_gradient(variant: dict[str, Any], tied: bool) -> None:
    model = language_model(**variant, tie_word_embeddings=tied, attention_bias=True, gated_ffn=True).train()
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "cross" in name or "encoder" in name]
    assert ("lm_head.weight" in names) != tied
    ids = random_ids(4, 8)
    model(ids, labels=ids).loss.backward()
    # A key bias adds a constant to all scores of a query, which cancels, so its gradient is rounding error.
    moved = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-12]
    assert {*moved, *(name for name in names if name.endswith("k_proj.bias"))} == set(names)


@all_variants
def test_future_tokens_do_not_change_logits(variant: dict[str, Any]) -> None:
    model = language_model(**variant)
    embeddings = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    logits = model(inputs_embeds=embeddings).logits
    for position in range(5):
        direction = torch.randn_like(logits[:, position])
        (gradient,) = torch.autograd.grad((logits[:, position] * direction).sum(), embeddings, retain_graph=True)
        assert gradient[:, position + 1 :].eq(0).all()
        assert gradient[:, : position + 1].ne(0).any(dim=-1).all()


@both_attentions
@pytest.mark.parametrize("side", ["right", "left"])
@all_variants
@torch.no_grad()
def test_padding_does_not_change_logits(variant: dict[str, Any], side: str, attention: str) -> None:
    model = language_model(**variant, attn_implementation=attention)
    inputs = texts([6, 3, 1], side)
    together = model(**inputs).logits
    for row, real in enumerate(inputs["attention_mask"].bool()):
        alone = model(inputs["input_ids"][row, real][None]).logits
        torch.testing.assert_close(together[row, real], alone[0], **EXACT)


@all_variants
@torch.no_grad()
def test_inputs_embeds_match_input_ids(variant: dict[str, Any]) -> None:
    model, inputs = language_model(**variant), texts([5, 3])
    expected = model(**inputs).logits
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(**inputs, inputs_embeds=embeddings).logits, expected, **EXACT)


@torch.no_grad()
def test_attentions_and_hidden_states() -> None:
    model = language_model(num_key_value_heads=2)
    outputs = model(**texts([5, 3]), output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in outputs.attentions] == [(2, 4, 5, 5)] * 3
    assert [states.shape for states in outputs.hidden_states] == [(2, 5, 24)] * (1 + 3)
    assert all(weights.triu(1).eq(0).all() for weights in outputs.attentions)
    assert model.lm_head(outputs.hidden_states[-1]).equal(outputs.logits)


def test_encoder_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder_hidden_states.*decoder-only model"):
        language_model()(random_ids(1, 3), encoder_hidden_states=torch.zeros(1, 2, 24))


# --- Caches ---


def new_cache(model: TriviumForCausalLM, kind: str) -> Cache:
    if kind == "dynamic":
        return DynamicCache(config=model.config)
    return StaticCache(config=model.config, max_cache_len=11)


def feed(model: TriviumForCausalLM, inputs: Tensors, cache: Cache, start: int, end: int) -> torch.Tensor:
    """Return the logits of the tokens from `start` to `end`; the cache holds all preceding tokens."""
    return model(
        inputs["input_ids"][:, start:end], attention_mask=inputs["attention_mask"][:, :end], cache=cache
    ).logits


@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
@pytest.mark.parametrize("cache_kind", ["dynamic", "static"])
@pytest.mark.parametrize("chunks", [[1] * 6, [3, 1, 2]], ids=str)
@all_variants
@torch.no_grad()
def test_cached_logits_match_uncached(
    variant: dict[str, Any], chunks: list[int], cache_kind: str, attention: str
) -> None:
    """Decode left-padded rows with the cache, one token and several tokens at a time."""
    model = language_model(**variant, attn_implementation=attention)
    inputs, cache = texts([6, 4], "left"), new_cache(model, cache_kind)
    outputs = model(**inputs, use_cache=False)
    assert outputs.cache is None
    ends = torch.tensor(chunks).cumsum(0).tolist()
    logits = [feed(model, inputs, cache, end - size, end) for size, end in zip(chunks, ends, strict=True)]
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(logits, dim=1)[real], outputs.logits[real], **EXACT)
    assert int(cache.get_seq_length()) == 6


@all_variants
@torch.no_grad()
def test_decoding_continues_from_cropped_cache(variant: dict[str, Any]) -> None:
    """Remove the last two tokens from the cache and feed different ones, as assisted decoding does."""
    model, inputs = language_model(**variant), texts([6, 4], "left")
    cache = new_cache(model, "dynamic")
    feed(model, inputs, cache, 0, 5)
    cache.crop(-2)
    inputs["input_ids"][:, 3:] = random_ids(2, 3)
    torch.testing.assert_close(feed(model, inputs, cache, 3, 6), model(**inputs).logits[:, 3:], **EXACT)


@torch.no_grad()
def test_cache_is_on_by_default_and_configurable() -> None:
    ids = random_ids(2, 5)
    assert language_model()(ids).cache.get_seq_length() == 5
    assert language_model(use_cache=False)(ids).cache is None
    assert language_model()(ids, labels=ids).cache is None


@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 3])], ids=["last", "last-three", "indices"])
@torch.no_grad()
def test_logits_to_keep(kept: int | torch.Tensor) -> None:
    model, ids = language_model(), random_ids(2, 5)
    expected = model(ids).logits[:, -kept:] if isinstance(kept, int) else model(ids).logits[:, kept]
    torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, expected, **EXACT)


# --- generate() ---


@torch.no_grad()
def greedy_by_hand(model: TriviumForCausalLM, ids: torch.Tensor, steps: int) -> torch.Tensor:
    """Decode one text greedily with a full forward pass per token, without a cache, ignoring EOS."""
    for _ in range(steps):
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(dim=-1)), dim=1)
    return ids


@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
@pytest.mark.parametrize("norm_position", NORM_POSITIONS)
@each_position
def test_greedy_matches_manual_loop(position: str, norm_position: str, cache: str) -> None:
    model = language_model(0.3, position_embedding_type=position, norm_position=norm_position, num_key_value_heads=2)
    cached = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
    ids = random_ids(1, 4)
    output = model.generate(ids, max_new_tokens=7, eos_token_id=None, **cached)
    assert output.equal(greedy_by_hand(model, ids, 7))


@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
@pytest.mark.parametrize("num_beams", [1, 3])
@each_position
def test_batched_generation_matches_single(position: str, num_beams: int, cache: str) -> None:
    """Left-padded prompts of different lengths must be continued like each prompt alone."""
    model = language_model(0.3, position_embedding_type=position, num_key_value_heads=1)
    cached = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
    inputs = texts([4, 2, 1], "left")
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
    together = model.generate(**inputs, **options)
    for row, real in enumerate(inputs["attention_mask"].bool()):
        alone = model.generate(inputs["input_ids"][row, real][None], **options)
        assert_row_matches(together, row, alone, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads from CUDA devices only")
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_offloaded_cache_matches_default(cache: str) -> None:
    model = language_model(0.3, num_key_value_heads=2).cuda()
    inputs = {name: tensor.cuda() for name, tensor in texts([6, 4], "left").items()}
    expected = model.generate(**inputs, max_new_tokens=6, use_cache=False)
    assert model.generate(**inputs, max_new_tokens=6, cache_implementation=cache).equal(expected)


def test_num_return_sequences() -> None:
    model, inputs = language_model(0.3), texts([4, 2], "left")
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 4}
    best = model.generate(**inputs, **options)
    several = model.generate(**inputs, **options, num_return_sequences=3).unflatten(0, (2, 3))
    assert several[:, 0].equal(best)
    assert all(len({tuple(row) for row in rows}) == 3 for rows in several.tolist())


def test_sampling_is_reproducible_with_seed() -> None:
    model, inputs, outputs = language_model(0.3), texts([4, 2], "left"), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model.generate(**inputs, do_sample=True, num_return_sequences=3, max_new_tokens=6).tolist())
    assert outputs[0] == outputs[1] != outputs[2]
    greedy = model.generate(**inputs, max_new_tokens=6)
    assert model.generate(**inputs, do_sample=True, top_k=1, max_new_tokens=6).equal(greedy)


@torch.no_grad()
def test_sampling_follows_distribution() -> None:
    model, ids = language_model(0.3), random_ids(1, 4)
    output = model.generate(ids, do_sample=True, top_k=0, num_return_sequences=4000, max_new_tokens=1)
    frequencies = output[:, -1].bincount(minlength=31) / 4000
    expected = model(ids).logits[0, -1].softmax(dim=-1)
    torch.testing.assert_close(frequencies.double(), expected, rtol=0, atol=0.03)


# transformers passes both arguments to the assistant model.
@pytest.mark.filterwarnings("ignore:Passing `generation_config` together with generation-related arguments")
def test_assisted_generation_matches_greedy() -> None:
    """Draft with a differently shaped assistant, with the model itself, and with prompt lookup."""
    model, assistant = language_model(0.3), language_model(0.3, d_model=16, decoder_layers=1)
    options = {"max_new_tokens": 12, "eos_token_id": None}
    for _ in range(3):
        ids = random_ids(1, 6)
        expected = model.generate(ids, **options)
        assert model.generate(ids, **options, assistant_model=assistant).equal(expected)
        assert model.generate(ids, **options, assistant_model=model).equal(expected)
        assert model.generate(ids, **options, prompt_lookup_num_tokens=3).equal(expected)


def test_generation_without_prompt_starts_with_bos() -> None:
    model = language_model(0.3)
    output = model.generate(max_new_tokens=4, eos_token_id=None)
    assert output.equal(greedy_by_hand(model, torch.tensor([[BOS]]), 4))


def test_padding_follows_eos() -> None:
    model, inputs = language_model(0.3), texts([4, 2, 3], "left")
    free = model.generate(**inputs, max_new_tokens=6, eos_token_id=None)[:, 4:]
    stop = free[0, 1].item()
    stopped = model.generate(**inputs, max_new_tokens=6, eos_token_id=[EOS, stop])[:, 4:]
    end = free[0].tolist().index(stop) + 1
    assert stopped[0].tolist() == [*free[0, :end].tolist(), *[PAD] * (stopped.shape[1] - end)]


def test_generation_from_inputs_embeds() -> None:
    model, inputs = language_model(0.3), texts([4, 2], "left")
    expected = model.generate(**inputs, max_new_tokens=5)[:, 4:]
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert model.generate(**inputs, inputs_embeds=embeddings, max_new_tokens=5).equal(expected)


def test_generation_requests_last_logits_only() -> None:
    model, shapes = language_model(), []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    model.generate(random_ids(2, 6), max_new_tokens=3, min_new_tokens=3)
    handle.remove()
    assert shapes == [(2, 1, 31)] * 3


@pytest.mark.parametrize("from_embeddings", [False, True])
def test_generation_past_learned_positions_is_refused(from_embeddings: bool) -> None:
    model, ids = language_model(position_embedding_type="learned", max_position_embeddings=8), random_ids(1, 5)
    prompt = {"inputs_embeds": model.get_input_embeddings()(ids)} if from_embeddings else {"input_ids": ids}
    options = {"eos_token_id": None}
    # The last generated token is never fed back.
    length = model.generate(**prompt, **options, max_new_tokens=4).shape[1]
    assert length == (4 if from_embeddings else 9)
    with pytest.raises(ValueError, match=r"9 tokens.*learned positions end.*max_position_embeddings=8"):
        model.generate(**prompt, **options, max_new_tokens=5)


@pytest.mark.slow(reason="compiles with C++: half a minute")
def test_compiled_generation_matches_eager() -> None:
    model, inputs = language_model(0.3).float(), texts([6, 4], "left")
    expected = model.generate(**inputs, max_new_tokens=6)
    model.forward = torch.compile(model.forward, fullgraph=True)  # type: ignore[method-assign]
    assert model.generate(**inputs, max_new_tokens=6, cache_implementation="static").equal(expected)


# --- Packed rows ---

LENGTHS = [5, 3, 6, 1, 4]


def pack(rows: list[torch.Tensor]) -> Tensors:
    """Pack texts with transformers' collator: positions restart at 0 in each text, whose first label is -100."""
    batch = DataCollatorWithFlattening()([{"input_ids": row.tolist()} for row in rows])
    return {name: batch[name] for name in ("input_ids", "position_ids", "labels")}


@both_attentions
@all_variants
def test_packed_texts_do_not_attend_to_each_other(variant: dict[str, Any], attention: str) -> None:
    """Test with a cache too: it is the default, and must not keep the model from detecting restarted positions."""
    model = language_model(**variant, attn_implementation=attention)
    rows = [random_ids(length) for length in LENGTHS]
    packed = pack(rows)
    labels = packed.pop("labels")
    with torch.no_grad():
        expected = torch.cat([model(row[None]).logits for row in rows], dim=1)
        for options in ({}, {"use_cache": True}, {"use_cache": False}):
            torch.testing.assert_close(model(**packed, **options).logits, expected, **EXACT)
        loss = model(**packed, labels=labels).loss
    targets = torch.cat([F.pad(row[1:], (0, 1), value=-100) for row in rows])
    torch.testing.assert_close(loss, F.cross_entropy(expected[0], targets), **EXACT)


def test_packed_gradients_match_separate_texts() -> None:
    rows = [random_ids(length) for length in LENGTHS]
    packed, model = pack(rows), language_model(position_embedding_type="learned").train()
    count = sum(LENGTHS) - len(LENGTHS)
    model(**packed).loss.backward()
    together = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    for row in rows:
        model(row[None], labels=row[None], num_items_in_batch=count).loss.backward()
    for parameter, expected in zip(model.parameters(), together, strict=True):
        torch.testing.assert_close(parameter.grad, expected, **EXACT)


@pytest.mark.slow(reason="flex attention compiles a kernel for every mask: more than a minute on a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile calls deprecated torch functions
@torch.no_grad()
def test_packed_texts_with_flex_attention() -> None:
    """Compare in float32, because flex attention does not support float64 on a CPU."""
    model = language_model(num_key_value_heads=2).float()
    rows = [random_ids(length) for length in LENGTHS]
    expected = torch.cat([model(row[None]).logits for row in rows], dim=1)
    packed = pack(rows)
    del packed["labels"]
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(**packed).logits, expected, rtol=1e-4, atol=1e-5)


def test_packed_row_may_exceed_learned_positions() -> None:
    model = language_model(position_embedding_type="learned", max_position_embeddings=6)
    rows = [random_ids(length) for length in LENGTHS]
    with torch.no_grad():
        logits = model(**pack(rows)).logits
        torch.testing.assert_close(logits[:, 8:14], model(rows[2][None]).logits, **EXACT)
    with pytest.raises(ValueError, match=r"7 tokens.*learned positions end.*max_position_embeddings=6"):
        model(**pack([*rows, random_ids(7)]))


# --- The loss ---


@torch.no_grad()
def test_loss_is_next_token_cross_entropy() -> None:
    model = language_model()
    ids = random_ids(3, 6)
    labels = ids.clone()
    labels[0, :3] = labels[1, 4:] = -100
    outputs = model(ids, labels=labels)
    expected = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected, **EXACT)
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    assert model(ids, shift_labels=shifted).loss.equal(outputs.loss)
    assert model(ids, labels=labels, shift_labels=shifted).loss.equal(outputs.loss)


def test_label_smoothing_only_in_training() -> None:
    model, ids = language_model(label_smoothing=0.3), random_ids(3, 6)
    for training in (True, False):
        outputs = model.train(training)(ids, labels=ids)
        predictions = outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        expected = F.cross_entropy(*predictions, label_smoothing=0.3 * training)
        torch.testing.assert_close(outputs.loss, expected, **EXACT)
