"""Commands that take texts: `trivium translate`, `generate`, `classify`, `fill-mask`."""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

from trivium_cli.common import (
    BatchSize,
    Beams,
    LengthPenalty,
    Model,
    TrustRemoteCode,
    as_line,
    as_lines,
    check_saved_model,
    finite,
    given,
    load,
    mistakes_explained,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

commands = typer.Typer()

Texts = Annotated[list[str] | None, typer.Argument(help="Texts; none: --input, or else standard input.")]
Input = Annotated[
    Path | None, typer.Option("--input", "-i", help="A file with a text a line.", exists=True, dir_okay=False)
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write here, a line for each text.")]
Sample = Annotated[bool, typer.Option("--sample", help="Sample tokens by their probability.")]
Temperature = Annotated[
    float | None, typer.Option(min=0.01, help="With --sample: above 1 is bolder, below 1 safer.", callback=finite)
]
TopK = Annotated[int | None, typer.Option(min=1, help="With --sample: only the k most likely tokens.")]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="With --sample: only the likeliest tokens with this total probability.", callback=finite
    ),
]
Engine = Annotated[
    Literal["torch", "ctranslate2", "onnx"],
    typer.Option(help="The engine that computes; CTranslate2 is faster, above all on a CPU."),
]
Seed = Annotated[int, typer.Option(help="With --sample: the same seed gives the same texts.")]


