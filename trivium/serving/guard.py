"""Middleware around all routes: timeout, unexpected errors, metrics and the log."""

import asyncio
import json
import logging
import time
import traceback

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Refusal, error_response
from .metrics import Metrics

logger = logging.getLogger(__name__)


class Guard:
    """Answer requests that time out or fail without exposing internals; count and log every request.

    The log contains texts only if `log_texts` is set, and never query strings, which may contain texts and keys.

    Args:
        app: The wrapped ASGI application.
        metrics: Metrics that count the requests.
        timeout: Seconds until a request is answered with status 504, or with 408 if its body has not arrived.
        max_body: Maximum size of a request body in bytes; larger bodies are refused with status 413.
        log_texts: Whether to log texts and translations.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, timeout: float, max_body: int, log_texts: bool) -> None:
        self.app, self.metrics, self.log_texts = app, metrics, log_texts
        self.timeout, self.max_body = timeout, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an HTTP request; pass all other ASGI events through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        # Starlette's own limit answers in plain text and raises through middleware.
        received, is_complete, is_waiting = 0, False, False
        stated = Headers(scope=scope).get("content-length", "")

        async def limited() -> Message:
            nonlocal received, is_complete, is_waiting
            if stated.isdecimal() and len(stated) < 20 and int(stated) > self.max_body:
                received = self.max_body + 1  # refuse the body before it is received
            else:
                is_waiting = not is_complete
                message = await receive()
                is_complete, is_waiting = not message.get("more_body", False), False
                received += len(message.get("body", b""))
            if received > self.max_body:
                raise Refusal(413, f"The body is too large: it may have at most {self.max_body:,} bytes.")
            return message

        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout):
                await self.app(scope, limited, observe)
        except TimeoutError:
            if not status and is_waiting:
                text = f"The body has not arrived within {self.timeout:g} seconds. Send it at once."
                await error_response(scope["path"], 408, text)(scope, receive, observe)
            elif not status:
                text = f"The request took longer than {self.timeout:g} seconds. Send shorter texts, or try later."
                await error_response(scope["path"], 504, text)(scope, receive, observe)
        except ClientDisconnect:
            status = 499  # the status that nginx logs when a client disconnects
        except Exception as error:
            # The error message may contain texts of the request.
            stack = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s in %s\n%s", type(error).__name__, _route(scope), stack)
            if not status:
                await error_response(scope["path"], 500, "The service has failed.")(scope, receive, observe)
        finally:
            route, seconds = _route(scope), time.perf_counter() - start
            self.metrics.count_request(route, status, seconds)
            logger.info("%s %s %d %.0f ms%s", scope["method"], route, status, seconds * 1000, self._texts(scope))

    def _texts(self, scope: Scope) -> str:
        """Return the texts and translations that the route recorded, or nothing unless `log_texts` is set."""
        state = scope.get("state", {})
        if not self.log_texts or "texts" not in state:
            return ""
        # JSON escapes line breaks, which could forge log lines.
        return " " + json.dumps([state["texts"], state.get("translations")], ensure_ascii=False)


def _route(scope: Scope) -> str:
    """Return the path of the matched route: paths sent by clients are unlimited in number and may contain texts."""
    return getattr(scope.get("route"), "path", "other")
