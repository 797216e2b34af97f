"""Commands that cut and join models: `trivium split`, `trivium join`."""

import re
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from trivium_cli.common import Model, check_saved_model, mistakes_explained

commands = typer.Typer()

Output = Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)]


@commands.command(epilog="Example: `trivium split runs/numbers runs/parts`")
def split(model: Model, output: Output) -> None:
    """Cut a translation model into an encoder-only and a decoder-only model.

    The folder OUTPUT will hold `encoder` and `decoder`, both complete, and `cross_attention.safetensors`: the
    decoder's attention to the encoder, which neither half has, and with which `trivium join` restores the whole.
    """
    with mistakes_explained():
        check_saved_model(model)
        from trivium.surgery import split_folder

        encoder, decoder, cross_attention = split_folder(model, output)
    typer.echo(f"The encoder is in {encoder}.")
    typer.echo(f"The decoder is in {decoder}.")
    typer.echo(f"The attention from decoder to encoder is in {cross_attention}.")


@commands.command(epilog="Example: `trivium join runs/parts/encoder runs/parts/decoder runs/joined`")
def join(
    encoder: Annotated[Path, typer.Argument(help="Folder of an encoder-only model.", show_default=False)],
    decoder: Annotated[Path, typer.Argument(help="Folder of a decoder-only model.", show_default=False)],
    output: Output,
    cross_attention: Annotated[
        Path | None, typer.Option(help="What `trivium split` cut out; by default it is initialised anew.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed initialises the same.")] = 0,
) -> None:
    """Join an encoder-only and a decoder-only model into one that translates.

    They must be of one shape and kind, but may differ in depth and vocabulary. Without `--cross-attention` the model
    is a warm start: the new parameters are listed, and must be trained.
    """
    with mistakes_explained():
        for folder in (encoder, decoder):
            check_saved_model(folder)
        from transformers import set_seed

        from trivium.surgery import join_folders

        set_seed(seed)
        new_parameters = join_folders(encoder, decoder, output, cross_attention)
    typer.echo(f"The model is in {output}.")
    if new_parameters:
        typer.echo(f"{len(new_parameters)} parameters are new, to be trained:")
        for name, layers in Counter(re.sub(r"\.\d+\.", ".*.", name) for name in new_parameters).items():
            typer.echo(f"  {name} in {layers} layers" if layers > 1 else f"  {name}")
