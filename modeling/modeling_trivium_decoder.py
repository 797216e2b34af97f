"""Decoder-only models, as in GPT and LLaMA, with heads for causal LM and sequence classification."""

from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg

from .configuration_trivium import TriviumConfig
from .embeddings import TokenEmbedding
from .generation import TriviumGenerationMixin
from .loss import classification_loss, shift_left
from .positions import LearnedPositions
from .pretrained import TriviumPreTrainedModel
from .stacks import TriviumDecoder


class TriviumDecoderPreTrainedModel(TriviumPreTrainedModel):
    """Base class of decoder-only models. They can also be loaded from the checkpoint of an encoder-decoder.

    From such a checkpoint the decoder is loaded without its cross-attention.

    Raises:
        ValueError: The configuration has no decoder.
    """

    _no_split_modules = ["DecoderLayer"]
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)encoder\.", r"\.cross_attn(_residual)?\.", r"^lm_head\."]

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config.decoder_only())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Self:
        """Load as in transformers, even from an encoder-decoder that saved its tied embedding as the encoder's."""
        if cls._has_tied_stacks(pretrained_model_name_or_path, **kwargs):
            tied = {r"encoder\.embed_tokens": "decoder.embed_tokens"}
            kwargs["key_mapping"] = {**tied, **(kwargs.get("key_mapping") or {})}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._weight_conversions = None  # save_pretrained would apply the key mapping in reverse
        return loaded

    @classmethod
    def _has_tied_stacks(cls, folder: Any, config: Any = None, **kwargs: Any) -> bool:
        """Return True if encoder and decoder of a checkpoint share one embedding.

        The configuration in `folder` takes precedence over `config`, which may describe the decoder only.
        """
        source = config if folder is None else folder
        if source is not None and not isinstance(source, PreTrainedConfig):
            saved = cls.config_class.get_config_dict(source, **kwargs)[0]
            if saved.get("encoder_layers") == 0:  # common case: avoid the slow construction of a configuration
                return False
            config = cls.config_class.from_dict(saved) if saved else config
        if not isinstance(config, PreTrainedConfig):
            return False
        return bool(config.is_encoder_decoder and config.tie_word_embeddings and config.decoder_vocab_size is None)


class TriviumDecoderModel(TriviumDecoderPreTrainedModel):
    """Decoder without the output projection."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.decoder = TriviumDecoder(self.config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: TokenEmbedding) -> None:
        """Replace the token embedding."""
        self.decoder.embed_tokens = value

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Decode a text: each position attends to itself and to earlier positions.

        Args:
            input_ids: (batch, length); with a cache, only the tokens that are not cached yet.
            attention_mask: (batch, cached length + length), 1 for a real token, 0 for padding, on either side.
            position_ids: (batch, length); by default, real tokens are counted from 0. Without mask and cache,
                positions that restart mark packed texts, which do not attend to each other.
            cache: Keys and values of earlier calls.
            inputs_embeds: (batch, length, d_model), instead of `input_ids`.
            use_cache: Whether to return keys and values for the next call.
            **kwargs: `output_attentions`, `output_hidden_states`, and arguments of the attention function.

        Returns:
            `last_hidden_state`: (batch, length, d_model), and the cache.
        """
        outputs = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return BaseModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TriviumForCausalLM(TriviumDecoderPreTrainedModel, TriviumGenerationMixin):
    """Decoder with the output projection: a causal language model."""

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.model = TriviumDecoderModel(self.config)
        self.lm_head = nn.Linear(self.config.d_model, self.config.vocab_size, bias=self.config.lm_head_bias)
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Return logits of the next tokens and, if `labels` is passed, the loss.

        See `TriviumDecoderModel.forward` for details of the inputs.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, cached length + length).
            position_ids: (batch, length).
            cache: Keys and values of earlier calls.
            inputs_embeds: (batch, length, d_model).
            labels: (batch, length), the input ids, with -100 for tokens to ignore; they are shifted here. The loss
                needs logits at all positions, so `logits_to_keep` must be 0 with `labels`.
            use_cache: Whether to return keys and values for the next call; ignored with `labels`.
            logits_to_keep: Number of positions, from the end, to compute logits for, 0 for all; or a tensor of their
                indices.
            skip_logits: Whether to return only the loss if `labels` is passed, which saves much memory and time.
            **kwargs: As in `TriviumDecoderModel.forward`; `num_items_in_batch`, the divisor of the loss; and
                `shift_labels`, (batch, length), labels that are already shifted, instead of `labels`.

        Returns:
            `logits`: (batch, length or `logits_to_keep`, vocabulary), or None if skipped; `loss`: a scalar, with label
            smoothing in training mode only, so that exp(loss) is the perplexity in evaluation; and the other fields
            of `CausalLMOutputWithPast`.
        """
        next_tokens = kwargs.pop("shift_labels", None)
        if next_tokens is None and labels is not None:
            next_tokens = shift_left(labels)
        if next_tokens is not None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            skip_padding=self._can_skip_padding(next_tokens, attention_mask, skip_logits, **kwargs),
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss, logits = self._predict_tokens(
            self.lm_head,
            outputs.last_hidden_state[:, kept],
            next_tokens,
            self.config.vocab_size,
            skip_logits,
            kwargs.get("num_items_in_batch"),
        )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare inputs as in transformers, and check their length against learned positions.

        `inputs_embeds` is a parameter because transformers looks for it in this signature.
        """
        embed_positions = self.model.decoder.embed_positions
        if isinstance(embed_positions, LearnedPositions):  # input ids do not include a prompt of embeddings
            embed_positions.check_length((input_ids if position_ids is None else position_ids).shape[-1])
        return super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, position_ids=position_ids, **kwargs
        )


