"""Test TRL: train a reward model on a decoder, and use it for reinforcement learning (RLOO)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer

from trivium import TriviumDecoderForSequenceClassification, TriviumTokenizer

pytestmark = [
    pytest.mark.trains,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),  # TRL 1.16
]
OPTIONS: dict[str, Any] = {
    "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    "use_cpu": True, "bf16": False,
}  # fmt: skip


def load_tokenizer(decoder: Path) -> TriviumTokenizer:
    return AutoTokenizer.from_pretrained(decoder, split_special_tokens=False)


def train_reward_model(decoder: Path, output: Path, texts: list[str]) -> RewardTrainer:
    rows = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in zip(texts[:3], texts[3:], strict=True)]
    trainer = RewardTrainer(
        str(decoder),
        args=RewardConfig(str(output / "runs"), max_steps=12, max_length=64, **OPTIONS),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(decoder),
    )
    trainer.train()
    trainer.save_model(str(output / "reward"))
    return trainer


def test_reward_model_prefers_chosen_texts(tmp_path: Path, decoder: Path, texts: list[str]) -> None:
    trainer = train_reward_model(decoder, tmp_path, texts)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert log[-1]["accuracy"] == 1

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    assert type(model) is TriviumDecoderForSequenceClassification
    inputs = load_tokenizer(decoder)([f"{text}</s>" for text in texts], padding=True, return_tensors="pt")
    rewards = model(**inputs).logits[:, 0]
    assert (rewards[:3] > rewards[3:]).all()
    torch.testing.assert_close(rewards, trainer.model.eval()(**inputs).logits[:, 0])


@pytest.mark.parametrize("continuous_batching", [pytest.param(False, marks=pytest.mark.slow), True])
def test_reinforcement_raises_reward(
    tmp_path: Path, decoder: Path, texts: list[str], continuous_batching: bool
) -> None:
    train_reward_model(decoder, tmp_path, texts)
    options: dict[str, Any] = {}
    if continuous_batching:
        engine = {"num_blocks": 16, "max_batch_tokens": 64}
        options = {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": engine}
    trainer = RLOOTrainer(
        str(decoder),
        reward_funcs=str(tmp_path / "reward"),
        reward_processing_classes=load_tokenizer(decoder),
        args=RLOOConfig(
            str(tmp_path / "runs"),
            max_steps=6,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            **OPTIONS,
            **options,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["the", "a"] * 4}),
        processing_class=load_tokenizer(decoder),
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 6
    assert max(rewards[3:]) > rewards[0]
