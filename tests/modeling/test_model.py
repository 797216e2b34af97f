"""Test the encoder-decoder: invariance to padding, batching, caching and attention kernel; parameters; interface."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import BOS, PAD, SAME_WEIGHTS, all_variants, copying_batch, mask_of, random_ids, tiny_config, tiny_model
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumModel
from trivium.modeling import TriviumEncoder

Tensors = dict[str, torch.Tensor]
EXACT = {"rtol": 1e-10, "atol": 1e-10}
TYING: dict[str, dict[str, Any]] = {
    "one-vocabulary-tied": {},
    "one-vocabulary-untied": {"tie_word_embeddings": False},
    "two-vocabularies-tied": {"decoder_vocab_size": 23},
    "two-vocabularies-untied": {"decoder_vocab_size": 23, "tie_word_embeddings": False},
}
tying_modes = pytest.mark.parametrize("overrides", TYING.values(), ids=TYING)


def batch(source_lengths: list[int], target_lengths: list[int], side: str = "right") -> Tensors:
    """Return random sentences, padded on one side; padding positions contain random tokens as well."""
    source_mask, target_mask = mask_of(source_lengths, side), mask_of(target_lengths, side)
    return {
        "input_ids": random_ids(*source_mask.shape),
        "attention_mask": source_mask,
        "decoder_input_ids": random_ids(*target_mask.shape),
        "decoder_attention_mask": target_mask,
    }


def sentence(inputs: Tensors, row: int) -> Tensors:
    """Return one row of a batch, without padding."""
    source, target = inputs["attention_mask"][row].bool(), inputs["decoder_attention_mask"][row].bool()
    return {
        "input_ids": inputs["input_ids"][row, source][None],
        "decoder_input_ids": inputs["decoder_input_ids"][row, target][None],
    }


# --- Invariances ---


@all_variants
def test_future_tokens_do_not_change_logits(variant: dict[str, Any]) -> None:
    model = tiny_model(**variant)
    memory, length = random_ids(2, 4), 5
    embeddings = torch.randn(2, length, 24, dtype=torch.float64, requires_grad=True)
    logits = model(input_ids=memory, decoder_inputs_embeds=embeddings).logits
    for position in range(length):
        direction = torch.randn_like(logits[:, position])
        (gradient,) = torch.autograd.grad((logits[:, position] * direction).sum(), embeddings, retain_graph=True)
        assert gradient[:, position + 1 :].eq(0).all()
        assert gradient[:, : position + 1].ne(0).any(dim=-1).all()

    changed = embeddings.detach().clone()
    changed[:, 3:] = torch.randn_like(changed[:, 3:])
    with torch.no_grad():
        again = model(input_ids=memory, decoder_inputs_embeds=changed).logits
    torch.testing.assert_close(again[:, :3], logits[:, :3], **EXACT)
    assert not torch.allclose(again[:, 3:], logits[:, 3:])


@all_variants
def test_encoder_attends_to_all_tokens(variant: dict[str, Any]) -> None:
    encoder = tiny_model(TriviumModel, **variant).encoder
    embeddings = torch.randn(1, 5, 24, dtype=torch.float64, requires_grad=True)
    hidden = encoder(inputs_embeds=embeddings).last_hidden_state
    for position in range(5):
        direction = torch.randn_like(hidden[:, position])
        (gradient,) = torch.autograd.grad((hidden[:, position] * direction).sum(), embeddings, retain_graph=True)
        assert gradient.ne(0).any(dim=-1).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["right", "left"])
@all_variants
@torch.no_grad()
def test_batch_matches_single_sentences(variant: dict[str, Any], side: str, attention: str) -> None:
    """Outputs must not depend on padding, in either stack and on either side, or on other rows of the batch."""
    model = tiny_model(**variant, attn_implementation=attention)
    inputs = batch([6, 3, 1], [2, 5, 1], side)
    outputs = model(**inputs)
    for row in range(3):
        alone = model(**sentence(inputs, row))
        target, source = inputs["decoder_attention_mask"][row].bool(), inputs["attention_mask"][row].bool()
        torch.testing.assert_close(outputs.logits[row, target], alone.logits[0], **EXACT)
        torch.testing.assert_close(
            outputs.encoder_last_hidden_state[row, source], alone.encoder_last_hidden_state[0], **EXACT
        )


@pytest.mark.parametrize("side", ["right", "left"])
@all_variants
def test_eager_matches_sdpa(variant: dict[str, Any], side: str) -> None:
    """Compare all outputs and gradients, including rows with an empty source and fully masked padding queries."""
    inputs = batch([6, 3, 2], [2, 5, 1], side)
    inputs["attention_mask"][2] = 0
    model = tiny_model(**variant)
    results = []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        torch.manual_seed(1)
        logits = model(**inputs).logits
        (logits * torch.randn_like(logits)).sum().backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    for eager, sdpa in zip(*results, strict=True):
        assert eager.isfinite().all()
        torch.testing.assert_close(eager, sdpa, **EXACT)


@pytest.mark.slow(reason="flex attention compiles a kernel for every mask: more than a minute on a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile calls deprecated torch functions
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_flex_matches_eager(side: str) -> None:
    """Compare the forward pass in float32: on a CPU, flex attention has neither a backward pass nor float64."""
    model = tiny_model(num_key_value_heads=2).float()
    inputs = batch([6, 3, 2], [2, 5, 1], side)
    inputs["attention_mask"][2] = 0
    expected = model(**inputs).logits
    model.set_attn_implementation("flex_attention")
    logits = model(**inputs).logits
    real = inputs["decoder_attention_mask"].bool()
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-4, atol=1e-5)


def new_cache(model: TriviumForConditionalGeneration, kind: str) -> EncoderDecoderCache:
    """Return a static cache with room for 6 source tokens and 9 target tokens."""
    if kind == "dynamic":
        return EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    return EncoderDecoderCache(
        StaticCache(config=model.config, max_cache_len=9), StaticCache(config=model.config, max_cache_len=6)
    )


def feed(
    model: TriviumForConditionalGeneration, inputs: Tensors, cache: EncoderDecoderCache, start: int, end: int
) -> torch.Tensor:
    """Return the logits of the target tokens from `start` to `end`; the cache holds all preceding tokens."""
    return model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        decoder_input_ids=inputs["decoder_input_ids"][:, start:end],
        decoder_attention_mask=inputs["decoder_attention_mask"][:, :end],
        cache=cache,
        use_cache=True,
    ).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [[1] * 6, [3, 1, 2], pytest.param([2, 4], marks=pytest.mark.slow)], ids=str)
@all_variants
@torch.no_grad()
def test_cached_logits_match_uncached(variant: dict[str, Any], chunks: list[int], attention: str) -> None:
    """Decode left-padded rows with the cache, one token and several tokens at a time."""
    model = tiny_model(**variant, attn_implementation=attention)
    inputs = batch([6, 3], [6, 4], "left")
    expected, cache = model(**inputs, use_cache=False).logits, new_cache(model, "dynamic")
    ends = torch.tensor(chunks).cumsum(0).tolist()
    logits = [feed(model, inputs, cache, end - size, end) for size, end in zip(chunks, ends, strict=True)]
    real = inputs["decoder_attention_mask"].bool()
    torch.testing.assert_close(torch.cat(logits, dim=1)[real], expected[real], **EXACT)
    assert cache.get_seq_length() == 6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@all_variants
@torch.no_grad()
def test_static_cache_matches_uncached(variant: dict[str, Any], attention: str) -> None:
    model = tiny_model(**variant, attn_implementation=attention)
    inputs = batch([6, 3], [6, 6])
    expected, cache = model(**inputs, use_cache=False).logits, new_cache(model, "static")
    del inputs["decoder_attention_mask"]
    for start, end in ((0, 3), (3, 4), (4, 6)):
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=inputs["decoder_input_ids"][:, start:end],
            cache=cache,
        ).logits
        torch.testing.assert_close(logits, expected[:, start:end], **EXACT)


@all_variants
@torch.no_grad()
def test_decoding_continues_from_cropped_cache(variant: dict[str, Any]) -> None:
    """Remove the last two tokens from the cache and feed different ones, as assisted decoding does."""
    model = tiny_model(**variant)
    inputs, cache = batch([6, 3], [6, 6]), new_cache(model, "dynamic")
    feed(model, inputs, cache, 0, 5)
    cache.crop(-2)
    inputs["decoder_input_ids"][:, 3:] = random_ids(2, 3)
    torch.testing.assert_close(feed(model, inputs, cache, 3, 6), model(**inputs).logits[:, 3:], **EXACT)


@torch.no_grad()
def test_rotary_positions_are_relative() -> None:
    """Shifting all positions of a stack must change the outputs with sinusoids, but not with rotary positions."""
    for position in ("rotary", "sinusoidal"):
        model = tiny_model(position_embedding_type=position)
        source, target = random_ids(2, 6), random_ids(2, 5)
        moved = model(
            encoder_outputs=model.get_encoder()(input_ids=source, position_ids=torch.arange(100, 106)[None]),
            decoder_input_ids=target,
            decoder_position_ids=torch.arange(30, 35)[None],
        )
        same = torch.allclose(moved.logits, model(source, decoder_input_ids=target).logits, rtol=1e-9, atol=1e-9)
        assert same == (position == "rotary")


@all_variants
@torch.no_grad()
def test_inputs_embeds_match_input_ids(variant: dict[str, Any]) -> None:
    model = tiny_model(**variant)
    inputs = batch([6, 3], [4, 5])
    expected = model(**inputs).logits
    source, target = inputs.pop("input_ids"), inputs.pop("decoder_input_ids")
    stacks = model.model
    inputs["inputs_embeds"] = stacks.encoder.embed_tokens(source)
    inputs["decoder_inputs_embeds"] = stacks.decoder.embed_tokens(target)
    torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)


@torch.no_grad()
def test_encoder_outputs_match_input_ids() -> None:
    model = tiny_model()
    inputs = batch([6, 3], [4, 5])
    expected = model(**inputs).logits
    source = inputs.pop("input_ids")
    encoded = model.get_encoder()(input_ids=source, attention_mask=inputs["attention_mask"])
    for encoder_outputs in (encoded, encoded.to_tuple()):
        torch.testing.assert_close(model(**inputs, encoder_outputs=encoder_outputs).logits, expected, **EXACT)
    assert model(**inputs, encoder_outputs=encoded, return_dict=False)[0].equal(expected)


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_gradient_checkpointing_matches_gradients(norm_position: str, reentrant: bool, skip_logits: bool) -> None:
    """Test with dropout, whose masks recomputation must repeat."""
    model = tiny_model(norm_position=norm_position, dropout=0.2, attention_dropout=0.2).train()
    data = copying_batch(sentences=4)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(3)
        model(**data, skip_logits=skip_logits).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, **EXACT)


def test_gradient_checkpointing_disables_cache() -> None:
    """With checkpointing, the cache must stay empty: recomputation would append keys and values a second time."""
    model = tiny_model().train()
    model.activation_checkpointing_enable()
    ids, cache = random_ids(2, 5), EncoderDecoderCache(DynamicCache(), DynamicCache())
    logits = model(ids, decoder_input_ids=ids, cache=cache).logits
    torch.testing.assert_close(logits, model(ids, decoder_input_ids=ids).logits, **EXACT)
    logits.sum().backward()
    assert cache.get_seq_length() == 0


class CountingCache(DynamicCache):
    """A cache without a single length, like continuous batching's paged cache; it records `update` arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        raise AssertionError("a paged cache has no one length")

    def get_query_offset(self, layer_idx: int = 0) -> int:  # only for the mask, which paged caches build themselves
        return 0

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.noted += kwargs["kwargs"]
        return super().update(*args, **kwargs)


