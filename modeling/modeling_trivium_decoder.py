"""Third way: the decoder alone, as in GPT and LLaMA, and the head that continues texts."""

from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg

from .configuration_trivium import TriviumConfig
from .decoding import TriviumGenerationMixin
from .embeddings import TokenEmbedding
from .loss import shift_left
from .positions import LearnedPositions
from .pretrained import TriviumPreTrainedModel
from .stacks import TriviumDecoder


class TriviumDecoderPreTrainedModel(TriviumPreTrainedModel):
    """What decoder-only models have in common: they also come from the checkpoint of an encoder-decoder.

    Of that they take the decoder without its attention to the encoder.

    Raises:
        ValueError: The configuration has no decoder.
    """

    _no_split_modules = ["DecoderLayer"]
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)encoder\.", r"\.cross_attn(_residual)?\.", r"^lm_head\."]

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config.decoder_only())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Self:
        """As in transformers; an embedding that encoder and decoder share, which is saved once, is the decoder's."""
        if cls._shares_embedding(pretrained_model_name_or_path, **kwargs):
            shared = {r"encoder\.embed_tokens": "decoder.embed_tokens"}
            kwargs["key_mapping"] = {**shared, **(kwargs.get("key_mapping") or {})}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._weight_conversions = None  # saving is to keep the decoder's own names
        return loaded

    @classmethod
    def _shares_embedding(cls, folder: Any, config: Any = None, **kwargs: Any) -> bool:
        """Whether a checkpoint has one embedding for two stacks; the `config` given may be of the decoder alone."""
        source = config if folder is None else folder
        if source is not None and not isinstance(source, PreTrainedConfig):
            saved = cls.config_class.get_config_dict(source, **kwargs)[0]
            if saved.get("encoder_layers") == 0:  # as nearly always; making a configuration takes time
                return False
            config = cls.config_class.from_dict(saved) if saved else config
        if not isinstance(config, PreTrainedConfig):
            return False
        return bool(config.is_encoder_decoder and config.tie_word_embeddings and config.decoder_vocab_size is None)


class TriviumDecoderModel(TriviumDecoderPreTrainedModel):
    """The decoder, without an output projection."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.decoder = TriviumDecoder(self.config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
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
        """Decode a text, each position seeing itself and those before it.

        Args:
            input_ids: (batch, length); with a cache, the tokens that are not in it.
            attention_mask: (batch, cached length + length), 1 for a real token, 0 for padding, on either side.
            position_ids: (batch, length); by default real tokens count from 0. Where they restart, in a row without
                padding and without cache, another text begins, which does not see those before it.
            cache: Keys and values of earlier calls.
            inputs_embeds: (batch, length, d_model), in place of `input_ids`.
            use_cache: Whether to return keys and values for the next call.
            **kwargs: `output_attentions`, `output_hidden_states`, and what the attention function takes.

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
    """The decoder and the linear projection to the vocabulary: a language model."""

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
        """Predict every next token; with `labels`, say how badly. More on the others in `TriviumDecoderModel.forward`.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, cached length + length).
            position_ids: (batch, length).
            cache: Keys and values of earlier calls.
            inputs_embeds: (batch, length, d_model).
            labels: (batch, length), the input ids themselves, with -100 for what is not to be learned; they are
                shifted here. The loss wants logits at all positions, so `logits_to_keep` must then be 0.
            use_cache: Whether to return keys and values for the next call; not with `labels`.
            logits_to_keep: Only the last so many positions get logits, 0 for all; or a tensor with their indices.
            skip_logits: With labels, give the loss alone, which then takes far less memory and time.
            **kwargs: As in `TriviumDecoderModel.forward`; `num_items_in_batch` is what the loss is divided by, and
                `shift_labels` (batch, length) are labels that are shifted already, in place of `labels`.

        Returns:
            `logits`: (batch, length or `logits_to_keep`, vocabulary), or None if skipped, `loss`: a scalar, smoothed
            (`config.label_smoothing`) in training mode only, so that exp(loss) of an evaluation is the perplexity;
            and the rest of `CausalLMOutputWithPast`.
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
        """As in transformers, which looks for `inputs_embeds` here, but refuse to outgrow learned positions."""
        embed_positions = self.model.decoder.embed_positions
        if isinstance(embed_positions, LearnedPositions):  # the input ids lack a prompt of embeddings
            embed_positions.check_length((input_ids if position_ids is None else position_ids).shape[-1])
        return super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, position_ids=position_ids, **kwargs
        )
