"""Test that several processes, with DDP and FSDP2 (gloo on CPU), train exactly like one process."""

import json
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from distributed_runs import environment_of, free_port, run_distributed
from safetensors.torch import load_file
from tiny import random_ids, tiny_model
from tiny_training import losses_of, quiet_arguments
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import set_seed
from typer.testing import CliRunner

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumForMaskedLM
from trivium.recipe import load_recipe
from trivium.training import train
from trivium.training.distributed import launch_configs
from trivium.training.trainer import RunTrainer
from trivium_cli import app

pytestmark = [pytest.mark.trains, pytest.mark.subprocess]

CONFIGS = launch_configs()
WAYS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "encoder-decoder": (TriviumForConditionalGeneration, {}),
    "two vocabularies": (TriviumForConditionalGeneration, {"decoder_vocab_size": 29}),
    "encoder-only": (TriviumForMaskedLM, {"decoder_layers": 0}),
    "decoder-only": (TriviumForCausalLM, {"encoder_layers": 0, "position_embedding_type": "rotary"}),
}
ROWS = 8  # rows per step in total, over all processes
# Each case: architecture, label smoothing, gradient accumulation, gradient checkpointing.
Case = tuple[str, float, int, bool]


# --- The same training in one process or several ---------------------------------------------------------------------


