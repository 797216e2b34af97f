"""Access to the self-attention cache of a decoder."""

from transformers.cache_utils import Cache, EncoderDecoderCache


def self_attention_cache(cache: Cache | None) -> Cache | None:
    """Return the self-attention cache of an `EncoderDecoderCache`; any other cache is returned unchanged."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
