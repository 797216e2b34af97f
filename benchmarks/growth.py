"""Measure how time and memory of self-attention, an LSTM and a convolution scale with sequence length and batch size.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --plot growth.png

It compares one layer of each type in Table 1 of the paper, all of the same width: Trivium's multi-head attention with
every attention implementation that has a backward pass on this device, torch's LSTM, and its convolution with a kernel
of three tokens. All are causal. Forward and backward passes are measured, with gradients of weights and inputs. Inputs
are random, so no data is needed.

Time is the median over rounds, with quartiles; the layers alternate in every round, so that load from other processes
affects all equally. Use several CPU threads only on an idle machine: the threads of the LSTM synchronize at every
token, so a single preempted thread stalls all of them. Memory is torch's peak allocation in a step, minus what was
allocated before: the weights, the inputs, and the mask, which a model builds once for all layers.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import log, log10
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers.masking_utils import create_causal_mask
from transformers.utils import is_flash_attn_2_available

from trivium import TriviumConfig
from trivium.inspection import save_figure
from trivium.inspection.drawing import MARKERS, SERIES, check_picture
from trivium.modeling.attention import AttentionContext, MultiHeadAttention

WIDTH, HEADS, KERNEL = 256, 4, 3
SHORTEST = 64
BATCHES, LENGTH = [1, 2, 4, 8, 16, 32, 64], 128
MAX_SECONDS, MAX_BYTES = 10, 8 * 2**30  # per step; larger sizes are skipped
MIN_SECONDS = 0.05  # per measurement; shorter steps are repeated
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32  # FlashAttention does not support float32

Build = Callable[[torch.Tensor], nn.Module]  # builds a layer for the given inputs


class Attention(nn.Module):
    """Trivium's attention with its mask; like all layers here, it maps (batch, length, WIDTH) to the same shape."""

    def __init__(self, function: str, inputs: torch.Tensor) -> None:
        super().__init__()
        config = TriviumConfig(
            d_model=WIDTH, num_attention_heads=HEADS, attention_dropout=0.0, attn_implementation=function
        )
        self.layer = MultiHeadAttention(config, layer_idx=0, is_causal=True)
        self.context = AttentionContext(create_causal_mask(config, inputs, attention_mask=None, cache=None))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Attend causally."""
        return self.layer(inputs, self.context)[0]


class Recurrence(nn.LSTM):
    """LSTM layer of torch."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the hidden states, without the final state."""
        return super().forward(inputs)[0]


class Convolution(nn.Conv1d):
    """Causal convolution, based on torch's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Pad on the left, and convolve over the length."""
        return super().forward(nn.functional.pad(inputs.transpose(1, 2), (KERNEL - 1, 0))).transpose(1, 2)


class Size(NamedTuple):
    """Size of the inputs of a layer."""

    batch: int
    length: int


@dataclass
class Cell:
    """Measurements of a layer at one size."""

    step: Callable[[], object]
    weights: int
    peak: int  # bytes
    estimate: float  # seconds per step, before the timed rounds
    seconds: list[float] = field(default_factory=list)  # per step, one for each round

    @property
    def mebibytes(self) -> list[float]:
        """Peak memory in MiB, as a list of one."""
        return [self.peak / 2**20]

    @property
    def milliseconds(self) -> list[float]:
        """Milliseconds per step: median, lower and upper quartile."""
        lower, _, upper = quantiles(self.seconds, n=4, method="inclusive")
        return [1000 * seconds for seconds in (median(self.seconds), lower, upper)]


@dataclass(frozen=True)
class Sweep:
    """Sizes that vary in one dimension."""

    axis: str  # the dimension that varies: "length" or "batch"
    label: str
    sizes: list[Size]
    guides: tuple[int, ...]  # exponents of the reference lines to draw


Cells = dict[str, dict[Size, Cell]]  # keyed by layer name
QUANTITIES = {"milliseconds": "ms, forward and backward", "mebibytes": "peak memory, MiB"}


