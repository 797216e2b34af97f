"""How good a model is, whichever way it is built: by what it writes, by its labels, and by what it thinks of texts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trivium.data.loading import TEXT
from trivium.metrics import load_metric
from trivium.modeling.loss import IGNORED
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

ROWS_AT_ONCE = 64  # whose logits are computed, where nobody says how many

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
    """Let a model do what it was made for on all `rows`, and compare with what they say. No logits are kept.

    Args:
        model: A model with the head that `task` is for.
        tokenizer: Its tokenizer.
        rows: With the columns of the task: `source` and `target`, or `text`, or `text` and `label`.
        metrics: Names of `trivium.metrics.load_metric`; None: what is usual for the task.
        task: A key of `trivium.tasks.TASKS`. Where there are targets, texts are generated and compared with them.
        inputs: As the model was trained with.
        batch_size: Rows that are computed at once; None: 64, and for texts that are generated as `translate` has it.
        show_progress: Whether to show a progress bar.
        **generation: What `generate()` takes; the rest is as saved with the model.

    Returns:
        For each metric its `score` and the figures that go with it; and what the model said of each row, its text or
        its label, where it says something.

    Raises:
        ValueError: A metric is unknown, or is not for this task or this model; there is no such task; or no row.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, but must be one of {', '.join(TASKS)}.")
    kind = TASKS[task]
    metrics = list(kind.metrics_for(model.config)[:2]) if metrics is None else metrics
    kind.check_metrics(metrics, model.config)  # before the long work: a wrong name stops here
    run = _Evaluation(model.eval(), tokenizer, kind, inputs or InputArguments(), batch_size, show_progress)
    rows = list(rows)
    if not rows:
        raise ValueError("There is nothing to evaluate: rows is empty.")
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
    said = [" ".join(each) if isinstance(each, list) else str(each) for each in predictions]
    return {name: scores[name] for name in metrics}, said


@dataclass(frozen=True)
class _Evaluation:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    inputs: InputArguments
    batch_size: int | None
    show_progress: bool

    def texts(self, rows: list[Row], generation: dict[str, Any]) -> list[str]:
        """What the model makes of the sources."""
        sources = [row["source"] for row in rows]
        prompts = sources if self.model.config.is_encoder_decoder else prompts_of(sources, self.inputs)
        options = {"batch_size": self.batch_size, "show_progress": self.show_progress, **generation}
        return list(translate(self.model, self.tokenizer, prompts, **options))

    @torch.inference_mode()
    def labels(self, rows: list[Row]) -> list[Any]:
        """The labels that the model gives, in the order of the rows."""
        predictions: list[Any] = [None] * len(rows)
        for places, batch in self._batches(
            encode_rows(rows, self.task, self.tokenizer, self.model.config, self.inputs)
        ):
            del batch["labels"]
            said = labels_of_logits(self.model(**batch).logits, self.model.config)
            for place, label in zip(places, said, strict=True):
                predictions[place] = label
        return predictions

    @torch.inference_mode()
    def tokens(self, rows: list[Row]) -> dict[str, Score]:
        """How likely the model finds the tokens that it would have had to say, and how often it says just them."""
        sums, counts, right = [], [], 0
        if self.task is TASKS["causal-lm"]:
            examples = windows_of_rows(rows, self.tokenizer, self.model.config, self.inputs)
        else:
            examples = encode_rows(rows, self.task, self.tokenizer, self.model.config, self.inputs)
        for _, batch in self._batches(examples):
            labels = batch["labels"]
            if self.task is TASKS["causal-lm"]:
                batch["shift_labels"] = batch.pop("labels")
            output = self.model(**batch, num_items_in_batch=1)  # the sum over tokens
            sums.append(output.loss.item())
            counts.append(int((labels != IGNORED).sum()))
            right += int((output.logits.argmax(dim=-1) == labels).sum())
        perplexity = load_metric("perplexity").compute(nll=sums, num_tokens=counts)
        return {"perplexity": perplexity, "accuracy": {"score": right / sum(counts)}}

    def _batches(self, examples: list[dict[str, Any]]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Batches of similar length, the longest first, with the places of their examples."""
        inputs = replace(self.inputs, packing=False)  # windows need no packing
        collate = make_collator(self.task, self.tokenizer, self.model, inputs)
        order = sorted(range(len(examples)), key=lambda i: -len(examples[i]["input_ids"]))
        batch_size = ROWS_AT_ONCE if self.batch_size is None else self.batch_size
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="Evaluating", unit=" batches", disable=not self.show_progress):
            places = order[start : start + batch_size]
            batch = collate([examples[i] for i in places])
            yield places, {name: tensor.to(self.model.device) for name, tensor in batch.items()}
