"""Helpers of the commands: option types, model loading, text output and error reporting."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def finite(value: float | None) -> float | None:
    """Reject NaN and infinite option values, which `min` and `max` do not catch."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Model = Annotated[Path, typer.Argument(help="Folder of a saved model.", show_default=False)]
BatchSize = Annotated[int, typer.Option(min=1, help="Batch size, in texts.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Allow Python code from the model's folder to run, for models of neither Trivium nor transformers.",
    ),
]

# Suffix of a model class name, the Auto class that loads it, and the command for it.
KINDS = {
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "translate"),
    "ForCausalLM": ("AutoModelForCausalLM", "generate"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "classify"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "tag"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "answer"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
}
ENGINE_FILES = {"ctranslate2": "model.bin", "onnx": "*.onnx"}
MAX_CELL = 300  # characters of a text in a table of examples
# Commands for model classes that another command also accepts; the class alone does not determine the task.
SAME = {"summarize": "translate"}


def load(
    folder: Path, command: str | None = None, *, trust_remote_code: bool = False
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a saved model as its original class, and its tokenizer.

    Args:
        folder: Folder of the saved model.
        command: Command that will use the model; None accepts models for any command.
        trust_remote_code: Whether code in the folder may run. There is no interactive prompt, because text piped into
            the command could answer it.

    Raises:
        FileNotFoundError: There is no saved model.
        ValueError: The model does not fit this command, a file is corrupt, or the model needs remote code.
    """
    config = check_saved_model(folder)
    for engine, pattern in ENGINE_FILES.items():
        if any(folder.glob(pattern)) and not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"{folder} holds a model that was converted for {engine}. Use it with --engine {engine}, or name the "
                "folder that it was converted from."
            )
    name = architecture_of(config)
    auto_class, supported = next((kind for suffix, kind in KINDS.items() if name.endswith(suffix)), (None, None))
    if auto_class is None or SAME.get(command or "", command) not in (None, supported):
        purpose = f"for `trivium {supported}`" if supported else "not supported by any command that takes texts"
        hint = f", not for `trivium {command}`" if supported else ""
        if (command, supported) == ("generate", "translate"):
            hint += "; `trivium split` extracts its decoder as a language model"
        raise ValueError(f"{folder} holds a {name}, which is {purpose}{hint}.")

    import torch
    import transformers

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    options = {"trust_remote_code": trust_remote_code}
    try:
        model = getattr(transformers, auto_class).from_pretrained(folder, **options).to(device).eval()
        return model, transformers.AutoTokenizer.from_pretrained(folder, **options)
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{folder} holds a model of model_type {config.get('model_type')!r} that needs Python code from its "
            "folder; it was not executed. Review that code, and add --trust-remote-code if you trust it."
        ) from error


def check_saved_model(folder: Path) -> dict[str, Any]:
    """Quickly check the files of a saved model, and return its config.json.

    Raises:
        FileNotFoundError: There is no saved model; the message lists checkpoints, if there are any.
        ValueError: config.json is not a JSON object, or a weights file is incomplete.
    """
    path = folder / "config.json"
    if not path.is_file():
        checkpoints = ", ".join(str(path) for path in sorted(folder.glob("checkpoint-*")))
        hint = f" Its run is unfinished; the checkpoints are {checkpoints}." if checkpoints else ""
        raise FileNotFoundError(f"{folder} is not a saved model: it has no config.json.{hint}")
    from trivium.storage.json_object import read_json_object

    config = read_json_object(path)
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            read_json_object(folder / name)

    from safetensors import SafetensorError, safe_open
    from tokenizers import Tokenizer

    for tokenizer in sorted(folder.glob("*tokenizer.json")):
        try:
            Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the tokenizers library defines no exception class
            raise ValueError(
                f"{tokenizer} is not a valid tokenizer: {error}. Save or download the model again."
            ) from error

    for weights in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(weights, framework="numpy"):  # reads only the header and checks the file size
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{weights} is not a complete safetensors file: {error}. Save or download the model again."
            ) from error
    return config


def architecture_of(config: dict[str, Any]) -> str:
    """Return the model class name in a config.json."""
    match config.get("architectures"):
        case [str(name), *_]:
            return name
    return "model of unknown class"


def as_line(text: str) -> str:
    """Join the lines of a text, so that a generated line break does not shift later lines."""
    return " ".join(text.splitlines())


def as_lines(texts: Iterable[str]) -> str:
    """Format texts one per line."""
    return "".join(as_line(text) + "\n" for text in texts)


@contextmanager
def report_errors(
    after_interruption: str = "A training run with a checkpoint can be resumed with --resume.",
) -> Iterator[None]:
    """Print user errors as one line, with exit code 1; other errors keep their traceback."""
    from huggingface_hub.errors import StrictDataclassError  # raised for an invalid configuration

    try:
        yield
    except (ValueError, OSError, StrictDataclassError) as error:  # OSError: missing file, full disk, ...
        # A strict dataclass wraps the actual message in a message about its validator.
        message = str(error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error)
        if "trust_remote_code=True" in message:  # transformers' advice is for Python, not for the command line
            first_sentence = message.partition(" You can inspect")[0]
            message = (
                f"{first_sentence} It was not executed: this command supports only models of Trivium and transformers."
            )
        print_error(message)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print_error(f"Interrupted. {after_interruption}")
        raise typer.Exit(130) from None


def print_error(message: str) -> None:
    """Print an error message to standard error."""
    Console(stderr=True).print(Text("Error: ", style="bold red") + Text(message), soft_wrap=True)


def format_cell(value: Any) -> str:
    """Format a data value for a table of examples: lists of words or texts are joined, long texts are shortened."""
    if isinstance(value, dict):  # answers in the format of SQuAD
        value = value["text"]
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= MAX_CELL else f"{text[:MAX_CELL]}…"
