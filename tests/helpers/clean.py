"""Run programs in processes without Trivium and other packages on which a saved folder must not depend.

Importing torch and transformers takes seconds, so most programs run in a fork of a process that has imported them.
That process is isolated (`python -I`) and hides the packages before its first import, as a fresh one does.
"""

import atexit
import functools
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# transformers needs Accelerate only to dispatch a model over several devices, not to load it or to generate.
ABSENT = [
    "trivium", "accelerate", "datasets", "evaluate", "matplotlib", "omegaconf", "peft",
    "rich", "sacrebleu", "sentencepiece", "sklearn", "tensorboard", "trl", "typer",
]  # fmt: skip

HIDE = """
import importlib.util, json, os, sys, traceback

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
assert not any(importlib.util.find_spec(name) for name in ABSENT)

def run(job):
    os.chdir(job["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # A prompt for trust reads end of file.
    os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    try:
        exec(job["program"], {"__name__": "__main__", "arguments": job["arguments"]})
        assert not [name for name in sys.modules if name.split(".")[0] in ABSENT]
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0
"""

FRESH = f"""
import json, sys
job = json.load(sys.stdin)
ABSENT = job["absent"]
{HIDE}
sys.exit(run(job))
"""

SERVE = f"""
ABSENT = {ABSENT}
{HIDE}
import torch, transformers, transformers.dynamic_module_utils, transformers.generation, transformers.modeling_layers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, pipeline

for line in sys.stdin:
    if (child := os.fork()) == 0:
        os._exit(run(json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

IMPORTS = """
from __future__ import annotations  # The prepended functions lack the imports of their annotations.

import json, sys
from pathlib import Path

import torch, transformers
from transformers import AutoConfig, AutoTokenizer
"""


def run_without_trivium(
    program: str,
    *arguments: Any,
    folder: Path,
    functions: Sequence[Callable] = (),
    present: Sequence[str] = (),
    fresh: bool = False,
    **environment: str,
) -> None:
    """Run `program` offline in a separate process, with `folder` as working directory and `folder/home` as cache.

    Args:
        program: Source code; it reads its arguments from the list `arguments`.
        arguments: JSON-serializable values.
        folder: Working directory.
        functions: Functions that the program calls; their source is prepended.
        present: Packages to leave visible because the program's other packages need them. Implies `fresh`.
        fresh: Start a new interpreter rather than a fork of one that has imported torch and transformers.
        environment: Variables to add, such as `HF_ENDPOINT`. Implies `fresh`: libraries read them on import.

    Raises:
        AssertionError: The program failed; the message contains its output.
    """
    home, output = folder / "home", folder / "output.txt"
    home.mkdir(exist_ok=True)
    job = {
        "program": "\n".join([IMPORTS, *map(inspect.getsource, functions), program]),
        "arguments": arguments,
        "absent": [name for name in ABSENT if name not in present],
        "folder": str(folder),
        "output": str(output),
    }
    if fresh or present or environment:
        command = [sys.executable, "-I", "-c", FRESH]
        code = subprocess.run(
            command, input=json.dumps(job), text=True, env=_environment(home, **environment), check=False
        ).returncode
    else:
        code = _server().run(job, home)
    assert code == 0, output.read_text() if output.exists() else f"exit code {code}"


class _Server:
    """An isolated process that has imported torch and transformers and forks one child per job."""

    def __init__(self) -> None:
        self.temporary = tempfile.TemporaryDirectory()
        # Libraries read HF_HOME only on import, so it is a symlink, which points to the home of the current job.
        self.home = Path(self.temporary.name) / "home"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(self.home),
        )
        atexit.register(self.close)

    def run(self, job: dict[str, Any], home: Path) -> int:
        self.home.unlink(missing_ok=True)
        self.home.symlink_to(home)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()
        self.temporary.cleanup()


_server = functools.cache(_Server)


def _environment(home: Path, **variables: str) -> dict[str, str]:
    defaults = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**os.environ, **defaults, **variables}


def put_into_cache(home: Path, repo_id: str, snapshots: dict[str, Path], **refs: str) -> None:
    """Create a cache in huggingface_hub's layout: snapshots of `repo_id` by commit, and `refs` that name commits."""
    repository = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    for commit, folder in snapshots.items():
        for file in folder.iterdir():
            target = repository / "snapshots" / commit / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    for name, commit in refs.items():
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
