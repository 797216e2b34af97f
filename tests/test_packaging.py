"""What is installed, and what travels to the Hub."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

ROOT = Path(__file__).parent.parent
PORTABLE = ["modeling", "configuration/configuration_trivium.py", "tokenization/tokenization_trivium.py"]

LOAD = """
import importlib.util, sys, torch
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
assert importlib.util.find_spec("trivium") is None
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float64)
ids = torch.tensor([[5, 6, 7]])
torch.save(model(input_ids=ids, decoder_input_ids=ids).logits, "logits.pt")
"""


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    roots = [ROOT / name for name in ("configuration", "modeling", "recipes", "tokenization", "trivium")]
    found = {init.parent.relative_to(ROOT) for root in roots for init in root.rglob("__init__.py")}
    names = {".".join(path.parts if path.parts[0] == "trivium" else ("trivium", *path.parts)) for path in found}
    assert listed == names


def test_the_wheel_holds_and_imports_everything(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "typings", "*.egg-info", "__pycache__")
    )
    # The build backend is called in this environment: a fresh one would have to be downloaded.
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    code = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import importlib, pkgutil, trivium
for module in pkgutil.walk_packages(trivium.__path__, "trivium."):
    importlib.import_module(module.name)
from trivium.recipe import available_recipes
print(trivium.__file__, available_recipes())
"""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert str(installed) in printed
    assert "numbers" in printed


def test_what_travels_imports_only_its_own_folder() -> None:
    """transformers collects `from .name import x` with a regular expression, and copies the files flat."""
    files = [
        file
        for entry in PORTABLE
        for file in ([ROOT / entry] if entry.endswith(".py") else ROOT.glob("modeling/*.py"))
    ]
    assert len(files) > 10
    for file in files:
        if file.name == "__init__.py" or file.match("modeling/configuration_trivium.py"):
            continue
        for line in file.read_text().splitlines():
            if match := re.match(r"\s*(?:from|import)\s+(\S+)", line):
                module = match[1]
                allowed = re.fullmatch(r"\.\w+", module) or module.split(".")[0] in {
                    *sys.stdlib_module_names, "huggingface_hub", "tokenizers", "torch", "transformers",
                }  # fmt: skip
                # A docstring's line may begin with "from", but not look like an import.
                assert allowed or " import " not in f" {line} ", f"{file.name}: {line}"


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_saved_model_loads_where_the_package_is_absent(tmp_path: Path, place: str) -> None:
    folder, home = tmp_path / "saved", tmp_path / "home"
    model = tiny_model()
    model.save_pretrained(folder)
    assert set(json.loads((folder / "config.json").read_text())["auto_map"]) == {"AutoConfig", "AutoModelForSeq2SeqLM"}
    assert not [file for file in folder.glob("*.py") if "from trivium" in file.read_text()]
    name = str(folder)
    if place == "hub":
        name, revision = "someone/tiny", "a" * 40
        repository = home / "hub" / "models--someone--tiny"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(revision)
        shutil.copytree(folder, repository / "snapshots" / revision)
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-I", "-c", LOAD, name], check=True, env=environment, cwd=tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    expected = model(input_ids=ids, decoder_input_ids=ids).logits
    # To rounding: the loaded model takes torch's fused attention, this one the spelled-out one.
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), expected)


def test_importing_downloads_nothing_and_starts_no_workshop() -> None:
    code = (
        "import sys, trivium; print([n for n in ('datasets', 'evaluate', 'omegaconf', 'typer') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
