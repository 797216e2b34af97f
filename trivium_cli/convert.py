"""Conversion command: `trivium convert`, between families and engines."""

from pathlib import Path
from typing import Annotated

import typer

from trivium_cli.common import KINDS, architecture_of, check_saved_model, report_errors

ENGINES = ("ctranslate2", "gguf", "onnx")
QUANTIZED = ("ctranslate2", "gguf", "onnx")
TRANSFORMERS_JS = "transformers.js"

commands = typer.Typer()


@commands.command(epilog="Example: `trivium convert Helsinki-NLP/opus-mt-en-de runs/opus`")
def convert(
    model: Annotated[
        str, typer.Argument(help="Folder of a saved model, or a model id on the Hub.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(help="A new or empty folder; for GGUF a new file.", show_default=False)],
    to: Annotated[
        str | None,
        typer.Option(
            help="Target of a Trivium model: a transformers family (bart, bert, gpt2, llama, marian, mistral, qwen2, "
            "qwen3, roberta; by default the only compatible one), or an engine (ctranslate2, gguf or onnx)."
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Maximum size of a weight file; larger weights are sharded. Not for engines.")
    ] = "5GB",
    layout: Annotated[
        str | None,
        typer.Option(help="ONNX only: transformers.js, with the files that this library loads; also in 8 bits."),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            help="CTranslate2: int8, int8_float16, float16, ...; GGUF: q8_0 or f16; ONNX: int8. By default float32."
        ),
    ] = None,
) -> None:
    """Convert a transformers model to Trivium, or a Trivium model to transformers or another inference engine.

    The families listed under `--to` are supported in both directions; a model converted to transformers loads without
    Trivium. Weights, configuration, generation settings and tokenizer are converted, and the new model computes the
    same outputs. If the target does not support a feature of the model, the command reports it and writes nothing.
    """
    if layout is not None and (to != "onnx" or layout != TRANSFORMERS_JS):
        raise typer.BadParameter(f"--layout is {layout!r}, but must be {TRANSFORMERS_JS!r}, with --to onnx.")
    if quantization and to not in QUANTIZED:
        raise typer.BadParameter(f"--quantization requires --to {' or '.join(QUANTIZED)}.")
    if quantization and layout:
        raise typer.BadParameter(f"--quantization is not for --layout {layout}, which has both float32 and 8 bits.")
    with report_errors():
        if to in ENGINES:
            _convert_for_engine(Path(model), output, layout or to, quantization)
            return
        from trivium.interop import convert as convert_model
        from trivium.interop.families import FAMILIES

        if to is not None and to not in FAMILIES:
            raise ValueError(f"--to is {to!r}, but must be one of {', '.join((*FAMILIES, *ENGINES))}.")
        converted = convert_model(model, output, to, max_shard_size=max_shard_size, show_progress=True)
    for note in converted.notes:
        typer.echo(f"Note: {note}.")
    name = type(converted.model).__name__
    typer.echo(f"The model, a {name} with {converted.model.num_parameters():,} parameters, is in {output}.")
    package = "trivium" if converted.model.config.model_type == "trivium" else "transformers"
    typer.echo(f"Load it with `from {package} import {name}` and `{name}.from_pretrained({str(output)!r})`.")


def _convert_for_engine(folder: Path, output: Path, engine: str, quantization: str | None) -> None:
    name, notes = architecture_of(check_saved_model(folder)), list[str]()
    try:
        if engine == "onnx":
            from trivium.interop.onnx import to_onnx

            to_onnx(folder, output, quantization)
        elif engine == TRANSFORMERS_JS:
            from trivium.interop.transformers_js import to_transformers_js

            notes = to_transformers_js(folder, output)
        elif engine == "gguf":
            from trivium.interop.gguf import to_gguf

            notes = to_gguf(folder, output, quantization)
        else:
            from trivium.interop.ctranslate2 import to_ctranslate2

            to_ctranslate2(folder, output, quantization)
    except ImportError as error:  # raised if an optional dependency is not installed
        raise typer.BadParameter(str(error)) from error
    for note in notes:
        typer.echo(f"Note: {note}.")
    typer.echo(f"The model, a {name}, is in {output}. Use it with {_usage(name, output, engine)}.")


def _usage(name: str, output: Path, engine: str) -> str:
    command = next((command for suffix, (_, command) in KINDS.items() if name.endswith(suffix)), None)
    if engine in ("gguf", TRANSFORMERS_JS):
        return "llama.cpp" if engine == "gguf" else engine
    if command == "translate":
        return f"`trivium translate {output} --engine {engine}`"
    if engine == "ctranslate2" and command != "generate":
        return "`ctranslate2.Encoder`"
    loader = "onnx.OnnxModel" if engine == "onnx" else "ctranslate2.CTranslate2Model"
    return f"`from trivium.interop.{loader.replace('.', ' import ')}`"
