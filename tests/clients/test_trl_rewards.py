"""TRL: a reward model on a decoder, and reinforcement learning (RLOO) with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer

from trivium import TriviumDecoderForSequenceClassification, TriviumForCausalLM, TriviumTokenizer

pytestmark = [
    pytest.mark.trains,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),  # TRL 1.16
]
OPTIONS: dict[str, Any] = {
    "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    "use_cpu": True, "bf16": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, open_tokenizer: TriviumTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    tiny_model(TriviumForCausalLM, encoder_layers=0, vocab_size=len(open_tokenizer)).float().save_pretrained(folder)
    open_tokenizer.save_pretrained(folder)
    return folder


def load_tokenizer(folder: Path) -> TriviumTokenizer:
    return AutoTokenizer.from_pretrained(folder, split_special_tokens=False)


def train_reward_model(folder: Path, output: Path, texts: list[str]) -> RewardTrainer:
    rows = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in zip(texts[:3], texts[3:], strict=True)]
    trainer = RewardTrainer(
        str(folder),
        args=RewardConfig(str(output / "runs"), max_steps=12, max_length=64, **OPTIONS),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(folder),
    )
    trainer.train()
    trainer.save_model(str(output / "reward"))
    return trainer


def test_reward_model_prefers_chosen_texts(tmp_path: Path, folder: Path, texts: list[str]) -> None:
    trainer = train_reward_model(folder, tmp_path, texts)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert log[-1]["accuracy"] == 1

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    assert type(model) is TriviumDecoderForSequenceClassification
    inputs = load_tokenizer(folder)([f"{text}</s>" for text in texts], padding=True, return_tensors="pt")
    rewards = model(**inputs).logits[:, 0]
    assert (rewards[:3] > rewards[3:]).all()
    torch.testing.assert_close(rewards, trainer.model.eval()(**inputs).logits[:, 0])


@pytest.mark.parametrize("continuous_batching", [False, True])
def test_reinforcement_raises_reward(
    tmp_path: Path, folder: Path, texts: list[str], continuous_batching: bool
) -> None:
    train_reward_model(folder, tmp_path, texts)
    options: dict[str, Any] = {}
    if continuous_batching:
        engine = {"num_blocks": 16, "max_batch_tokens": 64}
        options = {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": engine}
    trainer = RLOOTrainer(
        str(folder),
        reward_funcs=str(tmp_path / "reward"),
        reward_processing_classes=load_tokenizer(folder),
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
        processing_class=load_tokenizer(folder),
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 6
    assert max(rewards[3:]) > rewards[0]
