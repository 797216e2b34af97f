"""Validate list columns: words and tags, document sentences, reference summaries, and answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import List, Value

FEATURES: dict[str, Any] = dict.fromkeys(("words", "tags", "references"), List(Value("string")))
FEATURES["answers"] = {"text": List(Value("string")), "answer_start": List(Value("int64"))}


def as_text(value: str | Sequence[str]) -> str:
    """Return a column's value as one text; a list of words, sentences or references is joined by spaces."""
    return value if isinstance(value, str) else " ".join(value)


def read_words(value: Any, place: str) -> list[str]:
    """Return words as a list; a string is split at spaces.

    Raises:
        ValueError: There are no words, or a word is blank.
    """
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"{place} is {value!r}, but must be a list of words, none of them blank, or a text.")
    return words


def read_tags(value: Any, place: str) -> list[str]:
    """Return tags as a list of strings; a string is split at spaces.

    Raises:
        ValueError: There are no tags, or a tag is not a string or an integer.
    """
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list) or not tags or not all(isinstance(tag, str | int) and str(tag) for tag in tags):
        raise ValueError(f"{place} is {value!r}, but must be a list of tags, which are strings or integers.")
    return [str(tag) for tag in tags]


def read_document(value: Any, place: str) -> str:
    """Return a document as one text; a list of sentences is joined by spaces.

    Raises:
        ValueError: The text is blank, or a sentence is not a string.
    """
    sentences = [value] if isinstance(value, str) else value
    is_text = isinstance(sentences, list) and all(isinstance(sentence, str) for sentence in sentences)
    if not is_text or not "".join(sentences).strip():
        raise ValueError(f"{place} is {value!r}, but must be a text or a list of sentences, and not blank.")
    return as_text(sentences)


def read_references(value: Any, place: str) -> list[str]:
    """Return the reference summaries of a document as a list.

    Raises:
        ValueError: There are no summaries, or a summary is blank.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{place} is {value!r}, but must be a text or a list of texts, none of them blank.")
    return texts


def read_answers(value: Any, place: str) -> dict[str, list[Any]]:
    """Return the accepted answers to a question in SQuAD's format: their texts and start positions.

    Raises:
        ValueError: There is no answer, or the value is not in SQuAD's format.
    """
    answers: dict[str, Any] = value if isinstance(value, dict) else {}
    texts, starts = answers.get("text") or [], answers.get("answer_start") or []
    is_valid = isinstance(texts, list) and isinstance(starts, list) and 0 < len(texts) == len(starts)
    if not is_valid or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(
            f"{place} is {value!r}, but must be {{'text': [...], 'answer_start': [...]}} with at least one answer, "
            "none of them blank, and the position of the first character of each in the context."
        )
    return {"text": texts, "answer_start": starts}


READ: dict[str, Callable[[Any, str], Any]] = {
    "words": read_words,
    "tags": read_tags,
    "document": read_document,
    "references": read_references,
    "answers": read_answers,
}


def check_example(example: Mapping[str, Any], place: str) -> None:
    """Check that the columns of an example are consistent.

    Raises:
        ValueError: The numbers of words and tags differ, or an answer does not occur at its start position.
    """
    if "answers" in example:
        for text, start in zip(*example["answers"].values(), strict=True):
            if not isinstance(start, int) or start < 0 or not example["context"].startswith(text, start):
                raise ValueError(
                    f"{place}: the answer {text!r} is not at answer_start {start!r} of its context; the position is "
                    "that of the first character, counted from 0."
                )
    if "tags" in example and len(example["words"]) != len(example["tags"]):
        raise ValueError(
            f"{place}: found {len(example['words'])} words and {len(example['tags'])} tags; every word needs one tag."
        )


def name_tags(tags: list[str], names: list[str], place: str) -> list[str]:
    """Return the names of tags from their indices in a `ClassLabel` column.

    Raises:
        ValueError: A tag is missing (-1).
    """
    if any(int(tag) < 0 for tag in tags):
        raise ValueError(f"{place}: a tag is missing (-1), but every word needs a tag.")
    return [names[int(tag)] for tag in tags]
