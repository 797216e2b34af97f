"""Model families of transformers that convert to and from Trivium, one module per family."""

from trivium.interop.families.bart import BART
from trivium.interop.families.bert import BERT
from trivium.interop.families.gpt2 import GPT2
from trivium.interop.families.llama import LLAMA
from trivium.interop.families.marian import MARIAN
from trivium.interop.families.mistral import MISTRAL
from trivium.interop.families.qwen2 import QWEN2
from trivium.interop.families.qwen3 import QWEN3
from trivium.interop.families.roberta import ROBERTA
from trivium.interop.mapping import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (BART, BERT, GPT2, LLAMA, MARIAN, MISTRAL, QWEN2, QWEN3, ROBERTA)
}

__all__ = ["FAMILIES"]
