import time
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest

from trivium.tokenization import train_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog", "a small house and a big garden"] * 5
ALGORITHMS = [{}, {"byte_fallback": True}, {"algorithm": "wordpiece"}, {"algorithm": "unigram"}]


def many_words() -> list[str]:
    """Return texts with enough distinct words, many with a common stem, to fill a small vocabulary."""
    stems = [first + vowel + last for first in "bdfglmnprst" for vowel in ("a", "ei", "ou") for last in "dlmnrt"]
    return [f"{stem}s and {stem}ing {stem} the greetings of house {n}" for n, stem in enumerate(stems)]


@pytest.mark.parametrize("kind", ALGORITHMS, ids=str)
def test_vocabulary_is_filled_and_not_exceeded(kind: dict[str, Any]) -> None:
    assert len(train_tokenizer(many_words(), vocab_size=560, **kind)) == 560


@pytest.mark.parametrize("kind", ALGORITHMS, ids=str)
def test_words_are_learned(kind: dict[str, Any]) -> None:
    tokenizer = train_tokenizer(many_words(), vocab_size=700, **kind)
    ids = tokenizer.encode("the boud", add_special_tokens=False)
    assert len(ids) <= 4  # fewer than the eight characters of the text
    assert tokenizer.decode(ids) == "the boud"


def test_byte_fallback_only_for_unseen_characters() -> None:
    tokenizer = train_tokenizer(["größer 日"] * 5, vocab_size=300, byte_fallback=True)
    assert tokenizer.tokenize("größer本") == ["größer", "<0xE6>", "<0x9C>", "<0xAC>"]
    assert "日" in tokenizer.get_vocab()


CHARACTERS = ["to be,\n\tor not to be: </s> <mask> é\n"]


def test_character_vocabulary_is_in_code_point_order() -> None:
    tokenizer = train_tokenizer(CHARACTERS, algorithm="char")
    characters = sorted(set(CHARACTERS[0]))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.convert_ids_to_tokens(range(5, len(tokenizer))) == characters
    smallest = train_tokenizer(CHARACTERS, algorithm="char", vocab_size=len(tokenizer))
    assert smallest.get_vocab() == tokenizer.get_vocab()
    again = tokenizer.train_new_from_iterator(["zebra"], vocab_size=10)
    assert again.convert_ids_to_tokens(range(5, len(again))) == ["a", "b", "e", "r", "z"]


@pytest.mark.parametrize("text", [CHARACTERS[0].replace("<mask>", ""), "\n\n  to\t", "  ", "</s>", "<s>to</s>", ""])
def test_character_tokenizer_is_lossless(text: str) -> None:
    tokenizer = train_tokenizer(CHARACTERS, algorithm="char", normalization=None)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    assert not set(ids) & {0, 1, 2, 3, 4}
    assert tokenizer.decode(ids) == text


def test_unseen_characters_are_lost() -> None:
    tokenizer = train_tokenizer(CHARACTERS, algorithm="char")
    assert tokenizer.tokenize("日to日本") == ["<unk>", "t", "o", "<unk>", "<unk>"]
    assert tokenizer.tokenize("e\u0301") == ["é"]
    exact = train_tokenizer(CHARACTERS, algorithm="char", normalization=None)
    assert exact.tokenize("e\u0301") == ["e", "<unk>"]


def test_mask_replaces_one_character() -> None:
    tokenizer = train_tokenizer(CHARACTERS, algorithm="char")
    assert tokenizer.tokenize("t<mask> <mask>e<mas") == ["t", "<mask>", " ", "<mask>", "e", "<", "m", "a", "s"]


def test_long_text_of_characters_is_linear_time() -> None:
    text = "to be, or not to be:\n" * 10_000
    start = time.perf_counter()
    tokenizer = train_tokenizer([text], algorithm="char", normalization=None)
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert time.perf_counter() - start < 20  # Training takes half a second; in quadratic time, it would take hours.


def test_word_vocabulary_has_the_most_frequent_words() -> None:
    tokenizer = train_tokenizer(["What 's a well-known word?", "What's a <pad>?", "A"], algorithm="word", vocab_size=8)
    assert tokenizer.convert_ids_to_tokens(range(8)) == ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "'s", "?", "What"]
    assert tokenizer.tokenize("What's<mask>\tup?") == ["What", "'s", "<mask>", "<unk>", "?"]
    ids = tokenizer.encode("What <pad>What?", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["What", "<unk>", "<unk>", "<unk>", "What", "?"]
    assert tokenizer.decode(tokenizer.encode("What's\n ?"), skip_special_tokens=True) == "What 's ?"


def test_words_keep_their_hyphens() -> None:
    tokenizer = train_tokenizer(["the well-known Größe don't 3.5"], algorithm="word", vocab_size=100)
    assert tokenizer.tokenize("the well-known Größe don't 3.5") == [
        *("the", "well-known", "Größe", "don", "'t", "3", ".", "5"),
    ]


@pytest.mark.parametrize("kind", ALGORITHMS, ids=str)
def test_special_tokens_in_texts_do_not_harm_training(kind: dict[str, Any]) -> None:
    texts = ["</s> <pad>", "</s><s><unk>", "<0x41><0x42>", "####a##", "<mask> <mask>"] * 50
    tokenizer = train_tokenizer(texts, vocab_size=700, **kind)
    for text in texts[:4]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert min(ids) > 4
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, unicodedata.normalize("NFC", "e\u0301 ﬁ É")),
        ({"normalization": "NFKC"}, "é fi É"),
        ({"normalization": None}, "e\u0301 ﬁ É"),
        ({"lowercase": True}, "é ﬁ é"),
    ],
)
def test_normalization(options: dict[str, Any], expected: str) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, **options)
    assert tokenizer.decode(tokenizer.encode("e\u0301 ﬁ É"), skip_special_tokens=True) == expected


