"""The two stacks of Figure 1, encoder and decoder (paper section 3.1)."""

import re
from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
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

# How tensor parallelism cuts each projection, so that one sum over the devices ends every sub-layer.
TENSOR_PARALLEL_STYLES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), "colwise"),
    **dict.fromkeys(("o_proj", "down_proj"), "rowwise"),
}


class TriviumStack(TriviumPreTrainedModel):
    """What encoder and decoder share: embedded tokens, their positions, dropout, N layers."""

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
        """As in transformers, and say how tensor parallelism cuts this stack."""
        super().post_init()
        self._tp_plan = {"embed_tokens": "embedding_rowwise"} | {
            re.sub(r"\d+", "*", f"layers.{name}"): TENSOR_PARALLEL_STYLES[name.rsplit(".")[-1]]
            for name, module in self.layers.named_modules()
            if isinstance(module, nn.Linear)
        }

    def embed(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Look up (batch, length) ids, or take the (batch, length, d_model) embeddings that the caller brings.

        Raises:
            ValueError: Both are given, or neither.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                f"{type(self).__name__} takes either input_ids or inputs_embeds (in the decoder: decoder_input_ids or "
                f"decoder_inputs_embeds), but got {'neither' if input_ids is None else 'both'}."
            )
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds


class TriviumEncoder(TriviumStack):
    """N layers of self-attention and feed-forward over the source (section 3.1)."""

    _no_split_modules = ["EncoderLayer"]  # FSDP refuses names of what is not there
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": MultiHeadAttention}

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config, config.vocab_size, (EncoderLayer(config, i) for i in range(config.encoder_layers)))
        if config.type_vocab_size:
            self.embed_token_types = nn.Embedding(config.type_vocab_size, config.d_model)
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # PEFT's prefix, for the attention
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
            position_ids: (batch, source_len); by default real tokens count from 0.
            inputs_embeds: (batch, source_len, d_model), in place of `input_ids`.
            token_type_ids: (batch, source_len), below `type_vocab_size`; by default 0.
            skip_padding: Do not work on padding, whose last states, and no others, are zeros then.
            **kwargs: `output_attentions`, `output_hidden_states`, and what the attention function takes.

        Returns:
            `last_hidden_state`: (batch, source_len, d_model).

        Raises:
            ValueError: There are token types, but the model knows none.
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        tokens = RealTokens.of_padded(inputs_embeds, attention_mask) if skip_padding else None
        if position_ids is None:
            position_ids = token_positions(attention_mask, inputs_embeds.shape[1], 0, inputs_embeds.device)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask
        )
        if self.config.type_vocab_size:
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(position_ids)
            inputs_embeds = inputs_embeds + self.embed_token_types(token_type_ids)
        elif token_type_ids is not None:
            raise ValueError("token_type_ids are given, but type_vocab_size is 0: the model knows no token types.")
        hidden_states, rotation = self.embed_positions(inputs_embeds, position_ids)
        hidden_states = self.dropout(self.embedding_norm(hidden_states))
        if tokens is not None:
            hidden_states = tokens.pick(hidden_states)  # (tokens, d_model)
        context = AttentionContext(mask, rotation, tokens)
        for layer in islice(self.layers, self.config.encoder_layers):
            hidden_states = layer(hidden_states, context, **kwargs)
        hidden_states = self.norm(hidden_states)
        if tokens is not None:
            hidden_states = tokens.place(hidden_states)  # (batch, source_len, d_model)
        return BaseModelOutput(last_hidden_state=hidden_states)


