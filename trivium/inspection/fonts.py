"""Fonts for any script: which of those installed have what a label needs."""

import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from matplotlib import rc_context, rcParams
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font

# What begins the Unicode names of characters, and a package of Debian with a font that has them.
PACKAGES = {
    ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH"): "fonts-noto-cjk",
    ("ARABIC", "HEBREW"): "fonts-dejavu-core",
}
SYMBOLS = "fonts-symbola"  # emoji among them: in one colour, for matplotlib cannot draw those of several
ALL_OTHERS = "fonts-noto-core"
REGULAR = ("normal", 400, "normal")  # style, weight and stretch
HAN_STYLES = {"HIRAGANA": "JP", "KATAKANA": "JP", "HANGUL": "KR"}  # beside others Chinese characters look Chinese


class MissingFontWarning(UserWarning):
    """No installed font has what a label needs; it is drawn as boxes."""


@contextmanager
def legible(texts: Iterable[str]) -> Iterator[None]:
    """Draw text inside with fonts that have all characters of `texts`, and a dollar as a dollar.

    Matplotlib's own font comes first, then as many installed ones as it takes. Where there is none, a
    `MissingFontWarning` says what to install.
    """
    families, missing = families_for(set("".join(texts)))
    if missing:
        warnings.warn(_what_to_install(missing), MissingFontWarning, stacklevel=4)
    fonts = {"font.family": [*rcParams["font.family"], *families], "text.parse_math": False}
    with rc_context(fonts), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # which would say it of each character, again and again
        yield


def families_for(characters: Iterable[str]) -> tuple[list[str], set[str]]:
    """Installed font families that together have what matplotlib's own font lacks, and characters that none has."""
    missing = {character for character in characters if _is_drawn(character)}
    for family in rcParams["font.family"]:
        missing -= _had_by(family, missing)
    families: list[str] = []
    if not missing:
        return families, missing
    _find_new_fonts()
    installed = _installed_families(_han_style(characters))
    while missing:
        best = max(installed, key=lambda family: len(_had_by(family, missing)))  # of equals the first
        if not (had := _had_by(best, missing)):
            break
        families.append(best)
        missing -= had
    return families, missing


def _is_drawn(character: str) -> bool:
    is_variant = unicodedata.name(character, "").startswith("VARIATION SELECTOR")
    return character.isprintable() and not character.isspace() and not is_variant


def _had_by(family: str, characters: set[str]) -> set[str]:
    font = get_font(findfont(FontProperties(family=[family])))
    return {character for character in characters if font.get_char_index(ord(character))}


def _find_new_fonts() -> None:
    """Tell matplotlib of fonts that were installed after it made its list, which it keeps."""
    for path in set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}:
        with suppress(NotImplementedError, OSError, RuntimeError):  # one of coloured bitmaps, or broken
            fontManager.addfont(path)


def _installed_families(han_style: str) -> list[str]:
    """Plain ones first; of fonts for Chinese characters those of the style in question."""
    regular = [font for font in fontManager.ttflist if (font.style, font.weight, font.stretch) == REGULAR]
    names = {font.name for font in regular if not font.name.startswith("Last Resort")}
    return sorted(
        names, key=lambda name: (not name.endswith(f" {han_style}"), "Mono" in name, "Sans" not in name, name)
    )


def _han_style(characters: Iterable[str]) -> str:
    scripts = {unicodedata.name(character, "").split(" ")[0] for character in characters}
    return next((style for script, style in HAN_STYLES.items() if script in scripts), "SC")


def _what_to_install(missing: set[str]) -> str:
    some = sorted(missing)[:8]
    packages = sorted({_package_for(character) for character in missing})
    return (
        f"No font that matplotlib can draw has {' '.join(some)}{' ...' if len(missing) > len(some) else ''}, so there "
        f"will be boxes: install one, such as Noto's for the script, https://fonts.google.com/noto (on Debian and "
        f"Ubuntu: apt-get install {' '.join(packages)})."
    )


def _package_for(character: str) -> str:
    name = unicodedata.name(character, "")
    found = next((package for starts, package in PACKAGES.items() if name.startswith(starts)), None)
    is_symbol = unicodedata.category(character).startswith("S")
    return found or (SYMBOLS if is_symbol else ALL_OTHERS)
