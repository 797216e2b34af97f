"""Test converting checkpoints as published on the Hub, and the errors for models that cannot be converted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from native import (
    assert_matches_native,
    conversion_error,
    edit_config,
    edit_weights,
    exact,
    files_of,
    load_float64,
    native_model,
    saved_native,
    trivium_model,
)
from safetensors.torch import load_file, save_file

from trivium.interop import convert
from trivium.interop.families import FAMILIES

# --- Real-world checkpoints ------------------------------------------------------------------------------------------


@exact
def test_sharded_round_trip(tmp_path: Path) -> None:
    native = native_model("gpt2")
    native.save_pretrained(tmp_path / "native", max_shard_size="20KB")
    assert len(list((tmp_path / "native").glob("*.safetensors"))) > 2
    convert(tmp_path / "native", tmp_path / "ours", max_shard_size=15_000)
    shards = list((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        tensors = load_file(shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 15_000
    assert_matches_native(tmp_path / "ours", native)
    convert(tmp_path / "ours", tmp_path / "back")
    one_file = load_file(tmp_path / "back" / "model.safetensors")
    for name, tensor in native.state_dict().items():
        assert name == "lm_head.weight" or torch.equal(one_file[name], tensor)


def test_memory_is_limited_to_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tensors of the next output shard may be read before it is written."""
    from trivium.interop import checkpoint

    trivium_model("bert-masked-lm").save_pretrained(tmp_path / "ours")
    read, read_per_file = list[int](), list[int]()
    get = checkpoint.Checkpoint.__getitem__

    def reading(self: checkpoint.Checkpoint, name: str) -> torch.Tensor:
        tensor = get(self, name)
        read.append(tensor.nbytes)
        return tensor

    def writing(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        read_per_file.append(sum(read))
        read.clear()
        save_file(tensors, *args, **kwargs)

    monkeypatch.setattr(checkpoint.Checkpoint, "__getitem__", reading)
    monkeypatch.setattr(checkpoint, "save_file", writing)
    convert(tmp_path / "ours", tmp_path / "native", "bert", max_shard_size=20_000)
    assert len(read_per_file) > 4
    assert max(read_per_file) <= 40_000  # One of the reads determines the dtype.


@pytest.mark.parametrize("name", ["marian", "roberta-masked-lm", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_are_kept(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    native_model(name).to(dtype).save_pretrained(tmp_path / "native")
    family = convert(tmp_path / "native", tmp_path / "ours").family
    convert(tmp_path / "ours", tmp_path / "back", family)
    for folder in ("ours", "back"):
        assert {t.dtype for t in load_file(tmp_path / folder / "model.safetensors").values()} == {dtype}
        assert json.loads((tmp_path / folder / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]


@exact
# Published checkpoints name the second class.
@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertForMaskedLM"])
def test_bert_as_pretrained(architecture: str, tmp_path: Path) -> None:
    """Like most BERT checkpoints, this one has a next-sentence head and the old LayerNorm parameter names."""
    native = native_model("bert-masked-lm")
    whole = transformers.BertForPreTraining(native.config).double().eval()
    whole.load_state_dict(native.state_dict(), strict=False)
    whole.save_pretrained(tmp_path / "native")

    def to_old_format(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "LayerNorm" in name]:
            weights[name.replace("weight", "gamma").replace("bias", "beta")] = weights.pop(name)
        weights["bert.embeddings.position_ids"] = torch.arange(29)[None]

    edit_weights(tmp_path / "native", to_old_format)
    edit_config(tmp_path / "native", architectures=[architecture])
    made = convert(tmp_path / "native", tmp_path / "ours")
    assert made.notes[:2] == [f"{x} is dropped: Trivium has none" for x in ("cls.seq_relationship", "pooler.dense")]
    assert_matches_native(tmp_path / "ours", native, "TriviumForMaskedLM")


@exact
def test_roberta_as_published(tmp_path: Path) -> None:
    """The checkpoint has a pooler, which masked language modeling does not need, and a position buffer."""
    native = native_model("roberta-masked-lm")
    native.save_pretrained(tmp_path / "native")

    def to_old_format(weights: dict[str, torch.Tensor]) -> None:
        weights |= {
            f"roberta.pooler.dense.{x}": torch.ones(24, 24)[:, i].contiguous()
            for i, x in enumerate(("weight", "bias"))
        }
        weights["roberta.embeddings.position_ids"] = torch.arange(29)[None]

    edit_weights(tmp_path / "native", to_old_format)
    assert convert(tmp_path / "native", tmp_path / "ours").notes[0] == "pooler.dense is dropped: Trivium has none"
    assert_matches_native(tmp_path / "ours", native)


@exact
def test_gpt2_as_published(tmp_path: Path) -> None:
    """The checkpoint lacks the prefix, and has mask buffers and a duplicate of the output projection."""
    native = native_model("gpt2")
    native.save_pretrained(tmp_path / "native")

    def to_old_format(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        for i in range(3):
            weights[f"h.{i}.attn.bias"] = torch.ones(1, 1, 29, 29).tril()
            weights[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        weights["lm_head.weight"] = weights["wte.weight"].clone()

    edit_weights(tmp_path / "native", to_old_format)
    convert(tmp_path / "native", tmp_path / "ours")
    assert_matches_native(tmp_path / "ours", native)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_marian_with_position_table(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = saved_native(tmp_path, "marian")
    table = FAMILIES["marian"].computed["encoder.embed_positions.weight"]((29, 24)).to(dtype)
    edit_weights(folder, lambda weights: weights.update({"model.encoder.embed_positions.weight": table}))
    convert(folder, tmp_path / "ours")
    edit_weights(folder, lambda weights: weights.update({"model.encoder.embed_positions.weight": table * 1.1}))
    with pytest.raises(ValueError, match=r"encoder\.embed_positions\.weight.*sinusoidal.*table"):
        convert(folder, tmp_path / "other")


@exact
@pytest.mark.parametrize("name", ["marian", pytest.param("bart", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bias", ["absent", "zeros", "numbers"])
def test_head_bias_is_kept_if_nonzero(name: str, bias: str, tmp_path: Path) -> None:
    native = native_model(name)
    native.final_logits_bias.zero_()
    if bias == "numbers":
        native.final_logits_bias.normal_()
    native.save_pretrained(tmp_path / "native")
    if bias == "absent":
        edit_weights(tmp_path / "native", lambda weights: weights.pop("final_logits_bias"))
    convert(tmp_path / "native", tmp_path / "ours")
    assert load_float64(tmp_path / "ours").config.lm_head_bias == (bias == "numbers")
    assert_matches_native(tmp_path / "ours", native)
    convert(tmp_path / "ours", tmp_path / "back", name)
    assert torch.equal(load_float64(tmp_path / "back").final_logits_bias, native.final_logits_bias)


@exact
def test_old_configuration_spellings(tmp_path: Path) -> None:
    folder = saved_native(tmp_path, "llama-tied-theta")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["dtype"], config["head_dim"]
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 300.0, "torch_dtype": "float64"}))
    convert(folder, tmp_path / "ours")
    assert load_float64(tmp_path / "ours").config.rope_theta == 300.0


# --- Errors leave no output ------------------------------------------------------------------------------------------


WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None}
ROPE = {"rope_type": "proportional", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("name", "changes", "expected_error"),
    [
        ("llama", {"rope_parameters": ROPE}, "rope_type is 'proportional', but must be one of 'default', 'linear'"),
        ("llama", {"head_dim": 8}, "head_dim is 8, but must be 6"),
        ("llama", {"hidden_act": "softsquare"}, "config.json is invalid: activation_function is 'softsquare', but"),
        ("llama", {"vocab_size": "many"}, "config.json is invalid: Field 'vocab_size'"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ("llama", {"architectures": None}, "None"),
        ("llama", {"model_type": "mamba"}, "'mamba', but must be one of trivium, bart, bert, gpt2, llama, marian"),
        ("llama", {"model_type": None}, "model_type None"),
        ("mistral", {"sliding_window": 1}, "config.json is invalid: sliding_window is 1, but must be at least 2"),
        ("qwen2", WINDOW, "layer_types is ['full_attention', 'sliding_attention', 'sliding_attention'], but must be"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gpt2", {"embd_pdrop": 0.2}, "resid_pdrop is 0.1 and embd_pdrop is 0.2, but must be equal"),
        ("bert", {"is_decoder": True}, "is_decoder is True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert-tokens", {"classifier_dropout": 0.3}, "hidden_dropout_prob is 0.1 and classifier_dropout is 0.3"),
        ("roberta-masked-lm", {"hidden_act": "relu"}, "activation_function is 'relu', but must be 'gelu'"),
        ("roberta", {"pad_token_id": None}, "pad_token_id is None"),
        ("marian", {"decoder_attention_heads": 2}, "encoder_attention_heads is 4 and decoder_attention_heads is 2"),
        ("marian", {"decoder_ffn_dim": 48}, "encoder_ffn_dim is 40 and decoder_ffn_dim is 48"),
        ("bart", {"encoder_layerdrop": 0.1}, "encoder_layerdrop is 0.1"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ],
)
def test_unsupported_native_fields_are_refused(
    name: str, changes: dict[str, Any], expected_error: str, tmp_path: Path
) -> None:
    folder = saved_native(tmp_path, name)
    edit_config(folder, **changes)
    assert expected_error in conversion_error(folder, tmp_path / "ours")


def test_all_unsupported_fields_are_named(tmp_path: Path) -> None:
    folder = saved_native(tmp_path, "gpt2")
    edit_config(folder, scale_attn_weights=False, embd_pdrop=0.2)
    message = conversion_error(folder, tmp_path / "ours")
    assert "scale_attn_weights" in message
    assert "embd_pdrop" in message


UNTIED = {"tie_word_embeddings": False}
VARIANTS: list[tuple[str, dict[str, Any], str | None, str]] = [
    (
        "gpt2",
        {"position_embedding_type": "rotary"},
        None,
        "the closest is gpt2, but: position_embedding_type is 'rotary'",
    ),
    ("gpt2", {"num_key_value_heads": 2}, "gpt2", "num_attention_heads is 4 and num_key_value_heads is 2"),
    ("llama", {"attention_bias": True}, "mistral", "attention_bias is True, but must be False"),
    ("llama", {"ffn_bias": True}, "qwen2", "ffn_bias is True, but must be False"),
    (
        "llama",
        {"attention_bias": True},
        "qwen2",
        "self_attn.o_proj.bias must be zero, because a Qwen2ForCausalLM has no such",
    ),
    ("llama", {}, None, "Set `to` to one of llama, mistral, qwen2"),
    ("llama", {"sliding_window": 4}, "llama", "sliding_window is 4, but must be None"),
    ("llama", {"qk_norm": True}, "llama", "qk_norm is True, but must be False"),
    ("llama", {}, "qwen3", "qk_norm is False, but must be True"),
    ("llama", {"lm_head_bias": True}, "llama", "lm_head_bias is True, but must be False"),
    ("llama", {}, "marian", "it has no class for TriviumForCausalLM"),
    ("llama", {}, "t5", "'t5', but must be one of bart, bert"),
    ("bert-sequence", {"classifier_pooling": "mean"}, None, "classifier_pooling is 'mean', but must be 'cls'"),
    ("bert-masked-lm", {}, None, "one of bert, roberta"),
    ("bert-masked-lm", {"norm_position": "pre"}, None, "norm_position is 'pre', but must be 'post'"),
    ("bert-masked-lm", {"pad_token_id": None}, "roberta", "pad_token_id is None, but must be 1"),
    ("bert-masked-lm", {"activation_function": "relu"}, "roberta", "activation_function is 'relu'"),
    ("bart", UNTIED, "bart", "tie_word_embeddings is False"),
    ("paper-marian", {"norm_eps": 1e-6}, None, "the closest is marian, but: norm_eps is 1e-06, but must be 1e-05"),
    ("paper-marian", {"type_vocab_size": 2}, "marian", "type_vocab_size is 2, but must be 0"),
]


@pytest.mark.parametrize(("name", "changes", "to", "expected_error"), VARIANTS)
def test_fields_the_family_lacks_are_refused(
    name: str, changes: dict[str, Any], to: str | None, expected_error: str, tmp_path: Path
) -> None:
    trivium_model(name, **changes).save_pretrained(tmp_path / "ours")
    assert expected_error in conversion_error(tmp_path / "ours", tmp_path / "native", to)


def test_only_matching_family_is_selected(tmp_path: Path) -> None:
    trivium_model("gpt2").save_pretrained(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "native").family == "gpt2"


def _rename(weights: dict[str, torch.Tensor], old: str, new: str) -> None:
    weights[new] = weights.pop(old)


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("edit", "expected_error"),
    [
        (lambda weights: weights.pop(Q_PROJ), f"{Q_PROJ} is missing"),
        (
            lambda weights: weights.update({"model.layers.1.self_attn.q_norm.weight": torch.ones(6)}),
            "q_norm.weight is unexpected",
        ),
        (
            lambda weights: weights.update({Q_PROJ: torch.ones(24, 12)}),
            "has the shape (24, 12), but must have (24, 24)",
        ),
        (lambda weights: _rename(weights, Q_PROJ, "x.weight"), f"{Q_PROJ} is missing; x.weight is unexpected"),
        (dict.clear, "is missing; "),
    ],
)
def test_unexpected_weights_are_refused(
    edit: Callable[[dict[str, torch.Tensor]], Any], expected_error: str, tmp_path: Path
) -> None:
    folder = saved_native(tmp_path)
    edit_weights(folder, edit)
    message = conversion_error(folder, tmp_path / "ours")
    assert expected_error in message
    assert message.startswith("The weights do not match the LlamaForCausalLM that config.json describes: ")


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    folder = saved_native(tmp_path, "gpt2")
    edit_weights(folder, lambda weights: weights.update({"lm_head.weight": torch.ones(31, 24).double()}))
    assert "are tied, but differ" in conversion_error(folder, tmp_path / "ours")


@pytest.mark.parametrize(("config", "weights"), [("llama", "gpt2"), ("gpt2", "bert-masked-lm"), ("bart", "marian")])
def test_weights_of_another_family_are_refused(config: str, weights: str, tmp_path: Path) -> None:
    folder = saved_native(tmp_path / "a", config)
    shutil.copy(saved_native(tmp_path / "b", weights) / "model.safetensors", folder)
    assert "that config.json describes: " in conversion_error(folder, tmp_path / "ours")


def test_trivium_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    trivium_model("gpt2").save_pretrained(tmp_path / "ours")
    edit_config(tmp_path / "ours", ffn_dim=44)
    message = conversion_error(tmp_path / "ours", tmp_path / "native")
    assert "has the shape (40, 24), but must have (44, 24)" in message


def _truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _index(content: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return write


NO_FILE = "is not a complete safetensors file"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (_truncate, NO_FILE),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), NO_FILE),
    "pickled": (_pickle, "Pickled weights (pytorch_model.bin) are not loaded"),
    "lost": (
        _index('{"weight_map": {"a": "model-1.safetensors"}}'),
        "lists model-1.safetensors, but that file is missing",
    ),
    "elsewhere": (_index('{"weight_map": {"a": "../../config.json"}}'), NO_FILE),
    "number": (_index('{"weight_map": {"a": 3}}'), "is not a safetensors index"),
    "mapless": (_index('{"metadata": {}}'), "is not a safetensors index"),
    "half": (_index("{"), "is not a safetensors index"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "half-config": (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
    "list-config": (lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
}


@pytest.mark.parametrize(("damage", "expected_error"), DAMAGES.values(), ids=DAMAGES)
def test_broken_files_are_refused(damage: Callable[[Path], Any], expected_error: str, tmp_path: Path) -> None:
    folder = saved_native(tmp_path)
    damage(folder)
    assert expected_error in conversion_error(folder, tmp_path / "ours")


def test_existing_output_folder_is_refused(tmp_path: Path) -> None:
    folder = saved_native(tmp_path)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine.txt").write_text("mine")
    assert "already exists" in conversion_error(folder, tmp_path / "ours")
    assert files_of(tmp_path / "ours") == {"mine.txt": b"mine"}


def test_missing_source_is_refused(tmp_path: Path) -> None:
    assert "is neither a folder nor" in conversion_error(Path("someone/nothing"), tmp_path / "ours")
    assert "is neither a folder nor" in conversion_error(tmp_path / "nothing", tmp_path / "ours")


def test_native_to_native_is_refused(tmp_path: Path) -> None:
    assert "to is 'mistral', but" in conversion_error(saved_native(tmp_path), tmp_path / "ours", "mistral")
