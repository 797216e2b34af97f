"""BPE-dropout (Provilkov et al. 2020, arXiv 1910.13267): segment the training texts differently in every epoch.

The segmentation of an epoch is a function of seed and epoch alone, so that a resumed run, all processes and all
workers see the same tokens. The dropout of `tokenizers` has no seed; it also drops far less than the paper, because
entries of its queue that have become invalid bring dropped merges back.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from trivium.data.shares import ENCODED_ROWS

# Number of segmentations that are drawn for a distinct word in an epoch, for its occurrences to choose from: DRAWS, or
# as many as there are occurrences, and one more for every SHARED occurrences.
DRAWS, SHARED = 8, 32


@dataclass(frozen=True)
class Merges:
    """Merges of a byte-pair encoding, by token ids.

    Attributes:
        by_pair: Rank and resulting token of each pair; the lowest rank is merged first.
        parts: Pair that each merged token consists of.
    """

    by_pair: Mapping[tuple[int, int], tuple[int, int]]
    parts: Mapping[int, tuple[int, int]]

    def symbols_of(self, token: int) -> list[int]:
        """Split a token into the ids of its characters or bytes; a special token is not split."""
        if token not in self.parts:
            return [token]
        first, second = self.parts[token]
        return [*self.symbols_of(first), *self.symbols_of(second)]


def read_merges(tokenizer: PreTrainedTokenizerBase) -> Merges:
    """Return the merges of a tokenizer.

    Raises:
        ValueError: The tokenizer is not a byte-pair encoding.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE" or not model["merges"]:
        kind = model["type"] if model["type"] != "BPE" else "BPE without merges"
        raise ValueError(
            f"learning.subword_dropout needs a tokenizer with the merges of BPE, but its algorithm is {kind}. Start "
            "from a model with another tokenizer, or set learning.subword_dropout=0."
        )
    vocab = model["vocab"]
    by_pair: dict[tuple[int, int], tuple[int, int]] = {}
    parts: dict[int, tuple[int, int]] = {}
    for rank, (first, second) in enumerate(model["merges"]):
        pair, token = (vocab[first], vocab[second]), vocab[first + second]
        by_pair[pair] = (rank, token)
        parts.setdefault(token, pair)
    return Merges(by_pair, parts)


def segment(symbols: Sequence[int], merges: Merges, dropout: float, random: Callable[[], float]) -> list[int]:
    """Segment a word (algorithm 1 of the paper): drop each possible merge, apply the best that is left, and repeat.

    Args:
        symbols: Characters or bytes of the word, as token ids.
        merges: The merges.
        dropout: Probability of dropping a merge; 0 for ordinary byte-pair encoding.
        random: Function that returns a uniform random number in [0, 1).
    """
    tokens, find = list(symbols), merges.by_pair.get
    while len(tokens) > 1:
        best, position = None, 0
        for index in range(len(tokens) - 1):
            merge = find((tokens[index], tokens[index + 1]))
            # Only a merge that would be the best so far needs a draw: the draws are independent.
            if merge is not None and (best is None or merge < best) and random() >= dropout:
                best, position = merge, index
        if best is None:
            break
        tokens[position : position + 2] = [best[1]]
    return tokens


