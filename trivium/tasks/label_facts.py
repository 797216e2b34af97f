"""Labels of a classifier: what its configuration must know of them, and how they are encoded and decoded."""

from collections.abc import Iterable
from typing import Any

import torch

from trivium.configuration import TriviumConfig


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
