"""Translate or continue any number of texts, in batches of similar length."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, overload

import torch
from tqdm.auto import tqdm
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from trivium.modeling.generation import TriviumGenerationMixin
from trivium.modeling.pipeline_translation import EXTRA_LENGTH, cap_length, find_tag

SORT_WINDOW = 2048  # number of texts that are read and sorted by length together
MAX_BATCH_TOKENS = 4096  # maximum padded tokens times beams per batch, if `batch_size` is None
MAX_NEW_TOKENS = 256  # maximum tokens of a continuation if neither the call nor the generation config sets a length
MAX_TOKENS = 1024  # maximum tokens of a source text, unless max_position_embeddings is larger
LENGTHS = ("max_length", "max_new_tokens")  # arguments of `generate()`
UNLIMITED = 2**31  # more tokens than any model has positions
# A generous upper bound: texts with more characters per token of the limit are cut before tokenization.
CHARACTERS_PER_TOKEN = 16

logger = logging.getLogger(__name__)


class Hypothesis(NamedTuple):
    """A translation and its score.

    Attributes:
        text: The translation.
        score: The summed log-probabilities of its tokens, divided by their number to the power of `length_penalty`:
            the `sequences_scores` of transformers.
    """

    text: str
    score: float


@overload
def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    to: str | None = None,
    n_best: None = None,
    split_language: str | None = None,
    batch_size: int | None = None,
    show_progress: bool = False,
    **generation: Any,
) -> Iterator[str]: ...
@overload
def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    to: str | None = None,
    n_best: int,
    batch_size: int | None = None,
    show_progress: bool = False,
    **generation: Any,
) -> Iterator[list[Hypothesis]]: ...
def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    to: str | None = None,
    n_best: int | None = None,
    split_language: str | None = None,
    batch_size: int | None = None,
    show_progress: bool = False,
    **generation: Any,
) -> Iterator[Any]:
    """Yield one translation for each text, in input order; blank texts yield empty strings.

    An encoder-decoder translates the texts; a decoder-only model continues them, and only the continuation is
    returned.

    Texts of similar length are batched together to reduce padding. The input is consumed lazily, so it may be a
    stream.

    Args:
        model: An encoder-decoder or a decoder-only model.
        tokenizer: Its tokenizer; for a decoder-only model one that does not append EOS (`add_eos_token=False`).
        texts: Source texts or prompts. For an encoder-decoder a text is truncated, with a warning, to the number of
            learned positions of the model, or to `max(1024, max_position_embeddings)` tokens.
        to: Target language of a multilingual model, whose tag is prepended to each text; None for texts that already
            start with a tag, or for a model with a single direction.
        n_best: Yield a list of this many translations with their scores (`Hypothesis`) instead of one translation,
            best first; a blank text yields an empty list. Unless `num_beams` is passed, at least `n_best` and at least
            2 beams are used.
        split_language: ISO 639 code of the texts' language, to translate sentence by sentence; needs sentencex.
        batch_size: Texts per batch; None for as many as fit in 4,096 tokens, including padding and multiplied by
            beams.
        show_progress: Whether to show a progress bar.
        **generation: Arguments of `generate()`; unset arguments default to the saved generation config, except that a
            translation may be 50 tokens longer than the longest text of its batch, as in the paper (section 6.1), up
            to the number of positions of the model.

    Raises:
        ImportError: `split_language` is set, but sentencex is not installed.
        ValueError: `num_return_sequences` is not 1; `batch_size` or `n_best` is below 1; the model does not translate
            to `to`; or `n_best` is set, but the search is not a beam search with at least as many beams, or
            `split_language` is set as well.
    """
    if generation.get("num_return_sequences", 1) != 1:
        raise ValueError(
            f"num_return_sequences is {generation['num_return_sequences']}, but must be 1: translate() returns "
            "one translation for each text. Set n_best for several."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
    options: dict[str, Any] = {"to": to, "batch_size": batch_size, "show_progress": show_progress}
    if n_best is not None:
        generation = _n_best_options(model, n_best, split_language, generation)
        found = _translations(model, tokenizer, texts, **options, **generation)
        return (list(map(Hypothesis, texts, scores)) for texts, scores in found)
    if split_language is not None:
        return _translate_by_sentence(model, tokenizer, texts, split_language, **options, **generation)
    found = _translations(model, tokenizer, texts, **options, **generation)
    return (texts[0] if texts else "" for texts, _ in found)


def _n_best_options(
    model: PreTrainedModel, n_best: int, split_language: str | None, generation: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `generate()` for a beam search that returns scores."""
    saved = model.generation_config
    beams = generation.get("num_beams") or max(saved.num_beams or 1, n_best, 2)
    if n_best < 1:
        raise ValueError(f"n_best is {n_best}, but must be at least 1.")
    if beams < (fewest := max(n_best, 2)):
        raise ValueError(
            f"n_best is {n_best} and num_beams is {beams}, but num_beams must be at least {fewest}: only beam search "
            "has scores."
        )
    if generation.get("do_sample", saved.do_sample):
        raise ValueError(f"n_best is {n_best} and do_sample is True, but needs beam search. Set do_sample=False.")
    if split_language is not None:
        raise ValueError(
            f"n_best is {n_best} and split_language is {split_language!r}, but only whole texts have scores. Leave "
            "out one of them."
        )
    options: dict[str, Any] = {"num_beams": beams, "num_return_sequences": n_best, "return_dict_in_generate": True}
    if isinstance(model, GenerationMixin) and not isinstance(model, TriviumGenerationMixin):
        options["output_scores"] = True  # Only Trivium's models return `sequences_scores` without it.
    return {**generation, **options}


