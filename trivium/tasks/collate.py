"""Collate encoded rows into padded batches, with masking for masked language modeling."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from trivium.data.packing import STATISTICS
from trivium.modeling import (
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
)
from trivium.modeling.loss import IGNORE_INDEX
from trivium.tasks.encode import (
    InputArguments,
)
from trivium.tasks.noise import corrupt, split_prefix
from trivium.tasks.task import Task

COUNTS = ("length", *STATISTICS)  # metadata columns, which are not model inputs
Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


def make_collator(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    inputs: InputArguments,
    epoch: Callable[[], int] = lambda: 0,
) -> Collator:
    """Return a collator that pads encoded rows into a batch.

    For `masked-lm` and `denoising`, it draws new masks in each `epoch`, and for `prefix-lm` new prefixes.
    """
    if task.model_class is TriviumForMaskedLM:
        collate: Any = _make_masker(tokenizer, inputs, epoch)
    elif task.model_class is TriviumForSequenceClassification:
        collate = DataCollatorWithPadding(tokenizer)
    elif task.model_class is TriviumForTokenClassification:
        collate = DataCollatorForTokenClassification(tokenizer)
    elif task.model_class is TriviumForQuestionAnswering:  # positions are counted from the left
        collate = partial(tokenizer.pad, padding_side="right", return_tensors="pt")
    elif "noise" in task.inputs:
        collate = _make_denoiser(tokenizer, model, inputs, epoch)
    elif task.splits_texts:
        collate = _make_splitter(tokenizer, model, epoch)
    elif inputs.packing:
        collate = default_data_collator
    else:
        collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    return lambda rows: collate([{name: row[name] for name in row if name not in COUNTS} for row in rows])


def _make_masker(tokenizer: PreTrainedTokenizerBase, inputs: InputArguments, epoch: Callable[[], int]) -> Collator:
    """Return a collator whose masks depend only on batch and epoch, for reproducible evaluation and resumption.

    Restoring the state of a random generator would not suffice, because the dataloader prefetches a batch.
    """
    # Probabilities of replacing a selected token by <mask> and by a random token; the latter is as in BERT.
    mask_prob, random_prob = (1.0, 0.0) if inputs.whole_word_mask else (0.8, 0.1)
    collate = DataCollatorForLanguageModeling(
        tokenizer,
        mlm_probability=inputs.mlm_probability,
        whole_word_mask=inputs.whole_word_mask,
        mask_replace_prob=mask_prob,
        random_replace_prob=random_prob,
    )

    def mask(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [list(row["input_ids"]) for row in rows]
        collate.generator = torch.Generator().manual_seed(zlib.crc32(repr((epoch(), ids)).encode()))
        if inputs.whole_word_mask:  # The tokenizer does not pad offsets.
            longest = max(map(len, ids))
            for row in rows:
                padding = [(0, 0)] * (longest - len(row["input_ids"]))
                before, after = (padding, []) if tokenizer.padding_side == "left" else ([], padding)
                row["offset_mapping"] = [*before, *row["offset_mapping"], *after]
        return collate(rows)

    return mask


def _make_denoiser(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, inputs: InputArguments, epoch: Callable[[], int]
) -> Collator:
    """Return a collator that corrupts texts; the noise depends only on the text and the epoch, as for masks."""
    pad = DataCollatorForSeq2Seq(tokenizer, model=model)

    def denoise(rows: list[dict[str, Any]]) -> dict[str, Any]:
        corrupted = []
        for row in rows:
            ids, end = _split_end(row["labels"], tokenizer)
            generator = _generator_of(ids, epoch())
            source, target = corrupt(
                ids, tokenizer.mask_token_id, inputs.noise, inputs.noise_density, inputs.mean_span, generator
            )
            corrupted.append({"input_ids": [*source, *end], "labels": [*target, *end]})
        return pad(corrupted)

    return denoise


def _make_splitter(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, epoch: Callable[[], int]) -> Collator:
    """Return a collator that splits texts into prefix and continuation, depending only on the text and the epoch.

    An encoder-decoder reads the prefix and predicts the continuation. A decoder-only model reads the whole text with
    causal attention, and the labels ignore the prefix.
    """
    pad = DataCollatorForSeq2Seq(tokenizer, model=model)

    def split(rows: list[dict[str, Any]]) -> dict[str, Any]:
        parts = []
        for row in rows:
            text, end = _split_end(row["labels"], tokenizer)
            start = int(text[:1] == [tokenizer.bos_token_id])  # a language model's text starts with `<s>`
            place = start + split_prefix(len(text) - start, _generator_of(text, epoch()))
            if model.config.is_encoder_decoder:
                parts.append({"input_ids": [*text[:place], *end], "labels": [*text[place:], *end]})
            else:
                labels = [*[IGNORE_INDEX] * place, *text[place:], *end]
                parts.append({"input_ids": [*text, *end], "labels": labels})
        return pad(parts)

    return split


def _split_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Split off `</s>`, with which a text ends unless it was truncated."""
    return (ids[:-1], ids[-1:]) if ids[-1:] == [tokenizer.eos_token_id] else (ids, [])


def _generator_of(ids: list[int], epoch: int) -> np.random.Generator:
    """Return a random generator that depends only on the tokens of a text and the epoch."""
    return np.random.default_rng(zlib.crc32(repr((epoch, ids)).encode()))
