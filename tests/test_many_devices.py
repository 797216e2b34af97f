"""Several processes, with DDP and with FSDP2, learn what one does; here on CPU, by gloo."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_ids, tiny_model
from together import run_together
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Seq2SeqTrainingArguments, set_seed

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumForMaskedLM
from trivium.devices import launch_configs
from trivium.trainer import RunTrainer

CONFIGS = launch_configs()
WAYS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "encoder-decoder": (TriviumForConditionalGeneration, {}),
    "two vocabularies": (TriviumForConditionalGeneration, {"decoder_vocab_size": 29}),
    "encoder-only": (TriviumForMaskedLM, {"decoder_layers": 0}),
    "decoder-only": (TriviumForCausalLM, {"encoder_layers": 0, "position_embedding_type": "rotary"}),
}
ROWS = 8  # of a step, however it is split
Case = tuple[str, float, int, bool]  # way, label smoothing, accumulated batches, gradient checkpointing


# --- One training, in one process or several -------------------------------------------------------------------------


def rows_of(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    """Rows of very unequal lengths, with labels that do not count among them."""
    torch.manual_seed(1)
    rows = []
    for length in torch.randint(2, 12, (3 * ROWS,)).tolist():
        ids = random_ids(length, vocab_size=29)
        labels = random_ids(13 - length, vocab_size=29) if model.config.is_encoder_decoder else ids.clone()
        labels[torch.rand(len(labels)) < 0.3] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batch = {
        name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=filling)
        for name, filling in (("input_ids", 0), ("labels", -100))
    }
    return batch | {"attention_mask": (batch["input_ids"] != 0).long()}


def names_of_each_weight(model: nn.Module) -> list[list[str]]:
    """The names of those weights that have several."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return sorted(several for several in names.values() if len(several) > 1)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def learn(case: Case, folder: str, processes: int = 1, **options: Any) -> dict[str, Any]:
    """Train for three steps of `ROWS` rows: losses, norms of the gradient, weights and what shares one."""
    way, smoothing, accumulated, checkpointing = case
    model_class, shape = WAYS[way]
    set_seed(0)
    model = tiny_model(model_class, **shape, label_smoothing=smoothing)
    tied = names_of_each_weight(model)
    args = Seq2SeqTrainingArguments(
        output_dir=folder,
        max_steps=3,
        per_device_train_batch_size=ROWS // processes // accumulated,
        gradient_accumulation_steps=accumulated,
        gradient_checkpointing=checkpointing,
        ddp_find_unused_parameters=False,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    trainer = RunTrainer(model, args, train_dataset=rows_of(model), data_collator=collate)
    trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    assert names_of_each_weight(trained) == tied
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "wrapped": type(trainer.model_wrapped).__name__,
        "losses": [entry["loss"] for entry in log],
        "norms": [entry["grad_norm"] for entry in log],
        "weights": {name: whole(weight).detach().clone() for name, weight in trained.named_parameters()},
        "tied": tied,
    }


def learn_all(cases: list[Case], folder: str, processes: int) -> list[dict[str, Any]]:
    return [learn(case, folder, processes) for case in cases]


@cache
def alone(way: str, smoothing: float) -> dict[str, Any]:
    """The same in one process, each step's rows at once."""
    return learn((way, smoothing, 1, False), "unused")


def assert_same_learning(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-9) -> None:
    for what in ("losses", "norms"):  # which the Trainer has in float32
        assert found[what] == pytest.approx(expected[what], rel=1e-6), what
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in found["weights"].items():
        torch.testing.assert_close(weight, expected["weights"][name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_process_learns_the_same_from_a_batch_in_parts(way: str, smoothing: float) -> None:
    """In float64: 1 x 8 rows are 8 x 1 and 2 x 4, whatever tokens count, and with activations computed anew."""
    assert len({round(loss, 3) for loss in alone(way, smoothing)["losses"]}) == 3  # it does learn
    for accumulated, checkpointing in ((8, False), (2, True)):
        assert_same_learning(learn((way, smoothing, accumulated, checkpointing), "unused"), alone(way, smoothing))


QUICK: list[Case] = [
    *((way, 0.1, 2, True) for way in WAYS),
    *((way, 0.0, 1, False) for way in ("encoder-decoder", "decoder-only")),
]
ALL: list[Case] = [(way, s, a, c) for way in WAYS for s in (0.0, 0.1) for a in (1, 2) for c in (False, True)]
WRAPPED = {"cpu": "DistributedDataParallel", "fsdp2": "FSDP"}


@pytest.mark.parametrize("config", WRAPPED)
@pytest.mark.parametrize(
    ("processes", "cases"),
    [
        (2, QUICK),
        pytest.param(2, ALL, marks=pytest.mark.slow(reason="all cases")),
        pytest.param(4, QUICK, marks=pytest.mark.slow(reason="four processes on two cores")),
    ],
    ids=["2", "2 all", "4"],
)
def test_several_processes_learn_what_one_does(config: str, processes: int, cases: list[Case], tmp_path: Path) -> None:
    """In float64, all three ways: the same losses, norms of the gradient and weights; what is tied stays one."""
    results = run_together(
        *(learn_all, cases, str(tmp_path), processes), folder=tmp_path, processes=processes, config=CONFIGS[config]
    )
    for result in results:
        for (way, smoothing, *_), found in zip(cases, result, strict=True):
            assert found["wrapped"].startswith(WRAPPED[config])
            assert len(found["tied"]) == 1
            assert_same_learning(found, alone(way, smoothing))
