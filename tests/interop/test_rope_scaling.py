"""Test RoPE scaling: logits match native LLaMA in both directions of conversion, even beyond the trained context."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from matrices import slow_unless
from native import THEIRS, conversion_error, native_model
from tiny import mask_of, random_ids, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from trivium import TriviumConfig, TriviumForCausalLM
from trivium.interop import convert

assert THEIRS["llama"][1]["hidden_size"] // THEIRS["llama"][1]["num_attention_heads"] == 6  # so LongRoPE has 3 factors
ORIGINAL = {"factor": 4.0, "original_max_position_embeddings": 8}
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": ORIGINAL,
    "llama3": {**ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {**ORIGINAL, "short_factor": [1.0, 1.5, 2.0], "long_factor": [1.0, 3.0, 6.0]},
}
every_type = pytest.mark.parametrize("rope_type", SCALED)
CLOSE = {"rtol": 0, "atol": 2e-5}  # transformers computes frequencies and angles in float32


def parameters(rope_type: str) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 500.0, **SCALED[rope_type]}


def causal(**overrides: Any) -> TriviumConfig:
    options = {"encoder_layers": 0, "position_embedding_type": "rotary", "max_position_embeddings": 16}
    return tiny_config(**{**options, **overrides})


@every_type
def test_logits_match_llama_both_ways(rope_type: str, tmp_path: Path) -> None:
    native = native_model("llama", rope_parameters=parameters(rope_type)).double().eval()
    native.save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="llama")
    ours = TriviumForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float64)
    back = LlamaForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float64)
    assert ours.config.rope_parameters == back.config.rope_parameters == native.config.rope_parameters
    unscaled = TriviumForCausalLM.from_pretrained(tmp_path / "ours", rope_parameters={"rope_type": "default"})
    assert unscaled.config.rope_theta == 500.0
    # 45 tokens exceed the trained context of 29; the short input after them must reset the dynamic frequencies.
    for length in (5, 45, 6):
        ids = random_ids(2, length)
        with torch.no_grad():
            expected = native(input_ids=ids).logits
            torch.testing.assert_close(ours(input_ids=ids).logits, expected, **CLOSE)
            torch.testing.assert_close(back(input_ids=ids).logits, expected, **CLOSE)
            if length == 45:
                assert not torch.allclose(unscaled.double()(input_ids=ids).logits, expected, atol=1e-3)


@pytest.mark.parametrize("rope_type", slow_unless(SCALED, ["llama3", "longrope"]))
def test_generation_matches_llama(rope_type: str, tmp_path: Path) -> None:
    """Compare cached generation with left padding, beyond the trained context."""
    native = native_model("llama", rope_parameters=parameters(rope_type)).double().eval()
    native.save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours")
    ours = TriviumForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float64)
    inputs = {"input_ids": random_ids(2, 6), "attention_mask": mask_of([6, 4], "left")}
    for num_beams in (1, 3):
        options: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 30, "num_beams": num_beams}
        assert ours.generate(**inputs, **options).tolist() == native.generate(**inputs, **options).tolist()


@every_type
def test_frequencies_survive_loading_and_casting(rope_type: str, tmp_path: Path) -> None:
    model = TriviumForCausalLM(causal(rope_parameters=parameters(rope_type))).eval()
    model.save_pretrained(tmp_path)
    rotary = model.model.decoder.embed_positions.rotary_emb
    expected = rotary.inv_freq.clone()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for other in (loaded, model.bfloat16(), model.half(), model.to("meta").to_empty(device="cpu")):
        frequencies = other.model.decoder.embed_positions.rotary_emb
        assert torch.equal(frequencies.inv_freq, expected)
        assert torch.equal(frequencies.original_inv_freq, expected)
    assert not [name for name in loaded.state_dict() if "rotary" in name]


def test_old_configuration_loads(tmp_path: Path) -> None:
    causal(rope_theta=300.0).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.pop("rope_parameters") == {"rope_type": "default", "rope_theta": 300.0}
    (tmp_path / "config.json").write_text(json.dumps({**saved, "rope_theta": 700.0}))
    config = TriviumConfig.from_pretrained(tmp_path)
    assert config.rope_theta == 700.0
    config = TriviumConfig.from_pretrained(tmp_path, rope_parameters={"rope_type": "linear", "factor": 2.0})
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0}
    former = causal(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=700.0)
    assert former.rope_parameters == config.rope_parameters


def test_arguments_are_not_mutated() -> None:
    given = {"rope_type": "linear", "factor": 2.0}
    causal(rope_parameters=given)
    assert given == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "expected_error"),
    [
        ({"rope_type": "ntk"}, "rope_type is 'ntk', but must be one of 'default', 'linear'"),
        ({"rope_type": "linear"}, "lacks factor; rope_type='linear' needs factor"),
        ({"rope_type": "linear", "factor": 0.5}, "factor is 0.5, but must be a finite number of at least 1"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2', but must be"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 3}, "has beta_fast; rope_type='linear' needs factor"),
        (
            {**parameters("llama3"), "low_freq_factor": 8.0},
            "low_freq_factor is 8.0, but must be below high_freq_factor",
        ),
        ({**parameters("longrope"), "long_factor": [1.0]}, "long_factor is [1.0], but must be a list of 3 numbers"),
        ({"rope_theta": float("nan")}, "rope_theta is nan, but must be a number above 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but must be 1.0"),
    ],
)
def test_invalid_rope_parameters_are_refused(changes: dict[str, Any], expected_error: str) -> None:
    with pytest.raises(StrictDataclassError, match=re.escape(expected_error)):
        causal(rope_parameters=changes)


@pytest.mark.parametrize(
    ("changes", "expected_error"),
    [
        ({"rope_parameters": {"rope_type": "ntk"}}, "rope_type is 'ntk', but must be one of 'default', 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "lacks factor; rope_type='yarn' needs factor"),
        ({"position_embedding_type": "learned", "rope_parameters": parameters("yarn")}, "rope_type is 'yarn', but"),
        ({"dropout": 2.0}, "dropout is 2.0, but must be in [0, 1)"),
        ({"sliding_window": 1}, "sliding_window is 1, but must be at least 2"),
    ],
)
def test_invalid_fields_are_refused_on_loading(changes: dict[str, Any], expected_error: str, tmp_path: Path) -> None:
    TriviumForCausalLM(causal()).save_pretrained(tmp_path)
    for auto_class in (TriviumForCausalLM, AutoModelForCausalLM, AutoConfig):
        with pytest.raises(ValueError, match=re.escape(expected_error)):
            auto_class.from_pretrained(tmp_path, **changes)


@pytest.mark.parametrize("rope_type", ["yarn", "llama3", "longrope"])
def test_stretched_checkpoint_keeps_its_trained_length(rope_type: str, tmp_path: Path) -> None:
    """The trained length comes from the checkpoint, not from the new maximum, regardless of the order of arguments."""
    TriviumForCausalLM(causal(max_position_embeddings=8)).save_pretrained(tmp_path / "trained")
    new: dict[str, Any] = {"rope_parameters": parameters(rope_type), "max_position_embeddings": 32}
    expected = TriviumForCausalLM.from_pretrained(tmp_path / "trained", **new)
    assert parameters(rope_type)["original_max_position_embeddings"] == 8
    del new["rope_parameters"]["original_max_position_embeddings"]
    for options in (new, dict(reversed(new.items()))):
        model = TriviumForCausalLM.from_pretrained(tmp_path / "trained", **options)
        assert model.config.to_dict() == expected.config.to_dict()
        frequencies = [each.model.decoder.embed_positions.rotary_emb.inv_freq for each in (model, expected)]
        assert torch.equal(*frequencies)
    model.save_pretrained(tmp_path / "stretched")
    further: dict[str, Any] = {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}, "max_position_embeddings": 64}
    config = TriviumConfig.from_pretrained(tmp_path / "stretched", **further)
    assert config.rope_parameters["original_max_position_embeddings"] == 8
    assert config.max_position_embeddings == 64


def test_scaling_needs_rotary_positions() -> None:
    with pytest.raises(
        StrictDataclassError, match="rope_type is 'linear', but must be 'default' with position_embedding_type"
    ):
        causal(position_embedding_type="learned", rope_parameters=parameters("linear"))


def test_scaling_without_native_equivalent_is_refused(tmp_path: Path) -> None:
    native_model("llama", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}).save_pretrained(
        tmp_path
    )
    assert "partial_rotary_factor is 0.5" in conversion_error(tmp_path, tmp_path / "ours")
