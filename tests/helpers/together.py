"""Processes that train together on CPU, as `accelerate launch` starts them, but forked: so they start at once."""

import multiprocessing.connection
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from forks import FORKS

Job = Callable[..., Any]  # of a module that can be imported; what it returns can be pickled


def run_together(job: Job, *args: Any, folder: Path, processes: int = 2, config: Path | None = None) -> list[Any]:
    """What `job(*args)` returns in each of several processes, in the order of their ranks.

    Args:
        job: What each process does.
        *args: For `job`.
        folder: For what they say, `said-RANK.txt`, and what they return.
        processes: How many.
        config: An Accelerate configuration, whose environment they get.

    Raises:
        AssertionError: One of them failed; the message has what it said.
    """
    codes = start_together(job, *args, folder=folder, processes=processes, config=config)
    said = [(folder / f"said-{rank}.txt").read_text() for rank in range(processes)]
    assert codes == [0] * processes, "\n\n".join(said)
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(processes)]


def start_together(
    job: Job, *args: Any, folder: Path, processes: int = 2, config: Path | None = None
) -> list[int | None]:
    """How each process ended: 0, 1 after an error, -9 for SIGKILL. Once one has failed the others are ended, too."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = environment_of(config, processes) | {
        **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GLOO_SOCKET_IFNAME": "lo"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"},
    }
    started = [
        FORKS.Process(target=_run, args=(job, args, folder, environment | {"RANK": str(i), "LOCAL_RANK": str(i)}))
        for i in range(processes)
    ]
    for process in started:
        process.start()
    left = list(started)
    while left:
        multiprocessing.connection.wait([process.sentinel for process in left], timeout=300)
        ended = [process for process in left if process.exitcode is not None]
        left = [process for process in left if process.exitcode is None]
        if not ended or any(process.exitcode for process in ended):  # as torchrun does
            for process in left:
                process.kill()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def environment_of(config: Path | None, processes: int) -> dict[str, str]:
    """What `accelerate launch --config_file CONFIG` adds to the environment of its processes."""
    if config is None:
        return {}
    arguments = ["--config_file", str(config), "--num_processes", str(processes), "--main_process_port", "0", "script"]
    launch, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    environment = prepare_multi_gpu_env(launch)
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _run(job: Job, args: tuple[Any, ...], folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank = environment["RANK"]
    said = os.open(folder / f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if environment.get("ACCELERATE_USE_FSDP"):
        PartialState.__init__ = with_fsdp_on_cpu(PartialState.__init__)
    try:
        torch.save(job(*args), folder / f"returned-{rank}.pt")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def with_fsdp_on_cpu(init: Callable[..., None]) -> Callable[..., None]:
    """Accelerate gives FSDP to GPUs only; torch's own runs on CPUs just as well."""

    def initialize(state: PartialState, *args: Any, **kwargs: Any) -> None:
        init(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    return initialize
