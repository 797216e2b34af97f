"""Evaluate a model: generation metrics, label metrics, perplexity."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trivium.data.columns import TEXT
from trivium.metrics import load_metric
from trivium.modeling.loss import IGNORE_INDEX, shift_left
from trivium.modeling.pipeline_question_answering import best_answers, encode_windows
from trivium.tasks import (
    TASKS,
    InputArguments,
    Task,
    encode_rows,
    labels_of_logits,
    labels_of_row,
    make_collator,
    prompts_of,
    score_tags,
    tags_of_words,
    windows_of_rows,
)
from trivium.tasks.encode import max_length_of
from trivium.tasks.tags import align_words
from trivium.translation import translate

EVAL_BATCH_SIZE = 64  # rows per forward pass without generation, if `batch_size` is None

Row = Mapping[str, Any]
Score = dict[str, Any]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    metrics: list[str] | None = None,
    *,
    task: str = "translation",
    inputs: InputArguments | None = None,
    batch_size: int | None = None,
    show_progress: bool = False,
    **generation: Any,
) -> tuple[dict[str, Score], list[str]]:
    """Run a model on `rows` and compute the metrics of its task. Logits are discarded after each batch.

    Args:
        model: A model with the head that `task` is for.
        tokenizer: Its tokenizer.
        rows: Examples with the columns of the task: `source` and `target`, or `text`, or `text` and `label`, or
            `words` and `tags`, or `document` and `references`, or `question`, `context` and `answers`.
        metrics: Names accepted by `trivium.metrics.load_metric`; None selects the default metrics of the task.
        task: A key of `trivium.tasks.TASKS`. If the task has targets or references, generated texts are compared with
            them.
        inputs: The input arguments that the model was trained with.
        batch_size: Rows per batch; None selects 64 or, for generation, the default of `translate`.
        show_progress: Whether to show a progress bar.
        **generation: Arguments of `generate()`; unset arguments default to the saved generation config.

    Returns:
        The `score` and the secondary figures of each metric, and the predictions: a text, a label or a line of tags
        for each row. A task without targets and labels has no predictions.

    Raises:
        ValueError: The task is unknown, a metric is unknown or does not apply to this task or model, or `rows` is
            empty.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, but must be one of {', '.join(TASKS)}.")
    kind = TASKS[task]
    metrics = list(kind.metrics_for(model.config)[:2]) if metrics is None else metrics
    kind.check_metrics(metrics, model.config)  # fail early, before the long computation starts
    run = _Evaluation(model.eval(), tokenizer, kind, inputs or InputArguments(), batch_size, show_progress)
    rows = list(rows)
    if not rows:
        raise ValueError("rows is empty, but must contain at least one row.")
    scores: dict[str, Score] = {}
    predictions: list[Any] = []
    if kind.target:
        predictions, references = run.texts(rows, generation), [row[kind.target] for row in rows]
    elif "label" in kind.columns:
        predictions, references = run.labels(rows), [labels_of_row(row["label"], model.config) for row in rows]
    elif "answers" in kind.columns:
        answers = run.answers(rows)
        predictions, references = [answer["answer"] for answer in answers], [row["answers"]["text"] for row in rows]
    elif "tags" in kind.columns:
        predictions, references = run.tags([row["words"] for row in rows]), [row["tags"] for row in rows]
    if "perplexity" in metrics or kind.columns == TEXT:
        scores = run.tokens(rows)
    for name in metrics:
        if name not in scores:
            compute = partial(score_tags, name) if "tags" in kind.columns else load_metric(name).compute
            scores[name] = compute(predictions=predictions, references=references)
    texts = [" ".join(labels) if isinstance(labels, list) else str(labels) for labels in predictions]
    return {name: scores[name] for name in metrics}, texts


def predict_tags(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    *,
    inputs: InputArguments | None = None,
    batch_size: int | None = None,
) -> list[list[str]]:
    """Predict the tag of each word with a model for token classification.

    Args:
        model: A token classifier.
        tokenizer: Its tokenizer, which must be a fast tokenizer.
        sentences: The words of each sentence.
        inputs: The input arguments that the model was trained with.
        batch_size: Number of sentences per batch; None for 64.
    """
    kind = TASKS["token-classification"]
    return _Evaluation(model.eval(), tokenizer, kind, inputs or InputArguments(), batch_size, False).tags(sentences)


def predict_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    inputs: InputArguments | None = None,
    batch_size: int | None = None,
) -> list[dict[str, Any]]:
    """Find the answer to each question in its context with a model for question answering.

    Args:
        model: A model with a head for extractive question answering.
        tokenizer: Its tokenizer, which must be a fast tokenizer.
        rows: Mappings with a `question` and a `context`.
        inputs: The input arguments that the model was trained with.
        batch_size: Number of windows per batch; None for 64.

    Returns:
        For each question `answer`, `start`, `end` and `score`, as in `QuestionAnsweringPipeline`.
    """
    kind = TASKS["question-answering"]
    return _Evaluation(model.eval(), tokenizer, kind, inputs or InputArguments(), batch_size, False).answers(rows)


