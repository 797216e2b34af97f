import random

import pytest


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> int:
    """Return the number of random cases: `--cases`, or a default that takes seconds."""
    return request.config.getoption("--cases")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Return a seeded random generator, so that a test draws the same cases in every run."""
    return random.Random(request.node.name)
