"""Read tagged words from CoNLL files: a word and its tag per line, and an empty line after each sentence."""

from collections.abc import Iterator
from itertools import groupby

from trivium.data.readers import PlacedRow, read_lines

DOCUMENT_START = "-DOCSTART-"  # CoNLL-2003 marks the start of a document with this word


def conll_rows(file: str, words: str, tags: str, encoding: str | None = None) -> Iterator[PlacedRow]:
    """Yield the sentences of a CoNLL file as rows with the columns `words` and `tags`.

    Columns are separated by tabs, or by spaces if a line has no tab. The first column is the word and the last one its
    tag, as in CoNLL-2003 and WNUT-17.

    Raises:
        ValueError: A line has only one column, or an empty word or tag.
    """
    lines = enumerate(read_lines(file, encoding), start=1)
    for is_sentence, group in groupby(lines, key=lambda line: bool(line[1].strip())):
        if not is_sentence:
            continue
        sentence = list(group)
        cells = [_split(line, f"{file}, line {number}") for number, line in sentence]
        cells = [(word, tag) for word, tag in cells if word != DOCUMENT_START]
        if cells:
            place = f"{file}, line {sentence[0][0]}"
            yield place, {words: [word for word, _ in cells], tags: [tag for _, tag in cells]}


def _split(line: str, place: str) -> tuple[str, str]:
    """Return the word and the tag of a line."""
    cells = line.split("\t") if "\t" in line else line.split()
    word, tag = cells[0].strip(), cells[-1].strip()
    if len(cells) < 2 or not word or not tag:
        raise ValueError(
            f"{place}: found {line!r}, but every line must have a word and its tag, separated by a tab or by spaces."
        )
    return word, tag
