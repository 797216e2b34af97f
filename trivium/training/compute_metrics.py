"""Metrics that the Trainer computes at each evaluation, for tasks whose outputs it gathers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from trivium.configuration import TriviumConfig
from trivium.metrics import load_metric
from trivium.recipe import Recipe
from trivium.tasks import labels_of_logits, labels_of_targets, score_tags, tags_of_targets


def make_compute_metrics(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[EvalPrediction], dict[str, float]] | None:
    """Return the Trainer's `compute_metrics`, or None to compute only the loss, without gathering any logits."""
    names = list(recipe.kind.metrics_for(model.config)[:2]) if recipe.metrics is None else recipe.metrics
    if "label" in recipe.kind.columns:
        return make_compute_label_metrics(model.config, names)
    if "tags" in recipe.kind.columns:
        return make_compute_tag_metrics(model.config, names)
    if recipe.training.get("predict_with_generate") and model.config.is_encoder_decoder:
        return make_compute_text_metrics(tokenizer, names)
    return None


def make_compute_label_metrics(
    config: TriviumConfig, names: list[str]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return a `compute_metrics` function that scores predicted labels, with one score per metric."""
    metrics = {name: load_metric(name) for name in names}

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        predictions = labels_of_logits(torch.from_numpy(prediction.predictions), config)
        references = labels_of_targets(torch.from_numpy(prediction.label_ids), config)
        return _compute_scores(metrics, predictions, references)

    return compute


def make_compute_tag_metrics(config: TriviumConfig, names: list[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return a `compute_metrics` function that scores the tags of untruncated words, with one score per metric."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        labels = prediction.predictions.argmax(axis=-1)
        predictions, references = (
            tags_of_targets(values, prediction.label_ids, config) for values in (labels, prediction.label_ids)
        )
        return {name: score_tags(name, predictions, references)["score"] for name in names}

    return compute


def make_compute_text_metrics(
    tokenizer: PreTrainedTokenizerBase, names: list[str]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return a `compute_metrics` function that scores generated texts, with one score per metric."""
    metrics = {name: load_metric(name) for name in names if name != "perplexity"}  # perplexity is exp(eval_loss)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        predictions, references = (
            # The Trainer pads with -100, which some tokenizers cannot decode.
            tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)
            for ids in (prediction.predictions, prediction.label_ids)
        )
        return _compute_scores(metrics, predictions, references)

    return compute


def _compute_scores(
    metrics: Mapping[str, Any], predictions: Sequence[Any], references: Sequence[Any]
) -> dict[str, float]:
    return {
        name: metric.compute(predictions=predictions, references=references)["score"]
        for name, metric in metrics.items()
    }
