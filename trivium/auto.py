"""Registration with transformers' Auto classes and pipelines."""

from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    pipelines,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from trivium.configuration import TriviumConfig
from trivium.modeling.auto_map import WITH_BOTH, WITH_DECODER, WITH_ENCODER, auto_classes
from trivium.modeling.pipeline_question_answering import QuestionAnsweringPipeline
from trivium.modeling.pipeline_summarization import SummarizationPipeline
from trivium.modeling.pipeline_translation import TranslationPipeline
from trivium.tokenization import TriviumTokenizer


class AnyModel:
    """Stand-in for `AutoModel` that selects the model class from the configuration.

    An Auto class maps a configuration class to one model class, but Trivium has one for each architecture.
    """

    auto_class = "AutoModel"

    @classmethod
    def model_class_for(cls, config: TriviumConfig) -> type[PreTrainedModel]:
        """Return the model class for this configuration."""
        return auto_classes(config)[cls.auto_class]

    @classmethod
    def from_pretrained(cls, *args: Any, config: TriviumConfig, **kwargs: Any) -> PreTrainedModel:
        """Load a model of the matching class; the Auto class has already read its configuration."""
        return cls.model_class_for(config).from_pretrained(*args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: TriviumConfig, **kwargs: Any) -> PreTrainedModel:
        return cls.model_class_for(config)._from_config(config, **kwargs)


class AnyModelForPreTraining(AnyModel):
    """Select the model class for `AutoModelForPreTraining`."""

    auto_class = "AutoModelForPreTraining"


class AnyModelForSequenceClassification(AnyModel):
    """Select the model class for `AutoModelForSequenceClassification`."""

    auto_class = "AutoModelForSequenceClassification"


BY_CONFIGURATION: dict[str, type] = {
    entry.auto_class: entry for entry in (AnyModel, AnyModelForPreTraining, AnyModelForSequenceClassification)
}


def register() -> None:
    """Register Trivium's classes with the Auto classes and pipelines, and make `save_pretrained` copy their code."""
    AutoConfig.register("trivium", TriviumConfig)
    TriviumConfig.register_for_auto_class()
    AutoTokenizer.register(TriviumConfig, fast_tokenizer_class=TriviumTokenizer)
    TriviumTokenizer.register_for_auto_class()
    for name, model in WITH_BOTH.items():
        getattr(transformers, name).register(TriviumConfig, BY_CONFIGURATION.get(name, model))
    for classes in (WITH_ENCODER, WITH_DECODER, WITH_BOTH):
        for name, model in classes.items():
            model.register_for_auto_class(name)
    # The Trainer's label smoothing uses this mapping to decide whether the labels must be shifted.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["trivium"] = "TriviumForCausalLM"
    # The text-classification pipeline checks class names, and only the stand-in is registered with the Auto class.
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["trivium"] = tuple(
        classes["AutoModelForSequenceClassification"].__name__ for classes in (WITH_ENCODER, WITH_DECODER)
    )

    # transformers 5 has removed these pipelines, and rejects the name of a removed task even if it is registered.
    for pipeline, auto_class in (
        (TranslationPipeline, AutoModelForSeq2SeqLM),
        (SummarizationPipeline, AutoModelForSeq2SeqLM),
        (QuestionAnsweringPipeline, AutoModelForQuestionAnswering),
    ):
        getattr(pipelines, "REMOVED_TASKS", {}).pop(pipeline.task_name, None)
        pipelines.PIPELINE_REGISTRY.register_pipeline(pipeline.task_name, pipeline, pt_model=auto_class, type="text")
