"""Test that the benchmark plots match the tables of the documentation."""

import json
from pathlib import Path

import pytest
from pages import DOCS, ROOT

RESULTS = ROOT / "benchmarks" / "results"
SERVING = RESULTS / "serving.json"


@pytest.mark.parametrize("results", sorted({*RESULTS.glob("*.json")} - {SERVING}), ids=lambda path: path.stem)
def test_plotted_ratios_are_in_the_tables(results: Path) -> None:
    tables = (DOCS / "experiments.md").read_text(encoding="utf-8").replace("*", "").replace("\N{EN DASH}", "-")
    for entry in json.loads(results.read_text(encoding="utf-8"))["ratios"]:
        figure = f"{entry['median']:.2f} ({entry['lower']:.2f}-{entry['upper']:.2f})"
        assert figure in tables, f"{results.name}: {entry}"


def test_plotted_serving_rates_are_in_the_table() -> None:
    lines = (DOCS / "serving.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    listed = {(row[0].lower(), row[1]): row[2:] for row in table if len(row) == 6}
    rows = {
        (row["engine"], str(row["clients"])): row for row in json.loads(SERVING.read_text(encoding="utf-8"))["rows"]
    }
    expected = {
        key: [
            f"{row['per_second']:.1f}",
            f"{row['ratio']:.2f}",
            f"{1000 * row['p50']:.0f}",
            f"{1000 * row['p95']:.0f}",
        ]
        for key, row in rows.items()
    }
    shown = {key: cells for key, cells in listed.items() if key in rows}
    assert len(shown) >= 6
    assert shown == {key: expected[key] for key in shown}
