"""Test R-Drop against its formula in float64, and that it leaves other steps alone."""

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from distributed_runs import run_distributed
from small_recipes import small_recipe
from tiny import EXACT, PAD, assert_same_gradients, copying_batch, random_ids, tiny_model
from tiny_training import collate_texts, losses_of, quiet_arguments
from torch import nn
from transformers import Seq2SeqTrainingArguments, set_seed

from trivium import (
    TriviumDecoderForSequenceClassification,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
)
from trivium.modeling.embeddings import TokenEmbedding
from trivium.recipe import load_recipe
from trivium.training import r_drop as module
from trivium.training import train
from trivium.training.distributed import launch_configs
from trivium.training.r_drop import RDrop, check_r_drop
from trivium.training.trainer import RunTrainer

WEIGHT = 5.0
KINDS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "translation": (TriviumForConditionalGeneration, {}),
    "causal-lm": (TriviumForCausalLM, {"encoder_layers": 0}),
    "masked-lm": (TriviumForMaskedLM, {"decoder_layers": 0}),
    "classification by a decoder": (
        TriviumDecoderForSequenceClassification,
        {"encoder_layers": 0, "num_labels": 4},
    ),
    "classification": (TriviumForSequenceClassification, {"decoder_layers": 0, "num_labels": 4}),
}