def _translate_by_sentence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], language: str, **options: Any
) -> Iterator[str]:
    """Yield the translation of each text, translated sentence by sentence."""
    # Imported here, because the package imports datasets, which takes a second.
    from trivium.data.sentences import join_sentences, split_sentences

    pending: deque[list[str]] = deque()  # Sentences of the texts that have been read, but not yielded yet.

    def sentences() -> Iterator[str]:
        for text in texts:
            pending.append(split_sentences(text, language))
            yield from (sentence.strip() for sentence in pending[-1])

    found = _translations(model, tokenizer, sentences(), **options, place="Sentence {0}")
    translations = (texts[0] if texts else "" for texts, _ in found)
    for first in translations:
        group = pending.popleft()
        yield join_sentences([first, *islice(translations, len(group) - 1)], group)


def _translations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    to: str | None,
    batch_size: int | None,
    show_progress: bool,
    place: str = "Text {0} (line {0} of a file)",
    **generation: Any,
) -> Iterator[tuple[list[str], list[float]]]:
    """Yield the translations of each text and, if `generation` requests them, their scores; none for blank texts.

    `place` formats the number of a text for warnings.
    """
    config = model.config
    limit = cap_length(config, max(MAX_TOKENS, getattr(config, "max_position_embeddings", 0)))
    tag = "" if to is None else find_tag(tokenizer, to)

    def encode(texts: list[str], first: int) -> list[list[int]]:
        tagged = [tag + text for text in texts]
        if config.is_encoder_decoder:
            input_ids = _encode_within(tokenizer, tagged, first, limit, place)
        else:
            input_ids = tokenizer(tagged)["input_ids"]
        return [ids if text.strip() else [] for text, ids in zip(texts, input_ids, strict=True)]

    def length_options(length: int) -> dict[str, int]:
        # A decoder-only model's output starts with the prompt, an encoder-decoder's output with the start token.
        prefix = 1 if config.is_encoder_decoder else length
        saved = model.generation_config.max_new_tokens
        total = prefix + saved if saved else (length if config.is_encoder_decoder else 2 * length) + EXTRA_LENGTH
        return {"max_length": cap_length(config, total)}

    with tqdm(desc="Translating", unit=" texts", disable=not show_progress) as progress:
        for _, outputs, scores in _generate(
            model, tokenizer, texts, encode, length_options, batch_size, progress, generation
        ):
            yield tokenizer.batch_decode(outputs, skip_special_tokens=True) if outputs else [], scores


def continue_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    batch_size: int | None = None,
    show_progress: bool = False,
    **generation: Any,
) -> Iterator[list[str]]:
    """Yield a list of `num_return_sequences` continuations for each text, in input order.

    Transformers' text-generation pipeline samples by default, drops spaces before punctuation in some versions, and
    does not respect the limit of learned positions.

    Args:
        model: A decoder-only model.
        tokenizer: Its tokenizer, which does not append EOS (`add_eos_token=False`).
        texts: Prompts; an empty prompt becomes the BOS token.
        batch_size: As in `translate`.
        show_progress: Whether to show a progress bar.
        **generation: Arguments of `generate()`; unset arguments default to the saved generation config. If no length
            is set, a continuation has at most 256 tokens, within the number of positions of the model.
    """

    def encode(texts: list[str], first: int) -> list[list[int]]:
        return [ids or [tokenizer.bos_token_id] for ids in tokenizer(texts)["input_ids"]]

    def length_options(length: int) -> dict[str, int]:
        saved = model.generation_config
        max_new_tokens = saved.max_new_tokens or MAX_NEW_TOKENS
        total = length + max_new_tokens
        if saved.max_length and not saved.max_new_tokens:
            total = min(total, saved.max_length)
        # At least 1: if no position is left, the model raises the error.
        return {"max_new_tokens": max(1, cap_length(model.config, total) - length)}

    with tqdm(desc="Generating", unit=" texts", disable=not show_progress) as progress:
        for ids, outputs, _ in _generate(
            model, tokenizer, texts, encode, length_options, batch_size, progress, generation
        ):
            # Some tokenizers drop a leading space on decode: decode prompt and output together, then slice.
            prompt = tokenizer.decode(ids, skip_special_tokens=True)
            full_texts = tokenizer.batch_decode([ids + output for output in outputs], skip_special_tokens=True)
            yield [full_text[len(prompt) :] for full_text in full_texts]


