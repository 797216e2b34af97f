"""Trivium: the Transformer of *Attention Is All You Need*, written from scratch for the Hugging Face ecosystem.

What is here is imported when it is asked for, and registered with transformers when that needs it (`trivium.auto`):
`import trivium` alone takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from trivium import auto

if TYPE_CHECKING:
    from trivium.configuration import TriviumConfig, preset_config
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
    from trivium.surgery import join, split
    from trivium.tokenization import TriviumTokenizer
else:  # not for type checkers, which would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name in __all__:
            globals()[name] = getattr(import_module(f"trivium.{_HOMES.get(name, 'modeling')}"), name)
            return globals()[name]
        if name in ("modeling", *_HOMES.values()):
            return import_module(f"trivium.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "TriviumConfig",
    "TriviumDecoderModel",
    "TriviumEncoderModel",
    "TriviumForCausalLM",
    "TriviumForConditionalGeneration",
    "TriviumForMaskedLM",
    "TriviumForQuestionAnswering",
    "TriviumForSequenceClassification",
    "TriviumForTokenClassification",
    "TriviumModel",
    "TriviumTokenizer",
    "join",
    "preset_config",
    "split",
]

_HOMES = {  # what is not in `modeling`
    "TriviumConfig": "configuration",
    "TriviumTokenizer": "tokenization",
    "join": "surgery",
    "preset_config": "configuration",
    "split": "surgery",
}

auto.register()
