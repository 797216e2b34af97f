"""OpenAI's interface: /v1/completions and /v1/chat/completions for decoders, /v1/embeddings for encoders."""

import asyncio
import base64
import contextlib
import json
import struct
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .batcher import Batcher
from .engine import Embedder, Job
from .limits import Keys, Limits, Refusal
from .parameters import bearer_token, clean, parse_object
from .writer import Continuation, Prompt, Stream, Writer

MAX_SAMPLES = 8  # n
MAX_STOPS = 4
# Unsupported parameters that would change the answer; only null, 0, false or empty values are accepted.
UNSUPPORTED = (
    *("best_of", "echo", "frequency_penalty", "functions", "logit_bias", "logprobs", "presence_penalty"),
    *("response_format", "suffix", "tools", "top_logprobs"),
)


class _Routes:
    """Base class of the OpenAI routes: model list, request parsing and limits."""

    def __init__(self, name: str, limits: Limits, keys: Keys) -> None:
        self.name, self.limits, self.keys = name, limits, keys
        self.router = APIRouter(prefix="/v1")
        self.created = int(time.time())
        self.router.add_api_route("/models", self.models, methods=["GET"])

    async def models(self, request: Request) -> JSONResponse:
        """List the served model, the only one."""
        self.keys.check(bearer_token(request))
        model = {"id": self.name, "object": "model", "created": self.created, "owned_by": "trivium"}
        return JSONResponse({"object": "list", "data": [model]})

    async def read(self, request: Request) -> dict[str, Any]:
        """Return the validated body of a request."""
        self.keys.check(bearer_token(request))
        body = parse_object(await request.body())
        if body.get("model") != self.name:
            raise Refusal(404, f"model must be {self.name!r}, the only model of this service.")
        return body

    def texts(self, value: Any, name: str) -> list[str]:
        """Return a parameter, one text or a list of texts, as a list."""
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise Refusal(400, f"{name} must be a text or a list of texts; token ids are not accepted.")
        if len(texts) > self.limits.texts:
            raise Refusal(400, f"{name} has {len(texts):,} texts, but may have at most {self.limits.texts:,}.")
        self.check_length(texts)
        return [clean(text) for text in texts]

    def check_length(self, texts: Sequence[str]) -> None:
        """Refuse requests whose texts have too many characters."""
        if (characters := sum(map(len, texts))) > self.limits.characters:
            most = f"{self.limits.characters:,}"
            raise Refusal(400, f"The request has {characters:,} characters, but may have at most {most}. Split it.")


