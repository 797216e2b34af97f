"""Read translation memories in the TMX format (Translation Memory eXchange 1.4b), without expanding XML entities."""

from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from trivium.data.compressed import open_binary

LANGUAGE = ("{http://www.w3.org/XML/1998/namespace}lang", "lang")  # TMX 1.1 uses the attribute name `lang`.
TEXT_ELEMENTS = ("seg", "hi")  # All other elements of a segment hold inline codes of the original document.


def tmx_rows(file: str, languages: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the units of a translation memory as rows with one column per language, each with its location.

    A language code matches regardless of case, or else matches its first regional variant: `en` matches `en-GB`. If a
    unit lacks a language, that column is None. The languages of the unit are columns, too, for error messages.

    Args:
        file: The file, which may be compressed. It is read unit by unit.
        languages: Codes of the languages.

    Yields:
        The location, for error messages, and the row.

    Raises:
        ValueError: The file is not well-formed XML, declares entities, or has no unit in one of the languages.
    """
    seen: set[str] = set()
    missing = set(languages)
    count = 0
    try:
        with open_binary(file) as content:
            body = None
            for event, element in iterparse(content, events=("start", "end")):
                if event == "start":
                    body = element if _name(element) == "body" else body
                elif _name(element) == "tu":
                    count += 1
                    texts = _texts(element)
                    found = {language: _find(texts, language) for language in languages}
                    seen.update(texts)
                    missing -= {language for language, text in found.items() if text is not None}
                    yield f"{file}, translation unit {count}", {**texts, **found}
                    if body is not None:
                        body.clear()  # Free the unit, including its reference in the body.
    except ParseError as error:
        raise ValueError(f"{file}: not a TMX file ({error}).") from error
    except DefusedXmlException as error:
        raise ValueError(
            f"{file}: declares XML entities or external references, which are refused ({error!r}). Remove the "
            "declarations from its DOCTYPE."
        ) from error
    if count and missing:
        raise ValueError(
            f"{file}: no translation unit has the language {sorted(missing)[0]!r}, only "
            f"{', '.join(sorted(seen))}. Set data.source and data.target."
        )


def _name(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]  # without a namespace


def _texts(unit: Element) -> dict[str, str]:
    """Return the text of a translation unit in each language, in file order."""
    texts: dict[str, str] = {}
    for variant in unit:
        segment = next((child for child in variant if _name(child) == "seg"), None)
        language = next((variant.attrib[name] for name in LANGUAGE if name in variant.attrib), None)
        if segment is not None and language is not None:
            texts.setdefault(language, _text(segment))
    return texts


def _text(element: Element) -> str:
    """Return the text of a segment without the inline codes of the original document."""
    if _name(element) not in TEXT_ELEMENTS:
        return ""
    return (element.text or "") + "".join(_text(child) + (child.tail or "") for child in element)


def _find(texts: dict[str, str], language: str) -> str | None:
    """Return the text in a language, or in its first regional variant, or None if there is neither."""
    codes = {code.lower().replace("_", "-"): code for code in reversed(texts)}  # the first of equal codes wins
    wanted = language.lower().replace("_", "-")
    variants = [code for code in reversed(codes) if code.startswith(f"{wanted}-")]
    return next((texts[codes[code]] for code in (wanted, *variants) if code in codes), None)
