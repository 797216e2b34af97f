"""Compare logged throughput with hand counts and PyTorch's FLOP counter, in several processes and resumed runs too."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stream_runs import trained_on
from tiny import BOS, EOS, PAD, random_ids, tiny_config
from token_batching import recipe_for
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerControl, TrainerState

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
)
from trivium.tasks import pack
from trivium.training import train
from trivium.training.callbacks.throughput import Throughput, Work
from trivium.training.flops import COUNTED, TokenCounts, count_tokens, peak_of, training_flops

pytestmark = pytest.mark.trains

WAYS = {
    "encoder-decoder": (TriviumForConditionalGeneration, {}),
    "masked words": (TriviumForMaskedLM, {"decoder_layers": 0}),
    "labels": (TriviumForSequenceClassification, {"decoder_layers": 0, "num_labels": 3}),
    "decoder-only": (TriviumForCausalLM, {"encoder_layers": 0}),
}


def counts_of(batch: dict[str, torch.Tensor], model: Any) -> TokenCounts:
    return TokenCounts(**dict(zip(COUNTED, count_tokens(batch, model).tolist(), strict=True)))


def full_batch(model: Any, rows: int = 3, source: int = 7, target: int = 5) -> dict[str, torch.Tensor]:
    """Return a batch without padding or ignored labels, so that every computed token counts."""
    batch = {"input_ids": random_ids(rows, source), "attention_mask": torch.ones(rows, source, dtype=torch.long)}
    if isinstance(model, TriviumForSequenceClassification):
        return {**batch, "labels": torch.zeros(rows, dtype=torch.long)}
    return {**batch, "labels": random_ids(rows, target if model.config.is_encoder_decoder else source)}


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("way", WAYS)
def test_flops_match_pytorch_counter(way: str, heads: int, gated: bool) -> None:
    model_class, layers = WAYS[way]
    model = model_class(tiny_config(num_key_value_heads=heads, gated_ffn=gated, **layers)).train()
    batch = full_batch(model)
    alone = {} if way == "labels" else {"skip_logits": True}  # as RunTrainer does
    with FlopCounterMode(display=False) as counter:
        model(**batch, **alone).loss.backward()
    counts = counts_of(batch, model)
    expected = training_flops(counts, model)
    if way == "decoder-only":  # the last token of a row has no label, so the head skips it
        assert counts.predictions == 3 * 6
    assert counter.get_total_flops() == expected


def test_padding_is_not_counted() -> None:
    """Compare with hand counts for two rows; padding must not add tokens or attention pairs."""
    model = TriviumForConditionalGeneration(tiny_config())
    ids, labels = torch.full((2, 5), PAD), torch.full((2, 4), -100)
    ids[0, :5], ids[1, :2], labels[0, :1], labels[1, :4] = 7, 7, 7, 7
    counts = counts_of({"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}, model)
    assert counts == TokenCounts(
        padded=18, inputs=7, input_pairs=29, targets=5, target_pairs=17, cross_pairs=13, predictions=5
    )
    assert counts.tokens == 12


def test_packed_texts_are_counted_as_separate_rows() -> None:
    model = TriviumForCausalLM(tiny_config(encoder_layers=0))
    texts = [[BOS, *range(5, 5 + n), EOS] for n in (1, 3, 4)]
    packed = {name: torch.tensor(rows) for name, rows in pack(texts, 100, PAD).items()}
    assert packed["num_cuts"].sum() == 0
    counts = counts_of(packed, model)
    assert counts == TokenCounts(padded=100, inputs=14, input_pairs=9 + 25 + 36, predictions=2 + 4 + 5)


def test_peak_flops_by_device_name() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA L4") == 121e12
    assert peak_of("NVIDIA L40S") == 362e12
    assert peak_of("NVIDIA A10G") == 70e12
    assert peak_of("Tesla T4") is None


def test_warning_when_training_waits_for_batches(caplog: pytest.LogCaptureFixture) -> None:
    throughput = Throughput()
    for waiting, expected in ((0.1, 0), (0.3, 1), (0.5, 1)):  # the warning appears only once
        throughput._since_last_log = Work(tokens=8, padded=10, flops=1.0, seconds=1.0, waiting=waiting)
        assert throughput.since_last_log()["data_wait"] == waiting
        assert caplog.text.count("dataloader_num_workers") == expected
    assert "30 % of the time" in caplog.text


def test_time_until_a_batch_arrives_counts_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("trivium.training.callbacks.throughput.time.perf_counter", lambda: now)
    model = TriviumForCausalLM(tiny_config(encoder_layers=0))
    args = SimpleNamespace(device=torch.device("cpu"), world_size=1, n_gpu=0)
    state, control = TrainerState(), TrainerControl(should_log=True)
    throughput = Throughput()
    throughput.on_train_begin(args, state, control, model=model)
    for loaded, end in ((50.0, 54.0), (55.0, 58.0)):  # the first batch, which is slow to load, is excluded
        start, now = now, loaded
        throughput.begin_step([{"input_ids": random_ids(2, 4), "labels": random_ids(2, 4)}], start)
        now = end
        throughput.on_step_end(args, state, control)
    assert (throughput.work.seconds, throughput.work.waiting) == (8.0, 1.0)


def log_of(folder: Path) -> tuple[list[dict[str, float]], dict[str, float]]:
    state = json.loads((folder / "trainer_state.json").read_text())
    work = state["stateful_callbacks"]["Throughput"]["attributes"]["work"]
    return [entry for entry in state["log_history"] if "loss" in entry], work


def test_log_with_accumulation_and_after_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.training.callbacks.throughput.peak_flops", lambda device: 1e12)
    options = ["training.gradient_accumulation_steps=2", "training.logging_steps=2", "training.save_steps=3"]
    recipe = recipe_for(tmp_path, *options, "training.max_steps=5", max_tokens=200)
    trainer = train(recipe)
    log, work = log_of(tmp_path)
    assert len(trainer.batches) > 10  # so all steps are in the first epoch
    batches = list(trainer.get_train_dataloader())[:10]
    real = [int((batch["labels"] != -100).sum() + batch["attention_mask"].sum()) for batch in batches]
    padded = [batch["labels"].numel() + batch["attention_mask"].numel() for batch in batches]
    assert (work["tokens"], work["padded"]) == (sum(real), sum(padded))
    assert [entry["padding"] for entry in log] == pytest.approx(
        [1 - sum(real[i : i + 4]) / sum(padded[i : i + 4]) for i in (0, 4)]
    )
    flops = [training_flops(counts_of(batch, trainer.model), trainer.model) for batch in batches]
    assert work["flops"] == pytest.approx(sum(flops))
    for entry, i in zip(log, (0, 4), strict=True):
        seconds = sum(real[i : i + 4]) / entry["tokens_per_second"]
        assert entry["model_tflops_per_second"] == pytest.approx(sum(flops[i : i + 4]) / seconds / 1e12)
        assert entry["mfu"] == pytest.approx(entry["model_tflops_per_second"])
        assert {"grad_norm", "learning_rate"} <= set(entry)
    assert 0 < work["seconds"] < trainer.state.stateful_callbacks["RunFacts"]["attributes"]["seconds"]

    shutil.rmtree(tmp_path / "checkpoint-5")
    train(recipe, resume=True)
    resumed = log_of(tmp_path)[1]
    assert {name: resumed[name] for name in ("tokens", "padded", "flops")} == pytest.approx(
        {name: work[name] for name in ("tokens", "padded", "flops")}
    )


@pytest.mark.slow(reason="three processes that import transformers")
def test_counts_are_summed_over_processes(tmp_path: Path) -> None:
    eager = ("data.streaming=false", "inputs.buffer_size=20000", "training.max_steps=6")
    trained_on(tmp_path / "alone", 1, "training.gradient_accumulation_steps=2", *eager)
    trained_on(tmp_path / "together", 2, *eager)
    alone, together = (log_of(tmp_path / name) for name in ("alone", "together"))
    for name in ("tokens", "padded", "flops"):
        assert together[1][name] == alone[1][name] > 0
    assert [entry["padding"] for entry in together[0]] == [entry["padding"] for entry in alone[0]]
