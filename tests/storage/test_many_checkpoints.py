"""Test checkpoints of several processes: whichever process is killed, a checkpoint is either complete or absent."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate.utils import merge_fsdp_weights
from distributed_runs import launch_processes, run_distributed
from killed_runs import kill_while_writing
from safetensors.torch import load_file
from tiny_training import losses_of
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from trivium.recipe import load_recipe
from trivium.storage.checkpoints import checkpoints_of, find_defect
from trivium.storage.manifest import ROOM
from trivium.training import train
from trivium.training.distributed import launch_configs

pytestmark = pytest.mark.trains

CONFIGS = launch_configs()
SMALL = [
    *("data.max_train_samples=100", "data.max_validation_samples=10", "tokenizer.vocab_size=300"),
    *("model.d_model=16", "model.ffn_dim=24", "model.encoder_layers=1", "model.decoder_layers=2"),
    *("training.max_steps=4", "training.save_steps=2", "training.logging_steps=1", "training.warmup_steps=1"),
    *("training.eval_strategy='no'", "training.report_to=none", "training.disable_tqdm=true", "training.use_cpu=true"),
]


def settings_of(folder: Path, rows: int = 4) -> list[str]:
    return [*SMALL, f"training.output_dir={folder}", f"training.per_device_train_batch_size={rows}"]


def train_here(settings: list[str], resume: bool = False, dies_in: str | None = None) -> list[float]:
    """Train and return the losses; kill this process when half of a file with the suffix `dies_in` is written."""
    if dies_in is not None:
        kill_while_writing(dies_in)
    trainer = train(load_recipe("numbers", settings), resume=resume)
    return losses_of(trainer)


def assert_same_model(folder: Path, other: Path, tolerance: float = 0) -> None:
    weights, other_weights = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    for name in weights.keys() & other_weights.keys():
        torch.testing.assert_close(weights[name], other_weights[name], rtol=0, atol=tolerance, msg=name)
    assert weights.keys() & other_weights.keys() == weights.keys()


def loaded(folder: Path) -> AutoModelForSeq2SeqLM:
    model, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.lm_head.weight is model.model.encoder.embed_tokens.weight
    return model


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp2", "cpu"])
def test_killed_rank_resumes_from_previous_checkpoint(config: str, tmp_path: Path) -> None:
    """A killed and resumed run is bitwise identical to an uninterrupted one; model and checkpoints load."""
    run, broken = tmp_path / "run", tmp_path / "broken"
    together = {"folder": tmp_path, "config": CONFIGS[config]}
    losses, other_losses = run_distributed(train_here, settings_of(run), **together)
    assert losses == other_losses
    assert len(losses) == 4
    assert loaded(run).config.architectures == ["TriviumForConditionalGeneration"]

    killed = launch_processes(train_here, settings_of(broken), False, "checkpoint-4/rng_state_1.pth", **together)
    assert -9 in killed
    assert [path.name for path in checkpoints_of(broken)] == ["checkpoint-2"]
    assert run_distributed(train_here, settings_of(broken), True, **together) == [losses, losses]
    assert_same_model(broken, run)
    assert [path.name for path in checkpoints_of(broken)] == ["checkpoint-2", "checkpoint-4"]
    assert not (broken / ROOM / "partial").exists()

    last = broken / "checkpoint-4"
    if config == "fsdp2":
        assert not (last / "model.safetensors").exists()
        # This file is the output of `accelerate merge-weights`.
        merge_fsdp_weights(last / "pytorch_model_fsdp_0", last)
    assert_same_model(run, last)
    assert torch.equal(loaded(last).lm_head.weight, loaded(run).lm_head.weight)
    assert len(AutoTokenizer.from_pretrained(last)) == loaded(last).config.vocab_size


@pytest.mark.slow(reason="four processes on two cores")
@pytest.mark.parametrize("config", ["cpu", "fsdp2"])
def test_resume_with_more_processes(config: str, tmp_path: Path) -> None:
    """Two processes with 4 rows each resume as four processes with 2 rows each; without dropout, losses match."""
    run, together = tmp_path / "run", {"folder": tmp_path, "config": CONFIGS[config]}
    (losses, _) = run_distributed(train_here, [*settings_of(run), "model.dropout=0"], **together)
    shutil.copytree(run, tmp_path / "whole")
    shutil.rmtree(run / "checkpoint-4")
    found = run_distributed(train_here, [*settings_of(run, rows=2), "model.dropout=0"], True, **together, processes=4)
    assert found[0] == pytest.approx(losses, rel=1e-5)
    assert_same_model(run, tmp_path / "whole", tolerance=1e-5)


@pytest.mark.slow
def test_missing_shards_make_a_checkpoint_defective(tmp_path: Path) -> None:
    settings = [*settings_of(tmp_path / "run"), "training.max_steps=2"]
    run_distributed(train_here, settings, folder=tmp_path, config=CONFIGS["fsdp2"])
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert find_defect(checkpoint) is None
    (checkpoint / "manifest.json").unlink()  # Simulate a checkpoint from before checksums were written.
    for broken in ("optimizer_0/__1_0.distcp", "pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp"):
        content = (checkpoint / broken).read_bytes()
        (checkpoint / broken).write_bytes(content[:-1])
        flaw = find_defect(checkpoint)
        assert flaw is not None
        (checkpoint / broken).unlink()
        assert find_defect(checkpoint) == flaw
        assert flaw.startswith(broken.split("/")[0])
        (checkpoint / broken).write_bytes(content)
    assert find_defect(checkpoint) is None