class TriviumDecoder(TriviumStack):
    """N layers of masked self-attention, attention to the encoder, and feed-forward over the target (section 3.1).

    Without an encoder (`config.is_encoder_decoder` is False) its layers have no attention to it: GPT's way.
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
        """Decode the target, each position seeing itself, those before it, and the whole source.

        Args:
            input_ids: (batch, target_len); with a cache, the tokens that are not in it.
            attention_mask: (batch, cached length + target_len), 1 for a real token, 0 for padding, on either side.
            position_ids: (batch, target_len); by default real tokens count from 0.
            encoder_hidden_states: (batch, source_len, d_model), if there is an encoder.
            encoder_attention_mask: (batch, source_len).
            cache: Keys and values of earlier calls.
            inputs_embeds: (batch, target_len, d_model), in place of `input_ids`.
            use_cache: Whether to make a cache if there is none.
            skip_padding: Do not work on padding, whose last states, and no others, are zeros then.
            **kwargs: `output_attentions`, `output_hidden_states`, and what the attention function takes.

        Returns:
            `last_hidden_state`: (batch, target_len, d_model), and the cache.

        Raises:
            ValueError: There is no encoder output to look at, or no layer that could.
        """
        if (encoder_hidden_states is not None) != self.config.is_encoder_decoder:
            raise ValueError(
                "encoder_hidden_states is None, but every layer of this decoder attends to it."
                if encoder_hidden_states is None
                else "encoder_hidden_states are given, but this decoder-only model has no attention to them."
            )
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        position_ids, context = self.prepare(inputs_embeds, attention_mask, position_ids, cache, skip_padding)
        memory, memory_context = encoder_hidden_states, NO_CONTEXT
        if memory is not None:
            memory, memory_context = self.prepare_memory(memory, encoder_attention_mask, inputs_embeds, skip_padding)
        if use_cache and cache is None:  # after the mask, which with a cache would not look for packing
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
        """Prepare the positions of the target and its context, all but the rotation.

        Args:
            inputs_embeds: (batch, target_len, d_model).
            attention_mask: (batch, cached length + target_len), 1 for a real token, 0 for padding.
            position_ids: (batch, target_len); by default real tokens count from 0.
            cache: Keys and values of earlier calls.
            skip_padding: Whether the layers are to work on real tokens alone.

        Returns:
            Position ids, (batch or 1, target_len), and the context.
        """
        tokens = RealTokens.of_padded(inputs_embeds, attention_mask) if skip_padding else None
        # Padding at the end no real token sees anyway, and without a mask attention is faster, but looks for packing.
        mask_is_idle = tokens is not None and tokens.come_first and position_ids is None
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=None if mask_is_idle else attention_mask,
            cache=self_attention_cache(cache),
            position_ids=position_ids,  # restarting positions are packed sentences, which do not see each other
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
        """Prepare the encoder's output and its context.

        Args:
            memory: (batch, source_len, d_model).
            attention_mask: (batch, source_len), 1 for a real token, 0 for padding.
            inputs_embeds: (batch, target_len, d_model), what looks at the memory.
            skip_padding: Whether the layers are to work on real tokens alone.

        Returns:
            The memory, (tokens, d_model) if its context has `tokens`, and the context.
        """
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            encoder_hidden_states=memory,
        )
        tokens = RealTokens.of_padded(memory, attention_mask) if skip_padding else None
        if tokens is not None:
            memory = tokens.pick(memory)  # (tokens, d_model)
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
        """Run embedded tokens through the stack, with all prepared but the rotation.

        Args:
            inputs_embeds: (batch, target_len, d_model).
            position_ids: (batch or 1, target_len).
            context: The mask in the form that the attention function takes, and where the real tokens are.
            memory: (batch, source_len, d_model), the encoder's output; (tokens, d_model) if its context has `tokens`.
            memory_context: The same of the memory.
            cache: Keys and values of earlier calls.
            **kwargs: What the attention function takes.

        Returns:
            (batch, target_len, d_model).
        """
        hidden_states, rotation = self.embed_positions(inputs_embeds, position_ids)
        hidden_states = self.dropout(self.embedding_norm(hidden_states))
        context = context._replace(rotation=rotation)
        if context.tokens is not None:
            hidden_states = context.tokens.pick(hidden_states)  # (tokens, d_model)
        for layer in islice(self.layers, self.config.decoder_layers):
            hidden_states = layer(hidden_states, context, memory, memory_context, cache=cache, **kwargs)
        hidden_states = self.norm(hidden_states)
        return hidden_states if context.tokens is None else context.tokens.place(hidden_states)
