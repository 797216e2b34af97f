"""Tagging command: `trivium tag`."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from trivium_cli.common import BatchSize, Model, TrustRemoteCode, load, report_errors
from trivium_cli.text_files import Input, Texts, check_files, process_all

commands = typer.Typer()


@commands.command(epilog='Example: `trivium tag runs/lines "He never saw her again ."`')
def tag(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output file, in the CoNLL format of the training data.")
    ] = None,
    batch_size: BatchSize = 64,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Tag every word of a text. Texts come from arguments, a file or standard input, one per line.

    Words are separated by spaces, as in the training data, where punctuation marks are usually separate words. Output
    is one line per word, with its tag after a tab, and an empty line after each text. Blank texts yield only that
    line. Words beyond the maximum length of the model are tagged `O`, or `_` if the model has no such tag.
    """
    with report_errors():
        check_files(texts, input_file, output_file)
        loaded, tokenizer = load(model, "tag", trust_remote_code=trust_remote_code)
        from tqdm.auto import tqdm

        from trivium.evaluation import predict_tags

        def process(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            remaining = iter(texts)
            with tqdm(desc="tag", unit=" texts", disable=not show_progress) as progress:
                while sentences := [text.split() for text in islice(remaining, batch_size)]:
                    tagged = iter(predict_tags(loaded, tokenizer, [words for words in sentences if words]))
                    for words in sentences:
                        tags = next(tagged) if words else []
                        yield from (f"{word}\t{tag}" for word, tag in zip(words, tags, strict=True))
                        yield ""
                    progress.update(len(sentences))

        process_all(process, texts, input_file, output_file)
