import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import hypothesis
import pytest
from hub_server import HubServer

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded; see `trivium_cli`
import torch

hypothesis.settings.register_profile("trivium", deadline=None)  # a timing never decides a test
hypothesis.settings.load_profile("trivium")
torch.set_num_threads(1)  # the models are tiny: threads cost more than they give, and xdist fills the cores


class LoggedDeprecations(logging.Handler):
    """Warn about what transformers only logs as deprecated, so that `filterwarnings` decides about it."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            warnings.warn(record.getMessage(), FutureWarning, stacklevel=2)


logging.getLogger("transformers").addHandler(LoggedDeprecations())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write tests/golden/*.json anew instead of comparing")
    parser.addoption("--cases", type=int, default=300, help="random cases of each test in tests/attack")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub on this machine, which huggingface_hub talks to for this test: online, logged in, and retrying at once."""
    with HubServer() as server:
        monkeypatch.setenv("HF_TOKEN", server.token)
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        template = template.replace(huggingface_hub.constants.ENDPOINT, server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)  # that of create_repo() and its like
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it would keep the address it was made with
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield server
