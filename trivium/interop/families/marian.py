"""Marian (Junczys-Dowmunt et al. 2018), as in OPUS-MT: the original Transformer with biases in all projections.

Marian's sinusoidal encoding concatenates all sines and all cosines, whereas the paper's interleaves them. Conversion
therefore permutes the residual-stream dimension of every tensor that reads or writes it.
"""

from dataclasses import replace
from functools import cache

import torch
from transformers import PreTrainedConfig

from trivium.configuration import TriviumConfig
from trivium.interop.families.bart import BART, NO_LAYER_DROPPED, POST_NORM
from trivium.interop.mapping import Fields, Row, Rule, Shape
from trivium.modeling.positions import sinusoidal_encoding

# Modules whose weight has the residual stream as its input dimension (1) or output dimension (0). In all other tensors
# it is the last dimension.
READING = ("q_proj", "k_proj", "v_proj", "up_proj")
WRITING = ("o_proj", "down_proj")


@cache
def alternating(d_model: int) -> torch.Tensor:
    """Return Marian's index of each Trivium dimension: 0, d/2, 1, d/2 + 1, ..."""
    return torch.arange(d_model).view(2, -1).t().flatten()


class Reordered(Rule):
    """Permute the residual stream between Marian's order (sines, then cosines) and the paper's (interleaved)."""

    def _dim(self, tensor: torch.Tensor) -> int | None:
        module = self.trivium[0].rpartition(".")[-1]
        if module in READING:
            return 1 if tensor.ndim == 2 else None  # a bias of these modules is not in the residual stream
        return 0 if module in WRITING else -1

    def to_trivium(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Interleave sines and cosines."""
        dim = self._dim(native)
        return [native if dim is None else native.index_select(dim, alternating(native.shape[dim]))]

    def to_native(self, trivium: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Put the sines before the cosines."""
        dim = self._dim(trivium[0])
        return trivium[0] if dim is None else trivium[0].index_select(dim, alternating(shape[dim]).argsort())


def sines_then_cosines(shape: Shape) -> torch.Tensor:
    """Return Marian's sinusoidal position table, of shape (length, d_model)."""
    length, d_model = shape
    table = sinusoidal_encoding(torch.arange(length), d_model, torch.float64)
    return table[:, alternating(d_model).argsort()]


def read(config: PreTrainedConfig) -> Fields:
    """Ignore `decoder_vocab_size` if the vocabulary is shared: it repeats `vocab_size`."""
    return {"decoder_vocab_size": None} if config.share_encoder_decoder_embeddings else {}


def write(config: TriviumConfig) -> Fields:
    """Share embeddings only if they are tied: Marian would otherwise keep an unused matrix."""
    one_matrix = config.decoder_vocab_size is None and config.tie_word_embeddings
    return {"share_encoder_decoder_embeddings": one_matrix, "decoder_vocab_size": config.target_vocab_size}


POSITIONS = tuple(f"{stack}.embed_positions.weight" for stack in ("encoder", "decoder"))

MARIAN = replace(
    BART,
    model_type="marian",
    classes={"MarianMTModel": "TriviumForConditionalGeneration", "MarianModel": "TriviumModel"},
    fields=(*BART.fields, ("decoder_vocab_size", "decoder_vocab_size")),
    requirements={**POST_NORM, "position_embedding_type": "sinusoidal", "normalize_embedding": False},
    native_requirements=NO_LAYER_DROPPED,
    rules=tuple(
        rule if isinstance(rule, Row) else Reordered(rule.native, *rule.trivium)
        for rule in BART.rules
        if not rule.native.endswith(("embed_positions", "layernorm_embedding"))
    ),
    computed=dict.fromkeys(POSITIONS, sines_then_cosines),
    dropped=("shared.",),
    read=read,
    write=write,
)
