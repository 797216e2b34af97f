"""Startup: registration in any import order, and the imports of the command line's help."""

import json
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers
from tiny import tiny_config

import trivium
from trivium import TriviumConfig, TriviumForCausalLM, TriviumForConditionalGeneration
from trivium.modeling.auto_map import WITH_BOTH
from trivium.tokenization import train_tokenizer


def run(code: str, *arguments: str | Path) -> str:
    """Run code in a fresh interpreter and return its output."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# --- The command line ------------------------------------------------------------------------------------------------

HEAVY = ("accelerate", "datasets", "matplotlib", "numpy", "sklearn", "tokenizers", "torch", "transformers", "trivium")
HELP = """
import json, os, sys
from typer.testing import CliRunner
from trivium_cli import app

for arguments in (["--help"], ["train", "--help"], ["--version"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
imported = [name for name in sys.argv[1:] if name in sys.modules]

@app.command()
def policy():
    assert "torch" not in sys.modules
    print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))

print(json.dumps([imported, CliRunner().invoke(app, ["policy"]).stdout.strip()]))
"""


def test_help_imports_nothing_heavy() -> None:
    assert all(find_spec(name) for name in HEAVY)
    assert json.loads(run(HELP, *HEAVY))[0] == []


@pytest.mark.parametrize(
    ("user_policy", "expected"),
    [
        ({}, "passive 3000"),
        ({"OMP_WAIT_POLICY": "active"}, "active None"),
        ({"GOMP_SPINCOUNT": "0"}, "None 0"),
    ],
    ids=["none", "policy", "spins"],
)
def test_commands_set_thread_policy_unless_user_did(
    monkeypatch: pytest.MonkeyPatch, user_policy: dict[str, str], expected: str
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in user_policy.items():
        monkeypatch.setenv(name, value)
    assert json.loads(run(HELP))[1] == expected


# --- Registration ----------------------------------------------------------------------------------------------------


def test_public_names_exist() -> None:
    assert all(getattr(trivium, name).__name__ == name for name in trivium.__all__)


# Each import order runs in a separate process, forked from one that has done the slow imports. The checks of all
# promised registrations follow.
ORDERS = ["import trivium"]
MORE_ORDERS = [
    "from transformers import AutoModel, LlamaForCausalLM, pipeline; import trivium",  # as in this process
    "import trivium.modeling",
    "import transformers; import trivium",
    "import trivium; from transformers import LlamaForCausalLM",
    "from trivium.modeling.pipeline_translation import TranslationPipeline",
    "from trivium.tokenization import TriviumTokenizer",
]

PROMISES = """
import os, sys, tempfile
from pathlib import Path

import accelerate, sklearn.metrics, torch.distributed.tensor  # Slow imports that are not under test.
assert "transformers" not in sys.modules

folder, *orders = sys.argv[1:]

def translating():
    from transformers import pipeline
    assert pipeline("translation", model=f"{folder}/both", max_new_tokens=2)("a cat")

def saving():
    from trivium.modeling import TriviumForConditionalGeneration
    with tempfile.TemporaryDirectory() as saved:
        TriviumForConditionalGeneration.from_pretrained(f"{folder}/both").save_pretrained(saved)
        code = {path.name: path.read_text() for path in Path(saved).glob("*.py")}
    assert "modeling_trivium.py" in code and "class TriviumConfig" in code["configuration_trivium.py"]

def configuration():
    from transformers import AutoConfig
    assert type(AutoConfig.from_pretrained(f"{folder}/both")).__module__.startswith("trivium.")

def tokenizer():
    from transformers import AutoTokenizer
    assert type(AutoTokenizer.from_pretrained(f"{folder}/both")).__module__.startswith("trivium.")

def building():
    import trivium
    from transformers import AutoModel, AutoModelForCausalLM
    config = trivium.configuration.TriviumConfig.from_pretrained(f"{folder}/both")
    assert type(AutoModel.from_config(config)) is trivium.modeling.TriviumModel
    assert type(AutoModelForCausalLM.from_config(config.decoder_only())) is trivium.TriviumForCausalLM

def loading():
    from transformers import AutoModel, AutoModelForSeq2SeqLM
    loaded = AutoModelForSeq2SeqLM.from_pretrained(f"{folder}/both")
    assert type(loaded).__name__ == "TriviumForConditionalGeneration"
    assert type(AutoModel.from_pretrained(f"{folder}/decoder")).__name__ == "TriviumDecoderModel"

for order in orders:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, order
        continue
    exec(order)
    for promise in (configuration, translating, tokenizer, building, loading, saving):
        promise()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a translator in `both` and a language model in `decoder`."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["a cat"], target_texts=["eine Katze"], shared=False, vocab_size=270)
    config = tiny_config(vocab_size=len(tokenizer), decoder_vocab_size=270)
    for name, model in (
        ("both", TriviumForConditionalGeneration(config)),
        ("decoder", TriviumForCausalLM(config.decoder_only())),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.slow(reason="an interpreter for each order")
@pytest.mark.parametrize("orders", [ORDERS, MORE_ORDERS], ids=["some", "more"])
def test_registration_in_every_import_order(orders: list[str], folder: Path) -> None:
    run(PROMISES, folder, *orders)


@pytest.mark.parametrize("name", WITH_BOTH)
def test_auto_class_entries_can_be_pickled(name: str) -> None:
    entry = getattr(transformers, name)._model_mapping[TriviumConfig]
    assert pickle.loads(pickle.dumps(entry)) is entry
