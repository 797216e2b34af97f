"""Select the text nodes of HTML, and replace them."""

import warnings

from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, NavigableString

from .limits import Refusal

MAX_TAGS = 1000  # limited because the parser takes quadratic time on some malformed tags
UNTRANSLATED = ("code", "pre", "kbd", "samp", "textarea")


class HtmlText:
    """HTML document whose text nodes can be replaced; markup, comments, scripts and styles are kept.

    Nodes in elements with `translate="no"`, and in code, are not translated.

    Args:
        html: A document or fragment.

    Attributes:
        texts: The text nodes, in document order.

    Raises:
        Refusal: There are more than `MAX_TAGS` tags (status 400).
    """

    def __init__(self, html: str) -> None:
        if (tags := html.count("<")) > MAX_TAGS:
            raise Refusal(400, f"The HTML has {tags:,} tags, but may have at most {MAX_TAGS:,}. Split it.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a text that is a URL needs no warning
            self._soup = BeautifulSoup(html, "html.parser")
        self._nodes: list[NavigableString] = []
        # Descend with a stack: hostile markup is nested deeper than Python's recursion limit.
        stack = [self._soup]
        while stack:
            node = stack.pop()
            if type(node) is NavigableString:  # its subclasses are comments, scripts, styles and declarations
                self._nodes.append(node)
            elif hasattr(node, "contents") and not (node.name in UNTRANSLATED or node.get("translate") == "no"):
                stack.extend(reversed(node.contents))
        self.texts = [str(node) for node in self._nodes]

    def replaced(self, texts: list[str]) -> str:
        """Replace the text nodes with `texts` and return the HTML. The document can be rendered only once."""
        for node, text in zip(self._nodes, texts, strict=True):
            node.replace_with(NavigableString(text))
        return str(self._soup)
