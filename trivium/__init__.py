"""Trivium: the Transformer of *Attention Is All You Need*, written from scratch for the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from trivium.configuration import TriviumConfig, preset_config
from trivium.modeling import TriviumForConditionalGeneration, TriviumModel
from trivium.tokenization import TriviumTokenizer

# With the package installed, transformers' Auto classes know it ...
AutoConfig.register("trivium", TriviumConfig)
AutoTokenizer.register(TriviumConfig, fast_tokenizer_class=TriviumTokenizer)
AutoModel.register(TriviumConfig, TriviumModel)
AutoModelForSeq2SeqLM.register(TriviumConfig, TriviumForConditionalGeneration)

# ... and every saved folder carries the code, for where it is not.
TriviumConfig.register_for_auto_class()
TriviumTokenizer.register_for_auto_class()
TriviumModel.register_for_auto_class("AutoModel")
TriviumForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")

__all__ = [
    "TriviumConfig",
    "TriviumForConditionalGeneration",
    "TriviumModel",
    "TriviumTokenizer",
    "preset_config",
]
