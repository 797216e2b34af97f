"""Fuzz tokenizers with random texts: no text is encoded as a reserved token, and decoding restores every text."""

import random

import pytest

from trivium.tokenization import TriviumTokenizer, train_tokenizer

pytestmark = pytest.mark.slow
PIECES = [
    *(
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "<mask>",
        "<s",
        "s>",
        "##",
        "<0x41>",
        "\0",
        "\x7f",
        "\u202e",
        "\ufeff",
        "e\u0301",
    ),
    *(
        "🙂",
        "👩‍👩‍👧",
        "日本語",
        "ﷺ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "a",
        "B",
        "zwei",
        "half past seven",
        "İ",
        "ß",
        "ﬁ",
        "\U0010ffff",
    ),
]


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram", "word", "char"])
def test_hostile_texts(algorithm: str, cases: int, rng: random.Random) -> None:
    texts = ["half past seven", "three hundred and two", "".join(PIECES)]
    size = 8000 if algorithm == "char" else 600
    tokenizer: TriviumTokenizer = train_tokenizer(texts, vocab_size=size, algorithm=algorithm, normalization=None)
    reserved = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    for _ in range(cases):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 12)))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert not reserved & set(ids), text
        if algorithm not in ("word", "char") and "<mask>" not in text:
            assert tokenizer.decode(ids) == text
