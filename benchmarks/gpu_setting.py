"""Settings shared by all parts of `gpu.py`: device, folders and model sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import SHAPES, Shape

Row = dict[str, Any]  # a row of a table: column to text or number
VOCABULARY, SMOKE_VOCABULARY = 32_000, 100
SMOKE_SHAPE = Shape(1, 32, 2, 64)


@dataclass(frozen=True)
class Setting:
    """Settings that all parts share.

    Attributes:
        device: Device to measure.
        work: Folder for models and runs; later calls resume runs from it.
        smoke: Whether to run tiny shapes briefly, to test the script without a GPU.
        seconds: Measurement time for each group of candidates.
        data: Folder of Multi30k.
        text: Folder of Shakespeare, with `train.txt` and `val.txt`.
    """

    device: torch.device
    work: Path
    smoke: bool = False
    seconds: float = 20.0
    data: Path | None = None
    text: Path | None = None

    def shape(self, name: str) -> Shape:
        """Return a shape of `peers.py`, or a tiny one."""
        return SMOKE_SHAPE if self.smoke else SHAPES[name]

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary."""
        return SMOKE_VOCABULARY if self.smoke else VOCABULARY

    def synchronized(self, function: Callable[[], object]) -> Callable[[int], None]:
        """Wrap a candidate for `timing.interleaved` so that each call waits for the device to finish."""

        def wrapper(_: int) -> None:
            function()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return wrapper

    def folder(self, name: str) -> Path:
        """Return the data folder `name`.

        Raises:
            ValueError: The folder was not passed.
        """
        path: Path | None = getattr(self, name)
        if path is None:
            raise ValueError(f"--{name} is not set, but this part needs it. Pass the folder.")
        return path
