"""Where a model looks: its attention weights from token to token, as pictures."""

import numpy as np
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .drawing import TOKEN_INCHES, WEIGHTS, add_scale, draw_map, separate_cells
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
        # Room for the labels, the longest of which may have 24 letters.
        figure = Figure(figsize=(2.5 + columns * TOKEN_INCHES, 2.0 + rows * TOKEN_INCHES), layout="compressed")
        axes = figure.add_subplot()
        image = draw_map(axes, weights.numpy(), attention.row_tokens, attention.column_tokens, WEIGHTS, vmin=0)
        separate_cells(axes)
        axes.set_xlabel("looks at", style="italic", labelpad=8)
        axes.set_ylabel(attention.row_name, style="italic", labelpad=8)
        axes.set_title(title, fontsize="medium", pad=10)
        add_scale(axes, image, "weight")
    return figure


def plot_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str | None = None,
    *,
    kind: str | None = None,
) -> Figure:
    """Draw the attention of all heads of all layers in one grid, a row for each layer, the lowest at the bottom.

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
    row_tokens, column_tokens = attention.row_tokens, attention.column_tokens
    labels = {True: (row_tokens, column_tokens), False: (None, None)}[cell >= SMALLEST_LABEL]
    with legible([*row_tokens, *column_tokens]):
        size = (1.5 + heads * (columns * cell + 0.15), 1.5 + layers * (rows * cell + 0.3))
        figure = Figure(figsize=size, layout="compressed")
        grid = figure.subplots(layers, heads, squeeze=False)
        for (place, head), axes in np.ndenumerate(grid):
            level = layers - 1 - place
            image = draw_map(
                axes,
                attention.weights[level, head].numpy(),
                labels[0] if head == 0 else [],
                labels[1] if place == 0 else [],
                WEIGHTS,
                vmin=0,
                vmax=attention.weights.max().item(),
            )
            axes.tick_params(labelsize=max(SMALLEST_LABEL, cell) * 72 * 0.8, pad=2)
            axes.spines[:].set(visible=True, color="0.8", linewidth=0.5)
            axes.set_title(f"layer {level + 1}, head {head + 1}", fontsize="x-small", pad=3)
        figure.supylabel(attention.row_name, style="italic", fontsize="medium")
        figure.supxlabel("looks at", style="italic", fontsize="medium")
        figure.suptitle(f"{attention.name}: {layers} layers of {heads} heads", fontsize="medium")
        figure.colorbar(image, ax=grid, label="weight", shrink=0.5).outline.set_visible(False)
    return figure