class EmbeddingRoutes(_Routes):
    """Route /v1/embeddings.

    Args:
        embedder: Engine that tokenizes the texts.
        batcher: Batcher that runs `embedder`.
        name: Name of the model.
        limits: Limits per request.
        keys: API keys.
    """

    def __init__(
        self, embedder: Embedder, batcher: Batcher[Job, list[float]], name: str, limits: Limits, keys: Keys
    ) -> None:
        super().__init__(name, limits, keys)
        self.embedder, self.batcher = embedder, batcher
        self.router.add_api_route("/embeddings", self.embeddings, methods=["POST"])

    async def embeddings(self, request: Request) -> JSONResponse:
        """Answer with one embedding for each text of `input`."""
        body = await self.read(request)
        texts = request.state.texts = self.texts(body.get("input"), "input")
        if (encoding := body.get("encoding_format", "float")) not in ("float", "base64"):
            raise Refusal(400, 'encoding_format must be "float" or "base64".')
        if body.get("dimensions") is not None:
            raise Refusal(400, "dimensions is not supported: the embeddings have the size of the model.")
        jobs = self.embedder.jobs(texts)
        vectors: list[Any] = await self.batcher.submit(jobs)
        if encoding == "base64":
            vectors = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        tokens = sum(len(job.input_ids) for job in jobs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": usage})


class CompletionRoutes(_Routes):
    """Routes /v1/completions and /v1/chat/completions.

    Requests without a temperature use the saved generation settings; a temperature of 0 selects greedy search.

    Args:
        writer: Engine that tokenizes the prompts.
        batcher: Batcher that runs `writer`.
        name: Name of the model.
        limits: Limits per request.
        keys: API keys.
    """

    def __init__(
        self, writer: Writer, batcher: Batcher[Prompt, Continuation], name: str, limits: Limits, keys: Keys
    ) -> None:
        super().__init__(name, limits, keys)
        self.writer, self.batcher = writer, batcher
        self.router.add_api_route("/completions", self.completions, methods=["POST"], response_model=None)
        self.router.add_api_route("/chat/completions", self.chat, methods=["POST"], response_model=None)

    async def completions(self, request: Request) -> Response:
        """Answer with continuations of `prompt`."""
        body = await self.read(request)
        texts = request.state.texts = self.texts(body.get("prompt"), "prompt")
        return await self.answer(request, body, [self.writer.encode(text) for text in texts], is_chat=False)

    async def chat(self, request: Request) -> Response:
        """Answer with the assistant's next message."""
        body = await self.read(request)
        tokenizer, messages = self.writer.tokenizer, body.get("messages")
        if not tokenizer.chat_template:
            raise Refusal(400, "The model has no chat template. Use /v1/completions.")
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise Refusal(400, "messages must be a list of objects with the texts role and content.")
        messages = [{name: clean(message[name]) for name in ("role", "content")} for message in messages]
        request.state.texts = [message["content"] for message in messages]
        self.check_length([text for message in messages for text in message.values()])
        try:
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except jinja2.TemplateError as error:  # for example, the template does not support a role
            raise Refusal(400, "The chat template of the model does not accept these messages.") from error
        return await self.answer(request, body, [list(ids)], is_chat=True)

    async def answer(
        self, request: Request, body: dict[str, Any], encoded: list[list[int]], is_chat: bool
    ) -> Response:
        """Generate continuations, and return them as a whole or as a stream."""
        settings = self.settings(body)
        count = _number(body, "n", 1, 1, MAX_SAMPLES, int)
        frame = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.name,
        }
        if body.get("stream"):
            if count * len(encoded) > 1:
                raise Refusal(400, "stream allows only one prompt and n=1.")
            # Wait for the first chunk, so that a refusal can still set the status code.
            parts = self.stream(encoded[0], settings, frame, is_chat)
            first = await anext(parts)
            return StreamingResponse(_chain(first, parts), media_type="text/event-stream")
        if count * len(encoded) > self.limits.texts:
            raise Refusal(400, f"The request asks for more than {self.limits.texts:,} texts. Split it.")
        seed = settings.pop("seed")
        prompts = [
            self.writer.prompt(ids, **settings, seed=None if seed is None else seed + i)
            for ids in encoded
            for i in range(count)
        ]
        results = await self.batcher.submit(prompts)
        request.state.translations = [result.text for result in results]
        written, read = sum(result.tokens for result in results), sum(map(len, encoded))
        answer = {
            **frame,
            "object": "chat.completion" if is_chat else "text_completion",
            "choices": [_choice(i, result.text, result.reason, is_chat) for i, result in enumerate(results)],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }
        return JSONResponse(answer)

    async def stream(
        self, ids: list[int], settings: dict[str, Any], frame: dict[str, Any], is_chat: bool
    ) -> AsyncGenerator[str, None]:
        """Yield server-sent events, one for each chunk of the text."""
        frame = {**frame, "object": "chat.completion.chunk" if is_chat else "text_completion"}
        loop, parts, gone = asyncio.get_running_loop(), asyncio.Queue[str | None](), threading.Event()
        stream = Stream(lambda part: loop.call_soon_threadsafe(parts.put_nowait, part), gone)
        work = asyncio.create_task(self.batcher.submit([self.writer.prompt(ids, **settings, stream=stream)]))
        work.add_done_callback(lambda task: parts.put_nowait(None))
        try:
            while (part := await parts.get()) is not None:
                yield _event({**frame, "choices": [_choice(0, part, None, is_chat, is_part=True)]})
            [result] = await work
            yield _event({**frame, "choices": [_choice(0, "", result.reason, is_chat, is_part=True)]})
            yield "data: [DONE]\n\n"
        finally:
            gone.set()
            work.cancel()

    def settings(self, body: dict[str, Any]) -> dict[str, Any]:
        """Convert the parameters of a request to arguments of `Writer.prompt`."""
        for name in UNSUPPORTED:
            if body.get(name):
                raise Refusal(400, f"{name} is not supported.")
        stop = body.get("stop") or []
        stop = [stop] if isinstance(stop, str) else stop
        if (
            not isinstance(stop, list)
            or len(stop) > MAX_STOPS
            or not all(isinstance(text, str) and 0 < len(text) <= 100 for text in stop)
        ):
            raise Refusal(400, f"stop must be a text or a list of at most {MAX_STOPS} texts of up to 100 characters.")
        name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        options: dict[str, Any] = {}
        temperature = _number(body, "temperature", None, 0, 2, float)
        if temperature is not None:
            options = {"do_sample": temperature > 0}
            if temperature > 0:
                options |= {"temperature": max(temperature, 0.01), "top_k": 0}
        top_p = _number(body, "top_p", None, 0, 1, float)
        if top_p is not None and options.get("do_sample"):
            options["top_p"] = max(top_p, 1e-6)
        return {
            "max_new_tokens": _number(body, name, None, 1, self.limits.new_tokens, int),
            "options": options,
            "stop": tuple(stop),
            "seed": _number(body, "seed", None, 0, 2**63 - 2 - MAX_SAMPLES, int),
        }


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))


def _number(body: dict[str, Any], name: str, default: Any, least: float, most: float, kind: type) -> Any:
    value = default if body.get(name) is None else body[name]
    is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and least <= value <= most):
        raise Refusal(400, f"{name} must be a number from {least:,} to {most:,}.")
    return value


def _choice(index: int, text: str, reason: str | None, is_chat: bool, is_part: bool = False) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
    if is_chat:
        return {**choice, "delta" if is_part else "message": {"role": "assistant", "content": text}}
    return {**choice, "text": text}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _chain(first: str, parts: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield the first chunk and all chunks that follow; close the source when the client disconnects."""
    async with contextlib.aclosing(parts):
        yield first
        async for part in parts:
            yield part
