"""Where a model looks: its attention weights from token to token, as pictures."""

import numpy as np
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .drawing import TOKEN_INCHES, WEIGHTS, count_by_tens, draw_map, separate_cells
from .fonts import legible
from .reading import attend, choose

MOST_INCHES = 24  # of a grid of heads, if its tokens can be that small
SMALLEST_LABEL = 0.09  # inches; below it tokens of a grid are counted, not written out


def plot_attention(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str | None = None,
    *,
    kind: str | None = None,
    layer: int = -1,
    head: int | None = None,
) -> Figure:
    """Draw the attention of a layer, the mean of its heads or one of them, with a row for each token that looks.

    Cross-attention has a row for each token that the decoder writes, a column for each token of the source.
    Self-attention is among the tokens that a stack reads: in the decoder those that it has when it writes the next.

    Args:
        model: A Trivium model of any of the three ways; it stays as it is.
        tokenizer: Its tokenizer.
        source: The text to read.
        target: Of an encoder-decoder, the translation to write; None: the model's own.
        kind: "encoder" or "decoder", the self-attention of that stack, or "cross". None: cross-attention of an
            encoder-decoder, self-attention of the others.
        layer: Counted from 0; by default the last.
        head: Counted from 0; None: the mean of all.

    Returns:
        The figure; `figure.savefig("attention.png")` keeps it.

    Raises:
        ValueError: `source` has no tokens; `target` is given to what does not read it; the model has no such `kind`,
            `layer` or `head`; or it is an encoder-decoder without its head, and more than its encoder is asked for.
    """
    attention = attend(model, tokenizer, source, target, kind)
    weights, title = choose(attention, layer, head)
    rows, columns = weights.shape
    with legible([*attention.row_tokens, *attention.column_tokens]):
        size = (2.5 + columns * TOKEN_INCHES, 2.0 + rows * TOKEN_INCHES)  # with room for the labels
        figure = Figure(figsize=size, layout="compressed")
        axes = figure.add_subplot()
        image = draw_map(axes, weights.numpy(), attention.row_tokens, attention.column_tokens, WEIGHTS)
        separate_cells(axes)
        axes.set_xlabel("looks at", style="italic", labelpad=8)
        axes.set_ylabel(attention.row_name, style="italic", labelpad=8)
        axes.set_title(title, fontsize="medium", pad=10)
        scale = axes.inset_axes((1 + 0.5 / columns, 0, 0.5 / columns, 1))  # half a column wide, as high as the rows
        figure.colorbar(image, cax=scale, label="weight").outline.set_visible(False)
    return figure


def plot_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str | None = None,
    *,
    kind: str | None = None,
) -> Figure:
    """Draw the attention of all heads of all layers in one grid, a row for each layer, layer 1 at the top.

    All maps have one scale. Their tokens are written at the left and upper edge of the grid; where they would be too
    small to read, they are counted from 0 instead.

    Args:
        model: As in `plot_attention`; so are the others, and what is raised.
        tokenizer: Its tokenizer.
        source: The text to read.
        target: Of an encoder-decoder, the translation to write.
        kind: "encoder", "decoder" or "cross".
    """
    attention = attend(model, tokenizer, source, target, kind)
    layers, heads, rows, columns = attention.weights.shape
    cell = max(0.03, min(0.14, MOST_INCHES / (heads * columns), MOST_INCHES / (layers * rows)))
    row_labels, column_labels = attention.row_tokens, attention.column_tokens
    if cell < SMALLEST_LABEL:
        row_labels, column_labels = count_by_tens(rows), count_by_tens(columns)
    # One map of all of them, with a gap of one cell after each.
    grid = np.full((layers, rows + 1, heads, columns + 1), np.nan)
    grid[:, :rows, :, :columns] = attention.weights.transpose(1, 2).numpy()
    grid = grid.reshape(layers * (rows + 1), -1)[:-1, :-1]
    with legible([*row_labels, *column_labels]):
        figure = Figure(figsize=(2.5 + grid.shape[1] * cell, 2 + grid.shape[0] * cell), layout="compressed")
        axes = figure.add_subplot(facecolor="0.88")  # the gaps
        labels = ([*row_labels, ""] * layers)[:-1], ([*column_labels, ""] * heads)[:-1]
        image = draw_map(axes, grid, *labels, WEIGHTS)
        axes.tick_params(labelsize=max(SMALLEST_LABEL, cell) * 72 * 0.8, pad=2)
        below, right = axes.secondary_xaxis("bottom"), axes.secondary_yaxis("right")
        middles = [head * (columns + 1) + (columns - 1) / 2 for head in range(heads)]
        below.set_xticks(middles, [f"head {head + 1}" for head in range(heads)])
        middles = [layer * (rows + 1) + (rows - 1) / 2 for layer in range(layers)]
        right.set_yticks(middles, [f"layer {layer + 1}" for layer in range(layers)], rotation=90, va="center")
        for side in (below, right):
            side.tick_params(length=0, labelsize="small")
            side.spines[:].set_visible(False)
        axes.set_ylabel(attention.row_name, style="italic")
        axes.set_xlabel("looks at", style="italic")
        axes.set_title(f"{attention.name}, {layers} layers of {heads} heads", fontsize="medium")
        figure.colorbar(image, ax=axes, label="weight", shrink=0.5).outline.set_visible(False)
    return figure
