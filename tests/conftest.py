import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: threads cost more than they give, and xdist fills the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write tests/golden/*.json anew instead of comparing")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)
