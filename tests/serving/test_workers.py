"""Run `trivium serve` with several workers: a killed worker is replaced, and none outlives its supervisor."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

import httpx
from prometheus_client.values import MultiProcessValue
from services import TEXTS, expected, free_port, tiny_translator
from starlette.testclient import TestClient
from typer.testing import CliRunner

from trivium.serving.metrics import Metrics
from trivium_cli import app
from trivium_cli.serve import UNRESPONSIVE_SECONDS, _Service

CLIENTS = 8
STARTED, READY = r"Started server process \[(\d+)\]", "Application startup complete"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = tiny_translator()
    path = tmp_path_factory.mktemp("served") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def service(model: Path, **options: Any) -> _Service:
    defaults: dict[str, Any] = {"beams": None, "api_keys": None, "cors_origins": (), "log_texts": False, "limits": {}}
    return _Service(**{"model": model, "engine": "torch", "pairs": ["en:de"], "name": "tiny", **defaults, **options})


def wait_for(
    log: Path, text: str, count: int = 1, *, seconds: float = 600, supervisor: "subprocess.Popen[bytes] | None" = None
) -> None:
    """Wait until the log has a text `count` times, and fail if the supervisor ends before."""
    deadline = time.monotonic() + seconds
    while log.read_text().count(text) < count:
        assert supervisor is None or supervisor.poll() is None
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_worker_builds_the_application_from_pickled_options(folder: Path) -> None:
    options = pickle.loads(pickle.dumps(service(folder, limits={"queue": 200})))
    with TestClient(options.create_in_worker()) as client:
        assert client.get("/languages").json()[0]["code"] == "en"


def test_worker_that_cannot_load_the_model_stops_the_service(folder: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        service(folder / "missing").create_in_worker()
    assert stopped.value.code == 3  # uvicorn's supervisor does not restart a worker that ends with this status


def test_options_are_checked_before_workers_start(folder: Path) -> None:
    result = CliRunner().invoke(app, ["serve", str(folder), "--workers", "2", "--pair", "english"])
    assert result.exit_code == 1
    assert "must be SOURCE:TARGET" in result.output


def test_unreadable_model_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "model.safetensors"))

    monkeypatch.setattr("trivium.hub.card.introduce", refuse)
    result = CliRunner().invoke(app, ["serve", str(folder)])
    assert result.exit_code == 1
    assert "Permission denied" in result.output


def test_idle_connections_outlive_those_of_clients(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **rest: options.update(rest))
    assert CliRunner().invoke(app, ["serve", str(folder), "--pair", "en:de"]).exit_code == 0
    assert options["timeout_keep_alive"] > 60  # a request sent while its connection is being closed would be lost


def test_metrics_are_added_up_over_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    workers = []
    for pid, queue in ((2**30, 100), (os.getppid(), 3), (os.getpid(), 2)):  # there is no process with the first id
        monkeypatch.setattr("prometheus_client.values.ValueClass", MultiProcessValue(lambda pid=pid: pid))
        workers.append(Metrics(lambda queue=queue: queue))
        workers[-1].count_request("/translate", 200, 0.1)
        workers[-1].count_batch(1, 0.1)
    text = workers[-1].render().decode()
    assert 'trivium_requests_total{route="/translate",status="200"} 3.0' in text
    assert "trivium_queue_texts 5.0" in text


@pytest.mark.slow
@pytest.mark.subprocess
def test_killed_worker_is_replaced_and_costs_only_its_own_requests(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_translator()
    translations = dict(zip(TEXTS, expected(model, tokenizer, TEXTS), strict=True))
    url, log = f"http://127.0.0.1:{(port := free_port())}", tmp_path / "log"
    options = ["--pair", "en:de", "--port", str(port), "--workers", "2"]
    command = [sys.executable, "-m", "trivium_cli", "serve", str(folder), *options]
    answered: list[float] = []
    failed: list[float] = []
    wrong: list[str] = []
    stop = threading.Event()

    def request(first: int) -> None:
        number = first
        while not stop.is_set():
            text = TEXTS[number % len(TEXTS)]
            number += 1
            try:
                response = httpx.post(f"{url}/translate", json={"q": text, "source": "en", "target": "de"}, timeout=60)
            except httpx.TransportError:
                failed.append(time.monotonic())
                continue
            answered.append(time.monotonic())
            if response.json() != {"translatedText": translations[text]}:
                wrong.append(response.text)

    with log.open("w") as stream, subprocess.Popen(command, stderr=stream) as process:
        try:
            wait_for(log, READY, 2, supervisor=process)
            clients = [threading.Thread(target=request, args=[first]) for first in range(CLIENTS)]
            for client in clients:
                client.start()
            time.sleep(2)
            worker = int(re.findall(STARTED, log.read_text())[0])
            os.kill(worker, signal.SIGSTOP)  # so that the supervisor is waiting for its answer when it dies
            time.sleep(1.5)
            os.kill(worker, signal.SIGKILL)
            killed = time.monotonic()
            wait_for(log, f"[{worker}] died", seconds=UNRESPONSIVE_SECONDS / 2)
            wait_for(log, READY, 3, supervisor=process)
            replaced = time.monotonic()
            time.sleep(1)
            stop.set()
            for client in clients:
                client.join()
            metrics = httpx.get(f"{url}/metrics").text
        finally:
            stop.set()
            process.terminate()
        assert process.wait(60) == 0
    assert not wrong
    assert len(failed) <= CLIENTS
    assert all(killed - 1 < moment < killed + 5 for moment in failed)
    assert sum(killed < moment < replaced for moment in answered) > CLIENTS  # the other worker went on
    counted = float(re.findall(r'trivium_requests_total{route="/translate",status="200"} (\S+)', metrics)[0])
    assert counted >= len(answered)
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.subprocess
def test_workers_end_when_their_supervisor_is_killed(folder: Path, tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()
    command = [sys.executable, "-m", "trivium_cli", "serve", str(folder), "--pair", "en:de", "--workers", "2"]
    with log.open("w") as stream, subprocess.Popen([*command, "--port", str(port)], stderr=stream) as supervisor:
        try:
            wait_for(log, READY, 2, supervisor=supervisor)
        finally:
            supervisor.kill()
    wait_for(log, "Finished server process", 2, seconds=60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")
