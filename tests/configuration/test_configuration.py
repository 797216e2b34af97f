"""Test the configuration: defaults, validation errors, and saving and loading."""

import inspect
import json
import logging
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import tiny_config
from transformers import AutoConfig

from trivium import TriviumConfig, TriviumForConditionalGeneration, preset_config
from trivium.configuration import PRESETS

INF, NAN = float("inf"), float("nan")
# (arguments; then field, value and allowed values, which the message must contain)
REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"d_model": 30}, "d_model", "30", "multiple of num_attention_heads (8)"),
    ({"num_key_value_heads": 3}, "num_key_value_heads", "3", "divide num_attention_heads (8)"),
    ({"num_key_value_heads": 16}, "num_key_value_heads", "16", "divide num_attention_heads (8)"),
    ({"d_model": 9, "num_attention_heads": 3}, "d_model", "9", "even with sinusoidal"),
    (
        {"d_model": 24, "num_attention_heads": 8, "position_embedding_type": "rotary"},
        "d_model / num_attention_heads",
        "3",
        "even with rotary",
    ),
    ({"position_embedding_type": "alibi"}, "position_embedding_type", "alibi", "rotary"),
    ({"norm_type": "batchnorm"}, "norm_type", "batchnorm", "rmsnorm"),
    ({"norm_position": "middle"}, "norm_position", "middle", "pre"),
    ({"activation_function": "sinc"}, "activation_function", "sinc", "gelu"),
    *(({field: -1}, field, "-1", "at least 0") for field in ("encoder_layers", "decoder_layers", "type_vocab_size")),
    ({"encoder_layers": 0, "decoder_layers": 0}, "encoder_layers", "0", "at least one of them must be above 0"),
    ({"is_encoder_decoder": False}, "is_encoder_decoder", "False", "decoder-only model has encoder_layers=0"),
    ({"decoder_layers": 0, "is_encoder_decoder": True}, "is_encoder_decoder", "True", "both above 0"),
    *(
        ({field: 0, "decoder_vocab_size": 50}, "decoder_vocab_size", "50", "vocab_size")
        for field in ("encoder_layers", "decoder_layers")
    ),
    ({"encoder_layers": 0, "type_vocab_size": 2}, "type_vocab_size", "2", "must be 0"),
    *(({"sliding_window": value}, "sliding_window", str(value), "at least 2 tokens") for value in (1, 0, -4)),
    *(({"sliding_window": value}, "sliding_window", str(value), "int") for value in (True, False, 8.0)),
    ({"classifier_pooling": "sum"}, "classifier_pooling", "sum", "mean"),
    *(
        ({field: value}, field, str(value), "at least 1")
        for value in (0, -5)
        for field in (
            *("vocab_size", "decoder_vocab_size", "d_model", "num_attention_heads", "num_key_value_heads"),
            *("ffn_dim", "max_position_embeddings"),
        )
    ),
    *(
        ({field: value}, field, str(value), "[0, 1)")
        for value in (1.0, -0.1, 1.5)
        for field in ("dropout", "attention_dropout", "activation_dropout", "label_smoothing")
    ),
    *(({field: value}, field, str(value), "above 0") for value in (0.0, -1.0) for field in ("norm_eps", "rope_theta")),
    *(
        ({"vocab_size": 50, field: value}, field, str(value), "[0, 50)")
        for value in (50, -1)
        for field in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    ),
    ({"vocab_size": 50, "eos_token_id": [2, 50]}, "eos_token_id", "[2, 50]", "[0, 50)"),
    # With two vocabularies, the padding id must exist in both, and all other special tokens in the target vocabulary.
    *(
        ({"vocab_size": 50, "decoder_vocab_size": 40, field: 45}, field, "45", "[0, 40)")
        for field in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    ),
    ({"vocab_size": 40, "decoder_vocab_size": 50, "pad_token_id": 45}, "pad_token_id", "45", "[0, 40)"),
    *(({field: value}, field, str(value), "finite") for value in (INF, NAN) for field in ("norm_eps", "rope_theta")),
    ({"eos_token_id": []}, "eos_token_id", "[]", "non-empty list"),
    ({"d_model": "512"}, "d_model", "512", "int"),
    ({"hidden_size": "64"}, "d_model", "64", "int"),
    ({"hidden_size": 64.0}, "d_model", "64.0", "int"),
    ({"dropout": "0.1"}, "dropout", "0.1", "float"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings", "yes", "bool"),
]


