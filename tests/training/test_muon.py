"""Test Muon against a float64 reference by SVD, and its use in a recipe: resuming, DDP, fp16, refusals."""

import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from distributed_runs import run_distributed
from small_recipes import small_recipe
from tiny import tiny_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing import assert_close
from transformers import Seq2SeqTrainingArguments, get_scheduler
from weights import assert_equal, saved

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
)
from trivium.recipe import load_recipe
from trivium.training import train
from trivium.training.distributed import launch_configs
from trivium.training.muon import (
    COEFFICIENTS,
    MARGIN,
    MuonFactory,
    MuonWithAdamW,
    check_arguments,
    hidden_matrices,
    orthogonalize,
)
from trivium.training.trainer import RunTrainer

LR, DECAY = 0.02, 0.1
SHAPES = [(8, 24), (24, 8), (8, 8), (24, 8), (5, 3)]  # the second and fourth are stacked with the first
MUON = "learning.muon_learning_rate=0.01"


# --- The optimizer ---------------------------------------------------------------------------------------------------


def polar_factor_after_newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """Return U p(S) V^T of a float64 matrix U S V^T, where p is the Newton-Schulz polynomial of a singular value."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm(p=4) / MARGIN
    for a, b, c in COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    assert_close(values, torch.ones_like(values), rtol=0, atol=0.2)  # close to the polar factor U V^T
    return left @ values.diag() @ right


def test_steps_match_float64_polar_factors() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    expected = [weight.detach().double() for weight in weights]
    momenta = [torch.zeros_like(weight) for weight in expected]
    optimizer = MuonWithAdamW([{"params": []}], weights, LR, DECAY)
    for _ in range(3):
        for i, weight in enumerate(weights):
            weight.grad = torch.randn_like(weight) * 1e-3
            gradient = weight.grad.double()
            momenta[i] = 0.95 * momenta[i] + 0.05 * gradient
            update = polar_factor_after_newton_schulz(0.05 * gradient + 0.95 * momenta[i])
            scale = 0.2 * max(weight.shape) ** 0.5
            expected[i] = expected[i] - LR * (scale * update + DECAY * expected[i])
        optimizer.step()
        for weight, reference in zip(weights, expected, strict=True):
            assert_close(weight.detach().double(), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-15])
def test_singular_values_become_near_one(size: float) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(32, 32))
    right, _ = torch.linalg.qr(torch.randn(48, 32))
    matrix = left @ torch.logspace(0, -2.3, 32).diag() @ right.T
    values = torch.linalg.svdvals(orthogonalize(size * matrix[None]))
    assert values.min() > 0.79
    assert values.max() < 1.21
    assert torch.equal(orthogonalize(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_other_parameters_get_adamw() -> None:
    model = tiny_model(TriviumForConditionalGeneration)
    reference = deepcopy(model)
    optimizer = MuonFactory()(model, LR, DECAY, lr=0.01, betas=(0.8, 0.9))
    hidden = {id(weight) for weight in hidden_matrices(model)}
    others = {name: weight for name, weight in model.named_parameters() if id(weight) not in hidden}
    decayed = RunTrainer.get_decay_parameter_names(Mock(), model)
    groups = [
        {"params": [reference.get_parameter(name)], "weight_decay": DECAY if name in decayed else 0} for name in others
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))
    for _ in range(2):
        for name, weight in others.items():
            weight.grad = torch.randn_like(weight)
            reference.get_parameter(name).grad = weight.grad.clone()
        optimizer.step()
        adamw.step()
    for name, weight in others.items():
        assert torch.equal(weight, reference.get_parameter(name)), name


@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (TriviumForConditionalGeneration, {}),
        (TriviumForCausalLM, {"encoder_layers": 0, "position_embedding_type": "learned", "gated_ffn": True}),
        (TriviumForMaskedLM, {"decoder_layers": 0, "tie_word_embeddings": False, "attention_bias": True}),
        (TriviumForSequenceClassification, {"decoder_layers": 0}),
    ],
)
def test_hidden_matrices_are_projections_of_layers(model_class: Any, options: dict[str, Any]) -> None:
    model = tiny_model(model_class, **options)
    hidden = {id(weight) for weight in hidden_matrices(model)}
    found = {name for name, weight in model.named_parameters() if id(weight) in hidden}
    layers = re.compile(
        r"(.*\.)?(encoder|decoder)\.layers\.\d+\.(self_attn|cross_attn|feed_forward)\.\w+_proj\.weight"
    )
    assert found == {name for name, _ in model.named_parameters() if layers.fullmatch(name)} != set()
    model.requires_grad_(False)
    assert hidden_matrices(model) == []


def test_loss_scaler_skips_steps_with_infinite_gradients() -> None:
    def stepped(scaled: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        matrix, bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))
        optimizer = MuonWithAdamW([{"params": [bias]}], [matrix], LR, lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=scaled)
        for factor in (1.0, torch.inf, 1.0) if scaled else (1.0, 1.0):
            optimizer.zero_grad()
            scaler.scale(factor * ((matrix**2).sum() + (bias**2).sum())).backward()
            scaler.step(optimizer)
            scaler.update()
        return [matrix.detach(), bias.detach()]

    for found, expected in zip(stepped(scaled=True), stepped(scaled=False), strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_warmup_stable_decay_schedules_both_rates() -> None:
    overrides = ["training.max_steps=10", "training.warmup_steps=2", "training.learning_rate=0.1"]
    overrides += ["training.lr_scheduler_type=warmup_stable_decay", "training.output_dir=run"]
    schedule = "training.lr_scheduler_kwargs={num_decay_steps: 4, decay_type: linear, min_lr_ratio: 0.1}"
    args = load_recipe("numbers", [*overrides, schedule]).training_arguments()
    optimizer = MuonWithAdamW(
        [{"params": [nn.Parameter(torch.ones(1))]}], [nn.Parameter(torch.ones(2, 2))], 0.5, lr=0.1
    )
    scheduler = get_scheduler(
        args.lr_scheduler_type, optimizer, args.get_warmup_steps(10), 10, args.lr_scheduler_kwargs
    )
    rates = []
    for _ in range(11):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    expected = torch.tensor([0.1, 0.55, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1])
    assert_close(torch.tensor(rates), torch.stack((0.1 * expected, 0.5 * expected), dim=1))


# --- In a recipe -----------------------------------------------------------------------------------------------------


def run_recipe(folder: Path, *overrides: str, resume: bool = False) -> RunTrainer:
    settings = small_recipe(folder, "training.eval_strategy=no", "training.use_cpu=true", "training.report_to=none")
    trainer = train(load_recipe("numbers", [*settings, "training.weight_decay=0.1", *overrides]), resume=resume)
    assert isinstance(trainer, RunTrainer)
    return trainer


@pytest.mark.trains
def test_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    more = [MUON, "training.gradient_accumulation_steps=2", "training.max_steps=4", "training.save_steps=2"]
    more += ["training.lr_scheduler_type=cosine_with_min_lr", "training.lr_scheduler_kwargs={min_lr: 1e-4}"]
    trainer = run_recipe(tmp_path, *more)
    assert isinstance(trainer.optimizer.optimizer, MuonWithAdamW)
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert max(logged) == trainer.args.learning_rate  # AdamW's
    assert trainer.optimizer.param_groups[-1]["initial_lr"] == 0.01
    unbroken = saved(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert run_recipe(tmp_path, *more, resume=True).state.global_step == 4
    assert_equal(saved(tmp_path), unbroken)


def weights_after_training(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    model = run_recipe(folder, "training.max_steps=2", "training.save_strategy=no", *overrides).model
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.slow(reason="two processes")
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    job = [MUON, "inputs.max_tokens=400", "training.per_device_train_batch_size=null", "model.dropout=0"]
    job += ["training.train_sampling_strategy=null"]
    expected = weights_after_training(tmp_path / "one", *job, "training.gradient_accumulation_steps=2")
    ranks = run_distributed(
        weights_after_training, tmp_path / "two", *job, folder=tmp_path / "logs", config=launch_configs()["cpu"]
    )
    for weights in ranks:
        for name, weight in weights.items():
            assert torch.equal(weight, ranks[0][name]), name
            assert_close(weight, expected[name.removeprefix("module.")], rtol=1e-3, atol=1e-5, msg=name)


def test_sharded_matrices_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=r"whole matrices.*learning\.muon_learning_rate=null"):
        check_arguments(args)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        matrix = nn.Parameter(distribute_tensor(torch.ones(2, 2), init_device_mesh("cpu", (1,)), [Shard(0)]))
        matrix.grad = torch.ones_like(matrix)
        with pytest.raises(ValueError, match="whole matrices"):
            MuonWithAdamW([{"params": []}], [matrix], LR).step()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learning.muon_learning_rate=0"], r"learning\.muon_learning_rate is 0.*greater than 0.*null"),
        (["learning.muon_learning_rate=.inf"], r"learning\.muon_learning_rate is inf.*finite"),
        (["learning.muon_learning_rate=.nan"], r"learning\.muon_learning_rate is nan"),
        ([MUON, "training.optim=adafactor"], r"training\.optim.*adafactor.*adamw_torch.*muon_learning_rate=0\.01"),
        (["learning.muon_rate=1"], r"learning\.muon_rate is unknown"),
    ],
)
def test_bad_fields_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("numbers", overrides)
