"""Count the lines of texts that a language detector assigns to another language than the expected one.

For a multilingual translator: its outputs should have no more such lines than the references, on which the detector is
wrong, too. Needs `pip install -e '.[benchmarks]'`:

    python benchmarks/languages.py fr runs/multi30k-multilingual/predictions_test.txt FOLDER/test_2016_flickr.fr
"""

from pathlib import Path
from typing import Annotated

import py3langid
import typer


def main(
    language: Annotated[str, typer.Argument(help="Expected language.", show_default=False)],
    texts: Annotated[list[Path], typer.Argument(help="Text files, a text per line.", show_default=False)],
    candidates: Annotated[str, typer.Option(help="Languages that the detector may choose from.")] = "en,de,fr,cs",
) -> None:
    """Print, for each file, how many lines are in another language, and the first of them."""
    if language not in candidates.split(","):
        raise typer.BadParameter(f"{language!r} is not one of --candidates {candidates}.")
    py3langid.set_languages(candidates.split(","))
    for path in texts:
        lines = path.read_text(encoding="utf-8").splitlines()
        detected = [(py3langid.classify(line)[0], line) for line in lines]
        wrong = [f"    {found}: {line}" for found, line in detected if found != language]
        print(f"{path}: {len(wrong)} of {len(lines)} lines", *wrong[:5], sep="\n")


if __name__ == "__main__":
    typer.run(main)
