"""Generate the pictures of docs/pictures.md by running the commands on that page.

    python docs/make_gallery.py runs/numbers

The argument is the model folder of `make demo`.
"""

import os
import re
import shlex
import sys
from pathlib import Path

from trivium_cli import app

PAGE = Path(__file__).resolve().parent / "pictures.md"
MAX_BYTES = 150_000  # maximum bytes per picture: pictures remain in the Git history forever


def commands_of(text: str) -> list[list[str]]:
    """Return the arguments of every `trivium plot` command in a Markdown text."""
    text = text.replace("\\\n", "")  # join continued lines
    return [shlex.split(line) for line in re.findall(r"^    trivium (plot .*)$", text, flags=re.MULTILINE)]


def main(model: str) -> None:
    """Run all commands of the page with the given model."""
    model = str(Path(model).resolve())
    os.chdir(PAGE.with_suffix(""))
    for arguments in commands_of(PAGE.read_text(encoding="utf-8")):
        app([model if argument == "runs/numbers" else argument for argument in arguments], standalone_mode=False)
        picture = Path(arguments[-1])
        if (size := picture.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{picture} has {size:,} bytes, but must have at most {MAX_BYTES:,}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
