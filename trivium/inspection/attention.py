"""Where a model looks: its attention weights from token to token, as a picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trivium.translation import translate

TOKEN_INCHES = 0.24  # a row or a column: as high as its label


def plot_attention(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str | None = None
) -> Figure:
    """Draw the attention of the last layer, the mean of its heads, with a row for each token that looks.

    Of an encoder-decoder it is cross-attention: a row for each token that the decoder writes, a column for each token
    of the source. Of the other two it is self-attention among the tokens of the source.

    Args:
        model: A Trivium model of any of the three ways; it stays as it is.
        tokenizer: Its tokenizer.
        source: The text to read.
        target: Of an encoder-decoder, the translation to write; None: the model's own.

    Returns:
        The figure; `figure.savefig("attention.png")` keeps it.

    Raises:
        ValueError: `source` has no tokens; `target` is given to a model that writes none; or the model is an
            encoder-decoder without its head.
    """
    with _watched(model):
        attention = _attend(model, tokenizer, source, target)
    return _draw(attention)


@dataclass(frozen=True)
class _Attention:
    weights: torch.Tensor  # (rows, columns)
    title: str
    row_tokens: list[str]
    column_tokens: list[str]
    row_name: str
    column_name: str


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[None]:
    """The model without dropout, and with the one implementation of attention that returns its weights."""
    implementation, is_training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
        model.train(is_training)


@torch.no_grad()
def _attend(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str | None) -> _Attention:
    inputs = tokenizer(source, return_tensors="pt").to(model.device)
    source_ids = inputs["input_ids"][0].tolist()
    if not source_ids:
        raise ValueError(f"source is {source!r}, but must have tokens to look at.")
    reader, writer = getattr(tokenizer, "source", tokenizer), getattr(tokenizer, "target", tokenizer)
    source_tokens = _readable(reader, source_ids)
    if not model.config.is_encoder_decoder:
        if target is not None:
            raise ValueError(f"target is {target!r}, but only an encoder-decoder writes one; leave it out.")
        layers = model(**inputs, output_attentions=True).attentions
        title = f"Self-attention in layer {len(layers)} of {len(layers)}, mean of its heads"
        return _Attention(_mean_of_heads(layers), title, source_tokens, source_tokens, "token", "looks at")

    if not model.can_generate():
        raise ValueError(f"model is a {type(model).__name__}, which writes nothing; load it with its head.")
    if target is None:
        target = next(translate(model, tokenizer, [source]))
    labels = tokenizer(text_target=target, return_tensors="pt")["input_ids"].to(model.device)
    # Row i reads the target up to token i - 1 and looks at the source in order to write token i.
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    output = model(**inputs, decoder_input_ids=decoder_input_ids, output_attentions=True)
    layers = output.cross_attentions
    title = f"Cross-attention in decoder layer {len(layers)} of {len(layers)}, mean of its heads"
    target_tokens = _readable(writer, labels[0].tolist())
    return _Attention(_mean_of_heads(layers), title, target_tokens, source_tokens, "written token", "looks at")


def _mean_of_heads(layers: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """(1, heads, rows, columns) of the last layer as (rows, columns)."""
    return layers[-1][0].mean(dim=0).float().cpu()


def _readable(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as the text it stands for; what would be invisible gets a sign."""
    texts = [tokenizer.decode([token_id]) for token_id in ids]
    return [text.strip() or ("↵" if "\n" in text else "␣") for text in texts]


def _draw(attention: _Attention) -> Figure:
    rows, columns = attention.weights.shape
    size = (2.5 + columns * TOKEN_INCHES, 2.0 + rows * TOKEN_INCHES)  # and room for the longest labels
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.add_subplot()
    image = axes.imshow(attention.weights.numpy(), cmap="Blues", vmin=0)
    axes.set_xticks(range(columns), attention.column_tokens, rotation=90)
    axes.set_yticks(range(rows), attention.row_tokens)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a token may be a dollar
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(attention.column_name, style="italic", labelpad=8)
    axes.set_ylabel(attention.row_name, style="italic", labelpad=8)
    axes.set_title(attention.title, fontsize="medium", pad=10)
    # White lines between the cells guide the eye along a long row.
    axes.xaxis.set_minor_locator(MultipleLocator(1, offset=-0.5))
    axes.yaxis.set_minor_locator(MultipleLocator(1, offset=-0.5))
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    scale = axes.inset_axes((1 + 0.5 / columns, 0, 0.5 / columns, 1))  # half a column wide, as high as the rows
    figure.colorbar(image, cax=scale, label="weight").outline.set_visible(False)
    return figure