def model_and_batch(kind: str, rows: int = 6, **config: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a model in training mode, and a batch with padding."""
    model_class, layers = KINDS[kind]
    model = tiny_model(model_class, label_smoothing=0.1, **layers, **config).train()
    batch = copying_batch(rows)
    if kind.startswith("classification"):
        batch["labels"] = torch.randint(4, (rows,))
    elif kind != "translation":
        batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == PAD, -100)
    return model, batch


def expected_loss(logits: torch.Tensor, targets: torch.Tensor, count: int) -> float:
    """Compute the loss of both passes position by position, with the definitions of its terms."""
    classes, total = logits.shape[-1], 0.0
    first, second = (half.reshape(-1, classes).tolist() for half in logits.softmax(dim=-1).chunk(2))
    for p, q, target in zip(first, second, targets.flatten().tolist(), strict=True):
        if target == -100:
            continue
        smoothed = [0.1 / classes + 0.9 * (index == target) for index in range(classes)]
        entropy_p, entropy_q = (-sum(s * log(x) for s, x in zip(smoothed, dist, strict=True)) for dist in (p, q))
        p_to_q = sum(x * log(x / y) for x, y in zip(p, q, strict=True))
        q_to_p = sum(y * log(y / x) for x, y in zip(p, q, strict=True))
        total += (entropy_p + entropy_q) / 2 + WEIGHT / 2 * (p_to_q + q_to_p) / 2
    return total / count


def logits_of_both_passes(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run the two passes, with ordinary autograd, and with the random numbers of `torch.manual_seed(3)`."""
    torch.manual_seed(3)
    twice = {name: torch.cat((value, value)) for name, value in batch.items()}
    return model(**twice).logits


@pytest.mark.parametrize("kind", KINDS)
def test_loss_matches_formula(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the loss with the definitions of its terms, in one chunk and in many."""
    model, batch = model_and_batch(kind, dropout=0.2)
    targets = batch["labels"]
    if kind == "causal-lm":
        targets = torch.cat((targets[:, 1:], torch.full_like(targets[:, :1], -100)), dim=1)
    real = int((targets != -100).sum())
    logits = logits_of_both_passes(model, batch)
    options: dict[str, Any]
    for chunk, options, count in ((2**20, {}, real), (100, {"num_items_in_batch": torch.tensor(2 * real)}, 2 * real)):
        monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
        torch.manual_seed(3)
        loss = RDrop(model, WEIGHT)(model, **batch, **options)["loss"]
        torch.testing.assert_close(loss.item(), expected_loss(logits, targets, count), **EXACT)


@pytest.mark.parametrize("kind", ["translation", "classification"])
def test_gradients_match_autograd(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with autograd through the functions of torch."""
    monkeypatch.setattr(module, "CHUNK_LOGITS", 200)
    model, batch = model_and_batch(kind, dropout=0.2)
    is_labeled = batch["labels"] != -100
    first, second = (half[is_labeled] for half in logits_of_both_passes(model, batch).chunk(2))
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    loss_p, loss_q = (
        nn.functional.cross_entropy(half, batch["labels"][is_labeled], label_smoothing=0.1) for half in (first, second)
    )
    p_to_q = nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    q_to_p = nn.functional.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    (8 * ((loss_p + loss_q) / 2 + WEIGHT / 4 * (p_to_q + q_to_p))).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    (8 * RDrop(model, WEIGHT)(model, **batch)["loss"]).backward()
    assert_same_gradients(model, gradients)


def test_padding_does_not_count() -> None:
    model, batch = model_and_batch("translation")
    shake_second_pass(model)
    r_drop = RDrop(model, WEIGHT)
    loss = r_drop(model, **batch)["loss"]
    padded = {
        name: nn.functional.pad(value, (0, 3), value=-100 if name == "labels" else 0) for name, value in batch.items()
    }
    torch.testing.assert_close(r_drop(model, **padded)["loss"], loss, **EXACT)


def shake_second_pass(model: nn.Module) -> None:
    """Make the passes differ without randomness: the second one has other embeddings."""

    def scale(part: nn.Module, args: Any, embedded: torch.Tensor) -> torch.Tensor:
        return torch.cat((embedded[: len(embedded) // 2], 0.5 * embedded[len(embedded) // 2 :]))

    for part in model.modules():
        if isinstance(part, TokenEmbedding):
            part.register_forward_hook(scale)


def make_trainer(weight: float, folder: Path, rows: int, accumulation: int) -> RunTrainer:
    set_seed(0)
    model = tiny_model(TriviumForCausalLM, encoder_layers=0, decoder_layers=1)
    shake_second_pass(model)
    data = Dataset.from_dict({"input_ids": [random_ids(length).tolist() for length in range(3, 11)]})
    args = quiet_arguments(
        folder,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0,
        train_sampling_strategy="sequential",
        save_strategy="no",
    )
    r_drop = RDrop(model, weight) if weight else None
    return RunTrainer(model, args, train_dataset=data, eval_dataset=data, data_collator=collate_texts, r_drop=r_drop)


@pytest.mark.trains
def test_accumulated_halves_equal_one_batch(tmp_path: Path) -> None:
    whole, halves = make_trainer(WEIGHT, tmp_path, 8, 1), make_trainer(WEIGHT, tmp_path, 4, 2)
    for trainer in (whole, halves):
        trainer.train()
    weights = dict(halves.model.named_parameters())
    for name, weight in whole.model.named_parameters():
        torch.testing.assert_close(weights[name], weight, **EXACT)


def train_on(folder: Path, rows: int) -> dict[str, torch.Tensor]:
    trainer = make_trainer(WEIGHT, folder, rows, 1)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.mark.trains
@pytest.mark.slow(reason="two processes")
def test_two_processes_match_one(tmp_path: Path) -> None:
    alone = train_on(tmp_path, 8)
    config = launch_configs()["cpu"]
    for weights in run_distributed(train_on, tmp_path, 4, folder=tmp_path, config=config):
        for name, weight in alone.items():
            torch.testing.assert_close(weights[name], weight, **EXACT)


def test_evaluation_has_the_ordinary_loss(tmp_path: Path) -> None:
    plain, regular = (make_trainer(weight, tmp_path, 8, 1) for weight in (0, WEIGHT))
    losses = []
    for trainer in (plain, regular):
        batch = next(iter(trainer.get_train_dataloader()))
        losses.append([trainer.compute_loss(trainer.model.train(), batch).item(), trainer.evaluate()["eval_loss"]])
    assert losses[1][0] > losses[0][0]
    assert losses[1][1] == losses[0][1]


@pytest.mark.trains
@pytest.mark.slow(reason="three runs")
def test_zero_weight_changes_nothing(tmp_path: Path) -> None:
    losses = []
    for index, weights in enumerate(([], ["learning.r_drop=0"], ["learning.r_drop=5"])):
        recipe = load_recipe("numbers", small_recipe(tmp_path / str(index), "training.max_steps=2", *weights))
        losses.append(losses_of(train(recipe)))
    assert losses[0] == losses[1]
    assert losses[2][0] > losses[0][0]


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learning.r_drop=-1"], r"learning\.r_drop is -1\.0.*at least 0"),
        (["learning.r_drop=.inf"], r"learning\.r_drop is inf.*finite"),
        (["learning.r_drop=.nan"], r"learning\.r_drop is nan.*at least 0"),
        (["learning.rdrop=1"], r"learning\.rdrop is unknown.*r_drop"),
    ],
)
def test_invalid_weights_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("numbers", overrides)


def test_answers_have_no_r_drop() -> None:
    with pytest.raises(ValueError, match=r"learning\.r_drop is 5\.0.*translation.*question-answering"):
        load_recipe("answers", ["learning.r_drop=5", "data.train=a", "data.validation=b", "data.test=c"])


def test_regression_has_no_r_drop() -> None:
    model = tiny_model(TriviumForSequenceClassification, decoder_layers=0, num_labels=1, problem_type="regression")
    with pytest.raises(ValueError, match=r"learning\.r_drop is 5\.0.*problem_type is regression"):
        RDrop(model, WEIGHT)


def test_label_smoothing_of_the_trainer_is_refused(tmp_path: Path) -> None:
    args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    check_r_drop(WEIGHT, args)
    args.label_smoothing_factor = 0.1
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0\.1.*learning\.r_drop.*model\.label_smoothing"):
        check_r_drop(WEIGHT, args)
