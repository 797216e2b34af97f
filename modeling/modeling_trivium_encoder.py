"""Second way: the encoder alone, as in BERT, and heads to fill masks, classify texts and tokens, and find answers."""

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
from .loss import IGNORED, classification_loss, label_smoothed_cross_entropy
from .normalization import NORMS
from .pretrained import TriviumPreTrainedModel
from .stacks import TriviumEncoder


class TriviumEncoderPreTrainedModel(TriviumPreTrainedModel):
    """What encoder-only models have in common: they also come from the checkpoint of an encoder-decoder.

    Raises:
        ValueError: The configuration has no encoder.
    """

    _no_split_modules = ["EncoderLayer"]
    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?decoder\.", r"^lm_head\."]

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config.encoder_only())


class TriviumEncoderModel(TriviumEncoderPreTrainedModel):
    """The encoder, without a head."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.encoder = TriviumEncoder(self.config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
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
            position_ids: (batch, length); by default real tokens count from 0.
            inputs_embeds: (batch, length, d_model), in place of `input_ids`.
            **kwargs: `output_attentions`, `output_hidden_states`, and what the attention function takes.

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
    """BERT's: a dense layer with activation and norm, and the projection to the vocabulary, with a bias of its own."""

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
    """The encoder and BERT's head: says which tokens the masks stand for."""

    _tied_weights_keys = {"mlm_head.decoder.weight": "model.encoder.embed_tokens.weight"}
    _tp_plan = {"mlm_head.decoder": "colwise_gather_output"}

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__(config)
        self.model = TriviumEncoderModel(self.config)
        self.mlm_head = MaskedLMHead(self.config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The projection to the vocabulary."""
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the projection to the vocabulary."""
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
        """Predict the token at every position. More on the inputs in `TriviumEncoderModel.forward`.

        Args:
            input_ids: (batch, length), some of them masked.
            attention_mask: (batch, length).
            token_type_ids: (batch, length).
            position_ids: (batch, length).
            inputs_embeds: (batch, length, d_model).
            labels: (batch, length), the original tokens, with -100 where nothing was masked.
            skip_logits: With labels, give the loss alone, which then takes far less memory and time.
            **kwargs: As in `TriviumEncoderModel.forward`; `num_items_in_batch` is what the loss is divided by.

        Returns:
            `logits`: (batch, length, vocabulary), or None if skipped, `loss`: a scalar, smoothed in training mode
            only.
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
    """BERT's: one vector for the text, a dense layer with tanh, dropout, and a projection to the labels."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.pooling = config.classifier_pooling
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.out_proj = nn.Linear(config.d_model, config.num_labels)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Map (batch, length, d_model), of which (batch, length) are real tokens, to (batch, labels)."""
        return self.out_proj(self.dropout(self.dense(self._pool(hidden_states, attention_mask)).tanh()))

    def _pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if attention_mask is None:
            return hidden_states.mean(dim=1) if self.pooling == "mean" else hidden_states[:, 0]
        real = attention_mask.to(hidden_states.device) > 0
        if self.pooling == "mean":
            kept = hidden_states.masked_fill(~real[..., None], 0)
            return kept.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)
        first = real.int().argmax(dim=1)  # not 0, where the padding is on the left
        return hidden_states[torch.arange(len(first), device=first.device), first]


class TriviumForSequenceClassification(TriviumEncoderPreTrainedModel):
    """The encoder and a head for the text as a whole: one label of many, several labels, or numbers."""

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
        """Score the labels of a text. More on the inputs in `TriviumEncoderModel.forward`.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length).
            token_type_ids: (batch, length).
            position_ids: (batch, length).
            inputs_embeds: (batch, length, d_model).
            labels: (batch,) indices of labels; or (batch, labels) of 0.0 and 1.0, where several can hold; or numbers,
                (batch,) or (batch, labels), for regression. `config.problem_type` says which; without it, one label
                in the configuration means regression, whole numbers mean indices, and fractions several labels.
            **kwargs: As in `TriviumEncoderModel.forward`; `num_items_in_batch` is what the loss is divided by.

        Returns:
            `logits`: (batch, labels), `loss`: a scalar, smoothed in training mode only.
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
    """The encoder and a projection to labels at every token."""

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
        """Score the labels of every token. More on the inputs in `TriviumEncoderModel.forward`.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length).
            token_type_ids: (batch, length).
            position_ids: (batch, length).
            inputs_embeds: (batch, length, d_model).
            labels: (batch, length), with -100 for tokens that do not count.
            **kwargs: As in `TriviumEncoderModel.forward`; `num_items_in_batch` is what the loss is divided by.

        Returns:
            `logits`: (batch, length, labels), `loss`: a scalar, smoothed in training mode only.
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
    """The encoder and two scores at every token: that the answer begins there, that it ends there."""

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
        """Score where an answer begins and ends. More on the inputs in `TriviumEncoderModel.forward`.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length).
            token_type_ids: (batch, length).
            position_ids: (batch, length).
            inputs_embeds: (batch, length, d_model).
            start_positions: (batch,); one beyond the length, where the answer was cut off, does not count.
            end_positions: (batch,); likewise.
            **kwargs: As in `TriviumEncoderModel.forward`.

        Returns:
            `start_logits` and `end_logits`: (batch, length), `loss`: a scalar, the mean of both sides.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            sides = ((start_logits, start_positions), (end_logits, end_positions))  # the places are the classes
            start_loss, end_loss = (
                label_smoothed_cross_entropy(logits, places.masked_fill(places >= logits.shape[-1], IGNORED))
                for logits, places in sides
            )
            loss = (start_loss + end_loss) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
