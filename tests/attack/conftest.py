import random

import pytest


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> int:
    """Number of random cases: `--cases`, or as many as take seconds."""
    return request.config.getoption("--cases")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Generator of the cases, the same in every run of a test."""
    return random.Random(request.node.name)