def test_position_ids_make_cache_length_unnecessary() -> None:
    model, ids = tiny_model(TriviumForCausalLM, encoder_layers=0), random_ids(1, 5)
    cache = CountingCache()
    logits = model(ids, position_ids=torch.arange(5)[None], cache=cache, read_index=[0]).logits
    torch.testing.assert_close(logits, model(ids).logits, **EXACT)
    assert cache.noted == ["read_index"] * 3


# --- Parameters, tying, dropout ---


@tying_modes
@all_variants
def test_no_unused_parameters(variant: dict[str, Any], overrides: dict[str, Any]) -> None:
    """A training step must change every parameter, because DDP does not accept unused ones."""
    model = tiny_model(**variant, **overrides, attention_bias=True, gated_ffn=True).train()
    model(**copying_batch(sentences=4, vocab_size=23)).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    # A key bias adds a constant to all scores of a query, which cancels, so its gradient is rounding error.
    still = [name for name, g in gradients.items() if g.abs().max() < 1e-12 and not name.endswith("k_proj.bias")]
    assert not still


@tying_modes
def test_embeddings_are_tied(overrides: dict[str, Any]) -> None:
    """The embeddings of a shared vocabulary and the output projection must be one matrix (section 3.4)."""
    model = tiny_model(**overrides)
    source, target = model.model.encoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight
    tied, shared = "tie_word_embeddings" not in overrides, "decoder_vocab_size" not in overrides
    assert (target is source) == (tied and shared)
    assert (model.lm_head.weight is target) == tied
    assert (len(source), len(target)) == (31, 31 if shared else 23)
    sizes = {"source": 31, "target": 31 if shared else 23, "head": 31 if shared else 23}
    matrices = ["source"] if tied and shared else ["source", "target"] if tied else ["source", "target", "head"]
    bodies = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    assert model.num_parameters() == bodies + sum(sizes[name] for name in matrices) * 24


