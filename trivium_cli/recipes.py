"""Recipe command: `trivium recipes`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trivium_cli.common import report_errors

commands = typer.Typer()


@commands.command(epilog="Example: `trivium recipes numbers > mine.yaml`")
def recipes(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A YAML file, a run folder, or the name of a built-in recipe; by default, built-in ones are listed.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the built-in recipes, or print one with its fields explained.

    The output is a recipe itself: save it to a file, edit it, and train with `trivium train FILE`.
    """
    with report_errors():
        from trivium import recipe_fields

        if recipe is not None:
            typer.echo(recipe_fields.explain(recipe), nl=False)
            return
    table = Table("recipe", "content")
    for name, summary in recipe_fields.recipe_summaries():
        table.add_row(name, summary)
    Console().print(table)
