"""Select installed fonts that cover the characters of the labels, for any script."""

import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from matplotlib import rc_context, rcParams
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font

# Debian packages; Symbola has monochrome emoji, since matplotlib cannot draw color fonts.
EAST_ASIA, SYMBOLS, OTHER = "fonts-noto-cjk", "fonts-symbola", "fonts-noto-core"
EAST_ASIAN = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "BOPOMOFO",
    "IDEOGRAPHIC",
    "FULLWIDTH",
)  # prefixes of Unicode names
REGULAR = ("normal", 400, "normal")  # style, weight and stretch
HAN_STYLES = {
    "HIRAGANA": "JP",
    "KATAKANA": "JP",
    "HANGUL": "KR",
}  # the script of the text determines the style of Han characters; SC is the default


class MissingFontWarning(UserWarning):
    """Warning that no installed font covers a label; missing glyphs are drawn as boxes."""


@contextmanager
def legible(texts: Iterable[str]) -> Iterator[None]:
    """Context manager: draw text with fonts that cover all characters of `texts`, and `$` literally.

    Matplotlib's default font comes first, then as many installed fonts as needed. If no font covers a character, a
    `MissingFontWarning` says what to install.
    """
    families, missing = families_for(set("".join(texts)))
    if missing:
        warnings.warn(_what_to_install(missing), MissingFontWarning, stacklevel=4)
    names = [*rcParams["font.family"], *families]
    with rc_context({"font.family": names, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # matplotlib would warn for each missing glyph
        yield


def families_for(characters: Iterable[str]) -> tuple[list[str], set[str]]:
    """Return font families that cover the characters missing from the default font, and characters in no font."""
    missing = {character for character in characters if _is_drawn(character)}
    for family in rcParams["font.family"]:
        missing -= _covered_by(family, missing)
    families: list[str] = []
    if not missing:
        return families, missing
    _find_new_fonts()
    installed = _installed_families(_han_style(characters))
    while missing:
        best = max(installed, key=lambda family: len(_covered_by(family, missing)))  # the first one wins ties
        if not (covered := _covered_by(best, missing)):
            break
        families.append(best)
        missing -= covered
    return families, missing


def _is_drawn(character: str) -> bool:
    is_variant = unicodedata.name(character, "").startswith("VARIATION SELECTOR")
    return character.isprintable() and not character.isspace() and not is_variant


def _covered_by(family: str, characters: set[str]) -> set[str]:
    font = get_font(findfont(FontProperties(family=[family])))
    return {character for character in characters if font.get_char_index(ord(character))}


def _find_new_fonts() -> None:
    """Add fonts that were installed after matplotlib cached its font list."""
    for path in set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}:
        with suppress(NotImplementedError, OSError, RuntimeError):  # a color bitmap font, or a broken file
            fontManager.addfont(path)


def _installed_families(han_style: str) -> list[str]:
    """Return regular font families by preference: matching Han style first, then sans-serif before other fonts."""
    regular = [font for font in fontManager.ttflist if (font.style, font.weight, font.stretch) == REGULAR]
    names = {font.name for font in regular if not font.name.startswith("Last Resort")}
    return sorted(
        names, key=lambda name: (not name.endswith(f" {han_style}"), "Mono" in name, "Sans" not in name, name)
    )


def _han_style(characters: Iterable[str]) -> str:
    scripts = {unicodedata.name(character, "").split(" ")[0] for character in characters}
    return next((style for script, style in HAN_STYLES.items() if script in scripts), "SC")


def _what_to_install(missing: set[str]) -> str:
    shown = sorted(missing)[:8]
    packages = sorted({_package_for(character) for character in missing})
    return (
        f"No installed font has {' '.join(shown)}{' ...' if len(missing) > len(shown) else ''}, so boxes are drawn "
        "instead: install one that matplotlib supports, such as Noto, https://fonts.google.com/noto (on Debian and "
        f"Ubuntu: apt-get install {' '.join(packages)})."
    )


def _package_for(character: str) -> str:
    if unicodedata.name(character, "").startswith(EAST_ASIAN):
        return EAST_ASIA
    return SYMBOLS if unicodedata.category(character).startswith("S") else OTHER
