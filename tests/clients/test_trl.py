"""Test TRL: supervised fine-tuning on texts, prompts and conversations, and preference optimization."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from matrices import slow_unless
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from trivium import TriviumForCausalLM, TriviumTokenizer

pytestmark = [
    pytest.mark.trains,
    pytest.mark.filterwarnings(
        "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
    ),  # TRL 1.16 and PEFT 0.21 cause these warnings.
]

# The template marks assistant messages with `generation`, which `assistant_only_loss` requires.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' if loop.first }}{{ m.role }}:{% if m.role == 'assistant' %}"
    "{% generation %} {{ m.content }}</s>{% endgeneration %}{% else %} {{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
OPTIONS: dict[str, Any] = {
    "max_steps": 12, "learning_rate": 1e-2, "max_length": 64, "logging_steps": 1, "save_strategy": "no",
    "report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False,
}  # fmt: skip


def load_tokenizer(decoder: Path) -> TriviumTokenizer:
    """Load a tokenizer that recognizes the `</s>` that TRL appends to texts as a string."""
    tokenizer = AutoTokenizer.from_pretrained(decoder, split_special_tokens=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def data_of(kind: str, texts: list[str]) -> Dataset:
    halves = [(text[: text.index(" ", 5)], text[text.index(" ", 5) :]) for text in texts]
    prompt = [{"role": "user", "content": "say it"}]
    rows = {
        "text": [{"text": text} for text in texts],
        "completion": [{"prompt": first, "completion": second} for first, second in halves],
        "conversation": [{"messages": [*prompt, {"role": "assistant", "content": text}]} for text in texts],
    }
    return Dataset.from_list(rows[kind])


def fine_tune(decoder: Path, output: Path, data: Dataset, **options: Any) -> tuple[SFTTrainer, list[float]]:
    adapter = options.pop("peft_config", None)
    arguments = SFTConfig(str(output), **{**OPTIONS, **options})
    trainer = SFTTrainer(
        str(decoder), args=arguments, train_dataset=data, processing_class=load_tokenizer(decoder), peft_config=adapter
    )
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def label_texts(trainer: SFTTrainer) -> list[str]:
    """Decode the labels of each row, including special tokens."""
    return [trainer.processing_class.decode(row) for row in trainer.train_dataset["labels"]]


@pytest.mark.parametrize("kind", slow_unless(["text", "completion", "conversation"], ["conversation"]))
def test_fine_tuning_labels(tmp_path: Path, decoder: Path, texts: list[str], kind: str) -> None:
    options = {"assistant_only_loss": True} if kind == "conversation" else {}
    trainer, losses = fine_tune(decoder, tmp_path / "runs", data_of(kind, texts), **options)
    assert losses[-1] < 0.7 * losses[0]
    expected = {
        "text": [f"<s>{text}</s>" for text in texts],
        "completion": [f"{text[text.index(' ', 5) :]}</s>" for text in texts],
        "conversation": [f" {text}</s>" for text in texts],
    }
    assert label_texts(trainer) == expected[kind]
    assert all(row[-1] == trainer.processing_class.eos_token_id for row in trainer.train_dataset["input_ids"])

    packed, packed_losses = fine_tune(decoder, tmp_path / "runs", data_of(kind, texts), packing=True, **options)
    assert len(packed.train_dataset) < len(texts)
    torch.testing.assert_close(
        torch.tensor(packed_losses), torch.tensor(losses), rtol=1e-3, atol=1e-3
    )  # Packed texts do not attend to each other.

    trainer.save_model(str(tmp_path / "trained"))
    again = TriviumForCausalLM.from_pretrained(tmp_path / "trained").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "trained")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    inputs = tokenizer(texts[0], return_tensors="pt")
    torch.testing.assert_close(again(**inputs).logits, trainer.model.eval()(**inputs).logits)


def test_split_special_tokens_would_lose_eos(tmp_path: Path, decoder: Path, texts: list[str]) -> None:
    """Show why `load_tokenizer` sets `split_special_tokens=False`."""
    arguments = SFTConfig(str(tmp_path), **OPTIONS)
    trainer = SFTTrainer(str(decoder), args=arguments, train_dataset=data_of("text", texts))
    # Both ids decode to the same text.
    assert label_texts(trainer) == [f"<s>{text}</s>" for text in texts]
    assert all(trainer.processing_class.eos_token_id not in row for row in trainer.train_dataset["input_ids"])


def test_fine_tuning_adapter(tmp_path: Path, decoder: Path, texts: list[str]) -> None:
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trainer, losses = fine_tune(decoder, tmp_path / "runs", data_of("text", texts), peft_config=adapter)
    assert losses[-1] < 0.95 * losses[0]
    trainer.save_model(str(tmp_path / "adapter"))
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    inputs = trainer.processing_class(texts[0], return_tensors="pt")
    torch.testing.assert_close(again(**inputs).logits, trainer.model.eval()(**inputs).logits)


def test_preference_optimization(tmp_path: Path, decoder: Path, texts: list[str]) -> None:
    rows = [
        {"prompt": "the", "chosen": f" {chosen}", "rejected": f" {rejected}"}
        for chosen, rejected in zip(texts[:3], texts[3:], strict=True)
    ]
    trainer = DPOTrainer(
        str(decoder),
        args=DPOConfig(str(tmp_path), **OPTIONS),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(decoder),
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    # The initial loss is ln 2, because the policy equals the reference model.
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert log[-1]["loss"] < 0.5
    assert log[-1]["rewards/accuracies"] == 1


@pytest.mark.slow
def test_docs_page(tmp_path: Path, decoder: Path, run_page: Callable[[str], dict[str, Any]]) -> None:
    shutil.copytree(decoder, tmp_path / "runs" / "shakespeare")
    trainer = run_page("TRL")["trainer"]
    assert all(row[-1] == trainer.processing_class.eos_token_id for row in trainer.train_dataset["input_ids"])
    TriviumForCausalLM.from_pretrained(tmp_path / "runs" / "tuned")


@pytest.mark.slow
def test_folder_is_tuned_without_package(
    tmp_path: Path, decoder: Path, texts: list[str], without_trivium: Callable[[str], torch.Tensor]
) -> None:
    result = without_trivium(
        f"""
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
tokenizer = AutoTokenizer.from_pretrained({str(decoder)!r}, split_special_tokens=False, trust_remote_code=True)
config = SFTConfig("runs", trust_remote_code=True, **{OPTIONS})
data = Dataset.from_dict({{"text": {texts}}})
trainer = SFTTrainer({str(decoder)!r}, args=config, train_dataset=data, processing_class=tokenizer)
trainer.train()
trainer.save_model("tuned")
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < 0.7 * losses[0], losses
torch.save(trainer.model.eval()(**tokenizer({texts[0]!r}, return_tensors="pt")).logits.detach(), "result.pt")
"""
    )
    again = TriviumForCausalLM.from_pretrained(tmp_path / "tuned").eval()
    torch.testing.assert_close(again(**load_tokenizer(decoder)(texts[0], return_tensors="pt")).logits, result)
