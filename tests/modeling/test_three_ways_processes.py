"""Test every model class with DistributedDataParallel and DataParallel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_classes import CLASSES, LAYERS
from tiny import mask_of, tiny_model
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from trivium import (
    TriviumDecoderForSequenceClassification,
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumModel,
)

Tensors = dict[str, torch.Tensor]


# --- Several processes ---


def batch_for(model: PreTrainedModel) -> Tensors:
    """Return four rows with unequal numbers of labels, identical in every process."""
    generator = torch.Generator().manual_seed(1)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(3, high, shape, generator=generator)

    mask = mask_of([6, 2, 5, 3])
    batch = {"input_ids": draw(31, 4, 6), "attention_mask": mask}
    labels = draw(31, 4, 6).masked_fill(mask == 0, -100)
    if isinstance(model, (TriviumForSequenceClassification, TriviumDecoderForSequenceClassification)):
        batch["labels"] = draw(31, 4) % 3
    elif isinstance(model, TriviumForTokenClassification):
        batch["labels"] = labels.where(labels < 0, labels % 3)
    elif isinstance(model, TriviumForQuestionAnswering):
        batch |= {"start_positions": torch.tensor([0, 1, 2, 1]), "end_positions": torch.tensor([5, 1, 3, 2])}
    elif isinstance(model, TriviumModel):
        batch["decoder_input_ids"] = draw(31, 4, 5)
    elif not isinstance(model, (TriviumEncoderModel, TriviumDecoderModel)):
        batch["labels"] = labels
    return batch


def two_steps(model_class: type[Any], processes: int, rank: int) -> dict[str, list[torch.Tensor]]:
    """Train on a shard of the batch; return the gradients of both steps and the final weights."""
    torch.manual_seed(0)
    model = tiny_model(model_class, **LAYERS[model_class], num_labels=3).train()
    batch = batch_for(model)
    shard: dict[str, Any] = {name: rows.chunk(processes)[rank] for name, rows in batch.items()}
    if "labels" in batch:
        labels = batch["labels"][:, 1:] if model_class is TriviumForCausalLM else batch["labels"]
        shard["num_items_in_batch"] = (labels != -100).sum() / processes  # DDP averages the gradients.
    wrapped_model = DistributedDataParallel(model, find_unused_parameters=False) if processes > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history: dict[str, list[torch.Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        outputs = wrapped_model(**shard)
        loss = outputs.loss if "loss" in outputs else (outputs[0] * torch.arange(24)).mean()
        loss.backward()
        for name, parameter in model.named_parameters():
            history[name].append(parameter.grad.clone())
        optimizer.step()
    for name, parameter in model.named_parameters():
        history[name].append(parameter.detach().clone())
    return history


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {model_class.__name__: two_steps(model_class, 2, rank) for model_class in CLASSES}
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_match_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train without `find_unused_parameters`, so that a parameter without a gradient is an error."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.spawn(process, args=(str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for model_class in CLASSES:
        expected = two_steps(model_class, processes=1, rank=0)
        for history in (result[model_class.__name__] for result in results):
            assert set(history) == set(expected)
            for name, tensors in history.items():
                for tensor, reference in zip(tensors, expected[name], strict=True):
                    torch.testing.assert_close(tensor, reference, rtol=1e-9, atol=1e-12, msg=name)
