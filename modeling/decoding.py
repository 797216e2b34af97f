"""How `generate()` searches for tokens: greedily or with beams, in a batch that sentences leave as they end.

Both searches find what transformers' loops find. They stand in for them where nothing is asked for that only those can
do, and are faster, for what has ended is not computed on, the beams of a sentence share the keys and values of its
source, and a step is the decoder's layers and little else.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import (
    EosTokenCriteria,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerationMode,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from .attention import AttentionContext
from .positions import LearnedPositions, token_positions

# Those that look at each row by itself, whatever other rows there are.
PROCESSORS = {
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensLogitsProcessor,
}
INPUTS = {"attention_mask", "encoder_outputs", "logits_to_keep", "position_ids", "use_cache", "cache"}
NEVER = -1e9  # the score of what is not to be chosen


class TriviumGenerationMixin(GenerationMixin):
    """transformers' `generate()`, with searches of our own for what is mostly asked for: sequences, and no more."""

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        *sizes: Any,
    ) -> None:
        """As in transformers, but a search of ours makes its own cache, not to shrink one that somebody brings."""
        ours = generation_mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.BEAM_SEARCH)
        if not ours or not self._is_plain(generation_config) or model_kwargs.get("cache") is not None:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *sizes)

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        if not self._searches_itself(input_ids, logits_processor, stopping_criteria, generation_config, kwargs):
            return super()._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        with torch.inference_mode():
            found = greedy_search(Steps(self, input_ids, **kwargs), input_ids, logits_processor, generation_config)
        return found.clone()  # which may be changed in place, as nothing made in inference mode may

    def _beam_search(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        if not self._searches_itself(input_ids, logits_processor, stopping_criteria, generation_config, kwargs):
            return super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        beams = generation_config.num_beams
        with torch.inference_mode():
            steps = Steps(self, input_ids, beams, **kwargs)
            found = beam_search(steps, input_ids[::beams], logits_processor, generation_config)
        return found.clone()

    def _searches_itself(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        inputs: dict[str, Any],
    ) -> bool:
        """Whether our searches can do all that is asked for."""
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        return (
            self._is_plain(generation_config)
            and input_ids.device == self.device
            and (mask is None or mask.ndim == 2)
            and (positions is None or counts_real_tokens(positions, mask))
            and all(inputs[name] is None or inputs[name] is False for name in inputs.keys() - INPUTS)
            and inputs.get("cache") is None
            and {type(each) for each in logits_processor} <= PROCESSORS
            and {type(each) for each in stopping_criteria} <= {EosTokenCriteria, MaxLengthCriteria}
        )

    def _is_plain(self, generation_config: GenerationConfig) -> bool:
        """Whether sequences are wanted and nothing else, from a model that nobody has changed how it is called."""
        return not (
            generation_config.do_sample
            or generation_config.return_dict_in_generate
            or generation_config.use_cache is False
            or generation_config.cache_implementation
            or generation_config.prefill_chunk_size
            or generation_config.is_assistant
            or self.config._attn_implementation not in ("eager", "sdpa")
            or any(is_called_otherwise(module) for module in (self, self.model, self.model.decoder))
        )


def counts_real_tokens(position_ids: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether positions, (rows, length), are those that a decoder has by itself, as `generate()` makes them."""
    expected = token_positions(mask, position_ids.shape[-1], 0, position_ids.device)
    differs = position_ids != expected
    return not (differs if mask is None else differs & (mask != 0)).any()


def is_called_otherwise(module: nn.Module) -> bool:
    """Whether more happens than our `forward` when a module is called: that of a subclass, a compiled one, hooks."""
    package = __name__.rpartition(".")[0]
    return (
        type(module).forward.__module__.rpartition(".")[0] != package
        or "forward" in vars(module)
        or module._compiled_call_impl is not None
        or bool(module._forward_hooks or module._forward_pre_hooks)
    )


class Steps:
    """A decoder that reads prompts and then a token of every row at a time.

    Args:
        model: What has the decoder, and a projection to the vocabulary.
        input_ids: (rows, prompt_len), the rows of one sentence, its beams, one after the other.
        beams: How many.
        attention_mask: (rows, source_len) of an encoder-decoder, else (rows, prompt_len).
        encoder_outputs: What the encoder returned.
        **kwargs: What else `generate()` hands over, which follows from these.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        beams: int = 1,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> None:
        self.head, self.decoder, self.config = model.lm_head, model.model.decoder, model.config
        self.beams, self.prompts = beams, input_ids[::beams]
        self.length = 0  # of what has been read
        mask = None if attention_mask is None else attention_mask[::beams]
        self.own_cache, self.cross_cache = DynamicCache(), DynamicCache()
        self.cache: Cache = self.own_cache
        self.mask, self.memory, self.memory_mask = mask, None, None
        if encoder_outputs is not None:
            self.cache = EncoderDecoderCache(self.own_cache, self.cross_cache)
            self.mask, self.memory = None, encoder_outputs[0][::beams]
            self.memory_mask = create_bidirectional_mask(  # for all steps alike, each of which has one query
                config=self.config,
                inputs_embeds=self.memory[:, :1],
                attention_mask=mask,
                encoder_hidden_states=self.memory,
            )
        elif mask is not None and mask.all():
            self.mask = None

    def read_prompts(self) -> torch.Tensor:
        """Logits, (rows, vocabulary), of what comes after the prompts, those of all beams alike."""
        logits = self._read(self.prompts)
        if self.mask is not None:
            self.mask = self.mask.repeat_interleave(self.beams, dim=0)
        self.own_cache.batch_repeat_interleave(self.beams)
        return logits.repeat_interleave(self.beams, dim=0)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, (rows, vocabulary), of what comes after (rows,) tokens."""
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(tokens), 1)), dim=1)
        return self._read(tokens[:, None])

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        embed_positions, count = self.decoder.embed_positions, ids.shape[1]
        if isinstance(embed_positions, LearnedPositions):
            embed_positions.check_length(self.length + count)
        mask, states = None, self.decoder.embed_tokens(ids)
        if self.mask is not None or count > 1:
            mask = create_causal_mask(
                config=self.config, inputs_embeds=states, attention_mask=self.mask, cache=self.own_cache
            )
        positions = token_positions(self.mask, count, self.length, ids.device)
        self.length += count
        context, memory_context = AttentionContext(mask), AttentionContext(self.memory_mask)
        states = self.decoder.run_layers(states, positions, context, self.memory, memory_context, cache=self.cache)
        return self.head(states[:, -1:])[:, -1].float()

    def keep(self, sentences: torch.Tensor | None, rows: torch.Tensor) -> None:
        """Go on with other rows, as a search with beams wants after each step, and perhaps with fewer sentences.

        Args:
            sentences: (sentences that stay,), which of those that there are; None: all.
            rows: (rows from now on,), from which of those that there are each one comes.
        """
        self.own_cache.reorder_cache(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]
        if self.memory is not None and sentences is not None:
            self.cross_cache.reorder_cache(sentences)
            self.memory = self.memory[sentences]
            if self.memory_mask is not None:
                self.memory_mask = self.memory_mask[sentences]


def greedy_search(
    steps: Steps, prompts: torch.Tensor, processors: LogitsProcessorList, config: GenerationConfig
) -> torch.Tensor:
    """Take the likeliest token each time, until every sentence has ended or is `config.max_length` long.

    Returns:
        (sentences, length), the prompts, (sentences, prompt_len), among it.
    """
    eos, pad = config._eos_token_tensor, config._pad_token_tensor
    written = prompts.new_full((len(prompts), config.max_length), 0 if pad is None else pad)
    written[:, : prompts.shape[1]] = prompts
    running = torch.arange(len(prompts), device=prompts.device)
    logits = steps.read_prompts()
    for length in range(prompts.shape[1], config.max_length):
        tokens = processors(written[running, :length], logits).argmax(dim=-1) if processors else logits.argmax(dim=-1)
        written[running, length] = tokens
        if eos is not None and (ends := torch.isin(tokens, eos)).any():
            going_on = (~ends).nonzero().squeeze(1)
            if len(going_on) == 0:
                return written[:, : length + 1]
            running, tokens = running[going_on], tokens[going_on]
            steps.keep(going_on, going_on)
        if length + 1 < config.max_length:
            logits = steps.read(tokens)
    return written


class Beams(NamedTuple):
    """Sequences of each sentence, (sentences, any number, ...)."""

    scores: torch.Tensor  # summed log-probabilities, or, of those that have ended, what is compared
    ids: torch.Tensor  # (..., max_length)
    lengths: torch.Tensor  # of those that have ended, 0 of others

    def take(self, which: torch.Tensor) -> "Beams":
        """Those of each sentence that (sentences, some number) indices say."""
        ids = self.ids.gather(1, which[..., None].expand(-1, -1, self.ids.shape[-1]))
        return Beams(self.scores.gather(1, which), ids, self.lengths.gather(1, which))

    def of(self, sentences: torch.Tensor) -> "Beams":
        """Those of some sentences."""
        return Beams(*(each[sentences] for each in self))


def beam_search(
    steps: Steps, prompts: torch.Tensor, processors: LogitsProcessorList, config: GenerationConfig
) -> torch.Tensor:
    """Keep the `config.num_beams` likeliest beginnings of each sentence, and the best sequences that have ended.

    A sentence is done when no beginning can become better than the worst of them, by transformers' reckoning:
    `config.early_stopping` says when that is, and `config.length_penalty` what is better.

    Returns:
        (sentences * config.num_return_sequences, length), the prompts, (sentences, prompt_len), among it.
    """
    eos, pad, beams = config._eos_token_tensor, config._pad_token_tensor, config.num_beams
    max_length, penalty, early_stopping = config.max_length, config.length_penalty, config.early_stopping
    sentences, prompt_length = prompts.shape
    fill = (pad or eos[0]) if eos is not None else -1  # transformers', though 0 may well be a padding token
    ids = prompts.new_full((sentences, beams, max_length), fill)
    ids[:, :, :prompt_length] = prompts[:, None]
    nothing = ids.new_zeros(sentences, beams)
    running = Beams(torch.full(nothing.shape, NEVER, device=ids.device), ids, nothing)
    running.scores[:, 0] = 0.0  # they are all alike: one is enough to begin with
    ended = running._replace(scores=torch.full_like(running.scores, NEVER))
    results = Beams(*(each.clone() for each in ended))
    searched = torch.arange(sentences, device=ids.device)
    candidates = max(2, 1 + (0 if eos is None else len(eos))) * beams  # so that beams are left if all others end
    logits = steps.read_prompts()
    of_each = min(candidates, logits.shape[-1])
    for length in range(prompt_length, max_length):
        log_p = logits.log_softmax(dim=-1)
        if processors:
            log_p = processors(running.ids[..., :length].flatten(0, 1), log_p)
        log_p, tokens = (each.unflatten(0, (-1, beams)) for each in log_p.topk(of_each))  # of each beam
        best, which = (running.scores[..., None] + log_p).flatten(1).topk(candidates)  # of each sentence
        source, tokens = which // of_each, tokens.flatten(1).gather(1, which)
        grown = running.take(source)._replace(scores=best)
        grown.ids[..., length] = tokens
        ends = torch.full_like(tokens, length + 1 >= max_length, dtype=torch.bool)
        if eos is not None:
            ends |= torch.isin(tokens, eos)

        generated = length + 1 - prompt_length
        counts = ends.clone()
        counts[:, beams:] = False  # others could not have been among the beams
        final = grown.scores / generated**penalty + ~counts * NEVER
        grown = grown._replace(lengths=counts * generated)
        both = Beams(*(torch.cat(pair, dim=1) for pair in zip(ended, grown._replace(scores=final), strict=True)))
        ended = both.take(both.scores.topk(beams).indices)

        going_on = (grown.scores + ends * NEVER).topk(beams)
        running = grown.take(going_on.indices)._replace(scores=going_on.values)
        source = source.gather(1, going_on.indices)

        longest = max_length - prompt_length if early_stopping == "never" and penalty > 0 else generated
        hope = running.scores[:, :1] / longest**penalty
        worst = ended.scores.min(dim=1, keepdim=True).values.where(ended.lengths > 0, NEVER)
        done = ~(hope > worst).any(dim=1)
        if early_stopping is True:
            done |= (ended.lengths > 0).all(dim=1)
        if length + 1 == max_length:
            done[:] = True
        kept = None
        if done.any():
            for result, end in zip(results, ended, strict=True):
                result[searched[done]] = end[done]
            kept = (~done).nonzero().squeeze(1)
            if len(kept) == 0:
                break
            searched, running, ended = searched[kept], running.of(kept), ended.of(kept)
        rows = torch.arange(len(source), device=ids.device)[:, None] * beams + source
        steps.keep(kept, (rows if kept is None else rows[kept]).flatten())
        logits = steps.read(running.ids[..., length].flatten())
    returned = config.num_return_sequences
    longest = prompt_length + results.lengths[:, :returned].max()
    return results.ids[:, :returned, :longest].flatten(0, 1)
