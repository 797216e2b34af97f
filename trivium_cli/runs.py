"""Commands about runs: `trivium train`, `trivium launch-config`, `trivium average`, `trivium evaluate`."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trivium_cli.common import (
    Beams,
    LengthPenalty,
    Model,
    TrustRemoteCode,
    as_lines,
    check_saved_model,
    given,
    load,
    mistakes_explained,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig

EXAMPLES = 5  # rows that an evaluation shows
GREEDY = {  # the defaults of generation
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
    typer.Argument(help="Fields of the recipe to replace: `section.field=value` ...", show_default=False),
]


@commands.command(epilog="Example: `trivium train numbers model.d_model=256 training.max_steps=5000`")
def train(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, the folder of a run, or the name of a recipe that comes along.")
    ],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint of the run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what an earlier run wrote there, nothing else, and start anew.")
    ] = False,
) -> None:
    """Train a model as a recipe says.

    The folder `training.output_dir` of the recipe will hold the model, its tokenizer, checkpoints, TensorBoard logs
    and the recipe itself.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other.")
    with mistakes_explained():
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
        str | None, typer.Argument(help="The name of one; without it, all are listed.", show_default=False)
    ] = None,
) -> None:
    """Print the path of a configuration for `accelerate launch`, to train on several devices."""
    with mistakes_explained():
        from trivium.training.distributed import launch_configs

        configs = launch_configs()
        if name is not None and name not in configs:
            raise ValueError(f"There is no configuration {name!r}: choose from {', '.join(configs)}.")
    for line in configs.values() if name is None else [configs[name]]:
        typer.echo(line)


@commands.command(epilog="Example: `trivium average runs/numbers runs/averaged --last 5`")
def average(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_FOLDERS",
            help="The folder of a run, for its checkpoints; or several folders of saved models.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    last: Annotated[int | None, typer.Option(min=1, help="Of a run: only this many of its last checkpoints.")] = None,
) -> None:
    """Average the weights of a run's checkpoints, or of other models, into a new model.

    The mean of the last few checkpoints often is better than the last one. The folder OUTPUT will hold a whole model,
    as `trivium evaluate` and all other commands take it.
    """
    if last and len(folders) > 1:
        raise typer.BadParameter("--last goes with one run, not with several folders.")
    with mistakes_explained():
        from trivium import averaging

        paths = folders if len(folders) > 1 else averaging.last_checkpoints(folders[0], last)
        averaging.average(paths, output, show_progress=True)
    typer.echo(f"The mean of {', '.join(map(str, paths))} is in {output}.")


@commands.command(epilog="Example: `trivium evaluate runs/numbers --beams 5`")
def evaluate(
    model: Model,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows in a batch; by default 64, or where texts are generated as for `trivium translate`."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure a model on a part of the data that its run was given.

    A translator translates and is compared with the references, a classifier says its labels, a language model is
    asked how likely it finds the texts. Other data: `data.test=PREFIX`. Other metrics: `metrics=[chrf,perplexity]`.
    Scores and some examples are printed, all are kept in the model's folder: `evaluation_SPLIT.json`, which says how
    they were measured, and `predictions_SPLIT.txt`.
    """
    with mistakes_explained():
        check_saved_model(model)
        from trivium.hub.public import data_name
        from trivium.recipe import load_recipe
        from trivium.storage.names import RECIPE_FILE

        if not (model / RECIPE_FILE).is_file():
            raise FileNotFoundError(
                f"{model} has no {RECIPE_FILE}, which says what data it was trained with: give a folder that "
                "`trivium train` wrote."
            )
        recipe = load_recipe(model, overrides or [])
        from trivium import evaluation
        from trivium.data import load_data
        from trivium.storage.atomic import write_whole
        from trivium.storage.manifest import record

        data = load_data(recipe.data, recipe.kind.columns)
        if split not in data:
            raise ValueError(f"--split is {split}, but the data has {', '.join(data)}: add data.{split}=...")
        rows = list(data[split])
        loaded, tokenizer = load(model, trust_remote_code=trust_remote_code)
        options = given(num_beams=beams, length_penalty=length_penalty)
        decoding = {}
        if "target" in recipe.kind.columns:
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
    with mistakes_explained():
        record(model, f"predictions_{split}.txt", f"evaluation_{split}.json")  # a later run may delete them
    if predictions:
        write_whole(model / f"predictions_{split}.txt", as_lines(predictions))
    write_whole(model / f"evaluation_{split}.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    table = Table("metric", "score", title=f"{split}: {len(rows)} texts")
    table.add_column("signature", overflow="fold")
    for name, result in scores.items():
        table.add_row(name, f"{result['score']:.4f}", result.get("signature", ""))
    Console().print(table)
    if predictions:
        examples = Table(title="First examples", show_lines=True)
        for column in (*recipe.kind.columns, "prediction"):
            examples.add_column(column, overflow="fold")
        for row, prediction in islice(zip(rows, predictions, strict=True), EXAMPLES):
            examples.add_row(*(Text(str(row[column])) for column in recipe.kind.columns), Text(prediction))
        Console().print(examples)


def _decoding(saved: "GenerationConfig", chosen: Iterable[str], options: dict[str, Any]) -> dict[str, Any]:
    """Return the generation settings that an evaluation used.

    Args:
        saved: The settings saved with the model, which after generating include transformers' own defaults.
        chosen: Names of the settings in the model's recipe, to be reported even if rare.
        options: The settings given to the command, which replace the saved ones.
    """
    values = {name: value for name in (*GREEDY, *chosen) if (value := getattr(saved, name, None)) is not None}
    values = {**GREEDY, **values, **options}
    values.pop("max_length", None)  # every evaluation sets its own
    return {n: value for n, value in values.items() if n in ("do_sample", "num_beams") or value != GREEDY.get(n)}
