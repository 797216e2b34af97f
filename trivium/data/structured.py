"""Validate columns that hold lists: words and tags, sentences of a document, references of its summary."""

from collections.abc import Callable, Mapping
from typing import Any

from datasets import List, Value

TAGGED_WORDS = ("words", "tags")
DOCUMENT = ("document", "references")
# Fields of the `data:` section that name the columns in the data; other columns have the name of their field.
FIELDS = {"words": "text", "tags": "label", "document": "source", "references": "target"}
FEATURES: dict[str, Any] = dict.fromkeys(("words", "tags", "references"), List(Value("string")))


def read_words(value: Any, place: str) -> list[str]:
    """Return words as a list; a string is split at spaces.

    Raises:
        ValueError: There are no words, or one is blank.
    """
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"{place} is {value!r}, but must be a list of words, none of them blank, or a text.")
    return words


def read_tags(value: Any, place: str) -> list[str]:
    """Return tags as a list of strings; a string is split at spaces.

    Raises:
        ValueError: There are no tags, or one is not a string or an integer.
    """
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list) or not tags or not all(isinstance(tag, str | int) and str(tag) for tag in tags):
        raise ValueError(f"{place} is {value!r}, but must be a list of tags, which are strings or integers.")
    return [str(tag) for tag in tags]


def read_document(value: Any, place: str) -> str:
    """Return a document as one text; sentences are joined by spaces.

    Raises:
        ValueError: The text is blank, or a sentence is not a string.
    """
    sentences = [value] if isinstance(value, str) else value
    is_text = isinstance(sentences, list) and all(isinstance(sentence, str) for sentence in sentences)
    if not is_text or not "".join(sentences).strip():
        raise ValueError(f"{place} is {value!r}, but must be a text or a list of sentences, and not blank.")
    return " ".join(sentences)


def read_references(value: Any, place: str) -> list[str]:
    """Return the accepted summaries of a document as a list.

    Raises:
        ValueError: There is none, or one is blank.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{place} is {value!r}, but must be a text or a list of texts, none of them blank.")
    return texts


READ: dict[str, Callable[[Any, str], Any]] = {
    "words": read_words,
    "tags": read_tags,
    "document": read_document,
    "references": read_references,
}


def check_example(example: Mapping[str, Any], place: str) -> None:
    """Check the columns of an example against each other.

    Raises:
        ValueError: The numbers of words and tags differ.
    """
    if "tags" in example and len(example["words"]) != len(example["tags"]):
        raise ValueError(
            f"{place}: found {len(example['words'])} words and {len(example['tags'])} tags; every word needs one tag."
        )


def name_tags(tags: list[str], names: list[str], place: str) -> list[str]:
    """Return the names of tags that a `ClassLabel` column stores as indices.

    Raises:
        ValueError: A tag is missing (-1).
    """
    if any(int(tag) < 0 for tag in tags):
        raise ValueError(f"{place}: a tag is missing (-1), but every word needs a tag.")
    return [names[int(tag)] for tag in tags]
