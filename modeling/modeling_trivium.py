"""Encoder-decoder models: the Transformer of *Attention Is All You Need* (Figure 1), without and with an LM head."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg

from .configuration_trivium import TriviumConfig
from .embeddings import TokenEmbedding
from .generation import TriviumGenerationMixin
from .loss import IGNORE_INDEX, mask_after_last_label
from .positions import LearnedPositions, token_positions
from .pretrained import TriviumPreTrainedModel
from .stacks import TriviumDecoder, TriviumEncoder


class TriviumModel(TriviumPreTrainedModel):
    """Encoder and decoder, without the output projection.

    Raises:
        ValueError: The configuration is encoder-only or decoder-only.
    """

    def __init__(self, config: TriviumConfig) -> None:
        if not config.is_encoder_decoder:
            raise ValueError(
                f"encoder_layers={config.encoder_layers} and decoder_layers={config.decoder_layers} make no "
                "encoder-decoder: both must be above 0. To combine an encoder-only and a decoder-only model, use "
                "trivium.join."
            )
        super().__init__(config)
        if config.decoder_vocab_size is None:
            self._tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
        self.encoder = TriviumEncoder(config)
        self.decoder = TriviumDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding of the source."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: TokenEmbedding) -> None:
        """Replace the token embedding of the source, and of the target if the two are tied."""
        self.encoder.embed_tokens = value
        if self.config.tie_word_embeddings and self.config.decoder_vocab_size is None:
            self.decoder.embed_tokens = value

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """Encode the source, unless `encoder_outputs` is passed, and decode the target.

        Args:
            input_ids: (batch, source_len).
            attention_mask: (batch, source_len), 1 for a real token, 0 for padding, on either side.
            decoder_input_ids: (batch, target_len), starting with `decoder_start_token_id`.
            decoder_attention_mask: (batch, cached length + target_len).
            encoder_outputs: Output of an earlier call of the encoder.
            cache: Keys and values of earlier calls.
            inputs_embeds: (batch, source_len, d_model), instead of `input_ids`.
            decoder_inputs_embeds: (batch, target_len, d_model), instead of `decoder_input_ids`.
            decoder_position_ids: (batch, target_len); by default, real tokens are counted from 0.
            use_cache: Whether to return keys and values for the next call.
            **kwargs: `output_attentions`, `output_hidden_states`, and arguments of the attention function.

        Returns:
            `last_hidden_state`: (batch, target_len, d_model), and the other fields of `Seq2SeqModelOutput`.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif isinstance(encoder_outputs, (tuple, list)):  # the encoder was called with return_dict=False
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            cache=decoder_outputs.cache,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class TriviumForConditionalGeneration(TriviumPreTrainedModel, TriviumGenerationMixin):
    """The complete model of Figure 1: encoder, decoder and output projection; for translation."""

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        if config.decoder_vocab_size is None:
            self._tied_weights_keys = {"lm_head.weight": "model.encoder.embed_tokens.weight"}
        self.model = TriviumModel(config)
        self.lm_head = nn.Linear(config.d_model, config.target_vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Return logits of the next target tokens and, if `labels` is passed, the loss.

        See `TriviumModel.forward` for details of the inputs.

        Args:
            input_ids: (batch, source_len).
            attention_mask: (batch, source_len).
            decoder_input_ids: (batch, target_len).
            decoder_attention_mask: (batch, cached length + target_len).
            encoder_outputs: Output of an earlier call of the encoder.
            cache: Keys and values of earlier calls.
            inputs_embeds: (batch, source_len, d_model).
            decoder_inputs_embeds: (batch, target_len, d_model).
            decoder_position_ids: (batch, target_len).
            labels: (batch, target_len), target ids ending with EOS, not shifted, with -100 for padding. By default
                the decoder input is the labels shifted right.
            use_cache: Whether to return keys and values for the next call; ignored with `labels`.
            skip_logits: Whether to return only the loss if `labels` is passed, which saves much memory and time.
            **kwargs: As in `TriviumModel.forward`, and `num_items_in_batch`, the divisor of the loss.

        Returns:
            `logits`: (batch, target_len, target vocabulary), or None if skipped; `loss`: a scalar, with label
            smoothing in training mode only, so that exp(loss) is the perplexity in evaluation; and the other fields
            of `Seq2SeqLMOutput`.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        skip_padding = self._can_skip_padding(labels, decoder_attention_mask, skip_logits, **kwargs)
        if labels is not None and skip_padding and decoder_attention_mask is None:
            decoder_attention_mask = mask_after_last_label(labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            cache=cache,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_position_ids=decoder_position_ids,
            use_cache=use_cache,
            skip_padding=skip_padding,
            **kwargs,
        )
        loss, logits = self._predict_tokens(
            self.lm_head,
            outputs.last_hidden_state,
            labels,
            self.config.target_vocab_size,
            skip_logits,
            kwargs.get("num_items_in_batch"),
        )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Shift (batch, target_len) labels right: the start token, followed by all labels but the last (section 3.1).

        Raises:
            ValueError: The configuration lacks `decoder_start_token_id` or `pad_token_id`.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError(
                f"Decoder inputs cannot be derived from labels: decoder_start_token_id is {start} and pad_token_id is "
                f"{pad}, but neither may be None. Set them in the config, or pass decoder_input_ids."
            )
        shifted = labels.new_full(labels.shape, start)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == IGNORE_INDEX, pad)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        decoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare inputs as in transformers, and pass positions for a padded decoder prompt.

        With a static cache transformers would lose the padding mask that the default positions are derived from.
        """
        embed_positions = self.model.decoder.embed_positions
        if isinstance(embed_positions, LearnedPositions):
            embed_positions.check_length(input_ids.shape[-1])
        if decoder_attention_mask is not None:
            length = decoder_attention_mask.shape[-1]
            kwargs["decoder_position_ids"] = token_positions(
                decoder_attention_mask, length, 0, decoder_attention_mask.device
            )
        return super().prepare_inputs_for_generation(
            input_ids, *args, decoder_attention_mask=decoder_attention_mask, **kwargs
        )
