"""Run the parts of `benchmarks/gpu.py` on a CPU."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("gpu").main


def write_data(folder: Path) -> list[str]:
    """Write sentence pairs and a text, and return the options that name them."""
    folder.mkdir()
    subjects = [f"{word} {number} boats" for number in range(75) for word in ("the", "a", "our")]
    sentences = "".join(f"{subject} lie in {place}\n" for subject in subjects for place in ("rows", "the sun", "port"))
    for name in ("train", "val", "test_2016_flickr"):
        for language in ("en", "de"):
            (folder / f"{name}.{language}").write_text(sentences)
    (folder / "train.txt").write_text(sentences)
    (folder / "val.txt").write_text(sentences[:2000])
    return ["--data", str(folder), "--text", str(folder)]


def test_finished_parts_are_skipped(gpu: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--smoke", "--results", str(tmp_path), "--parts", "check-attention"]
    assert gpu(command) == 0
    assert "finished before" not in capsys.readouterr().out
    result = json.loads((tmp_path / "check-attention.json").read_text())
    assert result["rows"]
    assert all(row["ok"] for row in result["rows"])
    assert gpu(command) == 0
    assert "check-attention: finished before" in capsys.readouterr().out
    table = (tmp_path / "results.md").read_text()
    assert "| beside a fully masked row, sdpa |" in table
    assert "smoke test" in table


def test_failed_parts_are_run_again(gpu: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--smoke", "--results", str(tmp_path), "--parts", "translate", "check-generation"]
    assert gpu(command) == 1  # without data
    assert "--data is not set" in capsys.readouterr().err
    assert not (tmp_path / "translate.json").exists()
    assert (tmp_path / "check-generation.json").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_gpu_smoke_is_required(gpu: Callable, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        gpu(["--results", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.trains
@pytest.mark.subprocess
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_all_parts_run(gpu: Callable, tmp_path: Path) -> None:
    options = write_data(tmp_path / "data")
    assert gpu(["--smoke", "--results", str(tmp_path / "results"), *options]) == 0
    results = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")]
    assert len(results) == len(import_module("gpu").PARTS)
    assert all(row.get("ok", True) and row.get("same tokens", True) for result in results for row in result["rows"])
