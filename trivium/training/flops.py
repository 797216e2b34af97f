"""Count the floating-point operations of training, and look up the peak throughput of a device."""

import re
from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import PreTrainedModel

from trivium.modeling.loss import IGNORE_INDEX

# Peak dense bf16 throughput in TFLOP/s from NVIDIA's data sheets (half of the figures "with sparsity"). The first key
# that occurs as a word in torch.cuda.get_device_name() applies, so longer names come before their prefixes.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
}


@dataclass
class TokenCounts:
    """Token counts of a batch, which determine its FLOPs; counts of several batches are added field by field.

    Attributes:
        padded: Input and target tokens, including padding.
        inputs: Input tokens without padding; in an encoder-decoder, source tokens.
        input_pairs: Query-key pairs in self-attention over the inputs: n * n for a text of n tokens, summed over the
            texts of a packed row.
        targets: Target tokens without padding in an encoder-decoder; 0 in other models.
        target_pairs: Query-key pairs in self-attention over the targets.
        cross_pairs: Query-key pairs in cross-attention.
        predictions: Positions at which the head is computed: labeled tokens, or rows for a classifier.
    """

    padded: int = 0
    inputs: int = 0
    input_pairs: int = 0
    targets: int = 0
    target_pairs: int = 0
    cross_pairs: int = 0
    predictions: int = 0

    @property
    def tokens(self) -> int:
        """Return the number of input and target tokens without padding."""
        return self.inputs + self.targets


COUNTED = [field.name for field in fields(TokenCounts)]


def count_tokens(batch: dict[str, torch.Tensor], model: PreTrainedModel) -> torch.Tensor:
    """Count the tokens of a batch as a tensor of the fields of `TokenCounts`, in their order.

    The result stays on the device of the batch, so that counting does not synchronize with the device.

    Args:
        batch: `input_ids` (batch, length), `labels`, and either `attention_mask` or, for packed rows, `position_ids`.
        model: The model that is trained on the batch.

    Returns:
        A tensor of shape (7,).
    """
    ids, labels = batch["input_ids"], batch["labels"]
    zero = torch.zeros((), dtype=torch.long, device=ids.device)
    pad_token_id = model.config.pad_token_id
    if "attention_mask" in batch:
        mask = batch["attention_mask"].bool()  # (batch, length)
    else:
        mask = torch.ones_like(ids, dtype=torch.bool) if pad_token_id is None else ids != pad_token_id
    lengths = mask.sum(dim=1)  # (batch,)
    position_ids = batch.get("position_ids")
    # The sum of 2 * position + 1 over the n positions of a packed text is n * n.
    input_pairs = lengths.square().sum() if position_ids is None else ((2 * position_ids + 1) * mask).sum()
    if model.config.is_encoder_decoder:
        targets = (labels != IGNORE_INDEX).sum(dim=1)  # (batch,)
        target_counts = [targets.sum(), targets.square().sum(), (targets * lengths).sum(), targets.sum()]
        padded = ids.numel() + labels.numel()
    else:
        padded = ids.numel()
        if labels.shape != ids.shape or labels.is_floating_point():  # one label per row
            predictions = zero + len(labels)
        else:
            predictions = ((labels[:, 1:] if model.config.decoder_layers else labels) != IGNORE_INDEX).sum()
        target_counts = [zero, zero, zero, predictions]
    return torch.stack([zero + padded, lengths.sum(), input_pairs, *target_counts])


def training_flops(counts: TokenCounts, model: PreTrainedModel) -> float:
    """Compute the model FLOPs of a training step: the forward pass, and twice as many for the backward pass.

    Only matrix multiplications count, at two operations per multiply-add, as in Chowdhery et al. 2022 ("PaLM",
    appendix B). In attention, masked pairs count, even those outside a sliding window; padding and recomputed
    activations do not count.
    """
    config = model.config
    assert config.num_key_value_heads is not None  # the configuration sets the default
    width = config.d_model
    keys_and_values = 2 * width * config.num_key_value_heads * config.head_dim
    queries_and_output = 2 * width * width
    feed_forward = (3 if config.gated_ffn else 2) * width * config.ffn_dim
    block = keys_and_values + queries_and_output + feed_forward
    attention = 2 * width  # per query-key pair: one product for the score and one for the weighted value
    if config.is_encoder_decoder:
        products = config.encoder_layers * (block * counts.inputs + attention * counts.input_pairs)
        products += config.decoder_layers * (
            (block + queries_and_output) * counts.targets
            + keys_and_values * counts.inputs
            + attention * (counts.target_pairs + counts.cross_pairs)
        )
    else:
        layers = config.encoder_layers or config.decoder_layers
        products = layers * (block * counts.inputs + attention * counts.input_pairs)
    return 3.0 * 2.0 * (products + head_products(model) * counts.predictions)


def head_products(model: PreTrainedModel) -> int:
    """Return the multiply-adds of the head per predicted position, over all linear layers outside the stacks."""
    backbone = set(model.base_model.modules())
    head = (module for module in model.modules() if isinstance(module, nn.Linear) and module not in backbone)
    return sum(linear.in_features * linear.out_features for linear in head)


def peak_flops(device: torch.device) -> float | None:
    """Return the peak bf16 throughput of a device in FLOP/s from its data sheet, or None if unknown."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """Return the peak bf16 throughput in FLOP/s of the device with this name, or None if unknown."""
    matches = (tflops * 1e12 for part, tflops in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b", name))
    return next(matches, None)