@dataclass(frozen=True)
class _Evaluation:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    inputs: InputArguments
    batch_size: int | None
    show_progress: bool

    def texts(self, rows: list[Row], generation: dict[str, Any]) -> list[str]:
        """Generate a text from the source of each row."""
        sources = [self.task.text_of(row) for row in rows]
        prompts = sources if self.model.config.is_encoder_decoder else prompts_of(sources, self.inputs)
        options = {"batch_size": self.batch_size, "show_progress": self.show_progress, **generation}
        return list(translate(self.model, self.tokenizer, prompts, **options))

    @torch.inference_mode()
    def labels(self, rows: list[Row]) -> list[Any]:
        """Predict the label of each row, in the order of the rows."""
        predictions: list[Any] = [None] * len(rows)
        for indices, batch in self._batches(
            encode_rows(rows, self.task, self.tokenizer, self.model.config, self.inputs)
        ):
            del batch["labels"]
            predicted = labels_of_logits(self.model(**batch).logits, self.model.config)
            for index, label in zip(indices, predicted, strict=True):
                predictions[index] = label
        return predictions

    @torch.inference_mode()
    def tags(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """Predict the tag of each word."""
        tags: list[list[str]] = [[]] * len(sentences)
        encoded, alignments = align_words(sentences, self.tokenizer, max_length_of(self.model.config, self.inputs))
        examples = [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": alignment}
            for ids, alignment in zip(encoded["input_ids"], alignments, strict=True)
        ]
        for indices, batch in self._batches(examples):
            aligned = batch.pop("labels")  # The collator pads the alignments on the tokenizer's padding side.
            predicted = self.model(**batch).logits.argmax(dim=-1)
            for index, row, alignment in zip(indices, predicted, aligned, strict=True):
                tags[index] = tags_of_words(row, alignment, len(sentences[index]), self.model.config)
        return tags

    @torch.inference_mode()
    def answers(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Find the answer to each question in the windows of its context."""
        limit = max_length_of(self.model.config, self.inputs)
        windows = [
            (number, window)
            for number, row in enumerate(rows)
            for window in encode_windows(self.tokenizer, row["question"], row["context"], limit, self.inputs.stride)
        ]
        places = [{name: torch.tensor(window.pop(name)) for name in ("starts", "ends")} for _, window in windows]
        found: list[list[dict[str, torch.Tensor]]] = [[] for _ in rows]
        for indices, batch in self._batches([window for _, window in windows]):
            outputs = self.model(**batch)
            for index, start, end in zip(indices, outputs.start_logits.cpu(), outputs.end_logits.cpu(), strict=True):
                length = len(places[index]["starts"])  # The collator pads on the right.
                logits = {"start_logits": start[:length], "end_logits": end[:length]}
                found[windows[index][0]].append({**logits, **places[index]})
        return [best_answers(parts, row["context"])[0] for row, parts in zip(rows, found, strict=True)]

    @torch.inference_mode()
    def tokens(self, rows: list[Row]) -> dict[str, Score]:
        """Compute perplexity and token accuracy over the target tokens."""
        sums, counts, correct = [], [], 0
        if self.task is TASKS["causal-lm"]:
            examples = windows_of_rows(rows, self.tokenizer, self.model.config, self.inputs)
        else:
            examples = encode_rows(rows, self.task, self.tokenizer, self.model.config, self.inputs)
        for _, batch in self._batches(examples):
            labels = batch["labels"]
            if self.task is TASKS["causal-lm"]:
                batch["shift_labels"] = batch.pop("labels")
            elif self.task.splits_texts and not self.model.config.is_encoder_decoder:
                labels = shift_left(labels)  # as the model does
            # a divisor of 1 returns the sum over tokens instead of the mean
            output = self.model(**batch, num_items_in_batch=1)
            sums.append(output.loss.item())
            counts.append(int((labels != IGNORE_INDEX).sum()))
            correct += int((output.logits.argmax(dim=-1) == labels).sum())
        perplexity = load_metric("perplexity").compute(nll=sums, num_tokens=counts)
        return {"perplexity": perplexity, "accuracy": {"score": correct / sum(counts)}}

    def _batches(self, examples: list[dict[str, Any]]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Yield batches of similar length, longest first, with the indices of their examples."""
        inputs = replace(self.inputs, packing=False)  # windows are already full, so they need no packing
        collate = make_collator(self.task, self.tokenizer, self.model, inputs)
        order = sorted(range(len(examples)), key=lambda i: -len(examples[i]["input_ids"]))
        batch_size = EVAL_BATCH_SIZE if self.batch_size is None else self.batch_size
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="Evaluating", unit=" batches", disable=not self.show_progress):
            indices = order[start : start + batch_size]
            batch = collate([examples[i] for i in indices])
            yield indices, {name: tensor.to(self.model.device) for name, tensor in batch.items()}
