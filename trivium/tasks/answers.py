"""Extractive question answering: encode questions with windows of their contexts, and extract answers."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from trivium.modeling.pipeline_question_answering import NO_TOKEN, Window, encode_windows

Row = Mapping[str, Any]


def encode_answers(
    row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int | None
) -> list[dict[str, Any]]:
    """Encode a question as windows, each with the first and last token position of its first answer.

    In windows that do not contain the whole answer, both positions are 0, the first token.
    """
    start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
    examples = []
    for window in encode_windows(tokenizer, row["question"], row["context"], max_length, stride):
        first, last = _positions(window, start, start + len(text))
        inputs = {name: values for name, values in window.items() if name not in ("starts", "ends")}
        positions = {"start_positions": first, "end_positions": last, "length": len(window["starts"])}
        examples.append({**inputs, **positions})
    return examples


def _positions(window: Window, start: int, end: int) -> tuple[int, int]:
    """Return the first and last token covering characters `start` to `end`; (0, 0) if any is outside the window."""
    tokens = [
        i
        for i, (first, last) in enumerate(zip(window["starts"], window["ends"], strict=True))
        if first != NO_TOKEN and first - 1 < end and last > start
    ]
    is_whole = tokens and window["starts"][tokens[0]] - 1 <= start and window["ends"][tokens[-1]] >= end
    return (tokens[0], tokens[-1]) if is_whole else (0, 0)
