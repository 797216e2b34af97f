"""Pack documents into rows of fixed length for language modeling."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from trivium.modeling.loss import IGNORE_INDEX

STRATEGIES = ("concatenate", "best-fit")
STATISTICS = ("num_tokens", "num_cuts")  # metadata columns of a packed row


class Segment(NamedTuple):
    """A segment of a row: a whole document or a part of one.

    Attributes:
        tokens: Token ids of the segment.
        continues: True if the document begins in another segment.
    """

    tokens: list[int]
    continues: bool


def pack(
    documents: list[list[int]], length: int, pad_token_id: int, strategy: str = "concatenate"
) -> dict[str, list[Any]]:
    """Pack documents into rows of `length` tokens.

    `position_ids` restart at the beginning of a document or row; the model derives the attention mask from them. The
    label of a document's first token is ignored, because there is no context to predict it from.

    Args:
        documents: Token ids of each document.
        length: Number of tokens per row.
        pad_token_id: Id of the token that pads rows to `length`.
        strategy: "concatenate" or "best-fit"; see the functions `concatenate` and `best_fit`.

    Returns:
        The columns `input_ids`, `position_ids` and `labels` of the rows, and two columns of counts: `num_tokens`, the
        number of tokens in the row without padding, and `num_cuts`, the number of segments in the row that continue a
        document that was cut.
    """
    rows = best_fit(documents, length) if strategy == "best-fit" else concatenate(documents, length)
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "position_ids", "labels", *STATISTICS)}
    for row in rows:
        input_ids: list[int] = []
        position_ids: list[int] = []
        labels: list[int] = []
        for tokens, continues in row:
            # The model never predicts the first token of a row, so its label is kept.
            labels += tokens if continues and not input_ids else [IGNORE_INDEX, *tokens[1:]]
            input_ids += tokens
            position_ids += range(len(tokens))
        padding = length - len(input_ids)
        columns["num_tokens"].append(len(input_ids))
        columns["num_cuts"].append(sum(segment.continues for segment in row))
        columns["input_ids"].append(input_ids + [pad_token_id] * padding)
        columns["position_ids"].append([*position_ids, *range(padding)])
        columns["labels"].append(labels + [IGNORE_INDEX] * padding)
    return columns


def concatenate(documents: list[list[int]], length: int) -> Iterator[list[Segment]]:
    """Concatenate the documents and cut the result every `length` tokens; only the last row has padding.

    Yields:
        The segments of each row.
    """
    row: list[Segment] = []
    space = length
    for document in documents:
        start = 0
        while start < len(document):
            tokens = document[start : start + space]
            row.append(Segment(tokens, start > 0))
            start += len(tokens)
            space -= len(tokens)
            if space == 0:
                yield row
                row, space = [], length
    if row:
        yield row


def best_fit(documents: list[list[int]], length: int) -> list[list[Segment]]:
    """Pack whole documents into rows; cut only documents that are longer than a row.

    This is best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): segments are placed
    from longest to shortest, each in the fullest row that has enough space left. Documents longer than a row are first
    cut every `length` tokens.

    Returns:
        The segments of each row. Rows, and segments within a row, follow the order of the documents, so that
        unshuffled rows, such as those of a stream, are not sorted by length.
    """
    segments = [
        Segment(document[start : start + length], start > 0)
        for document in documents
        for start in range(0, len(document), length)
    ]
    rows: list[list[int]] = []  # indices of segments
    rows_by_space: dict[int, list[int]] = {}  # row indices by free space; full rows are left out
    spaces: list[int] = []  # sorted keys of `rows_by_space`
    for index in sorted(range(len(segments)), key=lambda i: -len(segments[i].tokens)):  # stable
        size = len(segments[index].tokens)
        place = bisect_left(spaces, size)
        if place == len(spaces):
            row, space = len(rows), length
            rows.append([])
        else:
            space = spaces[place]
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                del rows_by_space[space], spaces[place]
        rows[row].append(index)
        if space > size:
            if space - size not in rows_by_space:
                rows_by_space[space - size] = []
                insort(spaces, space - size)
            rows_by_space[space - size].append(row)
    return [[segments[index] for index in row] for row in sorted(sorted(row) for row in rows)]


def packing_facts(rows: Dataset) -> dict[str, float]:
    """Return statistics of packed rows, for the log and the run metadata.

    Returns:
        `rows`, the number of rows; `tokens`, the number of tokens without padding; `padding`, the fraction of padding
        among all tokens; and `cuts`, the number of places where a document continues in another segment.
    """
    columns = rows.select_columns(list(STATISTICS)).with_format("numpy")
    tokens, cuts = (int(np.sum(columns[name][:])) for name in STATISTICS)
    total = len(rows) * len(rows[0]["input_ids"])
    return {"rows": len(rows), "tokens": tokens, "padding": 1 - tokens / total, "cuts": cuts}
