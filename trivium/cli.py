"""The command line: `trivium train`, `trivium evaluate`, `trivium translate`.

What only some commands need is imported by those, so that the others need not wait for it.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXAMPLES = 5  # translations that an evaluation shows

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    epilog="Start with `trivium train numbers`, which needs no data of yours.",
)


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
    """Train a Transformer on your sentence pairs, measure it, and translate with it."""


Model = Annotated[Path, typer.Argument(help="Folder of a saved model.", show_default=False)]
Beams = Annotated[int | None, typer.Option("--beams", "-b", min=1, help="Beam search of this width; 1 is greedy.")]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Exponent of the length that beam scores are divided by; above 0 favours length.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Sentences translated at once.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Fields of the recipe to replace: `section.field=value` ...", show_default=False),
]


@app.command(epilog="Example: `trivium train numbers model.d_model=256 training.max_steps=5000`")
def train(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, the folder of a run, or the name of a recipe that comes along.")
    ],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run's checkpoints and start anew.")
    ] = False,
) -> None:
    """Train a model as a recipe says.

    The folder `training.output_dir` of the recipe will hold the model, its tokenizer, checkpoints, TensorBoard logs
    and the recipe itself.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other.")
    with _mistakes_explained():
        from trivium.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or [])
        from trivium import training

        trainer = training.train(loaded, resume=resume, overwrite=overwrite)
    typer.echo(f"The trained model is in {trainer.args.output_dir}.")


@app.command(epilog="Example: `trivium evaluate runs/numbers --beams 5`")
def evaluate(
    model: Model,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    batch_size: BatchSize = 64,
) -> None:
    """Translate a part of the data that a model was trained with and compare with the references.

    Other data: `data.test=PREFIX`. Other metrics: `metrics=[sacrebleu,chrf,ter,exact_match,perplexity]`. Scores and
    some translations are printed, all are kept in the model's folder: `evaluation_SPLIT.json`,
    `translations_SPLIT.txt`.
    """
    with _mistakes_explained():
        _check_saved_model(model)
        from trivium.recipe import RECIPE_FILE, load_recipe

        if not (model / RECIPE_FILE).is_file():
            raise FileNotFoundError(
                f"{model} has no {RECIPE_FILE}, which says what data it was trained with: give a folder that "
                "`trivium train` wrote."
            )
        recipe = load_recipe(model, overrides or [])
        from trivium.data import load_parallel
        from trivium.evaluation import evaluate_translator

        data = load_parallel(recipe.data)
        if split not in data:
            raise ValueError(f"--split is {split}, but the data has {', '.join(data)}: add data.{split}=...")
        pairs = list(data[split])
        loaded, tokenizer = _load(model)
        scores, translations = evaluate_translator(
            loaded,
            tokenizer,
            pairs,
            recipe.metrics,
            batch_size=batch_size,
            show_progress=True,
            **_given(num_beams=beams, length_penalty=length_penalty),
        )
    _write(model / f"translations_{split}.txt", _as_lines(translations))
    _write(model / f"evaluation_{split}.json", json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    table = Table("metric", "score", title=f"{split}: {len(translations)} sentences")
    table.add_column("signature", overflow="fold")
    for name, result in scores.items():
        table.add_row(name, f"{result['score']:.4f}", result.get("signature", ""))
    examples = Table(title="The first of them", show_lines=True)
    for column in ("source", "reference", "translation"):
        examples.add_column(column, overflow="fold")
    for pair, translation in islice(zip(pairs, translations, strict=True), EXAMPLES):
        examples.add_row(*(Text(text) for text in (pair["source"], pair["target"], translation)))
    Console().print(table, examples)


@app.command(epilog="Example: `trivium translate runs/numbers --input english.txt --output german.txt --beams 5`")
def translate(
    model: Model,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to translate; none: --input, or else standard input.")
    ] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", "-i", help="A text a line.", exists=True, dir_okay=False)
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here, a translation a line.")
    ] = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens by their probability.")] = False,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="With --sample: below 1 is bolder.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="With --sample: only from the k most likely.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="With --sample: only from the top p.")] = None,
    seed: Annotated[int, typer.Option(help="With --sample: the same seed draws the same.")] = 0,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Longest translation, in tokens; by default 50 more than the text has.")
    ] = None,
    batch_size: BatchSize = 64,
) -> None:
    """Translate texts given as arguments, in a file, or line by line on standard input."""
    if texts and input_file:
        raise typer.BadParameter("Give texts or --input, not both.")
    if not sample and any(option is not None for option in (temperature, top_k, top_p)):
        raise typer.BadParameter("--temperature, --top-k and --top-p go with --sample.")
    with _mistakes_explained():
        if output_file and not output_file.parent.is_dir():
            raise FileNotFoundError(f"--output is {output_file}, but there is no folder {output_file.parent}.")
        from transformers import set_seed

        from trivium.data import read_lines
        from trivium.translation import translate as translations_of

        loaded, tokenizer = _load(model)
        set_seed(seed)
        at_terminal = not texts and not input_file and sys.stdin.isatty()
        lines = texts or (read_lines(input_file) if input_file else (line.rstrip("\r\n") for line in sys.stdin))
        options = _given(
            num_beams=beams,
            length_penalty=length_penalty,
            do_sample=sample or None,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_length=max_length,
        )
        translated: Iterator[str]
        if at_terminal:  # an answer to every line, not to a batch
            translated = (each for line in lines for each in translations_of(loaded, tokenizer, [line], **options))
        else:
            translated = translations_of(
                loaded, tokenizer, lines, batch_size=batch_size, show_progress=not texts, **options
            )
        if output_file:
            _write(output_file, _as_lines(translated))
        else:
            for translation in translated:
                print(_as_lines([translation]), end="", flush=True)


def _load(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    _check_saved_model(folder)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).to(device).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def _check_saved_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        checkpoints = ", ".join(str(path) for path in sorted(folder.glob("checkpoint-*")))
        hint = f" Its run did not end; there are {checkpoints}." if checkpoints else ""
        raise FileNotFoundError(f"{folder} is not a saved model: it has no config.json.{hint}")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _as_lines(translations: Iterable[str]) -> str:
    """One line each: a line break that a model makes up must not shift all lines below it."""
    return "".join(translation.replace("\n", " ") + "\n" for translation in translations)


def _write(path: Path, content: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)


@contextmanager
def _mistakes_explained() -> Iterator[None]:
    """End with one line and exit code 1 on what the user can mend; everything else keeps its traceback."""
    from huggingface_hub.errors import StrictDataclassError  # what a configuration that cannot work raises

    try:
        yield
    except (ValueError, FileNotFoundError, StrictDataclassError) as error:
        # A strict dataclass wraps the sentence that matters into its own name for the check.
        _complain(str(error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        _complain("interrupted; a training that has saved a checkpoint goes on with --resume.")
        raise typer.Exit(130) from None


def _complain(message: str) -> None:
    Console(stderr=True).print(Text("Error: ", style="bold red") + Text(message), soft_wrap=True)


if __name__ == "__main__":
    app()
