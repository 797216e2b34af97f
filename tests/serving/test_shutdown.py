"""Run `trivium serve` as a process: it answers requests, and finishes all accepted ones after SIGTERM."""

import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

import httpx
from services import TEXTS, expected, free_port, tiny_translator

REQUESTS = 40


@pytest.mark.slow
@pytest.mark.subprocess
def test_sigterm_loses_no_accepted_request(tmp_path: Path) -> None:
    model, tokenizer = tiny_translator()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    port = free_port()
    options = ["--pair", "en:de", "--port", str(port), "--batch-size", "1"]
    command = [sys.executable, "-m", "trivium_cli", "serve", str(tmp_path / "model"), *options]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                assert httpx.get(f"{url}/health").json() == {"status": "ok"}
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        texts = [TEXTS[i % len(TEXTS)] for i in range(REQUESTS)]

        def request(text: str) -> httpx.Response:
            return httpx.post(f"{url}/translate", json={"q": text, "source": "en", "target": "de"}, timeout=120)

        with ThreadPoolExecutor(REQUESTS) as threads:
            answers = [threads.submit(request, text) for text in texts]
            # Wait until the server has received the requests and most of them are still queued.
            while not re.search(r"trivium_queue_texts (2\d|3\d)", httpx.get(f"{url}/metrics").text):
                assert not all(answer.done() for answer in answers)
            time.sleep(0.2)
            assert not all(answer.done() for answer in answers)
            process.send_signal(signal.SIGTERM)
            translations = expected(model, tokenizer, TEXTS)
            for i, answer in enumerate(answers):
                assert answer.result().json() == {"translatedText": translations[i % len(TEXTS)]}
        assert process.wait(30) in (0, -signal.SIGTERM)
    log_text = (tmp_path / "log").read_text()
    assert "POST /translate 200" in log_text
    assert "Traceback" not in log_text
    assert TEXTS[0] not in log_text
