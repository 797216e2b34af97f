"""Facts about a training, for the model's card and for whoever repeats it."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import has_length

THEN = ", then "


class RunFacts(TrainerCallback, ExportableState):
    """How long a training took, and on what; kept in every `trainer_state.json`, under `stateful_callbacks`.

    Attributes:
        seconds: By the clock, evaluations and saving included; of a resumed run, of all its sessions.
        hardware: GPUs, or CPU and cores, in words; of a resumed run all that it ran on.
        processes: How many trained together.
        examples: How many there were to learn from, packed ones as they were packed; None: nobody knows, of a stream.
        versions: Of trivium, torch, transformers and Python.
        seed: Of the weights, dropout and, if there is no `data_seed`, the order of the data.
        data: A fingerprint of what there was to learn from (`trivium.data.fingerprint()`); None: it was not given.

    Args:
        data: That fingerprint.

    Raises:
        ValueError: When training begins: it goes on from a checkpoint of other data.
    """

    def __init__(self, data: str | None = None) -> None:
        self.data = data
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
            ValueError: They differ.
        """
        known = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {}).get("data")
        if None not in (known, self.data) and known != self.data:
            raise ValueError(
                f"The training data are not those that the run began with: their fingerprint was {known} and is "
                f"{self.data}. Take them back; or begin a new run, with another training.output_dir."
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the checkpoint's facts, if there is one."""
        self.check_data(state)
        # Read here: `restore_callback_states_from_checkpoint` would restore every other callback as well.
        earlier = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self._started = time.perf_counter() - earlier.get("seconds", 0.0)
        here = describe_hardware(args.device, args.world_size * max(args.n_gpu, 1))
        before = (earlier.get("hardware") or here).split(THEN)
        self.hardware = THEN.join(before if here in before else [*before, here])
        self.processes = args.world_size
        self.seed = args.seed
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        self.examples = len(dataset) if has_length(dataset) else None
        self.versions = {name: version(name) for name in ("trivium", "torch", "transformers")}
        self.versions["python"] = platform.python_version()
        self._tell(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock; `Trainer.save_state` writes what it is told here, for it asks only at checkpoints."""
        self._tell(state)
        self._started = None

    def _tell(self, state: TrainerState) -> None:
        state.stateful_callbacks[type(self).__name__] = self.state()

    def state(self) -> dict[str, Any]:
        """The facts until now, as the Trainer keeps them."""
        if self._started is not None:
            self.seconds = time.perf_counter() - self._started
        facts = {name: fact for name, fact in vars(self).items() if not name.startswith("_")}
        return {"args": {}, "attributes": facts}


def describe_hardware(device: torch.device, count: int) -> str:
    """One line for people: `2 x NVIDIA H200`, or `AMD EPYC 7B13, 2 cores`; nothing that names the machine."""
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{count} x {device.type}"
    info = Path("/proc/cpuinfo")  # of Linux; there, `platform` knows no more than x86_64
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = next(iter(names), platform.processor() or platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
