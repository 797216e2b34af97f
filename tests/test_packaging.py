"""Contents of the installed package."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.subprocess


def test_all_packages_are_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    top_level = {"trivium", "trivium_cli"}
    roots = [ROOT / name for name in ("configuration", "modeling", "recipes", "tokenization", *top_level)]
    found = [init.parent.relative_to(ROOT).parts for root in roots for init in root.rglob("__init__.py")]
    assert listed == {".".join(parts if parts[0] in top_level else ("trivium", *parts)) for parts in found}


@pytest.mark.slow
def test_wheel_is_complete_and_importable(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "typings", "*.egg-info", "__pycache__")
    )
    # Build in this environment: an isolated build would have to download its backend.
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    code = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import importlib.resources, pkgutil, trivium, trivium_cli
for module in pkgutil.walk_packages(trivium.__path__, "trivium."):
    if not module.name.endswith("__main__"):  # Importing it would run it.
        importlib.import_module(module.name)
from trivium.recipe import available_recipes
from trivium.training.distributed import launch_configs
print(trivium.__file__, available_recipes(), list(launch_configs()))
print(importlib.resources.files("trivium.hub").joinpath("hub_card.md").read_text())
assert all(importlib.resources.files("trivium.demo").joinpath(name).is_file() for name in ("page.css", "page.js"))
page = importlib.resources.files("trivium.interop").joinpath
assert all(page(f"static_page.{suffix}").is_file() for suffix in ("css", "html", "js"))
"""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert str(installed) in printed
    assert "'numbers'" in printed
    assert "'fsdp2'" in printed
    assert (ROOT / "hub_card.md").read_text() in printed
