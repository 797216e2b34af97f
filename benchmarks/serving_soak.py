"""Send thousands of requests, a share of them hostile, to `trivium serve`, and compare all answers.

    python benchmarks/serving_soak.py runs/numbers --engines ctranslate2 torch --requests 10000

Each engine is served by a separate process on loopback. The translations of 500 sentences of the corpus `numbers` are
computed beforehand with `trivium.translation.translate`. Concurrent clients then request them as JSON, lists, forms
and HTML; the hostile requests are those of `hostile.py`. The benchmark counts answers that differ, unexpected statuses
and lost requests, and samples the resident memory of the service. With `--workers` and `--kills`, it also kills
workers with SIGKILL, and reports the lost requests, the longest time without an answer, and the times until the
supervisor has noticed and the replacement is ready.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from hostile import ATTACKS, PAIR, Attack
from timing import environment

WARM_UP = 0.2  # share of the requests after which memory should not grow
TEXTS = 500
READY = "Application startup complete"  # in the log, once per worker
SHOWN = 5  # details of this many problems are kept


@dataclass
class Report:
    """Results of a run.

    Attributes:
        statuses: Number of answers by status.
        wrong: Answers that differ from the expected translations.
        unexpected: Statuses that a request should not have.
        lost: Requests without an answer.
        answered: Time of each answer to a regular request.
        memory: Number of answers so far and resident memory in bytes, once per second.
    """

    statuses: Counter[int | None] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return the counts, and how the memory has grown since the warm-up."""
        row: dict[str, Any] = {
            "requests": sum(self.statuses.values()) + len(self.lost),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items(), key=str)},
            **{name: len(getattr(self, name)) for name in ("wrong", "unexpected", "lost")},
            "problems": [*self.wrong[:SHOWN], *self.unexpected[:SHOWN], *self.lost[:SHOWN]],
        }
        total = self.memory[-1][0] if self.memory else 0
        counts, sizes = np.array([sample for sample in self.memory if sample[0] >= WARM_UP * total]).reshape(-1, 2).T
        if len(sizes) > 2:
            mebibytes = sizes / 2**20
            slope = float(np.polyfit(counts / 1000, mebibytes, 1)[0])
            first, last = (float(np.median(part)) for part in (mebibytes[:5], mebibytes[-5:]))
            row |= {"warm_mib": first, "end_mib": last, "max_mib": float(mebibytes.max()), "mib_per_1000": slope}
            row["curve_mib"] = [[int(counts[i]), round(float(mebibytes[i]), 1)] for i in range(0, len(counts), 10)]
        return row


async def soak(
    url: str,
    expected: Mapping[str, str],
    requests: int,
    *,
    hostile: float = 0.05,
    attacks: Sequence[Attack] = ATTACKS,
    clients: int = 32,
    memory: Callable[[], int] = lambda: 0,
) -> Report:
    """Send requests from concurrent clients.

    Args:
        url: Address of the service, without a slash at the end.
        expected: Translations by text.
        requests: Number of requests.
        hostile: Share of hostile requests.
        attacks: Hostile requests, sent in turn.
        clients: Number of concurrent clients.
        memory: Function that returns the memory of the service in bytes.
    """
    generator, report = random.Random(0), Report()
    count = round(requests * hostile)
    kinds: list[Attack | None] = [attacks[i % len(attacks)] for i in range(count)] + [None] * (requests - count)
    generator.shuffle(kinds)
    waiting = iter(kinds)

    async def run(client: httpx.AsyncClient) -> None:
        for attack in waiting:
            try:
                if attack is None:
                    await _request(url, client, expected, generator, report)
                    continue
                status = await attack.send(url, client)
                report.statuses[status] += 1
                if status not in attack.statuses:
                    report.unexpected.append(f"{attack.name}: {status}")
            except (httpx.TransportError, OSError, ValueError) as error:
                report.lost.append(f"{attack.name if attack else 'translation'}: {error!r}")

    async def sample() -> None:
        while True:
            report.memory.append((sum(report.statuses.values()), memory()))
            await asyncio.sleep(1)

    sampler = asyncio.create_task(sample())
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=clients)) as client:
        await asyncio.gather(*(run(client) for _ in range(clients)))
    sampler.cancel()
    return report


