"""Incremental decoder for the searches of `decoding`: it reads the prompts, then one token at a time."""

from functools import cached_property
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from .attention import NO_CONTEXT
from .configuration_trivium import TriviumConfig
from .decoding_step import PlainLayers, is_plain, plain_head
from .positions import LearnedPositions, token_positions


def _self_attention_cache(config: TriviumConfig) -> DynamicCache:
    """Return an empty cache for the decoder's keys and values, limited to the sliding window if there is one."""
    if config.sliding_window is None:
        return DynamicCache()  # a cache made from a configuration copies it, which takes milliseconds
    return DynamicCache(config=config.decoder_only())


class IncrementalDecoder:
    """Decoder that reads the prompts (prefill), then one token of every row at a time.

    Args:
        model: A model with a decoder and a projection to the vocabulary.
        input_ids: (rows, prompt_len), with the beams of a sentence in consecutive rows.
        num_beams: Number of rows of each sentence.
        attention_mask: (rows, source_len) for an encoder-decoder, otherwise (rows, prompt_len).
        encoder_outputs: Output of the encoder.
        **kwargs: Ignored: further model inputs of `generate()`, which are derived from the arguments above.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        num_beams: int = 1,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> None:
        self.head, self.decoder, self.num_beams = plain_head(model.lm_head), model.model.decoder, num_beams
        self.prompts = input_ids[::num_beams]
        self.self_cache, self.cross_cache = _self_attention_cache(self.decoder.config), DynamicCache()
        self.cache: Cache = self.self_cache
        self.mask: torch.Tensor | None = None
        self.memory: torch.Tensor | None = None
        self.memory_context = NO_CONTEXT
        mask = None if attention_mask is None else attention_mask[::num_beams]
        if encoder_outputs is not None:
            self.cache = EncoderDecoderCache(self.self_cache, self.cross_cache)
            memory = encoder_outputs[0][::num_beams]
            # The mask of one query, (batch, 1, 1, source_len), serves all beams of a sentence at every step.
            self.memory, self.memory_context = self.decoder.prepare_memory(memory, mask, memory[:, :1])
        elif mask is not None and not mask.all():
            self.mask = mask

    def prefill(self) -> torch.Tensor:
        """Read the prompts and return the logits of the next tokens, (rows, vocabulary).

        A prompt is read once, then its keys, values and logits are repeated for the beams of its sentence.
        """
        logits = self._read(self.prompts)
        if self.mask is not None:
            self.mask = self.mask.repeat_interleave(self.num_beams, dim=0)
        self.self_cache.batch_repeat_interleave(self.num_beams)
        return logits.repeat_interleave(self.num_beams, dim=0)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one token of every row, (rows,), and return the next-token logits, (rows, vocabulary)."""
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(tokens), 1)), dim=1)
        return self._read(tokens[:, None])

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        embed_positions, past_length = self.decoder.embed_positions, self.self_cache.get_seq_length()
        if isinstance(embed_positions, LearnedPositions):
            embed_positions.check_length(past_length + ids.shape[1])
        states = self.decoder.embed_tokens(ids)  # (rows, tokens to read, d_model)
        # A single token attends to the whole cache, which never exceeds the window, so it needs no mask.
        if self.mask is None and ids.shape[1] == 1:
            position_ids, context = token_positions(None, 1, past_length, ids.device), NO_CONTEXT
        else:
            position_ids, context = self.decoder.prepare(states, self.mask, cache=self.self_cache)
        if past_length and ids.shape[1] == 1 and self.plain_layers is not None:
            states = self.plain_layers(states, position_ids, context, self.memory_context)
        else:
            states = self.decoder.run_layers(
                states, position_ids, context, self.memory, self.memory_context, cache=self.cache
            )
        return self.head(states[:, -1:])[:, -1].float()

    @cached_property
    def plain_layers(self) -> PlainLayers | None:
        """The decoder's layers for one token of every row, or None if its modules have to be called."""
        return PlainLayers(self.decoder, self.self_cache, self.cross_cache) if is_plain(self.decoder) else None

    def select(self, rows: torch.Tensor, sentences: torch.Tensor | None = None) -> None:
        """Select rows by index, in this order; a row may be selected more than once.

        Args:
            rows: (rows to keep,), indices of rows.
            sentences: (sentences to keep,), indices of the sentences that the rows belong to; None keeps all.
        """
        self.self_cache.reorder_cache(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]
        if self.memory is not None and sentences is not None:
            self.cross_cache.reorder_cache(sentences)
            self.memory = self.memory[sentences]
            if (mask := self.memory_context.mask) is not None:
                self.memory_context = self.memory_context._replace(mask=mask[sentences])