@pytest.mark.parametrize(
    ("fields", "field", "value", "allowed"), REFUSED, ids=[json.dumps(fields) for fields, *_ in REFUSED]
)
def test_invalid_configuration_is_refused(fields: dict[str, Any], field: str, value: str, allowed: str) -> None:
    with pytest.raises(StrictDataclassError) as caught:
        TriviumConfig(**fields)
    message = f"{caught.value} {caught.value.__cause__}"
    for part in (field, value, allowed):
        assert re.search(rf"(?<!\w){re.escape(part)}", message), f"{part!r} is not in {message!r}"


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 40, "decoder_vocab_size": 50, "eos_token_id": 45},
        {"d_model": 9, "num_attention_heads": 3, "position_embedding_type": "learned"},
        {"d_model": 24, "num_attention_heads": 8},
        {"encoder_layers": 0},
        {"decoder_layers": 0, "type_vocab_size": 2},
        {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "decoder_start_token_id": None},
        {"eos_token_id": [2, 3]},
        {"dropout": 0, "rope_theta": 500_000},
        {"num_key_value_heads": 1},
    ],
    ids=str,
)
def test_valid_edge_cases_are_accepted(fields: dict[str, Any]) -> None:
    config = TriviumConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_defaults_match_base_model_of_paper() -> None:
    """Compare the defaults with the first row of Table 3, and with sections 3.1 to 3.5 and 5.4."""
    config = TriviumConfig()
    assert (config.encoder_layers, config.decoder_layers) == (6, 6)
    assert (config.d_model, config.ffn_dim, config.num_attention_heads, config.head_dim) == (512, 2048, 8, 64)
    assert (config.dropout, config.label_smoothing) == (0.1, 0.1)
    assert (config.vocab_size, config.decoder_vocab_size) == (37000, None)
    assert (config.attention_dropout, config.activation_dropout) == (0, 0)
    assert (config.position_embedding_type, config.norm_type, config.norm_position) == (
        *("sinusoidal", "layernorm", "post"),
    )
    assert (config.activation_function, config.gated_ffn, config.ffn_bias, config.attention_bias) == (
        *("relu", False, True, False),
    )
    assert config.num_key_value_heads == config.num_attention_heads
    assert config.scale_embedding
    assert config.tie_word_embeddings
    assert config.is_encoder_decoder
    assert preset_config("transformer-base").to_dict() == config.to_dict()


def test_big_preset_matches_paper() -> None:
    """Compare the preset with the last row of Table 3."""
    config = preset_config("transformer-big")
    assert (config.encoder_layers, config.decoder_layers) == (6, 6)
    assert (config.d_model, config.ffn_dim, config.num_attention_heads, config.dropout) == (1024, 4096, 16, 0.3)


def expected_parameters(config: TriviumConfig) -> int:
    """Count one embedding and, per layer, the projections (with biases in the FFN only) and LayerNorms."""
    d, inner = config.d_model, config.ffn_dim
    attention, feed_forward, norm = 4 * d * d, 2 * d * inner + inner + d, 2 * d
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    return config.vocab_size * d + config.encoder_layers * encoder_layer + config.decoder_layers * decoder_layer


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("transformer-base", 63_045_632),  # Table 3 states 65 million.
        ("transformer-big", 214_171_648),  # Table 3 states 213 million.
        ("transformer-tiny", 2_598_912),  # Wu et al. 2021 state 2.6 million.
        ("transformer-micro", None),
    ],
)
def test_parameter_counts(name: str, count: int | None) -> None:
    config = preset_config(name)
    with torch.device("meta"):
        model = TriviumForConditionalGeneration(config)
    assert model.num_parameters() == expected_parameters(config)
    assert count is None or count == expected_parameters(config)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_accept_overrides(name: str) -> None:
    assert preset_config(name, dropout=0.25).dropout == 0.25
    assert preset_config(name).dropout != 0.25, "a preset was changed by the call before"


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'transformer-huge'.*transformer-base, transformer-big"):
        preset_config("transformer-huge")


CHOICES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all-else": {
        "decoder_vocab_size": 23,
        "num_key_value_heads": 2,
        "gated_ffn": True,
        "activation_function": "silu",
        "attention_dropout": 0.2,
        "activation_dropout": 0.3,
        "position_embedding_type": "rotary",
        "rope_theta": 5e5,
        "sliding_window": 5,
        "norm_type": "rmsnorm",
        "norm_position": "pre",
        "norm_eps": 1e-6,
        "attention_bias": True,
        "ffn_bias": False,
        "scale_embedding": False,
        "tie_word_embeddings": False,
        "label_smoothing": 0.0,
        "eos_token_id": [2, 3],
        "use_cache": False,
        "decoder_start_token_id": 4,
    },
}


