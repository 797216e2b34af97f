"""LibreTranslate's interface: /translate, /languages and /frontend/settings."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from .batcher import Batcher
from .engine import Job, Translator
from .html_text import HtmlText
from .languages import Languages, Pair, named
from .limits import Keys, Limits, Refusal
from .parameters import bearer_token, clean, read_parameters


@dataclass(frozen=True)
class _Request:
    """A validated translation request."""

    texts: list[str]
    is_list: bool
    pair: Pair
    is_auto: bool
    is_html: bool
    alternatives: int


def router(
    translator: Translator, batcher: Batcher[Job, list[str]], languages: Languages, limits: Limits, keys: Keys
) -> APIRouter:
    """Return the routes of LibreTranslate's interface.

    Args:
        translator: Engine that tokenizes the texts.
        batcher: Batcher that runs `translator` on the texts of all requests.
        languages: The language pairs.
        limits: Limits per request.
        keys: API keys.
    """
    routes = APIRouter()

    @routes.post("/translate")
    async def translate(request: Request) -> JSONResponse:
        parameters = await read_parameters(request)
        key = parameters.get("api_key")
        keys.check(key if isinstance(key, str) and key else bearer_token(request))
        checked = _check(parameters, languages, limits)
        request.state.texts = checked.texts
        documents = [HtmlText(text).texts if checked.is_html else [text] for text in checked.texts]
        translated = await _translate_pieces(documents, checked, translator, batcher, limits)
        translations = [
            # Parse the document anew for each version, because replacing its text nodes modifies it.
            [HtmlText(text).replaced(version) if checked.is_html else version[0] for version in versions]
            for text, versions in zip(checked.texts, translated, strict=True)
        ]
        request.state.translations = [versions[0] for versions in translations]
        answer: dict[str, Any] = {"translatedText": [versions[0] for versions in translations]}
        if checked.alternatives:
            answer["alternatives"] = [versions[1:] for versions in translations]
        if checked.is_auto:
            # There is only one source language, so it is known without detection.
            answer["detectedLanguage"] = [{"confidence": 100, "language": checked.pair.source}] * len(translations)
        if not checked.is_list:
            answer = {name: values[0] for name, values in answer.items()}
        return JSONResponse(answer)

    @routes.get("/languages")
    async def list_languages() -> JSONResponse:
        return JSONResponse(languages.listing())

    @routes.get("/frontend/settings")
    async def settings() -> JSONResponse:
        default = languages.default
        return JSONResponse(
            {
                "apiKeys": bool(keys),
                "charLimit": limits.characters,
                "filesTranslation": False,
                "frontendTimeout": 500,
                "keyRequired": bool(keys),
                "language": {"source": named(default.source), "target": named(default.target)},
                "suggestions": False,
                "supportedFilesFormat": [],
            }
        )

    return routes


def _check(parameters: dict[str, Any], languages: Languages, limits: Limits) -> _Request:
    for name in ("q", "source", "target"):
        if name not in parameters:
            raise Refusal(400, f"The parameter {name} is missing. Send q, source and target.")
    q, source, target = parameters["q"], parameters["source"], parameters["target"]
    texts = q if isinstance(q, list) else [q]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Refusal(400, "q must be a text or a list of at least one text.")
    if not (isinstance(source, str) and isinstance(target, str)):
        raise Refusal(400, "source and target must be language codes.")
    if (format_ := parameters.get("format", "text")) not in ("text", "html"):
        raise Refusal(400, 'format must be "text" or "html".')
    try:
        alternatives = int(parameters.get("alternatives") or 0)
    except (TypeError, ValueError, OverflowError):
        alternatives = -1
    if not 0 <= alternatives <= limits.alternatives:
        raise Refusal(400, f"alternatives must be a number from 0 to {limits.alternatives}.")
    if (characters := sum(map(len, texts))) > limits.characters:
        raise Refusal(
            400, f"The request has {characters:,} characters, but may have at most {limits.characters:,}. Split it."
        )
    return _Request(
        texts=[clean(text) for text in texts],
        is_list=isinstance(q, list),
        pair=languages.find(source, target),
        is_auto=source == "auto",
        is_html=format_ == "html",
        alternatives=alternatives,
    )


async def _translate_pieces(
    pieces: list[list[str]],
    checked: _Request,
    translator: Translator,
    batcher: Batcher[Job, list[str]],
    limits: Limits,
) -> list[list[list[str]]]:
    """Translate the pieces of each text line by line, keeping line endings and surrounding spaces.

    Returns:
        The translated pieces, for each text and each of its `alternatives + 1` versions.
    """
    lines = [[piece.splitlines(keepends=True) for piece in group] for group in pieces]
    flat = [line for group in lines for piece in group for line in piece if line.strip()]
    if len(flat) > limits.texts:
        raise Refusal(
            400,
            f"The request has {len(flat):,} texts, lines and text nodes, but may have at most {limits.texts:,}. "
            "Split it.",
        )
    jobs = translator.jobs([checked.pair.tag + line.strip() for line in flat], checked.alternatives)
    results = iter(await batcher.submit(jobs))
    count = checked.alternatives + 1
    translated = []
    for group in lines:
        versions: list[list[str]] = [[] for _ in range(count)]
        for piece in group:
            parts: list[list[str]] = [[] for _ in range(count)]
            for line in piece:
                best = next(results) if line.strip() else [""] * count
                start = len(line) - len(line.lstrip())
                before, after = (line[:start], line[len(line.rstrip()) :]) if line.strip() else (line, "")
                for part, text in zip(parts, best, strict=True):
                    part.append(before + text + after)
            for version, part in zip(versions, parts, strict=True):
                version.append("".join(part))
        translated.append(versions)
    return translated
