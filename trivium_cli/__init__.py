"""Command-line interface `trivium`, with one module per group of commands.

`trivium_cli` is a separate package because `import trivium` loads torch and transformers, which takes seconds. Each
command imports `trivium` only when it runs, so that help, completion and usage errors are instant.
"""

import os
from importlib.metadata import version
from typing import Annotated

import typer

from trivium_cli import (
    answer,
    convert,
    data,
    demo,
    hub,
    parts,
    plot,
    prepare,
    recipes,
    runs,
    serve,
    summarize,
    synthesize,
    tag,
    texts,
    tune,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    epilog="Start with `trivium train numbers`, which needs no external data.",
)
for module in (
    runs,
    tune,
    recipes,
    prepare,
    data,
    synthesize,
    texts,
    summarize,
    tag,
    answer,
    demo,
    serve,
    plot,
    parts,
    convert,
    hub,
):
    app.add_typer(module.commands)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(version("trivium"))
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, evaluate, run, split, join, convert and publish Transformer models."""
    # By default, waiting OpenMP threads spin, which makes training 8 to 40 times slower if another process is busy.
    # Let them sleep instead. With GNU's library they first spin briefly: without it, training small models takes 1.5
    # times as long on an idle machine. torch reads the policy when it is loaded, which has not happened yet.
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "3000"}
