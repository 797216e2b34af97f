"""Marian (Junczys-Dowmunt et al. 2018), OPUS-MT's models: the paper's, with biases in all projections.

Marian's sinusoids are first all sines and then all cosines, the paper's alternate. So the dimensions of the residual
stream are in another order, wherever something reads or writes it.
"""

from dataclasses import replace
from functools import cache

import torch
from transformers import PreTrainedConfig

from trivium.configuration import TriviumConfig
from trivium.interop.families.bart import BART, NO_LAYER_DROPPED, POST_NORM
from trivium.interop.mapping import Fields, Row, Rule, Shape
from trivium.modeling.positions import sinusoidal_encoding

# The dimension of our tensors that is the residual stream; of all others, biases of what writes it among them, the
# last.
READING = ("q_proj", "k_proj", "v_proj", "up_proj")
WRITING = ("o_proj", "down_proj")


@cache
def alternating(d_model: int) -> torch.Tensor:
    """Where in Marian's order each of our dimensions is: 0, d/2, 1, d/2 + 1, ..."""
    return torch.arange(d_model).view(2, -1).t().flatten()


class Reordered(Rule):
    """The dimensions of the residual stream are in Marian's order in their tensor, and in the paper's in ours."""

    def _dim(self, tensor: torch.Tensor) -> int | None:
        module = self.ours[0].rpartition(".")[-1]
        if module in READING:
            return 1 if tensor.ndim == 2 else None  # a bias has nothing of the stream
        return 0 if module in WRITING else -1

    def inward(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Let sines and cosines alternate."""
        dim = self._dim(native)
        return [native if dim is None else native.index_select(dim, alternating(native.shape[dim]))]

    def outward(self, ours: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Put the sines first."""
        dim = self._dim(ours[0])
        return ours[0] if dim is None else ours[0].index_select(dim, alternating(shape[dim]).argsort())


def sines_then_cosines(shape: Shape) -> torch.Tensor:
    """Marian's table of positions."""
    length, d_model = shape
    table = sinusoidal_encoding(torch.arange(length), d_model, torch.float64)
    return table[:, alternating(d_model).argsort()]


def read(config: PreTrainedConfig) -> Fields:
    """A Marian model with one vocabulary says its size twice."""
    return {"decoder_vocab_size": None} if config.share_encoder_decoder_embeddings else {}


def write(config: TriviumConfig) -> Fields:
    """Marian's own word for one vocabulary; without tying, it would have a matrix that nothing reads."""
    one_matrix = config.decoder_vocab_size is None and config.tie_word_embeddings
    return {"share_encoder_decoder_embeddings": one_matrix, "decoder_vocab_size": config.target_vocab_size}


POSITIONS = tuple(f"{stack}.embed_positions.weight" for stack in ("encoder", "decoder"))

MARIAN = replace(
    BART,
    model_type="marian",
    classes={"MarianMTModel": "TriviumForConditionalGeneration", "MarianModel": "TriviumModel"},
    fields=(*BART.fields, ("decoder_vocab_size", "decoder_vocab_size")),
    ours={**POST_NORM, "position_embedding_type": "sinusoidal", "normalize_embedding": False},
    theirs=NO_LAYER_DROPPED,
    rules=tuple(
        rule if isinstance(rule, Row) else Reordered(rule.native, *rule.ours)
        for rule in BART.rules
        if not rule.native.endswith(("embed_positions", "layernorm_embedding"))
    ),
    computed=dict.fromkeys(POSITIONS, sines_then_cosines),
    dropped=("shared.",),
    read=read,
    write=write,
)