def competitors() -> tuple[dict[str, Build], dict[str, str]]:
    """Return the layer builders, and the excluded attention implementations with the reasons."""
    functions, missing = ["eager", "sdpa"], {}
    if ON_GPU:
        functions.append("flex_attention")
    else:
        missing["flex_attention"] = "has no backward pass on a CPU"
    if is_flash_attn_2_available():
        functions.append("flash_attention_2")
    else:
        missing["flash_attention_2"] = "needs a GPU and the package flash-attn"
    layers: dict[str, Build] = {f"attention, {function}": partial(Attention, function) for function in functions}
    layers["LSTM"] = lambda inputs: Recurrence(WIDTH, WIDTH, batch_first=True)
    layers[f"convolution of {KERNEL}"] = lambda inputs: Convolution(WIDTH, WIDTH, KERNEL)
    return layers, missing


def prepare(build: Build, size: Size) -> Cell:
    """Build a layer, and measure its peak memory and approximate time."""
    inputs = torch.randn(*size, WIDTH, device=DEVICE, dtype=DTYPE, requires_grad=True)
    gradient = torch.randn_like(inputs)
    layer = build(inputs).to(inputs)
    weights = list(layer.parameters())

    def step() -> object:
        return torch.autograd.grad(layer(inputs), [inputs, *weights], gradient)

    step()  # warm up: compilation, kernel selection and workspaces
    return Cell(step, sum(weight.numel() for weight in weights), peak_of(step), seconds_of(step))


