"""Send hundreds of concurrent requests, 5% of them hostile: all answers are right, without server errors."""

import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

import httpx
from services import TEXTS, expected, served, tiny_translator

from trivium.serving import Languages, Pair, Translator, create_app

REQUESTS, HOSTILE = 600, 30
PAIR = {"source": "en", "target": "de"}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def send(url: str, head: str, read: bool = True) -> None:
    """Send raw bytes that no HTTP client would send; close the connection before the response unless `read` is set."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(head.encode())
        if read:
            answer = connection.recv(1000)
            assert b" 5" not in answer[8:10], answer


# Each attack returns a response, whose status must be below 500, or None.
ATTACKS: list[Callable[[str, httpx.Client], httpx.Response | None]] = [
    lambda url, client: client.post(f"{url}translate", content=b"[" * 200_000, headers=JSON),
    lambda url, client: client.post(f"{url}translate", content=b"x" * 1_000_000, headers=JSON),
    lambda url, client: client.post(f"{url}translate", content=b'{"q": "\\ud800 a", "source": "en", "target": "de"}'),
    lambda url, client: client.post(f"{url}translate", content=b'{"q": "\xff"}', headers=JSON),
    lambda url, client: client.post(f"{url}translate", content=b'{"alternatives": ' + b"9" * 5000 + b"}"),
    lambda url, client: client.post(f"{url}translate", json={"q": {"a": []}, **PAIR}),
    lambda url, client: client.post(f"{url}translate", json={"q": "a", **PAIR, "alternatives": [1]}),
    lambda url, client: client.post(f"{url}translate", json={"q": "a\n" * 5000, **PAIR}),
    lambda url, client: client.post(f"{url}translate", json={"q": "x" * 15_000, **PAIR}),
    lambda url, client: client.post(f"{url}translate", json={"q": "<a b='" * 900, "format": "html", **PAIR}),
    lambda url, client: client.post(f"{url}translate", json={"q": "<i>" * 1000 + "a", "format": "html", **PAIR}),
    lambda url, client: client.post(f"{url}translate", json={"q": "\0\u202e\u200b</s><s>\x1b[2J", **PAIR}),
    lambda url, client: client.post(f"{url}translate", data={f"a{i}": "" for i in range(20_000)}),
    lambda url, client: client.post(f"{url}translate", content=b"--x\r\nbroken", headers=FORM),
    lambda url, client: client.post(f"{url}translate", files={"q": ("file", b"a" * 1000)}, data=PAIR),
    lambda url, client: client.get(f"{url}translate", params={"q": "a", **PAIR}),
    lambda url, client: client.get(f"{url}%2e%2e/%2e%2e/etc/passwd"),
    lambda url, client: client.request("TRACE", f"{url}translate"),
    lambda url, client: send(url, "POST /translate HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
    lambda url, client: send(url, "\r\n\r\n\0\0\0garbage\r\n\r\n"),
    lambda url, client: send(url, "POST /translate HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n", read=False),
]


@pytest.mark.slow
def test_hostile_requests_change_no_other_answer() -> None:
    model, tokenizer = tiny_translator()
    translations = dict(zip(TEXTS, expected(model, tokenizer, TEXTS), strict=True))
    app = create_app(Translator(model, tokenizer, max_tokens=64), Languages([Pair("en", "de")]))
    generator = random.Random(0)
    kinds = [*[ATTACKS[i % len(ATTACKS)] for i in range(HOSTILE)], *[None] * (REQUESTS - HOSTILE)]
    generator.shuffle(kinds)

    with served(app) as url, httpx.Client(timeout=120, limits=httpx.Limits(max_connections=16)) as client:

        def request(index: int) -> int | None:
            attack = kinds[index]
            if attack is not None:
                response = attack(url, client)
                return None if response is None else response.status_code
            texts = generator.sample(TEXTS, 1 + index % 3)
            response = client.post(f"{url}translate", json={"q": texts, **PAIR})
            assert response.status_code == 200, response.text
            assert response.json() == {"translatedText": [translations[text] for text in texts]}
            return None

        with ThreadPoolExecutor(16) as threads:
            statuses = [status for status in threads.map(request, range(REQUESTS)) if status is not None]
        assert len(statuses) > HOSTILE // 2
        assert all(200 <= status < 500 for status in statuses), statuses
        metrics = client.get(f"{url}metrics").text
        assert 'status="5' not in metrics
        assert "trivium_queue_texts 0.0" in metrics
        assert client.get(f"{url}health").json() == {"status": "ok"}