class TriviumDecoderForSequenceClassification(TriviumDecoderPreTrainedModel):
    """Decoder with a sequence classification head on the last token, the only one that attends to the whole text.

    The head is a projection without a bias, named as in transformers' decoders: reward models of TRL rely on it.
    """

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.model = TriviumDecoderModel(self.config)
        self.score = nn.Linear(self.config.d_model, self.config.num_labels, bias=False)
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """Return logits of the labels of a text and, if `labels` is passed, the loss.

        See `TriviumDecoderModel.forward` for details of the inputs.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, cached length + length); without it, every token counts as real, even padding.
            position_ids: (batch, length).
            cache: Keys and values of earlier calls.
            inputs_embeds: (batch, length, d_model).
            labels: (batch,) class indices (single-label); (batch, labels) of 0.0 and 1.0 (multi-label); or floats,
                (batch,) or (batch, labels) (regression). `config.problem_type` selects the loss, as for
                `TriviumForSequenceClassification`.
            use_cache: Whether to return keys and values for the next call; ignored with `labels`.
            **kwargs: As in `TriviumDecoderModel.forward`, and `num_items_in_batch`, the divisor of the loss.

        Returns:
            `logits`: (batch, labels), of the last real token; `loss`: a scalar, with label smoothing in training mode
            only; and the cache.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache if labels is None else False,
            **kwargs,
        )
        logits = self.score(last_real_states(outputs.last_hidden_state, attention_mask))
        loss = None
        if labels is not None:
            loss = classification_loss(
                logits, labels, self.config.problem_type, self.label_smoothing, kwargs.get("num_items_in_batch")
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def last_real_states(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Select the states of the last real tokens, (batch, d_model), from padded states (batch, length, d_model).

    Padding may be on either side. The mask, (batch, cached length + length), covers the cache as well.
    """
    if attention_mask is None:
        return hidden_states[:, -1]
    length = hidden_states.shape[1]
    is_real = attention_mask[:, -length:].to(hidden_states.device) > 0
    last = (is_real * torch.arange(length, device=hidden_states.device)).argmax(dim=1)  # (batch,)
    # `len()` would fix the batch size in an exported graph.
    return hidden_states[torch.arange(last.shape[0], device=last.device), last]
