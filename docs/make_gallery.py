"""Makes the pictures of docs/pictures.md, by the commands that stand there.

    python docs/make_gallery.py runs/numbers

The argument is the folder of the model of `make demo`.
"""

import os
import re
import shlex
import sys
from pathlib import Path

from trivium_cli import app

PAGE = Path(__file__).resolve().parent / "pictures.md"
LARGEST = 150_000  # bytes: pictures stay in the repository's history for good


def commands_of(text: str) -> list[list[str]]:
    """The arguments of every `trivium` command in a text in Markdown, a list for each."""
    text = text.replace("\\\n", "")  # a command may go on in the next line
    return [shlex.split(line) for line in re.findall(r"^    trivium (plot .*)$", text, flags=re.MULTILINE)]


def main(model: str) -> None:
    """Run them all, with this model."""
    model = str(Path(model).resolve())
    os.chdir(PAGE.with_suffix(""))
    for arguments in commands_of(PAGE.read_text(encoding="utf-8")):
        app([model if each == "runs/numbers" else each for each in arguments], standalone_mode=False)
        picture = Path(arguments[-1])
        if (size := picture.stat().st_size) > LARGEST:
            raise ValueError(f"{picture} has {size:,} bytes, but must have no more than {LARGEST:,}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
