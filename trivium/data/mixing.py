"""Mix several sources of training data, by weight and temperature."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, cast

from datasets import interleave_datasets

STRATEGIES = ("all_exhausted", "first_exhausted", "all_exhausted_without_replacement")


@dataclass
class MixedSource:
    """Source of a mixture: an entry of `data.mix.sources`.

    Attributes:
        name: As in `data`.
        config_name: As in `data`.
        train: As in `data`.
        source: As in `data`; None for `data.source`.
        target: As in `data`; None for `data.target`.
        text: As in `data`; None for `data.text`.
        label: As in `data`; None for `data.label`.
        weight: Weight of the source when sampling, for example its number of rows.
    """

    name: str | None = None
    config_name: str | None = None
    train: str | None = None
    source: str | None = None
    target: str | None = None
    text: str | None = None
    label: str | None = None
    weight: float = 1.0

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the `data` fields that this source sets."""
        return {name: value for name, value in vars(self).items() if name != "weight" and value is not None}


@dataclass
class MixArguments:
    """Mixture of several sources: the `data.mix:` section of a recipe.

    Each row is taken from a source sampled with probability proportional to `weight ** (1 / temperature)`. The samples
    depend only on `seed`, and each source is read in order.

    Attributes:
        sources: Sources to train on together.
        temperature: 1 for probabilities proportional to the weights; higher values make the probabilities more
            uniform.
        seed: Seed for sampling the sources.
        strategy: When an epoch ends, in the terms of `datasets.interleave_datasets`. "all_exhausted": once every
            source has been read to its end at least once; a source that ends earlier is restarted. "first_exhausted":
            once any source ends. "all_exhausted_without_replacement": once all sources have ended; every row occurs
            exactly once, and draws from sources that have already ended are skipped.
    """

    sources: list[MixedSource] = field(default_factory=list)
    temperature: float = 1.0
    seed: int = 0
    strategy: str = "all_exhausted"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        if not self.sources:
            raise ValueError("data.mix.sources is empty, but must list at least one source. Or set data.mix=null.")
        for index, source in enumerate(self.sources):
            if not (isfinite(source.weight) and source.weight > 0):
                raise ValueError(
                    f"data.mix.sources[{index}].weight is {source.weight}, but must be greater than 0. Leave out "
                    "sources that are not to be used."
                )
        if not (isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"data.mix.temperature is {self.temperature}, but must be greater than 0: 1 keeps the weights, and "
                "higher values make them more equal."
            )
        if self.seed < 0:
            raise ValueError(f"data.mix.seed is {self.seed}, but must be at least 0.")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"data.mix.strategy is {self.strategy!r}, but must be one of {', '.join(STRATEGIES)}.")

    @property
    def probabilities(self) -> list[float]:
        """Return the probability of each source."""
        largest = max(source.weight for source in self.sources)  # keeps large weights from overflowing
        shares = [(source.weight / largest) ** (1 / self.temperature) for source in self.sources]
        return [share / sum(shares) for share in shares]

    def interleave(self, datasets: Sequence[Any]) -> Any:
        """Interleave the datasets of the sources; either all or none of them must be streams."""
        return interleave_datasets(
            list(datasets), self.probabilities, self.seed, stopping_strategy=cast(Any, self.strategy)
        )
