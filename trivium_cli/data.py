"""Data report command: `trivium data`."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trivium_cli.common import format_cell, report_errors

if TYPE_CHECKING:
    from trivium.training import DataReport

MAX_CHARACTERS = 12  # maximum number of characters to list in a table row

commands = typer.Typer()


@commands.command(
    epilog="Example: `trivium data multi30k data.train=FOLDER/train data.validation=FOLDER/val "
    "data.test=FOLDER/test_2016_flickr --output data.png`"
)
def data(
    recipe: Annotated[str, typer.Argument(help="A YAML file, a run folder, or the name of a built-in recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Recipe overrides: `section.field=value` ...", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Image file to draw, .png, .svg or .pdf; it must not exist."),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Number of rows of each split to examine.")] = 100_000,
) -> None:
    """Show the data that a recipe would train on, without training a model.

    The table shows rows and dropped rows, numbers of tokens, truncated texts, characters that the tokenizer does not
    know, control characters, and rows that occur in two splits, followed by five training rows. The tokenizer is
    trained as for a run, or loaded if the recipe starts from a model, and is not saved.
    """
    with report_errors():
        from trivium.inspection.drawing import check_picture, save_figure
        from trivium.recipe import load_recipe

        if output is not None and check_picture(output).exists():
            raise ValueError(f"--output is {output}, which exists and is not overwritten. Choose another name.")
        loaded = load_recipe(recipe, overrides or [])
        from trivium.training import report_data

        report = report_data(loaded, max_rows=max_rows)
        _print(report)
        if output is not None:
            from trivium.inspection import plot_data

            with warnings.catch_warnings(record=True) as caught:
                save_figure(plot_data(report), output)
            for warning in caught:
                typer.echo(f"Warning: {warning.message}", err=True)
            typer.echo(f"The picture is {output}.")


def _print(report: "DataReport") -> None:
    """Print the tables of a report, and its samples."""
    table = Table("", *report.splits, title="Data")
    splits = report.splits.values()
    table.add_row("rows", *("streamed" if part.rows is None else f"{part.rows:,}" for part in splits))
    if any(part.rows != part.examined for part in splits):
        table.add_row("rows examined", *(f"{part.examined:,}" for part in splits))
    for reason in dict.fromkeys(reason for part in splits for reason in part.dropped):
        table.add_row(f"dropped: {reason}", *(f"{part.dropped[reason]:,}" for part in splits))
    for name in report.splits["train"].lengths:
        columns = [sorted(part.lengths.get(name, [])) for part in splits]
        table.add_row(f"{name}: tokens", *(f"{sum(lengths):,}" for lengths in columns))
        table.add_row(f"{name}: median, 95 %, maximum", *map(_quantiles, columns))
        if any(part.truncated.get(name) for part in splits):
            counts = (f"{part.truncated[name]:,}" for part in splits)
            table.add_row(f"{name}: longer than {report.max_length:,}", *counts)
    for label, total in report.splits["train"].labels.most_common(MAX_CHARACTERS):
        table.add_row(f"label {label}", f"{total:,}", *(f"{part.labels[label]:,}" for part in [*splits][1:]))
    table.add_row("unknown characters", *(_characters(part.unknown) for part in splits))
    table.add_row("characters not in train", *(_characters(part.unseen) for part in splits))
    table.add_row("rows with control characters", *(f"{part.control:,}" for part in splits))
    for first, kind in dict.fromkeys((first, kind) for first, _, kind in report.overlap):
        cells = (report.overlap.get((first, split, kind)) for split in report.splits)
        table.add_row(f"also in {first}: {kind}", *("" if cell is None else f"{cell:,}" for cell in cells))
    console = Console()
    console.print(table)
    for split, part in report.splits.items():
        if part.first_control is not None:
            console.print(Text(f"First control character of {split}: {part.first_control}."), soft_wrap=True)
    samples = Table(title="Training rows", show_lines=True)
    for column in report.samples[0] if report.samples else ():
        samples.add_column(column, overflow="fold")
    for row in report.samples:
        samples.add_row(*(Text(format_cell(value)) for value in row.values()))
    console.print(samples)


def _quantiles(lengths: list[int]) -> str:
    if not lengths:
        return "-"
    return ", ".join(f"{lengths[round(part * (len(lengths) - 1))]:,}" for part in (0.5, 0.95, 1))


def _characters(counts: Mapping[str, int]) -> Text:
    """Format characters with their counts, most frequent first; unprintable ones appear as code points."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [f"{c if c.isprintable() else f'U+{ord(c):04X}'} {n:,}" for c, n in ordered[:MAX_CHARACTERS]]
    more = [f"and {len(ordered) - MAX_CHARACTERS:,} others"] if len(ordered) > MAX_CHARACTERS else []
    return Text(", ".join([*shown, *more]) or "none")
