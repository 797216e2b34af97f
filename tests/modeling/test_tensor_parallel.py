"""Test that tensor parallelism over two devices (`tp_plan="auto"`) matches a single device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_runs import run_distributed
from tiny import Tensors, random_ids, tiny_model
from torch import nn
from torch.distributed.tensor import DTensor

import trivium

pytestmark = pytest.mark.subprocess

WAYS: dict[str, dict[str, Any]] = {
    "TriviumForConditionalGeneration": {},
    "TriviumForMaskedLM": {"decoder_layers": 0},
    "TriviumForCausalLM": {"encoder_layers": 0, "position_embedding_type": "rotary"},
}
# Models with two key-value groups, tied or untied embeddings, and a vocabulary of 31, which is not divisible by two.
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {"num_key_value_heads": 2, "attention_bias": True},
    "untied": {"num_key_value_heads": 2, "tie_word_embeddings": False, "gated_ffn": True, "qk_norm": True},
}
ALL = [(way, shape) for way in WAYS for shape in SHAPES]
QUICK = [("TriviumForConditionalGeneration", "tied"), ("TriviumForCausalLM", "untied")]


def outputs_of(model: nn.Module, inputs: Tensors) -> dict[str, torch.Tensor]:
    """Return logits, a training loss, and generated tokens."""
    with torch.no_grad():
        outputs = {"logits": model(**inputs).logits}
        if model.can_generate():
            outputs["generated"] = model.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False)
        labels = inputs.get("decoder_input_ids", inputs["input_ids"])
        outputs["loss"] = model.train()(**inputs, labels=labels).loss
    return outputs


def sharded_outputs(folders: list[str]) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    results = {}
    for folder in folders:
        model_class = getattr(trivium, Path(folder).name.split("-")[0])
        model = model_class.from_pretrained(folder, tp_plan="auto").eval()
        sharded = {
            name.split(".")[-2] for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)
        }
        results[folder] = outputs_of(model, torch.load(Path(folder) / "inputs.pt")), sharded
    return results


@pytest.mark.filterwarnings("ignore:Passing `tp_plan`:FutureWarning")
@pytest.mark.slow(reason="two processes")
@pytest.mark.parametrize("cases", [QUICK, ALL], ids=["some", "all"])
def test_two_devices_match_one(cases: list[tuple[str, str]], tmp_path: Path) -> None:
    """Compare logits, losses and generated tokens in float64."""
    expected = {}
    for way, shape in cases:
        model = tiny_model(getattr(trivium, way), **WAYS[way], **SHAPES[shape])
        folder = tmp_path / f"{way}-{shape}"
        model.save_pretrained(folder)
        inputs = {"input_ids": random_ids(3, 7)}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = random_ids(3, 5)
        torch.save(inputs, folder / "inputs.pt")
        expected[str(folder)] = outputs_of(model, inputs)
    for result in run_distributed(sharded_outputs, list(expected), folder=tmp_path):
        for folder, answer in expected.items():
            outputs, sharded = result[folder]
            assert {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "embed_tokens"} <= sharded
            assert outputs.keys() == answer.keys()
            for output_name, tensor in answer.items():
                torch.testing.assert_close(
                    outputs[output_name], tensor, rtol=1e-9, atol=1e-9, msg=f"{folder}: {output_name}"
                )
