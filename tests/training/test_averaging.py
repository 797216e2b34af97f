"""Compare averages of saved models with a reference computed in float64."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import shake, tiny_config
from typer.testing import CliRunner
from weights import Weights, assert_equal, saved

from trivium import TriviumForConditionalGeneration, TriviumForMaskedLM
from trivium.averaging import average, last_checkpoints
from trivium.tokenization import train_tokenizer
from trivium_cli import app

pytestmark = pytest.mark.trains


def save_model(
    folder: Path, shard: str = "5GB", dtype: torch.dtype = torch.float32, **overrides: Any
) -> TriviumForConditionalGeneration:
    model = shake(TriviumForConditionalGeneration(tiny_config(**overrides))).to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def trivium(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join((result.stdout + result.stderr).replace("│", " ").split())


# --- The average -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["one-file", "sharded"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mean_matches_float64(tmp_path: Path, dtype: torch.dtype, tied: bool, shard: str) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        save_model(folder, shard, dtype, tie_word_embeddings=tied)
    average(folders, tmp_path / "mean")
    weights = [saved(folder) for folder in folders]
    mean = {name: torch.stack([each[name] for each in weights]).double().mean(dim=0).to(dtype) for name in weights[0]}
    assert_equal(saved(tmp_path / "mean"), mean)
    files = [{path.name for path in folder.glob("*")} for folder in (tmp_path / "mean", folders[-1])]
    assert files[0] == files[1]
    assert (len(list(folders[0].glob("model*.safetensors"))) > 1) == (shard == "20KB")
    assert (len(mean) < len(TriviumForConditionalGeneration(tiny_config()).state_dict())) == tied

    model = TriviumForConditionalGeneration.from_pretrained(tmp_path / "mean")
    embeddings = model.get_input_embeddings().weight
    assert (model.lm_head.weight is embeddings) == tied
    assert model.dtype == dtype
    assert model.config.tie_word_embeddings == tied
    assert torch.equal(embeddings, mean["model.encoder.embed_tokens.weight"])


def test_mean_of_one_model_is_bit_identical(tmp_path: Path) -> None:
    model = save_model(tmp_path / "one")
    with torch.no_grad():
        model.lm_head.weight[3] = torch.tensor(-0.0)
    model.save_pretrained(tmp_path / "one")
    average([tmp_path / "one"], tmp_path / "mean")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "mean" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def write_pair(tmp_path: Path, first: torch.Tensor, second: torch.Tensor) -> list[Path]:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, tensor in zip(folders, (first, second), strict=True):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        save_file({"steps": tensor}, folder / "model.safetensors", metadata={"format": "pt"})
    return folders


@pytest.mark.parametrize("tensor", [torch.tensor([3, 2**62 + 1]), torch.tensor([True, False])], ids=["int", "bool"])
def test_integer_tensors_must_be_equal(tmp_path: Path, tensor: torch.Tensor) -> None:
    average(write_pair(tmp_path / "x", tensor, tensor), tmp_path / "mean")
    assert_equal(saved(tmp_path / "mean"), {"steps": tensor})
    with pytest.raises(ValueError, match=r"steps is torch\.\w+, .*differs .*/a and .*/b"):
        average(write_pair(tmp_path / "y", tensor, tensor.flip(0)), tmp_path / "other")


def test_mean_of_large_numbers_does_not_overflow(tmp_path: Path) -> None:
    largest = torch.tensor([torch.finfo(torch.float32).max])
    average(write_pair(tmp_path, largest, largest), tmp_path / "mean")
    assert_equal(saved(tmp_path / "mean"), {"steps": largest})


# --- Command line ----------------------------------------------------------------------------------------------------


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    for step in (900, 1000, 1100):
        save_model(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-2000").touch()
    assert [path.name for path in last_checkpoints(tmp_path)] == [
        "checkpoint-900",
        "checkpoint-1000",
        "checkpoint-1100",
    ]
    code, output = trivium("average", tmp_path, tmp_path / "mean", "--last", "2")
    assert (code, "checkpoint-1000" in output, "checkpoint-900" in output) == (0, True, False), output
    weights = [saved(tmp_path / f"checkpoint-{step}") for step in (1000, 1100)]
    assert_equal(saved(tmp_path / "mean"), {name: (weights[0][name] + weights[1][name]) / 2 for name in weights[0]})
    for arguments in ([tmp_path / "checkpoint-900", tmp_path / "checkpoint-1000"], [tmp_path]):
        output_folder = tmp_path / f"of {len(arguments)}"
        assert trivium("average", *arguments, output_folder)[0] == 0
        assert (output_folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "out", "--last", "3"], 1, "at least 3 checkpoints, but has: checkpoint-1, checkpoint-2."),
        (["run/checkpoint-1", "out"], 1, "at least 1 checkpoints, but has: none."),
        (["run/checkpoint-1", "run/checkpoint-2", "out", "--last", "2"], 2, "--last requires one run"),
        (["run/checkpoint-1", "nowhere", "out"], 1, "nowhere is not a saved model: it has no config.json."),
        (["run/checkpoint-1", "run/checkpoint-1", "out"], 1, "each folder once"),
        (["run", "run"], 1, "output is run, which already exists"),
    ],
)
def test_errors_are_one_line_with_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    for step in (1, 2):
        save_model(tmp_path / "run" / f"checkpoint-{step}")
    monkeypatch.chdir(tmp_path)
    found, output = trivium("average", *arguments)
    assert (found, message in output) == (code, True), output
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def edit_json(file: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, edit: Callable[[Weights], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


NORM = "model.encoder.norm.weight"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other field": (
        lambda folder: edit_json(folder / "config.json", lambda config: config.update(dropout=0.5)),
        r"dropout is 0\.5 in .*/b, but 0\.0 in .*/c: only",
    ),
    "other vocabulary": (
        lambda folder: train_tokenizer(["x y"], vocab_size=270).save_pretrained(folder),
        r"tokenizer\.json has different vocabularies in .*/b and .*/c",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"/b has no model\.safetensors"),
    "empty weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "/b/.* is not a complete safetensors file",
    ),
    "cut weights": (lambda folder: truncate(folder / "model.safetensors"), "/b/.* is not a complete safetensors file"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"/b is not a saved model: it has no"),
    "cut configuration": (lambda folder: truncate(folder / "config.json"), r"/b/config\.json is not valid JSON"),
    "less": (
        lambda folder: edit_weights(folder, lambda weights: weights.pop(NORM)),
        rf"{NORM} is missing in .*/b, but of shape \(24,\) in .*/c",
    ),
    "more": (
        lambda folder: edit_weights(folder, lambda weights: weights.update(more=torch.ones(1))),
        r"more is of shape \(1,\) in .*/b, but missing in .*/c",
    ),
    "other shape": (
        lambda folder: edit_weights(folder, lambda weights: weights.update({NORM: torch.ones(7)})),
        rf"{NORM} is of shape \(7,\) in .*/b, but of shape \(24,\) in .*/c",
    ),
    "other type": (
        lambda folder: edit_weights(folder, lambda weights: weights.update({NORM: weights[NORM].half()})),
        rf"{NORM} is torch\.float32 in .*/a, but torch\.float16 in .*/b",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_incompatible_folder_is_named_and_nothing_written(tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        save_model(folder, norm_position="pre")
        train_tokenizer(["a b c"], vocab_size=270).save_pretrained(folder)
    break_it, message = BROKEN[kind]
    break_it(folders[1])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        average(folders, tmp_path / "mean")
    assert sorted(tmp_path.iterdir()) == folders


def test_missing_shard_is_named(tmp_path: Path) -> None:
    for name in "ab":
        save_model(tmp_path / name, "20KB")
    (gone := sorted((tmp_path / "b").glob("*.safetensors"))[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"/b/.*{gone.name}.*file"):
        average([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    with pytest.raises(ValueError, match=r"folders.*empty"):
        average([], tmp_path / "mean")


def test_mean_of_encoders(tmp_path: Path) -> None:
    models = [shake(TriviumForMaskedLM(tiny_config(decoder_layers=0))) for _ in range(2)]
    for name, model in zip("ab", models, strict=True):
        model.save_pretrained(tmp_path / name)
    average([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    mean = TriviumForMaskedLM.from_pretrained(tmp_path / "mean").state_dict()
    for name, weight in models[0].state_dict().items():
        torch.testing.assert_close(mean[name], (weight + models[1].state_dict()[name]) / 2, rtol=0, atol=1e-7)
