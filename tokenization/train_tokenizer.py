"""Trains a tokenizer from text: BPE, WordPiece, Unigram or characters, for one shared vocabulary or for two."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from trivium.tokenization.tokenization_trivium import TriviumTokenizer, train_backend

Algorithm = Literal["bpe", "wordpiece", "unigram", "char"]
Normalization = Literal["NFC", "NFKC"]

# How GPT-2 cuts text into words, and the mask as a word of its own, which every model then looks up. No other special
# token and no "<0x41>" fits into a word, so that none can be learned from a text that has it.
WORDS = r"<mask>|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?(?:(?!<mask>)[^\s\p{L}\p{N}])+|\s+(?!\S)|\s+"


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
    """Trains a tokenizer that loses nothing: `decode(encode(text))` is the normalised text, whatever it is.

    Only `algorithm="char"` loses something: a character that the texts do not have becomes `<unk>`.

    The same texts give the same `tokenizer.json`, byte for byte.

    Args:
        texts: The texts of the source language, or all texts.
        target_texts: The texts of the target language.
        shared: Whether one vocabulary is trained on all texts, or one on `texts` and one on `target_texts`.
        vocab_size: The size of each vocabulary, with special tokens and alphabet. Few texts may fill less of it.
        algorithm: How pieces are found: by merging the most frequent pair (`"bpe"`), the same with word-initial and
            continuing (`##`) pieces that are matched longest first (`"wordpiece"`), or by likelihood (`"unigram"`).
            With `"char"` nothing is merged: the pieces are the characters of the texts, by code point.
        byte_fallback: The alphabet is by default the 256 bytes. With byte fallback (only for `"bpe"`) it is the
            characters of the texts, and any other character is spelled in bytes: readable pieces, but every
            character takes a place in the vocabulary.
        normalization: The Unicode normalisation of all text; `None` for none.
        lowercase: Whether all text is lower-cased as well.
        add_bos_token: Whether every text begins with `<s>`.
        add_eos_token: Whether every text ends with `</s>`.
        model_max_length: The longest sequence, in tokens, that the model takes; `truncation=True` cuts there.
        show_progress: Whether to show a progress bar.

    Returns:
        The tokenizer.

    Raises:
        ValueError: If an argument is none of the values it may have, if there is no text, or if `vocab_size` is
            smaller than the special tokens and the alphabet.
    """
    _check_choice("algorithm", algorithm, get_args(Algorithm))
    _check_choice("normalization", normalization, (*get_args(Normalization), None))
    if byte_fallback and algorithm != "bpe":
        raise ValueError(f"byte_fallback=True is for algorithm='bpe' only, got algorithm={algorithm!r}.")
    if not shared and target_texts is None:
        raise ValueError("shared=False needs target_texts, got None.")

    def train(corpus: Iterable[str]) -> Tokenizer:
        backend = _build_backend(algorithm, byte_fallback)
        backend.normalizer = _build_normalizer(normalization, lowercase, mask_takes_space=algorithm != "char")
        return train_backend(backend, corpus, vocab_size, show_progress)

    corpus = _checked_texts("texts", texts)
    target_corpus = iter(()) if target_texts is None else _checked_texts("target_texts", target_texts)
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
    """Puts an untrained model between a pre-tokenizer and a decoder that undo each other."""
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if byte_fallback or algorithm == "char":
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback, ignore_merges=True))
        backend.pre_tokenizer = words
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    elif algorithm == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        # "#" stands alone so that a "##" of the text is never taken for the prefix of a continuing piece, and
        # nothing is longer than the 100 characters that WordPiece reads before it gives up.
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
    if mask_takes_space:  # as a piece has the space before it inside, and so has what the mask stands for
        steps.append(normalizers.Replace(Regex(" (?=<mask>)"), ""))
    return normalizers.Sequence(steps)


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def _checked_texts(name: str, texts: Iterable[str]) -> Iterator[str]:
    """Passes texts on, and raises if one is no string or all are empty."""
    if isinstance(texts, str):
        raise ValueError(f"{name} must be many texts, got one: {texts[:40]!r}.")
    empty = True
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{name} must be strings, got {text!r}.")
        empty = empty and not text
        yield text
    if empty:
        raise ValueError(f"{name} must not be empty.")
