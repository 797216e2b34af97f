"""Question answering command: `trivium answer`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from trivium_cli.common import BatchSize, Model, TrustRemoteCode, load, report_errors
from trivium_cli.text_files import Input, Output, Texts, as_row, check_files, process_all

commands = typer.Typer()


@commands.command(epilog='Example: `trivium answer runs/answers --context text.txt "Who wrote Hamlet?"`')
def answer(
    model: Model,
    context: Annotated[
        Path, typer.Option(help="Text file that has the answers.", exists=True, dir_okay=False, show_default=False)
    ],
    texts: Texts = None,
    input_file: Input = None,
    output_file: Output = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of answers per question, best first.")] = 1,
    batch_size: BatchSize = 64,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find answers to questions in a text. Questions come from arguments, a file or standard input, one per line.

    Output is one line per question: answers and their probabilities, best first, separated by tabs. Long texts are
    read in overlapping windows. Blank questions yield blank lines.
    """
    with report_errors():
        check_files(texts, input_file, output_file)
        loaded, tokenizer = load(model, "answer", trust_remote_code=trust_remote_code)
        from trivium.data import read_lines
        from trivium.modeling.pipeline_question_answering import QuestionAnsweringPipeline

        document = "\n".join(read_lines(context))
        pipe = QuestionAnsweringPipeline(loaded, tokenizer, device=loaded.device, batch_size=batch_size)

        def process(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            for question in texts:
                answers = pipe(question=question, context=document, top_k=top_k) if question.strip() else []
                answers = [answers] if isinstance(answers, dict) else answers
                yield as_row((" ".join(answer["answer"].split()), answer["score"]) for answer in answers)

        process_all(process, texts, input_file, output_file)
