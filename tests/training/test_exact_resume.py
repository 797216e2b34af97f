"""Test that a resumed run is bitwise identical to an uninterrupted one, wherever in an epoch it resumes."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from distributed_runs import run_distributed
from tiny import random_ids, tiny_model
from tiny_training import collate_texts, quiet_arguments
from transformers import set_seed

from trivium import TriviumForCausalLM
from trivium.data.length_grouped import SeededLengthGroupedSampler
from trivium.training.distributed import launch_configs
from trivium.training.trainer import RunTrainer

pytestmark = pytest.mark.trains

ROWS, BATCH = 20, 4  # 5 batches per epoch; with two per step, the third step has one
STRATEGIES = ("random", "sequential", "group_by_length", "batch_rebalance", "max_tokens")
QUICK = [("group_by_length", 1), ("random", 2), ("max_tokens", 2)]
Weights = dict[str, torch.Tensor]


def make_trainer(strategy: str, accumulation: int, folder: Path, **options: Any) -> RunTrainer:
    """Return a Trainer for a tiny language model with dropout, so that resuming must restore RNG states as well."""
    set_seed(0)
    model = tiny_model(TriviumForCausalLM, encoder_layers=0, decoder_layers=1, dropout=0.1)
    rows = [random_ids(length).tolist() for length in torch.randint(2, 12, (ROWS,)).tolist()]
    by_tokens = strategy == "max_tokens"
    args = quiet_arguments(
        folder,
        train_sampling_strategy="random" if by_tokens else strategy,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        num_train_epochs=2,
        **options,
    )
    return RunTrainer(
        model,
        args,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        data_collator=collate_texts,
        max_tokens=BATCH * 8 if by_tokens else None,
    )


def weights_of(trainer: RunTrainer) -> Weights:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def resume_everywhere(strategy: str, accumulation: int, folder: Path) -> tuple[Weights, dict[str, Weights]]:
    """Train for two epochs; then resume within the first epoch, at its end, and within the second epoch.

    Returns:
        The final weights of the uninterrupted run, and the final weights of each resumed run by resume point.
    """
    unbroken = make_trainer(strategy, accumulation, folder, save_strategy="steps", save_steps=1)
    unbroken.train()
    epoch = unbroken.state.max_steps // 2
    resumed = {}
    for name, step in (("first epoch", 1), ("boundary", epoch), ("second epoch", epoch + 1)):
        trainer = make_trainer(strategy, accumulation, folder, save_strategy="no")
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert trainer.state.global_step == unbroken.state.global_step == 2 * epoch
        resumed[name] = weights_of(trainer)
    return weights_of(unbroken), resumed


def assert_same_weights(unbroken: Weights, resumed: dict[str, Weights]) -> None:
    for name, weights in resumed.items():
        assert [key for key in unbroken if not torch.equal(weights[key], unbroken[key])] == [], name


@pytest.mark.parametrize(
    ("strategy", "accumulation"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow(reason="all cases"))
        for case in product(STRATEGIES, (1, 2))
    ],
)
def test_resumed_run_is_bit_identical(strategy: str, accumulation: int, tmp_path: Path) -> None:
    assert_same_weights(*resume_everywhere(strategy, accumulation, tmp_path))


@pytest.mark.slow(reason="two processes")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_resume_bit_identical(strategy: str, tmp_path: Path) -> None:
    results = run_distributed(
        resume_everywhere, strategy, 1, tmp_path, folder=tmp_path, config=launch_configs()["cpu"]
    )
    for unbroken, resumed in results:
        assert_same_weights(unbroken, resumed)
        assert_same_weights(results[0][0], {"the other process": unbroken})


def test_length_groups_depend_on_seed_and_epoch_only() -> None:
    lengths = torch.randint(2, 50, (200,)).tolist()
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        sampler = SeededLengthGroupedSampler(lengths, 8, seed, lambda epoch=epoch: epoch)
        orders.append(list(sampler))
        torch.rand(1)
        assert list(sampler) == orders[-1] not in orders[:-1]
        assert sorted(orders[-1]) == list(range(200))
        batches = [[lengths[i] for i in orders[-1][start : start + 8]] for start in range(0, 200, 8)]
        # In batches of random rows, the lengths would span 40 on average.
        assert sum(max(batch) - min(batch) for batch in batches[1:]) / 24 < 15


@pytest.mark.parametrize(("data_seed", "seed"), [(None, 3), (7, 7)])
def test_length_groups_follow_the_data_seed(data_seed: int | None, seed: int, tmp_path: Path) -> None:
    trainer = make_trainer("group_by_length", 2, tmp_path, seed=3, data_seed=data_seed)
    trainer.state.epoch = 1.5
    lengths = [len(row) for row in trainer.train_dataset["input_ids"]]
    expected = list(SeededLengthGroupedSampler(lengths, 2 * BATCH, seed, lambda: 1))
    assert list(trainer._get_train_sampler()) == expected
