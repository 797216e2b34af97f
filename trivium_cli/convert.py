"""The command `trivium convert`, which converts models between families and engines."""

from pathlib import Path
from typing import Annotated

import typer

from trivium_cli.common import KINDS, architecture_of, check_saved_model, report_errors

ENGINES = ("ctranslate2", "onnx")

commands = typer.Typer()


@commands.command(epilog="Example: `trivium convert Helsinki-NLP/opus-mt-en-de runs/opus`")
def convert(
    model: Annotated[
        str, typer.Argument(help="Folder of a saved model, or a model id on the Hub.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    to: Annotated[
        str | None,
        typer.Option(
            help="Target of a Trivium model: a transformers family (bart, bert, gpt2, llama, marian, mistral, qwen2, "
            "roberta; by default the only compatible one), or an engine (ctranslate2 or onnx)."
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Maximum size of a weight file; larger weights are sharded. Not for engines.")
    ] = "5GB",
    quantization: Annotated[
        str | None, typer.Option(help="CTranslate2 only: int8, int8_float16, float16, ...; by default float32.")
    ] = None,
) -> None:
    """Convert a model of transformers to Trivium, or a Trivium model to transformers or another engine.

    The families listed under `--to` are supported in both directions; a model converted to transformers loads without
    Trivium. Weights, configuration, generation settings and tokenizer are converted, and the new model computes the
    same outputs. If the target cannot represent a feature, an error names it, and nothing is written.
    """
    if quantization and to != "ctranslate2":
        raise typer.BadParameter("--quantization requires --to ctranslate2.")
    with report_errors():
        if to in ENGINES:
            _convert_for_engine(Path(model), output, to, quantization)
            return
        from trivium.interop import convert as convert_model

        converted = convert_model(model, output, to, max_shard_size=max_shard_size, show_progress=True)
    for note in converted.notes:
        typer.echo(f"Note: {note}.")
    name = type(converted.model).__name__
    typer.echo(f"The model, a {name} with {converted.model.num_parameters():,} parameters, is in {output}.")
    package = "trivium" if converted.model.config.model_type == "trivium" else "transformers"
    typer.echo(f"Load it with `from {package} import {name}` and `{name}.from_pretrained({str(output)!r})`.")


def _convert_for_engine(folder: Path, output: Path, engine: str, quantization: str | None) -> None:
    name = architecture_of(check_saved_model(folder))
    try:
        if engine == "onnx":
            from trivium.interop.onnx import to_onnx

            to_onnx(folder, output)
        else:
            from trivium.interop.ctranslate2 import to_ctranslate2

            to_ctranslate2(folder, output, quantization)
    except ImportError as error:  # an optional dependency is not installed
        raise typer.BadParameter(str(error)) from error
    command = next((command for suffix, (_, command) in KINDS.items() if name.endswith(suffix)), None)
    loader = "onnx.OnnxModel" if engine == "onnx" else "ctranslate2.CTranslate2Model"
    use = f"`from trivium.interop.{loader.replace('.', ' import ')}`"
    if command == "translate":
        use = f"`trivium translate {output} --engine {engine}`"
    elif engine == "ctranslate2" and command != "generate":
        use = "`ctranslate2.Encoder`"
    typer.echo(f"The model, a {name}, is in {output}. Use it with {use}.")
