"""Backends of the `tokenizers` library: training, special tokens and prefix spaces.

This file is saved to the Hub with tokenizers that need it, so it imports nothing from the package.
"""

import json
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel

# Ids follow this order in every vocabulary: 0, 1, 2, 3, 4.
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
MAX_VOCAB_SIZE = 2**20  # trainers allocate memory for the whole vocabulary in advance


def train_backend(
    backend: Tokenizer, texts: Iterable[str] | Iterable[list[str]], vocab_size: int, show_progress: bool = False
) -> Tokenizer:
    """Train the model of a backend from scratch, with fixed ids of the special tokens.

    Args:
        backend: Byte-level BPE, WordPiece or Unigram, WordLevel, BPE with byte fallback, or BPE with an unknown token,
            which is trained as a character vocabulary. Training invalidates it.
        texts: Texts, or batches of texts.
        vocab_size: Size of the vocabulary, including special tokens and alphabet.
        show_progress: Whether to show a progress bar.

    Returns:
        The trained backend.

    Raises:
        ValueError: `vocab_size` is not an integer, too large, or too small for special tokens and alphabet; or a text
            has a lone surrogate.
    """
    try:
        vocab_size = operator.index(vocab_size)
    except TypeError as error:
        raise ValueError(f"vocab_size is {vocab_size!r}, but must be an integer.") from error
    special_tokens = list(SPECIAL_TOKENS.values())
    byte_level = sorted(ByteLevel.alphabet())
    make_trainer, options, pieces, alphabet = _trainer_for(backend.model, vocab_size, byte_level)
    smallest = len(special_tokens) + len(pieces) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, but must be at least {smallest} for the special tokens and the alphabet."
        )
    if vocab_size > MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {vocab_size:,}, but must be at most {MAX_VOCAB_SIZE:,}.")
    trainer = make_trainer(
        special_tokens=special_tokens + pieces,  # trainers keep special tokens only
        show_progress=show_progress,
        **options,
    )
    backend.train_from_iterator(_reject_surrogates(texts), trainer)

    state = json.loads(backend.to_str())
    if state["model"]["type"] == "Unigram":
        state["model"]["vocab"] = _canonicalize_unigram(state["model"]["vocab"], byte_level, vocab_size)
    # these pieces were special only for the trainer
    state["added_tokens"] = state["added_tokens"][: len(special_tokens)]
    backend = Tokenizer.from_str(json.dumps(state))
    if backend.get_vocab_size() > vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size}, but must be at least {backend.get_vocab_size()} for every character of the "
            "texts."
        )
    return backend


def _trainer_for(
    model: Any, vocab_size: int, byte_level: list[str]
) -> tuple[Callable[..., trainers.Trainer], dict[str, Any], list[str], list[str]]:
    """Return the trainer of a model, its options, and pieces and characters that the vocabulary must contain.

    The vocabulary contains the whole alphabet, even pieces that do not occur in the texts.
    """
    if isinstance(model, models.WordLevel):
        return trainers.WordLevelTrainer, {"vocab_size": vocab_size}, [], []
    options: dict[str, Any] = {"vocab_size": vocab_size, "initial_alphabet": byte_level}
    if isinstance(model, models.WordPiece):
        pieces = [model.continuing_subword_prefix + character for character in byte_level]
        return trainers.WordPieceTrainer, options, pieces, byte_level
    if isinstance(model, models.Unigram):
        # The trainer would score the alphabet in random order; `_canonicalize_unigram` adds it instead.
        options |= {"unk_token": SPECIAL_TOKENS["unk_token"], "initial_alphabet": []}
        return trainers.UnigramTrainer, options, [], byte_level
    if model.byte_fallback:
        options["initial_alphabet"] = []
        return trainers.BpeTrainer, options, [f"<0x{byte:02X}>" for byte in range(256)], []
    if model.unk_token is not None:
        options |= {"vocab_size": 0, "initial_alphabet": []}  # the characters of the texts, without merges
        return trainers.BpeTrainer, options, [], []
    return trainers.BpeTrainer, options, [], byte_level


def _canonicalize_unigram(vocab: list[list[Any]], alphabet: list[str], vocab_size: int) -> list[list[Any]]:
    """Add the alphabet to a trained Unigram vocabulary, and remove differences between runs on the same texts."""
    special, learned = vocab[: len(SPECIAL_TOKENS)], vocab[len(SPECIAL_TOKENS) :]
    scores = {piece: round(score, 6) for piece, score in learned}  # the last digits depend on the summation order
    lowest = min(scores.values())
    # The trainer scores rare characters slightly (up to 256 x 0.0001) above the lowest score, in random order.
    characters = {piece: scores.pop(piece, lowest) for piece in alphabet}
    characters = {piece: score if score > lowest + 0.03 else lowest for piece, score in characters.items()}
    by_score = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    kept = by_score[: vocab_size - len(special) - len(characters)]
    pieces = sorted([*characters.items(), *kept], key=lambda item: (-item[1], item[0]))
    return special + [list(item) for item in pieces]


def _reject_surrogates(texts: Iterable[str] | Iterable[list[str]]) -> Iterator[str | list[str]]:
    """Yield texts, or batches of texts, and raise a ValueError if one has a lone surrogate."""
    for text_or_batch in texts:
        for text in iterate_strings(text_or_batch):
            check_surrogates(text)
        yield text_or_batch


def check_surrogates(text: str) -> None:
    """Check that a text has no lone surrogates, which cannot be encoded in UTF-8.

    Raises:
        ValueError: The text has a lone surrogate.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"A text has lone surrogates, which are not valid Unicode: {text!r}. Remove or replace them.")


def adds_prefix_space(backend: Tokenizer) -> bool:
    """Return True if a backend prepends a space to texts that do not begin with one."""
    return backend.normalizer is not None and backend.normalizer.normalize_str("a") == " a"


def set_prefix_space(backend: Tokenizer, add_prefix_space: bool) -> None:
    """Set whether a backend prepends a space to texts that do not begin with one."""
    if add_prefix_space == adds_prefix_space(backend):
        return
    if add_prefix_space:
        prefix = [normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A {2}"), " ")]  # keep one of the two spaces
        backend.normalizer = normalizers.Sequence([*prefix, backend.normalizer or normalizers.Sequence([])])
    else:
        backend.normalizer = backend.normalizer[2]


def to_standard_backend(backend: Tokenizer, added_special_tokens: Iterable[str]) -> Tokenizer:
    """Return a copy of a backend that recognizes all special tokens in texts, including added ones."""
    backend = mark_special(backend, added_special_tokens, True)
    mask = SPECIAL_TOKENS["mask_token"]
    if backend.normalizer is not None and backend.normalizer.normalize_str(f" {mask}") == mask:
        # The mask is then recognized before the normalizer can strip the space, so the token has to absorb it.
        state = json.loads(backend.to_str())
        for token in state["added_tokens"]:
            token["lstrip"] = token["lstrip"] or token["content"] == mask
        backend = Tokenizer.from_str(json.dumps(state))
    return backend


def mark_special(backend: Tokenizer, tokens: Iterable[str], special: bool) -> Tokenizer:
    """Return a copy of a backend with the flag `special` of the added tokens in `tokens` set to this value."""
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        if token["content"] in tokens:
            token["special"] = special
    return Tokenizer.from_str(json.dumps(state))


def iterate_strings(nested: Any) -> Iterator[str]:
    """Iterate over the strings in nested lists."""
    if isinstance(nested, str):
        yield nested
    elif isinstance(nested, (list, tuple)):
        for item in nested:
            yield from iterate_strings(item)
