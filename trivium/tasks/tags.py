"""Word tags: align them with tokens, encode them as targets, decode and score predictions."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from trivium.configuration import TriviumConfig
from trivium.metrics import load_metric
from trivium.modeling.loss import IGNORE_INDEX

OUTSIDE = "O"  # tag of words outside any entity
NO_TAG = "_"  # tag of truncated words if the tag set has no `O`; CoNLL-U's empty value

Tags = Sequence[Sequence[str]]


def tag_facts(rows: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Derive a tagger's configuration fields `label2id` and `id2label` from the tags of all training sentences."""
    names = sorted(set(chain.from_iterable(rows)))
    return {"label2id": {name: i for i, name in enumerate(names)}, "id2label": dict(enumerate(names))}


def marks_entities(names: Iterable[str]) -> bool:
    """Return True if the tags mark entities, as `O`, `B-person`, `I-person` (or `E-` and `S-`), else False."""
    names = set(names)
    return names != {OUTSIDE} and all(name == OUTSIDE or re.match("[BIES]-.", name) for name in names)


def align_words(
    sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[BatchEncoding, list[list[int]]]:
    """Join the words of each sentence by spaces, tokenize the text, and find the first token of each word.

    At inference a tagger reads texts instead of lists of words, so training must tokenize the joined text as well.

    Returns:
        The encoded texts, truncated to `max_length` tokens; and, for each token, the index of the word that it starts,
        or -100 if it does not start a word.
    """
    encoded = tokenizer(
        [" ".join(words) for words in sentences], truncation=True, max_length=max_length, return_offsets_mapping=True
    )
    alignments = []
    for words, offsets in zip(sentences, encoded.pop("offset_mapping"), strict=True):
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        alignment, following = [IGNORE_INDEX] * len(offsets), 0  # `following`: the first word without a token
        for place, (start, end) in enumerate(offsets):
            if end <= start:  # a special token, or a continuation byte of a character
                continue
            word = int(np.searchsorted(ends, end))  # the word that the last character of the token belongs to
            if word >= following:
                alignment[place], following = word, word + 1
        alignments.append(alignment)
    return encoded, alignments


def encode_tags(tags: Sequence[str], alignment: Sequence[int], config: TriviumConfig) -> list[int]:
    """Return the label of each token: the tag index for the first token of a word, -100 for all other tokens.

    Raises:
        ValueError: A tag is not in `label2id`.
    """
    if unknown := set(tags) - config.label2id.keys():
        raise ValueError(
            f"The tag {min(unknown)!r} is unknown, because the training data has only {', '.join(config.label2id)}."
        )
    return [IGNORE_INDEX if word == IGNORE_INDEX else config.label2id[tags[word]] for word in alignment]


def tags_of_words(
    predicted: torch.Tensor, alignment: torch.Tensor, num_words: int, config: TriviumConfig
) -> list[str]:
    """Return the tag of each word from predicted labels and the alignment, both (length,).

    Words without a token, because the text was truncated before them, are tagged `O`, or `_` if there is no `O`.
    """
    tags = [OUTSIDE if OUTSIDE in config.label2id else NO_TAG] * num_words
    is_first = alignment != IGNORE_INDEX
    for word, label in zip(alignment[is_first].tolist(), predicted[is_first].tolist(), strict=True):
        tags[word] = config.id2label[label]
    return tags


def tags_of_targets(labels: np.ndarray, targets: np.ndarray, config: TriviumConfig) -> list[list[str]]:
    """Return the tags of (batch, length) labels at the tokens whose (batch, length) targets are not -100."""
    return [
        [config.id2label[label] for label in row[is_first].tolist()]
        for row, is_first in zip(labels, targets != IGNORE_INDEX, strict=True)
    ]


def score_tags(name: str, predictions: Tags, references: Tags) -> dict[str, Any]:
    """Compute a metric of the task: `seqeval` from sentences, or `accuracy` from all words."""
    if name != "seqeval":
        predictions, references = list(chain(*predictions)), list(chain(*references))
    scores: dict[str, Any] = load_metric(name).compute(predictions=predictions, references=references)
    return scores
