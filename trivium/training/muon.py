"""Muon for the hidden matrices of the layers, AdamW for all other parameters, in one optimizer.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by its nearest orthogonal matrix. torch has a Muon, but one
that computes in bfloat16 everywhere, which is slow and coarse on a CPU, and handles matrices one by one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from transformers import TrainingArguments

from trivium.modeling.layers import DecoderLayer, EncoderLayer
from trivium.training.distributed import uses_fsdp

MOMENTUM = 0.95
# Coefficients (a, b, c) of the polynomials a x + b x^3 + c x^5 of the Newton-Schulz steps. Each minimizes the largest
# distance to 1 of what the steps before it make of singular values in [0.003, 1], as Amsel et al. (2025, "The Polar
# Express") propose: together, they map [0.003, 1] into [0.80, 1.20]. Jordan's single polynomial needs a fifth step.
COEFFICIENTS = (
    (8.3837, -24.7659, 18.3571),
    (4.0434, -3.0114, 0.5695),
    (3.5056, -2.6267, 0.5257),
    (2.4901, -1.8343, 0.4368),
)
MARGIN = 1.01  # keeps singular values below 1 in bfloat16, too
# AdamW's updates have a root mean square of about 0.2 times the learning rate (Liu et al. 2025, section 2.2).
UPDATE_RMS = 0.2


class MuonWithAdamW(Optimizer):
    """Muon on some parameter groups, AdamW on the others.

    Muon's update of a (rows, columns) matrix is that of Liu et al. (2025, "Muon is Scalable for LLM Training"):
    weight = weight - lr * (0.2 * sqrt(max(rows, columns)) * orthogonal + weight_decay * weight), where `orthogonal` is
    the Nesterov momentum of the gradient after `orthogonalize`. The factor gives it the root mean square of AdamW's
    updates, so that learning rates of AdamW suit it.

    Args:
        adamw: Parameter groups of AdamW.
        muon: Matrices that Muon trains.
        muon_learning_rate: Muon's learning rate.
        weight_decay: Muon's decoupled weight decay.
        **adamw_options: Arguments of `torch.optim.AdamW`.
    """

    def __init__(
        self,
        adamw: Iterable[dict[str, Any]],
        muon: Iterable[nn.Parameter],
        muon_learning_rate: float,
        weight_decay: float = 0.0,
        **adamw_options: Any,
    ) -> None:
        self._adamw = AdamW(list(adamw), **adamw_options)
        # AdamW's groups come first, because the Trainer logs the learning rate of the first group.
        groups = [{**group, "is_muon": False} for group in self._adamw.param_groups]
        groups.append({"params": muon, "lr": muon_learning_rate, "weight_decay": weight_decay, "is_muon": True})
        # Schedules with `min_lr` read the default learning rate.
        super().__init__(groups, {"lr": self._adamw.defaults["lr"]})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: Function that computes the gradients and returns the loss; None if they are already computed.

        Returns:
            The loss that `closure` returned, or None.

        Raises:
            ValueError: A matrix of Muon is sharded.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._adamw.param_groups = [group for group in self.param_groups if not group["is_muon"]]
        self._adamw.state = self.state
        self._adamw.step()
        for group in self.param_groups:
            if group["is_muon"]:
                self._step_muon(group)
        return loss

    def _step_muon(self, group: dict[str, Any]) -> None:
        # Matrices of one shape, transposed or not, are stacked, because products of small matrices are inefficient.
        stacks: dict[tuple[Any, ...], list[tuple[torch.Tensor, ...]]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                refuse_shards(isinstance(weight, DTensor))
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
            matrices = (weight, weight.grad, state["momentum"])
            if weight.shape[0] > weight.shape[1]:
                matrices = tuple(matrix.T for matrix in matrices)
            stacks[(*matrices[0].shape, weight.dtype, weight.device)].append(matrices)
        for (_, columns, *_), stack in stacks.items():
            weights, gradients, momenta = zip(*stack, strict=True)
            updates = orthogonalize(torch.stack(gradients).lerp(torch.stack(momenta), MOMENTUM))  # Nesterov
            updates *= group["lr"] * UPDATE_RMS * columns**0.5
            for weight, update in zip(weights, updates, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Return about U V^T of each matrix U S V^T, by Newton-Schulz steps.

    Singular values are divided by (sum of their 4th powers)^(1/4), which the first product gives. All become 0.80 to
    1.20, except those below 0.003, which stay smaller. Products are computed in bfloat16 on a GPU, in float32
    elsewhere, where bfloat16 is slow.

    Args:
        matrices: (batch, rows, columns), with rows <= columns.

    Returns:
        (batch, rows, columns), of the dtype of `matrices`.
    """
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.promote_types(matrices.dtype, torch.float32))
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-20)  # squares would underflow
    gram = x @ x.mT  # (batch, rows, rows)
    scale = MARGIN**2 * torch.linalg.matrix_norm(gram, keepdim=True).clamp_min(1e-20)
    x, gram = x / scale.sqrt(), gram / scale
    for step, (a, b, c) in enumerate(COEFFICIENTS):
        if step:
            gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


class MuonFactory:
    """Factory for the Trainer's `optimizer_cls_and_kwargs`, which builds the optimizer from the model."""

    def __call__(
        self, model: nn.Module, muon_learning_rate: float, weight_decay: float, **adamw_options: Any
    ) -> MuonWithAdamW:
        """Return an optimizer with the hidden matrices in Muon's group.

        Args:
            model: The model.
            muon_learning_rate: Learning rate of the hidden matrices.
            weight_decay: Weight decay of all parameters but biases and norms, as in the Trainer.
            **adamw_options: Arguments of `torch.optim.AdamW`, such as `lr`.
        """
        hidden = hidden_matrices(model)
        others = [weight for weight in model.parameters() if weight.requires_grad]
        others = [weight for weight in others if all(weight is not matrix for matrix in hidden)]
        adamw = [
            {"params": [weight for weight in others if weight.ndim > 1], "weight_decay": weight_decay},
            {"params": [weight for weight in others if weight.ndim == 1], "weight_decay": 0.0},
        ]
        return MuonWithAdamW(adamw, hidden, muon_learning_rate, weight_decay, **adamw_options)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable weights of the projections in encoder and decoder layers.

    Embeddings, positions, output projections and heads are outside of the layers.
    """
    layers = [module for module in model.modules() if isinstance(module, EncoderLayer | DecoderLayer)]
    projections = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    weights = [projection.get_parameter("weight") for projection in projections]
    return [weight for weight in weights if weight.requires_grad]


def check_arguments(args: TrainingArguments) -> None:
    """Reject FSDP and DeepSpeed.

    Raises:
        ValueError: The arguments enable one of them.
    """
    refuse_shards(bool(uses_fsdp(args) or args.deepspeed_plugin))


def refuse_shards(is_sharded: bool) -> None:
    """Raise a ValueError if weights are sharded."""
    if is_sharded:
        raise ValueError(
            "Muon needs whole matrices, but FSDP, DeepSpeed or tensor parallelism shards them. Set "
            "learning.muon_learning_rate=null, or train without sharding (DDP works)."
        )
