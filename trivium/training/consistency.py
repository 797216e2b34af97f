"""Consistency training: R-Drop (Liang et al. 2021, arXiv 2106.14448) and SimCut (Gao et al. 2022, arXiv 2206.02368).

Both run each batch twice, in one forward pass over twice the rows, and penalize the divergence between the two output
distributions p and q at each labeled position. With CE as the mean cross entropy of the model (label smoothing
included) and gradients through both p and q:

- R-Drop: the passes differ by their dropout. Loss = (CE(p) + CE(q)) / 2 + w / 2 * (KL(p || q) + KL(q || p)) / 2, which
  is half of the paper's equation 4, so that it has the scale of an ordinary loss.
- SimCut: the second pass also sets 5 % of the token embeddings to zero, of source and target. Loss = CE(p) + w *
  KL(p || q).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel, TrainingArguments

from trivium.modeling import TriviumForCausalLM
from trivium.modeling.embeddings import TokenEmbedding
from trivium.modeling.loss import IGNORE_INDEX, shift_left
from trivium.recipe_sections import LearningArguments

CHUNK_LOGITS = 2**20  # compute the loss of at most this many logits at a time, in each pass
CUTOFF = 0.05  # probability with which SimCut sets the embedding of a token to zero, as in the paper


def check_consistency(learning: LearningArguments, args: TrainingArguments) -> None:
    """Check the training arguments of a run with a consistency loss.

    Raises:
        ValueError: One process trains on several GPUs, the Trainer replaces the loss of the model, or SimCut is used
            with a compiled model.
    """
    for name in ("r_drop", "simcut"):
        value = getattr(learning, name)
        if value and args.n_gpu > 1:
            raise ValueError(
                f"learning.{name} is {value}, but needs one process per GPU, and this process would use {args.n_gpu}. "
                f"Start it with `accelerate launch`, or set learning.{name}=0."
            )
        if value and args.label_smoothing_factor:
            raise ValueError(
                f"training.label_smoothing_factor is {args.label_smoothing_factor}, but learning.{name} needs the "
                "model's own loss. Set model.label_smoothing instead."
            )
    if learning.simcut and args.torch_compile:
        raise ValueError(
            f"learning.simcut is {learning.simcut}, but changes embeddings with hooks, which a compiled model skips. "
            "Set training.torch_compile=false, or learning.simcut=0."
        )


class Weights(NamedTuple):
    """Weights of the terms of the loss: CE(p), CE(q), KL(p || q) and KL(q || p)."""

    entropy_p: float
    entropy_q: float
    p_to_q: float
    q_to_p: float


class Consistency:
    """Forward pass of a model with a consistency loss, as `consistency(model, **batch)`."""

    def __init__(self, model: PreTrainedModel, learning: LearningArguments) -> None:
        """Store the weights of the losses, and find the embeddings of the model.

        Args:
            model: The model, before it is wrapped for distributed training.
            learning: Either `r_drop` or `simcut` is above 0.

        Raises:
            ValueError: The model predicts numbers or several labels, which have no distribution over classes.
        """
        weight, self._simcut = learning.r_drop, learning.simcut
        self._weights = Weights(1.0, 0.0, self._simcut, 0.0)
        if weight:
            self._weights = Weights(0.5, 0.5, weight / 4, weight / 4)
        problem = getattr(model.config, "problem_type", None)
        if problem in ("regression", "multi_label_classification"):
            name = "r_drop" if weight else "simcut"
            raise ValueError(
                f"learning.{name} is {weight or self._simcut}, but needs a distribution over classes, and "
                f"model.problem_type is {problem}. Set learning.{name}=0."
            )
        self._model = model
        self._embeddings = [module for module in model.modules() if isinstance(module, TokenEmbedding)]

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
        with self._cut_embeddings():
            logits = model(**inputs).logits  # (2 * batch, ..., classes)
        targets = shift_left(labels) if isinstance(self._model, TriviumForCausalLM) else labels
        total = _ConsistencyLoss.apply(
            logits.flatten(0, -2), targets.flatten(), self._model.label_smoothing, self._weights
        )
        count = (targets != IGNORE_INDEX).sum() if num_items is None else num_items
        return {"loss": total / torch.as_tensor(count, device=total.device).clamp(min=1)}

    @contextmanager
    def _cut_embeddings(self) -> Iterator[None]:
        """Set random token embeddings of the second half of the rows to zero, with SimCut only."""

        def cut(module: nn.Module, args: Any, embedded: torch.Tensor) -> torch.Tensor:
            is_kept = torch.rand(embedded.shape[:2], device=embedded.device) >= CUTOFF  # (2 * batch, length)
            is_kept[: len(is_kept) // 2] = True
            return embedded * is_kept[..., None]

        handles = [module.register_forward_hook(cut) for module in self._embeddings] if self._simcut else []
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _ConsistencyLoss(torch.autograd.Function):
    """Weighted sum of the cross entropies and divergences of two passes; overwrites the logits by their gradient.

    With a and b as the logarithms of p and q, d = a - b, and t as the smoothed target, the gradients are

        of the logits of p: entropy_p * (p - t) + p_to_q * p * (d - KL(p || q)) + q_to_p * (p - q)
        of the logits of q: entropy_q * (q - t) + p_to_q * (q - p) - q_to_p * q * (d + KL(q || p)).

    They are computed in the forward pass, a few rows at a time: with autograd, a step of a small model on a CPU would
    spend most of its time on tensors of the size of all logits. Unlabeled positions count as zero.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, smoothing: float, weights: Weights
    ) -> torch.Tensor:
        positions, classes = len(labels), logits.shape[-1]
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        logits = logits.detach()
        # Small chunks fit the cache of a CPU; on a GPU, large ones need fewer kernels.
        chunk_size = max(1, CHUNK_LOGITS * (1 if logits.device.type == "cpu" else 16) // classes)
        for start in range(0, positions, chunk_size):
            label = labels[start : start + chunk_size, None]
            is_labeled, label = label != IGNORE_INDEX, label.clamp(min=0)
            halves = (slice(start, start + len(label)), slice(positions + start, positions + start + len(label)))
            log_p, log_q = (logits[rows].to(total.dtype).log_softmax(dim=-1) for rows in halves)  # (rows, classes)
            p, q, difference = log_p.exp(), log_q.exp(), log_p - log_q
            p_to_q = (p * difference).sum(dim=-1, keepdim=True)
            q_to_p = -(q * difference).sum(dim=-1, keepdim=True)
            loss = weights.p_to_q * p_to_q + weights.q_to_p * q_to_p  # (rows, 1)
            of_p = (weights.p_to_q * difference).add_(weights.entropy_p + weights.q_to_p - weights.p_to_q * p_to_q)
            of_q = (-weights.q_to_p * difference).add_(weights.entropy_q + weights.p_to_q - weights.q_to_p * q_to_p)
            of_p.mul_(p).sub_(q, alpha=weights.q_to_p)
            of_q.mul_(q).sub_(p, alpha=weights.p_to_q)
            for weight, log_probs, part in (
                (weights.entropy_p, log_p, of_p),
                (weights.entropy_q, log_q, of_q),
            ):
                if weight:
                    loss -= weight * (1 - smoothing) * log_probs.gather(1, label)
                    loss -= weight * smoothing / classes * log_probs.sum(dim=-1, keepdim=True)
                    part.sub_(weight * smoothing / classes)
                    part.scatter_add_(1, label, part.new_full((1, 1), weight * (smoothing - 1)).expand_as(label))
            total += loss.masked_fill(~is_labeled, 0).sum()
            for rows, part in zip(halves, (of_p, of_q), strict=True):
                logits[rows] = part.masked_fill_(~is_labeled, 0)
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad_output), None, None, None  # in place, so torch rejects a second backward pass
