"""What can be learned: for each task the model that learns it, the data it needs, and how text becomes its inputs."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import DatasetDict, IterableDatasetDict
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from trivium.configuration import TriviumConfig
from trivium.data.loading import LABELLED_TEXT, PAIR, TEXT
from trivium.metrics import LABEL_METRICS, NAME_METRICS, NUMBER_METRICS, TEXT_METRICS
from trivium.modeling import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
)
from trivium.modeling.loss import IGNORED

Batch = dict[str, list[Any]]
Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


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


@dataclass(frozen=True)
class Task:
    """One of the things that can be learned.

    Attributes:
        model_class: What learns it.
        columns: What a row of its data has, as `load_data` takes it.
        add_bos_token: Whether its texts begin with `<s>`.
        add_eos_token: Whether its texts end with `</s>` when the tokenizer is called; where the model writes on, not.
        encode: From a batch of rows to columns of the model's inputs.
        metrics: What can be measured; the first two are, if a recipe does not say.
        inputs: Fields of `InputArguments` that only this task has a use for.
    """

    model_class: type[PreTrainedModel]
    columns: tuple[str, ...]
    add_bos_token: bool
    add_eos_token: bool
    encode: Callable[[Batch, PreTrainedTokenizerBase, TriviumConfig, InputArguments], Batch]
    metrics: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    def metrics_for(self, config: TriviumConfig) -> tuple[str, ...]:
        """What can be measured of a model: of a classifier's labels something else than of its numbers."""
        if self.metrics != LABEL_METRICS:
            return self.metrics
        return NUMBER_METRICS if config.problem_type == "regression" else NAME_METRICS

    def check_metrics(self, names: Iterable[str], config: TriviumConfig | None = None) -> None:
        """Refuse what says nothing about this task, or, given its configuration, about a model.

        Raises:
            ValueError: The message names the metric and those that are allowed.
        """
        allowed = self.metrics if config is None else self.metrics_for(config)
        for name in names:
            if name not in allowed:
                raise ValueError(f"The metric {name!r} does not fit: choose from {', '.join(allowed)}.")


def encode_data(
    data: DatasetDict | IterableDatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    inputs: InputArguments,
) -> DatasetDict | IterableDatasetDict:
    """All splits as inputs of the model; with `length`, to group rows by, where lengths differ."""
    return data.map(
        lambda batch: task.encode(batch, tokenizer, config, inputs), batched=True, remove_columns=list(task.columns)
    )


def encode_rows(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    inputs: InputArguments,
) -> list[dict[str, Any]]:
    """Rows as inputs of the model, a dictionary each."""
    columns = task.encode({name: [row[name] for row in rows] for name in task.columns}, tokenizer, config, inputs)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def make_collator(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    inputs: InputArguments,
    epoch: Callable[[], int] = lambda: 0,
) -> Collator:
    """What makes a padded batch of encoded rows; for `masked-lm`, with other masks in each `epoch`."""
    if task.model_class is TriviumForMaskedLM:
        collate: Any = _make_masker(tokenizer, inputs, epoch)
    elif task.model_class is TriviumForSequenceClassification:
        collate = DataCollatorWithPadding(tokenizer)
    elif inputs.packing:
        collate = default_data_collator
    else:
        collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    return lambda rows: collate([{name: row[name] for name in row if name != "length"} for row in rows])


