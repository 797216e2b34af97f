"""Callback that records metadata of a training run, for the model card and for reproducing the run."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import has_length

from trivium.configuration import TriviumConfig
from trivium.data.token_batches import tokens_of

HARDWARE_SEPARATOR = ", then "  # separator between machines if a run was resumed on different hardware


class RunFacts(TrainerCallback, ExportableState):
    """Record duration, hardware, versions and data of a run in `trainer_state.json`, under `stateful_callbacks`.

    Attributes:
        seconds: Wall-clock time, including evaluation and saving; summed over the sessions of a resumed run.
        hardware: Description of the GPUs, or of the CPU and its cores; for a resumed run, all hardware that was used.
        processes: Number of training processes.
        examples: Number of training rows, after packing; None for a stream, whose length is unknown.
        versions: Versions of trivium, torch, transformers and Python.
        seed: Seed of the weights, of dropout and, unless `data_seed` is set, of the data order.
        data: Fingerprint of the training data (`trivium.data.fingerprint()`), or None.
        packing: Rows, tokens, padding and cuts of packed training data (`packing_facts()`); None if they are streamed
            or not packed.
        encoding: Rows and tokens encoded per second before training; None for a stream, for data from the cache of
            `datasets`, and for prepared data, whose manifest records them.

    Args:
        data: Fingerprint of the training data; None skips the check on resumption.

    Raises:
        ValueError: The checkpoint was trained on different data (raised when training begins).
    """

    def __init__(self, data: str | None = None) -> None:
        self.data = data
        self.packing: dict[str, float] | None = None
        self.encoding: dict[str, float] | None = None
        self.seed: int | None = None
        self.seconds = 0.0
        self.hardware = ""
        self.processes = 1
        self.examples: int | None = None
        self.versions: dict[str, str] = {}
        self._started: float | None = None

    def check_data(self, state: TrainerState) -> None:
        """Compare the fingerprint of the training data with the one in the state of a checkpoint.

        Raises:
            ValueError: The fingerprints differ.
        """
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {}).get("data")
        if None not in (saved, self.data) and saved != self.data:
            raise ValueError(
                f"The run cannot be resumed with changed training data: their fingerprint was {saved}, is now "
                f"{self.data}. Restore the data, or start a new run with another training.output_dir."
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, continuing from the saved time if the run is resumed, and record the environment."""
        self.check_data(state)
        # Read directly, because `restore_callback_states_from_checkpoint` would restore all other callbacks as well.
        earlier = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self._started = time.perf_counter() - earlier.get("seconds", 0.0)
        current = describe_hardware(args.device, args.world_size * max(args.n_gpu, 1))
        machines = (earlier.get("hardware") or current).split(HARDWARE_SEPARATOR)
        self.hardware = HARDWARE_SEPARATOR.join(machines if current in machines else [*machines, current])
        self.processes = args.world_size
        self.seed = args.seed
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        self.examples = len(dataset) if has_length(dataset) else None
        self.versions = {name: version(name) for name in ("trivium", "torch", "transformers")}
        self.versions["python"] = platform.python_version()
        self._store(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock, and store the final state, which the Trainer itself collects only at checkpoints."""
        self._store(state)
        self._started = None

    def _store(self, state: TrainerState) -> None:
        state.stateful_callbacks[type(self).__name__] = self.state()

    def state(self) -> dict[str, Any]:
        """Return the current metadata in the format of `ExportableState`."""
        if self._started is not None:
            self.seconds = time.perf_counter() - self._started
        facts = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"args": {}, "attributes": facts}


def encoding_rates(
    data: DatasetDict, encoded: DatasetDict, config: TriviumConfig, began: float
) -> dict[str, float] | None:
    """Return the rows and tokens encoded per second, or None if the encoding came from the cache.

    Args:
        data: The splits before encoding.
        encoded: The encoded splits.
        config: Configuration of the model.
        began: Value of `time.time()` before encoding.
    """
    seconds = time.time() - began
    files = [Path(file["filename"]) for rows in encoded.values() for file in rows.cache_files]
    if any(file.stat().st_mtime < began for file in files):
        return None
    rows = sum(len(data[split]) for split in encoded)
    tokens = sum(tokens_of(encoded[split], config) for split in encoded)
    return {"rows_per_second": rows / seconds, "tokens_per_second": tokens / seconds}


def describe_hardware(device: torch.device, count: int) -> str:
    """Describe the hardware without the host name, such as `2 x NVIDIA H200` or `AMD EPYC 7B13, 2 cores`."""
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{count} x {device.type}"
    info = Path("/proc/cpuinfo")  # On Linux, `platform` returns only the architecture.
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = next(iter(names), platform.processor() or platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
