"""Run distributed CPU training like `accelerate launch`, but in forked processes, which start faster."""

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

Job = Callable[..., Any]  # Must be a module-level function with a picklable return value.


def run_distributed(job: Job, *args: Any, folder: Path, processes: int = 2, config: Path | None = None) -> list[Any]:
    """Run `job(*args)` in several processes and return the results in the order of ranks.

    Args:
        job: The function that every process calls.
        *args: Arguments of `job`.
        folder: Folder to which the output, `log-RANK.txt`, and the results are written.
        processes: The number of processes.
        config: The Accelerate configuration file that determines the environment of the processes.

    Raises:
        AssertionError: A process failed; the message contains the output of all processes.
    """
    codes = launch_processes(job, *args, folder=folder, processes=processes, config=config)
    logs = [(folder / f"log-{rank}.txt").read_text() for rank in range(processes)]
    assert codes == [0] * processes, "\n\n".join(logs)
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(processes)]


def launch_processes(
    job: Job, *args: Any, folder: Path, processes: int = 2, config: Path | None = None
) -> list[int | None]:
    """Run `job`, and return the exit codes: 0, 1 for an error, -9 for SIGKILL. A failure kills all processes."""
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
    running = list(started)
    while running:
        multiprocessing.connection.wait([process.sentinel for process in running], timeout=300)
        ended = [process for process in running if process.exitcode is not None]
        running = [process for process in running if process.exitcode is None]
        if not ended or any(process.exitcode for process in ended):  # As torchrun does.
            for process in running:
                process.kill()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def environment_of(config: Path | None, processes: int) -> dict[str, str]:
    """Return the environment variables that `accelerate launch --config_file CONFIG` sets for its processes."""
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
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
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
    """Enable FSDP on CPUs, which torch supports although Accelerate allows it on GPUs only."""

    def initialize(state: PartialState, *args: Any, **kwargs: Any) -> None:
        init(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    return initialize
