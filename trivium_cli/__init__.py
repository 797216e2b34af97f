"""The command line, `trivium`: each module here has the commands about one thing.

`trivium_cli` is a package of its own because `import trivium` loads torch and transformers, which takes seconds. Each
command imports `trivium` when it runs, so that help, completion and usage errors need not wait for it.
"""

import os
from importlib.metadata import version
from typing import Annotated

import typer

from trivium_cli import convert, demo, hub, parts, plot, runs, texts

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    epilog="Start with `trivium train numbers`, which needs no data of yours.",
)
for module in (runs, texts, demo, plot, parts, convert, hub):
    app.add_typer(module.commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("trivium"))
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train a Transformer of your own, measure it, put it to work, cut it apart, join it again and publish it."""
    # OpenMP's threads wait for each other spinning, which makes training 8 to 40 times slower beside another busy
    # process. The policy is read when torch is loaded, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