class SegmentedTexts:
    """Texts of one language, as words that can be segmented anew."""

    def __init__(self, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, dropout: float) -> None:
        """Split the texts into words, and collect the distinct ones.

        Args:
            texts: The texts.
            tokenizer: Tokenizer of their language.
            dropout: Probability of dropping a merge.

        Raises:
            ValueError: The tokenizer is not a byte-pair encoding.
        """
        self._merges, self._dropout = read_merges(tokenizer), dropout
        special = tokenizer("").encodings[0].ids  # `<s>` before a text, `</s>` after it
        self.prefix = [token for token in special if token == tokenizer.bos_token_id]
        self.suffix = special[len(self.prefix) :]
        indices: dict[tuple[int, ...], int] = {}  # of each distinct word, by its ordinary segmentation
        words, ends = array("i"), array("q")  # word of each occurrence; number of occurrences up to the end of a text
        texts = list(texts)
        for start in range(0, len(texts), ENCODED_ROWS):
            batch = tokenizer(texts[start : start + ENCODED_ROWS], add_special_tokens=False, verbose=False)
            for encoding in batch.encodings:
                ids, word_ids, begin = encoding.ids, encoding.word_ids, 0
                for end in range(1, len(ids) + 1):
                    if end == len(ids) or word_ids[end] != word_ids[begin]:
                        words.append(indices.setdefault(tuple(ids[begin:end]), len(indices)))
                        begin = end
                ends.append(len(words))
        self._words = np.array(words, dtype=np.int64)
        self._text_ends = np.array([0, *ends], dtype=np.int64)
        self._symbols = [[symbol for token in word for symbol in self._merges.symbols_of(token)] for word in indices]
        counts = np.bincount(self._words, minlength=len(indices))
        self._draws = np.minimum(counts, DRAWS + counts // SHARED)

    def draw(self, seed: str) -> tuple[np.ndarray, np.ndarray]:
        """Segment all texts.

        Args:
            seed: Seed of the segmentation.

        Returns:
            The tokens of all texts, without special tokens, and the boundaries of the texts in them, (texts + 1,).
        """
        rng = Random(seed)
        pieces, piece_ends, random = array("i"), array("q", [0]), rng.random
        for symbols, draws in zip(self._symbols, self._draws.tolist(), strict=True):
            for _ in range(draws):
                pieces.extend(segment(symbols, self._merges, self._dropout, random))
                piece_ends.append(len(pieces))
        ends = np.array(piece_ends, dtype=np.int64)
        # Each occurrence of a word takes one of the segmentations that were drawn for the word.
        uniform = np.random.default_rng(rng.getrandbits(64)).random(len(self._words))
        first = np.cumsum(self._draws) - self._draws
        chosen = first[self._words] + (uniform * self._draws[self._words]).astype(np.int64)
        lengths = ends[chosen + 1] - ends[chosen]
        token_ends = np.concatenate(([0], np.cumsum(lengths)))
        # Copy the pieces one after another: token t of the texts is token t - (its piece's shift) of the table.
        shift = np.repeat(token_ends[:-1] - ends[chosen], lengths)
        tokens = np.array(pieces, dtype=np.int32)[np.arange(len(shift)) - shift]
        return tokens, token_ends[self._text_ends]


class SubwordDropoutPairs(Dataset):
    """Encoded sentence pairs that are segmented anew in every epoch.

    Row r of epoch e has the index e * len(dataset) + r, so that workers and prefetched batches need no other state.
    Epochs are segmented when they are needed, and one is kept.
    """

    def __init__(
        self,
        pairs: Mapping[str, Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        dropout: float,
        seed: int,
    ) -> None:
        """Split the texts into words.

        Args:
            pairs: Texts in the columns `source` and `target`.
            tokenizer: The tokenizer; with two vocabularies, its attributes `source` and `target` are used.
            max_length: Maximum number of tokens per text; longer texts are truncated.
            dropout: Probability of dropping a merge.
            seed: Seed of the segmentations.

        Raises:
            ValueError: The tokenizer is not a byte-pair encoding.
        """
        self._sides = [
            SegmentedTexts(pairs[name], getattr(tokenizer, name, tokenizer), dropout) for name in ("source", "target")
        ]
        self._rows, self._max_length, self._seed = len(pairs["source"]), max_length, seed
        self._epoch: int | None = None
        self._segmented: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        """Return the number of pairs."""
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the model inputs of a pair in an epoch."""
        epoch, row = divmod(index, self._rows)
        self._segment(epoch)
        texts = []
        for side, (tokens, ends) in zip(self._sides, self._segmented, strict=True):
            text = tokens[ends[row] : ends[row + 1]][: self._room(side)].tolist()
            texts.append([*side.prefix, *text, *side.suffix])
        return {"input_ids": texts[0], "attention_mask": [1] * len(texts[0]), "labels": texts[1]}

    def lengths(self, epoch: int) -> list[np.ndarray]:
        """Return the token counts of all sources and all targets in an epoch, including special tokens."""
        self._segment(epoch)
        return [
            np.minimum(np.diff(ends), self._room(side)) + len(side.prefix) + len(side.suffix)
            for side, (_, ends) in zip(self._sides, self._segmented, strict=True)
        ]

    def _room(self, side: SegmentedTexts) -> int:
        """Return the maximum number of tokens of a text without its special tokens."""
        return self._max_length - len(side.prefix) - len(side.suffix)

    def _segment(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._segmented = [side.draw(f"{self._seed}-{epoch}-{name}") for name, side in enumerate(self._sides)]
            self._epoch = epoch
