"""The application: routes, limits, errors, metrics and logs around an engine."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from . import libretranslate
from .batcher import Batcher
from .engine import Embedder, Translator
from .guard import Guard
from .languages import Languages
from .limits import Keys, Limits, Refusal, error_response
from .metrics import Metrics
from .openai import CompletionRoutes, EmbeddingRoutes
from .parameters import bearer_token
from .writer import Writer


def create_app(
    engine: Translator | Writer | Embedder,
    languages: Languages | None = None,
    *,
    name: str = "model",
    limits: Limits | None = None,
    keys: Keys | None = None,
    cors_origins: Sequence[str] = (),
    log_texts: bool = False,
) -> FastAPI:
    """Return the ASGI application of a service: LibreTranslate's interface for a translator, else OpenAI's.

    Args:
        engine: `Translator`, `Writer` or `Embedder` that runs the model.
        languages: The language pairs of a translator.
        name: Name of the model in OpenAI's interface.
        limits: Limits on requests and on the queue.
        keys: API keys; None accepts every request.
        cors_origins: Origins whose pages may call the service from a browser.
        log_texts: Whether to log texts and results.

    Raises:
        ValueError: A translator has no languages.
    """
    limits, keys = limits or Limits(), keys or Keys()
    batcher: Batcher[Any, Any] = Batcher(
        engine.run,
        limits.batch,
        limits.batch_tokens,
        limits.queue,
        lambda size, seconds: metrics.count_batch(size, seconds),
    )
    metrics = Metrics(lambda: len(batcher))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        # Warm up before the port opens: the first calls allocate memory and compile.
        for count in (1, limits.batch):
            await batcher.submit(engine.warm_up(min(count, limits.queue)))
        yield
        await batcher.stop()

    # Disabled because /docs and /redoc would load scripts from other servers.
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    if isinstance(engine, Writer):
        app.include_router(CompletionRoutes(engine, batcher, name, limits, keys).router)
    elif isinstance(engine, Embedder):
        app.include_router(EmbeddingRoutes(engine, batcher, name, limits, keys).router)
    elif languages is None:
        raise ValueError("languages is None, but a translator needs at least one pair. Pass Languages([Pair(...)]).")
    else:
        app.include_router(libretranslate.router(engine, batcher, languages, limits, keys))

    @app.get("/health")
    async def health() -> JSONResponse:
        if batcher.is_running:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "the engine has stopped"}, 503)

    @app.get("/metrics")
    async def render_metrics(request: Request) -> Response:
        keys.check(bearer_token(request))
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _add_error_handlers(app)
    app.add_middleware(Guard, metrics=metrics, timeout=limits.timeout, max_body=limits.body_bytes, log_texts=log_texts)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Answer refused requests with the error format of their interface."""

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> JSONResponse:
        headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
        return error_response(request.url.path, refusal.status, refusal.message, headers)

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(request.url.path, error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        names = sorted({".".join(map(str, detail["loc"][1:])) for detail in error.errors()})
        return error_response(request.url.path, 400, f"The request has invalid fields: {', '.join(names)}.")
