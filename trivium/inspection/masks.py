"""Plot the attention masks that a model computes for a padded batch."""

import copy
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from trivium.modeling.auto_map import auto_classes

from .drawing import draw_map, separate_cells, sparse_labels
from .reading import inspection_mode

MASKED_PADDING, MASKED_FUTURE, ATTENDED = range(3)
COLORS = ("0.95", "0.75", "#08519c")  # in this order; distinguishable in grayscale
MEANINGS = ("masked: padding", "masked: future", "attended")
NAMES = {
    "encoder": "encoder self-attention",
    "decoder": "decoder self-attention",
    "cross": "cross-attention",
}
CELL_INCHES = 0.26  # the width of a label
MAX_INCHES = 5  # maximum size of the mask of one text


def plot_masks(
    model_or_config: PreTrainedModel | PreTrainedConfig,
    lengths: Sequence[int] = (6, 4),
    target_lengths: Sequence[int] | None = None,
    *,
    padding_side: str = "right",
) -> Figure:
    """Draw the masks of each text of a padded batch, for each kind of attention in the model.

    Rows are query positions and columns key positions, including padding. The masks are captured by hooks at the
    attention modules while the model runs on dummy texts of these lengths.

    Args:
        model_or_config: A model, which is not modified, or a configuration.
        lengths: Number of tokens of each text; texts are padded to the longest.
        target_lengths: Number of tokens of each translation, for an encoder-decoder; None: one less than `lengths`.
        padding_side: "right" or "left".

    Returns:
        The figure, with a row for each text.

    Raises:
        ValueError: `lengths` is empty, a length is below 1, the numbers of lengths differ, `target_lengths` is given
            for a model that is not an encoder-decoder, or `padding_side` is invalid.
    """
    config = getattr(model_or_config, "config", model_or_config)
    if target_lengths is not None and not config.is_encoder_decoder:
        raise ValueError(f"target_lengths is {target_lengths}, but only an encoder-decoder has targets; leave it out.")
    if target_lengths is None:
        target_lengths = [max(1, length - 1) for length in lengths]
    for name, counts in (("lengths", lengths), ("target_lengths", target_lengths)):
        if len(counts) != len(lengths) or not counts or min(counts) < 1:
            raise ValueError(f"{name} is {list(counts)}, but must have a number of at least 1 for each text.")
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side is {padding_side!r}, but must be 'right' or 'left'.")
    sources, targets = (_real_tokens(counts, padding_side) for counts in (lengths, target_lengths))
    model = model_or_config if isinstance(model_or_config, PreTrainedModel) else _minimal_model(config)
    decoded = targets if config.is_encoder_decoder else sources
    tokens = {"encoder": (sources, sources), "decoder": (decoded, decoded), "cross": (decoded, sources)}
    masks = _masks_of(model, sources, targets)
    return _draw({kind: _classify(mask, *tokens[kind]) for kind, mask in masks.items()}, tokens)


def _real_tokens(lengths: Sequence[int], side: str) -> torch.Tensor:
    """Return an attention mask of shape (batch, longest): 1 for real tokens, 0 for padding."""
    rows = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return (rows if side == "right" else rows.flip(1)).long()


def _minimal_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a minimal model of a configuration; masks depend on its stacks, not on its size."""
    config = copy.deepcopy(config)
    config.encoder_layers, config.decoder_layers = min(1, config.encoder_layers), min(1, config.decoder_layers)
    config.d_model, config.ffn_dim = 2 * config.num_attention_heads, 1
    return auto_classes(config)["AutoModel"](config)


@torch.no_grad()
def _masks_of(model: PreTrainedModel, sources: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Capture the masks of the first layers, (batch, 1, rows, columns), 0 where attended; None: no mask."""
    masks: dict[str, torch.Tensor | None] = {}
    with ExitStack() as stack:
        for kind, module in _attentions(model).items():

            def capture(module: nn.Module, args: tuple, kind: str = kind) -> None:
                masks[kind] = args[-1].mask  # the last argument is the context of the keys

            handle = module.register_forward_pre_hook(capture)
            stack.callback(handle.remove)
        stack.enter_context(inspection_mode(model))
        inputs = {"input_ids": torch.zeros_like(sources), "attention_mask": sources}
        if model.config.is_encoder_decoder:
            inputs |= {"decoder_input_ids": torch.zeros_like(targets), "decoder_attention_mask": targets}
        model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return masks


def _attentions(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the attention module of the first layer, for each kind of attention."""
    base = model.base_model
    attentions = {
        name: getattr(base, name).layers[0].self_attn for name in ("encoder", "decoder") if hasattr(base, name)
    }
    if model.config.is_encoder_decoder:
        attentions["cross"] = base.decoder.layers[0].cross_attn
    return attentions


def _classify(mask: torch.Tensor | None, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Classify each cell, (batch, rows, columns), as attended, masked as padding, or masked as future."""
    shape = (*rows.shape, columns.shape[1])
    is_attended = torch.ones(shape, dtype=torch.bool) if mask is None else (mask[:, 0] == 0).cpu().expand(shape)
    is_padding = (columns == 0)[:, None].expand(shape)
    return torch.where(is_attended, ATTENDED, torch.where(is_padding, MASKED_PADDING, MASKED_FUTURE))


def _draw(cells: dict[str, torch.Tensor], tokens: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Figure:
    texts = len(next(iter(cells.values())))
    rows, columns = (
        max(cell_kinds.shape[1] for cell_kinds in cells.values()),
        [cell_kinds.shape[2] for cell_kinds in cells.values()],
    )
    cell = min(CELL_INCHES, MAX_INCHES / max(rows, *columns))
    width, height = 0.6 + sum(columns) * cell + 0.5 * len(columns), 1.3 + texts * (rows * cell + 0.4)
    figure = Figure(figsize=(max(5.5, width), height), layout="compressed")
    grid = figure.subplots(texts, len(cells), squeeze=False, width_ratios=columns)
    for column, (kind, cell_kinds) in enumerate(cells.items()):
        for text, axes in enumerate(grid[:, column]):
            row_labels, column_labels = (
                _position_labels(real[text]) if cell == CELL_INCHES else sparse_labels(real.shape[1])
                for real in tokens[kind]
            )
            colormap = ListedColormap(COLORS)
            draw_map(axes, cell_kinds[text].numpy(), row_labels, column_labels, colormap, vmax=len(COLORS) - 1)
            axes.tick_params(labelsize="x-small", labelrotation=0)
            if cell == CELL_INCHES:
                separate_cells(axes)
            axes.set_anchor("N")
            if text == 0:
                axes.set_title(NAMES[kind], fontsize="medium", pad=8)
            if column == 0:
                axes.set_ylabel(f"text {text + 1}", style="italic")
    handles = [
        Patch(facecolor=color, edgecolor="0.5", label=label) for color, label in zip(COLORS, MEANINGS, strict=True)
    ]
    figure.legend(handles=handles[::-1], loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _position_labels(real: torch.Tensor) -> list[str]:
    """Return position labels of real tokens, counted from 0, and "pad" for padding."""
    numbers = (real.cumsum(dim=0) - 1).tolist()
    return [str(number) if is_real else "pad" for number, is_real in zip(numbers, real.tolist(), strict=True)]
