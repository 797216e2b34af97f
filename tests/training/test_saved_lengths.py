"""Test the length limits saved with a trained model, and how commands and pipelines apply them."""

import logging
from typing import Any

import pytest
import torch
from tiny import shake, tiny_config
from transformers import pipeline

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumTokenizer
from trivium.tokenization import train_tokenizer
from trivium.translation import continue_texts, default_lengths, translate

TEXTS = ["birds fly", "two dogs ran"]


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS * 2, vocab_size=300, add_eos_token=False, add_bos_token=True)


def endless(model_class: Any, tokenizer: TriviumTokenizer, **options: Any) -> Any:
    """Return a model that suppresses EOS, so that only length limits end a text."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "encoder_layers": 1, "decoder_layers": 1, **options}
    model = shake(model_class(tiny_config(**sizes))).eval()
    model.generation_config.suppress_tokens = [tokenizer.eos_token_id]
    return model


@pytest.mark.parametrize(
    ("options", "max_length", "expected"),
    [
        ({}, 40, {"max_length": 40}),
        ({"position_embedding_type": "learned", "max_position_embeddings": 16}, 40, {"max_length": 16}),
        ({"encoder_layers": 0}, 40, {"max_new_tokens": 40}),
        ({"encoder_layers": 0}, 4000, {"max_new_tokens": 256}),
        (
            {"encoder_layers": 0, "position_embedding_type": "learned", "max_position_embeddings": 16},
            40,
            {"max_length": 16},
        ),
    ],
)
def test_default_lengths(options: dict[str, Any], max_length: int, expected: dict[str, int]) -> None:
    assert default_lengths(tiny_config(**options), max_length) == expected


@pytest.mark.parametrize("saved", [{"max_length": 12}, {"max_new_tokens": 12}, {}], ids=str)
@pytest.mark.parametrize("asked", [{"max_length": 9}, {"max_new_tokens": 9}, {}], ids=str)
def test_no_warning_about_two_lengths(
    saved: dict[str, int], asked: dict[str, int], tokenizer: TriviumTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("transformers").propagate = True
    translator = endless(TriviumForConditionalGeneration, tokenizer)
    writer = endless(TriviumForCausalLM, tokenizer, encoder_layers=0)
    lengths = []

    def record(model: Any) -> None:
        generate = model.generate

        def recorded(*args: Any, **kwargs: Any) -> Any:
            output = generate(*args, **kwargs)
            lengths.append(output.shape[1])
            return output

        model.generate = recorded

    for model in (translator, writer):
        model.generation_config.update(**saved)
        record(model)
    list(translate(translator, tokenizer, TEXTS[:1], **asked))
    list(continue_texts(writer, tokenizer, TEXTS[:1], **asked))
    # Skip the combination in which transformers prefers the saved `max_new_tokens` to the `max_length` of the call.
    if not (saved.get("max_new_tokens") and asked.get("max_length")):
        pipeline("translation", model=translator, tokenizer=tokenizer)(TEXTS[0], **asked)
    assert "max_new_tokens" not in caplog.text
    prompt = len(tokenizer(TEXTS[0])["input_ids"])
    if asked:
        expected = [9 + asked.get("max_new_tokens", 0) // 9, 9 + (prompt if "max_new_tokens" in asked else 0)]
        assert lengths[:2] == expected
        assert set(lengths[2:]) <= {lengths[0]}
    else:
        translated = 13 if "max_new_tokens" in saved else prompt + 50
        continued = {"max_length": 12, "max_new_tokens": prompt + 12}.get(next(iter(saved), ""), prompt + 256)
        assert lengths == [translated, continued, translated]
