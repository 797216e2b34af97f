"""Mapping from transformers' Auto classes and pipelines to the model classes of a configuration."""

from typing import Any

from transformers import PreTrainedModel

from .configuration_trivium import TriviumConfig
from .modeling_trivium import TriviumForConditionalGeneration, TriviumModel
from .modeling_trivium_decoder import (
    TriviumDecoderForSequenceClassification,
    TriviumDecoderModel,
    TriviumForCausalLM,
)
from .modeling_trivium_encoder import (
    TriviumEncoderModel,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
)
from .pipeline_question_answering import QuestionAnsweringPipeline
from .pipeline_summarization import SummarizationPipeline
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
    "AutoModelForSequenceClassification": TriviumDecoderForSequenceClassification,
}
WITH_BOTH: dict[str, type[PreTrainedModel]] = {
    **WITH_DECODER,
    **WITH_ENCODER,
    "AutoModel": TriviumModel,
    "AutoModelForPreTraining": TriviumForConditionalGeneration,
    "AutoModelForSeq2SeqLM": TriviumForConditionalGeneration,
}


def auto_classes(config: TriviumConfig) -> dict[str, type[PreTrainedModel]]:
    """Return the model class of each Auto class that can load a model of this configuration or one of its stacks."""
    if config.is_encoder_decoder:
        return WITH_BOTH
    return WITH_ENCODER if config.encoder_layers else WITH_DECODER


def auto_map(config: TriviumConfig) -> dict[str, str]:
    """Return `auto_classes` in the format of `auto_map` in `config.json`."""
    return {name: _hub_reference(model_class) for name, model_class in auto_classes(config).items()}


def custom_pipelines(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """Return the custom pipeline of a model, if it has one, in the format of `config.json`."""
    auto_class = "AutoModelForSeq2SeqLM"
    # If only one pipeline is registered, `pipeline(model=folder)` can infer the task.
    pipeline: Any = TranslationPipeline
    if isinstance(model, TriviumForQuestionAnswering):
        auto_class, pipeline = "AutoModelForQuestionAnswering", QuestionAnsweringPipeline
    elif not model.config.is_encoder_decoder:
        return {}
    elif model.config.seq2seq_task == "summarization":
        pipeline = SummarizationPipeline
    return {pipeline.task_name: {"impl": _hub_reference(pipeline), "pt": [auto_class], "type": "text"}}


def _hub_reference(saved_class: type) -> str:
    """Return "module.class", as transformers refers to a class whose file is saved in the folder."""
    return f"{saved_class.__module__.rsplit('.')[-1]}.{saved_class.__name__}"
