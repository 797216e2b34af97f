"""What transformers' Auto classes and pipelines do with a Trivium configuration, where the package is installed.

`import trivium` makes them know it, and yet imports nothing that takes time: each thing is registered when what it is
registered with is imported. A finder in `sys.meta_path` sees to it that some modules, theirs and ours, are followed by
something, right after they have run and before whoever imports them goes on (`AFTER_IMPORT`). Theirs are followed by
an import of ours, and ours by the registration. Where ours has begun, and itself imports theirs, that import does
nothing, and the registration comes when ours has run.

The models cannot follow at once, for transformers imports its Auto classes halfway through what models are made of.
Until they are imported, subclasses of `AnyModel` stand for them, and import them when a model is asked for.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trivium.configuration import TriviumConfig

AUTO_MODELS = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTextEncoding",
    "AutoModelForTokenClassification",
)


class AnyModel:
    """Stands for three classes, one for each way, where an Auto class knows only one for a kind of configuration.

    A subclass stands for a class that is not imported yet.
    """

    auto_class = "AutoModel"

    @classmethod
    def fitting(cls, config: "TriviumConfig") -> type["PreTrainedModel"]:
        """The class for this configuration; where none is, the one that says so."""
        from trivium.modeling.auto_map import WITH_BOTH, auto_classes

        return {**WITH_BOTH, **auto_classes(config)}[cls.auto_class]

    @classmethod
    def from_pretrained(cls, *args: Any, config: "TriviumConfig", **kwargs: Any) -> "PreTrainedModel":
        """Load a model of the fitting class; an Auto class has read its configuration already."""
        return cls.fitting(config).from_pretrained(*args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: "TriviumConfig", **kwargs: Any) -> "PreTrainedModel":
        return cls.fitting(config)._from_config(config, **kwargs)


class AnyModelForPreTraining(AnyModel):
    """The same, with the head that each way is pre-trained with."""

    auto_class = "AutoModelForPreTraining"


BY_CONFIGURATION = {each.auto_class: each for each in (AnyModel, AnyModelForPreTraining)}


def _stand_in_for_models() -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from trivium.configuration import TriviumConfig

    for name in AUTO_MODELS:
        stand_in = BY_CONFIGURATION.get(name) or type("AnyModel", (AnyModel,), {"auto_class": name})
        getattr(transformers, name).register(TriviumConfig, stand_in)
    # By this name the Trainer's own label smoothing knows whose labels are to be shifted.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["trivium"] = "TriviumForCausalLM"


def _register_models() -> None:
    import transformers

    from trivium.configuration import TriviumConfig
    from trivium.modeling.auto_map import WITH_BOTH, WITH_DECODER, WITH_ENCODER

    for name, model in WITH_BOTH.items():
        getattr(transformers, name).register(TriviumConfig, BY_CONFIGURATION.get(name, model))
    for classes in (WITH_ENCODER, WITH_DECODER, WITH_BOTH):
        for name, model in classes.items():
            model.register_for_auto_class(name)


def _register_configuration() -> None:
    from transformers import AutoConfig

    from trivium.configuration import TriviumConfig

    AutoConfig.register("trivium", TriviumConfig)
    TriviumConfig.register_for_auto_class()


def _register_tokenizer() -> None:
    from transformers import AutoTokenizer

    from trivium.configuration import TriviumConfig
    from trivium.tokenization import TriviumTokenizer

    AutoTokenizer.register(TriviumConfig, fast_tokenizer_class=TriviumTokenizer)
    TriviumTokenizer.register_for_auto_class()


def _register_pipeline() -> None:
    from transformers import AutoModelForSeq2SeqLM, pipelines

    from trivium.modeling.pipeline_translation import TranslationPipeline

    getattr(pipelines, "REMOVED_TASKS", {}).pop("translation", None)  # newer releases refuse the name itself
    pipelines.PIPELINE_REGISTRY.register_pipeline(
        "translation", TranslationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
    )


AFTER_IMPORT: dict[str, Callable[[], object]] = {
    "transformers.models.auto.configuration_auto": partial(import_module, "trivium.configuration"),
    "transformers.models.auto.tokenization_auto": partial(import_module, "trivium.tokenization"),
    "transformers.models.auto.modeling_auto": _stand_in_for_models,
    "transformers.pipelines": partial(import_module, "trivium.modeling.pipeline_translation"),
    # Registered, the classes also take their code along into every folder that they are saved in.
    "trivium.configuration": _register_configuration,
    "trivium.tokenization": _register_tokenizer,
    "trivium.modeling": _register_models,
    "trivium.modeling.pipeline_translation": _register_pipeline,
}


class _Finder:
    """Finds what the others find, and has that followed which is to follow."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in AFTER_IMPORT:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_follow(module: ModuleType) -> None:
                run(module)
                AFTER_IMPORT[name]()

            spec.loader.exec_module = run_and_follow  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Make transformers know Trivium: what is imported already now, all else when it is."""
    sys.meta_path.insert(0, _Finder())
    for name in [name for name in AFTER_IMPORT if name in sys.modules]:
        AFTER_IMPORT[name]()
