"""Labels of a classifier: derive them from data, encode them as targets, and decode predictions."""

from collections.abc import Iterable
from typing import Any

import torch

from trivium.configuration import TriviumConfig


def label_facts(labels: Iterable[Any], problem_type: str | None = None) -> dict[str, Any]:
    """Derive a classifier's configuration fields from the labels of its training data.

    Args:
        labels: The label of each row: a string, an integer, a list of them, or a float.
        problem_type: "regression" to treat integer labels as numbers. With None, float labels mean regression, and
            lists mean multi-label classification.

    Returns:
        `problem_type`, and `label2id` and `id2label`, or `num_labels` for regression.

    Raises:
        ValueError: A label is a list with a float, or all labels are the same.
    """
    seen: set[Any] = set()
    has_lists = has_floats = False
    for label in labels:
        has_lists = has_lists or isinstance(label, list)
        has_floats = has_floats or isinstance(label, float)
        seen.update(label if isinstance(label, list) else [label])
    if has_floats or problem_type == "regression":
        return {"problem_type": "regression", "num_labels": 1}
    for label in seen:
        if isinstance(label, float):
            raise ValueError(f"A list of labels has {label}, but may contain only strings or integers.")
    sort_key = (
        None if all(isinstance(label, int) for label in seen) else str
    )  # Integers sort numerically: 2 before 10.
    names = list(dict.fromkeys(map(str, sorted(seen, key=sort_key))))
    if len(names) == 1 and not has_lists:
        raise ValueError(
            f"The label of all training rows is {names[0]!r}, but a classifier needs at least two different labels. "
            "Set data.label to the column of labels, or add rows with other labels."
        )
    return {
        "problem_type": "multi_label_classification" if has_lists else "single_label_classification",
        "label2id": {name: i for i, name in enumerate(names)},
        "id2label": dict(enumerate(names)),
    }


def labels_of_row(label: Any, config: TriviumConfig) -> str | float | list[str]:
    """Convert a label of the data to the form that the model predicts: a name, a sorted list of names, or a number.

    Raises:
        ValueError: The label is not in `label2id`, or is not a number although the model is a regression model.
    """
    if config.problem_type == "regression":
        try:
            return float(label)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The label {label!r} is not a number, but problem_type is regression, which needs numbers."
            ) from error
    names = sorted(map(str, label)) if isinstance(label, list) else [str(label)]
    for name in names:
        if name not in config.label2id:
            raise ValueError(
                f"The label {name!r} is unknown, because the training data has only {', '.join(config.label2id)}."
            )
    return names if config.problem_type == "multi_label_classification" else names[0]


def encode_label(label: Any, config: TriviumConfig) -> int | float | list[float]:
    """Encode a label of the data as a training target: a class index, a multi-hot vector, or a number."""
    names = labels_of_row(label, config)
    if isinstance(names, list):
        return [float(config.id2label[i] in names) for i in range(config.num_labels)]
    return names if isinstance(names, float) else config.label2id[names]


def labels_of_logits(logits: torch.Tensor, config: TriviumConfig) -> list[Any]:
    """Decode logits of shape (batch, labels) to predicted labels, in the form of `labels_of_row`."""
    if config.problem_type == "regression":
        return labels_of_targets(logits[:, 0], config)
    if config.problem_type == "multi_label_classification":
        return labels_of_targets(logits > 0, config)
    return labels_of_targets(logits.argmax(dim=-1), config)


def labels_of_targets(targets: torch.Tensor, config: TriviumConfig) -> list[Any]:
    """Decode targets of shape (batch,) or (batch, labels) to labels, in the form of `labels_of_row`."""
    if config.problem_type == "regression":
        return targets.tolist()
    if config.problem_type == "multi_label_classification":
        return [sorted(config.id2label[i] for i in row.nonzero()[:, 0].tolist()) for row in targets]
    return [config.id2label[i] for i in targets.tolist()]
