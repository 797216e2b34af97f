"""Plotting commands: `trivium plot attention`, `heads`, `alignment` and more."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trivium_cli.common import Model, architecture_of, check_saved_model, report_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

commands = typer.Typer()
pictures = typer.Typer(no_args_is_help=True)
commands.add_typer(
    pictures,
    name="plot",
    help="Plot attention, embeddings, positions, masks, learning curves and the logit lens.",
    epilog='Example: `trivium plot attention runs/numbers "half past seven" --output attention.png`',
)

Source = Annotated[str, typer.Argument(help="Input text.", show_default=False)]
Target = Annotated[
    str | None,
    typer.Option("--target", "-t", help="Target text of a translation model; by default its own translation."),
]
Kind = Annotated[
    Literal["encoder", "decoder", "cross"] | None,
    typer.Option(
        help="Self-attention of a stack, or cross-attention; by default cross-attention if the model has it."
    ),
]
Layer = Annotated[int | None, typer.Option(min=1, help="Layer, counted from 1; by default the last.")]
Head = Annotated[int | None, typer.Option(min=1, help="Head, counted from 1; by default the mean of all heads.")]
Shape = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder of a saved model, or the name of a preset.", show_default=False)
]
Length = Annotated[int, typer.Option(min=1, help="Number of positions.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Image file: .png, .svg or .pdf.", show_default=False)]


@pictures.command(epilog='Example: `trivium plot attention runs/numbers "half past seven" -o attention.png`')
def attention(
    model: Model,
    source: Source,
    output: Output,
    target: Target = None,
    kind: Kind = None,
    layer: Layer = None,
    head: Head = None,
) -> None:
    """Plot the attention weights of a layer: of one head, or averaged over all heads."""

    def draw() -> "Figure":
        from trivium.inspection import plot_attention

        loaded, tokenizer = _load(model)
        return plot_attention(loaded, tokenizer, source, target, kind=kind, **_indices(loaded, kind, layer, head))

    _save(draw, output)


@pictures.command(epilog='Example: `trivium plot heads runs/numbers "half past seven" --kind decoder -o heads.png`')
def heads(model: Model, source: Source, output: Output, target: Target = None, kind: Kind = None) -> None:
    """Plot the attention weights of every head in every layer."""

    def draw() -> "Figure":
        from trivium.inspection import plot_heads

        return plot_heads(*_load(model), source, target, kind=kind)

    _save(draw, output)


@pictures.command(epilog='Example: `trivium plot alignment runs/numbers "half past seven" -o alignment.svg`')
def alignment(
    model: Model, source: Source, output: Output, target: Target = None, layer: Layer = None, head: Head = None
) -> None:
    """Plot a text and its translation, with lines between words weighted by cross-attention."""

    def draw() -> "Figure":
        from trivium.inspection import plot_alignment

        loaded, tokenizer = _load(model)
        return plot_alignment(loaded, tokenizer, source, target, **_indices(loaded, "cross", layer, head))

    _save(draw, output)


@pictures.command(epilog="Example: `trivium plot positions transformer-base --products -o positions.png`")
def positions(
    model: Shape,
    output: Output,
    length: Length = 128,
    products: Annotated[
        bool, typer.Option("--products", help="Plot dot products between positions instead of the encoding.")
    ] = False,
) -> None:
    """Plot the position encoding of a model."""

    def draw() -> "Figure":
        from trivium.inspection import plot_position_products, plot_positions

        shape = _load_config(model)
        is_learned = shape.position_embedding_type == "learned" and Path(model).exists()
        plot = plot_position_products if products else plot_positions
        return plot(_load(Path(model))[0] if is_learned else shape, length)

    _save(draw, output)


@pictures.command(epilog="Example: `trivium plot masks gpt2 --length 5 --length 3 --left -o masks.png`")
def masks(
    model: Shape,
    output: Output,
    length: Annotated[
        list[int] | None, typer.Option(help="Length of a source text in tokens; repeatable. By default 6 and 4.")
    ] = None,
    target_length: Annotated[
        list[int] | None, typer.Option(help="Length of a target text in tokens; repeatable.")
    ] = None,
    left: Annotated[bool, typer.Option("--left", help="Pad on the left, as for generation.")] = False,
) -> None:
    """Plot the attention masks of a padded batch."""

    def draw() -> "Figure":
        from trivium.inspection import plot_masks

        side = "left" if left else "right"
        return plot_masks(_load_config(model), length or (6, 4), target_length or None, padding_side=side)

    _save(draw, output)


@pictures.command(epilog="Example: `trivium plot curves runs/numbers runs/wide -o curves.png`")
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; runs may be unfinished.", show_default=False)],
    output: Output,
) -> None:
    """Plot the losses, metrics and learning rate of runs."""

    def draw() -> "Figure":
        from trivium.inspection import plot_learning_curves

        return plot_learning_curves(*runs)

    _save(draw, output)


@pictures.command(epilog="Example: `trivium plot neighbors runs/numbers two twenty May -o neighbors.png`")
def neighbors(
    model: Model,
    words: Annotated[list[str], typer.Argument(help="Words to look up.", show_default=False)],
    output: Output,
    count: Annotated[int, typer.Option(min=1, help="Number of neighbors per word.")] = 8,
    side: Annotated[
        Literal["source", "target"], typer.Option(help="Which embeddings of a translation model to use.")
    ] = "source",
) -> None:
    """Plot the nearest neighbors of words in embedding space, and a 2D projection of them."""

    def draw() -> "Figure":
        from trivium.inspection import plot_neighbors

        return plot_neighbors(*_load(model), words, count=count, side=side)

    _save(draw, output)


pictures.command("neighbours", hidden=True, deprecated=True)(neighbors)  # former spelling


@pictures.command(epilog='Example: `trivium plot lens runs/numbers "half past seven" -o lens.png`')
def lens(model: Model, source: Source, output: Output, target: Target = None) -> None:
    """Plot the logit lens: the most probable token at each layer."""

    def draw() -> "Figure":
        from trivium.inspection import plot_logit_lens

        return plot_logit_lens(*_load(model), source, target)

    _save(draw, output)


def _save(draw: Callable[[], "Figure"], output: Path) -> None:
    """Draw and save a figure; print each warning, such as one about missing glyphs, as one line."""
    with report_errors(), warnings.catch_warnings(record=True) as caught:
        from trivium.inspection.drawing import check_picture, save_figure

        check_picture(output)  # fail before the model is loaded
        save_figure(draw(), output)
    for warning in caught:
        typer.echo(f"Warning: {warning.message}", err=True)
    typer.echo(f"The picture is {output}.")


def _load(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a Trivium model of any class, and its tokenizer."""
    name = architecture_of(check_saved_model(folder))
    from transformers import AutoTokenizer

    from trivium import modeling

    if not hasattr(modeling, name):
        raise ValueError(f"{folder} holds a {name}, but must hold a Trivium model. Try `trivium convert` first.")
    model = getattr(modeling, name).from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _load_config(model: str) -> "PreTrainedConfig":
    """Load the configuration from a folder, or of a preset."""
    if not Path(model).exists():
        from trivium.configuration import preset_config

        return preset_config(model)
    check_saved_model(Path(model))
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model, trust_remote_code=False)


def _indices(model: "PreTrainedModel", kind: str | None, layer: int | None, head: int | None) -> dict[str, Any]:
    """Convert layer and head to zero-based indices.

    Raises:
        ValueError: The model has fewer layers or heads.
    """
    config = model.config
    stack = config.encoder_layers if kind == "encoder" else config.decoder_layers or config.encoder_layers
    for option, number, count in (("--layer", layer, stack), ("--head", head, config.num_attention_heads)):
        if number is not None and number > count:
            raise ValueError(f"{option} is {number}, but must be from 1 to {count}.")
    return {"layer": -1 if layer is None else layer - 1, "head": None if head is None else head - 1}
