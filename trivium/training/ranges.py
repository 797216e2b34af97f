"""Ranges of recipe fields to search, as `trivium tune` accepts them: `model.dropout=float(0,0.4)`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGES = "float(LOW,HIGH), log(LOW,HIGH), int(LOW,HIGH) or choice(VALUE,VALUE,...)"


@dataclass(frozen=True)
class Range:
    """Values to search for one field of a recipe.

    Attributes:
        field: Name of the field with its section, such as `model.dropout`.
        kind: "float", "log" (float on a logarithmic scale), "int" or "choice".
        values: Lower and upper bound, both included; or the choices, as written in YAML.
    """

    field: str
    kind: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Parse `field=kind(value,value,...)`.

        Raises:
            ValueError: The kind is unknown, or the bounds are not numbers in ascending order.
        """
        field, _, search = text.partition("=")
        kind, _, inside = search[:-1].partition("(")
        values = [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", inside)]
        if kind not in ("float", "log", "int", "choice"):
            raise ValueError(f"{field} is {search!r}, which is not a range. Allowed are {RANGES}.")
        if kind == "choice":
            if len(values) < 2 or not all(values) or len(set(values)) < len(values):
                raise ValueError(f"{field} is {search!r}, but a choice needs at least two different values.")
            for value in values:
                try:
                    yaml.safe_load(value)
                except yaml.YAMLError as error:
                    raise ValueError(f"{field} is {search!r}, but {value!r} is not a YAML value.") from error
            return cls(field, kind, tuple(values))
        try:
            low, high = (int(value) if kind == "int" else float(value) for value in values)
        except ValueError as error:
            number = "integers" if kind == "int" else "numbers"
            raise ValueError(f"{field} is {search!r}, but must have two {number}: {kind}(LOW,HIGH).") from error
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (kind == "log" and low <= 0):
            positive = "positive and " if kind == "log" else ""
            raise ValueError(f"{field} is {search!r}, but the bounds must be {positive}finite, the lower one first.")
        return cls(field, kind, (low, high))

    def override(self, value: Any) -> str:
        """Return the recipe override that sets the field to a value."""
        return f"{self.field}={value}"

    def distribution(self) -> "BaseDistribution":
        """Return the range as a distribution of Optuna."""
        from optuna import distributions

        if self.kind == "choice":
            return distributions.CategoricalDistribution(self.values)
        if self.kind == "int":
            return distributions.IntDistribution(*self.values)
        return distributions.FloatDistribution(*self.values, log=self.kind == "log")


def split_ranges(arguments: Sequence[str]) -> tuple[list[Range], list[str]]:
    """Split arguments of the form `field=...` into ranges to search and plain overrides.

    Raises:
        ValueError: There is no range, a range is not valid, or a field is given twice.
    """
    ranges, overrides = [], []
    for argument in arguments:
        if re.fullmatch(r"[\w.]+=\w+\(.*\)", argument):
            ranges.append(Range.parse(argument))
        else:
            overrides.append(argument)
    fields = [argument.partition("=")[0] for argument in overrides]
    for searched in (names := [entry.field for entry in ranges]):
        if searched in fields or names.count(searched) > 1:
            raise ValueError(f"{searched} is given twice. Give each field either one range or one value.")
    if not ranges:
        raise ValueError(f"There is no field to search. Add at least one, as field={RANGES}.")
    if "training.output_dir" in (*names, *fields):
        raise ValueError(
            "training.output_dir is set for each trial, below the folder of the search: set that instead."
        )
    return ranges, overrides
