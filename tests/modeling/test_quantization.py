"""Test that dynamic quantization replaces every projection, which requires the exact type `nn.Linear`."""

import pytest
import torch
from tiny import random_ids, tiny_model
from torch import nn
from torch.ao.nn.quantized import dynamic
from torch.ao.quantization import quantize_dynamic
from transformers import PreTrainedModel

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumForMaskedLM

# There are four projections per attention, two or three per feed-forward network, and one in the head.
MODELS = [
    (TriviumForConditionalGeneration, {}, 2 * (4 + 2) + 3 * (8 + 2) + 1),
    (TriviumForMaskedLM, {"decoder_layers": 0}, 2 * (4 + 2) + 2),
    (TriviumForCausalLM, {"encoder_layers": 0, "gated_ffn": True}, 3 * (4 + 3) + 1),
]


# Both warnings recommend torchao, a separate package.
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(("model_class", "options", "projections"), MODELS)
@torch.no_grad()
def test_every_projection_is_quantized(
    model_class: type[PreTrainedModel], options: dict[str, object], projections: int
) -> None:
    model = tiny_model(model_class, **options).float()
    quantized = quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert sum(isinstance(module, dynamic.Linear) for module in quantized.modules()) == projections
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    inputs = {"input_ids": random_ids(2, 5)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = random_ids(2, 5)
    logits = model(**inputs).logits
    assert (quantized(**inputs).logits - logits).std() < 0.1 * logits.std()
    if model.can_generate():
        assert quantized.generate(inputs["input_ids"], max_new_tokens=3, num_beams=2).shape[0] == 2
