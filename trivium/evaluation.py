"""Evaluate a model: generation metrics, label metrics, perplexity."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trivium.data.loading import TEXT
from trivium.metrics import load_metric
from trivium.modeling.loss import IGNORE_INDEX
from trivium.tasks import (
    TASKS,
    InputArguments,
    Task,
    encode_rows,
    labels_of_logits,
    labels_of_row,
    make_collator,
    prompts_of,
    windows_of_rows,
)
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
        rows: Examples with the columns of the task: `source` and `target`, or `text`, or `text` and `label`.
        metrics: Names accepted by `trivium.metrics.load_metric`; None: the default metrics of the task.
        task: A key of `trivium.tasks.TASKS`. If the task has a `target` column, the model generates texts, which are
            compared with the targets.
        inputs: The input arguments that the model was trained with.
        batch_size: Rows per batch; None: 64, and for generation as in `translate`.
        show_progress: Whether to show a progress bar.
        **generation: Arguments of `generate()`; the others default to the saved generation config.

    Returns:
        The `score` and the secondary figures of each metric; and the predictions, a text or label for each row, or no
        predictions for a task without targets and labels.

    Raises:
        ValueError: The task is unknown, a metric is unknown or does not apply to this task or model, or `rows` is
            empty.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, but must be one of {', '.join(TASKS)}.")
    kind = TASKS[task]
    metrics = list(kind.metrics_for(model.config)[:2]) if metrics is None else metrics
    kind.check_metrics(metrics, model.config)  # fail before the long computation starts
    run = _Evaluation(model.eval(), tokenizer, kind, inputs or InputArguments(), batch_size, show_progress)
    rows = list(rows)
    if not rows:
        raise ValueError("rows is empty, but must contain at least one row.")
    scores: dict[str, Score] = {}
    predictions: list[Any] = []
    if "target" in kind.columns:
        predictions, references = run.texts(rows, generation), [row["target"] for row in rows]
    elif "label" in kind.columns:
        predictions, references = run.labels(rows), [labels_of_row(row["label"], model.config) for row in rows]
    if "perplexity" in metrics or kind.columns == TEXT:
        scores = run.tokens(rows)
    for name in metrics:
        if name not in scores:
            scores[name] = load_metric(name).compute(predictions=predictions, references=references)
    texts = [" ".join(labels) if isinstance(labels, list) else str(labels) for labels in predictions]
    return {name: scores[name] for name in metrics}, texts


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
        sources = [row["source"] for row in rows]
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
            # a divisor of 1 returns the sum over tokens instead of the mean
            output = self.model(**batch, num_items_in_batch=1)
            sums.append(output.loss.item())
            counts.append(int((labels != IGNORE_INDEX).sum()))
            correct += int((output.logits.argmax(dim=-1) == labels).sum())
        perplexity = load_metric("perplexity").compute(nll=sums, num_tokens=counts)
        return {"perplexity": perplexity, "accuracy": {"score": correct / sum(counts)}}

    def _batches(self, examples: list[dict[str, Any]]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Yield batches of similar length, longest first, with the indices of their examples."""
        inputs = replace(self.inputs, packing=False)  # windows are full already, so they need no packing
        collate = make_collator(self.task, self.tokenizer, self.model, inputs)
        order = sorted(range(len(examples)), key=lambda i: -len(examples[i]["input_ids"]))
        batch_size = EVAL_BATCH_SIZE if self.batch_size is None else self.batch_size
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="Evaluating", unit=" batches", disable=not self.show_progress):
            indices = order[start : start + batch_size]
            batch = collate([examples[i] for i in indices])
            yield indices, {name: tensor.to(self.model.device) for name, tensor in batch.items()}
