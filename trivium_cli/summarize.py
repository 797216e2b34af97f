"""Summarization command: `trivium summarize`."""

from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from trivium_cli.common import Model, TrustRemoteCode, as_line, load, report_errors
from trivium_cli.decoding import Beams, LengthPenalty, search_options
from trivium_cli.text_files import Input, Output, Texts, check_files, process_all

commands = typer.Typer()


@commands.command(epilog="Example: `trivium summarize runs/scitldr --input abstracts.txt --beams 4`")
def summarize(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Output = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Maximum length of a summary in tokens; by default the text's plus 50.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Batch size, in texts; by default as many as have 4,096 tokens.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Summarize texts from arguments, a file or standard input, one per line.

    Texts of more than 1,024 tokens are truncated with a warning, unless the model supports longer ones. Blank texts
    yield blank lines.
    """
    with report_errors():
        check_files(texts, input_file, output_file)
        loaded, tokenizer = load(model, "summarize", trust_remote_code=trust_remote_code)
        from trivium.translation import translate

        options = search_options(beams=beams, length_penalty=length_penalty, max_length=max_length)

        def process(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            summaries = translate(
                loaded, tokenizer, texts, batch_size=batch_size, show_progress=show_progress, **options
            )
            return map(as_line, summaries)

        process_all(process, texts, input_file, output_file)
