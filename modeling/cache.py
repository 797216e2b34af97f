"""Keys and values of earlier calls, by both names that transformers has had for them.

The name is `cache`. Before version 5.24 it was `past_key_values`, which every `forward` still takes.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPast

# What the installed transformers calls it, in outputs and where it is handed over.
CACHE = "cache" if "cache" in (field.name for field in fields(BaseModelOutputWithPast)) else "past_key_values"


def takes_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a `forward` that knows `cache` take it as `past_key_values`, too.

    Its signature, which transformers reads, has the name that the installed version uses.
    """

    @wraps(forward)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(*args, **kwargs)

    signature = inspect.signature(forward)
    parameters = [p.replace(name=CACHE) if p.name == "cache" else p for p in signature.parameters.values()]
    vars(renamed)["__signature__"] = signature.replace(parameters=parameters)
    return renamed


def self_attention_cache(cache: Cache | None) -> Cache | None:
    """The part of a cache that holds the decoder's own keys and values: all of it, where there is no encoder."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
