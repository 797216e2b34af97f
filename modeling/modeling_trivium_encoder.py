"""Encoder-only models, as in BERT, with heads for masked LM, classification and extractive question answering."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_trivium import TriviumConfig
from .embeddings import TokenEmbedding
from .loss import IGNORE_INDEX, classification_loss, label_smoothed_cross_entropy
from .normalization import NORMS
from .pretrained import TriviumPreTrainedModel
from .stacks import TriviumEncoder


class TriviumEncoderPreTrainedModel(TriviumPreTrainedModel):
    """Base class of encoder-only models. They can also be loaded from the checkpoint of an encoder-decoder.

    Raises:
        ValueError: The configuration has no encoder.
    """

    _no_split_modules = ["EncoderLayer"]
    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?decoder\.", r"^lm_head\."]

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config.encoder_only())


class TriviumEncoderModel(TriviumEncoderPreTrainedModel):
    """Encoder without a head."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.encoder = TriviumEncoder(self.config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: TokenEmbedding) -> None:
        """Replace the token embedding."""
        self.encoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode a text.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 1 for a real token, 0 for padding, on either side.
            token_type_ids: (batch, length), below `config.type_vocab_size`; by default 0.
            position_ids: (batch, length); by default, real tokens are counted from 0.
            inputs_embeds: (batch, length, d_model), instead of `input_ids`.
            **kwargs: `output_attentions`, `output_hidden_states`, and arguments of the attention function.

        Returns:
            `last_hidden_state`: (batch, length, d_model).
        """
        return self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class MaskedLMHead(nn.Module):
    """Masked LM head, as in BERT: dense layer, activation, norm, and output projection with a bias."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.activation = ACT2FN[config.activation_function]
        self.norm = NORMS[config.norm_type](config)
        self.decoder = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, d_model) to logits (batch, length, vocabulary)."""
        return self.decoder(self.norm(self.activation(self.dense(hidden_states))))


class TriviumForMaskedLM(TriviumEncoderPreTrainedModel):
    """Encoder with a masked language modeling head, which predicts the masked tokens."""

    _tied_weights_keys = {"mlm_head.decoder.weight": "model.encoder.embed_tokens.weight"}
    _tp_plan = {"mlm_head.decoder": "colwise_gather_output"}

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.model = TriviumEncoderModel(self.config)
        self.mlm_head = MaskedLMHead(self.config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the output projection."""
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the output projection."""
        self.mlm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Return logits of the token at every position and, if `labels` is passed, the loss.

        See `TriviumEncoderModel.forward` for details of the inputs.

        Args:
            input_ids: (batch, length), some of them masked.
            attention_mask: (batch, length).
            token_type_ids: (batch, length).
            position_ids: (batch, length).
            inputs_embeds: (batch, length, d_model).
            labels: (batch, length), original tokens at masked positions, -100 elsewhere.
            skip_logits: Whether to return only the loss if `labels` is passed, which saves much memory and time.
            **kwargs: As in `TriviumEncoderModel.forward`, and `num_items_in_batch`, the divisor of the loss.

        Returns:
            `logits`: (batch, length, vocabulary), or None if skipped; `loss`: a scalar, with label smoothing in
            training mode only.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            skip_padding=self._can_skip_padding(labels, attention_mask, skip_logits, **kwargs),
            **kwargs,
        )
        loss, logits = self._predict_tokens(
            self.mlm_head,
            outputs.last_hidden_state,
            labels,
            self.config.vocab_size,
            skip_logits,
            kwargs.get("num_items_in_batch"),
        )
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ClassificationHead(nn.Module):
    """Classification head, as in BERT: pooling, dense layer, tanh, dropout and projection to the labels."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.pooling = config.classifier_pooling
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.out_proj = nn.Linear(config.d_model, config.num_labels)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map hidden states (batch, length, d_model), with a mask (batch, length), to logits (batch, labels).

        Without a mask, all positions count as real. Pass states that are already pooled as (batch, 1, d_model).
        """
        return self.out_proj(self.dropout(self.dense(self._pool(hidden_states, attention_mask)).tanh()))

    def _pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if attention_mask is None:
            if self.pooling == "max":
                return hidden_states.amax(dim=1)
            return hidden_states.mean(dim=1) if self.pooling == "mean" else hidden_states[:, 0]
        is_real = attention_mask.to(hidden_states.device) > 0
        if self.pooling == "mean":
            hidden_states = hidden_states.masked_fill(~is_real[..., None], 0)
            return hidden_states.sum(dim=1) / is_real.sum(dim=1, keepdim=True).clamp(min=1)
        if self.pooling == "max":
            lowest = torch.finfo(hidden_states.dtype).min
            maxima = hidden_states.masked_fill(~is_real[..., None], lowest).amax(dim=1)
            return maxima.masked_fill(~is_real.any(dim=1, keepdim=True), 0)
        first = is_real.int().argmax(dim=1)  # (batch,), above 0 with padding on the left
        # `len()` would fix the batch size in an exported graph.
        return hidden_states[torch.arange(first.shape[0], device=first.device), first]


class TriviumForSequenceClassification(TriviumEncoderPreTrainedModel):
    """Encoder with a sequence classification head: single-label, multi-label or regression."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.model = TriviumEncoderModel(self.config)
        self.classifier = ClassificationHead(self.config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Return logits of the labels of a text and, if `labels` is passed, the loss.

        See `TriviumEncoderModel.forward` for details of the inputs.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length).
            token_type_ids: (batch, length).
            position_ids: (batch, length).
            inputs_embeds: (batch, length, d_model).
            labels: (batch,) class indices (single-label); (batch, labels) of 0.0 and 1.0 (multi-label); or floats,
                (batch,) or (batch, labels) (regression). `config.problem_type` selects the loss; by default, it is
                regression if `config.num_labels` is 1, otherwise single-label for integers and multi-label for floats.
            **kwargs: As in `TriviumEncoderModel.forward`, and `num_items_in_batch`, the divisor of the loss.

        Returns:
            `logits`: (batch, labels); `loss`: a scalar, with label smoothing in training mode only.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(outputs.last_hidden_state, attention_mask)
        loss = None
        if labels is not None:
            loss = classification_loss(
                logits, labels, self.config.problem_type, self.label_smoothing, kwargs.get("num_items_in_batch")
            )
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TriviumForTokenClassification(TriviumEncoderPreTrainedModel):
    """Encoder with a token classification head, a projection to the labels at every token."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.model = TriviumEncoderModel(self.config)
        self.dropout = nn.Dropout(self.config.dropout)
        self.classifier = nn.Linear(self.config.d_model, self.config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Return logits of the labels of every token and, if `labels` is passed, the loss.

        See `TriviumEncoderModel.forward` for details of the inputs.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length).
            token_type_ids: (batch, length).
            position_ids: (batch, length).
            inputs_embeds: (batch, length, d_model).
            labels: (batch, length), with -100 for tokens to ignore.
            **kwargs: As in `TriviumEncoderModel.forward`, and `num_items_in_batch`, the divisor of the loss.

        Returns:
            `logits`: (batch, length, labels); `loss`: a scalar, with label smoothing in training mode only.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = label_smoothed_cross_entropy(logits, labels, self.label_smoothing, kwargs.get("num_items_in_batch"))
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TriviumForQuestionAnswering(TriviumEncoderPreTrainedModel):
    """Encoder with an extractive question answering head: start and end logits of the answer at every token."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.model = TriviumEncoderModel(self.config)
        self.qa_outputs = nn.Linear(self.config.d_model, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Return start and end logits of the answer and, if both positions are passed, the loss.

        See `TriviumEncoderModel.forward` for details of the inputs.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length).
            token_type_ids: (batch, length).
            position_ids: (batch, length).
            inputs_embeds: (batch, length, d_model).
            start_positions: (batch,), index of the answer's first token; ignored if beyond the length (truncated).
            end_positions: (batch,), index of the answer's last token; ignored if beyond the length (truncated).
            **kwargs: As in `TriviumEncoderModel.forward`.

        Returns:
            `start_logits` and `end_logits`: (batch, length); `loss`: a scalar, the mean of start and end loss.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start_logits.shape[-1]  # classification over positions
            start_positions = start_positions.masked_fill(start_positions >= length, IGNORE_INDEX)
            end_positions = end_positions.masked_fill(end_positions >= length, IGNORE_INDEX)
            start_loss = label_smoothed_cross_entropy(start_logits, start_positions)
            end_loss = label_smoothed_cross_entropy(end_logits, end_positions)
            loss = (start_loss + end_loss) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
