"""How time and memory of a layer grow with the length and the batch: self-attention, an LSTM and a convolution.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --plot growth.png

One layer of each kind in the paper's Table 1, all of the same width: our multi-head attention with each attention
function that has a backward pass here, torch's LSTM, and its convolution over three tokens. None sees what comes
later, as in a language model. They go forward and back, for the gradients of their weights and of what they are given,
which is random: no data is needed.

Time is the median of rounds in which all take turns, so that what else the machine does takes from all alike, with the
quartiles. More than one thread on a CPU needs a machine that does nothing else: those of the LSTM wait for each other
at every token, and one that has lost its core holds up all. Memory is what torch had asked for when it had asked for
most, beyond what was there before: the weights, what the layer is given, and the mask, which a model makes once for
all its layers.
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
MOST_SECONDS, MOST_BYTES = 10, 8 * 2**30  # of one step: what would take more is left out
ENOUGH_SECONDS = 0.05  # for one look at the clock: a step that takes less is taken several times
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32  # as one trains; FlashAttention has no float32

Build = Callable[[torch.Tensor], nn.Module]  # for what the layer will be given


class Attention(nn.Module):
    """Ours, with its mask; like the other layers, it makes (batch, length, WIDTH) of (batch, length, WIDTH)."""

    def __init__(self, function: str, inputs: torch.Tensor) -> None:
        super().__init__()
        config = TriviumConfig(
            d_model=WIDTH, num_attention_heads=HEADS, attention_dropout=0.0, attn_implementation=function
        )
        self.layer = MultiHeadAttention(config, layer_idx=0, is_causal=True)
        self.context = AttentionContext(create_causal_mask(config, inputs, attention_mask=None, cache=None))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Let each token look at itself and those before it."""
        return self.layer(inputs, self.context)[0]


class Recurrence(nn.LSTM):
    """Torch's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Go from token to token; what the last one leaves behind is dropped."""
        return super().forward(inputs)[0]


class Convolution(nn.Conv1d):
    """Torch's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Let each token see itself and those just before it."""
        return super().forward(nn.functional.pad(inputs.transpose(1, 2), (KERNEL - 1, 0))).transpose(1, 2)


class Size(NamedTuple):
    """Of what a layer is given."""

    batch: int
    length: int


@dataclass
class Cell:
    """What a layer needs at a size."""

    step: Callable[[], object]
    weights: int
    peak: int  # bytes
    estimate: float  # seconds of a step, before the rounds
    seconds: list[float] = field(default_factory=list)  # of a step, in each round

    @property
    def mebibytes(self) -> list[float]:
        """Of the peak."""
        return [self.peak / 2**20]

    @property
    def milliseconds(self) -> list[float]:
        """Of a step: median, lower and upper quartile."""
        lower, _, upper = quantiles(self.seconds, n=4, method="inclusive")
        return [1000 * seconds for seconds in (median(self.seconds), lower, upper)]


@dataclass(frozen=True)
class Sweep:
    """Sizes that differ in one thing."""

    axis: str  # what they differ in: "length" or "batch"
    label: str
    sizes: list[Size]
    guides: tuple[int, ...]  # powers to draw for the eye


Cells = dict[str, dict[Size, Cell]]  # by the name of the layer
QUANTITIES = {"milliseconds": "ms, forward and backward", "mebibytes": "MiB at the peak"}


def competitors() -> tuple[dict[str, Build], dict[str, str]]:
    """The layers, and which attention functions are not among them for what reason."""
    functions, missing = ["eager", "sdpa"], {}
    if ON_GPU:
        functions.append("flex_attention")
    else:
        missing["flex_attention"] = "has no backward pass on a CPU"
    if is_flash_attn_2_available():
        functions.append("flash_attention_2")
    else:
        missing["flash_attention_2"] = "needs a GPU, and the package flash-attn"
    layers: dict[str, Build] = {f"attention, {function}": partial(Attention, function) for function in functions}
    layers["LSTM"] = lambda inputs: Recurrence(WIDTH, WIDTH, batch_first=True)
    layers[f"convolution of {KERNEL}"] = lambda inputs: Convolution(WIDTH, WIDTH, KERNEL)
    return layers, missing


def prepare(build: Build, size: Size) -> Cell:
    """Build a layer, and let it take steps until it is known what they need."""
    inputs = torch.randn(*size, WIDTH, device=DEVICE, dtype=DTYPE, requires_grad=True)
    gradient = torch.randn_like(inputs)
    layer = build(inputs).to(inputs)
    weights = list(layer.parameters())

    def step() -> object:
        return torch.autograd.grad(layer(inputs), [inputs, *weights], gradient)

    step()  # the first one also compiles, chooses kernels and reserves room for them
    return Cell(step, sum(weight.numel() for weight in weights), peak_of(step), seconds_of(step))


