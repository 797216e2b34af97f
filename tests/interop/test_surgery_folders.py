"""Test splitting and joining saved folders, in Python and on the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from parts import assert_same_weights
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import BOS, EOS, tiny_model
from tokenizers import normalizers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from trivium import (
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumTokenizer,
)
from trivium.surgery import join_folders, split_folder
from trivium.tokenization import train_tokenizer
from trivium_cli import app

# --- Folders and the command line ------------------------------------------------------------------------------------

TEXTS = ["one house", "two houses and a tree", "a tree in front of the house"]
TARGET_TEXTS = ["ein Haus", "zwei Häuser und ein Baum", "ein Baum vor dem Haus"]


def saved(folder: Path, shared: bool, **overrides: Any) -> Path:
    tokenizer = train_tokenizer(
        TEXTS, target_texts=TARGET_TEXTS, shared=shared, vocab_size=300 if shared else 280, model_max_length=64
    )
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "decoder_vocab_size": None if shared else tokenizer.target_vocab_size,
    }
    model = tiny_model(**sizes, **overrides)
    model.generation_config.update(num_beams=2, max_length=20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trivium(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"])
@pytest.mark.parametrize("shared", [True, False], ids=["one-vocabulary", "two-vocabularies"])
def test_folders_are_split_and_joined(shared: bool, tied: bool, tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", shared, tie_word_embeddings=tied)
    encoder, decoder, cross_attention = split_folder(whole, tmp_path / "deep" / "parts")
    assert join_folders(encoder, decoder, tmp_path / "joined", cross_attention) == []
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["deep", "joined", "whole"]
    assert sorted(path.name for path in (tmp_path / "deep" / "parts").iterdir()) == [
        "cross_attention.safetensors",
        "decoder",
        "encoder",
    ]

    before, after = (AutoModelForSeq2SeqLM.from_pretrained(path) for path in (whole, tmp_path / "joined"))
    assert_same_weights(after.state_dict(), before.state_dict())
    assert {**after.config.to_dict(), "_name_or_path": ""} == {**before.config.to_dict(), "_name_or_path": ""}
    assert after.generation_config.to_dict() == before.generation_config.to_dict()
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (whole, tmp_path / "joined")]
    for tokenizer in tokenizers:
        assert isinstance(tokenizer, TriviumTokenizer)
        assert tokenizer.shared_vocabulary == shared
        assert tokenizer.model_max_length == 64
    first, second = (tokenizer(TEXTS, text_target=TARGET_TEXTS).data for tokenizer in tokenizers)
    assert first == second
    inputs = tokenizers[0](TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(after.generate(**inputs), before.generate(**inputs))


@pytest.mark.parametrize("shared", [True, False], ids=["one-vocabulary", "two-vocabularies"])
def test_each_half_is_complete(shared: bool, tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", shared)
    both = AutoTokenizer.from_pretrained(whole)
    encoder, decoder, cross_attention = split_folder(whole, tmp_path / "parts")
    for folder, auto_class, model_class in (
        (encoder, AutoModel, TriviumEncoderModel),
        (decoder, AutoModelForCausalLM, TriviumForCausalLM),
    ):
        model, report = auto_class.from_pretrained(folder, output_loading_info=True)
        assert isinstance(model, model_class)
        assert not any(report.values()), report
        assert model.config.architectures == [model_class.__name__]
        assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(folder))
    assert model.generation_config.num_beams == 2
    ids = AutoTokenizer.from_pretrained(encoder)(TEXTS)["input_ids"]
    assert ids == both(TEXTS)["input_ids"]
    prompts = AutoTokenizer.from_pretrained(decoder)(TARGET_TEXTS)["input_ids"]
    assert prompts == [[BOS, *row[:-1]] for row in both(text_target=TARGET_TEXTS)["input_ids"]]
    with safe_open(cross_attention, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_commands_report_their_output(tmp_path: Path) -> None:
    whole, parts = saved(tmp_path / "whole", shared=True), tmp_path / "parts"
    code, output, errors = trivium("split", whole, parts)
    assert (code, errors.count("Error")) == (0, 0)
    for name in ("encoder", "decoder", "cross_attention.safetensors"):
        assert f"{parts / name}.\n" in output
        assert (parts / name).exists()
    halves = [parts / "encoder", parts / "decoder"]
    restore: list[str | Path] = ["--cross-attention", parts / "cross_attention.safetensors"]
    assert trivium("join", *halves, tmp_path / "joined", *restore)[:2] == (
        0,
        f"The model is in {tmp_path / 'joined'}.\n",
    )
    models = [AutoModelForSeq2SeqLM.from_pretrained(path) for path in (whole, tmp_path / "joined")]
    assert_same_weights(models[0].state_dict(), models[1].state_dict())
    (tmp_path / "warm").mkdir()  # An empty folder is allowed.
    code, output, _ = trivium("join", *halves, tmp_path / "warm")
    assert code == 0
    assert "18 parameters are newly initialized and must be trained:" in output
    assert "  model.decoder.layers.*.cross_attn.q_proj.weight in 3 layers\n" in output
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "warm").config.is_encoder_decoder


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    whole, parts, output = saved(tmp_path / "whole", shared=True), tmp_path / "parts", tmp_path / "output"
    split_folder(whole, parts)
    encoder, decoder = parts / "encoder", parts / "decoder"
    (tmp_path / "bare").mkdir()
    tiny_model().save_pretrained(tmp_path / "bare")
    (tmp_path / "text").write_text("no tensors")
    (tmp_path / "odd.safetensors").touch()
    save_file({"x": torch.ones(1)}, tmp_path / "odd.safetensors")
    before = sorted(tmp_path.rglob("*"))
    mistakes: list[tuple[list[str | Path], str]] = [
        (["split", tmp_path / "nowhere", output], "nowhere is not a saved model: it has no config.json"),
        (
            ["split", tmp_path / "bare", output],
            "bare is not a model with its tokenizer: it has no tokenizer_config.json",
        ),
        (["split", decoder, output], "a TriviumForCausalLM with encoder_layers=0"),
        (["split", whole, parts], "parts, which already exists"),
        (["split", whole, tmp_path / "text"], "text, which already exists"),
        (["join", decoder, encoder, output], "encoder is a TriviumForCausalLM"),
        (["join", encoder, whole, output], "decoder is a TriviumForConditionalGeneration"),
        (["join", encoder, decoder, whole], "whole, which already exists"),
        (
            ["join", encoder, decoder, output, "--cross-attention", tmp_path / "none"],
            "none, but there is no such file",
        ),
        (
            ["join", encoder, decoder, output, "--cross-attention", tmp_path / "text"],
            "text, but that is not a valid safetensors file",
        ),
        (
            ["join", encoder, decoder, output, "--cross-attention", tmp_path / "odd.safetensors"],
            "lacks decoder.layers.0",
        ),
    ]
    for arguments, message in mistakes:
        code, printed, errors = trivium(*arguments)
        assert (code, printed) == (1, ""), arguments
        assert message in errors
        assert "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved(tmp_path / "whole", shared=True)
    (tmp_path / "output").mkdir()
    before = sorted(tmp_path.rglob("*"))

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("trivium.surgery.save_file", full_disk)  # Simulate a failure while the halves are written.
    with pytest.raises(OSError, match="No space"):
        split_folder(whole, tmp_path / "output")
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_of_other_models_are_refused_by_name(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", shared=True)
    config = whole / "config.json"
    original = config.read_text()
    config.write_text(original.replace('"TriviumForConditionalGeneration"', '"Stranger"'))
    with pytest.raises(ValueError, match=r"whole.*model.*architectures \['Stranger'\]"):
        split_folder(whole, tmp_path / "parts")
    config.write_text(original)
    tokenizer_config = whole / "tokenizer_config.json"
    tokenizer_config.write_text(
        tokenizer_config.read_text().replace(
            '"tokenizer_class": "TriviumTokenizer"', '"tokenizer_class": "BertTokenizer"'
        )
    )
    with pytest.raises(ValueError, match=r"tokenizer in .*whole is a \w+, but must be a TriviumTokenizer"):
        split_folder(whole, tmp_path / "parts")


def test_tokenizers_that_differ_are_both_kept(tmp_path: Path) -> None:
    """Keep both tokenizers if only one of them lowercases, despite equal vocabularies; only EOS is added to texts."""
    split_folder(saved(tmp_path / "whole", shared=True, tie_word_embeddings=False), tmp_path / "parts")
    encoder, decoder = tmp_path / "parts" / "encoder", tmp_path / "parts" / "decoder"
    AutoTokenizer.from_pretrained(encoder, add_bos_token=True, add_eos_token=False).save_pretrained(encoder)
    lower = AutoTokenizer.from_pretrained(decoder)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower.save_pretrained(decoder)
    join_folders(encoder, decoder, tmp_path / "joined")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "joined")
    plain = lower("haus", add_special_tokens=False)["input_ids"]
    assert tokenizer("haus")["input_ids"] == tokenizer(text_target="HAUS")["input_ids"] == [*plain, EOS]
    assert tokenizer("HAUS")["input_ids"] != [*plain, EOS]
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "joined")
    assert model.config.decoder_vocab_size == model.config.vocab_size == len(tokenizer)
