"""Test distillation by probabilities: the loss against a reference, the teacher, exact resumption, and refusals."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_recipes import SMALL
from tiny import EXACT, random_ids, tiny_config, tiny_model

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumForMaskedLM
from trivium.hub import render_card
from trivium.recipe import load_recipe
from trivium.recipe_sections import DistillationArguments
from trivium.training import load_or_build, train
from trivium.training.distillation import Distillation, load_distillation, teacher_divergence

MODELS = (TriviumForConditionalGeneration, TriviumForCausalLM, TriviumForMaskedLM)


def divergence(logits: np.ndarray, teacher_logits: np.ndarray, temperature: float) -> float:
    """Compute T^2 KL(teacher || student) of one token from the definition."""
    p, q = (np.exp(values / temperature) for values in (teacher_logits, logits))
    p, q = p / p.sum(), q / q.sum()
    return temperature**2 * float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_matches_the_definition(temperature: float) -> None:
    logits, teacher_logits = torch.randn(2, 3, 5, 7).double()
    labels = torch.tensor([[1, -100, 2, 3, -100], [-100, -100, 4, 5, 6], [-100] * 5])
    expected = [
        divergence(logits[row, place].numpy(), teacher_logits[row, place].numpy(), temperature)
        for row, place in (labels != -100).nonzero().tolist()
    ]
    found = teacher_divergence(logits, teacher_logits, labels, temperature)
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-12)
    parts = [teacher_divergence(logits[i], teacher_logits[i], labels[i], temperature, 6) for i in range(3)]
    assert sum(parts).item() == pytest.approx(np.mean(expected), rel=1e-12)
    assert parts[2] == 0
    assert teacher_divergence(logits, logits, labels, temperature).abs() < 1e-15


@pytest.mark.parametrize("model_class", MODELS)
def test_loss_is_the_weighted_sum_of_cross_entropy_and_divergence(model_class: Any) -> None:
    student = tiny_model(model_class, label_smoothing=0.0)
    teacher = tiny_model(model_class, d_model=32, ffn_dim=48, dropout=0.5).train()
    distill = Distillation(teacher, 0.25, 2.0)
    ids = random_ids(3, 6)
    labels = ids.clone()
    labels[0, :3] = labels[1, 4:] = -100
    outputs = distill(student, nullcontext(), input_ids=ids, labels=labels, num_items_in_batch=20)
    logits, teacher_logits = student(input_ids=ids, labels=labels).logits, teacher(input_ids=ids, labels=labels).logits
    shift = int(model_class is TriviumForCausalLM)  # the logits at a place are for the next token
    losses = []
    for row, place in (labels != -100).nonzero().tolist():
        if place < shift:
            continue
        one, other = logits[row, place - shift], teacher_logits[row, place - shift]
        cross_entropy = -one.log_softmax(-1)[labels[row, place]].item()
        losses.append(0.75 * cross_entropy + 0.25 * divergence(one.detach().numpy(), other.numpy(), 2.0))
    assert outputs.loss.item() == pytest.approx(sum(losses) / 20, **{"rel": EXACT["rtol"]})
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training


OVERRIDES = [
    *(override for override in SMALL if not override.startswith(("data.", "training.max_steps", "model."))),
    *("data.max_train_samples=60", "data.max_validation_samples=4", "data.max_test_samples=4"),
    *("training.eval_strategy='no'", "tokenizer.vocab_size=300", "training.report_to=none", "metrics=[exact_match]"),
]


@pytest.mark.trains
def test_student_has_the_tokenizer_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    teacher, run, again = (tmp_path / name for name in ("teacher", "student", "again"))
    small = ["model.d_model=32", "model.ffn_dim=64"]
    train(load_recipe("numbers", [*OVERRIDES, *small, "training.max_steps=1", f"training.output_dir={teacher}"]))

    options = [*OVERRIDES, "model.d_model=16", "model.ffn_dim=32", "training.max_steps=4", "training.save_steps=2"]
    options += ["data.max_train_samples=40", f"distillation.teacher={teacher}", "distillation.temperature=2"]
    recipe = load_recipe("numbers", [*options, "tokenizer.vocab_size=700", f"training.output_dir={run}"])
    trainer = train(recipe)
    assert (run / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()
    assert trainer.model.config.d_model == 16
    assert not any("teacher" in name for name in load_file(run / "model.safetensors"))
    shutil.copytree(run / "checkpoint-2", again / "checkpoint-2")
    recipe.training["output_dir"] = str(again)
    train(recipe, resume=True)
    for name, weight in load_file(run / "model.safetensors").items():
        assert torch.equal(weight, load_file(again / "model.safetensors")[name]), name

    recipe.distillation = DistillationArguments()
    recipe.training["output_dir"] = str(run)
    with pytest.raises(ValueError, match=r"changed recipe: .*distillation\.temperature was 2\.0, is now 1\.0"):
        train(recipe, resume=True)
    for picture in ("draw_curves", "draw_attention"):
        monkeypatch.setattr(f"trivium.hub.card.{picture}", lambda *_: None)
    card = render_card(run)["README.md"].decode()
    assert f"{tmp_path.name}/teacher`, with weight 0.5 and temperature 2.0" in card


def test_teacher_with_another_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = datasets.Dataset.from_dict({"source": ["one two"] * 3, "target": ["eins zwei"] * 3, "text": ["one"] * 3})
    recipe = load_recipe("numbers", [*OVERRIDES, "training.output_dir=unused"])
    for tags, folder in ([], "teacher"), (["<bt>"], "start"):
        recipe.tokenizer.special_tokens = tags
        for part in load_or_build(recipe, rows):
            part.save_pretrained(tmp_path / folder)
    recipe.init_from, recipe.model = str(tmp_path / "start"), {}
    recipe.distillation = DistillationArguments(teacher=str(tmp_path / "teacher"))
    with pytest.raises(ValueError, match=r"distillation\.teacher is .*teacher, whose tokenizer differs"):
        load_distillation(recipe, *load_or_build(recipe, rows))
    student, tokenizer = TriviumForCausalLM(tiny_config()), load_or_build(recipe, rows)[1]
    message = "holds a TriviumForConditionalGeneration, but must hold a TriviumForCausalLM, like the student"
    with pytest.raises(ValueError, match=message):
        load_distillation(recipe, student, tokenizer)
    recipe.init_from, recipe.distillation.teacher = None, "nobody/nothing"  # a valid name on the Hub
    with pytest.raises(FileNotFoundError, match=r"distillation\.teacher is 'nobody/nothing', but there is no such"):
        load_or_build(recipe, rows)
    with pytest.raises(FileNotFoundError, match=r"distillation\.teacher is 'nobody/nothing', but there is no such"):
        load_distillation(recipe, student, tokenizer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distillation.teacher=runs/a", "distillation.weight=0"], "weight is 0.0, but must be above 0 and at most 1"),
        (["distillation.teacher=runs/a", "distillation.temperature=0"], "temperature is 0.0, but must be above 0"),
        (["distillation.weight=0.9"], "distillation.weight is 0.9, but there is no teacher"),
        (["distillation.teacher=runs/a", "task=classification", "metrics=null"], "is only for translation, "),
        (["distillation.teacher=runs/a", "training.label_smoothing_factor=0.1"], "Set model.label_smoothing instead"),
    ],
)
def test_impossible_distillation_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("numbers", ["training.predict_with_generate=false", *overrides])


def test_missing_teacher_is_refused_before_any_data_is_read(tmp_path: Path) -> None:
    options = [f"distillation.teacher={tmp_path}/missing", f"training.output_dir={tmp_path}/run"]
    with pytest.raises(FileNotFoundError, match=r"distillation\.teacher is .*missing', but there is no such folder"):
        train(load_recipe("numbers", options))
