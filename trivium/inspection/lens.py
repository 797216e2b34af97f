"""What a model would say at each of its layers: the logit lens (nostalgebraist 2020)."""

import unicodedata
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .drawing import TOKEN_INCHES, WEIGHTS, draw_map, separate_cells
from .fonts import legible
from .reading import read, token_labels

LETTER_INCHES = 0.09
WHITE_FROM = 0.55  # the probability from which a cell is too dark for black letters


def plot_logit_lens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str | None = None
) -> Figure:
    """Draw the token that each layer finds best at each position, the darker the more probable.

    What a layer computes goes through the stack's last normalisation and the head, as if no layer came after it: the
    last column is what the model says, the first what it would say of the embeddings. There is a row for each token
    that is read: by a decoder, which says what comes next, or by an encoder, which says what it stands for. On the
    right is what should be said.

    Args:
        model: A Trivium model with a head that predicts tokens; it stays as it is.
        tokenizer: Its tokenizer.
        source: The text to read.
        target: Of an encoder-decoder, the translation to write; None: the model's own.

    Returns:
        The figure.

    Raises:
        ValueError: The model has no such head; a text has no tokens; or `target` is given to a model that writes none.
    """
    head = getattr(model, "lm_head", getattr(model, "mlm_head", None))
    if head is None:
        raise ValueError(f"model is a {type(model).__name__}, but must have a head that predicts tokens.")
    reading = read(model, tokenizer, source, target)
    if model.config.is_encoder_decoder:
        stack, writer = model.base_model.decoder, getattr(tokenizer, "target", tokenizer)
        states, rows, truth = reading.output.decoder_hidden_states, reading.decoder_tokens, reading.target_tokens
    else:
        states, rows, writer = reading.output.hidden_states, reading.source_tokens, tokenizer
        has_decoder = bool(model.config.decoder_layers)
        stack = model.base_model.decoder if has_decoder else model.base_model.encoder
        truth = [*rows[1:], ""] if has_decoder else rows
    probabilities, best = best_tokens(states, stack.norm, head)
    tokens = [token_labels(writer, layer) for layer in best.T.tolist()]
    return _draw(probabilities, tokens, rows, truth)


@torch.no_grad()
def best_tokens(states: Sequence[torch.Tensor], norm: nn.Module, head: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable token of each position at each layer, and its probability.

    Args:
        states: (1, positions, d_model) of the embeddings and of each layer, the last one normalised already, as
            transformers' `hidden_states` are.
        norm: What closes the stack.
        head: What makes logits of it.

    Returns:
        Probabilities and token ids, both (positions, layers + 1).
    """
    normalised = [*(norm(state) for state in states[:-1]), states[-1]]
    logits = torch.stack([head(state)[0] for state in normalised], dim=1)
    best = logits.float().softmax(dim=-1).max(dim=-1)
    return best.values.cpu(), best.indices.cpu()


def _draw(probabilities: torch.Tensor, tokens: list[list[str]], rows: list[str], truth: list[str]) -> Figure:
    columns = ["embedding", *(f"layer {number}" for number in range(1, len(tokens)))]
    width = max(map(_letters, [*columns, *(token for column in tokens for token in column)])) * LETTER_INCHES + 0.15
    size = (3.0 + len(columns) * width, 1.5 + len(rows) * TOKEN_INCHES)
    with legible([*rows, *truth, *(token for column in tokens for token in column)]):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        image = draw_map(axes, probabilities.numpy(), rows, columns, WEIGHTS, vmin=0, vmax=1)
        axes.set_aspect("auto")
        axes.tick_params("x", labelrotation=0)
        separate_cells(axes)
        for column, said in enumerate(tokens):
            for row, token in enumerate(said):
                colour = "white" if probabilities[row, column] > WHITE_FROM else "black"
                axes.text(column, row, token, color=colour, ha="center", va="center", fontsize="small")
        axes.set_ylabel("read token", style="italic")
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(truth)), truth)
        right.tick_params(length=0)
        right.spines[:].set_visible(False)
        right.set_ylabel("to be said", style="italic")
        axes.set_title("The token that each layer finds most probable", fontsize="medium")
        figure.colorbar(image, ax=axes, location="bottom", label="probability", aspect=30).outline.set_visible(False)
    return figure


def _letters(text: str) -> int:
    """How wide a text is, in narrow letters: those of East Asia count twice."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)
