"""Test GGUF export: read the files with transformers and the gguf package, and compare with the exported model."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import GPT2, LLAMA, MODELS, language_model, save
from tiny import random_ids, tiny_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from trivium import TriviumForCausalLM, TriviumForSequenceClassification, TriviumTokenizer
from trivium.interop.families import FAMILIES
from trivium.interop.gguf import to_gguf
from trivium.tokenization import train_tokenizer
from trivium_cli import app

gguf = pytest.importorskip("gguf", reason="a test extra")

TEXTS = ["a cat sat on the mat", "two dogs ran 12 miles"] * 3
CONTROL, UNKNOWN, USER_DEFINED = 3, 2, 4
# Maximum absolute error of the logits, by quantization type. The logits themselves reach 5.
TOLERANCES = {None: 2e-5, "f16": 0.02, "q8_0": 0.5}


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS, vocab_size=300, add_bos_token=True, add_eos_token=False)


def read_fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize(
    ("name", "quantization"),
    [*((name, None) for name in MODELS), ("llama", "f16"), ("llama-biased", "q8_0"), ("gpt2", "q8_0")],
)
def test_logits_match_in_transformers(
    name: str, quantization: str | None, tokenizer: TriviumTokenizer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = language_model(tokenizer, **MODELS[name])
    to_gguf(save(model, tokenizer, tmp_path / "model"), tmp_path / "model.gguf", quantization)
    # Pass the configuration, because transformers does not read all of its fields from the GGUF file.
    config = FAMILIES[name.split("-")[0]].to_native(model.config)
    native = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", config=config)
    ids = random_ids(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(native(ids).logits, model(ids).logits, rtol=0, atol=TOLERANCES[quantization])


def test_metadata(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    options = {**MODELS["llama-linear"], "num_key_value_heads": 2, "ffn_dim": 40, "norm_eps": 1e-3}
    tokenizer = TriviumTokenizer(tokenizer_object=tokenizer._tokenizer, chat_template="{{ messages }}")
    model = language_model(tokenizer, **options)
    model.generation_config.eos_token_id = [2, 7, 8]
    notes = to_gguf(save(model, tokenizer, tmp_path / "cats"), tmp_path / "cats.gguf", "q8_0")
    assert len(notes) == 2
    assert "NFC" in notes[0]
    assert "token 8 does not end a text" in notes[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats", "cats.gguf"]

    fields = read_fields(tmp_path / "cats.gguf")
    expected = {
        "general.architecture": "llama",
        "general.name": "cats",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
        "llama.vocab_size": len(tokenizer) + 3,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.block_count": 3,
        "llama.feed_forward_length": 40,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 7,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-3)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens == [*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), *tokens[-3:]]
    assert len(set(tokens)) == len(tokens)
    assert types[:6] == [CONTROL, CONTROL, CONTROL, UNKNOWN, USER_DEFINED, 1]
    assert types[-3:] == [CONTROL] * 3

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "cats.gguf").tensors}
    assert tensors["rope_freqs.weight"].data.tolist() == pytest.approx([2.0] * 8)
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "Q8_0"
    # Rows of 40 weights are not divisible by the Q8_0 block size of 32.
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**GPT2, "activation_function": "gelu"}, "gpt2, but activation_function is 'gelu', but must be 'gelu_new'"),
        ({**LLAMA, "activation_function": "relu"}, "llama, but activation_function is 'relu', but must be 'silu'"),
        ({**LLAMA, "norm_position": "post"}, "llama, but norm_position is 'post', but must be 'pre'"),
        ({**GPT2, "position_embedding_type": "sinusoidal"}, "gpt2, but position_embedding_type is 'sinusoidal'"),
        (
            {**LLAMA, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_type is 'dynamic', but must be one of default, linear, llama3",
        ),
        ({**LLAMA, "eos_token_id": None}, "eos_token_id is None"),
        ({**LLAMA, "vocab_size": 99}, r"The tokenizer has \d+ tokens, but must have at most vocab_size=99"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    options: dict[str, Any], message: str, tokenizer: TriviumTokenizer, tmp_path: Path
) -> None:
    folder = save(language_model(tokenizer, **options), tokenizer, tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        to_gguf(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"byte_fallback": True}, "BPE without bytes, but must be byte-level BPE or characters"),
        ({"algorithm": "wordpiece", "vocab_size": 600}, "WordPiece, but must be"),
        ({"algorithm": "unigram"}, "Unigram, but must be"),
        ({"lowercase": True}, "normalizes texts by Lowercase, but llama.cpp normalizes none"),
        ({"normalization": "NFKC"}, "normalizes texts by NFKC"),
    ],
)
def test_tokenizers_that_do_not_fit_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, **{"vocab_size": 300, **options})
    with pytest.raises(ValueError, match=message):
        to_gguf(save(language_model(tokenizer, **LLAMA), tokenizer, tmp_path / "model"), tmp_path / "model.gguf")


def test_unknown_pre_tokenizer_is_refused(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    folder = save(language_model(tokenizer, **LLAMA), tokenizer, tmp_path / "model")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("| ?\\\\p{N}+", ""))
    with pytest.raises(
        ValueError, match=r"splits texts by .* must split by one of the patterns .* gpt-2, llama-bpe, qwen2"
    ):
        to_gguf(folder, tmp_path / "model.gguf")


def test_bad_arguments_are_refused(tokenizer: TriviumTokenizer, tmp_path: Path, monkeypatch: Any) -> None:
    folder = save(language_model(tokenizer, **LLAMA), tokenizer, tmp_path / "model")
    with pytest.raises(ValueError, match="quantization is 'int8', but must be one of f32, f16, q8_0"):
        to_gguf(folder, tmp_path / "model.gguf", "int8")
    (tmp_path / "there.gguf").touch()
    for name in ("model.bin", "there.gguf"):
        with pytest.raises(ValueError, match=f"{name}, but must be the name of a new file that ends in '.gguf'"):
            to_gguf(folder, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        to_gguf(tmp_path, tmp_path / "model.gguf")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer_config\.json"):
        to_gguf(folder, tmp_path / "model.gguf")
    classifier = tiny_model(TriviumForSequenceClassification, decoder_layers=0)
    with pytest.raises(
        ValueError, match="holds a TriviumForSequenceClassification, but must hold a TriviumForCausalLM"
    ):
        to_gguf(save(classifier, tokenizer, tmp_path / "classifier"), tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install gguf"):
        to_gguf(folder, tmp_path / "model.gguf")


def test_failure_leaves_nothing_behind(tokenizer: TriviumTokenizer, tmp_path: Path, monkeypatch: Any) -> None:
    folder = save(language_model(tokenizer, **LLAMA), tokenizer, tmp_path / "model")

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(OSError, match="disk full"):
        to_gguf(folder, tmp_path / "out" / "model.gguf")
    assert not list((tmp_path / "out").iterdir())


def test_float16_weights_are_exported_unchanged(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = language_model(tokenizer, **LLAMA).half()
    to_gguf(save(model, tokenizer, tmp_path / "model"), tmp_path / "model.gguf", "f16")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    loaded = TriviumForCausalLM.from_pretrained(tmp_path / "model")
    up_proj = loaded.model.decoder.layers[1].feed_forward.up_proj.weight
    assert torch.equal(torch.from_numpy(tensors["blk.1.ffn_up.weight"].copy()), up_proj)


def test_command_writes_file_and_notes(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    folder = save(language_model(tokenizer, **LLAMA), tokenizer, tmp_path / "model")
    output = tmp_path / "model.gguf"
    result = CliRunner().invoke(app, ["convert", *map(str, (folder, output)), "--to=gguf", "--quantization=f16"])
    assert result.exit_code == 0, result.stderr
    assert "Note: llama.cpp does not normalize texts" in result.stdout
    assert f"The model, a TriviumForCausalLM, is in {output}. Use it with llama.cpp." in result.stdout
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(output).tensors} == {"F16", "F32"}
