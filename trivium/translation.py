"""Generate from any number of texts: translations and continuations, in batches of similar length."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trivium.modeling.pipeline_translation import EXTRA_LENGTH, cap_length

TEXTS_AT_ONCE = 2048  # sorted by length together
TOKENS_AT_ONCE = 4096  # in a batch, with padding, once for each beam, where `batch_size` is None
MAX_NEW_TOKENS = 256  # of a continuation, where neither the options nor the model say how many
MAX_TOKENS = 1024  # of a text to translate, unless the model is for longer ones
CHARACTERS_PER_TOKEN = 16  # more than there are: what comes after so many for each token is not even tokenized

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
    """Translate texts, each to one text, in their order; blank ones stay blank.

    An encoder-decoder translates them; a decoder-only model continues them, and what it adds is the answer.

    Texts of similar length share a batch, which saves padding. Texts are read as they are needed, so that any
    number of them may come.

    Args:
        model: An encoder-decoder or a decoder-only model.
        tokenizer: Its tokenizer; for a decoder-only model one that leaves texts open (`add_eos_token=False`).
        texts: What to translate, or to answer. For an encoder-decoder a text is cut, with a warning, after as many
            tokens as the model has learned positions, or after `max(1024, max_position_embeddings)`.
        batch_size: Texts in a batch; None: as many as have 4,096 tokens, with padding, and once for each beam.
        show_progress: Whether to count translated texts in a progress bar.
        **generation: What `generate()` takes; the rest is as saved with the model, except that a translation may be
            50 tokens longer than the longest text of its batch, as in the paper, if the model has the positions.

    Raises:
        ValueError: `generation` asks for several translations of a text, or `batch_size` is below 1.
    """
    if generation.get("num_return_sequences", 1) != 1:
        raise ValueError(
            f"num_return_sequences is {generation['num_return_sequences']}, but translate() gives one translation "
            "for each text: call model.generate() for several."
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

    def room(length: int) -> dict[str, int]:
        read = length if config.is_encoder_decoder else 2 * length  # a decoder's output begins with what it read
        return {"max_length": cap_length(config, read + EXTRA_LENGTH)}

    with tqdm(desc="Translating", unit=" texts", disable=not show_progress) as progress:
        for _, outputs in _generate(model, tokenizer, texts, encode, room, batch_size, progress, generation):
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
    """Continue texts, each with `num_return_sequences` continuations, in their order.

    Transformers' own pipeline samples unless told not to, loses spaces before punctuation in some of its versions,
    and does not know where learned positions end.

    Args:
        model: A decoder-only model.
        tokenizer: Its tokenizer, which leaves texts open (`add_eos_token=False`).
        texts: The beginnings; an empty one is the beginning-of-text token.
        batch_size: As for `translate`.
        show_progress: Whether to count texts in a progress bar.
        **generation: What `generate()` takes; the rest is as saved with the model. Without a length a continuation
            has at most 256 tokens, if the model has the positions.
    """

    def encode(texts: list[str], first: int) -> list[list[int]]:
        return [ids or [tokenizer.bos_token_id] for ids in tokenizer(texts)["input_ids"]]

    def room(length: int) -> dict[str, int]:
        longest = model.generation_config.max_new_tokens or MAX_NEW_TOKENS
        # Without room for one token the model raises the error that says so.
        return {"max_new_tokens": max(1, cap_length(model.config, length + longest) - length)}

    with tqdm(desc="Generating", unit=" texts", disable=not show_progress) as progress:
        for ids, outputs in _generate(model, tokenizer, texts, encode, room, batch_size, progress, generation):
            # Some tokenizers drop a space where decoding begins: decode the whole, then cut.
            beginning = tokenizer.decode(ids, skip_special_tokens=True)
            wholes = tokenizer.batch_decode([ids + output for output in outputs], skip_special_tokens=True)
            yield [whole[len(beginning) :] for whole in wholes]


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    encode: Callable[[list[str], int], list[list[int]]],
    room: Callable[[int], dict[str, int]],
    batch_size: int | None,
    progress: "tqdm[Any]",
    generation: dict[str, Any],
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Generate from texts in batches of similar length, and give the token ids of each and of its outputs, in order.

    Args:
        model: A model with `generate()`.
        tokenizer: Pads.
        texts: Read as they are needed.
        encode: Tokenizes a list of texts, given the number of the first, from 1; of no tokens nothing is generated.
        room: Gives the length options for a batch of a length, which those in `generation` replace.
        batch_size: Texts in a batch; None: as many as have `TOKENS_AT_ONCE` tokens.
        progress: Counts texts.
        generation: What `generate()` takes.
    """
    texts, first = iter(texts), 1
    is_decoder_only = not model.config.is_encoder_decoder
    beams = generation.get("num_beams") or model.generation_config.num_beams or 1
    while chunk := list(islice(texts, TEXTS_AT_ONCE)):
        input_ids = encode(chunk, first)
        outputs: list[list[list[int]]] = [[] for _ in chunk]
        order = sorted((i for i, ids in enumerate(input_ids) if ids), key=lambda i: -len(input_ids[i]))
        while order:
            length = len(input_ids[order[0]])
            count = batch_size or max(1, TOKENS_AT_ONCE // (length * beams))
            rows, order = order[:count], order[count:]
            inputs = tokenizer.pad(
                {"input_ids": [input_ids[i] for i in rows]},
                padding_side="left" if is_decoder_only else "right",  # a text ends where its continuation begins
                return_tensors="pt",
            )
            output = model.generate(**inputs.to(model.device), **{**room(length), **generation})
            new = output[:, length if is_decoder_only else 0 :]
            for i, found in zip(rows, new.unflatten(0, (len(rows), -1)).tolist(), strict=True):
                outputs[i] = found
            progress.update(len(rows))
        yield from zip(input_ids, outputs, strict=True)
        first += len(chunk)


def _encode_within(tokenizer: PreTrainedTokenizerBase, texts: list[str], first: int, limit: int) -> list[list[int]]:
    """Tokenize texts, and cut those of more than `limit` tokens, with a warning that has the number of the text."""
    longest = limit * CHARACTERS_PER_TOKEN
    input_ids: list[list[int]] = tokenizer([text[:longest] for text in texts])["input_ids"]
    for i, text in enumerate(texts):
        if len(text) > longest or len(input_ids[i]) > limit:
            input_ids[i] = tokenizer(text[:longest], truncation=True, max_length=limit)["input_ids"]
            logger.warning(
                "Text %d (line %d of a file) has %s characters, but only its first %s tokens are translated.",
                *(first + i, first + i, f"{len(text):,}", f"{limit:,}"),
            )
    return input_ids
