"""Test denoising: BART's and T5's noise, reproducible batches, and training."""

import numpy as np
import pytest
import torch
from tiny import tiny_config

from trivium import TriviumForConditionalGeneration
from trivium.tasks import TASKS, InputArguments, encode_rows, make_collator
from trivium.tasks.noise import NOISES, corrupt
from trivium.tokenization import train_tokenizer

MASK = 4
TEXTS = ["one", "two dogs ran across the road and never came back to the house", "three cats", "birds fly south"]


def restore(source: list[int], target: list[int]) -> list[int]:
    """Restore the original text: replace each mask in a T5 source with the corresponding span of the target."""
    spans: list[list[int]] = []
    for token in target:
        if token == MASK:
            spans.append([])
        else:
            spans[-1].append(token)
    parts = iter(spans)
    return [token for place in source for token in (next(parts) if place == MASK else [place])]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("length", [1, 2, 3, 10, 200])
@pytest.mark.parametrize("density", [0.15, 0.5, 0.99])
def test_source_and_target_complement_each_other(noise: str, length: int, density: float) -> None:
    ids = list(range(100, 100 + length))
    for seed in range(20):
        source, target = corrupt(ids, MASK, noise, density, 3.0, np.random.default_rng(seed))
        kept = [token for token in source if token != MASK]
        assert kept == sorted(set(ids) & set(kept))
        assert len(ids) - len(kept) == max(round(density * length), 1)
        if noise == "spans":
            assert restore(source, target) == ids
            assert source.count(MASK) == target.count(MASK) == max(round((length - len(kept)) / 3), 1)
        else:
            assert target == ids


def test_spans_have_the_configured_mean_and_reach_every_place() -> None:
    ids, sources = list(range(100, 200)), []
    for seed in range(1000):
        sources.append(corrupt(ids, MASK, "infilling", 0.3, 3.0, np.random.default_rng(seed))[0])
    masks = sum(source.count(MASK) for source in sources)
    assert 30 * len(sources) / masks == pytest.approx(3, abs=0.2)
    masked = [sum(token not in source for source in sources) / len(sources) for token in ids]
    assert all(0.22 < share < 0.38 for share in masked[5:-5]), "tokens are masked in about 30 % of the texts"
    assert min(masked) > 0.05, "at the ends fewer spans fit"
    inserted = [source for source in sources for i in range(1, len(source) - 1) if source[i + 1] - source[i - 1] == 1]
    assert inserted, "a mask may stand for no token"


def test_batches_depend_on_text_and_epoch_only() -> None:
    tokenizer = train_tokenizer(TEXTS * 2, vocab_size=280)
    config = tiny_config(vocab_size=len(tokenizer), max_position_embeddings=64)
    model, kind, epoch = TriviumForConditionalGeneration(config), TASKS["denoising"], [0]
    inputs = InputArguments(noise="spans", noise_density=0.4)
    rows = encode_rows([{"text": text} for text in TEXTS], kind, tokenizer, config, inputs)
    collate = make_collator(kind, tokenizer, model, inputs, lambda: epoch[0])
    state = torch.random.get_rng_state()
    first, alone = collate(rows), collate(rows[1:2])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model(**first).loss > 0
    assert first["input_ids"][1, : alone["input_ids"].shape[1]].tolist() == alone["input_ids"][0].tolist()
    for name in ("input_ids", "labels"):
        ends = [row[row != (0 if name == "input_ids" else -100)][-1] for row in first[name]]
        assert ends == [tokenizer.eos_token_id] * len(TEXTS)
    assert all(torch.equal(values, collate(rows)[name]) for name, values in first.items())
    epoch[0] = 1
    assert not torch.equal(collate(rows[1:2])["input_ids"], alone["input_ids"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "delete"}, "noise is 'delete', but must be one of infilling, spans"),
        ({"noise_density": 1.0}, "noise_density is 1.0, but"),
        ({"mean_span": 0.5}, "mean_span is 0.5, but must be at least 1"),
    ],
)
def test_impossible_noise_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputArguments(**options)
