import gc
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

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch reads this when it is imported; see `trivium_cli`.
import torch
from transformers.utils.logging import warning_once

# Hypothesis must not fail a test on a slow machine.
hypothesis.settings.register_profile("trivium", deadline=None)
hypothesis.settings.load_profile("trivium")
# Disable garbage collection until all tests are collected: imports create millions of objects and no garbage.
gc.disable()
torch.set_num_threads(1)  # The models are tiny, so threads cost more than they save, and xdist already uses all cores.


class LoggedDeprecations(logging.Handler):
    """Turn deprecations that transformers only logs into warnings, so that `filterwarnings` applies to them."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            warnings.warn(record.getMessage(), FutureWarning, stacklevel=2)


logging.getLogger("transformers").addHandler(LoggedDeprecations())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write tests/golden/*.json anew instead of comparing")
    parser.addoption("--cases", type=int, default=300, help="random cases of each test in tests/attack")


@pytest.fixture(autouse=True)
def log_once_per_test() -> None:
    """Let every test see the warnings that transformers logs once per process, in whatever order tests run."""
    warning_once.cache_clear()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed all generators, so that a test draws the same numbers alone as in the whole suite."""
    torch.manual_seed(0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Start a local Hub and point huggingface_hub at it: online, logged in, retrying without delay."""
    with HubServer() as server:
        monkeypatch.setenv("HF_TOKEN", server.token)
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        template = template.replace(huggingface_hub.constants.ENDPOINT, server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        # Functions such as `create_repo()` are bound methods of this object.
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        # The cached object would keep the endpoint it was created with.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield server


def pytest_collection_finish() -> None:
    """Exempt everything imported so far from garbage collection, which Trainer runs in every training."""
    freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def freeze_imports() -> Iterator[None]:
    """Exempt modules imported by a test file as well: transformers imports its models on first use."""
    yield
    freeze()


def freeze() -> None:
    gc.collect()
    gc.freeze()
