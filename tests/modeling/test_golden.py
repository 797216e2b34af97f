"""Compare all parameter names and shapes with golden files, so that renames that break old checkpoints are noticed.

After an intended change, run `python -m pytest tests/modeling/test_golden.py --regenerate` and commit the files.
"""

import json
from typing import Any

import pytest
import torch
from model_classes import LAYERS
from paths import TESTS
from tiny import tiny_config
from transformers import PreTrainedModel

from trivium import (
    TriviumConfig,
    TriviumDecoderForSequenceClassification,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    preset_config,
)
from trivium.auto import AnyModelForPreTraining
from trivium.configuration import PRESETS

GOLDEN = TESTS / "golden"
VARIANTS: dict[str, dict[str, Any]] = {
    "gated-rms-pre-rotary-gqa": {
        "gated_ffn": True,
        "ffn_bias": False,
        "norm_type": "rmsnorm",
        "norm_position": "pre",
        "position_embedding_type": "rotary",
        "num_key_value_heads": 2,
    },
    "biased-learned": {"attention_bias": True, "position_embedding_type": "learned"},
    "two-vocabularies": {"decoder_vocab_size": 23},
    "untied": {"tie_word_embeddings": False},
    "qk-norm": {"qk_norm": True},
}
HEADS: dict[str, type[PreTrainedModel]] = {  # Heads for fine-tuning, in addition to the head for pre-training.
    "sequence-classification": TriviumForSequenceClassification,
    "token-classification": TriviumForTokenClassification,
    "question-answering": TriviumForQuestionAnswering,
    "decoder-sequence-classification": TriviumDecoderForSequenceClassification,
}
CONFIGS: dict[str, TriviumConfig] = {
    **{name: preset_config(name) for name in PRESETS},
    **{name: tiny_config(**overrides) for name, overrides in VARIANTS.items()},
}
MODELS: dict[str, tuple[type[PreTrainedModel], TriviumConfig]] = {
    **{name: (AnyModelForPreTraining.model_class_for(config), config) for name, config in CONFIGS.items()},
    **{name: (head, tiny_config(**LAYERS[head], num_labels=3)) for name, head in HEADS.items()},
}


def parameter_tree(name: str) -> dict[str, list[int]]:
    model_class, config = MODELS[name]
    with torch.device("meta"):
        model = model_class(config)
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_tree_matches_golden_file(name: str, request: pytest.FixtureRequest) -> None:
    tree, path = parameter_tree(name), GOLDEN / f"{name}.json"
    if request.config.getoption("--regenerate"):
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(shape)}" for key, shape in tree.items())
        path.write_text(f"{{\n{lines}\n}}\n")
    assert tree == json.loads(path.read_text()), "if this is meant, run pytest with --regenerate (see the docstring)"


def test_no_stale_golden_file() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(MODELS)
