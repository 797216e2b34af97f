"""Test that OpenVINO runs the ONNX graphs written by `to_onnx` and returns the same outputs as the exported model.

OpenVINO is not part of `make install`; `make runtimes` runs these tests in a separate environment.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import mask_of, random_ids, tiny_model
from transformers import PreTrainedModel

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForSequenceClassification,
    TriviumTokenizer,
)
from trivium.interop.onnx import OnnxModel, to_onnx

pytestmark = pytest.mark.slow
openvino = pytest.importorskip("openvino", reason="openvino is not installed: see `make runtimes`")
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}


class Session:
    """A graph compiled by OpenVINO, with the part of ONNX Runtime's session interface that `OnnxModel` uses."""

    def __init__(self, path: Path) -> None:
        core = openvino.Core()
        self.model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(self, outputs: None, inputs: dict[str, Any]) -> list[Any]:
        return list(self.model(inputs).values())

    def get_outputs(self) -> list[Any]:
        return [type("Output", (), {"name": output.any_name}) for output in self.model.outputs]


def in_openvino(model: PreTrainedModel, tokenizer: TriviumTokenizer, folder: Path) -> OnnxModel:
    """Export a model to ONNX, and load it with OpenVINO in place of ONNX Runtime."""
    model.save_pretrained(folder / "saved")
    tokenizer.save_pretrained(folder / "saved")
    to_onnx(folder / "saved", folder / "exported")
    engine = OnnxModel.from_pretrained(folder / "exported")
    engine.sessions = {name: Session(folder / "exported" / name) for name in engine.graphs}
    return engine


def make_model(model_class: type[PreTrainedModel], tokenizer: TriviumTokenizer, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "num_key_value_heads": 2}
    return tiny_model(model_class, std=0.3, **sizes, **options).float()


def test_logits_of_a_classifier(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = make_model(TriviumForSequenceClassification, tokenizer, decoder_layers=0, num_labels=3)
    engine = in_openvino(model, tokenizer, tmp_path)
    for lengths in ([9, 4, 2], [6], [1]):
        mask = mask_of(lengths)
        ids = random_ids(*mask.shape)
        with torch.no_grad():
            expected = model(ids, mask)
        torch.testing.assert_close(engine(ids, mask).logits, expected.logits, **CLOSE)


@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_generated_tokens(position: str, open_tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = make_model(TriviumForCausalLM, open_tokenizer, encoder_layers=0, position_embedding_type=position)
    engine = in_openvino(model, open_tokenizer, tmp_path)
    mask = mask_of([7, 4, 2], "left")
    ids = random_ids(*mask.shape)
    for search in ({"num_beams": 1}, {"num_beams": 3}):
        options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, **search}
        assert torch.equal(engine.generate(ids, **options), model.generate(ids, **options))


def test_translated_tokens(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = make_model(TriviumForConditionalGeneration, tokenizer)
    engine = in_openvino(model, tokenizer, tmp_path)
    mask = mask_of([7, 4, 2])
    ids = random_ids(*mask.shape)
    for search in ({"num_beams": 1}, {"num_beams": 3}):
        options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, **search}
        assert torch.equal(engine.generate(ids, **options), model.generate(ids, **options))
