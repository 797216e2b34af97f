"""Trained tokenizers of every algorithm."""

from transformers import PreTrainedTokenizerFast

from trivium.tokenization import TriviumTokenizer, train_tokenizer

SOURCE = ["the quick brown fox jumps over the lazy dog", "a small house & a big garden", "## ##a </s> <0x41>"] * 5
TARGET = ["der schnelle braune Fuchs springt über den faulen Hund", "ein kleines Haus"] * 5
KINDS = [
    {},
    {"byte_fallback": True},
    {"algorithm": "wordpiece"},
    {"algorithm": "unigram"},
    {"normalization": None},
    {"normalization": "NFKC", "lowercase": True},
]
TRAINED = [train_tokenizer(SOURCE, vocab_size=560, **kind) for kind in KINDS]
PLAIN = TRAINED[KINDS.index({"normalization": None})]
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{% generation %} {{ message['content'] }} {{ eos_token }}"
    "{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
USER: dict[str, str] = {"role": "user", "content": "the fox"}
ASSISTANT: dict[str, str] = {"role": "assistant", "content": "a dog"}


def assert_same(a: TriviumTokenizer, b: PreTrainedTokenizerFast) -> None:
    assert type(a).__name__ == type(b).__name__
    assert a.shared_vocabulary == b.shared_vocabulary
    assert a.special_tokens_map == b.special_tokens_map
    assert a.model_max_length == b.model_max_length
    assert a._tokenizer.to_str() == b._tokenizer.to_str()
    assert a.target._tokenizer.to_str() == b.target._tokenizer.to_str()
    text, target = "a quick </s> <mask>日", "ein <s> Hund"
    assert a(text, text_target=target) == b(text, text_target=target)