async def _request(
    url: str, client: httpx.AsyncClient, expected: Mapping[str, str], generator: random.Random, report: Report
) -> None:
    """Request the translation of some texts in a random format, and compare the answer."""
    texts = generator.sample(list(expected), generator.randint(1, 4))
    translations = [expected[text] for text in texts]
    answer: str | list[str] = translations[0]
    match generator.choice(["json", "list", "form", "query", "html"]):
        case "json":
            request: dict[str, Any] = {"json": {"q": texts[0], **PAIR}}
        case "list":
            request, answer = {"json": {"q": texts, **PAIR}}, translations
        case "form":
            request = {"data": {"q": texts[0], **PAIR}}
        case "query":
            request = {"params": {"q": texts[0], **PAIR}}
        case _:
            request = {"json": {"q": "".join(f"<p>{escape(text)}</p>" for text in texts), "format": "html", **PAIR}}
            answer = "".join(f"<p>{escape(text, quote=False)}</p>" for text in translations)
    response = await client.post(f"{url}/translate", **request)
    report.statuses[response.status_code] += 1
    if response.status_code != 200:
        report.unexpected.append(f"translation: {response.status_code} {response.text[:200]}")
    elif response.json() != {"translatedText": answer}:
        report.wrong.append(f"{request}: {response.json()}, expected {answer}")
    report.answered.append(time.monotonic())


async def kill_workers(log: Path, workers: int, kills: int, pause: float) -> dict[str, list[float]]:
    """Kill the oldest worker several times; return the seconds until each death is noticed, and each worker replaced.

    Args:
        log: Log of the service.
        workers: Number of workers that must be ready before the first kill.
        kills: Number of kills.
        pause: Seconds before each kill.
    """
    seconds: dict[str, list[float]] = {"noticed_seconds": [], "replaced_seconds": []}
    for number in range(kills):
        while (ready := log.read_text().count(READY)) < workers:
            await asyncio.sleep(0.1)
        await asyncio.sleep(pause)
        pid = re.findall(r"Started server process \[(\d+)\]", log.read_text())[number]
        os.kill(int(pid), signal.SIGKILL)
        start = time.monotonic()
        while f"[{pid}] died" not in log.read_text():
            await asyncio.sleep(0.1)
        seconds["noticed_seconds"].append(time.monotonic() - start)
        while log.read_text().count(READY) == ready:
            await asyncio.sleep(0.1)
        seconds["replaced_seconds"].append(time.monotonic() - start)
    return seconds


def memory_of(pid: int) -> int:
    """Return the resident memory of a process and its descendants in bytes."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def translations_of(folder: Path, engine: str) -> dict[str, str]:
    """Translate the sentences with the engine, without the service."""
    from trivium.data.numbers import numbers_corpus
    from trivium.translation import translate
    from trivium_cli.translators import load_translator

    texts = list(dict.fromkeys(numbers_corpus()["test"]["source"]))[:TEXTS]
    model, tokenizer = load_translator(folder, engine)
    return dict(zip(texts, translate(model, tokenizer, texts, num_beams=1), strict=True))


async def measure(
    process_id: int, url: str, log: Path, expected: Mapping[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """Send the requests to a running service, kill workers meanwhile, and summarize the results."""
    killer = asyncio.create_task(kill_workers(log, options.workers, options.kills, options.pause))
    start = time.monotonic()
    report = await soak(
        url,
        expected,
        options.requests,
        hostile=options.hostile,
        clients=options.clients,
        memory=lambda: memory_of(process_id),
    )
    row = {"seconds": time.monotonic() - start, **report.summary()}
    seconds = await killer
    if options.kills:
        gaps = np.diff([start, *sorted(report.answered)])
        row |= {**seconds, "longest_gap_seconds": float(gaps.max())}
    return row


def main() -> None:
    """Run the benchmark and print the results as JSON."""
    from serving import start

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a translation model trained on the corpus `numbers`")
    parser.add_argument("--engines", nargs="+", default=["ctranslate2", "torch"])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--hostile", type=float, default=0.05, help="share of hostile requests")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--timeout", type=float, default=30, help="timeout of the service in seconds")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0, help="number of workers to kill with SIGKILL")
    parser.add_argument("--pause", type=float, default=10, help="seconds before each kill")
    parser.add_argument("--results", type=Path, help="JSON output")
    options = parser.parse_args()
    rows = []
    for engine in options.engines:
        expected = translations_of(options.model, engine)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            arguments = ["--timeout", str(options.timeout)]
            if options.workers > 1:
                arguments += ["--workers", str(options.workers)]
            process, url = start(options.model, engine, arguments, log)
            try:
                row = {"engine": engine, **asyncio.run(measure(process.pid, url, log, expected, options))}
                row["metrics_5xx"] = re.findall(
                    r'trivium_requests_total.*status="5.*', httpx.get(f"{url}/metrics").text
                )
            finally:
                process.terminate()
                process.wait()
            row["errors_in_log"] = re.findall(r".* ERROR .*|.*Traceback.*", log.read_text())
        print(json.dumps(row, indent=2, ensure_ascii=False), flush=True)
        rows.append(row)
    if options.results:
        content = json.dumps({"environment": environment(), "rows": rows}, indent=2, ensure_ascii=False)
        options.results.write_text(content + "\n")


if __name__ == "__main__":
    main()
