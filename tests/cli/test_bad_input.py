"""Test that invalid input to the command line ends in a one-line error."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny import tiny_config
from typer.testing import CliRunner

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumTokenizer, translation
from trivium.tokenization import train_tokenizer
from trivium_cli import app, texts

TRAIN = [
    *("train", "numbers", "training.bf16=false", "training.output_dir=run"),
    *("data.max_train_samples=100", "tokenizer.vocab_size=400"),
]


def trivium(*arguments: str | Path, stdin: bytes | None = None) -> tuple[int, str]:
    """Run a command; return its exit code and its combined output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env={"COLUMNS": "500"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(re.sub(r"\x1b\[[\d;]*m|│", "", result.output).split())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["one two three"] * 2, vocab_size=300)
    config = {"vocab_size": len(tokenizer), "d_model": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    for name, model in {
        "translator": TriviumForConditionalGeneration(tiny_config(**config)),
        "language-model": TriviumForCausalLM(tiny_config(**config, encoder_layers=0)),
    }.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


# --- Files -----------------------------------------------------------------------------------------------------------

COMMANDS = [
    "translate MODEL text",
    "translate MODEL text --engine onnx",
    "evaluate MODEL",
    "plot attention MODEL text -o OUT.png",
    "split MODEL OUT",
    "join MODEL MODEL OUT",
    "average MODEL OTHER OUT",
    "convert MODEL OUT",
    "convert MODEL OUT --to ctranslate2",
    "card MODEL",
    "push MODEL someone/model --dry-run",
]


def run_on(folder: Path, command: str, models: Path, tmp_path: Path) -> tuple[int, str]:
    words = {"MODEL": str(folder), "OTHER": str(models / "translator"), "OUT": str(tmp_path / "out")}
    arguments = [re.sub("MODEL|OTHER|OUT", lambda found: words[found[0]], word) for word in command.split()]
    return trivium(*arguments)


@pytest.mark.parametrize(("command", "content"), [*((command, "[]") for command in COMMANDS), (COMMANDS[0], "{")])
def test_config_that_is_not_an_object_is_named(command: str, content: str, models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "translator", tmp_path / "model")
    (folder / "config.json").write_text(content)
    code, output = run_on(folder, command, models, tmp_path)
    assert code == 1, output
    assert "config.json" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "size"), [*((command, -100) for command in COMMANDS), *((COMMANDS[0], size) for size in (0, 5, 1000))]
)
def test_truncated_weights_are_named(command: str, size: int, models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "translator", tmp_path / "model")
    (folder / "recipe.yaml").write_text("data: {name: numbers}\ntraining: {output_dir: x}\n")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    code, output = run_on(folder, command, models, tmp_path)
    assert code == 1, output
    assert "model.safetensors" in output
    assert not (tmp_path / "out").exists()


