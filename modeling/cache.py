"""The two halves of a decoder's cache."""

from transformers.cache_utils import Cache, EncoderDecoderCache


def self_attention_cache(cache: Cache | None) -> Cache | None:
    """Return the decoder's own keys and values: a half of an encoder-decoder's cache, else the whole."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
