"""Test best-fit packing: no token is lost, short documents stay whole, and segments do not attend to each other."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny import PAD, random_ids, tiny_model

from trivium import TriviumForCausalLM
from trivium.data.packing import best_fit, pack, packing_facts
from trivium.modeling.loss import IGNORE_INDEX


def segments_of(row: dict[str, list[int]]) -> list[tuple[list[int], list[int]]]:
    """Split a packed row into (tokens, labels) segments wherever its position ids restart."""
    starts = [i for i, position in enumerate(row["position_ids"][: row["num_tokens"]]) if position == 0]
    ends = [*starts[1:], row["num_tokens"]]
    return [(row["input_ids"][a:b], row["labels"][a:b]) for a, b in zip(starts, ends, strict=True)]


@given(st.lists(st.integers(1, 25), min_size=1, max_size=40), st.integers(2, 12))
def test_best_fit_cuts_only_long_documents(sizes: list[int], length: int) -> None:
    documents = [[1000 * number + i + 1 for i in range(size)] for number, size in enumerate(sizes)]
    packed = Dataset.from_dict(pack(documents, length, PAD, "best-fit"))
    segments = [segment for row in packed for segment in segments_of(row)]
    expected = [document[i : i + length] for document in documents for i in range(0, len(document), length)]
    assert sorted(tokens for tokens, _ in segments) == sorted(expected)
    for row in packed:
        assert len(row["input_ids"]) == len(row["position_ids"]) == len(row["labels"]) == length
        assert row["input_ids"][row["num_tokens"] :] == [PAD] * (length - row["num_tokens"])
        assert set(row["labels"][row["num_tokens"] :]) <= {IGNORE_INDEX}
        for place, (tokens, labels) in enumerate(segments_of(row)):
            assert labels[1:] == tokens[1:]
            continues = tokens[0] % 1000 != 1
            assert labels[0] == (tokens[0] if continues and place == 0 else IGNORE_INDEX)
    facts = packing_facts(packed)
    assert facts["tokens"] == sum(sizes)
    assert facts["cuts"] == len(expected) - len(documents)
    assert facts["padding"] == pytest.approx(1 - sum(sizes) / (len(packed) * length))


def test_best_fit_leaves_little_space() -> None:
    assert [[segment.tokens for segment in row] for row in best_fit([[1] * 3, [2] * 6, [3] * 4, [4] * 7], 10)] == [
        [[1] * 3, [4] * 7],
        [[2] * 6, [3] * 4],
    ]
    documents = [[5] * int(size) for size in torch.randint(1, 65, (500,))]
    fewest = -(-sum(map(len, documents)) // 64)
    assert len(best_fit(documents, 64)) <= 1.02 * fewest


@pytest.mark.parametrize("positions", ["learned", "rotary", "sinusoidal"])
def test_packed_segments_do_not_see_each_other(positions: str) -> None:
    model = tiny_model(TriviumForCausalLM, encoder_layers=0, position_embedding_type=positions)
    documents = [random_ids(size).tolist() for size in (5, 2, 16, 1, 7, 4)]
    packed = pack(documents, 8, PAD, "best-fit")
    batch = {name: torch.tensor(packed[name]) for name in ("input_ids", "position_ids", "labels")}
    parts = [document[i : i + 8] for document in documents for i in range(0, len(document), 8)]
    alone = [torch.tensor([part]) for part in parts]
    total = sum(model(ids, labels=ids, num_items_in_batch=1).loss for ids in alone if ids.shape[1] > 1)
    torch.testing.assert_close(model(**batch, num_items_in_batch=1).loss, total)