def rows_of(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    """Return rows of very unequal lengths, some of whose labels are ignored."""
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
    """Return the groups of parameter names that share one weight."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return sorted(several for several in names.values() if len(several) > 1)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train_steps(case: Case, folder: str, processes: int = 1, **options: Any) -> dict[str, Any]:
    """Train for three steps of `ROWS` rows; return the losses, gradient norms, weights and names of tied weights."""
    way, smoothing, accumulated, checkpointing = case
    model_class, shape = WAYS[way]
    set_seed(0)
    model = tiny_model(model_class, **shape, label_smoothing=smoothing)
    if options.get("bf16"):
        model.float()
    tied = names_of_each_weight(model)
    args = quiet_arguments(
        folder,
        max_steps=3,
        per_device_train_batch_size=ROWS // processes // accumulated,
        gradient_accumulation_steps=accumulated,
        activation_checkpointing=checkpointing,
        ddp_find_unused_parameters=False,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
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


def train_cases(cases: list[Case], folder: str, processes: int, **options: Any) -> list[dict[str, Any]]:
    return [train_steps(case, folder, processes, **options) for case in cases]


@cache
def train_alone(way: str, smoothing: float) -> dict[str, Any]:
    """Train in one process, with all rows of a step in a single batch."""
    with TemporaryDirectory() as folder:
        return train_steps((way, smoothing, 1, False), folder)


def assert_same_training(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-9) -> None:
    for what in ("losses", "norms"):  # float32, as the Trainer stores norms
        assert found[what] == pytest.approx(expected[what], rel=1e-6), what
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in found["weights"].items():
        torch.testing.assert_close(weight, expected["weights"][name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("smoothing", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_micro_batches_match_full_batch_in_one_process(way: str, smoothing: float, tmp_path: Path) -> None:
    """Compare one batch of 8 rows with 8 x 1 rows, and with 2 x 4 rows and gradient checkpointing, in float64."""
    # Make sure that training changes the loss.
    assert len({round(loss, 3) for loss in train_alone(way, smoothing)["losses"]}) == 3
    for accumulated, checkpointing in ((8, False), (2, True)):
        assert_same_training(
            train_steps((way, smoothing, accumulated, checkpointing), str(tmp_path)), train_alone(way, smoothing)
        )


QUICK: list[Case] = [("encoder-decoder", 0.1, 2, True), ("decoder-only", 0.0, 1, False)]
MORE: list[Case] = [
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
        pytest.param(4, MORE, marks=pytest.mark.slow(reason="four processes on two cores")),
    ],
    ids=["2", "2 all", "4"],
)
def test_distributed_training_matches_one_process(
    config: str, processes: int, cases: list[Case], tmp_path: Path
) -> None:
    """Losses, gradient norms and weights must match in float64 for all architectures; tied weights stay tied."""
    results = run_distributed(
        train_cases, cases, str(tmp_path), processes, folder=tmp_path, processes=processes, config=CONFIGS[config]
    )
    for result in results:
        for (way, smoothing, *_), found in zip(cases, result, strict=True):
            assert found["wrapped"].startswith(WRAPPED[config])
            assert len(found["tied"]) == 1
            assert_same_training(found, train_alone(way, smoothing))


@pytest.mark.slow(reason="bfloat16 on a CPU")
@pytest.mark.parametrize("config", WRAPPED)
def test_distributed_training_in_bfloat16(config: str, tmp_path: Path) -> None:
    """Compare with training in float64, with a tolerance; the master weights must stay in float32."""
    results = run_distributed(
        partial(train_cases, bf16=True), MORE, str(tmp_path), 2, folder=tmp_path, config=CONFIGS[config]
    )
    for (way, smoothing, *_), found in zip(MORE, results[0], strict=True):
        assert {weight.dtype for weight in found["weights"].values()} == {torch.float32}
        assert found["losses"] == pytest.approx(train_alone(way, smoothing)["losses"], rel=0.02)


# --- Launching -------------------------------------------------------------------------------------------------------

NUMBERS = [
    *("data.max_train_samples=100", "data.max_validation_samples=8", "tokenizer.vocab_size=300", "model.dropout=0"),
    *("model.d_model=16", "model.ffn_dim=24", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("training.max_steps=3", "training.logging_steps=1", "training.warmup_steps=1", "training.save_strategy='no'"),
    *("training.eval_strategy='no'", "training.report_to=none", "training.disable_tqdm=true", "training.use_cpu=true"),
]


def test_accelerate_reads_the_launch_configs() -> None:
    """Check the environment variables that `accelerate launch` derives from each config."""
    assert set(CONFIGS) == {"cpu", "ddp", "deepspeed", "fsdp2", "machines"}
    environments = {name: environment_of(path, 2) for name, path in CONFIGS.items() if name != "deepspeed"}
    assert [
        name for name, environment in environments.items() if environment.get("ACCELERATE_USE_FSDP") == "true"
    ] == ["fsdp2"]
    assert environments["fsdp2"]["FSDP_VERSION"] == "2"
    assert environments["fsdp2"]["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"


def test_command_prints_path_of_launch_config() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["launch-config", "fsdp2"]).stdout == f"{CONFIGS['fsdp2']}\n"
    assert runner.invoke(app, ["launch-config"]).stdout.split() == [str(path) for path in CONFIGS.values()]
    refused = runner.invoke(app, ["launch-config", "fsdp"])
    assert refused.exit_code == 1
    assert "must be one of cpu, ddp, deepspeed, fsdp2, machines" in refused.stderr


@pytest.mark.parametrize(
    ("variable", "value", "use_cpu", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "true", "FSDP is requested, but"),  # would train without sharding
        ("WORLD_SIZE", "2", "false", r"no GPU.*training\.use_cpu=true"),  # each process would train alone
    ],
)
def test_gpu_options_are_refused_without_gpus(
    variable: str, value: str, use_cpu: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trivium must refuse options that Accelerate silently ignores on machines without a GPU."""
    if torch.accelerator.is_available():
        pytest.skip("a GPU is available")
    monkeypatch.setenv(variable, value)
    settings = [*NUMBERS, f"training.use_cpu={use_cpu}", f"training.output_dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=message):
        train(load_recipe("numbers", settings))
    assert not (tmp_path / "run").exists()


def launch(*options: str, recipe: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "trivium_cli", "train", "numbers"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*command, *recipe], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow(reason="starts processes that import transformers")
def test_accelerate_launch(tmp_path: Path) -> None:
    """Two processes on one machine, and one process on each of two machines, must match a single process."""
    alone = train(load_recipe("numbers", [*NUMBERS, f"training.output_dir={tmp_path / 'alone'}", *rows(8)]))
    losses = losses_of(alone)
    together = [*NUMBERS, f"training.output_dir={tmp_path / 'one'}", *rows(4)]
    machines = [*NUMBERS, f"training.output_dir={tmp_path / 'two'}", *rows(4)]
    place = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()), "--num_processes", "2"]
    ranks = (["--machine_rank", rank, *place] for rank in "01")
    for launched in (
        [launch("--config_file", str(CONFIGS["cpu"]), recipe=together)],
        [launch("--config_file", str(CONFIGS["machines"]), *options, recipe=machines) for options in ranks],
    ):
        outputs = [process.communicate(timeout=300) for process in launched]
        assert [process.returncode for process in launched] == [0] * len(launched), outputs
        assert sum("The trained model is in" in output for output, _ in outputs) == 1
    for name in ("one", "two"):
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        assert [entry["loss"] for entry in state["log_history"] if "loss" in entry] == pytest.approx(losses, rel=1e-5)
        for weight, value in load_file(tmp_path / name / "model.safetensors").items():
            torch.testing.assert_close(value, alone.model.state_dict()[weight], rtol=0, atol=1e-5, msg=weight)


def rows(count: int) -> list[str]:
    return [f"training.per_device_train_batch_size={count}"]
