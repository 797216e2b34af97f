"""Who may look at whom: the masks that a model makes for a padded batch."""

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

from .drawing import count_by_tens, draw_map, separate_cells
from .reading import watched

HIDDEN_PADDING, HIDDEN_LATER, SEEN = range(3)
COLOURS = ("0.95", "0.75", "#08519c")  # of these three; they differ in lightness
MEANINGS = ("hidden: padding", "hidden: comes later", "is looked at")
NAMES = {
    "encoder": "self-attention of the encoder",
    "decoder": "self-attention of the decoder",
    "cross": "cross-attention",
}
CELL_INCHES = 0.26  # as wide as its label
MOST_INCHES = 5  # of the mask of one text


def plot_masks(
    model_or_config: PreTrainedModel | PreTrainedConfig,
    lengths: Sequence[int] = (6, 4),
    target_lengths: Sequence[int] | None = None,
    *,
    padding_side: str = "right",
) -> Figure:
    """Draw for each text of a padded batch who may look at whom, in every kind of attention that the model has.

    A row for each position that looks, a column for each that is looked at, padding among them. The masks are
    the very ones that reach the attention: a model reads made-up texts of these lengths, and is listened to.

    Args:
        model_or_config: A model, which stays as it is; or the configuration of one.
        lengths: Tokens of each text; they are padded to the longest.
        target_lengths: Of an encoder-decoder, tokens of each translation; None: one less than the texts have.
        padding_side: "right" or "left".

    Returns:
        The figure, a row for each text.

    Raises:
        ValueError: There are no lengths, one is below 1, or there is none for each text; `target_lengths` is given for
            a model that writes no translation; or `padding_side` is neither of the two.
    """
    config = getattr(model_or_config, "config", model_or_config)
    if target_lengths is not None and not config.is_encoder_decoder:
        raise ValueError(f"target_lengths is {target_lengths}, but only an encoder-decoder has targets; leave it out.")
    if target_lengths is None:
        target_lengths = [max(1, length - 1) for length in lengths]
    for name, given in (("lengths", lengths), ("target_lengths", target_lengths)):
        if len(given) != len(lengths) or not given or min(given) < 1:
            raise ValueError(f"{name} is {list(given)}, but must have a number of at least 1 for each text.")
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side is {padding_side!r}, but must be 'right' or 'left'.")
    sources, targets = (_real_tokens(counts, padding_side) for counts in (lengths, target_lengths))
    model = model_or_config if isinstance(model_or_config, PreTrainedModel) else _smallest_model(config)
    decoded = targets if config.is_encoder_decoder else sources
    tokens = {"encoder": (sources, sources), "decoder": (decoded, decoded), "cross": (decoded, sources)}
    masks = _masks_of(model, sources, targets)
    return _draw({kind: _why(mask, *tokens[kind]) for kind, mask in masks.items()}, tokens)


def _real_tokens(lengths: Sequence[int], side: str) -> torch.Tensor:
    """(batch, longest) with 1 for a real token, 0 for padding."""
    rows = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return (rows if side == "right" else rows.flip(1)).long()


def _smallest_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with the same masks: they follow from its stacks, not from its size."""
    config = copy.deepcopy(config)
    config.encoder_layers, config.decoder_layers = min(1, config.encoder_layers), min(1, config.decoder_layers)
    config.d_model, config.ffn_dim = 2 * config.num_attention_heads, 1
    return auto_classes(config)["AutoModel"](config)


@torch.no_grad()
def _masks_of(model: PreTrainedModel, sources: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """What the lowest layers are given, (batch, 1, rows, columns): 0 where a row sees a column; None: all see all."""
    masks: dict[str, torch.Tensor | None] = {}
    with ExitStack() as stack:
        for kind, module in _attentions(model).items():

            def note(module: nn.Module, args: tuple, kind: str = kind) -> None:
                masks[kind] = args[-1].mask  # the last context is that of what is looked at

            handle = module.register_forward_pre_hook(note)
            stack.callback(handle.remove)
        stack.enter_context(watched(model))
        inputs = {"input_ids": torch.zeros_like(sources), "attention_mask": sources}
        if model.config.is_encoder_decoder:
            inputs |= {"decoder_input_ids": torch.zeros_like(targets), "decoder_attention_mask": targets}
        model(**{name: given.to(model.device) for name, given in inputs.items()})
    return masks


def _attentions(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The lowest attention of each kind."""
    base = model.base_model
    attentions = {
        name: getattr(base, name).layers[0].self_attn for name in ("encoder", "decoder") if hasattr(base, name)
    }
    if model.config.is_encoder_decoder:
        attentions["cross"] = base.decoder.layers[0].cross_attn
    return attentions


def _why(mask: torch.Tensor | None, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(batch, rows, columns) of what is seen, and of what is hidden for one reason or the other."""
    shape = (*rows.shape, columns.shape[1])
    is_seen = torch.ones(shape, dtype=torch.bool) if mask is None else (mask[:, 0] == 0).cpu().expand(shape)
    is_padding = (columns == 0)[:, None].expand(shape)
    return torch.where(is_seen, SEEN, torch.where(is_padding, HIDDEN_PADDING, HIDDEN_LATER))


def _draw(whys: dict[str, torch.Tensor], tokens: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Figure:
    texts = len(next(iter(whys.values())))
    rows, columns = max(why.shape[1] for why in whys.values()), [why.shape[2] for why in whys.values()]
    cell = min(CELL_INCHES, MOST_INCHES / max(rows, *columns))
    width, height = 0.6 + sum(columns) * cell + 0.5 * len(columns), 1.3 + texts * (rows * cell + 0.4)
    figure = Figure(figsize=(max(5.5, width), height), layout="compressed")
    grid = figure.subplots(texts, len(whys), squeeze=False, width_ratios=columns)
    for column, (kind, why) in enumerate(whys.items()):
        for text, axes in enumerate(grid[:, column]):
            row_labels, column_labels = (
                _count(real[text]) if cell == CELL_INCHES else count_by_tens(real.shape[1]) for real in tokens[kind]
            )
            colours = ListedColormap(COLOURS)
            draw_map(axes, why[text].numpy(), row_labels, column_labels, colours, vmax=len(COLOURS) - 1)
            axes.tick_params(labelsize="x-small", labelrotation=0)
            if cell == CELL_INCHES:
                separate_cells(axes)
            axes.set_anchor("N")
            if text == 0:
                axes.set_title(NAMES[kind], fontsize="medium", pad=8)
            if column == 0:
                axes.set_ylabel(f"text {text + 1}", style="italic")
    handles = [
        Patch(facecolor=colour, edgecolor="0.5", label=said) for colour, said in zip(COLOURS, MEANINGS, strict=True)
    ]
    figure.legend(handles=handles[::-1], loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _count(real: torch.Tensor) -> list[str]:
    """Real tokens counted from 0, and padding."""
    numbers = (real.cumsum(dim=0) - 1).tolist()
    return [str(number) if is_real else "pad" for number, is_real in zip(numbers, real.tolist(), strict=True)]
