"""Several devices, a process each: how they are launched, and what they must have in common."""

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
    """The files for `accelerate launch --config_file` that come with the package, by their names."""
    folder = Path(str(resources.files("trivium.recipes"))) / "accelerate"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def check_devices(args: TrainingArguments) -> None:
    """Refuse what Accelerate would silently do in another way.

    Raises:
        ValueError: FSDP is asked for on CPUs; or several processes were launched without a GPU, which would each train
            by itself, in the same folder.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and args.world_size == 1:
        raise ValueError(f"{launched} processes were launched, but there is no GPU: set training.use_cpu=true.")
    asked = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    if asked and args.distributed_state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise ValueError(
            "FSDP is asked for, but Accelerate has it only for several processes with a GPU, or the like, each: "
            "launch with another configuration, such as `trivium launch-config cpu`."
        )


def from_first_process(make: Callable[[], T]) -> T:
    """Call `make` in the first of all processes, and give every one its result, or raise its error in every one.

    Raises:
        OSError: `make` raised it.
        ValueError: `make` raised it.
    """
    made: tuple[T | None, Exception | None] = (None, None)
    if PartialState().is_main_process:
        try:
            made = (make(), None)
        except (OSError, ValueError) as error:  # of others the launcher hears, and ends the rest
            if PartialState().num_processes == 1:
                raise
            made = (None, error)
    result, failure = broadcast_object_list([made])[0]
    if failure is not None:
        raise failure
    assert result is not None
    return result


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold the lock of a run's folder in the first of all processes; if it is refused, every process raises.

    Raises:
        ValueError: Another training holds the lock.
    """
    with ExitStack() as stack:
        from_first_process(lambda: stack.enter_context(lock_folder(run)) or True)
        yield


@contextmanager
def tied_weights_together(model: PreTrainedModel) -> Iterator[None]:
    """Let `Accelerator.prepare` put all modules that share a weight into one group of FSDP2.

    Accelerate makes groups of their own of the input and the output embedding, together only if those two are tied.
    Where a third one shares the weight, as in an encoder-decoder, or the decoder's with a vocabulary of its own, the
    weight is in two groups: torch 2.13 refuses that, and earlier versions train two weights that once were one. Inside
    of this context Accelerate sees no embeddings in such a model, and leaves them to the group of the whole, with all
    else that is outside of the layers. The model is changed back afterwards.

        with tied_weights_together(model):
            model, optimizer = accelerator.prepare(model, optimizer)
    """
    if not tied_beyond_ends(model):
        yield
        return
    hidden = ("get_input_embeddings", "get_output_embeddings")
    for name in hidden:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in hidden:
            delattr(model, name)


def tied_beyond_ends(model: PreTrainedModel) -> bool:
    """Whether other modules share a weight than just the input and the output embedding."""
    owners: dict[nn.Parameter, set[nn.Module]] = defaultdict(set)
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners[weight].add(module)
    ends = {model.get_input_embeddings(), model.get_output_embeddings()}
    return any(len(modules) > 1 and modules != ends for modules in owners.values())
