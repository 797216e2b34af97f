import gc
import logging
import os
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import hypothesis
import pytest
from hub_server import HubServer

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch reads this on import; see `trivium_cli`
import torch
from transformers.utils.logging import warning_once

from trivium.data import numbers_corpus

# Hypothesis must not fail tests because the machine is slow.
hypothesis.settings.register_profile("trivium", deadline=None)
hypothesis.settings.load_profile("trivium")
# Disable garbage collection until all tests are collected: imports create millions of objects but no garbage.
gc.disable()
torch.set_num_threads(1)  # Threads do not pay off for tiny models, and xdist already uses all cores.


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
    """Reset transformers' once-per-process warnings, so that each test sees them whatever the order of tests."""
    warning_once.cache_clear()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed all generators, so that a test draws the same random numbers alone and in the whole suite."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def corpus_generated_once() -> Iterator[None]:
    """Generate the `numbers` corpus once, although nearly every test that trains loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trivium.data.loading.numbers_corpus", cache(numbers_corpus))
        yield


@pytest.fixture(scope="module")
def seeded() -> Iterator[None]:
    """Seed all generators before the module's other fixtures are built, which is before `seed` takes effect."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Start a local Hub, and configure huggingface_hub to use it: online, logged in, retrying without delay."""
    with HubServer() as server:
        monkeypatch.setenv("HF_TOKEN", server.token)
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        template = template.replace(huggingface_hub.constants.ENDPOINT, server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        # Functions such as `create_repo()` are bound methods of this `HfApi` object.
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        # A cached object would keep the endpoint with which it was created.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield server


def pytest_collection_finish() -> None:
    """Exempt all imported objects from garbage collection, which the Trainer triggers in every training run."""
    freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def freeze_imports() -> Iterator[None]:
    """Exempt modules imported while a test file runs, too: transformers imports its models on first use."""
    yield
    freeze()


def freeze() -> None:
    gc.collect()
    gc.freeze()
