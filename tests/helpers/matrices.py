"""Keep a few cases of a large test matrix in the default suite, and mark the others as slow."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_unless(values: Iterable[Any], default: Collection[Any]) -> list[Any]:
    """Return the values of a parameter, of which all but those in `default` are slow."""
    values = list(values)
    assert all(value in values for value in default), default
    return [value if value in default else pytest.param(value, marks=pytest.mark.slow) for value in values]
