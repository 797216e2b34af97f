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
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from trivium.modeling import TriviumForCausalLM
from trivium.modeling.embeddings import TokenEmbedding
from trivium.modeling.loss import IGNORE_INDEX, shift_left
from trivium.recipe import LearningArguments

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
        self._r_drop, self._simcut = learning.r_drop, learning.simcut
        problem = getattr(model.config, "problem_type", None)
        if problem in ("regression", "multi_label_classification"):
            name = "r_drop" if self._r_drop else "simcut"
            raise ValueError(
                f"learning.{name} is {self._r_drop or self._simcut}, but needs a distribution over classes, and "
                f"model.problem_type is {problem}. Set learning.{name}=0."
            )
        self._model = model
        self._embeddings = [module for module in model.modules() if isinstance(module, TokenEmbedding)]

    def __call__(self, model: nn.Module, **batch: Any) -> Any:
        """Run a batch twice in one forward pass, and return the outputs with the consistency loss added to `loss`.

        Args:
            model: The model, possibly wrapped for distributed training.
            **batch: Inputs of the model, with `labels` and, optionally, `num_items_in_batch`, as for a single pass.

        Returns:
            The outputs of both passes: `logits` of shape (2 * batch, ..., classes), and the mean `loss` over the
            labeled positions of one pass.
        """
        num_items = batch.pop("num_items_in_batch", None)
        labels = batch["labels"]
        if self._model.config.is_encoder_decoder and "decoder_input_ids" not in batch:
            batch["decoder_input_ids"] = self._model.prepare_decoder_input_ids_from_labels(labels)
        inputs = {name: torch.cat((value, value)) for name, value in batch.items()}
        if self._simcut:  # Only the pass without cutoff has a cross entropy.
            inputs["labels"] = torch.cat((labels, torch.full_like(labels, IGNORE_INDEX)))
        options = {} if num_items is None else {"num_items_in_batch": num_items * (2 if self._r_drop else 1)}
        with self._cut_embeddings():
            outputs = model(**inputs, **options)
        targets = shift_left(labels) if isinstance(self._model, TriviumForCausalLM) else labels
        is_labeled = targets != IGNORE_INDEX  # (batch, ...), as the logits of one pass
        logits = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))
        log_p, log_q = (half[is_labeled].log_softmax(dim=-1) for half in logits.chunk(2))  # (positions, classes)
        if self._r_drop:
            divergence = self._r_drop / 4 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum()
        else:
            divergence = self._simcut * (log_p.exp() * (log_p - log_q)).sum()
        count = is_labeled.sum() if num_items is None else num_items
        outputs["loss"] = outputs["loss"] + divergence / torch.as_tensor(count, device=divergence.device).clamp(min=1)
        return outputs

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
