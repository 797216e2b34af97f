"""Which classes transformers' Auto classes and pipelines give for a configuration."""

from typing import Any

from transformers import PreTrainedModel

from .configuration_trivium import TriviumConfig
from .modeling_trivium import TriviumForConditionalGeneration, TriviumModel
from .modeling_trivium_decoder import TriviumDecoderModel, TriviumForCausalLM
from .modeling_trivium_encoder import (
    TriviumEncoderModel,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
)
from .pipeline_translation import TranslationPipeline

WITH_ENCODER: dict[str, type[PreTrainedModel]] = {
    "AutoModel": TriviumEncoderModel,
    "AutoModelForTextEncoding": TriviumEncoderModel,
    "AutoModelForPreTraining": TriviumForMaskedLM,
    "AutoModelForMaskedLM": TriviumForMaskedLM,
    "AutoModelForSequenceClassification": TriviumForSequenceClassification,
    "AutoModelForTokenClassification": TriviumForTokenClassification,
    "AutoModelForQuestionAnswering": TriviumForQuestionAnswering,
}
WITH_DECODER: dict[str, type[PreTrainedModel]] = {
    "AutoModel": TriviumDecoderModel,
    "AutoModelForPreTraining": TriviumForCausalLM,
    "AutoModelForCausalLM": TriviumForCausalLM,
}
WITH_BOTH: dict[str, type[PreTrainedModel]] = {
    **WITH_ENCODER,
    **WITH_DECODER,
    "AutoModel": TriviumModel,
    "AutoModelForPreTraining": TriviumForConditionalGeneration,
    "AutoModelForSeq2SeqLM": TriviumForConditionalGeneration,
}


def auto_classes(config: TriviumConfig) -> dict[str, type[PreTrainedModel]]:
    """Every Auto class that a model of this configuration, or one of its halves, fits, and what it gives."""
    if config.is_encoder_decoder:
        return WITH_BOTH
    return WITH_ENCODER if config.encoder_layers else WITH_DECODER


def auto_map(config: TriviumConfig) -> dict[str, str]:
    """The same, as `config.json` has it."""
    return {name: _in_folder(model) for name, model in auto_classes(config).items()}


def custom_pipelines(config: TriviumConfig) -> dict[str, dict[str, Any]]:
    """The pipelines that a model of this configuration brings along, as `config.json` has them."""
    if not config.is_encoder_decoder:
        return {}
    return {"translation": {"impl": _in_folder(TranslationPipeline), "pt": ["AutoModelForSeq2SeqLM"], "type": "text"}}


def _in_folder(travelling: type) -> str:
    return f"{travelling.__module__.rsplit('.')[-1]}.{travelling.__name__}"
