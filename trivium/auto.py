"""What transformers' Auto classes and pipelines do with a Trivium configuration, where the package is installed."""

from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, pipelines
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trivium.configuration import TriviumConfig
from trivium.modeling import TriviumForCausalLM
from trivium.modeling.auto_map import WITH_BOTH, WITH_DECODER, WITH_ENCODER, auto_classes
from trivium.modeling.pipeline_translation import TranslationPipeline
from trivium.tokenization import TriviumTokenizer


class AnyModel:
    """Stands for three classes, one for each way, where an Auto class knows only one for a kind of configuration."""

    auto_class = "AutoModel"

    @classmethod
    def fitting(cls, config: TriviumConfig) -> type[PreTrainedModel]:
        """The class for this configuration."""
        return auto_classes(config)[cls.auto_class]

    @classmethod
    def from_pretrained(cls, *args: Any, config: TriviumConfig, **kwargs: Any) -> PreTrainedModel:
        """Load a model of the fitting class; an Auto class has read its configuration already."""
        return cls.fitting(config).from_pretrained(*args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: TriviumConfig, **kwargs: Any) -> PreTrainedModel:
        return cls.fitting(config)._from_config(config, **kwargs)


class AnyModelForPreTraining(AnyModel):
    """The same, with the head that each way is pre-trained with."""

    auto_class = "AutoModelForPreTraining"


def register() -> None:
    """Make transformers know Trivium, and every saved folder carry the code for where it is not installed."""
    AutoConfig.register("trivium", TriviumConfig)
    AutoTokenizer.register(TriviumConfig, fast_tokenizer_class=TriviumTokenizer)
    TriviumConfig.register_for_auto_class()
    TriviumTokenizer.register_for_auto_class()
    choices = {"AutoModel": AnyModel, "AutoModelForPreTraining": AnyModelForPreTraining}
    for name, model in WITH_BOTH.items():
        getattr(transformers, name).register(TriviumConfig, choices.get(name, model))
    for classes in (WITH_ENCODER, WITH_DECODER, WITH_BOTH):
        for name, model in classes.items():
            model.register_for_auto_class(name)
    # By this name the Trainer's own label smoothing knows whose labels are to be shifted.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["trivium"] = TriviumForCausalLM.__name__
    getattr(pipelines, "REMOVED_TASKS", {}).pop("translation", None)  # newer releases refuse the name itself
    pipelines.PIPELINE_REGISTRY.register_pipeline(
        "translation", TranslationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
    )
