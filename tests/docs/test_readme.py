"""Run everything that the README promises, on a tiny model.

The commands and the Python code of the README run here verbatim. The default tests in these files cover its other
promises:

    Trainer, generate(), the Auto classes       test_training.py, test_generation.py, test_three_ways.py
    Accelerate on several devices               test_many_devices.py, test_tensor_parallel.py
    folders that need no package                test_portable.py, test_pipelines.py
    cutting and joining to the bit              test_surgery.py
    CTranslate2, ONNX                           test_ctranslate2.py, test_onnx.py, test_cli.py
    other families, parity to 1e-9              test_exchange.py, test_families.py, test_parity.py
    token batches, averages, exact resume       test_batching.py, test_averaging.py, test_ema.py, test_resuming.py
    full recipes, streams                       test_full_recipes.py, test_batch_stream.py
    pictures, the page                          test_pictures.py, test_demo.py
    cards and the Hub                           test_card.py, test_hub.py
    clients                                     clients/
"""

import re
import shutil
from pathlib import Path
from urllib.request import urlopen

import pytest
from hub_server import HubServer
from pages import ROOT, blocks, commands
from small_recipes import SMALL, small_recipe
from typer.testing import CliRunner

from trivium.recipe import load_recipe
from trivium.training import train
from trivium_cli import app

pytestmark = pytest.mark.trains

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
PYTHON = [block.code for block in blocks(README) if block.language == "python"]
COMMANDS = [call for block in blocks(README) if "trivium plot" in block.code for call in commands(block.code)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "numbers"
    train(load_recipe("numbers", small_recipe(folder)))
    return folder


@pytest.fixture
def working_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory that contains a short run in `runs/numbers`."""
    shutil.copytree(run, tmp_path / "runs" / "numbers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks_run(block: str, working_folder: Path) -> None:
    """Run each Python block, with a short training run in place of the demo."""
    setting = '["training.output_dir=runs/python"]'
    exec(block.replace(setting, repr(small_recipe(Path("runs/python")))), {})


def test_commands_run(working_folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all commands in order, with short training runs, a local Hub, and a single request to the demo page."""
    gradio = pytest.importorskip("gradio", reason="an optional dependency")
    pytest.importorskip("ctranslate2", reason="an optional dependency")
    pages = []

    def read(page: gradio.Blocks) -> None:
        with urlopen(page.local_url, timeout=60) as answer:
            pages.append(answer.read().decode())
        page.close(verbose=False)

    monkeypatch.setattr(gradio.Blocks, "block_thread", read)
    monkeypatch.setattr(
        "trivium.hub.check_folder", lambda folder, **options: None
    )  # The tests in tests/hub cover the check of folders.
    shorter = {"train": SMALL, "prepare": SMALL, "resume": ["training.max_steps=8"]}
    for call in COMMANDS:
        options = shorter.get("resume" if "--resume" in call else call[0], [])
        options = [option for option in options if option.split("=")[0] not in " ".join(call)]
        call = [argument for argument in call if argument != "--open"]
        result = CliRunner().invoke(app, [*call, *options])
        assert result.exit_code == 0, f"{call}: {result.output[-3000:]} {result.exception!r}"
    assert "<html" in pages[0]
    assert (working_folder / "runs" / "wide" / "checkpoint-8").is_dir()
    assert (working_folder / "heads.png").stat().st_size > 1000
    assert {path.name for path in (working_folder / "runs" / "parts").iterdir()} >= {"encoder", "decoder"}
    assert (working_folder / "runs" / "fast" / "model.bin").is_file()
    assert "model.safetensors" in hub.files("someone/numbers")
    assert {call[0] for call in COMMANDS} == {
        *("train", "prepare", "evaluate", "translate", "demo", "plot", "split", "convert", "push")
    }


def test_launch_config_exists() -> None:
    name = re.findall(r"trivium launch-config (\w+)", TEXT)[0]
    path = Path(CliRunner().invoke(app, ["launch-config", name]).stdout.strip())
    assert "distributed_type: MULTI_GPU" in path.read_text()


def test_names_exist() -> None:
    for name in re.findall(r"^    (\w+/) ", TEXT, flags=re.MULTILINE) + re.findall(r"\]\((\w[\w/.]*)\)", TEXT):
        assert (ROOT / name).exists(), name
