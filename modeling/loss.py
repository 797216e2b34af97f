"""Training losses: label-smoothed cross entropy (paper section 5.4), and the losses of sequence classification."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100  # label of tokens that do not contribute to the loss, such as padding and prompts
MAX_LOGITS = 2**28  # materialize at most this many (1 GiB in float32); chunk and recompute more than that
MAX_FLOAT32_LOGITS = 2**23  # upcast at most this many to float32 at a time


def label_smoothed_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Compute the cross entropy against (1 - e) * one-hot + e * uniform (section 5.4; Szegedy et al. 2016).

    Args:
        logits: (..., classes); in language modeling the classes are the vocabulary.
        labels: (...), with -100 for tokens to ignore.
        label_smoothing: Label smoothing e, the paper's epsilon_ls.
        num_items_in_batch: Number of labeled tokens in the whole batch, if `labels` is one micro-batch or the share
            of one process: the losses of all parts then sum to the loss of the batch. None for the number of labeled
            tokens in `labels`.

    Returns:
        A scalar, the mean over labeled tokens; 0 if there are none.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    labels = labels.to(logits.device).flatten()
    total = F.cross_entropy(
        logits, labels, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing, reduction="sum"
    )
    return _mean(total, (labels != IGNORE_INDEX).sum(), num_items_in_batch)


def projected_cross_entropy(
    hidden_states: torch.Tensor,
    head: nn.Module,
    labels: torch.Tensor,
    vocab_size: int,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Compute `label_smoothed_cross_entropy` of `head(hidden_states)` without materializing all logits.

    Only labeled tokens are projected, and their logits are overwritten by their gradient. More than `MAX_LOGITS`
    logits are processed in chunks and recomputed in the backward pass. Under torch.compile the logits are computed as
    usual: shapes must not depend on the labels there, and the compiler saves memory by fusing kernels.

    Args:
        hidden_states: (..., d_model).
        head: Output projection from (tokens, d_model) to (tokens, vocab_size).
        labels: (...), with -100 for tokens to ignore.
        vocab_size: Number of logits per token.
        label_smoothing: As in `label_smoothed_cross_entropy`.
        num_items_in_batch: As in `label_smoothed_cross_entropy`.

    Returns:
        A scalar, the mean over labeled tokens; 0 if there are none. It can be differentiated only once.
    """
    if torch.compiler.is_compiling():
        return label_smoothed_cross_entropy(head(hidden_states), labels, label_smoothing, num_items_in_batch)
    is_labeled = labels != IGNORE_INDEX
    states = hidden_states[is_labeled.to(hidden_states.device)]  # (tokens, d_model)
    labels = labels[is_labeled].to(hidden_states.device)  # (tokens,)

    def sum_loss(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _CrossEntropy.apply(head(states), labels, label_smoothing)

    chunk_size = max(1, MAX_LOGITS // vocab_size)
    if len(labels) <= chunk_size:
        total = sum_loss(states, labels)
    else:
        chunks = zip(states.split(chunk_size), labels.split(chunk_size), strict=True)
        losses = [checkpoint(sum_loss, chunk, targets, use_reentrant=False) for chunk, targets in chunks]
        total = torch.stack(losses).sum()
    return _mean(total, len(labels), num_items_in_batch)


class _CrossEntropy(torch.autograd.Function):
    """Summed label-smoothed cross entropy of (tokens, vocabulary) logits, which are overwritten by their gradient.

    With p = softmax(logits) the gradient is p - (1 - e) * one-hot - e * uniform, with 1 / vocabulary as uniform. It is
    already known in the forward pass, which overwrites the logits with it, a few rows at a time.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        tokens, vocabulary = logits.shape
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        needs_grad = ctx.needs_input_grad[0]
        logits = logits.detach()
        for start in range(0, tokens, rows := max(1, MAX_FLOAT32_LOGITS // vocabulary)):
            chunk, label = logits[start : start + rows], labels[start : start + rows, None]
            log_p = chunk.to(total.dtype).log_softmax(dim=-1)  # (rows, vocabulary)
            total -= (1 - smoothing) * log_p.gather(1, label).sum()
            if smoothing:
                total -= smoothing / vocabulary * log_p.sum()
            if needs_grad:
                gradient = log_p.exp_().sub_(smoothing / vocabulary)
                gradient.scatter_add_(1, label, gradient.new_full((1, 1), smoothing - 1).expand_as(label))
                chunk.copy_(gradient)
        if needs_grad:
            ctx.save_for_backward(logits)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad_output), None, None  # in place, so torch rejects a second backward pass


def shift_left(labels: torch.Tensor) -> torch.Tensor:
    """Shift (batch, length) labels left by one, so that each position predicts the next token; ignore the last."""
    return F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]


def mask_after_last_label(labels: torch.Tensor) -> torch.Tensor:
    """Return an attention mask of shape (batch, length): 1 up to the last label of a row, 0 after it.

    In a causal decoder the masked positions cannot affect the loss.
    """
    return (labels != IGNORE_INDEX).flip(1).cumsum(dim=1).clamp(max=1).flip(1)


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str | None = None,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Compute the loss of sequence classification: cross entropy, binary cross entropy per label, or squared error.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices for a single label; (batch, classes) floats for several labels or regression;
            (batch,) floats for regression with one class.
        problem_type: "single_label_classification", "multi_label_classification" or "regression", as in transformers.
            If None, regression for one class; otherwise single-label for integer labels and multi-label for floats.
        label_smoothing: As in `label_smoothed_cross_entropy`; single-label only.
        num_items_in_batch: Number of labels in the whole batch, if `labels` is a part of it. None for the number of
            labels in `labels`.

    Returns:
        A scalar, the mean over labels.

    Raises:
        ValueError: The problem type is unknown.
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
    total: torch.Tensor, num_items: torch.Tensor | int, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    count = num_items if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)