@pytest.mark.parametrize("overrides", CHOICES.values(), ids=CHOICES)
def test_configuration_round_trips(overrides: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(**overrides)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "trivium"
    for loaded in (
        TriviumConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        TriviumConfig.from_dict(config.to_dict()),
        TriviumConfig.from_dict(saved),
    ):
        assert type(loaded) is TriviumConfig
        assert loaded.to_diff_dict() == config.to_diff_dict()
        for field, value in overrides.items():
            assert getattr(loaded, field) == value, field


def test_attribute_map_aliases() -> None:
    config = tiny_config()
    assert (config.hidden_size, config.num_hidden_layers) == (24, 2)
    assert TriviumConfig(hidden_size=64, num_hidden_layers=3).to_dict()["d_model"] == 64
    config.hidden_size = 48
    assert config.d_model == 48


def test_attribute_map_aliases_are_validated() -> None:
    config = tiny_config()
    for value in (64.0, "64", None):
        with pytest.raises(StrictDataclassError, match="d_model"):
            config.hidden_size = value
    assert config.hidden_size == config.d_model == 24


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Collect the warnings that transformers logs."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog


@pytest.mark.parametrize("family", ["llama", "mistral", "bert", "gpt2", "bart"])
def test_configuration_of_another_family_is_refused(family: str, tmp_path: Path) -> None:
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"model_type is '{family}', but must be 'trivium'.*trivium convert"):
        TriviumConfig.from_pretrained(tmp_path)


def test_subclass_with_own_model_type_loads_the_configuration_it_extends(tmp_path: Path) -> None:
    class ExtendedConfig(TriviumConfig):
        model_type = "trivium-extended"
        adapter_dim: int = 16

    tiny_config().save_pretrained(tmp_path)
    config = ExtendedConfig.from_pretrained(tmp_path, adapter_dim=8)
    assert (config.model_type, config.d_model, config.adapter_dim) == ("trivium-extended", 24, 8)
    config.save_pretrained(tmp_path)
    assert ExtendedConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="model_type is 'trivium-extended', but must be 'trivium'"):
        TriviumConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type is 'bert', but must be 'trivium-extended' or 'trivium'"):
        ExtendedConfig(model_type="bert")


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"hidden_dropout_prob": 0.2}, "hidden_dropout_prob .* set dropout"),
        ({"intermediate_size": 64}, "intermediate_size .* set ffn_dim"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps .* set norm_eps"),
        ({"hidden_act": "gelu"}, "hidden_act .* set activation_function"),
        ({"num_hidden_layers": 2}, "num_hidden_layers .* set encoder_layers and decoder_layers"),
    ],
)
def test_field_names_of_other_families_warn_once(
    fields: dict[str, Any], advice: str, warnings: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        tiny_config(**fields)
    [message] = [record.getMessage() for record in warnings.records]
    assert re.search(advice, message), message


def test_fields_that_transformers_reports_do_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    for name, preset in PRESETS.items():
        TriviumConfig.from_dict(preset_config(name).to_dict())
        TriviumConfig(
            **{**preset, "encoder_layers": 0, "type_vocab_size": 0, "decoder_layers": 1}, num_hidden_layers=2
        )
    assert not caplog.records


def test_head_dim_must_match_other_fields() -> None:
    assert tiny_config(head_dim=tiny_config().head_dim).to_dict().get("head_dim") is None
    with pytest.raises(ValueError, match=r"head_dim is 128, but must be d_model / num_attention_heads"):
        tiny_config(head_dim=128)


@pytest.mark.parametrize(("decoder_vocab_size", "expected"), [(None, 31), (23, 23)])
def test_text_config_of_decoder(decoder_vocab_size: int | None, expected: int) -> None:
    """Its layers and vocabulary size must be the decoder's, because caches and generation read them from it."""
    config = tiny_config(decoder_vocab_size=decoder_vocab_size)
    text_config = config.get_text_config(decoder=True)
    assert (text_config.num_hidden_layers, text_config.vocab_size) == (3, expected)
    assert config.get_text_config().vocab_size == expected, "asking for no side, generation means the decoder's"
    assert config.decoder_vocab_size == decoder_vocab_size, "asking changed the configuration"


def test_old_transformers_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration file checks the version, because it is the first file of a saved folder to be imported."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "5.23.0")
    with pytest.raises(ImportError, match=r"transformers>=5\.24 is required.*found transformers==5\.23\.0"):
        runpy.run_path(inspect.getfile(TriviumConfig))
