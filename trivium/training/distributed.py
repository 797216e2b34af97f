"""Distributed training: launch configurations, checks of the devices, and coordination between processes."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from trivium.storage.lock import lock_folder

T = TypeVar("T")


def launch_configs() -> dict[str, Path]:
    """Return the bundled configuration files for `accelerate launch --config_file`, keyed by name."""
    folder = Path(str(resources.files("trivium.recipes"))) / "accelerate"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def check_devices(args: TrainingArguments) -> None:
    """Reject device settings that Accelerate would silently ignore.

    Raises:
        ValueError: FSDP is requested on CPUs; or several processes were launched without a GPU, and each would train
            its own model in the same folder.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and args.world_size == 1:
        raise ValueError(
            f"{launched} processes were launched, but no GPU is available. Set training.use_cpu=true to train on CPUs."
        )
    if uses_fsdp(args) and args.distributed_state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise ValueError(
            "FSDP is requested, but Accelerate supports it only with several processes, each with an accelerator such "
            "as a GPU. Launch with another configuration, such as `trivium launch-config cpu`."
        )


def uses_fsdp(args: TrainingArguments) -> bool:
    """Return True if the training arguments or `accelerate launch` enable FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


def broadcast_from_main(function: Callable[[], T]) -> T:
    """Call `function` on the main process and broadcast its result, or its error, to all processes.

    Raises:
        OSError: `function` raised it.
        ValueError: `function` raised it.
    """
    outcome: tuple[T | None, Exception | None] = (None, None)
    if PartialState().is_main_process:
        try:
            outcome = (function(), None)
        except (OSError, ValueError) as error:  # On any other error, the launcher ends all processes.
            if PartialState().num_processes == 1:
                raise
            outcome = (None, error)
    result, failure = broadcast_object_list([outcome])[0]
    if failure is not None:
        raise failure
    assert result is not None
    return result


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder on the main process; raise on all processes if it is already held.

    Raises:
        ValueError: Another training process holds the lock.
    """
    with ExitStack() as stack:
        broadcast_from_main(lambda: stack.enter_context(lock_folder(run)) or True)
        yield


@contextmanager
def tied_weights_together(model: PreTrainedModel) -> Iterator[None]:
    """Make `Accelerator.prepare` shard all modules that share a weight in one FSDP2 parameter group.

    Accelerate shards the input and output embeddings separately from the rest, in one group only if those two are tied
    to each other. If another module shares the weight, as in an encoder-decoder, or if the decoder has its own
    vocabulary, the tied weight ends up in two groups: torch 2.13 rejects that, and earlier versions silently untie it.
    Inside this context Accelerate does not see the embeddings of such a model, so they join the root group with all
    parameters outside the layers. The model is restored on exit.

        with tied_weights_together(model):
            model, optimizer = accelerator.prepare(model, optimizer)
    """
    if not has_other_tied_weights(model):
        yield
        return
    getters = ("get_input_embeddings", "get_output_embeddings")
    for name in getters:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in getters:
            delattr(model, name)


def has_other_tied_weights(model: PreTrainedModel) -> bool:
    """Return True if any modules besides the input and output embeddings share a weight."""
    owners: dict[nn.Parameter, set[nn.Module]] = defaultdict(set)
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners[weight].add(module)
    embeddings = {model.get_input_embeddings(), model.get_output_embeddings()}
    return any(len(modules) > 1 and modules != embeddings for modules in owners.values())
