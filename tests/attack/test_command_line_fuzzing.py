"""Fuzz the command line: damaged folders and invalid options end in an error message, never in a traceback."""

import random
import shutil
from pathlib import Path

import pytest
from paths import TESTS
from typer.testing import CliRunner

from trivium_cli import app

pytestmark = pytest.mark.slow
OLD_RUN = TESTS / "fixtures" / "run-0.1.0"
CONTENTS = [
    b"",
    b"[]",
    b"{}",
    b"null",
    b"3",
    b'"text"',
    b"{",
    b"\xff\xfe\x00",
    b'{"model_type": 3}',
    b"\x80\x04.",
    b"- a",
]
OPTIONS = [
    *(
        ["--beams", "0"],
        ["--beams", "x"],
        ["--length-penalty", "nan"],
        ["--length-penalty", "inf"],
        ["--max-length", "1"],
    ),
    *(
        ["--batch-size", "-1"],
        ["--temperature", "0"],
        ["--sample", "--top-p", "2"],
        ["--engine", "none"],
        ["--input", "."],
    ),
    *(["--output", "/nowhere/x"], ["--beams", "3"], ["--sample"], []),
]


def test_damaged_folders_and_odd_options(cases: int, rng: random.Random, tmp_path: Path) -> None:
    runner = CliRunner()
    failed = 0
    for case in range(max(20, cases // 5)):  # each case takes most of a second
        folder = Path(shutil.copytree(OLD_RUN, tmp_path / str(case), ignore=shutil.ignore_patterns("checkpoint-*")))
        if rng.random() < 0.8:
            name = rng.choice(["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
            path = folder / rng.choice([name, "model.safetensors", "recipe.yaml"])
            original = bytearray(path.read_bytes())
            kind = rng.random()
            if kind < 0.3:
                path.unlink()
            elif kind < 0.6:
                path.write_bytes(rng.choice(CONTENTS))
            else:
                for _ in range(rng.randint(1, 5)):
                    place = rng.randrange(len(original))
                    original[place : place + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 8))
                path.write_bytes(original)
        command = rng.choice(["translate", "evaluate", "split", "card"])
        arguments = {
            "translate": [str(folder), "half past seven", "--max-length", "4", *rng.choice(OPTIONS)],
            "evaluate": [str(folder), "data.max_test_samples=2", "metrics=[exact_match]"],
            "split": [str(folder), str(tmp_path / f"parts-{case}")],
            "card": [str(folder)],
        }[command]
        result = runner.invoke(app, [command, *arguments], input="half past seven\n")
        shutil.rmtree(folder)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"{command} {arguments} left a traceback") from result.exception
        assert result.exit_code in (0, 1, 2)
        failed += result.exit_code != 0
    assert failed


def test_random_arguments(cases: int, rng: random.Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "translate", "evaluate", "split", "join", "average", "convert", "plot", "card", "launch-config"]
    words += [
        "numbers",
        ".",
        "/",
        "nowhere",
        "--help",
        "--resume",
        "--to",
        "onnx",
        "=",
        "training.output_dir=",
        "\ud800",
    ]
    words += ["model.d_model=-1", "training.max_steps=abc", "data=3", "card.title=${oc.env:HOME}", "--beams", "-1", ""]
    for _ in range(cases):
        arguments = rng.choices(words, k=rng.randint(1, 5))
        if "train" in arguments:
            arguments += ["training.max_steps=abc"]  # never trains
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"{arguments} left a traceback") from result.exception
