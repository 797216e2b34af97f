"""Encode text as model inputs, for each task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
)

from trivium.configuration import TriviumConfig
from trivium.modeling.loss import IGNORED
from trivium.tasks.label_facts import encode_label

Batch = dict[str, list[Any]]


@dataclass
class InputArguments:
    """How text becomes the inputs of the model: the `inputs:` section of a recipe.

    Attributes:
        max_length: Tokens at which a text is cut; None: as many as the model has positions.
        max_tokens: Train in batches of like length and of at most so many tokens, on each device and step, instead of
            `training.per_device_train_batch_size` rows; see `trivium.data.token_batches`. None: batches of rows.
        buffer_size: For `max_tokens` of streamed data: so many rows are read before batches are made of them.
        packing: For `causal-lm`: texts share rows of `max_length` tokens, without seeing each other, instead of being
            padded, and long ones are continued in the next row instead of being cut.
        prompt: For `completion`: what the source becomes, to be continued by the target. "{source}" stands for it.
        mlm_probability: For `masked-lm`: the share of tokens that is to be predicted.
        whole_word_mask: For `masked-lm`: whether all tokens of a word are masked together.
    """

    max_length: int | None = None
    max_tokens: int | None = None
    buffer_size: int = 20_000
    packing: bool = False
    prompt: str = "{source}"
    mlm_probability: float = 0.15
    whole_word_mask: bool = False

    def __post_init__(self) -> None:
        """Refuse what no row could be made by.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"inputs.max_length is {self.max_length}, but must be at least 2, or null.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"inputs.max_tokens is {self.max_tokens}, but must be at least 1, or null.")
        if self.buffer_size < 1:
            raise ValueError(f"inputs.buffer_size is {self.buffer_size}, but must be at least 1.")
        if "{source}" not in self.prompt:
            raise ValueError(f"inputs.prompt is {self.prompt!r}, but must say where the {{source}} stands.")
        if not 0 < self.mlm_probability <= 1:
            raise ValueError(f"inputs.mlm_probability is {self.mlm_probability}, but must be above 0 and at most 1.")


def max_length_of(config: TriviumConfig, inputs: InputArguments) -> int:
    """Tokens at which a text is cut."""
    return inputs.max_length or config.max_position_embeddings


def encode_pairs(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """The source as `input_ids`, the target as `labels`."""
    limit = max_length_of(config, inputs)
    encoded = tokenizer(batch["source"], text_target=batch["target"], truncation=True, max_length=limit)
    encoded["length"] = [max(map(len, pair)) for pair in zip(encoded["input_ids"], encoded["labels"], strict=True)]
    return encoded


def encode_completions(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Prompt and target in one row, of which the target is learned."""
    prompts = tokenizer(prompts_of(batch["source"], inputs))["input_ids"]
    targets = tokenizer(batch["target"], add_special_tokens=False)["input_ids"]
    limit = max_length_of(config, inputs)
    encoded: Batch = {"input_ids": [], "labels": [], "length": []}
    for prompt, target in zip(prompts, targets, strict=True):
        answer = [*target, tokenizer.eos_token_id]
        encoded["input_ids"].append([*prompt, *answer][:limit])
        encoded["labels"].append([*[IGNORED] * len(prompt), *answer][:limit])
        encoded["length"].append(len(encoded["input_ids"][-1]))
    return encoded


def prompts_of(sources: Iterable[str], inputs: InputArguments) -> list[str]:
    """What a decoder-only model is to continue, for each source."""
    return [inputs.prompt.replace("{source}", source) for source in sources]


def documents_of(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Whole texts for a causal language model: from `<s>`, if the tokenizer begins with it, to `</s>`."""
    start = [each for each in tokenizer("")["input_ids"] if each == tokenizer.bos_token_id]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [[*start, *text, tokenizer.eos_token_id] for text in ids]


def encode_texts(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Texts that are their own labels, which the model shifts."""
    documents, limit = documents_of(batch["text"], tokenizer), max_length_of(config, inputs)
    if inputs.packing:
        return pack(documents, limit, tokenizer.pad_token_id)
    cut = [document[:limit] for document in documents]
    return {"input_ids": cut, "labels": cut, "length": [len(document) for document in cut]}


def pack(documents: list[list[int]], length: int, pad_token_id: int) -> Batch:
    """Documents one after the other in rows of `length` tokens, the last one filled up.

    `position_ids` restart where a document or a row begins: by that the model knows what may see what. The first
    token of a document is no label, for nothing before it says what it is.
    """
    input_ids: list[int] = []
    position_ids: list[int] = []
    labels: list[int] = []
    for document in documents:
        labels += [IGNORED, *document[1:]]
        position = 0
        for token in document:
            if len(input_ids) % length == 0:
                position = 0
            input_ids.append(token)
            position_ids.append(position)
            position += 1
    padding = -len(input_ids) % length
    input_ids += [pad_token_id] * padding
    position_ids += range(padding)
    labels += [IGNORED] * padding
    columns = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
    return {name: [c[i : i + length] for i in range(0, len(c), length)] for name, c in columns.items()}


def windows_of_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    inputs: InputArguments,
) -> list[dict[str, Any]]:
    """Texts cut so that each of their tokens but the first is predicted once, from at most `max_length` before it.

    Their labels are shifted already.
    """
    limit = max_length_of(config, inputs)
    windows = []
    for document in documents_of([row["text"] for row in rows], tokenizer):
        for start in range(0, len(document) - 1, limit):
            window = document[start : start + limit + 1]
            windows.append({"input_ids": window[:-1], "labels": window[1:]})
    return windows


def encode_for_masking(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Texts of which the collator masks a part, another one each time."""
    encoded = tokenizer(
        batch["text"],
        truncation=True,
        max_length=max_length_of(config, inputs),
        return_special_tokens_mask=True,
        return_offsets_mapping=inputs.whole_word_mask,  # by the gaps in them the collator tells words apart
    )
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    return encoded


def encode_labelled(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Texts and the indices of their labels, or 0.0 and 1.0 for each label there is, or numbers."""
    encoded = tokenizer(batch["text"], truncation=True, max_length=max_length_of(config, inputs))
    encoded["labels"] = [encode_label(label, config) for label in batch["label"]]
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    return encoded
