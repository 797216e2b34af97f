"""Measure throughput and latency of `trivium serve` for each engine, with an increasing number of clients.

    python benchmarks/serving.py runs/numbers --results benchmarks/results/serving.json --picture serving.png

Each engine is served by a separate process on loopback. Every client sends one sentence of the corpus `numbers`, waits
for its translation, and sends the next one. Every round measures all numbers of clients in turn. The benchmark reports
requests per second (the median over the rounds) and the 50th and 95th percentiles of the latency over all requests.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from timing import environment

from trivium.data.numbers import numbers_corpus
from trivium.inspection.drawing import MARKERS, SERIES, save_figure

START_SECONDS = 900
LATENCY_TICKS = (20, 50, 100, 200, 500, 1000)  # ms


def start(
    folder: Path, engine: str, arguments: Sequence[str] = (), log: Path = Path(os.devnull)
) -> tuple["subprocess.Popen[bytes]", str]:
    """Start a service on a free port and wait until it answers; return the process and its address.

    Args:
        folder: Folder of a saved translation model.
        engine: Name of the engine.
        arguments: Further arguments of `trivium serve`.
        log: File to write the log to.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = ["--pair", "en:de", "--engine", engine, "--port", str(port), *arguments]
    command = [sys.executable, "-m", "trivium_cli", "serve", str(folder), *options]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health").raise_for_status()
            return process, url
        except httpx.TransportError:
            time.sleep(0.2)
    process.terminate()  # not killed, so that it stops its workers
    raise RuntimeError(f"The service of {folder} with {engine} has not started.")


async def load(url: str, texts: list[str], clients: int, seconds: float) -> list[float]:
    """Send texts from concurrent clients for the given duration; return the latency of each request in seconds."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def run(client: httpx.AsyncClient, first: int) -> None:
        index = first
        while time.perf_counter() < end:
            body = {"q": texts[index % len(texts)], "source": "en", "target": "de"}
            sent = time.perf_counter()
            response = await client.post(f"{url}/translate", json=body)
            response.raise_for_status()
            latencies.append(time.perf_counter() - sent)
            index += clients

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=clients)) as client:
        await asyncio.gather(*(run(client, first) for first in range(clients)))
    return latencies


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Plot throughput and latency against the number of clients."""
    with rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(7.5, 3.2), layout="constrained")
        throughput, latency = figure.subplots(1, 2)
        for engine, color, marker in zip(dict.fromkeys(row["engine"] for row in rows), SERIES, MARKERS, strict=False):
            own = [row for row in rows if row["engine"] == engine]
            clients = [row["clients"] for row in own]
            throughput.plot(clients, [row["per_second"] for row in own], color=color, marker=marker, label=engine)
            for name, style in (("p50", "-"), ("p95", "--")):
                values = [row[name] * 1000 for row in own]
                latency.plot(clients, values, style, color=color, marker=marker, label=f"{engine}, {name}")
        throughput.set(title="Requests per second", xlabel="clients", xscale="log", ylim=(0, None))
        latency.set(title="Latency in ms", xlabel="clients", xscale="log", yscale="log")
        latency.set_yticks(LATENCY_TICKS, list(map(str, LATENCY_TICKS)))
        ticks = sorted({row["clients"] for row in rows})
        for axes in (throughput, latency):
            axes.set_xticks(ticks, list(map(str, ticks)))
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
    return figure


def main() -> None:
    """Run the benchmark and print a table; optionally, also write the results as JSON and plot them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a saved translation model")
    parser.add_argument("--engines", nargs="+", default=["torch", "ctranslate2"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="per measurement")
    parser.add_argument("--results", type=Path, help="JSON output")
    parser.add_argument("--picture", type=Path, help="PNG output")
    options = parser.parse_args()
    texts = numbers_corpus()["test"]["source"][:512]
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    latencies: dict[tuple[str, int], list[float]] = defaultdict(list)
    services = {engine: start(options.model, engine) for engine in options.engines}
    try:
        for _ in range(options.rounds):
            for clients in options.clients:
                for engine, (_process, url) in services.items():
                    begin = time.perf_counter()
                    taken = asyncio.run(load(url, texts, clients, options.seconds))
                    rates[engine, clients].append(len(taken) / (time.perf_counter() - begin))
                    latencies[engine, clients] += taken
    finally:
        for process, _ in services.values():
            process.terminate()
            process.wait()
    rows: list[dict[str, Any]] = []
    for engine in options.engines:
        for clients in options.clients:
            p50, p95 = np.quantile(latencies[engine, clients], [0.5, 0.95])
            ratio = np.median(np.array(rates[engine, clients]) / np.array(rates[engine, options.clients[0]]))
            rows.append(
                {
                    "engine": engine,
                    "clients": clients,
                    "per_second": float(np.median(rates[engine, clients])),
                    "ratio": float(ratio),
                    "p50": float(p50),
                    "p95": float(p95),
                }
            )
    table = Table("engine", "clients", "requests/s", "ratio", "p50, ms", "p95, ms", title=environment())
    for row in rows:
        times = [f"{row[name] * 1000:.0f}" for name in ("p50", "p95")]
        table.add_row(row["engine"], str(row["clients"]), f"{row['per_second']:.1f}", f"{row['ratio']:.2f}", *times)
    Console().print(table)
    if options.results:
        options.results.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=2) + "\n")
    if options.picture:
        save_figure(draw(rows), options.picture)


if __name__ == "__main__":
    main()
