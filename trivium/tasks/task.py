"""Training tasks: their model classes, data columns, encoding and metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict, IterableDataset, IterableDatasetDict
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trivium.configuration import TriviumConfig
from trivium.data.columns import DOCUMENT, LABELED_TEXT, PAIR, QUESTION, TAGGED_WORDS, TEXT
from trivium.data.shares import ENCODED_ROWS, EncodedStream
from trivium.data.structured import as_text
from trivium.metrics import (
    ANSWER_METRICS,
    LABEL_METRICS,
    NAME_METRICS,
    NUMBER_METRICS,
    ROUGE_METRICS,
    TAG_METRICS,
    TEXT_METRICS,
)
from trivium.modeling import (
    TriviumDecoderForSequenceClassification,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
)
from trivium.tasks.encode import (
    Batch,
    InputArguments,
    encode_completions,
    encode_documents,
    encode_for_denoising,
    encode_for_masking,
    encode_for_splitting,
    encode_labeled,
    encode_pairs,
    encode_questions,
    encode_tagged,
    encode_texts,
)
from trivium.tasks.label_facts import label_facts
from trivium.tasks.tags import marks_entities, tag_facts


@dataclass(frozen=True)
class Task:
    """A training task: model class, data columns, encoder and metrics.

    Attributes:
        model_class: Class of the model.
        columns: Data columns, as `load_data` takes them.
        add_bos_token: True if the tokenizer adds `<s>` to texts; see `special_tokens_for`.
        add_eos_token: True if the tokenizer adds `</s>` to texts; False if the model completes prompts.
        encode: Function that maps a batch of rows to columns of model inputs.
        metrics: Names of the metrics that apply to the task; the first two are a recipe's default.
        inputs: Fields of `InputArguments` that only this task uses.
        decoder_class: Class of a model without an encoder, if the task has one.
        config: Fields of the model's configuration that record the task.
        splits_texts: True if the collator splits each text into prefix and continuation.
    """

    model_class: type[PreTrainedModel]
    columns: tuple[str, ...]
    add_bos_token: bool
    add_eos_token: bool
    encode: Callable[[Batch, PreTrainedTokenizerBase, TriviumConfig, InputArguments], Batch]
    metrics: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    decoder_class: type[PreTrainedModel] | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    splits_texts: bool = False

    def model_class_for(self, config: TriviumConfig) -> type[PreTrainedModel]:
        """Return the class of a model of this configuration."""
        return self.model_class if config.encoder_layers or self.decoder_class is None else self.decoder_class

    def special_tokens_for(self, config: TriviumConfig) -> dict[str, bool]:
        """Return whether the tokenizer of a model adds `<s>` and `</s>`; a language model completes prompts."""
        if self.model_class_for(config) is TriviumForCausalLM:
            return {"add_bos_token": True, "add_eos_token": False}
        return {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}

    @property
    def has_labels(self) -> bool:
        """Return True if the model's configuration contains the labels of the data."""
        return "label" in self.columns or "tags" in self.columns

    def label_facts(self, rows: Iterable[Mapping[str, Any]], problem_type: str | None = None) -> dict[str, Any]:
        """Derive the label fields of a configuration from training data; empty for tasks without labels."""
        if "tags" in self.columns:
            return tag_facts(row["tags"] for row in rows)
        return label_facts((row["label"] for row in rows), problem_type) if self.has_labels else {}

    @property
    def target(self) -> str | None:
        """Return the column of the texts that the model generates, or None if it generates no text."""
        return next((name for name in ("target", "references") if name in self.columns), None)

    def targets_of(self, row: Mapping[str, Any]) -> list[str]:
        """Return the target or reference texts of a row."""
        targets = row[self.target] if self.target else []
        return [targets] if isinstance(targets, str) else targets

    def text_of(self, row: Mapping[str, Any]) -> str:
        """Return the input text of a row."""
        return as_text([row["question"], row["context"]] if self.columns == QUESTION else row[self.columns[0]])

    def metrics_for(self, config: TriviumConfig) -> tuple[str, ...]:
        """Return the names of the metrics that apply to a model; regression and classification metrics differ.

        Entity metrics apply only to tags that mark entities, unlike part-of-speech tags.
        """
        if self.metrics == TAG_METRICS:
            return TAG_METRICS if marks_entities(config.label2id) else ("accuracy",)
        if self.metrics != LABEL_METRICS:
            return self.metrics
        return NUMBER_METRICS if config.problem_type == "regression" else NAME_METRICS

    def check_metrics(self, names: Iterable[str], config: TriviumConfig | None = None) -> None:
        """Reject metrics that do not apply to this task or, if `config` is passed, to the model.

        Raises:
            ValueError: The message names the metric and the allowed metrics.
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
    """Return a stream of training rows, encoded as by `encode_data`, that can be read in shares."""
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
        TriviumForConditionalGeneration,
        PAIR,
        False,
        True,
        encode_pairs,
        (*TEXT_METRICS, "perplexity"),
        config={"seq2seq_task": "translation"},
    ),
    "summarization": Task(
        TriviumForConditionalGeneration,
        DOCUMENT,
        False,
        True,
        encode_documents,
        (*ROUGE_METRICS, *TEXT_METRICS, "perplexity"),
        config={"seq2seq_task": "summarization"},
    ),
    "denoising": Task(
        TriviumForConditionalGeneration,
        TEXT,
        False,
        True,
        encode_for_denoising,
        ("perplexity", "accuracy"),
        ("noise", "noise_density", "mean_span"),
    ),
    "prefix-lm": Task(
        TriviumForConditionalGeneration,
        TEXT,
        False,
        True,
        encode_for_splitting,
        ("perplexity", "accuracy"),
        decoder_class=TriviumForCausalLM,
        splits_texts=True,
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
    "classification": Task(
        TriviumForSequenceClassification,
        LABELED_TEXT,
        True,
        True,
        encode_labeled,
        LABEL_METRICS,
        decoder_class=TriviumDecoderForSequenceClassification,
    ),
    "question-answering": Task(
        TriviumForQuestionAnswering, QUESTION, True, True, encode_questions, ANSWER_METRICS, ("stride",)
    ),
    "token-classification": Task(TriviumForTokenClassification, TAGGED_WORDS, True, True, encode_tagged, TAG_METRICS),
}