@commands.command(epilog="Example: `trivium translate runs/numbers --input english.txt --output german.txt --beams 5`")
def translate(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Output = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    sample: Sample = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Longest translation, in tokens; by default 50 more than the text has.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Texts in a batch; by default as many as have 4,096 tokens."),
    ] = None,
    engine: Engine = "torch",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Translate texts given as arguments, in a file, or line by line on standard input.

    A text of more than 1,024 tokens is cut, with a warning, unless the model is for longer ones.

    With another engine than torch the folder may be one that `trivium convert` made for it; any other is converted
    first, for this once.
    """
    _check_sampling(sample, temperature, top_k, top_p)
    if trust_remote_code and engine != "torch":
        raise typer.BadParameter("--trust-remote-code goes with --engine torch.")
    with mistakes_explained():
        _check_files(texts, input_file, output_file)
        if engine == "torch":
            loaded, tokenizer = load(model, "translate", trust_remote_code=trust_remote_code)
        else:
            loaded, tokenizer = _load_for_engine(model, engine)
        from transformers import set_seed

        from trivium.translation import translate as translations_of

        set_seed(seed)
        options = given(
            num_beams=beams,
            length_penalty=length_penalty,
            do_sample=sample or None,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_length=max_length,
        )

        def answer(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            translations = translations_of(
                loaded, tokenizer, texts, batch_size=batch_size, show_progress=show_progress, **options
            )
            return map(as_line, translations)

        _answer_all(answer, texts, input_file, output_file)


@commands.command(epilog='Example: `trivium generate runs/stories "Once upon a time" --sample --top-p 0.9 --num 3`')
def generate(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here, a line of JSON for each text.")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--num", "-n", min=1, help="Continuations of each text; by default one.")
    ] = None,
    beams: Beams = None,
    sample: Sample = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest continuation, in tokens; by default 256.")
    ] = None,
    batch_size: BatchSize = 16,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Continue texts given as arguments, in a file, or line by line on standard input.

    Without any of these, at a terminal, the model makes up a text from its beginning, as it does for an empty one.
    Texts are printed with their continuations, which may have line breaks. Since those would not be told apart in a
    file, `--output` has a line `{"prompt": ..., "continuations": [...]}` for each text.
    """
    _check_sampling(sample, temperature, top_k, top_p)
    with mistakes_explained():
        _check_files(texts, input_file, output_file)
        loaded, tokenizer = load(model, "generate", trust_remote_code=trust_remote_code)
        from transformers import set_seed

        from trivium.translation import continue_texts

        saved = loaded.generation_config
        if number and number > (beams or saved.num_beams or 1) and not (sample or saved.do_sample):
            raise ValueError(f"--num is {number}: several continuations need --sample, or at least so many --beams.")
        set_seed(seed)
        options = given(
            num_beams=beams,
            do_sample=sample or None,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            num_return_sequences=number,
        )

        def answer(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            texts, prompts = tee(texts)
            continued = continue_texts(
                loaded, tokenizer, texts, batch_size=batch_size, show_progress=show_progress, **options
            )
            for continuations, prompt in zip(continued, prompts, strict=True):
                if output_file:
                    yield json.dumps({"prompt": prompt, "continuations": continuations}, ensure_ascii=False)
                else:
                    yield from (prompt + continuation for continuation in continuations)

        if not texts and not input_file and _at_terminal():
            texts = [""]
        _answer_all(answer, texts, input_file, output_file)


@commands.command(epilog='Example: `trivium classify runs/questions "How far is the moon?"`')
def classify(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Output = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Number of labels, the best first; by default one, or all where several can hold."),
    ] = None,
    batch_size: BatchSize = 64,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Label texts given as arguments, in a file, or line by line on standard input.

    A line for each text: a label, its score, the next label, its score, and so on, with tabs between. Scores are
    probabilities, of a regression the numbers themselves. Blank texts stay blank.
    """
    with mistakes_explained():
        _check_files(texts, input_file, output_file)
        loaded, tokenizer = load(model, "classify", trust_remote_code=trust_remote_code)
        kind, labels = loaded.config.problem_type, loaded.config.num_labels
        is_regression = kind == "regression" or (kind is None and labels == 1)
        # Cut as in training; top_k None is all labels.
        limit = loaded.config.max_position_embeddings
        options: dict[str, Any] = {"top_k": top_k, "truncation": True, "max_length": limit}
        if is_regression:
            options["function_to_apply"] = "none"
        elif top_k is None and kind != "multi_label_classification":
            options["top_k"] = 1

        def answer(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            for best in _pipe("text-classification", loaded, tokenizer, texts, batch_size, show_progress, **options):
                yield _as_row((each["label"], each["score"]) for each in best)

        _answer_all(answer, texts, input_file, output_file)


@commands.command("fill-mask", epilog='Example: `trivium fill-mask runs/words "Paris is the <mask> of France."`')
def fill_mask(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Output = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of fillings, the best first.")] = 5,
    batch_size: BatchSize = 64,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Guess what `<mask>` stands for in texts given as arguments, in a file, or line by line on standard input.

    A line for each text: a filling, its probability, the next filling, its probability, and so on, with tabs between;
    where a text has several masks, first all for the first of them. Blank texts stay blank.
    """
    with mistakes_explained():
        _check_files(texts, input_file, output_file)
        loaded, tokenizer = load(model, "fill-mask", trust_remote_code=trust_remote_code)

        def masked(texts: Iterable[str]) -> Iterator[str]:
            for text in texts:
                if text.strip() and tokenizer.mask_token not in text:
                    raise ValueError(f"A text has no {tokenizer.mask_token} to fill: {text!r}.")
                yield text

        def answer(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            best = min(top_k, loaded.config.vocab_size)
            for found in _pipe("fill-mask", loaded, tokenizer, masked(texts), batch_size, show_progress, top_k=best):
                # Of several masks, the pipeline gives a list for each.
                fillings = chain.from_iterable(found) if found and isinstance(found[0], list) else found
                yield _as_row((each["token_str"], each["score"]) for each in fillings)

        _answer_all(answer, texts, input_file, output_file)


def _load_for_engine(folder: Path, engine: str) -> tuple[Any, "PreTrainedTokenizerBase"]:
    from trivium.interop.ctranslate2 import CTranslate2Model
    from trivium.interop.onnx import OnnxModel

    check_saved_model(folder)
    try:
        model: Any = (CTranslate2Model if engine == "ctranslate2" else OnnxModel).from_pretrained(folder)
    except ImportError as error:  # an extra that is not installed
        raise typer.BadParameter(str(error)) from error
    if not model.config.is_encoder_decoder:
        raise ValueError(f"{folder} holds no translator, so it is not for `trivium translate`.")
    return model, model.tokenizer


def _check_sampling(sample: bool, *options: float | None) -> None:
    if not sample and any(option is not None for option in options):
        raise typer.BadParameter("--temperature, --top-k and --top-p go with --sample.")


def _check_files(texts: list[str] | None, input_file: Path | None, output_file: Path | None) -> None:
    if texts and input_file:
        raise typer.BadParameter("Give texts or --input, not both.")
    if output_file and not output_file.parent.is_dir():
        raise FileNotFoundError(f"--output is {output_file}, but there is no folder {output_file.parent}.")


class _Answer(Protocol):
    def __call__(self, texts: Iterable[str], show_progress: bool) -> Iterator[str]: ...


def _answer_all(answer: _Answer, texts: list[str] | None, input_file: Path | None, output_file: Path | None) -> None:
    """Read texts, and write or print the answers to them."""
    from trivium.data import decode_lines, read_lines
    from trivium.storage.atomic import write_whole

    if not (texts or input_file) and sys.stdin is None:
        raise ValueError("There is nothing to read: standard input is closed. Give texts, or --input with a file.")
    # As bytes: Python's own decoding lets through what is not UTF-8, depending on the locale.
    lines = texts or (read_lines(input_file) if input_file else decode_lines(sys.stdin.buffer, "standard input"))
    if texts or input_file or not _at_terminal():
        answers = answer(lines, show_progress=not texts)
    else:  # an answer to every line, not to a batch
        answers = (each for line in lines for each in answer([line], show_progress=False))
    if output_file:
        write_whole(output_file, as_lines(answers))
    else:
        for each in answers:
            print(each, flush=True)


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _pipe(
    task: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    batch_size: int,
    show_progress: bool,
    **options: Any,
) -> Iterator[list[Any]]:
    """Run transformers' pipeline for a task on texts, and give its results in their order; none for blank texts."""
    from tqdm.auto import tqdm
    from transformers import pipeline

    pipe = pipeline(task, model=model, tokenizer=tokenizer, device=model.device, trust_remote_code=False)
    texts, again = tee(texts)
    results = iter(pipe((text for text in texts if text.strip()), batch_size=batch_size, **options))
    for text in tqdm(again, desc=task, unit=" texts", disable=not show_progress):
        yield next(results) if text.strip() else []


def _as_row(scores: Iterable[tuple[str, float]]) -> str:
    """Write names and scores with tabs between; a tab or line break in a name is written as in Python."""
    escapes = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
    return "\t".join(f"{name.translate(escapes)}\t{score:.4f}" for name, score in scores)
