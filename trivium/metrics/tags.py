"""Entity-level metric for tagging: seqeval behind the `evaluate` interface."""

from typing import Any

import evaluate
from datasets import Features, List, Value
from seqeval.metrics import classification_report

from trivium.metrics.scores import OfflineMetric


class EntityScore(OfflineMetric):
    """Entity-level F1 score in seqeval's default mode, which matches CoNLL-2003's script `conlleval`."""

    def _info(self) -> evaluate.MetricInfo:
        tags = List(Value("string"))
        return evaluate.MetricInfo(
            description="F1 score of entities, computed offline",
            citation="",
            inputs_description="predictions and references: lists of the tags of each sentence.",
            features=Features(predictions=tags, references=tags),
        )

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, Any]:
        report = classification_report(references, predictions, output_dict=True, zero_division=0)
        report = {
            kind: {name: float(score) for name, score in scores.items() if name != "support"}
            for kind, scores in report.items()
        }
        micro = report.pop("micro avg")
        types = {kind: scores for kind, scores in report.items() if kind not in ("macro avg", "weighted avg")}
        return {"score": micro["f1-score"], "precision": micro["precision"], "recall": micro["recall"], "types": types}
