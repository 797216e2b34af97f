"""Preprocessing command: `trivium prepare`."""

from typing import Annotated

import typer

from trivium_cli.common import report_errors

commands = typer.Typer()


@commands.command(
    epilog="Example: `trivium prepare shakespeare data.train=train.txt data.validation=validation.txt "
    "data.prepared=prepared/shakespeare --processes 4`"
)
def prepare(
    recipe: Annotated[str, typer.Argument(help="A YAML file, a run folder, or the name of a built-in recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Recipe overrides: `section.field=value` ..., with `data.prepared=FOLDER`.", show_default=False
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Number of encoding processes.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete data prepared in the folder earlier, but no other files.")
    ] = False,
) -> None:
    """Tokenize and pack the data of a recipe once, for repeated use in training runs.

    `trivium train` with the same recipe and overrides, including `data.prepared=FOLDER`, then gives the same results
    as without preparation. Repeat the command to resume an interrupted preparation.
    """
    with report_errors():
        from trivium.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or [])
        from trivium import training

        manifest = training.prepare(loaded, processes=processes, overwrite=overwrite)
    for split, facts in manifest["splits"].items():
        line = f"{split}: {facts['examples']:,} rows encoded as {facts['rows']:,} with {facts['tokens']:,} tokens"
        if "cuts" in facts:
            padding = facts["padding"] / (facts["padding"] + facts["tokens"])
            line += f", {padding:.2%} padding, {facts['cuts']:,} cuts"
        seconds = facts["seconds"]
        rates = f"{facts['examples'] / seconds:,.0f} rows and {facts['tokens'] / seconds:,.0f} tokens per second"
        typer.echo(f"{line}; {rates}.")
    typer.echo(f"The prepared data are in {loaded.data.prepared}.")
