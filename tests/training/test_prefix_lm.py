"""Test prefix language modeling: the split, reproducible batches, both architectures, and evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration
from trivium.data import DataArguments
from trivium.evaluation import evaluate
from trivium.recipe import Recipe
from trivium.recipe_sections import TokenizerArguments
from trivium.tasks import TASKS, InputArguments, encode_rows, make_collator
from trivium.tasks.noise import split_prefix
from trivium.tokenization import train_tokenizer
from trivium.training import train

TEXTS = ["a", "two dogs ran across the road and never came back to the house", "three cats", "birds fly south"]
TASK = TASKS["prefix-lm"]


def test_every_prefix_is_equally_probable() -> None:
    found = [split_prefix(5, np.random.default_rng(seed)) for seed in range(2000)]
    counts = np.bincount(found, minlength=6)
    assert counts[[0, 5]].tolist() == [0, 0]
    assert all(400 < count < 600 for count in counts[1:5])
    assert [split_prefix(length, np.random.default_rng(0)) for length in (0, 1, 2)] == [0, 0, 1]


@pytest.mark.parametrize("layers", [{}, {"encoder_layers": 0}])
@pytest.mark.parametrize("max_length", [64, 5])
def test_batches_have_whole_texts_and_depend_on_epoch(layers: dict[str, int], max_length: int) -> None:
    config = tiny_config(vocab_size=280, max_position_embeddings=max_length, **layers)
    model = TASK.model_class_for(config)(config)
    tokenizer = train_tokenizer(TEXTS * 2, vocab_size=280, **TASK.special_tokens_for(config))
    rows = encode_rows([{"text": text} for text in TEXTS], TASK, tokenizer, config, InputArguments())
    epoch = [0]
    collate = make_collator(TASK, tokenizer, model, InputArguments(), lambda: epoch[0])
    state = torch.random.get_rng_state()
    batch, again, alone = collate(rows), collate(rows), collate(rows[1:2])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["labels"][1, : alone["labels"].shape[1]].tolist() == alone["labels"][0].tolist()
    whole = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    for ids, labels, mask, text in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], whole, strict=True
    ):
        source, target = ids[mask.bool()].tolist(), labels[labels != -100].tolist()
        # Truncated texts of a decoder-only model have no end.
        end = [tokenizer.eos_token_id] * (not layers or len(text) + 2 <= max_length)
        if layers:
            room = max_length - 1 - len(end)
            assert source == [tokenizer.bos_token_id, *text[:room], *end]
            assert source[-len(target) :] == target
            assert len(target) > len(end)
            assert len(source) - len(target) > 1 or len(text) == 1, "the prefix has a token besides <s>"
        else:
            kept = (source[:-1] if end else source) + (target[:-1] if end else target)
            assert kept == text[: max_length - len(end)]
            assert source[len(source) - len(end) :] == target[len(target) - len(end) :] == end
            assert len(target) > len(end)
    assert isinstance(model, TriviumForCausalLM if layers else TriviumForConditionalGeneration)
    assert model(**batch).loss > 0
    splits = set()
    for epoch[0] in range(8):
        splits.add(tuple(collate(rows[1:2])["labels"][0].tolist()))
    assert len(splits) > 1


@pytest.mark.parametrize("layers", [{}, {"encoder_layers": 0}])
@pytest.mark.trains
def test_model_learns_continuations(tmp_path: Path, layers: dict[str, int]) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("red green blue red green blue\n" * 40)
    recipe = Recipe(
        task="prefix-lm",
        data=DataArguments(train=str(path)),
        tokenizer=TokenizerArguments(vocab_size=270),
        model={"preset": "transformer-micro", "d_model": 16, "ffn_dim": 32, "decoder_layers": 1, **layers},
        training={"output_dir": str(tmp_path / "run"), "max_steps": 30, "learning_rate": 0.02, "report_to": "none"},
    )
    trainer = train(recipe)
    scores, _ = evaluate(trainer.model, trainer.processing_class, [{"text": path.read_text()[:29]}], task="prefix-lm")
    assert scores["accuracy"]["score"] > 0.3
    assert scores["perplexity"]["score"] < 10
    ids = trainer.processing_class("red")["input_ids"]
    assert (ids[0] == 1, ids[-1] == 2) == ((True, False) if layers else (False, True)), "a prompt has no end"
