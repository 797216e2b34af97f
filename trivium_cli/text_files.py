"""Read texts from arguments, a file or standard input; write outputs to a file or to standard output."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Protocol

import typer

from trivium_cli.common import as_lines

Texts = Annotated[list[str] | None, typer.Argument(help="Texts; by default read from --input or standard input.")]
Input = Annotated[
    Path | None, typer.Option("--input", "-i", help="Input file with one text per line.", exists=True, dir_okay=False)
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Output file, with one line per text.")]


def check_files(texts: list[str] | None, input_file: Path | None, output_file: Path | None) -> None:
    """Reject texts in combination with --input, and an output file in a folder that does not exist."""
    if texts and input_file:
        raise typer.BadParameter("Texts and --input are mutually exclusive.")
    if output_file and not output_file.parent.is_dir():
        raise FileNotFoundError(f"--output is {output_file}, but there is no folder {output_file.parent}.")


class TextProcessor(Protocol):
    """Map texts to output lines, with or without a progress bar."""

    def __call__(self, texts: Iterable[str], show_progress: bool) -> Iterator[str]:
        """Yield the output lines of texts."""


def process_all(
    process: TextProcessor, texts: list[str] | None, input_file: Path | None, output_file: Path | None
) -> None:
    """Read texts, process them, and write or print the outputs."""
    from trivium.data import decode_lines, read_lines
    from trivium.storage.atomic import write_whole

    if not (texts or input_file) and sys.stdin is None:
        raise ValueError("There is no input: standard input is closed. Pass texts, or a file with --input.")
    # Read bytes: depending on the locale, Python's text mode accepts input that is not UTF-8.
    lines = texts or (read_lines(input_file) if input_file else decode_lines(sys.stdin.buffer, "standard input"))
    if texts or input_file or not at_terminal():
        outputs = process(lines, show_progress=not texts)
    else:  # process each line immediately instead of waiting for a full batch
        outputs = (output for line in lines for output in process([line], show_progress=False))
    if output_file:
        write_whole(output_file, as_lines(outputs))
    else:
        for output in outputs:
            print(output, flush=True)


def at_terminal() -> bool:
    """Return True if standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def as_row(scores: Iterable[tuple[str, float]]) -> str:
    """Format names and scores separated by tabs; tabs and line breaks in names are escaped as in Python."""
    escapes = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
    return "\t".join(f"{name.translate(escapes)}\t{score:.4f}" for name, score in scores)
