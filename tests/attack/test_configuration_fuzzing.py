"""Fuzz configurations: each is rejected with the name of the field, or it round-trips and its logits are finite."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from trivium import TriviumConfig
from trivium.modeling.auto_map import auto_classes

pytestmark = pytest.mark.slow
INF, NAN = float("inf"), float("nan")
FIELDS: dict[str, list[Any]] = {
    "vocab_size": [1, 3, 31, 0, -1, 31.0, "31", None, True],
    "decoder_vocab_size": [None, 17, 0, 17.0],
    "d_model": [8, 12, 16, 7, 0, 16.0, "16", None],
    "hidden_size": [16, 16.0, "16", None, [16]],
    "encoder_layers": [0, 1, 2, -1, 1.0, None],
    "decoder_layers": [0, 1, 2, -1, "1"],
    "num_hidden_layers": [1, 2, 0, "2", 2.0],
    "num_attention_heads": [1, 2, 4, 3, 0, 2.0],
    "num_key_value_heads": [None, 1, 2, 3, 0, "1"],
    "ffn_dim": [8, 16, 0, 16.0],
    "intermediate_size": [8, "8"],
    "hidden_dropout_prob": [0.1, 2.0],
    "activation_function": ["relu", "gelu", "silu", "no such", None, 3],
    "dropout": [0, 0.1, 1, 1.0, -0.1, NAN, INF, "0.1"],
    "position_embedding_type": ["sinusoidal", "learned", "rotary", "alibi", None],
    "max_position_embeddings": [8, 64, 0, INF, "64"],
    "rope_theta": [10000.0, 1e-3, INF, NAN, 0, -1, "1e4", None],
    "sliding_window": [None, 2, 64, 1, 0, -3, 4.0, True, "4"],
    "norm_type": ["layernorm", "rmsnorm", "batchnorm"],
    "norm_position": ["post", "pre", "both"],
    "norm_eps": [1e-5, 0.0, INF, NAN, -1e-5, "1e-5", None],
    "type_vocab_size": [0, 2, -1, 2.0],
    "tie_word_embeddings": [True, False, None, 1, "yes"],
    "label_smoothing": [0.0, 0.1, 1.0, NAN],
    "eos_token_id": [2, [2], [2, 1], [], None, -1, 10**9, "2", [None]],
    "pad_token_id": [0, None, 5, -1, [0]],
    "bos_token_id": [1, None, 99],
    "is_encoder_decoder": [None, True, False],
}


def test_random_configurations(cases: int, rng: random.Random, tmp_path: Path) -> None:
    accepted = 0
    shape = {"vocab_size": 31, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": 2}
    for _ in range(cases):
        chosen = {name: rng.choice(FIELDS[name]) for name in rng.sample(list(FIELDS), rng.choice([1, 1, 1, 2, 3]))}
        try:
            config = TriviumConfig(**{**shape, "ffn_dim": 16, **chosen})
        except (ValueError, TypeError, StrictDataclassError) as error:
            assert str(error), chosen
            continue
        accepted += 1
        config.save_pretrained(tmp_path)
        again = AutoConfig.from_pretrained(tmp_path)
        assert {**again.to_dict(), "_name_or_path": ""} == config.to_dict(), chosen
        for name in ("AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModelForMaskedLM"):
            model_class = auto_classes(config).get(name)
            if model_class is None or (name.endswith("CausalLM") and config.is_encoder_decoder):
                continue
            if name.endswith("MaskedLM") and config.decoder_layers:
                continue
            model = model_class(config).eval()
            ids = torch.randint(0, min(config.vocab_size, config.target_vocab_size), (2, 5))
            inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}
            with torch.no_grad():
                output = model(**inputs)[0]
            assert output.isfinite().all(), chosen
            if model.can_generate():
                for beams in (1, 2):
                    model.generate(ids, num_beams=beams, max_new_tokens=3)
    assert 0 < accepted < cases
