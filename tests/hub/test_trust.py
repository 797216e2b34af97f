"""Test that code in a model folder never runs without the user's consent, even if standard input answers prompts."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tiny import tiny_config
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration
from trivium.tokenization import train_tokenizer
from trivium_cli import app

ANSWERS = "y\n" * 20  # Standard input that would accept every prompt of transformers.
HEADS = {
    "translate": ("AutoModelForSeq2SeqLM", "ForConditionalGeneration"),
    "generate": ("AutoModelForCausalLM", "ForCausalLM"),
    "classify": ("AutoModelForSequenceClassification", "ForSequenceClassification"),
    "fill-mask": ("AutoModelForMaskedLM", "ForMaskedLM"),
    "tag": ("AutoModelForTokenClassification", "ForTokenClassification"),
}
CODE = """
from pathlib import Path
Path({marker!r}).touch()
raise ImportError("the code of the folder ran")
"""


def trivium(*arguments: str | Path) -> tuple[int, str]:
    """Run a command; return its exit code and its combined output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=ANSWERS, env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit | ImportError), result.exception
    return result.exit_code, re.sub(r"\x1b\[[\d;]*m", "", result.output)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the-code-ran"


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved Trivium translator."""
    folder = tmp_path_factory.mktemp("models") / "translator"
    tokenizer = train_tokenizer(["one two three"] * 2, vocab_size=300)
    TriviumForConditionalGeneration(tiny_config(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def foreign(translator: Path, marker: Path, tmp_path: Path) -> Path:
    """Return a model folder with an unknown `model_type` and its own code."""
    folder = shutil.copytree(translator, tmp_path / "foreign")
    for path in folder.glob("*.py"):
        path.unlink()
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    heads = {auto_class: "evil.Model" for auto_class, _ in HEADS.values()}
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", **heads}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def set_architecture(folder: Path, ending: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [f"Evil{ending}"]}))


@pytest.mark.parametrize("command", HEADS)
def test_remote_code_runs_only_if_trusted(command: str, foreign: Path, marker: Path) -> None:
    set_architecture(foreign, HEADS[command][1])
    code, output = trivium(command, foreign)
    assert (code, marker.exists()) == (1, False), output
    assert "'evil'" in output
    assert "--trust-remote-code" in output
    assert output.count("\n") == 1, "there must be no prompt"
    trivium(command, foreign, "text", "--trust-remote-code")
    assert marker.exists(), "the test would see it"


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate FOLDER",
        "demo FOLDER",
        "plot attention FOLDER text -o OUT.png",
        "plot positions FOLDER -o OUT.png",
        "split FOLDER OUT",
        "join FOLDER FOLDER OUT",
        "convert FOLDER OUT",
        "convert FOLDER OUT --to onnx",
        "convert FOLDER OUT --to ctranslate2",
        "translate FOLDER text --engine onnx",
        "translate FOLDER text --engine ctranslate2",
        "card FOLDER",
        "push FOLDER someone/model --dry-run",
        "train FOLDER init_from=FOLDER training.output_dir=OUT",
    ],
)
def test_no_command_prompts_for_trust(arguments: str, foreign: Path, marker: Path, tmp_path: Path) -> None:
    set_architecture(foreign, "ForConditionalGeneration")
    (foreign / "recipe.yaml").write_text("data: {name: numbers}\ntraining: {output_dir: x}\n")
    words = [word.replace("FOLDER", str(foreign)).replace("OUT", str(tmp_path / "out")) for word in arguments.split()]
    code, output = trivium(*words)
    assert code == 1, output
    assert not marker.exists()
    assert "Do you wish to run" not in output
    assert "trust_remote_code" not in output, "there is no such option of a command"
    assert ("--trust-remote-code" in output) == arguments.startswith("evaluate")


@pytest.mark.parametrize(
    "arguments", ["translate FOLDER one", "plot attention FOLDER one -o OUT.png", "split FOLDER OUT"]
)
def test_trivium_model_uses_installed_code(arguments: str, translator: Path, marker: Path, tmp_path: Path) -> None:
    """With Trivium installed, the code and `auto_map` of the folder must not be read."""
    folder = shutil.copytree(translator, tmp_path / "model")
    files = [*folder.glob("*.py"), folder / "custom_generate" / "generate.py"]
    files[-1].parent.mkdir()
    assert len(files) > 5
    for path in files:
        path.write_text(CODE.format(marker=str(marker)))
    words = [word.replace("FOLDER", str(folder)).replace("OUT", str(tmp_path / "out")) for word in arguments.split()]
    code, output = trivium(*words)
    assert (code, marker.exists()) == (0, False), output
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert type(model) is TriviumForConditionalGeneration
    AutoTokenizer.from_pretrained(folder)
    assert not marker.exists()


def test_trust_remote_code_is_for_pytorch_only(translator: Path) -> None:
    code, output = trivium("translate", translator, "one", "--engine", "onnx", "--trust-remote-code")
    assert (code, "--engine torch" in output) == (2, True), output


def test_transformers_model_needs_no_trust(translator: Path, tmp_path: Path, marker: Path) -> None:
    """For a `model_type` that transformers knows, its own class is used despite an `auto_map`."""
    folder = shutil.copytree(translator, tmp_path / "gpt2")
    config = tiny_config(vocab_size=300, encoder_layers=0)
    TriviumForCausalLM(config).save_pretrained(folder)
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(content))
    code, output = trivium("generate", folder, "one")
    assert (code, marker.exists()) == (0, False), output
