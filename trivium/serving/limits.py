"""Limits of the service, the error for rejected requests, and API keys."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from starlette.responses import JSONResponse

MIN_KEY_LENGTH = 16  # shorter keys can be guessed


class Refusal(Exception):
    """Error that refuses a request; its message is sent to the client and contains no internals.

    Args:
        status: HTTP status code.
        message: Description of the error and of the allowed values.
        retry_after: Seconds after which the client may try again.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


@dataclass(frozen=True)
class Limits:
    """Limits on requests and on the queue; larger requests are refused with status 400 or 413.

    Attributes:
        body_bytes: Maximum size of a request body in bytes.
        characters: Maximum number of characters in all texts of a request.
        texts: Maximum number of texts in a request; every line and every HTML text node counts as one.
        tokens: Maximum number of tokens in a text.
        new_tokens: Maximum number of generated tokens in a continuation.
        alternatives: Maximum number of alternative translations per text.
        timeout: Seconds until a request is answered with status 504.
        queue: Maximum number of waiting texts; further requests are answered with status 429.
        batch: Maximum number of texts per batch.
        batch_tokens: Maximum number of tokens per batch, including padding and multiplied by the number of beams.
    """

    body_bytes: int = 256 * 1024
    characters: int = 20_000
    texts: int = 128
    tokens: int = 512
    new_tokens: int = 256
    alternatives: int = 5
    timeout: float = 60.0
    queue: int = 512
    batch: int = 32
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "alternatives" else 1
            if value < least:
                raise ValueError(f"{field.name} is {value}, but must be at least {least}.")
        if self.queue < self.texts:
            raise ValueError(
                f"queue is {self.queue}, but must be at least texts, {self.texts}: a larger request would never be "
                "accepted. Raise queue or lower texts."
            )


class Keys:
    """API keys, stored only as hashes.

    Args:
        keys: The accepted keys; without any, every request is accepted.

    Raises:
        ValueError: A key is shorter than `MIN_KEY_LENGTH` characters.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        keys = list(keys)
        for key in keys:
            if len(key) < MIN_KEY_LENGTH:
                raise ValueError(
                    f"An API key has {len(key)} characters, but must have at least {MIN_KEY_LENGTH}. Create one with "
                    '`python -c "import secrets; print(secrets.token_urlsafe(32))"`.'
                )
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def from_file(cls, path: Path) -> "Keys":
        """Read one key per line; blank lines and lines that start with # are skipped.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file has no key, or a key is too short.
        """
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError(f"{path} has no API key, but must have one per line. Add one, or drop the option.")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, key: str | None) -> None:
        """Check that a request has one of the keys, in constant time.

        Raises:
            Refusal: Keys are required, and the request has none of them.
        """
        if not self._digests:
            return
        digest = _digest(key or "")
        # Compare with all keys, so that the response time does not reveal which one matches.
        if not sum(hmac.compare_digest(digest, accepted) for accepted in self._digests):
            raise Refusal(403, "The API key is missing or invalid. Send it as api_key or as a bearer token.")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


def error_response(path: str, status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error response in the format of the interface to which the path belongs."""
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": None, "code": None}
        return JSONResponse({"error": error}, status, headers)
    return JSONResponse({"error": message}, status, headers)
