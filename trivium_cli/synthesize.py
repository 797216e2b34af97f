"""The commands `trivium backtranslate` and `trivium distil`, which write training pairs with a trained model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium_cli.common import Model, TrustRemoteCode, as_line, report_errors
from trivium_cli.decoding import Beams, LengthPenalty, Sample, Seed, Temperature, TopK, TopP, search_options
from trivium_cli.translators import (
    Engine,
    To,
    TranslationBatchSize,
    TranslationLength,
    check_tags,
    load_translator,
)

if TYPE_CHECKING:
    from trivium.training.synthetic import PairCounts

commands = typer.Typer()

CONTINUE = "Repeat the command to continue."  # after an interruption

TextsFile = Annotated[
    Path,
    typer.Argument(
        help="File with one text per line, or in another format of `data.train`; it may be compressed.",
        show_default=False,
    ),
]
PairsFile = Annotated[
    Path, typer.Argument(help="File to write, with one JSON object per line: NAME.jsonl.", show_default=False)
]
TextColumn = Annotated[str, typer.Option("--text", help="Column of the texts, if the format of the file has columns.")]


@commands.command(epilog="Example: `trivium backtranslate runs/de-en monolingual.de.gz synthetic.jsonl --sample`")
def backtranslate(
    model: Model,
    texts_file: TextsFile,
    output: PairsFile,
    tag: Annotated[
        str, typer.Option(help="Tag at the start of the generated sources; an empty string for none.")
    ] = "<bt>",
    source: Annotated[
        str | None,
        typer.Option(help="Language of the generated sources; by default the target of the model's recipe."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Language of the given texts; by default the source of the model's recipe.")
    ] = None,
    text_column: TextColumn = "text",
    to: To = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    sample: Sample = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    max_length: TranslationLength = None,
    batch_size: TranslationBatchSize = None,
    engine: Engine = "torch",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Translate texts of the target language back, as additional training pairs with generated sources.

    To train English-German on more German text, pass a German-English model and the German texts. Each output line has
    a generated source and the given text, under their languages, `{"en": "<bt>...", "de": "..."}`: an entry of
    `data.mix`, or `data.train`. Set `tokenizer.special_tokens=[<bt>]`, so that the tag is a single token (Caswell et
    al. 2019).

    After an interruption, repeat the command to continue. An existing file is not overwritten.
    """
    options = search_options(
        beams=beams,
        length_penalty=length_penalty,
        sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_length=max_length,
    )
    with report_errors(CONTINUE):
        own = _languages_of(model, source, target)
        counts = _write(
            model,
            texts_file,
            output,
            (engine, trust_remote_code),
            batch_size,
            {"to": to, **options},
            given=target or own[0],
            generated=source or own[1],
            column=text_column,
            tag=tag,
            seed=seed,
        )
    _report(counts, output, f" Train with tokenizer.special_tokens=[{tag}]." if tag else "")


@commands.command(epilog="Example: `trivium distil runs/teacher train.en distilled.jsonl --beams 5`")
def distil(
    model: Model,
    texts_file: TextsFile,
    output: PairsFile,
    source: Annotated[
        str | None, typer.Option(help="Language of the given texts; by default the source of the teacher's recipe.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Language of the translations; by default the target of the teacher's recipe."),
    ] = None,
    text_column: TextColumn = "text",
    to: To = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    max_length: TranslationLength = None,
    batch_size: TranslationBatchSize = None,
    engine: Engine = "torch",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Translate training sources with a teacher, whose translations are the targets of a smaller student.

    This is sequence-level distillation (Kim and Rush 2016). Each output line has the given source and the teacher's
    translation, under their languages, `{"en": "...", "de": "..."}`, for `data.train`. With the recipe field
    `distillation.teacher`, the student learns the teacher's probabilities as well, or instead.

    After an interruption, repeat the command to continue. An existing file is not overwritten.
    """
    options = search_options(beams=beams, length_penalty=length_penalty, max_length=max_length)
    with report_errors(CONTINUE):
        own = _languages_of(model, source, target)
        counts = _write(
            model,
            texts_file,
            output,
            (engine, trust_remote_code),
            batch_size,
            {"to": to, **options},
            given=source or own[0],
            generated=target or own[1],
            column=text_column,
        )
    _report(counts, output, "")


def _write(
    folder: Path,
    texts_file: Path,
    output: Path,
    loading: tuple[str, bool],
    batch_size: int | None,
    options: dict[str, Any],
    **columns: Any,
) -> "PairCounts":
    """Load the model in `folder`, and write the pairs of all texts; only `batch_size` may change on resumption."""
    from trivium.storage.checksums import checksum
    from trivium.training.synthetic import write_pairs

    translate = _translator(folder, *loading, {**options, "batch_size": batch_size})
    weights = [path for pattern in ("*.safetensors", "model.bin") for path in sorted(folder.glob(pattern))]
    settings = {"model": [checksum(path) for path in weights], "engine": loading[0], **options}
    return write_pairs(translate, texts_file, output, settings=settings, show_progress=True, **columns)


def _translator(
    folder: Path, engine: str, trust_remote_code: bool, options: dict[str, Any]
) -> Callable[[list[str]], Iterator[str]]:
    """Return a function that translates texts with the model in a folder, each into one line."""
    model, tokenizer = load_translator(folder, engine, trust_remote_code=trust_remote_code)
    from trivium.modeling.pipeline_translation import target_languages
    from trivium.translation import translate

    languages = [] if options["to"] else target_languages(tokenizer)

    def translate_lines(texts: list[str]) -> Iterator[str]:
        return map(as_line, translate(model, tokenizer, check_tags(texts, languages), **options))

    return translate_lines


def _languages_of(folder: Path, source: str | None, target: str | None) -> tuple[str, str]:
    """Return the source and the target language of the model's recipe, which options may override."""
    from trivium.recipe import load_recipe
    from trivium.storage.names import RECIPE_FILE

    if source and target:
        return source, target
    if (folder / RECIPE_FILE).is_file() and (recipe := load_recipe(folder)).data.directions is None:
        return recipe.data.source, recipe.data.target
    raise ValueError(
        f"--source is {source} and --target is {target}, and {folder} has no recipe with a single direction. Set both."
    )


def _report(counts: "PairCounts", output: Path, advice: str) -> None:
    empty = counts.texts - counts.pairs
    dropped = f"; {empty:,} texts without a translation were left out" if empty else ""
    typer.echo(f"{output} has {counts.pairs:,} pairs{dropped}.{advice}")
