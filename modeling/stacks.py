"""Encoder and decoder stacks (paper section 3.1, Figure 1)."""

import re
from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import NO_CONTEXT, AttentionContext, MultiHeadAttention
from .cache import self_attention_cache
from .configuration_trivium import TriviumConfig
from .embeddings import TokenEmbedding
from .layers import DecoderLayer, EncoderLayer, final_norm
from .normalization import NORMS
from .padding import RealTokens
from .positions import POSITIONS, token_positions
from .pretrained import TriviumPreTrainedModel

# Tensor parallel style of each projection: column-wise, then row-wise, so that every sub-layer needs one all-reduce.
# Each device has some heads, and the norms of all heads share one weight.
TENSOR_PARALLEL_STYLES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), "colwise"),
    **dict.fromkeys(("o_proj", "down_proj"), "rowwise"),
    **dict.fromkeys(("q_norm", "k_norm"), "replicated_with_grad_allreduce"),
}

# Modules that a pipeline parallel model distributes, in order, with their inputs and outputs.
PIPELINE_PARALLEL_STEPS = [
    ("embed_tokens", "input_ids", "inputs_embeds"),
    ("layers", "hidden_states", "hidden_states"),
    ("norm", "hidden_states", "hidden_states"),
]


class TriviumStack(TriviumPreTrainedModel):
    """Base class of encoder and decoder: token embedding, positions, dropout, N layers and the final norm."""

    def __init__(self, config: TriviumConfig, vocab_size: int, layers: Iterable[nn.Module]) -> None:
        super().__init__(config)
        self.embed_tokens = TokenEmbedding(vocab_size, config)
        self.embed_positions = POSITIONS[config.position_embedding_type](config)
        self.embedding_norm = NORMS[config.norm_type](config) if config.normalize_embedding else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = final_norm(config)
        self.gradient_checkpointing = False

    def post_init(self) -> None:
        """Initialize as in transformers, and define the tensor and pipeline parallel plans of this stack."""
        super().post_init()
        self._tp_plan = {"embed_tokens": "embedding_rowwise"} | {
            re.sub(r"\d+", "*", f"layers.{name}"): TENSOR_PARALLEL_STYLES[part]
            for name, _ in self.layers.named_modules()
            if (part := name.rsplit(".")[-1]) in TENSOR_PARALLEL_STYLES
        }
        # A later pipeline stage passes hidden states as `inputs_embeds`, to which positions must not be added again.
        if self.config.position_embedding_type == "rotary" and not self.config.normalize_embedding:
            self._pp_plan = {
                name: ([inputs], [outputs])
                for name, inputs, outputs in PIPELINE_PARALLEL_STEPS
                if getattr(self, name) is not None
            }

    def embed(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Embed (batch, length) ids, or return `inputs_embeds`, (batch, length, d_model), if passed instead.

        Raises:
            ValueError: Both arguments are None, or neither is.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                f"{type(self).__name__} got {'neither' if input_ids is None else 'both'} of input_ids and "
                "inputs_embeds (of an encoder-decoder: decoder_input_ids and decoder_inputs_embeds). Pass exactly one."
            )
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds


