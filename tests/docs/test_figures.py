"""Test that the benchmark plots match the tables of docs/experiments.md."""

import json
from pathlib import Path

import pytest
from pages import DOCS, ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.stem)
def test_plotted_ratios_are_in_the_tables(results: Path) -> None:
    tables = (DOCS / "experiments.md").read_text(encoding="utf-8").replace("*", "").replace("\N{EN DASH}", "-")
    for entry in json.loads(results.read_text(encoding="utf-8"))["ratios"]:
        figure = f"{entry['median']:.2f} ({entry['lower']:.2f}-{entry['upper']:.2f})"
        assert figure in tables, f"{results.name}: {entry}"
