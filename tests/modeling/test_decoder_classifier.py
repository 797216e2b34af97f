"""Test the decoder's sequence classifier, which reads the last real token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SAME_WEIGHTS, mask_of, random_ids, tiny_model
from transformers import AutoModelForSequenceClassification

from trivium import (
    TriviumConfig,
    TriviumDecoderForSequenceClassification,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForSequenceClassification,
)

LENGTHS = [6, 2, 4]


def classifier(**options: Any) -> TriviumDecoderForSequenceClassification:
    return tiny_model(TriviumDecoderForSequenceClassification, encoder_layers=0, num_labels=3, **options)


@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_padded_texts_match_single_texts(side: str) -> None:
    model, mask, ids = classifier(), mask_of(LENGTHS, side), random_ids(3, 6)
    together = model(ids, attention_mask=mask).logits
    for row, logits in enumerate(together):
        alone = ids[row, mask[row].bool()][None]
        torch.testing.assert_close(model(alone).logits[0], logits, **SAME_WEIGHTS)
        state = model.model(alone).last_hidden_state[0, -1]
        torch.testing.assert_close(model.score(state), logits, **SAME_WEIGHTS)


@torch.no_grad()
def test_cached_text_matches_whole_text() -> None:
    model, ids = classifier(), random_ids(2, 6)
    mask = mask_of([6, 6])
    cache = model(ids[:, :4], use_cache=True).cache
    logits = model(ids[:, 4:], attention_mask=mask, cache=cache).logits
    torch.testing.assert_close(logits, model(ids).logits, **SAME_WEIGHTS)


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (torch.tensor([0, 2, 1]), torch.nn.functional.cross_entropy),
        (torch.eye(3, dtype=torch.float64), torch.nn.functional.binary_cross_entropy_with_logits),
    ],
)
def test_loss(labels: torch.Tensor, loss: Any) -> None:
    outputs = classifier()(random_ids(3, 6), attention_mask=mask_of(LENGTHS), labels=labels)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))
    assert outputs.cache is None


def test_auto_class_selects_by_architecture(tmp_path: Path) -> None:
    """Decoder-only models get the decoder's classifier; encoders and encoder-decoders get the encoder's."""
    classifier().save_pretrained(tmp_path / "decoder")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "decoder")
    assert type(model) is TriviumDecoderForSequenceClassification
    assert model.config.num_labels == 3
    tiny_model(TriviumForCausalLM, encoder_layers=0).save_pretrained(tmp_path / "language")
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "language", num_labels=1, output_loading_info=True
    )
    assert type(model) is TriviumDecoderForSequenceClassification
    assert info["missing_keys"] == {"score.weight"}
    assert not info["unexpected_keys"]
    tiny_model(TriviumForConditionalGeneration).save_pretrained(tmp_path / "both")
    assert (
        type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "both")) is TriviumForSequenceClassification
    )


def test_decoder_is_required() -> None:
    with pytest.raises(ValueError, match="decoder_layers is 0"):
        TriviumDecoderForSequenceClassification(TriviumConfig(decoder_layers=0))
