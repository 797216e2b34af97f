"""Train a tokenizer from text: BPE, WordPiece, Unigram, words or characters, with one shared vocabulary or two."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from trivium.tokenization.tokenization_backends import train_backend
from trivium.tokenization.tokenization_trivium import TriviumTokenizer

Algorithm = Literal["bpe", "wordpiece", "unigram", "word", "char"]
Normalization = Literal["NFC", "NFKC"]

# GPT-2's pre-tokenization pattern, with the mask as a separate word, which is looked up in the vocabulary as a whole.
# No other special token and no byte token such as "<0x41>" is a single word, so none can be learned from texts.
WORDS = r"<mask>|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?(?:(?!<mask>)[^\s\p{L}\p{N}])+|\s+(?!\S)|\s+"

# Whole words: the mask, English contractions, words with their hyphens, and single punctuation marks.
WHOLE_WORDS = r"<mask>|'(?:s|t|re|ve|m|ll|d)\b|\w+(?:-\w+)*|[^\w\s]"


def train_tokenizer(
    texts: Iterable[str],
    *,
    target_texts: Iterable[str] | None = None,
    shared: bool = True,
    vocab_size: int = 8000,
    algorithm: Algorithm = "bpe",
    byte_fallback: bool = False,
    normalization: Normalization | None = "NFC",
    lowercase: bool = False,
    add_bos_token: bool = False,
    add_eos_token: bool = True,
    model_max_length: int | None = None,
    show_progress: bool = False,
) -> TriviumTokenizer:
    """Train a lossless tokenizer: `decode(encode(text))` is the normalized text, for any text.

    Two algorithms are lossy: with `"char"` characters, and with `"word"` words, that are not in the vocabulary become
    `<unk>`, and decoded words are separated by single spaces.

    Training is deterministic: the same texts yield the same `tokenizer.json`, byte for byte.

    Args:
        texts: Texts of the source language, or of both languages.
        target_texts: Texts of the target language.
        shared: Whether to train one vocabulary on all texts, or one on `texts` and another on `target_texts`.
        vocab_size: Size of each vocabulary, including special tokens and alphabet. With few texts it may be smaller.
        algorithm: Byte-pair encoding (`"bpe"`, section 5.1), which merges the most frequent pair; `"wordpiece"`, with
            word-initial and continuing (`##`) pieces that are matched longest first; `"unigram"`, which maximizes the
            likelihood; `"word"`, the most frequent words and punctuation marks, for classifiers with little
            data; or `"char"`, without merges: the vocabulary consists of the characters of the texts, ordered by code
            point.
        byte_fallback: By default the alphabet is the 256 bytes. With byte fallback (`"bpe"` only) it is the characters
            of the texts, and any other character is encoded as bytes: pieces are readable, but every character takes
            up an entry of the vocabulary.
        normalization: Unicode normalization form of all texts; None for no normalization.
        lowercase: Whether to lowercase all texts as well.
        add_bos_token: Whether every text begins with `<s>`.
        add_eos_token: Whether every text ends with `</s>`.
        model_max_length: Maximum sequence length of the model, in tokens; `truncation=True` truncates to it.
        show_progress: Whether to show a progress bar.

    Returns:
        The tokenizer.

    Raises:
        ValueError: An argument is not one of its allowed values, there are no texts, or `vocab_size` is too small for
            the special tokens and the alphabet.
    """
    _check_choice("algorithm", algorithm, get_args(Algorithm))
    _check_choice("normalization", normalization, (*get_args(Normalization), None))
    if byte_fallback and algorithm != "bpe":
        raise ValueError(f"byte_fallback is True, but must be False with algorithm={algorithm!r}. Only 'bpe' has it.")
    if not shared and target_texts is None:
        raise ValueError("target_texts is None, but must be texts with shared=False. Pass them, or set shared=True.")

    def train(corpus: Iterable[str]) -> Tokenizer:
        backend = _build_backend(algorithm, byte_fallback)
        is_lossless = algorithm not in ("word", "char")
        backend.normalizer = _build_normalizer(normalization, lowercase, mask_takes_space=is_lossless)
        return train_backend(backend, corpus, vocab_size, show_progress)

    corpus = _check_texts("texts", texts)
    target_corpus = iter(()) if target_texts is None else _check_texts("target_texts", target_texts)
    if shared:
        backend, target_backend = train(itertools.chain(corpus, target_corpus)), None
    else:
        backend, target_backend = train(corpus), train(target_corpus)
    return TriviumTokenizer(
        tokenizer_object=backend,
        target_tokenizer_object=target_backend,
        add_bos_token=add_bos_token,
        add_eos_token=add_eos_token,
        model_max_length=model_max_length,
    )


def _build_backend(algorithm: Algorithm, byte_fallback: bool) -> Tokenizer:
    """Create a backend with an untrained model, and a decoder that is the inverse of the pre-tokenizer."""
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if byte_fallback or algorithm == "char":
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback, ignore_merges=True))
        backend.pre_tokenizer = words
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    elif algorithm == "word":
        backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(WHOLE_WORDS), "removed", invert=True)
    elif algorithm == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        # Split off every "#", so that a "##" in a text is not mistaken for the prefix of a continuing piece, and split
        # words after 100 characters, the maximum that WordPiece accepts.
        splits = pre_tokenizers.Split(Regex("#|[^#]{1,100}"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level, splits])
        backend.decoder = decoders.Sequence([decoders.Replace(Regex("^##"), ""), decoders.ByteLevel()])
    else:
        backend = Tokenizer(models.BPE(ignore_merges=True) if algorithm == "bpe" else models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
        backend.decoder = decoders.ByteLevel()
    return backend


def _build_normalizer(
    normalization: Normalization | None, lowercase: bool, mask_takes_space: bool
) -> normalizers.Normalizer:
    steps = []
    if normalization is not None:
        steps.append(getattr(normalizers, normalization)())
    if lowercase:
        steps.append(normalizers.Lowercase())
    if mask_takes_space:  # the masked word would include the space before it
        steps.append(normalizers.Replace(Regex(" (?=<mask>)"), ""))
    return normalizers.Sequence(steps)


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, allowed))}.")


def _check_texts(name: str, texts: Iterable[str]) -> Iterator[str]:
    """Yield texts, and raise a ValueError if one is not a string or if all are empty."""
    if isinstance(texts, str):
        raise ValueError(f"{name} is the string {texts[:40]!r}, but must be an iterable of texts. Put it into a list.")
    is_empty = True
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{name} has {text!r}, but must be strings.")
        is_empty = is_empty and not text
        yield text
    if is_empty:
        raise ValueError(f"{name} must not be empty: pass at least one text with characters.")
