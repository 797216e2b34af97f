"""A process where Trivium is not installed, nor anything else that a saved folder must do without."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Accelerate serves transformers where a model is put on several devices; to load and to generate nothing needs it.
ABSENT = [
    "trivium", "accelerate", "datasets", "evaluate", "matplotlib", "omegaconf", "peft",
    "rich", "sacrebleu", "sentencepiece", "sklearn", "tensorboard", "trl", "typer",
]  # fmt: skip

PROLOGUE = """
from __future__ import annotations  # of the functions that follow, nothing else is known here

import importlib.util, json, sys

arguments, ABSENT = json.loads(sys.argv[1])

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
assert not any(importlib.util.find_spec(name) for name in ABSENT)
import torch, transformers
from pathlib import Path
from transformers import AutoConfig, AutoTokenizer
"""


def run_without_trivium(
    program: str,
    *arguments: Any,
    folder: Path,
    functions: Sequence[Callable] = (),
    present: Sequence[str] = (),
    **environment: str,
) -> None:
    """Run `program` in a process of its own, offline.

    Args:
        program: The code; it finds `arguments` as the list of that name.
        arguments: What JSON can write.
        folder: Where it runs, and where its caches are.
        present: Packages that are there all the same, for what the program uses needs them.
        functions: Functions of the caller's that the program calls, too.
        environment: Variables to add, such as `HF_HOME`.
    """
    parts = [PROLOGUE, *map(inspect.getsource, functions), program]
    absent = [name for name in ABSENT if name not in present]
    subprocess.run(
        [sys.executable, "-I", "-c", "\n".join(parts), json.dumps([arguments, absent])],
        check=True,
        cwd=folder,
        env={
            **os.environ,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **environment,
        },
        stdin=subprocess.DEVNULL,  # a question whether to trust is answered by no one
    )


def put_into_cache(home: Path, repo_id: str, snapshots: dict[str, Path], **refs: str) -> None:
    """Make a cache as huggingface_hub does: for `repo_id` the snapshots by their commit, and names for some."""
    repository = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    for commit, folder in snapshots.items():
        for file in folder.iterdir():
            target = repository / "snapshots" / commit / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    for name, commit in refs.items():
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