# --- Recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.max_steps=abc"], "training.max_steps is 'abc', but must be an integer"),
        (["data.trian=x"], "data.trian is unknown. Did you mean train?"),
        (
            ["training.run_name=${oc.env:HOME}"],
            "training.run_name is '${oc.env:HOME}', but interpolation",
        ),
        (["model.d_model=abc"], "d_model"),
        (["model.norm_eps=.inf"], "norm_eps is inf, but must be above 0 and finite"),
        (["generation.num_beams=abc"], "generation.num_beams is 'abc', but must be an integer"),
    ],
)
def test_invalid_recipe_values_are_named(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = trivium(*TRAIN, *overrides)
    assert (code, message in output) == (1, True), output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("start", ["no/such/folder", "runs/nowhere", "./nowhere", "/nowhere", "no such name"])
def test_missing_init_from_folder_is_named(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("data: {name: numbers}\ntraining: {output_dir: x}\n")
    code, output = trivium("train", "recipe.yaml", f"init_from={start}")
    assert (code, f"init_from is '{start}', but there is no such folder" in output) == (1, True), output


def test_message_spells_strategy_as_in_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for side in ("en", "de"):
        (tmp_path / f"train.{side}").write_text("one\n")
    (tmp_path / "recipe.yaml").write_text(
        "data: {train: train}\ntraining: {output_dir: x, eval_strategy: steps, eval_steps: 1}\n"
    )
    code, output = trivium("train", "recipe.yaml")
    assert (code, "training.eval_strategy is steps" in output) == (1, True), output


# --- Options and texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("option", ["--length-penalty", "--temperature", "--top-p"])
def test_options_must_be_finite(option: str, value: str, models: Path) -> None:
    code, output = trivium("translate", models / "translator", "one", "--sample", option, value)
    assert (code, option in output) == (2, True), output


@pytest.mark.parametrize("command", ["translate", "generate"])
def test_stdin_that_is_not_utf_8_is_named(command: str, models: Path) -> None:
    model = models / {"translate": "translator", "generate": "language-model"}[command]
    code, output = trivium(command, model, stdin="one\nfür\n".encode("latin-1"))
    assert code == 1
    assert "standard input, line 2: byte 0xfc at position 2 is not UTF-8" in output


def test_stdin_may_start_with_byte_order_mark(models: Path, tmp_path: Path) -> None:
    for name, content in {"plain": b"one\ntwo\n", "marked": b"\xef\xbb\xbfone\r\ntwo"}.items():
        assert trivium("translate", models / "translator", "-o", tmp_path / name, stdin=content)[0] == 0
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "marked").read_bytes()


@pytest.mark.parametrize(("command", "model"), [(texts.translate, "translator"), (texts.generate, "language-model")])
def test_closed_stdin_is_named(
    command: Callable[..., None], model: str, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The error must say that standard input is closed, in which case Python sets `sys.stdin` to None."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(typer.Exit) as caught:
        command(models / model)
    assert caught.value.exit_code == 1
    assert "standard input is closed" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["ctranslate2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exported_folder_is_named(engine: str, models: Path, tmp_path: Path) -> None:
    code, output = trivium("convert", models / "language-model", tmp_path / "out", "--to", engine)
    assert code == 0, output
    assert "TriviumForCausalLM" in output
    assert "translat" not in output.replace("ctranslate2", "")


# --- Very long lines -------------------------------------------------------------------------------------------------


LIMIT = 24  # number of learned positions


@pytest.fixture(scope="module")
def short(models: Path) -> Path:
    """Return the folder of a translation model with only `LIMIT` positions."""
    tokenizer = TriviumTokenizer.from_pretrained(models / "translator")
    config = {"position_embedding_type": "learned", "max_position_embeddings": LIMIT, "vocab_size": len(tokenizer)}
    TriviumForConditionalGeneration(tiny_config(**config)).save_pretrained(models / "short")
    tokenizer.save_pretrained(models / "short")
    return models / "short"


@pytest.mark.parametrize("length", [1_000, 20_000, 200_000])
def test_overlong_line_is_truncated_and_named(
    length: int, short: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Overlong lines must be truncated quickly; 20,000 characters once took a minute, and 200,000 did not finish."""
    path = tmp_path / "lines.txt"
    path.write_text("one\n\n" + "one two " * (length // 8) + "\ntwo\n")
    assert trivium("translate", short, "-i", path, "-o", tmp_path / "out.txt")[0] == 0
    [message] = [record.getMessage() for record in caplog.records if record.name == "trivium.translation"]
    assert message == (
        f"Text 3 (line 3 of a file) has {length:,} characters, but only its first {LIMIT} tokens are translated."
    )
    assert len((tmp_path / "out.txt").read_text().split("\n")) == 5


def test_models_without_position_limit_have_one_too(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    positions = tiny_config().max_position_embeddings
    text = "one two three " * positions
    for bound, message in ((positions // 2, f"only its first {positions} tokens"), (10 * positions, "")):
        monkeypatch.setattr(translation, "MAX_TOKENS", bound)
        caplog.clear()
        assert trivium("translate", models / "translator", text, "--max-length", "5")[0] == 0
        assert message in caplog.text
        assert bool(message) == bool(caplog.text)
