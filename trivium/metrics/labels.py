"""Metrics for predicted labels and numbers: scikit-learn functions behind the `evaluate` interface."""

from collections.abc import Callable
from functools import partial
from typing import Any

import evaluate
from datasets import Features, List, Value
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error, r2_score
from sklearn.preprocessing import MultiLabelBinarizer

from trivium.metrics.scores import OfflineMetric

SCORES: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": accuracy_score,
    "f1": partial(f1_score, average="macro", zero_division=0.0),
    "mse": mean_squared_error,
    "r2": r2_score,
}


class LabelScore(OfflineMetric):
    """Metric for predicted labels, label sets or numbers; `config_name` is a key of `SCORES`."""

    def _info(self) -> evaluate.MetricInfo:
        kinds = (List(Value("string")), Value("string"), Value("float64"))
        return evaluate.MetricInfo(
            description=f"{self.config_name}, computed offline",
            citation="",
            inputs_description="predictions and references: lists of labels, of lists of labels, or of numbers.",
            features=[Features(predictions=kind, references=kind) for kind in kinds],
        )

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        if isinstance(references[0], list):
            binarizer = MultiLabelBinarizer().fit([*references, *predictions])
            references, predictions = binarizer.transform(references), binarizer.transform(predictions)
        return {"score": float(SCORES[self.config_name](references, predictions))}
