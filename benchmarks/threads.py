"""Time training steps of a small model under each OpenMP wait policy.

    python benchmarks/threads.py --busy 0 1

In every round, each policy trains in a separate process, in rotating order, next to `--busy` busy processes. Reported
are the medians of the rounds' median steps, and the range over the rounds.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import track
from rich.table import Table

POLICIES = {
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "2 threads, passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "1 thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = "while True: pass"
TRAINING = """
import sys, time
from statistics import median
import torch
from trivium import TriviumForConditionalGeneration, preset_config

torch.manual_seed(0)
sizes = {"vocab_size": 600, "d_model": 128, "ffn_dim": 512, "encoder_layers": 2, "decoder_layers": 2}
model = TriviumForConditionalGeneration(preset_config("transformer-base", num_attention_heads=4, **sizes))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
ids, labels = torch.randint(10, 600, (64, 20)), torch.randint(10, 600, (64, 20))
taken = []
while len(taken) < 5 or sum(taken) < float(sys.argv[1]):
    start = time.perf_counter()
    model(input_ids=ids, labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    taken.append(time.perf_counter() - start)
print(median(taken[2:]))
"""


def step_seconds(policy: dict[str, str], busy: int, seconds: float) -> float:
    """Return the median step time in seconds under a policy, next to `busy` busy processes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | policy
    busy_processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        command = [sys.executable, "-c", TRAINING, str(seconds)]
        return float(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout)
    finally:
        for process in busy_processes:
            process.kill()
            process.wait()


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="training time per process, but at least 5 steps")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1], help="numbers of busy processes")
    options = parser.parse_args()
    cases = [(busy, policy) for busy in options.busy for policy in POLICIES]
    taken: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    for turn in track(range(options.rounds), "rounds", console=Console(stderr=True)):
        first = turn % len(cases)
        for busy, policy in cases[first:] + cases[:first]:
            taken[busy, policy].append(step_seconds(POLICIES[policy], busy, options.seconds))
    table = Table("busy processes", "policy", "ms/step", "range")
    for (busy, policy), seconds in taken.items():
        row = [f"{1000 * value:.0f}" for value in (median(seconds), min(seconds), max(seconds))]
        table.add_row(str(busy), policy, row[0], f"{row[1]} - {row[2]}")
    Console().print(table)
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    load = f"machine load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
    print(f"{options.rounds} rounds, {processor.split(':')[1].strip()}, {load}")


if __name__ == "__main__":
    main()
