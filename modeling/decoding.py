"""Greedy and beam search for `generate()`, on a batch from which finished sentences are removed.

Both searches return what the loops of transformers return, token by token. Exact ties, which are common in half
precision, may be broken differently, because candidates are selected per beam before they are compared across beams.
Unsupported options fall back to the loops of transformers (see `_can_search`), and so does a beam search that runs out
of allowed tokens (see `beam_search`).

The searches are faster because no computation is spent on finished sentences, the beams of a sentence share the keys
and values of its source, and a step computes little besides the decoder's layers (`decoding_step`).
"""

import copy
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, QuantizedCache
from transformers.generation import (
    EosTokenCriteria,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
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
from transformers.generation.streamers import BaseStreamer

from .decoding_step import has_custom_call
from .incremental_decoder import IncrementalDecoder
from .positions import token_positions
from .streaming import PromptStreamer

# Stateless processors that treat every row independently, so that rows may be removed from the batch.
PROCESSORS = {
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensLogitsProcessor,
}
# `labels` have no effect on a search; Seq2SeqTrainer passes them in evaluation.
INPUTS = {"attention_mask", "encoder_outputs", "labels", "logits_to_keep", "position_ids", "use_cache", "cache"}
NEG_INF = -1e9  # added to the scores of candidates that must not be selected, as in transformers
MIN_SCORE = NEG_INF / 10  # sequences of allowed tokens score above this value, all other sequences below it


class TriviumGenerationMixin(GenerationMixin):
    """`generate()` of transformers that uses the searches of this module if only sequences are requested.

    A beam search with `return_dict_in_generate=True` always returns `sequences_scores`. In transformers this needs
    `output_scores=True`, which also keeps the scores of the whole vocabulary at every step.
    """

    def generate(self, *args: Any, streamer: BaseStreamer | None = None, **kwargs: Any) -> Any:
        """Generate as in transformers, but also accept a streamer with beam search.

        A beam search may replace any token until it ends, so the streamer receives the best sequences at the end.
        """
        return super().generate(*args, streamer=None if streamer is None else PromptStreamer(streamer), **kwargs)

    def _validate_generation_mode(
        self,
        generation_mode: GenerationMode,
        generation_config: GenerationConfig,
        generation_mode_kwargs: dict[str, Any],
    ) -> None:
        """Validate as in transformers, but allow a streamer with beam search."""
        if generation_mode == GenerationMode.BEAM_SEARCH and "streamer" in generation_mode_kwargs:
            generation_mode_kwargs["streamer"].num_beams = generation_config.num_beams
            generation_mode_kwargs = {
                name: value for name, value in generation_mode_kwargs.items() if name != "streamer"
            }
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        *sizes: Any,
    ) -> None:
        """Create no cache for the searches of this module, which create their own and drop rows from it.

        transformers has no quantized cache for encoder-decoders. The cache created here quantizes only the keys and
        values of the target, since the source's do not grow.
        """
        if (
            self.config.is_encoder_decoder
            and generation_config.cache_implementation == "quantized"
            and model_kwargs.get("cache") is None
        ):
            config = self.config.get_text_config(decoder=True)
            options = {"backend": "quanto", "config": config, **(generation_config.cache_config or {})}
            model_kwargs["cache"] = EncoderDecoderCache(QuantizedCache(**options), DynamicCache(config=config))
            return
        searches = generation_mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.BEAM_SEARCH)
        plain = searches and self._returns_sequences_only(generation_config)
        if not plain or model_kwargs.get("cache") is not None:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *sizes)

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        if not self._can_search(input_ids, logits_processor, stopping_criteria, generation_config, kwargs):
            return super()._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        with self._without_gradients():
            decoder = IncrementalDecoder(self, input_ids, **kwargs)
            sequences = greedy_search(decoder, input_ids, logits_processor, generation_config)
        return sequences.clone()  # inference tensors cannot be modified in place, but a copy made here can

    def _beam_search(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Any:
        if streamer is not None:
            result = self._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
            sequences = result if isinstance(result, torch.Tensor) else result.sequences
            for tokens in sequences[:: generation_config.num_return_sequences, input_ids.shape[1] :].T.cpu():
                streamer.put(tokens)
            streamer.end()
            return result
        if self._can_search(input_ids, logits_processor, stopping_criteria, generation_config, kwargs):
            num_beams = generation_config.num_beams
            with self._without_gradients():
                decoder = IncrementalDecoder(self, input_ids, num_beams, **kwargs)
                found = beam_search(decoder, input_ids[::num_beams], logits_processor, generation_config)
            if found is not None:
                sequences, scores = (tensor.clone() for tensor in found)
                if not generation_config.return_dict_in_generate:
                    return sequences
                outputs = (GenerateBeamDecoderOnlyOutput, GenerateBeamEncoderDecoderOutput)
                return outputs[self.config.is_encoder_decoder](sequences=sequences, sequences_scores=scores)
        if not generation_config.return_dict_in_generate or generation_config.output_scores:
            return super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        generation_config = copy.copy(generation_config)
        generation_config.output_scores = True
        output = super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        return replace(output, scores=None)

    def _without_gradients(self) -> AbstractContextManager[Any]:
        """Return inference mode, or no_grad if a quantizer has replaced the weights by tensor subclasses.

        Some of these subclasses, such as quanto's 4-bit weights, fail in inference mode.
        """
        return torch.inference_mode() if getattr(self, "hf_quantizer", None) is None else torch.no_grad()

    def _can_search(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        inputs: dict[str, Any],
    ) -> bool:
        """Return True if the searches of this module cover these arguments of `_sample` or `_beam_search`."""
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        return (
            self._returns_sequences_only(generation_config)
            and input_ids.device == self.device
            and (mask is None or mask.ndim == 2)
            and (mask is None or self.config.is_encoder_decoder or ends_in_real_tokens(mask, input_ids))
            and (positions is None or counts_real_tokens(positions, mask))
            and all(inputs[name] is None or inputs[name] is False for name in inputs.keys() - INPUTS)
            and inputs.get("cache") is None
            and {type(processor) for processor in logits_processor} <= PROCESSORS
            and all(is_default_criterion(criterion, generation_config) for criterion in stopping_criteria)
        )

    def _returns_sequences_only(self, generation_config: GenerationConfig) -> bool:
        """Return True if only sequences (with scores, for beam search) are requested from plain modules.

        A module is plain if its `forward` is not customized.
        """
        details = ("scores", "logits", "attentions", "hidden_states")
        needs_details = generation_config.return_dict_in_generate and (
            generation_config.num_beams == 1 or any(getattr(generation_config, f"output_{name}") for name in details)
        )
        return not (
            generation_config.do_sample
            or needs_details
            or generation_config.use_cache is False
            or generation_config.cache_implementation
            or generation_config.prefill_chunk_size
            or generation_config.is_assistant
            or generation_config.low_memory
            or self.config._attn_implementation not in ("eager", "sdpa")
            or any(has_custom_forward(module) for module in (self, self.model, self.model.decoder))
        )


def ends_in_real_tokens(mask: torch.Tensor, input_ids: torch.Tensor) -> bool:
    """Return True if (rows, length) `mask` has the shape of the prompts and no prompt ends in padding.

    After padding, transformers numbers positions differently from `token_positions`.
    """
    return mask.shape == input_ids.shape and bool(mask[:, -1].all())


def counts_real_tokens(position_ids: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Return True if (rows, length) positions are the decoder's defaults, which `generate()` passes explicitly."""
    expected = token_positions(mask, position_ids.shape[-1], 0, position_ids.device)
    differs = position_ids != expected
    return not (differs if mask is None else differs & (mask != 0)).any()


def is_default_criterion(criterion: Any, config: GenerationConfig) -> bool:
    """Return True if a stopping criterion is implied by `config`; a criterion passed by the caller may differ."""
    if type(criterion) is MaxLengthCriteria:
        return criterion.max_length == config.max_length
    return type(criterion) is EosTokenCriteria and criterion.eos_token_id is config._eos_token_tensor


def has_custom_forward(module: nn.Module) -> bool:
    """Return True if `forward` is overridden, compiled or hooked."""
    package = __name__.rpartition(".")[0]
    return type(module).forward.__module__.rpartition(".")[0] != package or has_custom_call(module)


def greedy_search(
    decoder: IncrementalDecoder, prompts: torch.Tensor, processors: LogitsProcessorList, config: GenerationConfig
) -> torch.Tensor:
    """Select the most likely token at every step, until all sentences have ended or have `config.max_length` tokens.

    Args:
        decoder: Decoder that has not read anything yet.
        prompts: Token ids of the prompts, (batch, prompt_len).
        processors: Processors to apply to the logits at every step.
        config: Generation config prepared by `generate()`.

    Returns:
        (batch, length), each prompt with its continuation.
    """
    eos, pad = config._eos_token_tensor, config._pad_token_tensor
    prompt_length, max_length = prompts.shape[1], config.max_length
    sequences = torch.full((len(prompts), max_length), 0 if pad is None else pad, device=prompts.device)
    sequences[:, :prompt_length] = prompts
    unfinished = torch.arange(len(prompts), device=prompts.device)
    logits = decoder.prefill()
    for length in range(prompt_length, max_length):
        if processors:
            logits = processors(sequences[unfinished, :length], logits)
        tokens = logits.argmax(dim=-1)
        sequences[unfinished, length] = tokens
        if eos is not None and (ends := torch.isin(tokens, eos)).any():
            rows = (~ends).nonzero().squeeze(1)
            if len(rows) == 0:
                return sequences[:, : length + 1]
            unfinished, tokens = unfinished[rows], tokens[rows]
            decoder.select(rows, sentences=rows)
        if length + 1 < max_length:
            logits = decoder.step(tokens)
    return sequences


class Beams(NamedTuple):
    """Beams of each sentence: scores, token ids and lengths."""

    scores: torch.Tensor  # (batch, k), sums of log-probabilities; length-normalized for finished beams
    ids: torch.Tensor  # (batch, k, max_length)
    lengths: torch.Tensor  # (batch, k), number of generated tokens of finished beams; 0 for running beams

    def take(self, indices: torch.Tensor) -> "Beams":
        """Select beams by indices of shape (batch, k)."""
        ids = self.ids.gather(1, indices[..., None].expand(-1, -1, self.ids.shape[-1]))
        return Beams(self.scores.gather(1, indices), ids, self.lengths.gather(1, indices))

    def select(self, sentences: torch.Tensor) -> "Beams":
        """Select sentences, by indices or by a mask of shape (batch,)."""
        return Beams(*(tensor[sentences] for tensor in self))


class BeamSearch:
    """State of a beam search: running and finished beams of the sentences that are not done.

    Args:
        prompts: Token ids of the prompts, (batch, prompt_len).
        config: Generation config prepared by `generate()`.
    """

    def __init__(self, prompts: torch.Tensor, config: GenerationConfig) -> None:
        self.eos, self.num_beams = config._eos_token_tensor, config.num_beams
        self.length_penalty, self.early_stopping = config.length_penalty, config.early_stopping
        self.prompt_length, self.max_length = prompts.shape[1], config.max_length
        # Keep enough candidates that `num_beams` remain even if all other candidates end with an EOS token.
        self.num_candidates = max(2, 1 + (0 if self.eos is None else len(self.eos))) * self.num_beams

        shape, device = (len(prompts), self.num_beams), prompts.device
        fill = -1 if self.eos is None else (config._pad_token_tensor or self.eos[0])  # as in transformers
        ids = torch.full((*shape, self.max_length), fill, device=device)
        ids[..., : self.prompt_length] = prompts[:, None]
        none = Beams(torch.full(shape, NEG_INF, device=device), ids, torch.zeros_like(ids[..., 0]))
        self.running = none._replace(scores=none.scores.clone())
        self.running.scores[:, 0] = 0.0  # all beams start identical, so expand only one
        self.finished = none
        self.unfinished = torch.arange(len(prompts), device=device)
        self.hypotheses = Beams(*(tensor.clone() for tensor in none))

    def expand(
        self, logits: torch.Tensor, processors: LogitsProcessorList, length: int
    ) -> tuple[Beams, torch.Tensor, torch.Tensor]:
        """Extend the running beams by one token.

        Args:
            logits: Logits of the next token, (batch * num_beams, vocabulary).
            processors: Processors to apply to the log-probabilities.
            length: Number of tokens in the running beams, including the prompt.

        Returns:
            The best `num_candidates` of each sentence, best first, the beams they come from, and whether they end,
            both (batch, num_candidates).
        """
        log_probs = logits.log_softmax(dim=-1)
        if processors:
            log_probs = processors(self.running.ids[..., :length].flatten(0, 1), log_probs)
        # Selecting per beam first is faster than one top-k over (num_beams * vocabulary), with the same result.
        per_beam = min(self.num_candidates, log_probs.shape[-1])
        log_probs, tokens = log_probs.topk(per_beam)
        scores = self.running.scores[..., None] + log_probs.view(-1, self.num_beams, per_beam)
        scores, indices = scores.flatten(1).topk(self.num_candidates)  # of (batch, num_beams * per_beam)
        sources = indices // per_beam
        tokens = tokens.view(-1, self.num_beams * per_beam).gather(1, indices)
        candidates = self.running.take(sources)._replace(scores=scores)
        candidates.ids[..., length] = tokens
        ends = torch.full_like(tokens, length + 1 == self.max_length, dtype=torch.bool)
        if self.eos is not None:
            ends |= torch.isin(tokens, self.eos)
        return candidates, sources, ends

    def update_finished(self, candidates: Beams, ends: torch.Tensor, length: int) -> None:
        """Merge the top `num_beams` candidates that end into the finished beams, and keep the best `num_beams`.

        Args:
            candidates: Candidates returned by `expand`.
            ends: Whether each candidate ends, (batch, num_candidates).
            length: Number of tokens in the candidates, including the prompt.
        """
        finishes = ends.clone()
        finishes[:, self.num_beams :] = False
        generated = length - self.prompt_length
        scores = candidates.scores / generated**self.length_penalty + ~finishes * NEG_INF
        candidates = candidates._replace(scores=scores, lengths=finishes * generated)
        merged = Beams(*(torch.cat(pair, dim=1) for pair in zip(self.finished, candidates, strict=True)))
        self.finished = merged.take(merged.scores.topk(self.num_beams).indices)

    def update_running(self, candidates: Beams, ends: torch.Tensor) -> torch.Tensor:
        """Keep the best `num_beams` candidates that do not end, and return their indices, (batch, num_beams)."""
        scores, indices = (candidates.scores + ends * NEG_INF).topk(self.num_beams)
        self.running = candidates.take(indices)._replace(scores=scores)
        return indices

    def is_done(self, length: int) -> torch.Tensor:
        """Return whether the finished beams of each sentence are final, (batch,), by the rules of transformers.

        They are final when the best running beam cannot become better than the worst finished one, according to an
        estimate that `config.early_stopping` selects, or as soon as there are `num_beams` of them
        (`early_stopping=True`).
        """
        is_finished = self.finished.lengths > 0
        if self.early_stopping == "never" and self.length_penalty > 0:
            best_length = self.max_length - self.prompt_length
        else:
            best_length = length - self.prompt_length
        best_running = self.running.scores[:, :1] / best_length**self.length_penalty
        worst_finished = self.finished.scores.min(dim=1, keepdim=True).values.where(is_finished, NEG_INF)
        done = ~(best_running > worst_finished).any(dim=1)
        if self.early_stopping is True:
            done |= is_finished.all(dim=1)
        return done

    def retire(self, done: torch.Tensor) -> torch.Tensor:
        """Store the finished beams of sentences that are done; return the indices of all other sentences, (batch,)."""
        for stored, finished in zip(self.hypotheses, self.finished, strict=True):
            stored[self.unfinished[done]] = finished[done]
        kept = (~done).nonzero().squeeze(1)
        self.unfinished = self.unfinished[kept]
        self.running, self.finished = self.running.select(kept), self.finished.select(kept)
        return kept


def beam_search(
    decoder: IncrementalDecoder, prompts: torch.Tensor, processors: LogitsProcessorList, config: GenerationConfig
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Beam search: keep the `config.num_beams` best running and finished beams of each sentence.

    Args:
        decoder: Decoder that has not read anything yet.
        prompts: Token ids of the prompts, (batch, prompt_len).
        processors: Processors to apply to the log-probabilities at every step.
        config: Generation config prepared by `generate()`.

    Returns:
        (batch * config.num_return_sequences, length), each prompt with its continuations, best first, and their
        scores, (batch * config.num_return_sequences,), the summed log-probabilities of the new tokens divided by their
        number to the power of `config.length_penalty`. None if a sentence has too few allowed continuations:
        transformers then returns forbidden continuations, which depend on how long the search of other sentences in
        the batch continues, so only its own loop can reproduce them.
    """
    prompt_length, max_length, num_beams = prompts.shape[1], config.max_length, config.num_beams
    search = BeamSearch(prompts, config)
    logits = decoder.prefill()
    for length in range(prompt_length, max_length):
        # 1) Append the most likely tokens to the running beams.
        candidates, sources, ends = search.expand(logits, processors, length)

        # 2) Candidates that end compete with the finished beams; the best of the remaining candidates keep running.
        search.update_finished(candidates, ends, length + 1)
        running = search.update_running(candidates, ends)

        # 3) Retire sentences that are done, or that have run out of allowed tokens. The first step may run out of
        # them, with a forced BOS: all its candidates come from one beam.
        is_last = length + 1 == max_length
        weakest = candidates.scores[:, num_beams - 1] if is_last else search.running.scores[:, -1]
        is_exhausted = ~(weakest > MIN_SCORE)
        done = search.is_done(length + 1)
        if is_last:
            done[:] = True
        elif length > prompt_length:
            done |= is_exhausted
        kept = None
        if done.any():
            has_forbidden = ~(search.finished.scores > MIN_SCORE).all(dim=1)
            if ((is_exhausted | has_forbidden) & done).any():
                return None
            kept = search.retire(done)
            if len(kept) == 0:
                break

        # 4) Reorder the cache and read the new tokens.
        sources = sources.gather(1, running)
        rows = torch.arange(len(sources), device=sources.device)[:, None] * num_beams + sources
        decoder.select((rows if kept is None else rows[kept]).flatten(), sentences=kept)
        logits = decoder.step(search.running.ids[..., length].flatten())

    # 5) Return the best sequences, as long as the longest of them.
    scores, ids, lengths = (tensor[:, : config.num_return_sequences] for tensor in search.hypotheses)
    return ids[..., : prompt_length + lengths.max()].flatten(0, 1), scores.flatten()
