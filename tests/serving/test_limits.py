"""Test the service's limits: queue size, timeouts, API keys, CORS, generic error messages, and a graceful shutdown."""

import asyncio
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from starlette.testclient import TestClient

from trivium.serving import Keys, Languages, Limits, Pair, create_app
from trivium.serving.batcher import Batcher
from trivium.serving.html_text import MAX_TAGS, HtmlText
from trivium.serving.limits import Refusal

PAIR = {"source": "en", "target": "de"}
KEY = "a key of the tests, long enough"
SECRET = "/root/secret.txt: a path"


@dataclass(frozen=True)
class Word:
    """A job for `Reverser`; words of different lengths never share a batch."""

    text: str
    cost: int = 1

    @property
    def key(self) -> Hashable:
        return len(self.text)


class Reverser:
    """A fake translator: reverse each word, block while `free` is unset, and raise an error for the word "bomb"."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()

    def warm_up(self, count: int) -> list[Word]:
        return self.jobs(["a"] * count)

    def jobs(self, texts: Sequence[str], alternatives: int = 0) -> list[Word]:
        return [Word(text) for text in texts]

    def run(self, jobs: Sequence[Word]) -> list[list[str]]:
        self.free.wait()
        self.batches.append(len(jobs))
        if any(job.text == "bomb" for job in jobs):
            raise RuntimeError(SECRET)
        return [[job.text[::-1]] for job in jobs]


def service(translator: Any = None, **options: Any) -> TestClient:
    app = create_app(translator or Reverser(), Languages([Pair("en", "de")]), **options)
    return TestClient(app, raise_server_exceptions=False)


def batcher(translator: Reverser, **options: int) -> Batcher[Word, list[str]]:
    return Batcher(translator.run, **{"batch_size": 8, "capacity": 100, "queue_size": 16, **options})


# --- The queue -------------------------------------------------------------------------------------------------------


def test_waiting_jobs_share_batches_up_to_size_and_cost() -> None:
    async def run(cost: int) -> list[int]:
        translator = Reverser()
        queue = batcher(translator, batch_size=4, capacity=9)
        words = [f"{i:02}" for i in range(10)]
        work = asyncio.gather(*(queue.submit([Word(word, cost)]) for word in words))
        await asyncio.sleep(0)
        queue.start()
        assert await work == [[[word[::-1]]] for word in words]
        await queue.stop()
        return translator.batches

    assert asyncio.run(run(1)) == [4, 4, 2]
    assert asyncio.run(run(3)) == [3, 3, 3, 1]
    assert asyncio.run(run(30)) == [1] * 10


def test_full_queue_refuses_and_cancelled_jobs_leave_it() -> None:
    async def run() -> None:
        translator = Reverser()
        translator.free.clear()
        queue = batcher(translator, queue_size=4)
        queue.start()
        running = asyncio.create_task(queue.submit([Word("ab")]))
        await asyncio.sleep(0.05)
        cancelled = asyncio.create_task(queue.submit([Word("cd"), Word("ef"), Word("gh")]))
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="queue is full") as refused:
            await queue.submit([Word("ij"), Word("kl")])
        assert (refused.value.status, refused.value.retry_after) == (429, 1)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert len(queue) == 0
        others = asyncio.create_task(queue.submit([Word(word) for word in ("mn", "op", "qr", "st")]))
        await asyncio.sleep(0)
        translator.free.set()
        await queue.stop()  # finish all accepted jobs
        assert await running == [["ba"]]
        assert await others == [["nm"], ["po"], ["rq"], ["ts"]]

    asyncio.run(run())


def test_failing_job_fails_no_other_job_of_its_batch() -> None:
    async def run() -> None:
        queue = batcher(Reverser())
        words = ["abcd", "bomb", "efgh"]
        work = asyncio.gather(*(queue.submit([Word(word)]) for word in words), return_exceptions=True)
        await asyncio.sleep(0)
        queue.start()
        first, failed, last = await work
        assert (first, last) == ([["dcba"]], [["hgfe"]])
        assert isinstance(failed, RuntimeError)
        await queue.stop()

    asyncio.run(run())


# --- The service -----------------------------------------------------------------------------------------------------


def test_errors_show_no_internals_and_log_no_message(caplog: pytest.LogCaptureFixture) -> None:
    with service() as client:
        response = client.post("/translate", json={"q": "bomb", **PAIR})
        assert (response.status_code, response.json()) == (500, {"error": "The service has failed."})
        assert client.post("/translate", json={"q": "ab", **PAIR}).json() == {"translatedText": "ba"}
    assert "RuntimeError in /translate" in caplog.text
    assert "secret" not in caplog.text


def test_timeout_and_full_queue_are_answered() -> None:
    translator = Reverser()
    limits = Limits(timeout=1, queue=1, texts=1, batch=1)
    with service(translator, limits=limits) as client:
        translator.free.clear()
        statuses: list[Any] = []

        def request() -> None:
            response = client.post("/translate", json={"q": "ab", **PAIR})
            statuses.append((response.status_code, response.headers.get("Retry-After")))

        threads = [threading.Thread(target=request) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        translator.free.set()
        # One request is running and one is queued; the other three are refused immediately.
        assert [status for status, _ in statuses].count(504) == 2
        assert all(int(after) >= 1 for status, after in statuses if status == 429)
        assert client.post("/translate", json={"q": "ab", **PAIR}).json() == {"translatedText": "ba"}


def test_body_that_does_not_arrive_is_the_clients_error() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/translate", "query_string": b"", "headers": []}
    asyncio.run(service(limits=Limits(timeout=1)).app(scope, receive, send))
    assert sent[0]["status"] == 408
    assert b"has not arrived within 1 seconds" in sent[1]["body"]


def test_bodies_over_the_limit_are_refused() -> None:
    with service(limits=Limits(body_bytes=1000)) as client:
        response = client.post("/translate", json={"q": "a" * 1000, **PAIR})
        assert (response.status_code, "at most 1,000" in response.json()["error"]) == (413, True)
        chunks = (b"a" * 100 for _ in range(100))
        assert client.post("/translate", content=chunks).status_code == 413


def test_api_keys_are_required_in_any_form() -> None:
    with service(keys=Keys([KEY, "another key that is accepted"])) as client:
        sent: dict[str, Any]
        for sent in ({}, {"json": {"api_key": KEY[:-1]}}, {"json": {"api_key": [KEY]}}, {"params": {"api_key": "ü"}}):
            assert client.post("/translate", **sent).status_code == 403
        good = {"q": "ab", **PAIR}
        for sent in (
            {"json": {**good, "api_key": KEY}},
            {"params": {**good, "api_key": KEY}},
            {"json": good, "headers": {"Authorization": f"Bearer {KEY}"}},
        ):
            assert client.post("/translate", **sent).status_code == 200
        assert client.get("/metrics").status_code == 403
        assert client.get("/health").status_code == 200


def test_key_files(tmp_path: Any) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the team\n\n{KEY}\n")
    Keys.from_file(path).check(KEY)
    for content, message in (("# none\n", "has no API key"), ("short\n", "at least 16")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Keys.from_file(path)


def test_cors_is_off_unless_enabled() -> None:
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    with service() as client:
        assert "access-control-allow-origin" not in client.options("/translate", headers=asked).headers
    with service(cors_origins=["https://example.org"]) as client:
        allowed = client.options("/translate", headers=asked).headers["access-control-allow-origin"]
        assert allowed == "https://example.org"
        other = client.options("/translate", headers={**asked, "Origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers


def test_limits_and_pairs_are_checked() -> None:
    with pytest.raises(ValueError, match="queue is 10, but must be at least texts, 128"):
        Limits(queue=10)
    with pytest.raises(ValueError, match="timeout is 0, but must be at least 1"):
        Limits(timeout=0)
    with pytest.raises(ValueError, match="must be SOURCE:TARGET"):
        Pair.parse("english")


HOSTILE_HTML = ["<!--", "<a ", "<a b='", "</", "<![CDATA[", "&", "<i>", "<?", "<script>", "&#x"]


@pytest.mark.parametrize("part", HOSTILE_HTML)
def test_hostile_html_takes_little_time(part: str) -> None:
    start = time.process_time()
    html = HtmlText((part * MAX_TAGS)[:20_000])
    html.replaced(html.texts)
    assert time.process_time() - start < 2


def test_html_with_too_many_tags_is_refused() -> None:
    with pytest.raises(Refusal, match="1,001 tags"):
        HtmlText("<a " * (MAX_TAGS + 1))
