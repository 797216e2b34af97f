"""The training objective (paper section 5.4)."""

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
        logits: (batch, length, vocabulary).
        labels: (batch, length), with -100 for tokens that do not count.
        label_smoothing: The paper's epsilon_ls.
        num_items_in_batch: Real tokens in the whole batch, if `labels` is only a part of it: with gradient
            accumulation or several processes the parts' losses then add up to that of the whole. None: those here.

    Returns:
        A scalar; 0 if no token counts.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.device)
    total = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    if num_items_in_batch is None:
        num_items_in_batch = (labels != IGNORED).sum().clamp(min=1)
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