def test_shared_vocabulary_learns_from_both_languages() -> None:
    german = ["ein kleines Haus"] * 5
    tokenizer = train_tokenizer(iter(TEXTS), target_texts=iter(german), vocab_size=400)
    assert tokenizer.tokenize(" house") == ["Ġhouse"]
    assert tokenizer.tokenize(" kleines") == ["Ġkleines"]
    two = train_tokenizer(iter(TEXTS), target_texts=iter(german), shared=False, vocab_size=400)
    assert len(two.tokenize(" kleines")) > 1
    assert two.target.tokenize(" kleines") == ["Ġkleines"]


def test_model_max_length() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, model_max_length=7)
    assert len(tokenizer("a big garden" * 20, truncation=True)["input_ids"]) == 7


@pytest.mark.parametrize("kind", [*ALGORITHMS, {"algorithm": "word"}], ids=str)
def test_training_is_deterministic(kind: dict[str, Any]) -> None:
    """Train several times: the hash tables of the trainers are ordered differently each time, even in one process."""
    texts = [*many_words(), "größer & 日"]
    runs = {train_tokenizer(texts, vocab_size=600, **kind).backend_tokenizer.to_str() for _ in range(3)}
    assert len(runs) == 1


def test_progress_bar_is_off_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(TEXTS, vocab_size=300)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "texts must not be empty"),
        ({"texts": ["", ""]}, "texts must not be empty"),
        ({"texts": "one text"}, "texts.*'one text'.*iterable of texts"),
        ({"texts": ["fine", None]}, "texts.*None.*must be strings"),
        ({"texts": ["fine", "a\ud800"]}, r"lone surrogates.*'a\\ud800'"),
        ({"target_texts": [], "shared": True}, "target_texts must not be empty"),
        ({"target_texts": ["x", 3], "shared": False}, "target_texts.*3.*must be strings"),
        ({"shared": False}, "target_texts is None.*shared=False"),
        ({"algorithm": "BPE"}, "algorithm is 'BPE'.*'bpe', 'wordpiece', 'unigram', 'word', 'char'"),
        ({"algorithm": "unigram", "byte_fallback": True}, "byte_fallback is True.*'unigram'.*'bpe'"),
        ({"normalization": "NFD"}, "normalization is 'NFD'.*'NFC', 'NFKC', None"),
        ({"vocab_size": "600"}, "vocab_size is '600'.*integer"),
        ({"vocab_size": 600.0}, r"vocab_size is 600\.0.*integer"),
        (
            {"vocab_size": 10**9},
            "vocab_size is 1,000,000,000.*at most 1,048,576",
        ),  # the trainer would allocate the memory
        ({"vocab_size": 260}, "vocab_size is 260.*at least 261.*alphabet"),
        ({"vocab_size": 516, "algorithm": "wordpiece"}, "vocab_size is 516.*at least 517"),
        ({"vocab_size": 260, "algorithm": "unigram"}, "vocab_size is 260.*at least 261"),
        (
            {"vocab_size": 270, "byte_fallback": True},
            "vocab_size is 270.*at least 288.*every character",
        ),
        ({"vocab_size": 31, "algorithm": "char"}, "vocab_size is 31.*at least 32.*every character"),
        ({"vocab_size": 4, "algorithm": "char"}, "vocab_size is 4.*at least 5"),
        ({"vocab_size": 4, "algorithm": "word"}, "vocab_size is 4.*at least 5"),
        ({"byte_fallback": True, "algorithm": "char"}, "byte_fallback is True.*'char'.*'bpe'"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_tokenizer(**{"texts": TEXTS, "vocab_size": 600, **arguments})


@pytest.mark.parametrize(("kind", "smallest"), list(zip(ALGORITHMS, [261, 288, 517, 261], strict=True)), ids=str)
def test_smallest_vocabulary_works(kind: dict[str, Any], smallest: int) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=smallest, **kind)
    assert len(tokenizer) == smallest
    assert tokenizer.decode(tokenizer.encode("日 fox"), skip_special_tokens=True) == "日 fox"


def test_error_in_iterator_propagates() -> None:
    def texts() -> Iterator[str]:
        yield "one"
        raise RuntimeError("broken pipe")

    with pytest.raises(RuntimeError, match="broken pipe"):
        train_tokenizer(texts(), vocab_size=300)