def default_lengths(config: PreTrainedConfig, max_length: int) -> dict[str, int]:
    """Return the length limit to save with a trained model; without one, `generate()` stops after 20 new tokens.

    Args:
        config: The configuration of the model.
        max_length: Maximum number of tokens in a training text.

    Returns:
        `max_length` for an encoder-decoder; `max_new_tokens`, at most 256, for a decoder-only model; or `max_length`
        if the model's positions are limited, because prompt and continuation share them.
    """
    if config.is_encoder_decoder:
        return {"max_length": cap_length(config, max_length)}
    if cap_length(config, UNLIMITED) < UNLIMITED:
        return {"max_length": cap_length(config, UNLIMITED)}
    return {"max_new_tokens": min(MAX_NEW_TOKENS, max_length)}


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    encode: Callable[[list[str], int], list[list[int]]],
    length_options: Callable[[int], dict[str, int]],
    batch_size: int | None,
    progress: "tqdm[Any]",
    generation: dict[str, Any],
) -> Iterator[tuple[list[int], list[list[int]], list[float]]]:
    """Generate in batches of similar length; yield the input ids, output ids and scores of each text, in input order.

    Args:
        model: A model with `generate()`.
        tokenizer: Tokenizer that pads the batches.
        texts: Input texts, consumed lazily.
        encode: Function that tokenizes a list of texts; its second argument is the number of the first text, counted
            from 1. A text without tokens yields no output.
        length_options: Function that returns the length argument of `generate()` for the padded length of a batch; a
            length argument in `generation` takes precedence.
        batch_size: Texts per batch; None for as many as fit in `MAX_BATCH_TOKENS`.
        progress: Progress bar, updated with the number of texts.
        generation: Arguments of `generate()`; the scores are empty without `return_dict_in_generate`.
    """
    texts, first = iter(texts), 1
    is_decoder_only = not model.config.is_encoder_decoder
    beams = generation.get("num_beams") or model.generation_config.num_beams or 1
    while chunk := list(islice(texts, SORT_WINDOW)):
        input_ids = encode(chunk, first)
        outputs: list[list[list[int]]] = [[] for _ in chunk]
        scores: list[list[float]] = [[] for _ in chunk]
        order = sorted((i for i, ids in enumerate(input_ids) if ids), key=lambda i: -len(input_ids[i]))
        while order:
            length = len(input_ids[order[0]])
            count = batch_size or max(1, MAX_BATCH_TOKENS // (length * beams))
            rows, order = order[:count], order[count:]
            inputs = tokenizer.pad(
                {"input_ids": [input_ids[i] for i in rows]},
                # A prompt is padded on the left, so that its continuation follows it directly.
                padding_side="left" if is_decoder_only else "right",
                return_tensors="pt",
            )
            limits = {name: generation[name] for name in LENGTHS if generation.get(name) is not None}
            # Set the other length argument to None: if both are set, transformers ignores `max_length` with a warning.
            limits = {**dict.fromkeys(LENGTHS), **(limits or length_options(length))}
            output = model.generate(**inputs.to(model.device), **{**generation, **limits})
            new = getattr(output, "sequences", output)[:, length if is_decoder_only else 0 :]
            for i, sequences in zip(rows, new.unflatten(0, (len(rows), -1)).tolist(), strict=True):
                outputs[i] = sequences
            if generation.get("return_dict_in_generate"):
                by_text = output.sequences_scores.unflatten(0, (len(rows), -1)).tolist()
                for i, found in zip(rows, by_text, strict=True):
                    scores[i] = found
            progress.update(len(rows))
        yield from zip(input_ids, outputs, scores, strict=True)
        first += len(chunk)


def _encode_within(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], first: int, limit: int, place: str
) -> list[list[int]]:
    """Tokenize texts; truncate texts of more than `limit` tokens, with a warning that states the text's number."""
    max_characters = limit * CHARACTERS_PER_TOKEN
    input_ids: list[list[int]] = tokenizer([text[:max_characters] for text in texts])["input_ids"]
    for i, text in enumerate(texts):
        if len(text) > max_characters or len(input_ids[i]) > limit:
            input_ids[i] = tokenizer(text[:max_characters], truncation=True, max_length=limit)["input_ids"]
            logger.warning(
                "%s has %s characters, but only its first %s tokens are translated.",
                place.format(first + i),
                f"{len(text):,}",
                f"{limit:,}",
            )
    return input_ids
