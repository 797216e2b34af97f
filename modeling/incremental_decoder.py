"""A decoder that reads prompts, then token after token, for the searches of `decoding`."""

from functools import cached_property
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from .attention import NO_CONTEXT
from .decoding_step import PlainLayers, is_plain, plain_head
from .positions import LearnedPositions, token_positions


class IncrementalDecoder:
    """Decoder that reads the prompts (prefill), then one token of every row at a time.

    Args:
        model: A model with a decoder and a projection to the vocabulary.
        input_ids: (rows, prompt_len), the beams of a sentence one after the other.
        num_beams: Rows of each sentence.
        attention_mask: (rows, source_len) of an encoder-decoder, else (rows, prompt_len).
        encoder_outputs: Output of the encoder.
        **kwargs: Other arguments of `generate()`, which follow from these.
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
        self.self_cache, self.cross_cache = DynamicCache(), DynamicCache()
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
        """Read (rows,) tokens and return the logits of the next ones, (rows, vocabulary)."""
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(tokens), 1)), dim=1)
        return self._read(tokens[:, None])

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        embed_positions, past_length = self.decoder.embed_positions, self.self_cache.get_seq_length()
        if isinstance(embed_positions, LearnedPositions):
            embed_positions.check_length(past_length + ids.shape[1])
        states = self.decoder.embed_tokens(ids)  # (rows, tokens to read, d_model)
        if self.mask is None and ids.shape[1] == 1:  # it sees the whole cache: no mask, which saves time
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
        """The decoder's layers for one token of every row; None if its modules have to be called."""
        return PlainLayers(self.decoder, self.self_cache, self.cross_cache) if is_plain(self.decoder) else None

    def select(self, rows: torch.Tensor, sentences: torch.Tensor | None = None) -> None:
        """Keep these rows, in this order; a row may be taken more than once.

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
