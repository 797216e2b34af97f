"""Streaming read and write of safetensors checkpoints: one tensor or shard in memory at a time."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from trivium.interop.exchange import Steps
from trivium.interop.mapping import Shape


class Checkpoint(Mapping[str, torch.Tensor]):
    """Lazy mapping from names to tensors of a saved model; a context manager that closes the files.

    Args:
        folder: Folder of the saved model.

    Raises:
        FileNotFoundError: There are no safetensors weights, or a shard is missing.
        ValueError: A file is corrupt.
    """

    def __init__(self, folder: Path) -> None:
        self._files = dict[str, Any]()
        self.shapes = dict[str, Shape]()
        with ExitStack() as stack:
            for path in weight_files(folder):
                try:
                    file = stack.enter_context(safe_open(path, framework="pt"))
                except SafetensorError as error:
                    raise ValueError(
                        f"{path} is not a complete safetensors file: {error}. Save the model again."
                    ) from error
                for name in file.keys():  # noqa: SIM118, safe_open is not iterable
                    self._files[name] = file
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the model in `folder`, sorted by name.

    Raises:
        FileNotFoundError: There are no safetensors files, or a shard is missing.
        ValueError: The shard index is corrupt.
    """
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder} has no {SAFE_WEIGHTS_NAME}. Pickled weights (pytorch_model.bin) are not loaded, because "
            "unpickling can run arbitrary code. Convert them with https://huggingface.co/spaces/safetensors/convert."
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {error!r}.") from error
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{index} lists {path.name}, but that file is missing. Download the model again.")
    return paths


def write_weights(
    folder: Path, steps: Steps, model: PreTrainedModel, max_shard_size: int | str, show_progress: bool = False
) -> None:
    """Compute the tensors in `steps` shard by shard, and save them with an index if there are several shards.

    Args:
        folder: Output folder.
        steps: Functions that compute the tensors, keyed by tensor name.
        model: Model on the meta device, whose tensors have the same names, shapes and dtypes.
        max_shard_size: Maximum size of a shard, in bytes or as a string such as "5GB".
        show_progress: Whether to show a progress bar.
    """
    sizes = {name: tensor.nbytes for name, tensor in model.state_dict().items() if name in steps}
    plan = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern=SAFE_WEIGHTS_NAME.replace(".", "{suffix}."),
        max_shard_size=max_shard_size,
    )
    with tqdm(total=len(steps), desc="Converting", unit=" tensors", disable=not show_progress) as progress:
        for file, names in plan.filename_to_tensors.items():
            shard = dict[str, torch.Tensor]()
            for name in names:
                shard[name] = steps[name]().contiguous()
                progress.update()
            save_file(shard, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
