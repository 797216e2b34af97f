"""Inference commands: `trivium translate`, `generate`, `classify`, `fill-mask`."""

import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium_cli.common import BatchSize, Model, TrustRemoteCode, as_line, load, report_errors
from trivium_cli.decoding import (
    Beams,
    LengthPenalty,
    Sample,
    Seed,
    Temperature,
    TopK,
    TopP,
    search_options,
)
from trivium_cli.text_files import Input, Output, Texts, as_row, at_terminal, check_files, process_all
from trivium_cli.translators import (
    Engine,
    To,
    TranslationBatchSize,
    TranslationLength,
    check_tags,
    load_translator,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trivium.translation import Hypothesis

commands = typer.Typer()


@commands.command(epilog="Example: `trivium translate runs/numbers --input english.txt --output german.txt --beams 5`")
def translate(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Output = None,
    to: To = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    sample: Sample = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    max_length: TranslationLength = None,
    batch_size: TranslationBatchSize = None,
    n_best: Annotated[
        int | None,
        typer.Option(min=1, help="Number of translations per text, best first, as JSON lines; needs beam search."),
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Add the scores of the translations, as JSON lines; needs beam search.")
    ] = False,
    split_sentences: Annotated[
        bool,
        typer.Option("--split-sentences", help="Translate long texts sentence by sentence; needs sentencex."),
    ] = False,
    language: Annotated[
        str | None,
        typer.Option(
            help="With --split-sentences: ISO 639 code of the texts' language; by default from the model's recipe, "
            "or else en."
        ),
    ] = None,
    engine: Engine = "torch",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Translate texts from arguments, a file or standard input, one per line.

    Texts of more than 1,024 tokens are truncated with a warning, unless the model supports longer ones.
    `--split-sentences` gives better translations of such texts.

    With `--n-best` or `--scores`, each output line is a JSON object `{"source": ..., "translations": [...],
    "scores": [...]}`. A score is the log-probability of a translation divided by its number of tokens, to the power of
    the length penalty; without `--beams`, the number of beams is at least the number of translations, and at least 2.

    For an engine other than torch, the folder may be the output of `trivium convert` for this engine; any other saved
    model is first converted to a temporary folder.
    """
    options = search_options(
        beams=beams,
        length_penalty=length_penalty,
        sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_length=max_length,
    )
    if language and not split_sentences:
        raise typer.BadParameter("--language requires --split-sentences.")
    if (n_best or scores) and (sample or split_sentences):
        raise typer.BadParameter("--n-best and --scores cannot be combined with --sample or --split-sentences.")
    if split_sentences and find_spec("sentencex") is None:
        raise typer.BadParameter("--split-sentences needs sentencex, which is not installed: `pip install sentencex`.")
    with report_errors():
        check_files(texts, input_file, output_file)
        loaded, tokenizer = load_translator(model, engine, trust_remote_code=trust_remote_code)
        from transformers import set_seed

        from trivium.modeling.pipeline_translation import target_languages
        from trivium.translation import translate as translations_of

        set_seed(seed)
        options |= {"to": to, "batch_size": batch_size}
        languages = [] if to else target_languages(tokenizer)
        split_language = (language or _language_of(model)) if split_sentences else None

        def process(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            texts = check_tags(texts, languages)
            if not (n_best or scores):
                translations = translations_of(
                    loaded,
                    tokenizer,
                    texts,
                    split_language=split_language,
                    show_progress=show_progress,
                    **options,
                )
                yield from map(as_line, translations)
                return
            texts, sources = tee(texts)
            found = translations_of(
                loaded, tokenizer, texts, n_best=n_best or 1, show_progress=show_progress, **options
            )
            for hypotheses, source in zip(found, sources, strict=True):
                yield _as_json(source, hypotheses, scores)

        process_all(process, texts, input_file, output_file)


@commands.command(epilog='Example: `trivium generate runs/stories "Once upon a time" --sample --top-p 0.9 --num 3`')
def generate(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output file, with one JSON object per line.")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--num", "-n", min=1, help="Number of continuations per text; by default one.")
    ] = None,
    beams: Beams = None,
    sample: Sample = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum continuation length in tokens; by default 256.")
    ] = None,
    batch_size: BatchSize = 16,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Continue texts from arguments, a file or standard input, one per line.

    Without input at a terminal, the model generates one text from scratch, as it does for an empty text. Texts are
    printed with their continuations, which may contain line breaks. `--output` therefore writes a JSON object
    `{"prompt": ..., "continuations": [...]}` per line.
    """
    options = search_options(
        beams=beams,
        sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        num_return_sequences=number,
    )
    with report_errors():
        check_files(texts, input_file, output_file)
        loaded, tokenizer = load(model, "generate", trust_remote_code=trust_remote_code)
        from transformers import set_seed

        from trivium.translation import continue_texts

        saved = loaded.generation_config
        if number and number > (beams or saved.num_beams or 1) and not (sample or saved.do_sample):
            raise ValueError(f"--num is {number}: several continuations need --sample, or at least as many --beams.")
        set_seed(seed)

        def process(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            texts, prompts = tee(texts)
            continued = continue_texts(
                loaded, tokenizer, texts, batch_size=batch_size, show_progress=show_progress, **options
            )
            for continuations, prompt in zip(continued, prompts, strict=True):
                if output_file:
                    yield json.dumps({"prompt": prompt, "continuations": continuations}, ensure_ascii=False)
                else:
                    yield from (prompt + continuation for continuation in continuations)

        if not texts and not input_file and at_terminal():
            texts = [""]
        process_all(process, texts, input_file, output_file)


@commands.command(epilog='Example: `trivium classify runs/questions "How far is the moon?"`')
def classify(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Output = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Number of labels, best first; by default one, or all for multi-label models."),
    ] = None,
    batch_size: BatchSize = 64,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Classify texts from arguments, a file or standard input, one per line.

    Output is one line per text: labels and their scores, best first, separated by tabs. Scores are probabilities, or
    the predicted values of a regression. Blank texts yield blank lines.
    """
    with report_errors():
        check_files(texts, input_file, output_file)
        loaded, tokenizer = load(model, "classify", trust_remote_code=trust_remote_code)
        kind, labels = loaded.config.problem_type, loaded.config.num_labels
        is_regression = kind == "regression" or (kind is None and labels == 1)
        # Truncate as in training; top_k=None returns all labels.
        limit = loaded.config.max_position_embeddings
        options: dict[str, Any] = {"top_k": top_k, "truncation": True, "max_length": limit}
        if is_regression:
            options["function_to_apply"] = "none"
        elif top_k is None and kind != "multi_label_classification":
            options["top_k"] = 1

        def process(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            for best in _run_pipeline(
                "text-classification", loaded, tokenizer, texts, batch_size, show_progress, **options
            ):
                yield as_row((label["label"], label["score"]) for label in best)

        process_all(process, texts, input_file, output_file)


@commands.command("fill-mask", epilog='Example: `trivium fill-mask runs/words "Paris is the <mask> of France."`')
def fill_mask(
    model: Model,
    texts: Texts = None,
    input_file: Input = None,
    output_file: Output = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of predictions per mask, best first.")] = 5,
    batch_size: BatchSize = 64,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Predict the token at `<mask>` in texts from arguments, a file or standard input, one per line.

    Output is one line per text: tokens and their probabilities, best first, separated by tabs; for several masks,
    mask after mask. Blank texts yield blank lines.
    """
    with report_errors():
        check_files(texts, input_file, output_file)
        loaded, tokenizer = load(model, "fill-mask", trust_remote_code=trust_remote_code)

        def check_masks(texts: Iterable[str]) -> Iterator[str]:
            for text in texts:
                if text.strip() and tokenizer.mask_token not in text:
                    raise ValueError(f"A text has no {tokenizer.mask_token} to fill: {text!r}.")
                yield text

        def process(texts: Iterable[str], show_progress: bool) -> Iterator[str]:
            best = min(top_k, loaded.config.vocab_size)
            for found in _run_pipeline(
                "fill-mask", loaded, tokenizer, check_masks(texts), batch_size, show_progress, top_k=best
            ):
                # For several masks, the pipeline returns a list per mask.
                predictions = chain.from_iterable(found) if found and isinstance(found[0], list) else found
                yield as_row((token["token_str"], token["score"]) for token in predictions)

        process_all(process, texts, input_file, output_file)


def _as_json(source: str, hypotheses: list["Hypothesis"], with_scores: bool) -> str:
    """Format the translations of a text as a JSON object."""
    row: dict[str, Any] = {"source": source, "translations": [hypothesis.text for hypothesis in hypotheses]}
    if with_scores:
        row["scores"] = [hypothesis.score for hypothesis in hypotheses]
    return json.dumps(row, ensure_ascii=False)


def _language_of(folder: Path) -> str:
    """Return the source language from the recipe in a model's folder, or "en" if there is none."""
    from trivium.recipe import load_recipe
    from trivium.storage.names import RECIPE_FILE

    return load_recipe(folder).data.source if (folder / RECIPE_FILE).is_file() else "en"


def _run_pipeline(
    task: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    batch_size: int,
    show_progress: bool,
    **options: Any,
) -> Iterator[list[Any]]:
    """Run a transformers pipeline on texts, and yield its results in order; blank texts yield an empty list."""
    from tqdm.auto import tqdm
    from transformers import pipeline

    pipe = pipeline(task, model=model, tokenizer=tokenizer, device=model.device, trust_remote_code=False)
    texts, inputs = tee(texts)
    results = iter(pipe((text for text in texts if text.strip()), batch_size=batch_size, **options))
    for text in tqdm(inputs, desc=task, unit=" texts", disable=not show_progress):
        yield next(results) if text.strip() else []
