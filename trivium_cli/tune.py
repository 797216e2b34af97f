"""The command `trivium tune`, which searches for the best settings of a recipe."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from trivium_cli.common import finite, report_errors

commands = typer.Typer()


class Direction(StrEnum):
    """Direction of a metric."""

    minimize = "minimize"
    maximize = "maximize"


@commands.command(
    epilog='Example: `trivium tune numbers "training.learning_rate=log(1e-4,1e-2)" "model.dropout=float(0,0.4)" '
    '"model.d_model=choice(64,128)" training.max_steps=500 --output runs/search`'
)
def tune(
    recipe: Annotated[str, typer.Argument(help="A YAML file, a run folder, or the name of a built-in recipe.")],
    fields: Annotated[
        list[str],
        typer.Argument(
            help="Fields to search: `section.field=RANGE`, where RANGE is `float(LOW,HIGH)`, `log(LOW,HIGH)`, "
            "`int(LOW,HIGH)` or `choice(VALUE,...)`; and overrides of others: `section.field=value`.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the search: a new one, or one to resume.", show_default=False),
    ],
    trials: Annotated[int, typer.Option(min=1, help="Number of trials, including those of earlier calls.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampled values.")] = 0,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric of an evaluation, such as `eval_accuracy`; by default `training.metric_for_best_model`, or "
            "the loss."
        ),
    ] = None,
    direction: Annotated[
        Direction | None, typer.Option(help="Direction of the metric; by default that of the recipe, or by its name.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Start no trial after this many seconds.", callback=finite)
    ] = None,
    startup: Annotated[
        int, typer.Option(min=1, help="Trials sampled at random, and completed before any trial is pruned.")
    ] = 5,
) -> None:
    """Search for the best values of a recipe's fields: one training run per trial, sampled and pruned by Optuna.

    Repeat the command to resume the search; a trial that was interrupted is repeated. Each trial has a run folder in
    the output folder, with its recipe and logs; **only the best trial keeps its weights and checkpoints**. The output
    folder also contains a table, `trials.csv` and `trials.md`, and a plot, `trials.png`.
    """

    def print_row(row: dict[str, Any]) -> None:
        value = "" if row["value"] is None else f", {row['value']:.4f}"
        reason = f" ({row['reason']})" if row["reason"] else ""
        typer.echo(f"Trial {row['trial']}: {row['state']}{value}{reason}, {row['seconds']} s.")

    with report_errors():
        from trivium import training

        try:
            found = training.tune(
                recipe,
                fields,
                output,
                trials=trials,
                seed=seed,
                metric=metric,
                direction=None if direction is None else direction.value,
                timeout=timeout,
                startup=startup,
                on_trial=print_row,
            )
        except ImportError as error:  # raised if Optuna is not installed
            raise typer.BadParameter(str(error)) from error
    typer.echo(f"The best of {len(found.trials)} trials is {found.best}, with {found.value:.4f}. Its model is in")
    typer.echo(f"{found.folder}; the weights of other trials were deleted. The table and the plot are in {output}.")
    typer.echo(f"To train with its settings:\n{found.command}")
