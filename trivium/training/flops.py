"""How much arithmetic a training takes, by its configuration, and how much a device can do."""

import re
from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import PreTrainedModel

from trivium.modeling.loss import IGNORED

# Dense bf16 matrix products, in 10^12 operations a second, as NVIDIA's data sheets give them (half of those "with
# sparsity"); by what torch.cuda.get_device_name() says, the first that is found in it.
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
    """What a model computes on, counted over rows; sums of such counts are counts of all of them.

    Attributes:
        padded: Tokens of source and target, or of the one text there is, padding included.
        inputs: Real tokens of the input; of an encoder-decoder the source.
        input_pairs: Pairs of them that attention compares: of a text of n tokens n x n, of packed texts those of each.
        targets: Real tokens of the target, of an encoder-decoder; else 0.
        target_pairs: The same for targets.
        cross_pairs: Pairs of a target token and a source token of its row.
        predictions: Positions at which the head says something: tokens with a label, or rows.
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
        """Real ones, of source and target."""
        return self.inputs + self.targets


COUNTED = [field.name for field in fields(TokenCounts)]


def count_tokens(batch: dict[str, torch.Tensor], model: PreTrainedModel) -> torch.Tensor:
    """The fields of `TokenCounts`, in their order, of a batch of the model's inputs; on its device, for nothing waits.

    Args:
        batch: `input_ids` (batch, length), `labels`, and `attention_mask` or packed rows' `position_ids`.
        model: What takes it.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    zero = torch.zeros((), dtype=torch.long, device=ids.device)
    padding = model.config.pad_token_id
    if "attention_mask" in batch:
        real = batch["attention_mask"].bool()
    else:
        real = torch.ones_like(ids, dtype=torch.bool) if padding is None else ids != padding
    lengths = real.sum(dim=1)
    packed = batch.get("position_ids")
    # 1 + 3 + 5 + ... are a square.
    input_pairs = lengths.square().sum() if packed is None else ((2 * packed + 1) * real).sum()
    if model.config.is_encoder_decoder:
        targets = (labels != IGNORED).sum(dim=1)
        several = [targets.sum(), targets.square().sum(), (targets * lengths).sum(), targets.sum()]
        padded = ids.numel() + labels.numel()
    else:
        padded = ids.numel()
        if labels.shape != ids.shape or labels.is_floating_point():  # those of rows
            predictions = zero + len(labels)
        else:
            predictions = ((labels[:, 1:] if model.config.decoder_layers else labels) != IGNORED).sum()
        several = [zero, zero, zero, predictions]
    return torch.stack([zero + padded, lengths.sum(), input_pairs, *several])


def training_flops(counts: TokenCounts, model: PreTrainedModel) -> float:
    """Floating-point operations that a step on so many tokens needs: of the forward pass, and twice as many backward.

    Matrix products are counted, two operations for each multiplication, and nothing else, as by Chowdhery et al. 2022
    ("PaLM", appendix B): attention sees all pairs, masked ones as well. What is done in vain, for padding, and what is
    done twice to save memory, is not counted.
    """
    config = model.config
    assert config.num_key_value_heads is not None  # the configuration fills it in
    width = config.d_model
    keys_and_values = 2 * width * config.num_key_value_heads * config.head_dim
    queries_and_output = 2 * width * width
    feed_forward = (3 if config.gated_ffn else 2) * width * config.ffn_dim
    block = keys_and_values + queries_and_output + feed_forward
    comparing = 2 * width  # a pair, by query and key, and by weight and value
    if config.is_encoder_decoder:
        products = config.encoder_layers * (block * counts.inputs + comparing * counts.input_pairs)
        products += config.decoder_layers * (
            (block + queries_and_output) * counts.targets
            + keys_and_values * counts.inputs
            + comparing * (counts.target_pairs + counts.cross_pairs)
        )
    else:
        layers = config.encoder_layers or config.decoder_layers
        products = layers * (block * counts.inputs + comparing * counts.input_pairs)
    return 3.0 * 2.0 * (products + head_products(model) * counts.predictions)


def head_products(model: PreTrainedModel) -> int:
    """Multiplications at each position for which the model says something: of all linear layers above the stacks."""
    inside = set(model.base_model.modules())
    head = (each for each in model.modules() if isinstance(each, nn.Linear) and each not in inside)
    return sum(each.in_features * each.out_features for each in head)


def peak_flops(device: torch.device) -> float | None:
    """What a device does at most in a second, in bf16, by its maker's word; None: of this one it is not known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """The same by the name of the device."""
    found = (tflops * 1e12 for part, tflops in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b", name))
    return next(found, None)