@pytest.mark.parametrize("model_class", [TriviumForConditionalGeneration, TriviumModel])
@tying_modes
def test_save_and_load_keep_logits(overrides: dict[str, Any], model_class: type[Any], tmp_path: Path) -> None:
    model = tiny_model(model_class, **overrides)
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = {"input_ids": random_ids(2, 6), "decoder_input_ids": random_ids(2, 5, vocab_size=23)}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**ids)[0], model(**ids)[0], **SAME_WEIGHTS)
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}


@all_variants
def test_dropout_only_in_training(variant: dict[str, Any]) -> None:
    model = tiny_model(**variant, dropout=0.3)
    inputs = batch([6, 3], [4, 5])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**inputs).logits)
        model.train()
        assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_dropout_applies_everywhere() -> None:
    """Dropout must apply to the embedded input of both stacks and to every sublayer (section 5.4)."""
    model = tiny_model(dropout=0.3)
    rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p]
    assert rates == [0.3] * (2 + 2 * 2 + 3 * 3)


def test_dropout_on_embedded_input() -> None:
    """Dropout must apply to the sum of embeddings and positions (section 5.4); tested on stacks without layers."""
    encoder = tiny_model(TriviumEncoder, encoder_layers=0, dropout=0.5)
    ids = random_ids(2, 6)
    whole, dropped = (encoder.train(training)(ids).last_hidden_state for training in (False, True))
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, 2 * whole), **EXACT)
    assert 0.3 < (dropped == 0).double().mean() < 0.7


