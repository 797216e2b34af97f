"""Training commands: `trivium train`, `trivium launch-config`, `trivium average`, `trivium evaluate`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trivium_cli.common import Model, TrustRemoteCode, as_lines, check_saved_model, format_cell, load, report_errors
from trivium_cli.decoding import Beams, LengthPenalty, search_options

if TYPE_CHECKING:
    from transformers import GenerationConfig

EXAMPLES = 5  # number of example rows that an evaluation prints
GREEDY = {  # transformers' generation defaults
    "do_sample": False,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}

commands = typer.Typer()

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Recipe overrides: `section.field=value` ...", show_default=False),
]


@commands.command(epilog="Example: `trivium train numbers model.d_model=256 training.max_steps=5000`")
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, a run folder, or the name of a built-in recipe.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint of the run.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Delete the files of an earlier run, but no others, and start from scratch."),
    ] = False,
) -> None:
    """Train a model from a recipe.

    The folder `training.output_dir` of the recipe will contain the model, its tokenizer, checkpoints, TensorBoard logs
    and the recipe.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite are mutually exclusive.")
    with report_errors():
        from trivium.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or [])
        from trivium import training

        trainer = training.train(loaded, resume=resume, overwrite=overwrite)
    if trainer.is_world_process_zero():
        typer.echo(f"The trained model is in {trainer.args.output_dir}.")


@commands.command(
    epilog='Example: `accelerate launch --config_file "$(trivium launch-config fsdp2)" -m trivium_cli train numbers`'
)
def launch_config(
    name: Annotated[
        str | None, typer.Argument(help="Name of a configuration; by default all are listed.", show_default=False)
    ] = None,
) -> None:
    """Print the path of an `accelerate launch` configuration for multi-device training."""
    with report_errors():
        from trivium.training.distributed import launch_configs

        configs = launch_configs()
        if name is not None and name not in configs:
            raise ValueError(f"The configuration is {name!r}, but must be one of {', '.join(configs)}.")
    for line in configs.values() if name is None else [configs[name]]:
        typer.echo(line)


@commands.command(epilog="Example: `trivium average runs/numbers runs/averaged --last 5`")
def average(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_FOLDERS",
            help="A run folder, to average its checkpoints; or several folders of saved models.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    last: Annotated[
        int | None, typer.Option(min=1, help="Average only this many of the run's last checkpoints.")
    ] = None,
) -> None:
    """Average the weights of a run's checkpoints, or of other models, into a new model.

    The average of the last few checkpoints is often better than the last one. The folder OUTPUT will contain a
    complete model, which all commands accept.
    """
    if last and len(folders) > 1:
        raise typer.BadParameter("--last requires one run folder, not several folders.")
    with report_errors():
        from trivium import averaging

        paths = folders if len(folders) > 1 else averaging.last_checkpoints(folders[0], last)
        averaging.average(paths, output, show_progress=True)
    typer.echo(f"The average of {', '.join(map(str, paths))} is in {output}.")


@commands.command(epilog="Example: `trivium evaluate runs/numbers --beams 5`")
def evaluate(
    model: Model,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Split to evaluate: train, validation or test.")] = "test",
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Batch size, in rows; by default 64, or, if text is generated, as for `trivium translate`."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Evaluate a model on a split of its run's data.

    Translations and summaries are scored against the references, labels and tags by classification metrics, answers
    as SQuAD does, language models by perplexity. To evaluate on other data, set `data.test=PREFIX`; to use other
    metrics, set `metrics=[chrf,perplexity]`. Scores and a few examples are printed. All scores, with the settings used
    for the evaluation, are written to `evaluation_SPLIT.json` in the model's folder, and all predictions to
    `predictions_SPLIT.txt`.
    """
    with report_errors():
        check_saved_model(model)
        from trivium.hub.public import data_name
        from trivium.recipe import load_recipe
        from trivium.storage.names import RECIPE_FILE

        if not (model / RECIPE_FILE).is_file():
            raise FileNotFoundError(
                f"{model} has no {RECIPE_FILE}, which states its data. Use a folder that `trivium train` wrote."
            )
        recipe = load_recipe(model, overrides or [])
        from trivium import evaluation
        from trivium.data import load_split
        from trivium.data.directions import check_trained_directions
        from trivium.storage.atomic import write_whole
        from trivium.storage.manifest import record

        rows = list(load_split(recipe.data, split, recipe.kind.columns))
        loaded, tokenizer = load(model, trust_remote_code=trust_remote_code)
        check_trained_directions(recipe.data, tokenizer, model)
        options = search_options(beams=beams, length_penalty=length_penalty)
        decoding = {}
        if recipe.kind.target:
            decoding = _decoding(loaded.generation_config, recipe.generation, options)
        scores, predictions = evaluation.evaluate(
            loaded,
            tokenizer,
            rows,
            recipe.metrics,
            task=recipe.task,
            inputs=recipe.inputs,
            batch_size=batch_size,
            show_progress=True,
            **options,
        )
    report = {
        "scores": scores,
        "data": data_name(recipe.data, split),
        "rows": len(rows),
        "generation": decoding,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {name: version(name) for name in ("trivium", "torch", "transformers")},
    }
    with report_errors():
        record(model, f"predictions_{split}.txt", f"evaluation_{split}.json")  # a later run may delete them
    if predictions:
        write_whole(model / f"predictions_{split}.txt", as_lines(predictions))
    write_whole(model / f"evaluation_{split}.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    _print_scores(scores, f"{split}: {len(rows)} texts")
    if predictions:
        _print_examples(rows, predictions, recipe.kind.columns)


def _print_scores(scores: Mapping[str, dict[str, Any]], title: str) -> None:
    table = Table("metric", "score", title=title)
    table.add_column("signature", overflow="fold")
    for name, result in scores.items():
        table.add_row(name, f"{result['score']:.4f}", result.get("signature", ""))
    Console().print(table)


def _print_examples(rows: Sequence[Mapping[str, Any]], predictions: Sequence[str], columns: Sequence[str]) -> None:
    """Print the first rows with their predictions."""
    table = Table(title="First examples", show_lines=True)
    for column in (*columns, "prediction"):
        table.add_column(column, overflow="fold")
    for row, prediction in islice(zip(rows, predictions, strict=True), EXAMPLES):
        cells = [*(row[column] for column in columns), prediction]
        table.add_row(*(Text(format_cell(cell)) for cell in cells))
    Console().print(table)


def _decoding(saved: "GenerationConfig", chosen: Iterable[str], options: dict[str, Any]) -> dict[str, Any]:
    """Return the generation settings used by an evaluation.

    Args:
        saved: Settings saved with the model; generating adds the defaults of transformers to them.
        chosen: Names of the settings in the model's recipe, which are always reported.
        options: Settings from the command line, which override the saved ones.
    """
    values = {name: value for name in (*GREEDY, *chosen) if (value := getattr(saved, name, None)) is not None}
    values = {**GREEDY, **values, **options}
    values.pop("max_length", None)  # evaluation sets its own limit
    return {n: value for n, value in values.items() if n in ("do_sample", "num_beams") or value != GREEDY.get(n)}
