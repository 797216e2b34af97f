"""Fixtures: tokenizers with one vocabulary, with two, and with a chat template."""

import pytest
from trained_tokenizers import CHAT, SOURCE, TARGET

from trivium.tokenization import TriviumTokenizer, train_tokenizer


@pytest.fixture
def shared() -> TriviumTokenizer:
    return train_tokenizer(SOURCE, target_texts=TARGET, vocab_size=400)


@pytest.fixture
def two() -> TriviumTokenizer:
    return train_tokenizer(SOURCE, target_texts=TARGET, shared=False, vocab_size=310, model_max_length=64)


@pytest.fixture
def chat() -> TriviumTokenizer:
    tokenizer = train_tokenizer(SOURCE, vocab_size=400, add_bos_token=True)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer
