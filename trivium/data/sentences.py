"""Split texts into sentences with sentencex, an optional dependency, and join translated sentences again."""

from collections.abc import Iterable
from itertools import chain

# Sentences that end with one of these are not followed by a space.
CJK_STOPS = ("\N{IDEOGRAPHIC FULL STOP}", "\N{FULLWIDTH EXCLAMATION MARK}", "\N{FULLWIDTH QUESTION MARK}")


def split_sentences(text: str, language: str) -> list[str]:
    """Split a text into sentences, each with its trailing whitespace, so that joining them restores the text.

    Args:
        text: The text; a blank text is returned as a single sentence.
        language: ISO 639 code of the text's language, such as "en"; for unknown codes, sentencex falls back to its
            general rules.

    Raises:
        ImportError: sentencex is not installed.
    """
    try:
        import sentencex
    except ImportError as error:
        raise ImportError(
            "Splitting texts into sentences needs sentencex, which is not installed: `pip install sentencex`."
        ) from error
    return sentencex.segment(language, text) if text.strip() else [text]


def join_sentences(translations: Iterable[str], sentences: Iterable[str]) -> str:
    """Join the translations of sentences with the whitespace between their sources, or else with a space."""
    parts = []
    for translation, sentence in zip(translations, sentences, strict=True):
        space = sentence[len(sentence.rstrip()) :] or " "
        parts.append((translation, "" if translation.endswith(CJK_STOPS) else space))
    return "".join(chain(*parts)).strip()
