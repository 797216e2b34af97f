"""Test language models and classifiers in transformers' Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import Tensors, language_model, texts
from tiny import tiny_model
from tiny_training import losses_of
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import DataCollatorWithFlattening, PreTrainedModel, Trainer, TrainingArguments

from trivium import TriviumForMaskedLM, TriviumForSequenceClassification

pytestmark = pytest.mark.trains

# --- Training with the Trainer ---


class Rows(Dataset[Tensors]):
    """A dataset of twelve padded rows with different numbers of real tokens."""

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> Tensors:
        return {name: column[index] for name, column in self.columns.items()}


def texts_with_labels(kind: str) -> Rows:
    inputs = texts([2, 8, 3, 7, 1, 4, 6, 2, 8, 3, 5, 8])
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    chosen = real & (torch.rand(ids.shape) < 0.5)
    chosen[:, 0] = True
    labels = {
        "causal": ids.where(real, -100),
        "masked": ids.where(chosen, -100),
        "single": torch.randint(3, (12,)),
        "regression": torch.randn(12),
    }[kind]
    return Rows(**inputs, labels=labels)


def model_for(kind: str, **overrides: Any) -> PreTrainedModel:
    """Return a float64 model with the same initial weights on every call."""
    torch.manual_seed(0)
    if kind == "causal":
        return language_model(**overrides)
    if kind == "masked":
        return tiny_model(TriviumForMaskedLM, decoder_layers=0, **overrides)
    num_labels = 3 if kind == "single" else 1
    return tiny_model(TriviumForSequenceClassification, decoder_layers=0, num_labels=num_labels, **overrides)


def fit(
    model: PreTrainedModel, data: Rows, folder: Path, size: int = 4, collator: Any = None, **arguments: Any
) -> list[float]:
    """Train for three steps on twelve rows in order; return the logged losses."""
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            learning_rate=1e-3,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            train_sampling_strategy="sequential",
            use_cpu=True,
            **arguments,
        ),
        train_dataset=data,
        data_collator=collator,
    )
    trainer.train()
    return losses_of(trainer)


@pytest.mark.parametrize("smoothing", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
@pytest.mark.parametrize(
    "kind", ["causal", "regression", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("masked", "single"))]
)
def test_gradient_accumulation_matches_full_batch(kind: str, smoothing: float, tmp_path: Path) -> None:
    """One batch of 4 rows must train like 4 accumulated rows, even with unequal numbers of labels."""
    data, outcomes = texts_with_labels(kind), []
    for size in (4, 1, 2):
        model = model_for(kind, label_smoothing=smoothing)
        outcomes.append((fit(model, data, tmp_path, size), model.state_dict()))
    whole = model_for(kind, label_smoothing=smoothing).train()
    batch = {name: column[:4] for name, column in data.columns.items()}
    assert outcomes[0][0][0] == pytest.approx(whole(**batch).loss.item(), rel=1e-4)  # The log rounds to five digits.
    for losses, weights in outcomes[1:]:
        assert losses == pytest.approx(outcomes[0][0], rel=1e-4)
        for name, weight in outcomes[0][1].items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=1e-7)


def smoothed(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing).item()


@pytest.mark.parametrize("size", [4, 1])
def test_trainer_label_smoothing_shifts_labels(size: int, tmp_path: Path) -> None:
    """When the Trainer smooths labels, it must shift them, as for classes registered as causal language models."""
    data, model = texts_with_labels("causal"), model_for("causal", label_smoothing=0.0)
    labels = data.columns["labels"][:4]
    with torch.no_grad():
        logits = model(data.columns["input_ids"][:4], data.columns["attention_mask"][:4]).logits
    expected = smoothed(logits[:, :-1], labels[:, 1:], 0.1)
    assert expected != pytest.approx(smoothed(logits, labels, 0.1), rel=1e-2)
    losses = fit(model, data, tmp_path, size, label_smoothing_factor=0.1)
    assert losses[0] == pytest.approx(expected, rel=1e-4)


class WithoutPadding(Rows):
    """Rows without their padding."""

    def __getitem__(self, index: int) -> Tensors:
        real = self.columns["attention_mask"][index].bool()
        return {"input_ids": self.columns["input_ids"][index, real]}


@pytest.mark.parametrize("size", [4, 1])
def test_trainer_packing_matches_padding(size: int, tmp_path: Path) -> None:
    """Packed rows give the same updates as padded rows."""
    data, outcomes = texts_with_labels("causal"), []
    for rows, collator in ((data, None), (WithoutPadding(**data.columns), DataCollatorWithFlattening())):
        model = model_for("causal")
        outcomes.append((fit(model, rows, tmp_path, size, collator), model.state_dict()))
    (losses, weights), (packed_losses, packed_weights) = outcomes
    assert packed_losses == pytest.approx(losses, rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(packed_weights[name], weight, rtol=1e-6, atol=1e-7)