# --- The interface ---


@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@torch.no_grad()
def test_attentions(key_value_heads: int) -> None:
    model = tiny_model(num_key_value_heads=key_value_heads)
    inputs = batch([6, 3], [4, 5])
    outputs = model(**inputs, output_attentions=True)
    for attentions, layers, shape in (
        (outputs.encoder_attentions, 2, (2, 4, 6, 6)),
        (outputs.decoder_attentions, 3, (2, 4, 5, 5)),
        (outputs.cross_attentions, 3, (2, 4, 5, 6)),
    ):
        assert [attention.shape for attention in attentions] == [shape] * layers
        for attention in attentions:
            torch.testing.assert_close(attention.sum(dim=-1), torch.ones(shape[:-1]).double(), **EXACT)
    for attention in (*outputs.encoder_attentions, *outputs.cross_attentions):
        assert attention[1, :, :, 3:].eq(0).all()
    for attention in outputs.decoder_attentions:
        assert attention.triu(1).eq(0).all()


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@torch.no_grad()
def test_hidden_states(norm_position: str) -> None:
    model = tiny_model(norm_position=norm_position)
    outputs = model(**batch([6, 3], [4, 5]), output_hidden_states=True)
    assert [states.shape for states in outputs.encoder_hidden_states] == [(2, 6, 24)] * (1 + 2)
    assert [states.shape for states in outputs.decoder_hidden_states] == [(2, 5, 24)] * (1 + 3)
    assert outputs.encoder_hidden_states[-1].equal(outputs.encoder_last_hidden_state)
    assert model.lm_head(outputs.decoder_hidden_states[-1]).equal(outputs.logits)


def test_labels_are_shifted_right() -> None:
    model = tiny_model()
    labels = torch.tensor([[5, 6, 2, -100], [7, 2, -100, -100]])
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[BOS, 5, 6, 2], [BOS, 7, 2, PAD]]
    source = random_ids(2, 3)
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    with torch.no_grad():
        outputs, expected = model(source, labels=labels), model(source, decoder_input_ids=shifted)
    assert outputs.logits.equal(expected.logits)
    assert outputs.cache is None
    assert expected.loss is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"decoder_input_ids": torch.ones(1, 2).long()}, "TriviumEncoder.*neither"),
        ({"input_ids": torch.ones(1, 2).long()}, "TriviumDecoder.*neither"),
        (
            {
                "input_ids": torch.ones(1, 2).long(),
                "inputs_embeds": torch.ones(1, 2, 24),
                "decoder_input_ids": torch.ones(1, 2).long(),
            },
            "TriviumEncoder.*both",
        ),
    ],
    ids=["no-source", "no-target", "two-sources"],
)
def test_ambiguous_input_is_refused(inputs: Tensors, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model().float()(**inputs)


def test_decoder_without_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder_hidden_states.*None"):
        tiny_model().get_decoder()(input_ids=random_ids(1, 3))


def test_model_does_not_mutate_configuration() -> None:
    config = tiny_config()
    before = config.to_dict()
    TriviumForConditionalGeneration(config)
    assert config.to_dict() == before
