"""Model surgery commands: `trivium split`, `trivium join`."""

import re
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from trivium_cli.common import Model, check_saved_model, report_errors

commands = typer.Typer()

Output = Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)]


@commands.command(epilog="Example: `trivium split runs/numbers runs/parts`")
def split(model: Model, output: Output) -> None:
    """Split a translation model into an encoder-only and a decoder-only model.

    The folder OUTPUT will contain the complete models `encoder` and `decoder`, and `cross_attention.safetensors` with
    the cross-attention weights. Neither model contains these weights; `trivium join` needs them to restore the
    original model.
    """
    with report_errors():
        check_saved_model(model)
        from trivium.surgery import split_folder

        encoder, decoder, cross_attention = split_folder(model, output)
    typer.echo(f"The encoder is in {encoder}.")
    typer.echo(f"The decoder is in {decoder}.")
    typer.echo(f"The cross-attention is in {cross_attention}.")


@commands.command(epilog="Example: `trivium join runs/parts/encoder runs/parts/decoder runs/joined`")
def join(
    encoder: Annotated[Path, typer.Argument(help="Folder of an encoder-only model.", show_default=False)],
    decoder: Annotated[Path, typer.Argument(help="Folder of a decoder-only model.", show_default=False)],
    output: Output,
    cross_attention: Annotated[
        Path | None, typer.Option(help="Cross-attention from `trivium split`; by default it is newly initialized.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the initialization.")] = 0,
) -> None:
    """Join an encoder-only and a decoder-only model into an encoder-decoder.

    Their configurations must match, except for depth and vocabulary. Without `--cross-attention`, the model is a warm
    start: its new parameters are listed, and must be trained.
    """
    with report_errors():
        for folder in (encoder, decoder):
            check_saved_model(folder)
        from transformers import set_seed

        from trivium.surgery import join_folders

        set_seed(seed)
        new_parameters = join_folders(encoder, decoder, output, cross_attention)
    typer.echo(f"The model is in {output}.")
    if new_parameters:
        typer.echo(f"{len(new_parameters)} parameters are newly initialized and must be trained:")
        for name, layers in Counter(re.sub(r"\.\d+\.", ".*.", name) for name in new_parameters).items():
            typer.echo(f"  {name} in {layers} layers" if layers > 1 else f"  {name}")
