"""Test activation checkpointing of every n-th layer, with the options of transformers."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipes import small_recipe
from tiny import EXACT, copying_batch, tiny_model
from transformers import Trainer, TrainingArguments

from trivium.recipe import load_recipe
from trivium.training import train


def layers_of(model: Any) -> list[Any]:
    return [*model.model.encoder.layers, *model.model.decoder.layers]


@pytest.mark.parametrize(("every_n_layers", "recomputed"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3])])
def test_every_nth_layer_is_recomputed(every_n_layers: int, recomputed: list[int]) -> None:
    """Layers are counted through the encoder, then the decoder; recomputation must repeat the dropout masks."""
    model = tiny_model(dropout=0.2, attention_dropout=0.2).train()
    calls, gradients = Counter[int](), []
    for number, layer in enumerate(layers_of(model)):
        layer.feed_forward.register_forward_hook(lambda *_, number=number: calls.update([number]))
    data = copying_batch(sentences=4)
    for enable in (False, True):
        if enable:
            model.activation_checkpointing_enable(every_n_layers=every_n_layers)
        model.zero_grad()
        calls.clear()
        torch.manual_seed(3)
        model(**data, skip_logits=True).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert [number for number in sorted(calls) if calls[number] == 2] == recomputed
    assert len(calls) == 5
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, **EXACT)


@pytest.mark.trains
def test_trainer_checkpoints_every_second_layer(tmp_path: Path) -> None:
    model = tiny_model().float()
    options = {"every_n_layers": 2, "use_reentrant": False}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        activation_checkpointing=True,
        activation_checkpointing_kwargs=options,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    batch = copying_batch(sentences=8)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(8)]
    Trainer(model, arguments, train_dataset=rows).train()  # type: ignore[arg-type]
    assert [layer.gradient_checkpointing for layer in layers_of(model)] == [True, False, True, False, True]


@pytest.mark.slow
@pytest.mark.trains
def test_recipe_checkpoints_every_second_layer(tmp_path: Path) -> None:
    options = ["training.activation_checkpointing=true", "training.activation_checkpointing_kwargs.every_n_layers=2"]
    plain = train(load_recipe("numbers", small_recipe(tmp_path / "plain"))).model.state_dict()
    trainer = train(load_recipe("numbers", small_recipe(tmp_path / "checkpointed", *options)))
    assert [layer.gradient_checkpointing for layer in layers_of(trainer.model)] == [True, False, True, False]
    for name, weight in trainer.model.state_dict().items():
        torch.testing.assert_close(weight, plain[name], msg=name)
