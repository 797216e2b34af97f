"""Send concurrent requests, some of them hostile: all answers are right, without lost requests or server errors."""

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

import httpx
from services import TEXTS, expected, served, tiny_translator

from trivium.serving import Languages, Pair, Translator, create_app

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("serving_soak")


@pytest.mark.parametrize(
    ("requests", "hostile"), [(60, 2 / 3), pytest.param(800, 0.05, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_hostile_requests_change_no_other_answer(benchmark: Any, requests: int, hostile: float) -> None:
    model, tokenizer = tiny_translator()
    translations = dict(zip(TEXTS, expected(model, tokenizer, TEXTS), strict=True))
    translator = Translator(model, tokenizer, max_tokens=64)
    app = create_app(translator, Languages([Pair("en", "de")]))
    attacks = [attack for attack in benchmark.ATTACKS if 408 not in attack.statuses]  # those wait for the timeout
    with served(app) as url, httpx.Client() as client:
        report = asyncio.run(benchmark.soak(url[:-1], translations, requests, hostile=hostile, attacks=attacks))
        assert (report.wrong, report.unexpected, report.lost) == ([], [], [])
        assert report.statuses.total() == requests
        assert len(report.statuses) >= len({200, 400, 404, 405, 413, None})
        metrics = client.get(f"{url}metrics").text
        assert 'status="5' not in metrics
        assert "trivium_queue_texts 0.0" in metrics
        assert client.get(f"{url}health").json() == {"status": "ok"}
