"""Training tasks: model class, data columns, encoding and metrics of each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict, IterableDataset, IterableDatasetDict
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trivium.configuration import TriviumConfig
from trivium.data.loading import LABELED_TEXT, PAIR, TEXT
from trivium.data.shares import ENCODED_ROWS, EncodedStream
from trivium.metrics import LABEL_METRICS, NAME_METRICS, NUMBER_METRICS, TEXT_METRICS
from trivium.modeling import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
)
from trivium.tasks.encode import (
    Batch,
    InputArguments,
    encode_completions,
    encode_for_masking,
    encode_labeled,
    encode_pairs,
    encode_texts,
)


@dataclass(frozen=True)
class Task:
    """A training task: model class, data columns, encoder and metrics.

    Attributes:
        model_class: Class of the model.
        columns: Data columns, as `load_data` takes them.
        add_bos_token: True if the tokenizer adds `<s>` to texts.
        add_eos_token: True if the tokenizer adds `</s>` to texts; False if the model completes prompts.
        encode: Function from a batch of rows to columns of model inputs.
        metrics: Names of the metrics that fit the task; the first two are the default of a recipe.
        inputs: Fields of `InputArguments` that only this task uses.
    """

    model_class: type[PreTrainedModel]
    columns: tuple[str, ...]
    add_bos_token: bool
    add_eos_token: bool
    encode: Callable[[Batch, PreTrainedTokenizerBase, TriviumConfig, InputArguments], Batch]
    metrics: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    def metrics_for(self, config: TriviumConfig) -> tuple[str, ...]:
        """Return the names of the metrics that fit a model; a regression has other metrics than a classification."""
        if self.metrics != LABEL_METRICS:
            return self.metrics
        return NUMBER_METRICS if config.problem_type == "regression" else NAME_METRICS

    def check_metrics(self, names: Iterable[str], config: TriviumConfig | None = None) -> None:
        """Refuse metrics that do not fit this task, or the model if its configuration is passed.

        Raises:
            ValueError: The message names the metric and those that are allowed.
        """
        allowed = self.metrics if config is None else self.metrics_for(config)
        for name in names:
            if name not in allowed:
                raise ValueError(f"The metric {name!r} does not fit the task. Choose from {', '.join(allowed)}.")


def encode_data(
    data: DatasetDict | IterableDatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    inputs: InputArguments,
) -> DatasetDict | IterableDatasetDict:
    """Encode all splits as model inputs, with a `length` column for length grouping if lengths differ."""
    return data.map(
        lambda batch: task.encode(batch, tokenizer, config, inputs),
        batched=True,
        batch_size=ENCODED_ROWS,
        remove_columns=list(task.columns),
    )


def encode_stream(
    rows: IterableDataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    inputs: InputArguments,
    has_shards: bool,
) -> EncodedStream:
    """Return a stream of training rows, as `encode_data` encodes them, which can be read in shares."""
    return EncodedStream(rows, lambda batch: task.encode(batch, tokenizer, config, inputs), has_shards)


def encode_rows(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    inputs: InputArguments,
) -> list[dict[str, Any]]:
    """Encode rows as model inputs, one dictionary per row."""
    columns = task.encode({name: [row[name] for row in rows] for name in task.columns}, tokenizer, config, inputs)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


TASKS: Mapping[str, Task] = {
    "translation": Task(
        TriviumForConditionalGeneration, PAIR, False, True, encode_pairs, (*TEXT_METRICS, "perplexity")
    ),
    "completion": Task(
        TriviumForCausalLM, PAIR, True, False, encode_completions, (*TEXT_METRICS, "perplexity"), ("prompt",)
    ),
    "causal-lm": Task(
        TriviumForCausalLM,
        TEXT,
        True,
        False,
        encode_texts,
        ("perplexity", "accuracy"),
        ("packing", "packing_strategy"),
    ),
    "masked-lm": Task(
        TriviumForMaskedLM,
        TEXT,
        True,
        True,
        encode_for_masking,
        ("perplexity", "accuracy"),
        ("mlm_probability", "whole_word_mask"),
    ),
    "classification": Task(TriviumForSequenceClassification, LABELED_TEXT, True, True, encode_labeled, LABEL_METRICS),
}
