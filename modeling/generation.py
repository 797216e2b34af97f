"""`generate()` of the models: run the searches of `decoding` where they apply, and transformers' loops elsewhere."""

import copy
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

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

from .decoding import beam_search, greedy_search
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


class TriviumGenerationMixin(GenerationMixin):
    """`generate()` of transformers that uses the searches of `decoding` if only sequences are requested.

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
        """Create no cache for the searches of `decoding`, which create their own and drop rows from it.

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
        """Return True if the searches of `decoding` cover these arguments of `_sample` or `_beam_search`."""
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
