"""What the commands share: their options, loading a model, writing a file, explaining a mistake."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = Annotated[Path, typer.Argument(help="Folder of a saved model.", show_default=False)]
Beams = Annotated[int | None, typer.Option("--beams", "-b", min=1, help="Beam search of this width; 1 is greedy.")]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Exponent of the length that beam scores are divided by; above 0 favours length.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts that the model takes at once.")]


# What the name of a class ends with, the Auto class that loads it, and the command that its texts go through.
KINDS = {
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "translate"),
    "ForCausalLM": ("AutoModelForCausalLM", "generate"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "classify"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
}


def load(folder: Path, command: str | None = None) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a model, as the class it was saved as, and its tokenizer.

    Args:
        folder: Where they are.
        command: The command that wants them; None takes a model that any command takes.

    Raises:
        FileNotFoundError: There is no model.
        ValueError: It is for another command, or for none.
    """
    check_saved_model(folder)
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    name = architectures[0] if architectures else "model of no known class"
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
    model = getattr(transformers, auto_class).from_pretrained(folder).to(device).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def check_saved_model(folder: Path) -> None:
    """Raise a FileNotFoundError where there is no model; it names the checkpoints, if there are any."""
    if not (folder / "config.json").is_file():
        checkpoints = ", ".join(str(path) for path in sorted(folder.glob("checkpoint-*")))
        hint = f" Its run did not end; there are {checkpoints}." if checkpoints else ""
        raise FileNotFoundError(f"{folder} is not a saved model: it has no config.json.{hint}")


def given(**options: Any) -> dict[str, Any]:
    """Options without those that were not given, for which holds what was saved with the model."""
    return {name: value for name, value in options.items() if value is not None}


def as_line(text: str) -> str:
    """One line: a line break that a model makes up must not shift all lines below it."""
    return " ".join(text.splitlines())


def as_lines(texts: Iterable[str]) -> str:
    """One line each."""
    return "".join(as_line(text) + "\n" for text in texts)


@contextmanager
def mistakes_explained() -> Iterator[None]:
    """End with one line and exit code 1 on what the user can mend; everything else keeps its traceback."""
    from huggingface_hub.errors import StrictDataclassError  # what a configuration that cannot work raises

    try:
        yield
    except (ValueError, OSError, StrictDataclassError) as error:  # OSError: no file, no permission, no space ...
        # A strict dataclass wraps the sentence that matters into its own name for the check.
        complain(str(error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        complain("interrupted. A training that has saved a checkpoint goes on with --resume.")
        raise typer.Exit(130) from None


def complain(message: str) -> None:
    """Say on standard error what went wrong."""
    Console(stderr=True).print(Text("Error: ", style="bold red") + Text(message), soft_wrap=True)
