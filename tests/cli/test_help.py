"""Test that `--help` of every command lists all options and shows an example."""

import re

import pytest
from typer.testing import CliRunner

from trivium_cli import app

TRUST = {"--trust-remote-code"}
FILES = {"--input", "--output", "--batch-size"}
SAMPLING = {"--sample", "--temperature", "--top-k", "--top-p", "--seed", "--beams"}
OPTIONS = {
    "train": {"--resume", "--overwrite"},
    "tune": {"--output", "--trials", "--seed", "--metric", "--direction", "--timeout", "--startup"},
    "recipes": set[str](),
    "prepare": {"--processes", "--overwrite"},
    "data": {"--output", "--max-rows"},
    "average": {"--last"},
    "evaluate": TRUST | {"--split", "--beams", "--batch-size"},
    "translate": TRUST
    | FILES
    | SAMPLING
    | {"--length-penalty", "--max-length", "--engine", "--n-best", "--scores", "--to"}
    | {"--split-sentences", "--language"},
    "backtranslate": TRUST
    | SAMPLING
    | {
        "--tag",
        "--source",
        "--target",
        "--text",
        "--to",
        "--length-penalty",
        "--max-length",
        "--batch-size",
        "--engine",
    },
    "distil": TRUST
    | {"--source", "--target", "--text", "--to", "--beams", "--length-penalty", "--max-length", "--batch-size"}
    | {"--engine"},
    "summarize": TRUST | FILES | {"--beams", "--length-penalty", "--max-length"},
    "generate": TRUST | FILES | SAMPLING | {"--num", "--max-new-tokens"},
    "classify": TRUST | FILES | {"--top-k"},
    "fill-mask": TRUST | FILES | {"--top-k"},
    "tag": TRUST | FILES,
    "answer": TRUST | FILES | {"--context", "--top-k"},
    "split": set[str](),
    "join": {"--cross-attention", "--seed"},
    "convert": {"--to", "--max-shard-size", "--layout", "--quantization"},
    "card": {"--repo-id", "--overwrite"},
    "demo": {"--host", "--port", "--static", "--library", "--open"},
    "serve": {"--pair", "--engine", "--beams", "--host", "--port"}
    | {"--api-keys", "--cors-origin", "--timeout", "--queue"},
    "launch-config": set[str](),
    "plot": set[str](),
    "push": TRUST | {"--private", "--revision", "--message", "--space", "--dry-run"},
}


def help_of(*command: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "120"}).stdout)


def test_help_lists_commands() -> None:
    listed = re.findall(r"^│ ([a-z][\w-]*) ", help_of(), flags=re.MULTILINE)
    assert set(listed) == set(OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_help_lists_options(command: str) -> None:
    listed = set(re.findall(r"^│ +\*? *(--[\w-]+) ", help_of(command), flags=re.MULTILINE))
    assert listed >= OPTIONS[command] | {"--help"}
    assert "trivium " + command in " ".join(help_of(command).split()).partition("Example: ")[2]