class TriviumEncoder(TriviumStack):
    """Encoder: a stack of N layers of self-attention and feed-forward network (section 3.1)."""

    _no_split_modules = ["EncoderLayer"]  # FSDP rejects names of layers that the model does not have
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": MultiHeadAttention}

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config, config.vocab_size, (EncoderLayer(config, i) for i in range(config.encoder_layers)))
        if config.type_vocab_size:
            self.embed_token_types = nn.Embedding(config.type_vocab_size, config.d_model)
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # passed by PEFT's prefix tuning
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        skip_padding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode the source.

        Args:
            input_ids: (batch, source_len).
            attention_mask: (batch, source_len), 1 for a real token, 0 for padding, on either side.
            position_ids: (batch, source_len); by default, real tokens are counted from 0.
            inputs_embeds: (batch, source_len, d_model), instead of `input_ids`.
            token_type_ids: (batch, source_len), below `type_vocab_size`; by default 0.
            skip_padding: Whether to compute real tokens only. `last_hidden_state` is then zero at padding, and the
                hidden states between layers are unpadded.
            **kwargs: `output_attentions`, `output_hidden_states`, and arguments of the attention function.

        Returns:
            `last_hidden_state`: (batch, source_len, d_model).

        Raises:
            ValueError: `token_type_ids` is passed, but the model has no token type embedding.
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        tokens = RealTokens.from_mask(inputs_embeds, attention_mask) if skip_padding else None
        if position_ids is None:
            position_ids = token_positions(attention_mask, inputs_embeds.shape[1], 0, inputs_embeds.device)
        is_local = self.config.sliding_window is not None
        create_mask = create_bidirectional_sliding_window_mask if is_local else create_bidirectional_mask
        mask = create_mask(config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        if self.config.type_vocab_size:
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(position_ids)
            inputs_embeds = inputs_embeds + self.embed_token_types(token_type_ids)
        elif token_type_ids is not None:
            raise ValueError(
                "token_type_ids must be None for a model with type_vocab_size=0, which has no token type embedding."
            )
        hidden_states, rotation = self.embed_positions(inputs_embeds, position_ids)
        hidden_states = self.dropout(self.embedding_norm(hidden_states))
        if tokens is not None:
            hidden_states = tokens.unpad(hidden_states)  # (tokens, d_model)
        context = AttentionContext(mask, rotation, tokens)
        for layer in islice(self.layers, self.config.encoder_layers):
            hidden_states = layer(hidden_states, context, **kwargs)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        if tokens is not None:
            hidden_states = tokens.pad(hidden_states)  # (batch, source_len, d_model)
        return BaseModelOutput(last_hidden_state=hidden_states)


class TriviumDecoder(TriviumStack):
    """Decoder: a stack of N layers of masked self-attention, cross-attention and feed-forward network (section 3.1).

    In a decoder-only model (`config.is_encoder_decoder` is False) the layers have no cross-attention, as in GPT.
    """

    _no_split_modules = ["DecoderLayer"]
    _can_record_outputs = {
        "hidden_states": DecoderLayer,
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: TriviumConfig) -> None:
        layers = (DecoderLayer(config, i) for i in range(config.decoder_layers))
        super().__init__(config, config.target_vocab_size, layers)
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        skip_padding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode the target: each position attends to itself, to earlier positions, and to the whole source.

        Args:
            input_ids: (batch, target_len); with a cache, only the tokens that are not cached yet.
            attention_mask: (batch, cached length + target_len), 1 for a real token, 0 for padding, on either side.
            position_ids: (batch, target_len); by default, real tokens are counted from 0.
            encoder_hidden_states: (batch, source_len, d_model), the encoder output; None in a decoder-only model.
            encoder_attention_mask: (batch, source_len).
            cache: Keys and values of earlier calls.
            inputs_embeds: (batch, target_len, d_model), instead of `input_ids`.
            use_cache: Whether to create a cache if `cache` is None.
            skip_padding: Whether to compute real tokens only. `last_hidden_state` is then zero at padding, and the
                hidden states between layers are unpadded.
            **kwargs: `output_attentions`, `output_hidden_states`, and arguments of the attention function.

        Returns:
            `last_hidden_state`: (batch, target_len, d_model), and the cache.

        Raises:
            ValueError: `encoder_hidden_states` is missing, or passed to a decoder without cross-attention.
        """
        if (encoder_hidden_states is not None) != self.config.is_encoder_decoder:
            raise ValueError(
                "encoder_hidden_states is None, but the decoder of an encoder-decoder needs the encoder output."
                if encoder_hidden_states is None
                else "encoder_hidden_states must be None for a decoder-only model, which has no cross-attention."
            )
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        position_ids, context = self.prepare(inputs_embeds, attention_mask, position_ids, cache, skip_padding)
        memory, memory_context = encoder_hidden_states, NO_CONTEXT
        if memory is not None:
            memory, memory_context = self.prepare_memory(memory, encoder_attention_mask, inputs_embeds, skip_padding)
        if use_cache and cache is None:  # created after the mask: with a cache, packed sequences would not be detected
            cache = DynamicCache(config=self.config)
            if self.config.is_encoder_decoder:
                cache = EncoderDecoderCache(cache, DynamicCache(config=self.config))
        hidden_states = self.run_layers(
            inputs_embeds, position_ids, context, memory, memory_context, cache=cache, **kwargs
        )
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states, cache=cache)

    def prepare(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        skip_padding: bool = False,
    ) -> tuple[torch.Tensor, AttentionContext]:
        """Prepare position ids and context of the target, except the rotation.

        Args:
            inputs_embeds: (batch, target_len, d_model).
            attention_mask: (batch, cached length + target_len), 1 for a real token, 0 for padding.
            position_ids: (batch, target_len); by default, real tokens are counted from 0.
            cache: Keys and values of earlier calls.
            skip_padding: Whether to compute real tokens only.

        Returns:
            Position ids, (batch or 1, target_len), and the context.
        """
        tokens = RealTokens.from_mask(inputs_embeds, attention_mask) if skip_padding else None
        # The causal mask hides padding on the right from real tokens anyway, and attention is faster without a mask.
        # With position ids the mask must stay: without a mask transformers looks for packed sequences in them.
        mask_is_redundant = tokens is not None and tokens.is_right_padded and position_ids is None
        is_local = self.config.sliding_window is not None
        create_mask = create_sliding_window_causal_mask if is_local else create_causal_mask
        mask = create_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=None if mask_is_redundant else attention_mask,
            cache=self_attention_cache(cache),
            # a packed sequence begins where positions restart, and does not attend to earlier sequences
            position_ids=position_ids,
        )
        if position_ids is None:
            past_length = cache.get_seq_length() if cache is not None else 0
            position_ids = token_positions(attention_mask, inputs_embeds.shape[1], past_length, inputs_embeds.device)
        return position_ids, AttentionContext(mask, tokens=tokens)

    def prepare_memory(
        self,
        memory: torch.Tensor,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        skip_padding: bool = False,
    ) -> tuple[torch.Tensor, AttentionContext]:
        """Prepare the memory, which is the encoder output, and its context.

        Args:
            memory: (batch, source_len, d_model).
            attention_mask: (batch, source_len), 1 for a real token, 0 for padding.
            inputs_embeds: (batch, target_len, d_model), the decoder input that attends to the memory.
            skip_padding: Whether to compute real tokens only.

        Returns:
            The memory and its context; the memory is unpadded to (tokens, d_model) if `context.tokens` is set.
        """
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            encoder_hidden_states=memory,
        )
        tokens = RealTokens.from_mask(memory, attention_mask) if skip_padding else None
        if tokens is not None:
            memory = tokens.unpad(memory)  # (tokens, d_model)
        return memory, AttentionContext(mask, tokens=tokens)

    def run_layers(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        context: AttentionContext = NO_CONTEXT,
        memory: torch.Tensor | None = None,
        memory_context: AttentionContext = NO_CONTEXT,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Run the stack on embedded tokens, with position ids and contexts from `prepare` and `prepare_memory`.

        Args:
            inputs_embeds: (batch, target_len, d_model).
            position_ids: (batch or 1, target_len).
            context: Context of the target; the rotation is added here.
            memory: (batch, source_len, d_model), the encoder output; (tokens, d_model) if its context has `tokens`.
            memory_context: Context of the memory.
            cache: Keys and values of earlier calls.
            **kwargs: Arguments of the attention function.

        Returns:
            (batch, target_len, d_model).
        """
        hidden_states, rotation = self.embed_positions(inputs_embeds, position_ids)
        hidden_states = self.dropout(self.embedding_norm(hidden_states))
        context = context._replace(rotation=rotation)
        if context.tokens is not None:
            hidden_states = context.tokens.unpad(hidden_states)  # (tokens, d_model)
        for layer in islice(self.layers, self.config.decoder_layers):
            hidden_states = layer(hidden_states, context, memory, memory_context, cache=cache, **kwargs)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        return hidden_states if context.tokens is None else context.tokens.pad(hidden_states)
