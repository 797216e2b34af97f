"""What transformers' Auto classes do with a Trivium configuration, for where the package is installed."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trivium.configuration import TriviumConfig
from trivium.modeling import (
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumModel,
)
from trivium.tokenization import TriviumTokenizer


class OneOfThree:
    """Stands for three classes, one for each way, where an Auto class knows only one for a kind of configuration."""

    both: type[PreTrainedModel]
    encoder_only: type[PreTrainedModel]
    decoder_only: type[PreTrainedModel]

    @classmethod
    def fitting(cls, config: TriviumConfig) -> type[PreTrainedModel]:
        """The class for this configuration."""
        if config.is_encoder_decoder:
            return cls.both
        return cls.encoder_only if config.encoder_layers else cls.decoder_only

    @classmethod
    def from_pretrained(cls, *args: Any, config: TriviumConfig, **kwargs: Any) -> PreTrainedModel:
        """Load a model of the fitting class; an Auto class has read its configuration already."""
        return cls.fitting(config).from_pretrained(*args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: TriviumConfig, **kwargs: Any) -> PreTrainedModel:
        return cls.fitting(config)._from_config(config, **kwargs)


class AnyModel(OneOfThree):
    """Without a head."""

    both, encoder_only, decoder_only = TriviumModel, TriviumEncoderModel, TriviumDecoderModel


class AnyModelForPreTraining(OneOfThree):
    """With the head that each way is pre-trained with."""

    both, encoder_only, decoder_only = TriviumForConditionalGeneration, TriviumForMaskedLM, TriviumForCausalLM


def register() -> None:
    """Make the Auto classes know Trivium, and every saved folder carry the code for where it is not installed."""
    AutoConfig.register("trivium", TriviumConfig)
    AutoTokenizer.register(TriviumConfig, fast_tokenizer_class=TriviumTokenizer)
    AutoModel.register(TriviumConfig, AnyModel)
    AutoModelForPreTraining.register(TriviumConfig, AnyModelForPreTraining)
    AutoModelForTextEncoding.register(TriviumConfig, TriviumEncoderModel)
    # By this name the Trainer's own label smoothing knows whose labels are to be shifted.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["trivium"] = TriviumForCausalLM.__name__

    TriviumConfig.register_for_auto_class()
    TriviumTokenizer.register_for_auto_class()
    for model in (TriviumModel, TriviumEncoderModel, TriviumDecoderModel):
        model.register_for_auto_class("AutoModel")
    for auto_class, model in {
        AutoModelForSeq2SeqLM: TriviumForConditionalGeneration,
        AutoModelForMaskedLM: TriviumForMaskedLM,
        AutoModelForSequenceClassification: TriviumForSequenceClassification,
        AutoModelForTokenClassification: TriviumForTokenClassification,
        AutoModelForQuestionAnswering: TriviumForQuestionAnswering,
        AutoModelForCausalLM: TriviumForCausalLM,
    }.items():
        auto_class.register(TriviumConfig, model)
        model.register_for_auto_class(auto_class.__name__)