def peak_of(step: Callable[[], object]) -> int:
    """Return the peak bytes allocated in a step, minus those allocated before."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with TemporaryDirectory() as folder:  # only the trace records single allocations, from which the peak is computed
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = sorted(json.loads(trace.read_bytes())["traceEvents"], key=lambda event: event["ts"])
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return max(change["Total Allocated"] for change in changes) - before


def seconds_of(step: Callable[[], object], repeats: int = 1) -> float:
    """Return the seconds per step."""
    if ON_GPU:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if ON_GPU:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure(layers: dict[str, Build], sizes: list[Size], rounds: int) -> Cells:
    """Measure all layers at all sizes, except for those over the time or memory limit."""
    cells: Cells = {name: {} for name in layers}
    for size in sizes:
        half = Size(size.batch // 2, size.length) if size.batch > 1 else Size(1, size.length // 2)
        for name, build in layers.items():
            known = cells[name].get(half)
            # Time and memory grow at most quadratically, so doubling a dimension costs at most 4 times as much.
            affordable = known and 4 * known.estimate <= MAX_SECONDS and 4 * known.peak <= MAX_BYTES
            if affordable or size.batch * size.length <= LENGTH:
                cells[name][size] = prepare(build, size)
    for _ in range(rounds):
        for size in sizes:
            for name in layers:
                if cell := cells[name].get(size):
                    repeats = max(1, round(MIN_SECONDS / cell.estimate))
                    cell.seconds.append(seconds_of(cell.step, repeats))
    return cells


def curve_of(cells: dict[Size, Cell], sweep: Sweep, quantity: str) -> dict[int, list[float]]:
    """Return a measured quantity of a layer by length or batch size."""
    return {getattr(size, sweep.axis): getattr(cells[size], quantity) for size in sweep.sizes if size in cells}


def print_table(cells: Cells, sweep: Sweep, quantity: str) -> None:
    """Print a quantity of all layers and its final growth exponents as a Markdown table."""
    curves = {name: curve_of(measured, sweep, quantity) for name, measured in cells.items()}
    rows = [[sweep.axis, *curves], ["---"] * (1 + len(curves))]
    for size in sweep.sizes:
        place = getattr(size, sweep.axis)
        rows.append([f"{place:,}", *(format_quantity(curve.get(place)) for curve in curves.values())])
    rows.append(["exponent", *(exponent_of(curve) for curve in curves.values())])
    print(f"\n{QUANTITIES[quantity]}, {sweep.label}:\n")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def format_quantity(numbers: list[float] | None) -> str:
    """Format a number with at least three significant digits, and its quartiles if there are any."""
    if numbers is None:
        return "-"
    middle, *quartiles = (f"{number:,.{max(0, 2 - int(log10(number)))}f}" for number in numbers)
    return f"{middle} ({' to '.join(quartiles)})" if quartiles else middle


def exponent_of(curve: dict[int, list[float]]) -> str:
    """Return the growth exponent between the last two points: 1 is linear, 2 quadratic."""
    if len(curve) < 2:
        return "-"
    (before, (low, *_)), (last, (high, *_)) = list(curve.items())[-2:]
    return f"{log(high / low) / log(last / before):.2f}"


def draw(cells: Cells, sweeps: list[Sweep]) -> Figure:
    """Plot one row per quantity and one column per sweep, on log-log axes, where exponents are slopes."""
    figure = Figure(figsize=(7.5, 6.8), layout="constrained")
    grid = figure.subplots(len(QUANTITIES), len(sweeps), sharex="col", sharey="row")
    for row, quantity in zip(grid, QUANTITIES, strict=True):
        for axes, sweep in zip(row, sweeps, strict=True):
            lowest = []
            for name, color, marker in zip(cells, SERIES, MARKERS, strict=False):
                curve = curve_of(cells[name], sweep, quantity)
                middle, *quartiles = zip(*curve.values(), strict=True)
                axes.plot(list(curve), middle, color=color, marker=marker, markersize=5, linewidth=1.5, label=name)
                if quartiles:
                    axes.fill_between(list(curve), *quartiles, color=color, alpha=0.2, linewidth=0)
                lowest.append(middle[0])
            finish(axes, sweep, min(lowest))
        row[0].set_ylabel(QUANTITIES[quantity])
    for axes, sweep in zip(grid[-1], sweeps, strict=True):
        axes.set_xlabel(sweep.label)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def finish(axes: Axes, sweep: Sweep, start: float) -> None:
    """Set up log-log axes with dotted reference lines for the exponents of the sweep."""
    places = [getattr(size, sweep.axis) for size in sweep.sizes]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,g}")
    for power in sweep.guides:
        end = start * (places[-1] / places[0]) ** power
        axes.plot([places[0], places[-1]], [start, end], color="0.6", linestyle=":", linewidth=1, zorder=0)
        label = f"∝ {sweep.axis}{'²' if power == 2 else ''}"
        axes.annotate(label, (places[-1], end), (2, -4), textcoords="offset points", color="0.4", fontsize="small")
    axes.tick_params("x", labelbottom=True)  # shared axes hide their tick labels
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def main(
    plot: Annotated[Path | None, typer.Option(help="Image to write: .png, .svg or .pdf.")] = None,
    longest: Annotated[int, typer.Option(min=LENGTH, help="Maximum sequence length in tokens.")] = 4096,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds per layer and size.")] = 7,
) -> None:
    """Run the benchmark, print tables, and plot."""
    if plot:
        check_picture(plot)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # keep the profiler's logs out of the printed tables
    torch.manual_seed(0)
    lengths = [SHORTEST * 2**doublings for doublings in range((longest // SHORTEST).bit_length())]
    sweeps = [
        Sweep("length", "tokens of one sequence", [Size(1, length) for length in lengths], guides=(1, 2)),
        Sweep("batch", f"sequences of {LENGTH} tokens", [Size(batch, LENGTH) for batch in BATCHES], guides=(1,)),
    ]
    layers, missing = competitors()
    sizes = sorted({size for sweep in sweeps for size in sweep.sizes})
    cells = measure(layers, sizes, rounds)

    where = torch.cuda.get_device_name() if ON_GPU else f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    print(f"Width {WIDTH}, {HEADS} heads; {rounds} rounds; {where}, {DTYPE}; torch {torch.__version__}.\n")
    for name, measured in cells.items():
        print(f"- {name}: {measured[sizes[0]].weights:,} weights")
    for name, reason in missing.items():
        print(f"- attention, {name}: skipped, because it {reason}")
    for sweep in sweeps:
        for quantity in QUANTITIES:
            print_table(cells, sweep, quantity)
    if any(size not in measured for measured in cells.values() for size in sizes):
        print(f"\n-: skipped, because a step might take more than {MAX_SECONDS} s or {MAX_BYTES / 2**30:.0f} GiB.")
    if plot:
        save_figure(draw(cells, sweeps), plot)


if __name__ == "__main__":
    typer.run(main)
