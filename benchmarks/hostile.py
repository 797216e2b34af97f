"""Hostile requests to a translation service, with the statuses that the service may answer."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

PAIR = {"source": "en", "target": "de"}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
HEAD = "POST /translate HTTP/1.1\r\nHost: a\r\n"


@dataclass(frozen=True)
class Attack:
    """A hostile request.

    Attributes:
        name: Description.
        statuses: Statuses of a correct answer; None if the client does not wait for the answer.
        send: Coroutine function that sends the request to a URL and returns the status, or None.
    """

    name: str
    statuses: tuple[int | None, ...]
    send: Callable[[str, httpx.AsyncClient], Awaitable[int | None]]


def post(name: str, *statuses: int, method: str = "POST", path: str = "/translate", **request: Any) -> Attack:
    """Return an attack that an HTTP client can send."""

    async def send(url: str, client: httpx.AsyncClient) -> int:
        return (await client.request(method, f"{url}{path}", **request)).status_code

    return Attack(name, statuses, send)


def text(name: str, *statuses: int, **parameters: Any) -> Attack:
    """Return an attack by the JSON parameters of `/translate`."""
    return post(name, *statuses, json={**PAIR, **parameters})


def raw(name: str, *statuses: int | None, data: bytes, pause: float = 0) -> Attack:
    """Return an attack by bytes that no HTTP client would send, in chunks of 8 bytes if there is a pause."""

    async def send(url: str, client: httpx.AsyncClient) -> int | None:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            size = 8 if pause else len(data)
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                await writer.drain()
                await asyncio.sleep(pause)
            if statuses == (None,):
                return None
            return int((await reader.read(12))[9:])
        finally:
            writer.close()

    return Attack(name, statuses, send)


BODY = b'{"q": "one", "source": "en", "target": "de"}'
LENGTH = f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"

ATTACKS = [
    post("deeply nested JSON", 400, content=b"[" * 200_000, headers=JSON),
    post("body of 1 MB", 413, content=b"x" * 1_000_000, headers=JSON),
    post("broken JSON", 400, content=b'{"q": "one", "source"', headers=JSON),
    post("JSON that is not an object", 400, content=b"[1, 2]", headers=JSON),
    post("invalid UTF-8", 400, content=b'{"q": "\xff"}', headers=JSON),
    post("lone surrogate", 200, content=b'{"q": "\\ud800 a", "source": "en", "target": "de"}', headers=JSON),
    post("number of 5,000 digits", 400, content=b'{"alternatives": ' + b"9" * 5000 + b"}", headers=JSON),
    post("JSON declared as text", 200, content=BODY, headers={"Content-Type": "text/plain"}),
    post("form declared as JSON", 400, content=b"q=one&source=en&target=de", headers=JSON),
    post("missing keys", 400, json={"q": "one"}),
    post("empty body", 400, content=b""),
    text("object as text", 400, q={"a": []}),
    text("number as text", 400, q=7),
    text("list of numbers", 400, q=[1, None]),
    text("empty list", 400, q=[]),
    text("alternatives as list", 400, q="one", alternatives=[1]),
    text("unknown language", 400, q="one", target="x" * 5000),
    text("too many lines", 400, q="a\n" * 5000),
    text("too many texts", 400, q=["one"] * 500),
    text("too many tokens", 400, q="x" * 15_000),
    text("too many characters", 400, q="one " * 10_000),
    text("unclosed tags", 200, 400, q="<a b='" * 900, format="html"),
    text("nested tags", 200, q="<i>" * 1000 + "one", format="html"),
    text("too many tags", 400, q="<b>" * 6000, format="html"),
    text("many text nodes", 400, q="<b>a</b>" * 450, format="html"),
    text("control characters", 200, q="\0\u202e\u200b</s><s>\x1b[2J"),
    post("too many fields", 400, data={f"a{i}": "" for i in range(20_000)}),
    post("broken multipart form", 400, content=b"--x\r\nbroken", headers=FORM),
    post("file as text", 400, files={"q": ("file", b"a" * 1000)}, data=PAIR),
    post("wrong method", 405, method="GET", params={"q": "one", **PAIR}),
    post("TRACE", 405, method="TRACE"),
    post("path outside", 404, method="GET", path="/%2e%2e/%2e%2e/etc/passwd"),
    raw("negative length", 400, data=f"{HEAD}Content-Length: -1\r\n\r\n".encode()),
    raw("no HTTP", 400, data=b"\r\n\r\n\0\0\0garbage\r\n\r\n"),
    raw("broken chunk", 400, data=f"{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode()),
    raw("header of 100 kB", 400, 431, data=f"{HEAD}X: {'x' * 100_000}\r\n\r\n".encode()),
    raw("closed in the body", None, data=f"{HEAD}Content-Length: 99\r\n\r\n".encode()),
    raw("closed before the answer", None, data=f"{HEAD}{LENGTH}".encode() + BODY),
    raw("slow body", 200, data=f"{HEAD}{LENGTH}".encode() + BODY, pause=0.05),
    raw("body that never ends", 408, data=f"{HEAD}{LENGTH}".encode() + BODY[:9]),
]
