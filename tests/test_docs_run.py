"""Every command and block of Python in the documentation runs, in a few steps; and the pages are built.

What is left out says so where it stands: a command that needs the network (`# ... network ...`), or Python with a
`...` to be filled in. Benchmarks are left out, and what other tests run: `make`, the README's Python, `clients.md`.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, PAGES, ROOT, WALK, blocks, outputs

from trivium.data import numbers_corpus

pytestmark = pytest.mark.slow

IN_SHORT = (
    "data.max_train_samples=300 data.max_validation_samples=8 data.max_test_samples=8 "
    "training.save_strategy=steps training.save_steps=1 training.eval_strategy=steps training.eval_steps=2 "
    "training.warmup_steps=1 training.report_to=none"
)
# Stands before the real one in the PATH, and makes every training a short one.
SHORT_TRIVIUM = f"""#!/bin/bash
steps=4
[[ " $* " == *" --resume "* ]] && steps=6
[ "$1" = train ] && set -- "$@" {IN_SHORT} training.max_steps=$steps
exec {sys.executable} -m trivium.cli "$@"
"""
MADE_BEFORE = """
trivium train numbers
trivium train multi30k data.train=FOLDER/train data.validation=FOLDER/val data.test=FOLDER/val
trivium train shakespeare data.train=train.txt data.validation=validation.txt
trivium train shakespeare-gpt2 data.train=train.txt data.validation=validation.txt
"""
NOT_RUN = re.compile(r"#.*network|^(make|pip|git) |\bbenchmarks/")
TO_BE_FILLED_IN = re.compile(r"[(,] ?\.\.\.|^ *\.\.\.$", re.MULTILINE)
PAGES_TO_RUN = [
    page for page in PAGES if page not in (WALK, DOCS / "ko" / "walk.md", DOCS / "clients.md", DOCS / "results.md")
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bin")
    (folder / "trivium").write_text(SHORT_TRIVIUM)
    (folder / "trivium").chmod(0o755)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **offline, "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def shell(script: str, environment: dict[str, str], folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def made_before(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages take for granted: runs of the recipes, and files of one's own."""
    folder = tmp_path_factory.mktemp("made")
    pairs = numbers_corpus(300, 20, 20)
    names = {"train": ("FOLDER/train", "corpus/train"), "validation": ("FOLDER/val", "corpus/val"), "test": ()}
    for split, paths in names.items():
        rows = pairs[split]
        for path in (*paths, *(("FOLDER/test_2016_flickr", "corpus/test", "letters") if split == "test" else ())):
            (folder / path).parent.mkdir(exist_ok=True)
            for ending, column in (("en", "source"), ("de", "target")):
                (folder / f"{path}.{ending}").write_text("\n".join(rows[column]) + "\n")
        (folder / f"{split}.txt").write_text("\n".join(rows["target"]) + "\n")
        labelled = [f"{text}\t{'date' if ' of ' in text else 'other'}" for text in rows["source"]]
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *labelled]) + "\n")
    shell(MADE_BEFORE, environment, folder)
    return folder


def scripts(page: Path) -> Iterator[tuple[str, str]]:
    """The languages and codes of what is to be run, a page's in their order."""
    for block in blocks(page):
        if block.language == "sh" and re.search(r"^\s*(\w+=\S+ )*(trivium|echo|python|head|tail) ", block.code, re.M):
            lines = block.code.replace("\\\n", " ").splitlines()
            yield "sh", "\n".join(line for line in lines if not NOT_RUN.search(line))
        elif block.language == "python" and page.name != "README.md" and not TO_BE_FILLED_IN.search(block.code):
            yield "python", block.code


@pytest.mark.parametrize("page", [page for page in PAGES_TO_RUN if [*scripts(page)]], ids=lambda page: page.stem)
def test_a_page_runs(
    page: Path, made_before: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(made_before, tmp_path / "here")
    monkeypatch.chdir(folder)
    variables: dict[str, Any] = {}
    for language, code in scripts(page):
        if language == "sh":
            shell(code, environment, folder)
        else:
            exec(compile(code, str(page), "exec"), variables)


def test_the_walk_prints_what_it_says_of_a_trained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another training gives other digits, but the same words."""
    command = [sys.executable, "-m", "trivium.cli", "train", "numbers", "training.report_to=none"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    for block, printed, shown, _ in outputs(WALK):
        if block.code.startswith("states ="):  # second and third choices are close
            printed, shown = (re.sub(r"^(\S+ \S+).*$", r"\1", text, flags=re.M) for text in (printed, shown))
        printed, shown = (re.sub(r"-?\d+\.\d\d", "N", text) for text in (printed, shown))
        assert printed.split() == shown.split(), block


def test_the_pages_are_built(tmp_path: Path) -> None:
    """Without a warning: each in the table of contents, every reference found."""
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cdn." not in (tmp_path / "walk.html").read_text(), "a page must need nothing from the network"
