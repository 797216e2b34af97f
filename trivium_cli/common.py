"""What the commands share: options, loading a model, writing lines, reporting errors."""

import json
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
    """Refuse an option that is NaN or infinite, which `min` and `max` let through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Model = Annotated[Path, typer.Argument(help="Folder of a saved model.", show_default=False)]
Beams = Annotated[int | None, typer.Option("--beams", "-b", min=1, help="Beam search of this width; 1 is greedy.")]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        help="Exponent of the length that beam scores are divided by; above 0 favours length.", callback=finite
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts in a batch.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the Python code in the model's folder, where its model is not one of Trivium or transformers.",
    ),
]

# The ending of a class name, the Auto class that loads it, and the command that takes it.
KINDS = {
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "translate"),
    "ForCausalLM": ("AutoModelForCausalLM", "generate"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "classify"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
}


def load(
    folder: Path, command: str | None = None, *, trust_remote_code: bool = False
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a model, as the class it was saved as, and its tokenizer.

    Args:
        folder: The saved model.
        command: The command that will use it; None accepts a model of any of the commands.
        trust_remote_code: Whether code in the folder may run. Nobody is asked: a question could be answered by what
            is piped into the command.

    Raises:
        FileNotFoundError: There is no model.
        ValueError: The model is of another command or of none, a file is broken, or it needs code of its own.
    """
    config = check_saved_model(folder)
    name = architecture_of(config)
    auto_class, fitting = next((kind for ending, kind in KINDS.items() if name.endswith(ending)), (None, None))
    if auto_class is None or command not in (None, fitting):
        purpose = f"for `trivium {fitting}`" if fitting else "for none of the commands that take texts"
        hint = f", not for `trivium {command}`" if fitting else ""
        if (command, fitting) == ("generate", "translate"):
            hint += "; `trivium split` makes a language model of its decoder"
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
            f"{folder} holds a model of model_type {config.get('model_type')!r} that runs on Python code in its own "
            "folder; none of it was run. Read that code, and if you trust it add --trust-remote-code."
        ) from error


def check_saved_model(folder: Path) -> dict[str, Any]:
    """Check the files of a saved model as far as that is quick, and return its config.json.

    Raises:
        FileNotFoundError: There is no model; the message names the checkpoints, if there are any.
        ValueError: config.json is not a JSON object, or a file of weights is not complete.
    """
    path = folder / "config.json"
    if not path.is_file():
        checkpoints = ", ".join(str(path) for path in sorted(folder.glob("checkpoint-*")))
        hint = f" Its run did not end; there are {checkpoints}." if checkpoints else ""
        raise FileNotFoundError(f"{folder} is not a saved model: it has no config.json.{hint}")
    config = _read_json_object(path)
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            _read_json_object(folder / name)

    from safetensors import SafetensorError, safe_open
    from tokenizers import Tokenizer

    for tokenizer in sorted(folder.glob("*tokenizer.json")):
        try:
            Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # tokenizers raises no other
            raise ValueError(
                f"{tokenizer} is not a valid tokenizer: {error}. Save or download the model again."
            ) from error

    for weights in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(weights, framework="numpy"):  # reads the header, and compares it with the file's size
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{weights} is not a complete file of safetensors: {error}. Save or download the model again."
            ) from error
    return config


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, but must hold a JSON object.")
    return content


def architecture_of(config: dict[str, Any]) -> str:
    """Return the name of the class that a config.json was saved with."""
    match config.get("architectures"):
        case [str(name), *_]:
            return name
    return "model of no known class"


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given; what was saved with the model holds for the others."""
    return {name: value for name, value in options.items() if value is not None}


def as_line(text: str) -> str:
    """Join the lines of a text: a line break that a model makes up must not shift all lines below it."""
    return " ".join(text.splitlines())


def as_lines(texts: Iterable[str]) -> str:
    """Write each text as one line."""
    return "".join(as_line(text) + "\n" for text in texts)


@contextmanager
def mistakes_explained() -> Iterator[None]:
    """Report an error that the user can mend as one line, with exit code 1; any other keeps its traceback."""
    from huggingface_hub.errors import StrictDataclassError  # raised by a configuration that cannot work

    try:
        yield
    except (ValueError, OSError, StrictDataclassError) as error:  # OSError: no file, no permission, no space ...
        # A strict dataclass wraps the sentence that matters into its own name for the check.
        message = str(error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error)
        if "trust_remote_code=True" in message:  # advice for Python, from transformers
            first_sentence = message.partition(" You can inspect")[0]
            message = f"{first_sentence} It was not executed: this command takes models of Trivium or transformers."
        complain(message)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        complain("interrupted. A training that has saved a checkpoint can be resumed with --resume.")
        raise typer.Exit(130) from None


def complain(message: str) -> None:
    """Print an error on standard error."""
    Console(stderr=True).print(Text("Error: ", style="bold red") + Text(message), soft_wrap=True)
