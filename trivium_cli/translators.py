"""Translation models for the inference engines, and the options of the commands that translate."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trivium_cli.common import check_saved_model, load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Engine = Annotated[
    Literal["torch", "ctranslate2", "onnx"],
    typer.Option(help="Inference engine; CTranslate2 is faster, especially on a CPU."),
]
To = Annotated[
    str | None, typer.Option(help="Target language of a model with several, such as `fr`.", show_default=False)
]
TranslationLength = Annotated[
    int | None, typer.Option(min=2, help="Maximum translation length in tokens; by default 50 more than the text.")
]
TranslationBatchSize = Annotated[
    int | None, typer.Option(min=1, help="Batch size, in texts; by default as many as have 4,096 tokens.")
]


def load_translator(
    folder: Path, engine: str, *, trust_remote_code: bool = False
) -> tuple[Any, "PreTrainedTokenizerBase"]:
    """Load a translation model for an engine, and its tokenizer; for CTranslate2 and ONNX Runtime, convert it first.

    Raises:
        BadParameter: The engine is not installed, or should run code from the folder, which only torch can.
        FileNotFoundError: There is no model.
        ValueError: The model does not translate, or the engine does not support it.
    """
    if trust_remote_code and engine != "torch":
        raise typer.BadParameter("--trust-remote-code requires --engine torch.")
    if engine == "torch":
        return load(folder, "translate", trust_remote_code=trust_remote_code)
    from trivium.interop.ctranslate2 import CTranslate2Model
    from trivium.interop.onnx import OnnxModel

    check_saved_model(folder)
    try:
        model: Any = (CTranslate2Model if engine == "ctranslate2" else OnnxModel).from_pretrained(folder)
    except ImportError as error:  # raised if an optional dependency is not installed
        raise typer.BadParameter(str(error)) from error
    if not model.config.is_encoder_decoder:
        raise ValueError(f"{folder} does not hold a translation model, so it is not for `trivium translate`.")
    return model, model.tokenizer


def check_tags(texts: Iterable[str], languages: list[str]) -> Iterator[str]:
    """Yield texts; raise an error for a text without the tag of a target language, unless `languages` is empty."""
    from trivium.modeling.pipeline_translation import language_tag

    tags = tuple(map(language_tag, languages))
    for text in texts:
        if tags and text.strip() and not text.startswith(tags):
            raise ValueError(f"The model translates to {', '.join(languages)}. Select one with --to.")
        yield text
