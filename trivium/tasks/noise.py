"""Noise for denoising pre-training, as in BART and T5, and the split of a text into prefix and continuation."""

import numpy as np

NOISES = ("infilling", "spans")


def corrupt(
    ids: list[int], mask: int, noise: str, density: float, mean_span: float, generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Replace each of several random spans of a text by one mask token; return the source and the target.

    "infilling" is BART's noise (Lewis et al. 2019, section 2.2): the lengths of spans have a Poisson distribution, so
    that a mask may replace an empty span, and the target is the whole text. "spans" is T5's (Raffel et al. 2020,
    section 3.1.4): the target is a mask token and the masked tokens for each span. A single mask token replaces T5's
    distinct sentinels; spans are identified by their order.

    Args:
        ids: The tokens of the text, without special tokens.
        mask: The mask token.
        noise: One of `NOISES`.
        density: Fraction of tokens to mask; at least one token is masked.
        mean_span: Mean number of tokens in a span.
        generator: Source of randomness.
    """
    masked = min(max(round(density * len(ids)), 1), len(ids))
    lengths = _span_lengths(masked, mean_span, noise, generator)
    # Shuffle spans and unmasked tokens uniformly to sample the number of tokens before each span.
    kept = len(ids) - masked
    places = np.sort(generator.choice(kept + len(lengths), size=len(lengths), replace=False)) - np.arange(len(lengths))
    source: list[int] = []
    target: list[int] = []
    start = copied = 0
    for place, length in zip(places.tolist(), lengths, strict=True):
        source += [*ids[start : start + place - copied], mask]
        start += place - copied
        target += [mask, *ids[start : start + length]]
        start, copied = start + length, place
    source += ids[start:]
    return source, target if noise == "spans" else list(ids)


def split_prefix(length: int, generator: np.random.Generator) -> int:
    """Sample the length of a prefix, so that prefix and continuation have at least one token; 0 for a single token.

    All lengths are equally probable (prefix language modeling, Raffel et al. 2020, section 3.2.3).

    Args:
        length: Number of tokens in the text, without special tokens.
        generator: Source of randomness.
    """
    return int(generator.integers(1, length)) if length > 1 else 0


def _span_lengths(masked: int, mean: float, noise: str, generator: np.random.Generator) -> list[int]:
    """Sample span lengths that sum to `masked` tokens."""
    if noise == "infilling":
        lengths: list[int] = []
        while (left := masked - sum(lengths)) > 0:
            lengths.append(min(int(generator.poisson(mean)), left))
        return lengths
    spans = max(round(masked / mean), 1)
    cuts = np.sort(generator.choice(masked - 1, size=spans - 1, replace=False)) + 1
    return np.diff([0, *cuts.tolist(), masked]).tolist()
