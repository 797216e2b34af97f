"""Check the documentation's excerpts, links, commands and printed output; `test_docs_run.py` runs all commands."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
import typer
from pages import KOREAN_WALK, PAGES, ROOT, WALK, Block, anchors, blocks, commands, is_in, links, outputs

from trivium.data import load_data
from trivium.data.arguments import SPLITS
from trivium.recipe import available_recipes, load_recipe
from trivium.training import load_or_build
from trivium_cli import app

OTHER_CALLS = re.compile(r"^(?:\S+=\S+ )*(?:make ([a-z-]+)|python (\S+/\S+\.py)(.*))", re.MULTILINE)
ALL = [block for page in PAGES if page != KOREAN_WALK for block in blocks(page)]


@pytest.mark.parametrize("block", [block for block in ALL if block.source], ids=str)
def test_excerpts_match_source(block: Block) -> None:
    assert block.source
    assert is_in(block.code, block.source.read_text(encoding="utf-8")), f"not in {block.source}"


def test_stale_excerpt_is_detected() -> None:
    source = "class A:\n    def f(self):\n        one()\n        two()\n        three()\n"
    assert is_in("one()\ntwo()\n", source)
    assert is_in("def f(self):\n    one()\n    ...\n    three()\n", source)
    assert not is_in("one()\nthree()\n", source), "a line is missing"
    assert not is_in("two()\n...\none()\n", source), "in another order"
    assert not is_in("def f(self):\none()\n", source), "at another indentation"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for link in links(page):
        address = urlparse(link)
        if address.scheme:
            assert address.scheme == "https", link
            assert "." in address.netloc, link
            continue
        target = (page.parent / unquote(address.path)).resolve() if address.path else page
        assert target.exists(), f"{link} leads nowhere"
        if address.fragment:
            assert unquote(address.fragment) in anchors(target), link


def test_every_page_is_in_table_of_contents() -> None:
    """Every page must be in the table of contents; Sphinx checks that the entries of the table exist."""
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {line.rstrip("*") for line in contents.splitlines()}
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs") and page.name != "index.md":
            assert page.relative_to(ROOT / "docs").with_suffix("").as_posix() in listed, page


def test_korean_walk_has_the_same_code() -> None:
    english, korean = ([(b.language, b.code) for b in blocks(page) if b.language] for page in (WALK, KOREAN_WALK))
    assert english == korean


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "python" and not b.source], ids=str)
def test_python_blocks_parse(block: Block) -> None:
    compile(block.code, str(block), "exec")


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "sh" and any(commands(b.code))], ids=str)
def test_commands_parse(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands must use existing options and recipe fields."""
    monkeypatch.chdir(tmp_path)
    command: Any = typer.main.get_command(app)
    for call in commands(block.code):
        for option, path in pairwise(call):
            if option in ("--input", "--context"):
                Path(path).parent.mkdir(exist_ok=True)
                Path(path).touch()
        name, subcommand, rest = command.resolve_command(command.make_context("trivium", [*call]), [*call])
        params = subcommand.make_context(name, rest).params
        if name in ("train", "evaluate"):
            recipe = Path(params.get("recipe") or params["model"]).name
            recipe = recipe if recipe in available_recipes() else "multi30k"
            needed = [] if recipe == "numbers" else [f"data.{split}=some/file" for split in SPLITS]
            load_recipe(recipe, [*needed, *(params["overrides"] or [])])


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "sh" and OTHER_CALLS.search(b.code)], ids=str)
def test_make_targets_and_script_options_exist(block: Block) -> None:
    for target, script, options in OTHER_CALLS.findall(block.code.replace("\\\n", " ")):
        if target:
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target
        else:
            text = (ROOT / script).read_text()
            for option in re.findall(r"--[\w-]+", options):
                argument = option.removeprefix("--").replace("-", "_")
                assert f'"{option}"' in text or f" {argument}: " in text, f"{script} has no {option}"


# --- The walk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def untrained_run(tmp_path: Path) -> Path:
    """Create an untrained `runs/numbers` with the model sizes and the tokenizer of `make demo`."""
    recipe = load_recipe("numbers")
    model, tokenizer = load_or_build(recipe, load_data(recipe.data)["train"])
    model.generation_config.update(max_new_tokens=8)
    model.save_pretrained(tmp_path / "runs" / "numbers")
    tokenizer.save_pretrained(tmp_path / "runs" / "numbers")
    return tmp_path


def test_walk_output_matches(untrained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(untrained_run)
    compared = 0
    for block, printed, shown, of_a_trained_model in outputs(WALK):
        if not of_a_trained_model:
            assert printed == shown, block
            compared += 1
    assert compared >= 15
