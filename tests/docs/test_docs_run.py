"""Run every command and Python block of the documentation, with shortened training runs, and build the pages.

The pages mark the blocks that are skipped: commands that need the network contain `# ... network ...`, and Python to
be filled in contains `...`. Benchmarks are skipped as well, and so are `make`, the README, `clients.md` and
`extend.md`, which other tests cover.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from pages import CLIENTS, EXTEND, KOREAN_WALK, PAGES, ROOT, WALK, Block, blocks, commands, outputs
from typer.testing import CliRunner

from trivium.data import numbers_corpus
from trivium.translation import translate
from trivium_cli import app

pytestmark = [pytest.mark.trains, pytest.mark.subprocess, pytest.mark.slow]

# Overrides that shorten every training run.
IN_SHORT = [
    *(f"data.max_{split}_samples={rows}" for split, rows in (("train", 300), ("validation", 8), ("test", 8))),
    *(
        "training.save_strategy=steps",
        "training.save_steps=1",
        "training.eval_strategy=steps",
        "training.eval_steps=2",
    ),
    *("training.warmup_steps=1", "training.report_to=none"),
]
MADE_BEFORE = """
trivium train numbers
trivium train multi30k data.train=FOLDER/train data.validation=FOLDER/val data.test=FOLDER/val
trivium train shakespeare data.train=train.txt data.validation=validation.txt
trivium train shakespeare-gpt2 data.train=train.txt data.validation=validation.txt
"""
NETWORK = re.compile(r"^(?:.*\\\n)*.*#.*\bnetwork\b.*$", re.MULTILINE)  # with its continuation lines
TO_BE_FILLED_IN = re.compile(r"[(,] ?\.\.\.|^ *\.\.\.$", re.MULTILINE)


def run_commands(code: str) -> None:
    """Run all `trivium` commands in order; those that read standard input get one line."""
    for call in commands(NETWORK.sub("", code)):
        short = []
        if call[0] in ("demo", "serve"):  # serves until interrupted; tests/demo and tests/serving run it
            continue
        if call[0] == "prepare":
            short = ["--overwrite", *IN_SHORT]
        if call[0] == "train":
            goes_on = "--resume" in call
            short = (
                [*IN_SHORT, "training.max_steps=8"] if goes_on else ["--overwrite", *IN_SHORT, "training.max_steps=6"]
            )
        with translating_something() if call[0] in ("backtranslate", "distil") else nullcontext():
            result = CliRunner().invoke(app, [*call, *short], input="three point one four\n")
        assert result.exit_code == 0, f"{call}: {result.output[-3000:]} {result.exception!r}"


@contextmanager
def translating_something() -> Iterator[None]:
    """Replace empty translations, since a model after six steps may have no others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "trivium.translation.translate",
            lambda *args, **options: (text or "eins" for text in translate(*args, **options)),
        )
        yield


def runs(block: Block) -> bool:
    """Return True if the block can be run here."""
    if block.language == "python":
        return block.page.name != "README.md" and not block.source and not TO_BE_FILLED_IN.search(block.code)
    return block.language == "sh" and any(commands(NETWORK.sub("", block.code)))


PAGES_TO_RUN = {
    page: [block for block in blocks(page) if runs(block)]
    for page in PAGES
    if page not in (WALK, KOREAN_WALK, CLIENTS, EXTEND) and page.name != "results.md"
}


@pytest.fixture(scope="module")
def prepared_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the folders and files that the pages presuppose: runs of the recipes, and user files."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "FOLDER").mkdir()
    files = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
    for split, pairs in numbers_corpus(300, 20, 20).items():
        for ending, column in (("en", "source"), ("de", "target")):
            (folder / "FOLDER" / f"{files[split]}.{ending}").write_text("\n".join(pairs[column]) + "\n")
        (folder / f"{split}.txt").write_text("\n".join(pairs["target"]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_commands(MADE_BEFORE)
    for name in "abc":
        shutil.copytree(folder / "runs" / "numbers", folder / "runs" / name)
    return folder


@pytest.mark.parametrize("page", [page for page, found in PAGES_TO_RUN.items() if found], ids=lambda page: page.stem)
def test_page_runs(page: Path, prepared_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shutil.copytree(prepared_files, tmp_path / "here"))
    variables: dict[str, Any] = {}
    for block in PAGES_TO_RUN[page]:
        if block.language == "python":
            exec(compile(block.code, str(block), "exec"), variables)
        else:
            run_commands(block.code)


def test_walk_output_of_trained_model_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed numbers depend on the training run, so only the words are compared."""
    command = [sys.executable, "-m", "trivium_cli", "train", "numbers", "training.report_to=none"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    for block, printed, shown, _ in outputs(WALK):
        if block.code.startswith("states ="):  # The second and third candidates have nearly equal scores.
            printed, shown = (re.sub(r"^(\S+ \S+).*$", r"\1", text, flags=re.MULTILINE) for text in (printed, shown))
        printed, shown = (re.sub(r"-?\d+\.\d\d", "N", text) for text in (printed, shown))
        assert printed.split() == shown.split(), block


def test_pages_build(tmp_path: Path) -> None:
    """Sphinx must not warn, so every page is in the table of contents and every reference resolves."""
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cdn." not in (tmp_path / "walk.html").read_text(), "a page must need nothing from the network"
