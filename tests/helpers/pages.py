"""Parse documentation pages into code blocks, headings and links."""

import io
import re
import shlex
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from paths import DOCS, ROOT

MADE_BY_THE_BUILD = DOCS / "reference" / "command-line.md"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(DOCS.rglob("*.md"))]
PAGES = [page for page in PAGES if page != MADE_BY_THE_BUILD]
WALK, KOREAN_WALK, CLIENTS = DOCS / "walk.md", DOCS / "ko" / "walk.md", DOCS / "clients.md"
EXTEND = DOCS / "how-to" / "extend.md"
MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A code block, its language (`sh` if it is indented without one), and the paragraph before it."""

    page: Path
    line: int
    language: str
    code: str
    before: Token | None = field(repr=False)  # Inline token of the preceding paragraph, or None.

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def source(self) -> Path | None:
        """Return the source file that the paragraph before names: "From [`file.py`](...) ...:"."""
        if self.before is None or not self.before.content.endswith(":"):
            return None
        first = next((token for token in self.before.children or [] if token.type == "link_open"), None)
        href = str(first.attrGet("href")) if first is not None else ""
        is_source = self.before.content.startswith("From ") and href.endswith(".py")
        return (self.page.parent / href).resolve() if is_source else None


def blocks(page: Path) -> list[Block]:
    """Return all code blocks of a page, in order."""
    found, before = [], None
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    for i, token in enumerate(tokens):
        if token.type in ("fence", "code_block"):
            language = token.info if token.type == "fence" else "sh"
            assert token.map
            found.append(Block(page, token.map[0] + 1, language, token.content, before))
        if token.type == "paragraph_close":
            before = tokens[i - 1]
        elif token.type not in ("paragraph_open", "inline"):
            before = None
    return found


def is_in(excerpt: str, source: str) -> bool:
    """Return True if the lines occur consecutively in `source`, at any indentation; `...` skips lines."""
    lines, start = source.splitlines(), 0
    for part in re.split(r"^ *\.\.\.\n", excerpt, flags=re.MULTILINE):
        wanted = textwrap.dedent(part).splitlines()
        places = range(start, len(lines) - len(wanted) + 1)
        place = next((i for i in places if _dedented(lines[i : i + len(wanted)]) == wanted), None)
        if place is None:
            return False
        start = place + len(wanted)
    return True


def _dedented(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


def links(page: Path) -> Iterator[str]:
    """Return the targets of the links and images of a page."""
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        for child in token.children or []:
            if child.type in ("link_open", "image"):
                yield str(child.attrGet("href" if child.type == "link_open" else "src"))


def anchors(page: Path) -> set[str]:
    """Return the fragment ids that GitHub and MyST generate for the headings."""
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(code: str) -> Iterator[list[str]]:
    """Return the arguments of every call of `trivium` in shell commands, with the variables they set expanded."""
    variables = dict(re.findall(r'^(\w+)="(.*)"$', code, flags=re.MULTILINE))
    code = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), code)
    for line in re.findall(r"^.*\btrivium [a-z].*$", code.replace("\\\n", " "), flags=re.MULTILINE):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        calls: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set("();<>|&"):
                calls.append([])
            else:
                calls[-1].append(word)
        yield from (call[1:] for call in calls if call[:1] == ["trivium"])


def outputs(page: Path) -> Iterator[tuple[Block, str, str, bool]]:
    """Return each block's actual and expected output, and whether it depends on trained weights."""
    variables: dict[str, Any] = {}
    found = blocks(page)
    for i, block in enumerate(found):
        if block.language == "python" and not block.source:
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(compile(block.code, str(block), "exec"), variables)
            following = found[i + 1] if i + 1 < len(found) else None
            shown = following is not None and following.language.startswith("text") and not following.before
            assert shown == bool(printed.getvalue()), f"{block} prints something, but the page does not show it"
            if following and shown:
                yield block, printed.getvalue(), following.code, "trained" in following.language
