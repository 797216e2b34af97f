"""What can be learned: for each task the model that learns it, the data it needs, and how text becomes its inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict, IterableDatasetDict
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
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
from trivium.tasks.encode import (
    Batch,
    InputArguments,
    encode_completions,
    encode_for_masking,
    encode_labelled,
    encode_pairs,
    encode_texts,
)


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


TASKS: Mapping[str, Task] = {
    "translation": Task(
        TriviumForConditionalGeneration, PAIR, False, True, encode_pairs, (*TEXT_METRICS, "perplexity")
    ),
    "completion": Task(
        TriviumForCausalLM, PAIR, True, False, encode_completions, (*TEXT_METRICS, "perplexity"), ("prompt",)
    ),
    "causal-lm": Task(TriviumForCausalLM, TEXT, True, False, encode_texts, ("perplexity", "accuracy"), ("packing",)),
    "masked-lm": Task(
        *(TriviumForMaskedLM, TEXT, True, True, encode_for_masking, ("perplexity", "accuracy")),
        inputs=("mlm_probability", "whole_word_mask"),
    ),
    "classification": Task(
        TriviumForSequenceClassification, LABELLED_TEXT, True, True, encode_labelled, LABEL_METRICS
    ),
}
