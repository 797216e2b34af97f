"""What `import trivium` and the command line import, and that Trivium is registered all the same, in any order."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny import tiny_config

import trivium
from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, auto
from trivium.modeling.auto_map import WITH_BOTH
from trivium.tokenization import train_tokenizer

HEAVY = ("accelerate", "datasets", "matplotlib", "numpy", "sklearn", "tokenizers", "torch", "transformers")


def run(code: str, *arguments: str | Path) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# --- Imports ---------------------------------------------------------------------------------------------------------

IMPORTED = """
import json, sys
import trivium

def imported():
    return [name for name in sys.argv[1:] if name in sys.modules]

found = {"import trivium": imported()}
from typer.testing import CliRunner
from trivium.cli import app
for arguments in (["--help"], ["train", "--help"], ["--version"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
    found[" ".join(arguments)] = imported()
print(json.dumps(found))
"""


def test_the_package_and_the_help_of_the_command_line_import_nothing_that_takes_time() -> None:
    assert all(find_spec(name) for name in HEAVY)
    found = json.loads(run(IMPORTED, *HEAVY))
    assert found == {"import trivium": [], "--help": [], "train --help": [], "--version": []}


def test_public_names_are_there_and_listed() -> None:
    assert all(getattr(trivium, name).__name__ == name for name in trivium.__all__)
    assert set(trivium.__all__) <= set(dir(trivium))
    with pytest.raises(AttributeError, match="'trivium' has no attribute 'TriviumForAudio'"):
        _ = trivium.TriviumForAudio


# --- Registration ----------------------------------------------------------------------------------------------------

# Each in a process of its own, forked from one that has what takes time; then comes all that Trivium promises, each
# time beginning with something else. Where transformers comes first, the other tests would fail, too.
ORDERS = [
    "import trivium",
    "import trivium.modeling",
    "import trivium; from transformers import LlamaForCausalLM",  # imports Auto classes halfway through what it needs
]
MORE_ORDERS = [
    "import transformers; import trivium",
    "from transformers import AutoConfig; import trivium",
    "from transformers import AutoModel, pipeline; import trivium",
    "from trivium.modeling.pipeline_translation import TranslationPipeline",
    "from trivium.tokenization import TriviumTokenizer",
]

PROMISES = """
import os, sys, tempfile
from pathlib import Path

import accelerate, sklearn.metrics, torch.distributed.tensor  # what takes time and is not what this is about
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

promises = [configuration, translating, tokenizer, building, loading, saving]
for turn, order in enumerate(orders):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, order
        continue
    exec(order)
    for place in range(len(promises)):
        promises[place - turn]()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator in `both`, a language model in `decoder`."""
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


@pytest.mark.parametrize("orders", [ORDERS, pytest.param(MORE_ORDERS, marks=pytest.mark.slow)], ids=["some", "more"])
def test_registered_in_every_order(orders: list[str], folder: Path) -> None:
    run(PROMISES, folder, *orders)


def test_something_stands_for_every_model() -> None:
    assert sorted(auto.AUTO_MODELS) == sorted(WITH_BOTH)
