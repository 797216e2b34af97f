"""Test `lm_head_bias`, the bias of the output projection: logits, splitting, joining and resizing."""

from pathlib import Path

import pytest
import torch
from tiny import random_ids, tiny_config, tiny_model

from trivium import (
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    join,
    split,
)

CLASSES = {TriviumForConditionalGeneration: {}, TriviumForCausalLM: {"encoder_layers": 0}}
every_class = pytest.mark.parametrize("model_class", CLASSES)


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})).logits


@every_class
def test_bias_is_added_to_logits(model_class: type) -> None:
    model = tiny_model(model_class, lm_head_bias=True, **CLASSES[model_class])
    ids = random_ids(2, 5)
    bias, with_bias = model.lm_head.bias.detach().clone(), logits(model, ids)
    assert bias.abs().min() > 0
    model.lm_head.bias.data.zero_()
    torch.testing.assert_close(with_bias, logits(model, ids) + bias)


@every_class
def test_bias_is_off_by_default_and_starts_at_zero(model_class: type) -> None:
    assert model_class(tiny_config(**CLASSES[model_class])).lm_head.bias is None
    assert model_class(tiny_config(lm_head_bias=True, **CLASSES[model_class])).lm_head.bias.eq(0).all()


@every_class
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("new_size", [27, 36])
def test_bias_is_resized_with_vocabulary(model_class: type, tied: bool, new_size: int, tmp_path: Path) -> None:
    model = tiny_model(model_class, lm_head_bias=True, tie_word_embeddings=tied, **CLASSES[model_class])
    before = model.lm_head.bias.detach().clone()
    model.resize_token_embeddings(new_size)
    kept = min(new_size, 31)
    assert model.lm_head.bias.shape == (new_size,)
    assert torch.equal(model.lm_head.bias[:kept], before[:kept])
    model.save_pretrained(tmp_path)
    ids = random_ids(2, 5, vocab_size=27)
    torch.testing.assert_close(logits(model_class.from_pretrained(tmp_path).eval(), ids), logits(model, ids))


@pytest.mark.parametrize("two_vocabularies", [False, True])
def test_bias_is_split_and_joined_with_decoder(two_vocabularies: bool) -> None:
    model = tiny_model(lm_head_bias=True, decoder_vocab_size=37 if two_vocabularies else None)
    parts = split(model)
    assert not parts.encoder.config.lm_head_bias
    assert torch.equal(parts.decoder.lm_head.bias, model.lm_head.bias)
    joined, new_parameters = join(*parts)
    assert not new_parameters
    assert joined.config.lm_head_bias
    ids = random_ids(2, 5)
    assert torch.equal(logits(joined, ids), logits(model, ids))
    parts.decoder.lm_head.bias.data.zero_()  # The parts share no memory with the source models.
    assert model.lm_head.bias.abs().min() > 0
    assert torch.equal(joined.lm_head.bias, model.lm_head.bias)


def test_halves_load_only_their_own_bias(tmp_path: Path) -> None:
    model = tiny_model(lm_head_bias=True)
    model.save_pretrained(tmp_path)
    decoder, report = TriviumForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(decoder.lm_head.bias, model.lm_head.bias)
    assert not report["missing_keys"]
    for half in (TriviumDecoderModel, TriviumEncoderModel, TriviumForMaskedLM):
        _, report = half.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["unexpected_keys"]
        assert not [name for name in report["missing_keys"] if not name.startswith("mlm_head")]
