"""Translate or continue any number of texts, in batches of similar length."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trivium.modeling.pipeline_translation import EXTRA_LENGTH, cap_length

SORT_WINDOW = 2048  # number of texts that are read and sorted by length together
MAX_BATCH_TOKENS = 4096  # maximum padded tokens times beams per batch, if `batch_size` is None
MAX_NEW_TOKENS = 256  # maximum tokens of a continuation, if neither the call nor the generation config sets a length
MAX_TOKENS = 1024  # maximum tokens of a source text, unless max_position_embeddings is larger
# A generous upper bound: characters beyond this many per token of the limit are dropped before tokenization.
CHARACTERS_PER_TOKEN = 16

logger = logging.getLogger(__name__)


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    batch_size: int | None = None,
    show_progress: bool = False,
    **generation: Any,
) -> Iterator[str]:
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
        batch_size: Texts per batch; None: as many as fit in 4,096 tokens, counting padding and multiplied by beams.
        show_progress: Whether to show a progress bar.
        **generation: Arguments of `generate()`; the others default to the saved generation config, except that a
            translation may be 50 tokens longer than the longest text of its batch, as in the paper (section 6.1), as
            far as the model has positions.

    Raises:
        ValueError: `num_return_sequences` is not 1, or `batch_size` is below 1.
    """
    if generation.get("num_return_sequences", 1) != 1:
        raise ValueError(
            f"num_return_sequences is {generation['num_return_sequences']}, but must be 1: translate() returns "
            "one translation for each text. Call model.generate() for several."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
    config = model.config
    limit = cap_length(config, max(MAX_TOKENS, getattr(config, "max_position_embeddings", 0)))

    def encode(texts: list[str], first: int) -> list[list[int]]:
        if config.is_encoder_decoder:
            input_ids = _encode_within(tokenizer, texts, first, limit)
        else:
            input_ids = tokenizer(texts)["input_ids"]
        return [ids if text.strip() else [] for text, ids in zip(texts, input_ids, strict=True)]

    def length_options(length: int) -> dict[str, int]:
        # The output of a decoder-only model starts with its prompt.
        base = length if config.is_encoder_decoder else 2 * length
        return {"max_length": cap_length(config, base + EXTRA_LENGTH)}

    with tqdm(desc="Translating", unit=" texts", disable=not show_progress) as progress:
        for _, outputs in _generate(model, tokenizer, texts, encode, length_options, batch_size, progress, generation):
            yield tokenizer.decode(outputs[0], skip_special_tokens=True) if outputs else ""


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
        **generation: Arguments of `generate()`; the others default to the saved generation config. Without a length a
            continuation has at most 256 tokens, as far as the model has positions.
    """

    def encode(texts: list[str], first: int) -> list[list[int]]:
        return [ids or [tokenizer.bos_token_id] for ids in tokenizer(texts)["input_ids"]]

    def length_options(length: int) -> dict[str, int]:
        max_new_tokens = model.generation_config.max_new_tokens or MAX_NEW_TOKENS
        # At least 1: if no position is left, the model raises the error.
        return {"max_new_tokens": max(1, cap_length(model.config, length + max_new_tokens) - length)}

    with tqdm(desc="Generating", unit=" texts", disable=not show_progress) as progress:
        for ids, outputs in _generate(
            model, tokenizer, texts, encode, length_options, batch_size, progress, generation
        ):
            # Some tokenizers drop a leading space on decode: decode prompt and output together, then slice.
            prompt = tokenizer.decode(ids, skip_special_tokens=True)
            full_texts = tokenizer.batch_decode([ids + output for output in outputs], skip_special_tokens=True)
            yield [full_text[len(prompt) :] for full_text in full_texts]


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
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Generate in batches of similar length; yield the input ids and the output ids of each text, in input order.

    Args:
        model: A model with `generate()`.
        tokenizer: Tokenizer that pads the batches.
        texts: Input texts, consumed lazily.
        encode: Function that tokenizes a list of texts, given the number of the first text, counted from 1; a text
            without tokens yields no output.
        length_options: Function from the padded length of a batch to length arguments of `generate()`; `generation`
            overrides them.
        batch_size: Texts per batch; None: as many as fit in `MAX_BATCH_TOKENS`.
        progress: Progress bar, updated with the number of texts.
        generation: Arguments of `generate()`.
    """
    texts, first = iter(texts), 1
    is_decoder_only = not model.config.is_encoder_decoder
    beams = generation.get("num_beams") or model.generation_config.num_beams or 1
    while chunk := list(islice(texts, SORT_WINDOW)):
        input_ids = encode(chunk, first)
        outputs: list[list[list[int]]] = [[] for _ in chunk]
        order = sorted((i for i, ids in enumerate(input_ids) if ids), key=lambda i: -len(input_ids[i]))
        while order:
            length = len(input_ids[order[0]])
            count = batch_size or max(1, MAX_BATCH_TOKENS // (length * beams))
            rows, order = order[:count], order[count:]
            inputs = tokenizer.pad(
                {"input_ids": [input_ids[i] for i in rows]},
                padding_side="left" if is_decoder_only else "right",  # a prompt must end next to its continuation
                return_tensors="pt",
            )
            output = model.generate(**inputs.to(model.device), **{**length_options(length), **generation})
            new = output[:, length if is_decoder_only else 0 :]
            for i, sequences in zip(rows, new.unflatten(0, (len(rows), -1)).tolist(), strict=True):
                outputs[i] = sequences
            progress.update(len(rows))
        yield from zip(input_ids, outputs, strict=True)
        first += len(chunk)


def _encode_within(tokenizer: PreTrainedTokenizerBase, texts: list[str], first: int, limit: int) -> list[list[int]]:
    """Tokenize texts; truncate those of more than `limit` tokens, with a warning that names the text by its number."""
    max_characters = limit * CHARACTERS_PER_TOKEN
    input_ids: list[list[int]] = tokenizer([text[:max_characters] for text in texts])["input_ids"]
    for i, text in enumerate(texts):
        if len(text) > max_characters or len(input_ids[i]) > limit:
            input_ids[i] = tokenizer(text[:max_characters], truncation=True, max_length=limit)["input_ids"]
            logger.warning(
                "Text %d (line %d of a file) has %s characters, but only its first %s tokens are translated.",
                first + i,
                first + i,
                f"{len(text):,}",
                f"{limit:,}",
            )
    return input_ids