def _make_masker(tokenizer: PreTrainedTokenizerBase, inputs: InputArguments, epoch: Callable[[], int]) -> Collator:
    """Masks that follow from the batch and the epoch, so that an evaluation and a resumed run have them again.

    A generator could not be restored there, for it has drawn for a batch ahead.
    """
    replaced = (1.0, 0.0) if inputs.whole_word_mask else (0.8, 0.1)  # by <mask>, by any token, as in BERT
    collate = DataCollatorForLanguageModeling(
        tokenizer,
        mlm_probability=inputs.mlm_probability,
        whole_word_mask=inputs.whole_word_mask,
        mask_replace_prob=replaced[0],
        random_replace_prob=replaced[1],
    )

    def mask(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [list(row["input_ids"]) for row in rows]
        collate.generator = torch.Generator().manual_seed(zlib.crc32(repr((epoch(), ids)).encode()))
        if inputs.whole_word_mask:  # the offsets are of no use to the tokenizer, which does not pad them
            longest = max(map(len, ids))
            for row in rows:
                padding = [(0, 0)] * (longest - len(row["input_ids"]))
                before, after = (padding, []) if tokenizer.padding_side == "left" else ([], padding)
                row["offset_mapping"] = [*before, *row["offset_mapping"], *after]
        return collate(rows)

    return mask


def max_length_of(config: TriviumConfig, inputs: InputArguments) -> int:
    """Tokens at which a text is cut."""
    return inputs.max_length or config.max_position_embeddings


# --- From text to inputs ---------------------------------------------------------------------------------------------


def _encode_pairs(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """The source as `input_ids`, the target as `labels`."""
    limit = max_length_of(config, inputs)
    encoded = tokenizer(batch["source"], text_target=batch["target"], truncation=True, max_length=limit)
    encoded["length"] = [max(map(len, pair)) for pair in zip(encoded["input_ids"], encoded["labels"], strict=True)]
    return encoded


def _encode_completions(
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


def _encode_texts(
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


def _encode_for_masking(
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


def _encode_labelled(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Texts and the indices of their labels, or 0.0 and 1.0 for each label there is, or numbers."""
    encoded = tokenizer(batch["text"], truncation=True, max_length=max_length_of(config, inputs))
    encoded["labels"] = [encode_label(label, config) for label in batch["label"]]
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    return encoded


# --- Labels ----------------------------------------------------------------------------------------------------------


def label_facts(labels: Iterable[Any], problem_type: str | None = None) -> dict[str, Any]:
    """What a classifier's configuration must know of the labels in its training data.

    Args:
        labels: Of each row: a name or a whole number, a list of them, or a fraction.
        problem_type: "regression", where numbers are to be predicted that do not look like it. None: labels tell.

    Returns:
        `problem_type`, and `label2id` and `id2label`, or `num_labels` for a regression.

    Raises:
        ValueError: There is a list of fractions.
    """
    seen: set[Any] = set()
    several = numbers = False
    for label in labels:
        several = several or isinstance(label, list)
        numbers = numbers or isinstance(label, float)
        seen.update(label if isinstance(label, list) else [label])
    if numbers or problem_type == "regression":
        return {"problem_type": "regression", "num_labels": 1}
    for label in seen:
        if isinstance(label, float):
            raise ValueError(f"A list of labels has {label}: it may have names or whole numbers, but no fractions.")
    order = None if all(isinstance(label, int) for label in seen) else str  # 2 before 10, if that is what they are
    names = list(dict.fromkeys(map(str, sorted(seen, key=order))))
    return {
        "problem_type": "multi_label_classification" if several else "single_label_classification",
        "label2id": {name: i for i, name in enumerate(names)},
        "id2label": dict(enumerate(names)),
    }


def labels_of_row(label: Any, config: TriviumConfig) -> str | float | list[str]:
    """A label of the data as a name, a sorted list of names, or a number, whichever the model gives.

    Raises:
        ValueError: The model does not know the label, or gives numbers and it is none.
    """
    if config.problem_type == "regression":
        try:
            return float(label)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The label {label!r} is no number, but the model gives numbers.") from error
    names = sorted(map(str, label)) if isinstance(label, list) else [str(label)]
    for name in names:
        if name not in config.label2id:
            raise ValueError(f"The label {name!r} is unknown: the training data has {', '.join(config.label2id)}.")
    return names if config.problem_type == "multi_label_classification" else names[0]


def encode_label(label: Any, config: TriviumConfig) -> int | float | list[float]:
    """A label of the data as the model is taught it."""
    names = labels_of_row(label, config)
    if isinstance(names, list):
        return [float(config.id2label[i] in names) for i in range(config.num_labels)]
    return names if isinstance(names, float) else config.label2id[names]


def labels_of_logits(logits: torch.Tensor, config: TriviumConfig) -> list[Any]:
    """What the model says, (batch, labels), in the form of `labels_of_row`."""
    if config.problem_type == "regression":
        return labels_of_targets(logits[:, 0], config)
    if config.problem_type == "multi_label_classification":
        return labels_of_targets(logits > 0, config)
    return labels_of_targets(logits.argmax(dim=-1), config)


def labels_of_targets(targets: torch.Tensor, config: TriviumConfig) -> list[Any]:
    """What the model is taught, (batch,) or (batch, labels), in the form of `labels_of_row`."""
    if config.problem_type == "regression":
        return targets.tolist()
    if config.problem_type == "multi_label_classification":
        return [sorted(config.id2label[i] for i in row.nonzero()[:, 0].tolist()) for row in targets]
    return [config.id2label[i] for i in targets.tolist()]


TASKS: Mapping[str, Task] = {
    "translation": Task(
        TriviumForConditionalGeneration, PAIR, False, True, _encode_pairs, (*TEXT_METRICS, "perplexity")
    ),
    "completion": Task(
        TriviumForCausalLM, PAIR, True, False, _encode_completions, (*TEXT_METRICS, "perplexity"), ("prompt",)
    ),
    "causal-lm": Task(TriviumForCausalLM, TEXT, True, False, _encode_texts, ("perplexity", "accuracy"), ("packing",)),
    "masked-lm": Task(
        *(TriviumForMaskedLM, TEXT, True, True, _encode_for_masking, ("perplexity", "accuracy")),
        inputs=("mlm_probability", "whole_word_mask"),
    ),
    "classification": Task(
        TriviumForSequenceClassification, LABELLED_TEXT, True, True, _encode_labelled, LABEL_METRICS
    ),
}
