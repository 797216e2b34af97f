"""Read parameters from JSON, forms and query strings."""

import json
from typing import Any

from fastapi import Request
from starlette.datastructures import ImmutableMultiDict

from .limits import Refusal

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
MAX_FIELDS = 1000


async def read_parameters(request: Request) -> dict[str, Any]:
    """Return the parameters of a request; parameters in the body override the query string.

    Raises:
        Refusal: The body is neither a JSON object nor a form (status 400).
    """
    parameters = _collect(request.query_params)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in FORMS:
        async with request.form(max_files=0, max_fields=MAX_FIELDS) as form:
            return {**parameters, **_collect(form)}
    if body := await request.body():
        parameters |= parse_object(body)
    return parameters


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        Refusal: The body is not a JSON object (status 400).
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The body must be a JSON object in UTF-8, or a form with its Content-Type.") from error
    if not isinstance(content, dict):
        raise Refusal(400, "The body must be a JSON object.")
    return content


def clean(text: str) -> str:
    """Replace lone surrogates, which JSON can express but UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def bearer_token(request: Request) -> str | None:
    """Return the token of the Authorization header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _collect(values: ImmutableMultiDict[str, Any]) -> dict[str, Any]:
    """Group values by name; a name that occurs several times has a list of values."""
    collected: dict[str, list[Any]] = {}
    for name, value in values.multi_items():
        collected.setdefault(name, []).append(value)
    return {name: found[0] if len(found) == 1 else found for name, found in collected.items()}
