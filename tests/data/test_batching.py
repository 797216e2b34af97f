"""Test token-budget batches: their composition, reproducible training, and independence of the number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_training import losses_of
from token_batching import BY_TOKENS, random_pairs, recipe_for, sampler
from transformers import Seq2SeqTrainer

from trivium.data.token_batches import TokenBatchSampler, lengths_of
from trivium.hub.card import render_card
from trivium.recipe import load_recipe
from trivium.training import train

pytestmark = pytest.mark.trains

some_lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=200)

# --- Contents of the batches -----------------------------------------------------------------------------------------


@given(some_lengths, st.integers(1, 200), st.integers(0, 3))
def test_every_row_is_in_one_batch_within_the_budget(
    pairs: list[tuple[int, int]], max_tokens: int, epoch: int
) -> None:
    batches = sampler(pairs, max_tokens, epoch=lambda: epoch)
    drawn = list(batches)
    assert len(drawn) == len(batches)
    assert sorted(i for batch in drawn for i in batch) == list(range(len(pairs)))
    for batch in drawn:
        sides = np.array([pairs[i] for i in batch]).T
        assert max(len(batch) * side.max() for side in sides) <= max_tokens or len(batch) == 1


@given(some_lengths, st.integers(1, 200))
def test_statistics_match_batches_of_every_epoch(pairs: list[tuple[int, int]], max_tokens: int) -> None:
    shapes = []
    for epoch in (0, 5):
        batches = sampler(pairs, max_tokens, epoch=lambda epoch=epoch: epoch)
        sides = [np.array([pairs[i] for i in batch]).T for batch in batches]
        padded = [[side.shape[1] * one.max() for one in side] for side in sides]
        assert batches.mean_rows == pytest.approx(len(pairs) / len(sides))
        assert batches.mean_tokens == pytest.approx(np.mean([max(each) for each in padded]))
        assert batches.padding == pytest.approx(1 - np.sum(pairs) / np.sum(padded))
        shapes.append(sorted((side.shape[1], *side.max(axis=1)) for side in sides))
    assert shapes[0] == shapes[1]


def test_pairs_are_grouped_by_both_lengths() -> None:
    pairs = random_pairs(3000)
    batches = sampler(pairs, 170)
    by_the_longer = TokenBatchSampler([np.max(pairs, axis=1)], 170)
    sides = [np.array([pairs[i] for i in batch]).T for batch in by_the_longer]
    assert len(by_the_longer) == len(batches)
    assert batches.padding < 0.5 * (1 - np.sum(pairs) / sum(one.size * one.max() for side in sides for one in side))


def test_order_depends_on_seed_and_epoch_only() -> None:
    pairs = random_pairs(500)
    drawn = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            torch.rand(7)
            drawn[seed, epoch] = list(sampler(pairs, 100, seed=seed, epoch=lambda epoch=epoch: epoch))
            assert drawn[seed, epoch] == list(sampler(pairs, 100, seed=seed, epoch=lambda epoch=epoch: epoch))
    assert len({json.dumps(batches) for batches in drawn.values()}) == 4
    members = [{frozenset(batch) for batch in batches} for batches in drawn.values()]
    # The epochs compose their batches differently, and do not merely reorder them.
    assert len(members[0] & members[1]) < len(members[0]) / 2


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_get_equal_numbers_of_steps(processes: int) -> None:
    """The last step is filled up with repeated batches, fewer than there are processes."""
    for rows in (1, 7, 100, 101):
        batches = sampler(random_pairs(rows), 60)
        shards = [list(BatchSamplerShard(batches, processes, rank)) for rank in range(processes)]
        lengths = {len(BatchSamplerShard(batches, processes, rank)) for rank in range(processes)}
        assert {len(shard) for shard in shards} == lengths == {-(-len(batches) // processes)}
        drawn = [i for shard in shards for batch in shard for i in batch]
        assert set(drawn) == set(range(rows))
        assert sum(map(len, shards)) - len(batches) < processes


def test_lengths_are_those_of_selected_rows() -> None:
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3], [4, 5, 6], []], "label": [0, 1, 0, 1]}).select([2, 0, 3])
    assert lengths_of(rows, "input_ids").tolist() == [3, 2, 0]


# --- Training --------------------------------------------------------------------------------------------------------


def assert_same_weights(first: Seq2SeqTrainer, second: Seq2SeqTrainer, tolerance: float = 0) -> None:
    for name, weight in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], weight, rtol=0, atol=tolerance, msg=name)


def remove(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.unlink()
    checkpoint.rmdir()


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["training.dataloader_num_workers=2"], marks=pytest.mark.slow)],
    ids=["no workers", "two workers"],
)
def test_resume_within_epoch_matches_unbroken_run(tmp_path: Path, options: list[str]) -> None:
    """Resume with dropout in the middle of the first epoch, and train into the second epoch."""
    whole = train(recipe_for(tmp_path / "whole", max_tokens=600))
    assert 3 < len(whole.get_train_dataloader()) < 6
    broken = recipe_for(tmp_path / "broken", *options, max_tokens=600)
    train(broken)
    remove(tmp_path / "broken" / "checkpoint-6")  # Simulate a run that was stopped after its first checkpoint.
    assert_same_weights(whole, train(broken, resume=True))


def test_gradient_accumulation_matches_full_batch(tmp_path: Path) -> None:
    """One large batch must give the same losses and weights as many accumulated small batches."""
    whole = train(recipe_for(tmp_path / "whole", "model.dropout=0", max_tokens=100_000))
    parts = train(
        recipe_for(tmp_path / "parts", "model.dropout=0", "training.gradient_accumulation_steps=100", max_tokens=300)
    )
    assert len(whole.get_train_dataloader()) == 1
    assert 5 < len(parts.get_train_dataloader()) < 100
    assert losses_of(whole) == pytest.approx(losses_of(parts), rel=1e-4)
    assert_same_weights(whole, parts, tolerance=2e-4)


def test_steps_per_epoch_match_the_schedule(tmp_path: Path) -> None:
    limits = ["training.max_steps=-1", "training.num_train_epochs=3", "training.gradient_accumulation_steps=2"]
    trainer = train(recipe_for(tmp_path / "run", *limits))
    assert trainer.state.global_step == trainer.state.max_steps == 3 * -(-len(trainer.batches) // 2)
    assert trainer.state.epoch == 3
    assert trainer.lr_scheduler.get_last_lr()[0] == 0


def test_log_and_trainer_report_batch_statistics(tmp_path: Path) -> None:
    trainer = train(recipe_for(tmp_path / "run", "training.max_steps=20"))
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    reports = [entry for entry in log if "batches_per_epoch" in entry]
    tokens, padded, real = [], 0, 0
    for batch in trainer.get_train_dataloader():
        masks = [batch["attention_mask"], batch["labels"] != -100]
        tokens.append(max(mask.numel() for mask in masks))
        padded += sum(mask.numel() for mask in masks)
        real += sum(int(mask.sum()) for mask in masks)
        assert tokens[-1] <= 400
    assert len(reports) == 1
    assert reports[0]["batches_per_epoch"] == len(tokens)
    assert reports[0]["tokens_per_batch"] == pytest.approx(np.mean(tokens))
    assert reports[0]["padding"] == pytest.approx(1 - real / padded)
    summary = next(entry for entry in log if "train_samples_per_second" in entry)
    rows_per_step = summary["train_samples_per_second"] / summary["train_steps_per_second"]
    assert rows_per_step == pytest.approx(200 / len(tokens), rel=0.1)


def test_card_describes_token_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.hub.card.draw_attention", lambda *arguments: None)  # takes seconds
    recipe = recipe_for(tmp_path / "run", "card.examples=[]", "training.adam_beta2=null", max_tokens=1000)
    train(recipe)
    card = render_card(tmp_path / "run", "someone/numbers")["README.md"].decode()
    assert "| batch | rows of similar length, up to 1,000 tokens, per device, 1 process |" in card
    assert "β₂ 0.999" in card  # null selects the Trainer's default value


@pytest.mark.parametrize("task", ["completion", "causal-lm", "masked-lm", "classification"])
def test_every_task_trains_with_token_batches(task: str, tmp_path: Path) -> None:
    texts = [" ".join(["one two three four five six seven"] * (1 + i % 5)) for i in range(60)]
    columns = {"text": texts, "label": ["even" if i % 2 else "odd" for i in range(60)]}
    if task == "completion":
        columns = {"en": texts, "de": texts}
    Dataset.from_dict(columns).to_json(tmp_path / "train.jsonl")
    generative = task in ("completion", "causal-lm")
    options = [
        f"task={task}",
        f"model.{'encoder' if generative else 'decoder'}_layers=0",
        "data.name=null",
        f"data.train={tmp_path}/train.jsonl",
        "tokenizer.vocab_size=300",
        "training.predict_with_generate=false",
        "training.max_steps=3",
        "metrics=null",
    ]
    trainer = train(recipe_for(tmp_path / "run", *options, max_tokens=150))
    for batch in trainer.get_train_dataloader():
        assert batch["input_ids"].numel() <= 150
    assert len(trainer.batches) > 3
    assert all(np.isfinite(losses_of(trainer)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.per_device_train_batch_size=64", "Set training.per_device_train_batch_size=null, or inputs.max_"),
        (
            "training.train_sampling_strategy=group_by_length",
            "is group_by_length, which cannot be",
        ),
        ("training.auto_find_batch_size=true", "training.auto_find_batch_size is True"),
        ("training.dataloader_drop_last=true", "training.dataloader_drop_last is True"),
        ("inputs.max_tokens=0", "inputs.max_tokens is 0, but must be at least 1, or null"),
    ],
)
def test_conflicting_options_are_refused(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_for(tmp_path, override)


def test_packing_is_refused_with_token_batches(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inputs\.packing.*True.*token batches"):
        load_recipe("shakespeare", ["data.train=x", "data.validation=x", "inputs.packing=true", "inputs.max_tokens=9"])


# --- Two processes ---------------------------------------------------------------------------------------------------


def in_two_processes(folder: Path, *arguments: str) -> list[float]:
    """Train in two processes; return the losses."""
    options = [*BY_TOKENS, f"training.output_dir={folder}", "training.use_cpu=true"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*launcher, "-m", "trivium_cli", "train", "numbers", *options, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.slow(reason="two times two processes that import transformers")
def test_two_processes_match_one_and_resume_within_epoch(tmp_path: Path) -> None:
    """Two processes use two batches per step; the last step of an epoch reuses the first batch of that epoch."""
    common = ["tokenizer.vocab_size=600", "model.dropout=0", "training.max_steps=20", "inputs.max_tokens=120"]
    alone = train(recipe_for(tmp_path / "alone", *common, "training.gradient_accumulation_steps=2"))
    assert len(alone.batches) % 2 == 1, "choose another inputs.max_tokens or vocabulary"
    steps = -(-len(alone.batches) // 2)
    assert steps < 14 < 2 * steps  # The checkpoint is at step 14, in the second epoch.
    together = [*common, "training.save_steps=14"]
    losses = in_two_processes(tmp_path / "run", *together)
    assert losses[: steps - 1] == pytest.approx(losses_of(alone)[: steps - 1], rel=1e-4)
    assert len(losses) == 20
    weights = load_file(tmp_path / "run" / "model.safetensors")
    remove(tmp_path / "run" / "checkpoint-20")
    assert in_two_processes(tmp_path / "run", "--resume", *together) == losses
    for name, weight in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
