"""R-Drop (Liang et al. 2021, arXiv 2106.14448): train with the divergence between two passes of different dropout.

Each batch runs twice, in one forward pass over twice the rows, and the divergence between the two output distributions
p and q at each labeled position is penalized. With CE as the mean cross entropy of the model (label smoothing
included), w as the weight, and gradients through both p and q,

    loss = (CE(p) + CE(q)) / 2 + w / 2 * (KL(p || q) + KL(q || p)) / 2,

which is half of the paper's equation 4, so that it has the scale of an ordinary loss.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel, TrainingArguments

from trivium.modeling import TriviumForCausalLM
from trivium.modeling.loss import IGNORE_INDEX, shift_left

CHUNK_LOGITS = 2**20  # compute the loss of at most this many logits at a time, in each pass


def check_r_drop(weight: float, args: TrainingArguments) -> None:
    """Check the training arguments of a run with R-Drop.

    Raises:
        ValueError: One process trains on several GPUs, or the Trainer replaces the loss of the model.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"learning.r_drop is {weight}, but needs one process per GPU, and this process would use {args.n_gpu}. "
            "Start it with `accelerate launch`, or set learning.r_drop=0."
        )
    if args.label_smoothing_factor:
        raise ValueError(
            f"training.label_smoothing_factor is {args.label_smoothing_factor}, but learning.r_drop needs the model's "
            "own loss. Set model.label_smoothing instead."
        )


class RDrop:
    """Forward pass of a model with the loss of R-Drop, as `r_drop(model, **batch)`."""

    def __init__(self, model: PreTrainedModel, weight: float) -> None:
        """Store the model and the weight.

        Args:
            model: The model, before it is wrapped for distributed training.
            weight: Weight w of the divergence.

        Raises:
            ValueError: The model predicts numbers or several labels, which have no distribution over classes.
        """
        problem = getattr(model.config, "problem_type", None)
        if problem in ("regression", "multi_label_classification"):
            raise ValueError(
                f"learning.r_drop is {weight}, but needs a distribution over classes, and model.problem_type is "
                f"{problem}. Set learning.r_drop=0."
            )
        self._model, self._weight = model, weight

    def __call__(self, model: nn.Module, **batch: Any) -> dict[str, torch.Tensor]:
        """Run a batch twice in one forward pass, and return the loss.

        Args:
            model: The model, possibly wrapped for distributed training.
            **batch: Inputs of the model, with `labels` and, optionally, `num_items_in_batch`, as for a single pass.

        Returns:
            `loss`, the mean over the labeled positions of one pass.
        """
        labels, num_items = batch.pop("labels"), batch.pop("num_items_in_batch", None)
        if self._model.config.is_encoder_decoder and "decoder_input_ids" not in batch:
            batch["decoder_input_ids"] = self._model.prepare_decoder_input_ids_from_labels(labels)
        inputs: dict[str, Any] = {name: torch.cat((value, value)) for name, value in batch.items()}
        if self._model.config.decoder_layers:
            inputs["use_cache"] = False
        logits = model(**inputs).logits  # (2 * batch, ..., classes)
        targets = shift_left(labels) if isinstance(self._model, TriviumForCausalLM) else labels
        total = _RDropLoss.apply(logits.flatten(0, -2), targets.flatten(), self._model.label_smoothing, self._weight)
        count = (targets != IGNORE_INDEX).sum() if num_items is None else num_items
        return {"loss": total / torch.as_tensor(count, device=total.device).clamp(min=1)}


class _RDropLoss(torch.autograd.Function):
    """Sum of the loss over the labeled positions; overwrites the logits by their gradient.

    With d = log p - log q, and t as the smoothed target, the gradient of the logits of p is

        (p - t) / 2 + w / 4 * (p * (d - KL(p || q)) + p - q),

    and that of q the same with p and q exchanged. They are computed in the forward pass, a few rows at a time: with
    autograd, a step of a small model on a CPU would spend most of its time on tensors of the size of all logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, smoothing: float, weight: float) -> torch.Tensor:
        positions, classes = len(labels), logits.shape[-1]
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        logits = logits.detach()
        # Small chunks fit the cache of a CPU; on a GPU, large ones need fewer kernels.
        chunk_size = max(1, CHUNK_LOGITS * (1 if logits.device.type == "cpu" else 16) // classes)
        for start in range(0, positions, chunk_size):
            label = labels[start : start + chunk_size, None]  # (rows, 1)
            is_labeled, label = label != IGNORE_INDEX, label.clamp(min=0)
            halves = [logits[first : first + len(label)] for first in (start, positions + start)]  # of p, of q
            log_probs = [half.to(total.dtype).log_softmax(dim=-1) for half in halves]  # (rows, classes)
            probs = [log_prob.exp() for log_prob in log_probs]
            for half, own, other in ((halves[0], 0, 1), (halves[1], 1, 0)):
                gradient = log_probs[own] - log_probs[other]
                divergence = (probs[own] * gradient).sum(dim=-1, keepdim=True)
                loss = weight / 4 * divergence - (1 - smoothing) / 2 * log_probs[own].gather(1, label)
                loss -= smoothing / 2 / classes * log_probs[own].sum(dim=-1, keepdim=True)
                total += loss.masked_fill_(~is_labeled, 0).sum()
                gradient.sub_(divergence - 1).mul_(weight / 4).add_(0.5).mul_(probs[own])
                gradient.sub_(probs[other], alpha=weight / 4).sub_(smoothing / 2 / classes)
                gradient.scatter_add_(1, label, gradient.new_full((1, 1), (smoothing - 1) / 2).expand_as(label))
                half.copy_(gradient.masked_fill_(~is_labeled, 0))
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad_output), None, None, None  # in place, so torch rejects a second backward pass
