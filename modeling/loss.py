"""The training objectives (paper section 5.4, and those of the heads that came after it)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # the label of what is not to be learned: padding, prompts
MOST_LOGITS = 2**28  # that are ever there at once, a gibibyte in float32; more are computed in parts, and twice
MOST_IN_FLOAT32 = 2**23  # that are worked on at once


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


def projected_cross_entropy(
    hidden_states: torch.Tensor,
    head: nn.Module,
    labels: torch.Tensor,
    vocab_size: int,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """`label_smoothed_cross_entropy` of the logits `head(hidden_states)`, without ever having them all.

    Positions that do not count never reach the head. Of the others there is one copy of the logits, which becomes
    their gradient in place; if there are more than `MOST_LOGITS`, they are computed in parts, and once more in the
    backward pass. Where torch compiles, shapes must not depend on labels, and it saves memory by itself.

    Args:
        hidden_states: (..., d_model).
        head: Maps (tokens, d_model) to (tokens, vocab_size).
        labels: (...), with -100 for tokens that do not count.
        vocab_size: How many logits a token has.
        label_smoothing: As in `label_smoothed_cross_entropy`.
        num_items_in_batch: As in `label_smoothed_cross_entropy`.

    Returns:
        A scalar; 0 if no token counts. It can be differentiated once.
    """
    if torch.compiler.is_compiling():
        return label_smoothed_cross_entropy(head(hidden_states), labels, label_smoothing, num_items_in_batch)
    real = labels != IGNORED
    states, labels = hidden_states[real.to(hidden_states.device)], labels[real].to(hidden_states.device)

    def loss_of(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _CrossEntropy.apply(head(states), labels, label_smoothing)

    tokens = max(1, MOST_LOGITS // vocab_size)
    if len(labels) <= tokens:
        total = loss_of(states, labels)
    else:
        parts = zip(states.split(tokens), labels.split(tokens), strict=True)
        total = torch.stack([checkpoint(loss_of, *part, use_reentrant=False) for part in parts]).sum()
    return _mean(total, len(labels), num_items_in_batch)


class _CrossEntropy(torch.autograd.Function):
    """The sum of the smoothed cross entropies of (tokens, vocabulary) logits, which it overwrites.

    With p = softmax(logits) the gradient is p - (1 - e) * one-hot - e * uniform: all that is needed for it is there in
    the forward pass, and takes the place of the logits, some rows at a time.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        tokens, vocabulary = logits.shape
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        wanted = ctx.needs_input_grad[0]
        logits = logits.detach()
        for start in range(0, tokens, rows := max(1, MOST_IN_FLOAT32 // vocabulary)):
            part, label = logits[start : start + rows], labels[start : start + rows, None]
            log_p = part.to(total.dtype).log_softmax(dim=-1)
            total -= (1 - smoothing) * log_p.gather(1, label).sum()
            if smoothing:
                total -= smoothing / vocabulary * log_p.sum()
            if wanted:
                gradient = log_p.exp_().sub_(smoothing / vocabulary)
                gradient.scatter_add_(1, label, gradient.new_full((1, 1), smoothing - 1).expand_as(label))
                part.copy_(gradient)
        if wanted:
            ctx.save_for_backward(logits)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad_output), None, None  # in place: torch refuses to do it again


def shift_left(labels: torch.Tensor) -> torch.Tensor:
    """Labels, (batch, length), as what each position is to predict: the label after it, nothing after the last."""
    return F.pad(labels, (0, 1), value=IGNORED)[:, 1:]


def up_to_last(labels: torch.Tensor) -> torch.Tensor:
    """A mask of (batch, length) labels, 1 up to the last that counts: what comes after it cannot change the loss."""
    return (labels != IGNORED).flip(1).cumsum(dim=1).clamp(max=1).flip(1)


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
