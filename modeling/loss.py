"""The training objectives (paper section 5.4, and those of the heads that came after it)."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

IGNORED = -100  # the label of what is not to be learned: padding, prompts


def label_smoothed_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy against (1 - e) * one-hot + e * uniform, averaged over real tokens only (Szegedy et al. 2016).

    Args:
        logits: (..., classes), the classes mostly the vocabulary.
        labels: (...), with -100 for tokens that do not count.
        label_smoothing: The paper's epsilon_ls.
        num_items_in_batch: Real tokens in the whole batch, if `labels` is only a part of it: with gradient
            accumulation or several processes the parts' losses then add up to that of the whole. None: those here.

    Returns:
        A scalar; 0 if no token counts.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    labels = labels.to(logits.device).flatten()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum")
    return _mean(total, (labels != IGNORED).sum(), num_items_in_batch)


def shift_left(labels: torch.Tensor) -> torch.Tensor:
    """Labels, (batch, length), as what each position is to predict: the label after it, nothing after the last."""
    return F.pad(labels, (0, 1), value=IGNORED)[:, 1:]


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str | None = None,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """What a sequence classifier learns by: cross entropy, binary cross entropy of each label, or squared error.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices; or (batch, classes), numbers; or, with one class, (batch,) numbers.
        problem_type: transformers' "single_label_classification", "multi_label_classification" or "regression".
            None: regression if there is one class, else the first for whole numbers and the second for others.
        label_smoothing: As in `label_smoothed_cross_entropy`, for a single label.
        num_items_in_batch: Labels in the whole batch, if `labels` is only a part of it. None: those here.

    Returns:
        A scalar, the mean over labels.

    Raises:
        ValueError: There is no such problem type.
    """
    if problem_type is None:
        if logits.shape[-1] == 1:
            problem_type = "regression"
        else:
            problem_type = (
                "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
            )
    if problem_type == "single_label_classification":
        return label_smoothed_cross_entropy(logits, labels, label_smoothing, num_items_in_batch)
    objective: Callable[..., torch.Tensor]
    if problem_type == "multi_label_classification":
        objective = F.binary_cross_entropy_with_logits
    elif problem_type == "regression":
        objective = F.mse_loss
    else:
        raise ValueError(
            f"problem_type is {problem_type!r}, but must be 'single_label_classification', "
            "'multi_label_classification' or 'regression'."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits).reshape(logits.shape)
    return _mean(objective(logits, labels, reduction="sum"), labels.numel(), num_items_in_batch)


def _mean(
    total: torch.Tensor, here: torch.Tensor | int, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    count = here if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)
