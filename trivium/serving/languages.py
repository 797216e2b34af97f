"""Language pairs that a model translates."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from babel import Locale, UnknownLocaleError

from .limits import Refusal


@dataclass(frozen=True)
class Pair:
    """A language pair.

    Attributes:
        source: Code of the source language, such as "en".
        target: Code of the target language.
        tag: Prefix of every source text, for models that select the target language by a tag.
    """

    source: str
    target: str
    tag: str = ""

    @classmethod
    def parse(cls, text: str) -> "Pair":
        """Parse "en:de", or "en:de=TAG".

        Raises:
            ValueError: The text does not have this form.
        """
        codes, _, tag = text.partition("=")
        if not re.fullmatch(r"[A-Za-z]{2,3}(-\w{2,8})?:[A-Za-z]{2,3}(-\w{2,8})?", codes):
            raise ValueError(
                f"The language pair is {text!r}, but must be SOURCE:TARGET with language codes, such as en:de, or "
                "SOURCE:TARGET=TAG for a model with tags."
            )
        source, target = codes.split(":")
        return cls(source, target, tag)


class Languages:
    """Language pairs that a service offers.

    Args:
        pairs: At least one pair; pairs must be distinct.

    Raises:
        ValueError: There is no pair, or a pair occurs twice.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = {(pair.source, pair.target): pair for pair in pairs}
        if not pairs or len(self._pairs) < len(pairs):
            raise ValueError(f"pairs is {list(pairs)}, but must have at least one pair, and none twice.")

    def find(self, source: str, target: str) -> Pair:
        """Return the requested pair; the source "auto" selects the only source language.

        Raises:
            Refusal: The pair is not served (status 400).
        """
        sources = {pair.source for pair in self._pairs.values()}
        if source == "auto" and len(sources) == 1:
            source = sources.pop()
        if (pair := self._pairs.get((source, target))) is None:
            allowed = ", ".join(f"{source}:{target}" for source, target in self._pairs)
            raise Refusal(400, f"This service does not translate from source to target as given, only {allowed}.")
        return pair

    def listing(self) -> list[dict[str, Any]]:
        """Return all languages with their target languages, in LibreTranslate's format."""
        codes = dict.fromkeys(code for pair in self._pairs for code in pair)
        return [
            {**named(code), "targets": [target for source, target in self._pairs if source == code]} for code in codes
        ]

    @property
    def default(self) -> Pair:
        """Return the first pair, which is the default."""
        return next(iter(self._pairs.values()))


def named(code: str) -> dict[str, str]:
    """Return a dictionary of a language's code and English name."""
    try:
        name = Locale.parse(code, sep="-").get_display_name("en")
    except (UnknownLocaleError, ValueError):
        name = None
    return {"code": code, "name": name or code}
