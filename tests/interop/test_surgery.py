"""Test splitting and rejoining an encoder-decoder: no weights are lost or added, and outputs are bitwise equal."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import assert_same_weights, halves
from tiny import POSITIONS, mask_of, random_ids, shake, tiny_model, train_to_copy
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from trivium import (
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumModel,
)
from trivium.modeling import TriviumPreTrainedModel
from trivium.surgery import join, split

TYING: dict[str, dict[str, Any]] = {
    "one-vocabulary-tied": {},
    "one-vocabulary-untied": {"tie_word_embeddings": False},
    "two-vocabularies-tied": {"decoder_vocab_size": 23},
    "two-vocabularies-untied": {"decoder_vocab_size": 23, "tie_word_embeddings": False},
    "two-of-one-size-tied": {"decoder_vocab_size": 31},
}
KINDS: dict[str, dict[str, Any]] = {
    **{
        f"{position}-{norm_position}": {"position_embedding_type": position, "norm_position": norm_position}
        for position in POSITIONS
        for norm_position in ("post", "pre")
    },
    "of-everything": {
        "normalize_embedding": True,
        "type_vocab_size": 2,
        "num_key_value_heads": 2,
        "gated_ffn": True,
        "attention_bias": True,
    },
}
all_tyings = pytest.mark.parametrize("tying", TYING.values(), ids=TYING)
# The default suite tests every kind with one way of tying, and every way of tying with one kind.
all_combinations = pytest.mark.parametrize(
    ("kind", "tying"),
    [
        pytest.param(
            KINDS[kind],
            TYING[tying],
            id=f"{kind}-{tying}",
            marks=() if tying == "one-vocabulary-tied" or kind == "of-everything" else pytest.mark.slow,
        )
        for kind in KINDS
        for tying in TYING
    ],
)


def translations(model: TriviumForConditionalGeneration) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits and beam search outputs for a fixed padded batch."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 23, (2, 6), generator=generator)
    mask = mask_of([6, 4])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids).logits
        return logits, model.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=8)


# --- Round trips -----------------------------------------------------------------------------------------------------


@all_combinations
def test_split_and_join_is_bit_identical(kind: dict[str, Any], tying: dict[str, Any]) -> None:
    model = tiny_model(**kind, **tying)
    joined, new_parameters = join(*split(model))
    assert isinstance(joined, TriviumForConditionalGeneration)
    assert new_parameters == []
    assert_same_weights(joined.state_dict(), model.state_dict())
    assert len(list(joined.parameters())) == len(list(model.parameters()))  # the same weights are tied
    assert joined.config.to_dict() == {**model.config.to_dict(), "auto_map": {}}
    assert joined.config._attn_implementation == model.config._attn_implementation == "eager"
    for now, before in zip(translations(joined), translations(model), strict=True):
        assert torch.equal(now, before)


@all_tyings
def test_split_and_join_without_head(tying: dict[str, Any]) -> None:
    model = tiny_model(TriviumModel, **tying)
    parts = split(model)
    assert isinstance(parts.decoder, TriviumDecoderModel)
    joined, new_parameters = join(*parts)
    assert isinstance(joined, TriviumModel)
    assert new_parameters == []
    assert_same_weights(joined.state_dict(), model.state_dict())


@all_combinations
def test_parts_match_from_pretrained(kind: dict[str, Any], tying: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**kind, **tying)
    model.generation_config.update(num_beams=4, length_penalty=0.6)
    model.save_pretrained(tmp_path)
    parts = split(model)
    for part in (parts.encoder, parts.decoder):
        loaded, report = type(part).from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
        assert not any(report.values()), report
        assert_same_weights(part.state_dict(), loaded.state_dict())
        ignored = {"_name_or_path", "dtype", "auto_map", "architectures", "transformers_version"}
        configs = [
            {k: v for k, v in any_model.config.to_dict().items() if k not in ignored} for any_model in (part, loaded)
        ]
        assert configs[0] == configs[1]
        assert not part.training
        assert part.dtype == loaded.dtype == torch.float64
    settings = parts.decoder.generation_config.to_dict()
    assert settings == loaded.generation_config.to_dict()
    assert (settings["num_beams"], settings["length_penalty"]) == (4, 0.6)
    assert join(*parts).model.generation_config.to_dict() == model.generation_config.to_dict()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_split_encoder_matches_activations(kind: dict[str, Any]) -> None:
    model = tiny_model(**kind)
    ids, mask = random_ids(2, 6), mask_of([6, 3])
    with torch.no_grad():
        whole = model.model.encoder(ids, mask, output_hidden_states=True).hidden_states
        part = split(model).encoder(ids, mask, output_hidden_states=True).hidden_states
    assert len(whole) == len(part) == 3
    assert all(torch.equal(*each) for each in zip(whole, part, strict=True))


@all_tyings
def test_split_decoder_matches_zeroed_cross_attention(tying: dict[str, Any]) -> None:
    """With pre-norm, cross-attention that outputs zeros leaves the hidden states unchanged, as if it were absent."""
    model = tiny_model(norm_position="pre", **tying)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.cross_attn.o_proj.weight.zero_()
        ids = random_ids(2, 6, vocab_size=23)
        assert torch.equal(split(model).decoder(ids).logits, model(input_ids=ids, decoder_input_ids=ids).logits)


def test_remainder_is_cross_attention() -> None:
    model = tiny_model(TriviumModel)
    parts = split(model)
    halves = parts.encoder.state_dict().keys() | parts.decoder.state_dict().keys()
    assert not halves & parts.cross_attention.keys()
    assert halves | parts.cross_attention.keys() == model.state_dict().keys()
    assert "decoder.layers.2.cross_attn.q_proj.weight" in parts.cross_attention
    assert "decoder.layers.2.cross_attn_residual.norm.weight" in parts.cross_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    parts = split(model)
    joined, _ = join(*parts)
    warm, _ = join(parts.encoder, parts.decoder)
    for each_model in (parts.encoder, parts.decoder, joined, warm):
        assert {parameter.dtype for parameter in each_model.parameters()} == {dtype}
    assert {weight.dtype for weight in parts.cross_attention.values()} == {dtype}
    assert_same_weights(joined.state_dict(), model.state_dict())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_split_and_join_do_not_mutate_inputs(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied).train()
    model.model.encoder.requires_grad_(False)
    weights, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    settings = model.generation_config.to_dict()
    random_state = torch.get_rng_state()

    parts = split(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    cut = [copy.deepcopy(part.state_dict()) for part in parts[:2]]
    cut_configs = [part.config.to_dict() for part in parts[:2]]
    cross_attention = copy.deepcopy(parts.cross_attention)
    joined, _ = join(*parts)
    warm, _ = join(parts.encoder, parts.decoder)
    for joined_model in (joined, warm):
        shake(joined_model)
        joined_model.config.dropout = 0.5
        joined_model.generation_config.num_beams = 7
    for part, before, before_config in zip(parts[:2], cut, cut_configs, strict=True):
        assert_same_weights(part.state_dict(), before)
        assert part.config.to_dict() == before_config
    assert_same_weights(parts.cross_attention, cross_attention)

    for part in parts[:2]:
        shake(part)
        part.config.dropout = 0.3
    parts.decoder.generation_config.num_beams = 7
    for weight in parts.cross_attention.values():
        weight.zero_()
    assert_same_weights(model.state_dict(), weights)
    assert model.config.to_dict() == config
    assert model.generation_config.to_dict() == settings
    assert model.training
    assert not model.model.encoder.embed_tokens.weight.requires_grad
    assert all(parameter.requires_grad for part in parts[:2] for parameter in part.parameters())


def test_wrapping_a_part_does_not_reinitialize_it() -> None:
    class Wrapper(TriviumPreTrainedModel):
        def __init__(self, part: TriviumEncoderModel) -> None:
            super().__init__(part.config)
            self.model = part
            self.head = nn.Linear(24, 2)
            self.post_init()

    part = split(tiny_model()).encoder
    before = copy.deepcopy(part.state_dict())
    assert_same_weights(Wrapper(part).model.state_dict(), before)


# --- Warm start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", ["layernorm", "rmsnorm"])
def test_warm_start_lists_exactly_the_new_weights(norm_type: str) -> None:
    kind: dict[str, Any] = {"norm_type": norm_type, "attention_bias": True}
    encoder = tiny_model(TriviumForMaskedLM, decoder_layers=0, encoder_layers=1, type_vocab_size=3, **kind)
    decoder = tiny_model(TriviumForCausalLM, encoder_layers=0, vocab_size=23, **kind)
    model, new_parameters = join(encoder, decoder)
    old = {**encoder.base_model.state_dict(), **decoder.base_model.state_dict()}
    named = dict(model.named_parameters())
    assert new_parameters == sorted(name for name in named if "cross_attn" in name)
    assert {name.removeprefix("model.") for name in named} == {
        *old,
        *(name.removeprefix("model.") for name in new_parameters),
    }
    for name, weight in old.items():
        assert torch.equal(named[f"model.{name}"], weight), name
    for name in new_parameters:
        if "norm" in name or "bias" in name:
            assert torch.equal(named[name], torch.full_like(named[name], float("norm.weight" in name)))
        else:
            limit = (6 / sum(named[name].shape)) ** 0.5  # Bounds of Glorot initialization.
            assert 0.9 * limit < named[name].abs().max() <= limit
    assert (model.config.encoder_layers, model.config.decoder_layers) == (1, 3)
    assert (model.config.vocab_size, model.config.decoder_vocab_size, model.config.type_vocab_size) == (31, 23, 3)


def test_warm_start_is_reproducible() -> None:
    parts = halves()
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        starts.append(join(*parts).model.state_dict())
    assert_same_weights(starts[0], starts[1])
    name = "model.decoder.layers.0.cross_attn.q_proj.weight"
    assert not torch.equal(starts[0][name], starts[2][name])


def test_warm_start_survives_saving(tmp_path: Path) -> None:
    encoder, decoder = halves()
    model, new_parameters = join(encoder, decoder)
    assert model.config.decoder_vocab_size == 31  # The vocabularies have the same size, but different tokens.
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_same_weights(loaded.state_dict(), model.state_dict())
    again = split(loaded)
    assert_same_weights(again.encoder.state_dict(), encoder.state_dict())
    assert_same_weights(again.decoder.state_dict(), decoder.state_dict())
    assert {f"model.{name}" for name in again.cross_attention} == set(new_parameters)


def test_warm_start_trains() -> None:
    encoder, decoder = (half.float() for half in halves({"norm_position": "pre"}, {"norm_position": "pre"}))
    model, _ = join(encoder, decoder)
    ids = random_ids(4, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.ne(0).any(), name
    model.zero_grad()

    def loss() -> float:
        with torch.no_grad():
            return model(input_ids=ids, labels=ids).loss.item()

    before = loss()
    train_to_copy(model, steps=60)
    assert loss() < 0.8 * before


def test_tying_of_encoder_is_ignored() -> None:
    for decoder_tied in (True, False):
        encoder, decoder = halves({"tie_word_embeddings": not decoder_tied}, {"tie_word_embeddings": decoder_tied})
        encoder.get_input_embeddings().load_state_dict(decoder.get_input_embeddings().state_dict())
        model, _ = join(encoder, decoder)
        matrices = [model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head]
        assert len({id(matrix.weight) for matrix in matrices}) == (2 if decoder_tied else 3)
        assert_same_weights(split(model).encoder.state_dict(), encoder.state_dict())
        assert_same_weights(split(model).decoder.state_dict(), decoder.state_dict())


def test_start_token_falls_back_and_other_ids_are_decoders() -> None:
    encoder, decoder = halves(
        {"dropout": 0.3, "label_smoothing": 0.2, "bos_token_id": 5, "classifier_pooling": "cls"},
        {"dropout": 0.4, "label_smoothing": 0.0, "bos_token_id": 6, "eos_token_id": 7, "decoder_start_token_id": None},
    )
    decoder.generation_config.update(num_beams=3)
    decoder.config.auto_map = {"AutoModelForCausalLM": "file.Class"}
    model, _ = join(encoder, decoder)
    config = model.config
    assert (config.dropout, config.label_smoothing, config.classifier_pooling) == (0.4, 0.0, "cls")
    assert (config.bos_token_id, config.eos_token_id, config.decoder_start_token_id) == (6, 7, 6)
    assert (model.generation_config.num_beams, model.generation_config.decoder_start_token_id) == (3, 6)
    assert decoder.generation_config.decoder_start_token_id is None
    assert model.generate(random_ids(1, 4), max_new_tokens=2)[0, 0] == 6
    assert config.auto_map == {}


# --- Errors ----------------------------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "d_model": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "ffn_dim": 48,
    "gated_ffn": True,
    "activation_function": "gelu",
    "position_embedding_type": "rotary",
    "max_position_embeddings": 65,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
    "sliding_window": 8,
    "norm_type": "rmsnorm",
    "norm_position": "pre",
    "norm_eps": 1e-6,
    "attention_bias": True,
    "ffn_bias": False,
    "scale_embedding": False,
    "normalize_embedding": True,
    "pad_token_id": 3,
}


@pytest.mark.parametrize("field", OTHER)
def test_fields_that_must_match(field: str) -> None:
    encoder, decoder = halves({"num_key_value_heads": 2}, {"num_key_value_heads": 2, field: OTHER[field]})
    message = f"{field} is {getattr(encoder.config, field)!r} in the encoder, but {OTHER[field]!r} in the decoder"
    with pytest.raises(ValueError, match=re.escape(message)):
        join(encoder, decoder)


def test_dtypes_must_match() -> None:
    encoder, decoder = halves()
    with pytest.raises(ValueError, match=r"dtype.*torch\.float64.*encoder.*torch\.float32.*decoder"):
        join(encoder, decoder.float())


def test_only_matching_model_kinds_are_accepted() -> None:
    whole = tiny_model()
    encoder, decoder, _ = split(whole)
    with pytest.raises(ValueError, match=r"model.*TriviumForCausalLM.*encoder_layers=0.*decoder_layers=3"):
        split(decoder)
    with pytest.raises(ValueError, match=r"model.*TriviumEncoderModel.*encoder-decoder"):
        split(encoder)
    with pytest.raises(ValueError, match=r"encoder.*TriviumForCausalLM.*encoder-only model"):
        join(decoder, decoder)
    with pytest.raises(ValueError, match=r"decoder.*TriviumForConditionalGeneration.*decoder-only"):
        join(encoder, whole)


def test_other_models_are_refused_by_name() -> None:
    from transformers import BertConfig, BertModel

    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )
    with pytest.raises(ValueError, match=r"model.*BertModel \(model_type='bert'\)"):
        split(bert)


def test_cross_attention_must_match() -> None:
    encoder, decoder, cross_attention = split(tiny_model())
    first, second = "decoder.layers.0.cross_attn.k_proj.weight", "decoder.layers.2.cross_attn.k_proj.weight"
    lacking = {name: weight for name, weight in cross_attention.items() if name not in (first, second)}
    with pytest.raises(ValueError, match=re.escape(f"cross_attention lacks {first}, of shape (24, 24).")):
        join(encoder, decoder, lacking)
    with pytest.raises(ValueError, match=f"cross_attention lacks {re.escape(first)}"):
        join(encoder, decoder, {})  # an empty mapping is an error, not a warm start
    with pytest.raises(ValueError, match=r"cross_attention.*decoder\.layers\.3\.x"):
        join(
            encoder,
            decoder,
            {**cross_attention, "decoder.layers.10.x": torch.ones(1), "decoder.layers.3.x": torch.ones(1)},
        )
    with pytest.raises(ValueError, match=re.escape(f"{second} of shape (24, 6), but it must be (24, 24).")):
        join(encoder, decoder, {**cross_attention, second: torch.ones(24, 6)})