def peak_of(step: Callable[[], object]) -> int:
    """The most bytes that torch held at once in a step, beyond what it held before."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with TemporaryDirectory() as folder:  # the trace has every allocation; the profiler's sums do not tell the peak
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = sorted(json.loads(trace.read_bytes())["traceEvents"], key=lambda event: event["ts"])
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return max(change["Total Allocated"] for change in changes) - before


def seconds_of(step: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of a step."""
    if ON_GPU:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if ON_GPU:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure(layers: dict[str, Build], sizes: list[Size], rounds: int) -> Cells:
    """Measure all layers at all sizes, but for those that would take too much."""
    cells: Cells = {name: {} for name in layers}
    for size in sizes:
        half = Size(size.batch // 2, size.length) if size.batch > 1 else Size(1, size.length // 2)
        for name, build in layers.items():
            known = cells[name].get(half)
            # Of twice as much of something, nothing here needs more than four times as much.
            affordable = known and 4 * known.estimate <= MOST_SECONDS and 4 * known.peak <= MOST_BYTES
            if affordable or size.batch * size.length <= LENGTH:
                cells[name][size] = prepare(build, size)
    for _ in range(rounds):
        for size in sizes:
            for name in layers:
                if cell := cells[name].get(size):
                    repeats = max(1, round(ENOUGH_SECONDS / cell.estimate))
                    cell.seconds.append(seconds_of(cell.step, repeats))
    return cells


def curve_of(cells: dict[Size, Cell], sweep: Sweep, quantity: str) -> dict[int, list[float]]:
    """A quantity of a layer by its length or its batch, where it was measured."""
    return {getattr(size, sweep.axis): getattr(cells[size], quantity) for size in sweep.sizes if size in cells}


def print_table(cells: Cells, sweep: Sweep, quantity: str) -> None:
    """Print a quantity of all layers, and the powers with which they grow at the end, as Markdown."""
    curves = {name: curve_of(measured, sweep, quantity) for name, measured in cells.items()}
    rows = [[sweep.axis, *curves], ["---"] * (1 + len(curves))]
    for size in sweep.sizes:
        place = getattr(size, sweep.axis)
        rows.append([f"{place:,}", *(said(curve.get(place)) for curve in curves.values())])
    rows.append(["power", *(power_of(curve) for curve in curves.values())])
    print(f"\n{QUANTITIES[quantity]}, {sweep.label}:\n")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def said(numbers: list[float] | None) -> str:
    """The number with three digits or more, and its quartiles if there are any."""
    if numbers is None:
        return "-"
    middle, *quartiles = (f"{number:,.{max(0, 2 - int(log10(number)))}f}" for number in numbers)
    return f"{middle} ({' to '.join(quartiles)})" if quartiles else middle


def power_of(curve: dict[int, list[float]]) -> str:
    """The power with which it grows from the last place but one to the last: 1 for in proportion, 2 for the square."""
    if len(curve) < 2:
        return "-"
    (before, (low, *_)), (last, (high, *_)) = list(curve.items())[-2:]
    return f"{log(high / low) / log(last / before):.2f}"


def draw(cells: Cells, sweeps: list[Sweep]) -> Figure:
    """Draw a row for each quantity and a column for each sweep, all logarithmic: a power is a slope."""
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
    """Logarithmic axes, and dotted lines of what grows with a power of the length or the batch."""
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
    axes.tick_params("x", labelbottom=True)  # of those with others below, too
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def main(
    plot: Annotated[Path | None, typer.Option(help="Picture to draw: .png, .svg or .pdf.")] = None,
    longest: Annotated[int, typer.Option(min=LENGTH, help="No sequence has more tokens.")] = 4096,
    rounds: Annotated[int, typer.Option(min=2, help="How often each layer takes its turn at each size.")] = 7,
) -> None:
    """Measure, print tables, and draw."""
    if plot:
        check_picture(plot)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is not to tell of itself between the tables
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
        print(f"- attention, {name}: left out, it {reason}")
    for sweep in sweeps:
        for quantity in QUANTITIES:
            print_table(cells, sweep, quantity)
    if any(size not in measured for measured in cells.values() for size in sizes):
        print(f"\n-: left out, for a step might take more than {MOST_SECONDS} s or {MOST_BYTES / 2**30:.0f} GiB.")
    if plot:
        save_figure(draw(cells, sweeps), plot)


if __name__ == "__main__":
    typer.run(main)
