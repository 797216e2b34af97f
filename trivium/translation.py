"""Generation from any number of texts, in sensible batches."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trivium.modeling.pipeline_translation import EXTRA_LENGTH, within_positions

TEXTS_AT_ONCE = 2048  # that are sorted by length together
TOKENS_AT_ONCE = 4096  # of a batch, its padding and each of its beams counted, where nobody says how many texts


@torch.inference_mode()
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

    An encoder-decoder translates them; a decoder-only model goes on from them, and what it adds is the answer.

    Texts of similar length share a batch, which saves padding. Texts are read as they are needed, so that any
    number of them may come.

    Args:
        model: An encoder-decoder or a decoder-only model.
        tokenizer: Its tokenizer; for a decoder-only model one that leaves texts open (`add_eos_token=False`).
        texts: What to translate, or to answer.
        batch_size: Texts that are translated at once; None: as many as have 4,096 tokens, with padding, and once for
            each beam.
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
    texts, reads_on = iter(texts), not model.config.is_encoder_decoder
    beams = generation.get("num_beams") or model.generation_config.num_beams or 1
    with tqdm(desc="Translating", unit=" texts", disable=not show_progress) as progress:
        while chunk := list(islice(texts, TEXTS_AT_ONCE)):
            translations = [""] * len(chunk)
            input_ids = tokenizer(chunk)["input_ids"]
            order = sorted((i for i, text in enumerate(chunk) if text.strip()), key=lambda i: -len(input_ids[i]))
            while order:
                length = len(input_ids[order[0]])
                count = batch_size or max(1, TOKENS_AT_ONCE // max(1, length * beams))
                rows, order = order[:count], order[count:]
                inputs = tokenizer.pad(
                    {"input_ids": [input_ids[i] for i in rows]},
                    padding_side="left" if reads_on else "right",
                    return_tensors="pt",
                )
                longest = within_positions(model.config, length * (1 + reads_on) + EXTRA_LENGTH)
                options = {"max_length": longest, **generation}
                output = model.generate(**inputs.to(model.device), **options)[:, length if reads_on else 0 :]
                for i, translation in zip(rows, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
                    translations[i] = translation
                progress.update(len(rows))
            yield from translations
