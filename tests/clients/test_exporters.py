"""Test torch.export and transformers' exporters: outputs match for batch sizes and lengths not seen during export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_classes import LAYERS as MODELS
from tiny import mask_of, random_ids, tiny_model
from torch.export import Dim
from transformers import PreTrainedModel, exporters
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumModel,
    TriviumTokenizer,
)

EVERY_POSITION = [
    (model_class, position)
    for model_class in (TriviumForConditionalGeneration, TriviumForSequenceClassification, TriviumForCausalLM)
    for position in ("learned", "rotary")
]
CASES = [(model_class, "sinusoidal") for model_class in MODELS] + EVERY_POSITION
LONG = "exporting a graph takes about 10 seconds"


def make_model(model_class: type[PreTrainedModel], **options: Any) -> PreTrainedModel:
    """Return a float32 model with one layer per stack and `use_cache=False`."""
    layers = {"encoder_layers": 1, "decoder_layers": 1, "num_key_value_heads": 2, **MODELS[model_class]}
    model = tiny_model(model_class, **{"attn_implementation": "sdpa", **layers, **options}).float()
    model.config.use_cache = False
    return model


def make_inputs(model: PreTrainedModel, lengths: list[int], target_length: int) -> dict[str, torch.Tensor]:
    mask = mask_of(lengths)
    inputs = {"input_ids": random_ids(*mask.shape).masked_fill(mask == 0, 0), "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = random_ids(len(lengths), target_length)
    return inputs


def assert_same_outputs(model: PreTrainedModel, exported: Any, **tolerance: float) -> None:
    """Compare outputs for a larger batch and for a single sentence; the export example had neither size."""
    for lengths, target_length in (([9, 4, 2], 7), ([3], 2)):
        inputs = make_inputs(model, lengths, target_length)
        with torch.no_grad():
            expected, found = model(**inputs), exported(**inputs)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, **tolerance)


@pytest.mark.slow(reason="the default suite exports to ONNX, which begins with `torch.export`")
@pytest.mark.parametrize(("model_class", "position"), CASES)
def test_torch_export(model_class: type[PreTrainedModel], position: str) -> None:
    model = make_model(model_class, position_embedding_type=position)
    example = make_inputs(model, [6, 4], 5)
    batch, length, target_length = Dim("batch"), Dim("length", max=64), Dim("target_length", max=64)
    shapes = {name: {0: batch, 1: target_length if "decoder" in name else length} for name in example}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes)
    assert_same_outputs(model, program.module())


@pytest.mark.slow(reason=LONG)
def test_torch_export_with_pooling_of_the_first_token() -> None:
    model = make_model(TriviumForSequenceClassification, classifier_pooling="cls")
    batch, length = Dim("batch"), Dim("length", max=64)
    example = make_inputs(model, [6, 4], 5)
    program = torch.export.export(model, (), example, dynamic_shapes={name: {0: batch, 1: length} for name in example})
    assert_same_outputs(model, program.module())


@pytest.mark.parametrize(
    "model_class",
    [pytest.param(each, marks=pytest.mark.slow) for each in (TriviumModel, TriviumForMaskedLM, TriviumForCausalLM)],
)
def test_dynamo_exporter(model_class: type[PreTrainedModel]) -> None:
    model = make_model(model_class)
    config = exporters.DynamoConfig(dynamic=True)
    assert_same_outputs(model, exporters.DynamoExporter().export(model, make_inputs(model, [6, 4], 5), config))


def check_onnx(model: PreTrainedModel, folder: Path) -> None:
    config = exporters.OnnxConfig(dynamic=True)
    exporters.OnnxExporter().export(model, make_inputs(model, [6, 4], 5), config).save_pretrained(folder)
    assert list(folder.glob("*.onnx"))
    assert_same_outputs(model, exporters.ExportedModel.from_pretrained(folder), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_onnx_exporter_and_docs_page(
    tmp_path: Path, tokenizer: TriviumTokenizer, run_page: Callable[[str], dict[str, Any]]
) -> None:
    folder = tmp_path / "runs" / "trec-finetuned"
    make_model(TriviumForSequenceClassification, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    exported = run_page("torch.export and ONNX")["model"]
    model = TriviumForSequenceClassification.from_pretrained(folder).eval()
    assert_same_outputs(model, exported, rtol=1e-4, atol=1e-5)


@pytest.mark.slow(reason=LONG)
@pytest.mark.parametrize(("model_class", "position"), CASES)
def test_onnx_exporter_for_all_models(tmp_path: Path, model_class: type[PreTrainedModel], position: str) -> None:
    check_onnx(make_model(model_class, position_embedding_type=position), tmp_path)


@pytest.mark.slow(reason=LONG)
def test_folder_is_exported_without_package(tmp_path: Path, without_trivium: Callable[[str], torch.Tensor]) -> None:
    model = make_model(TriviumForSequenceClassification)
    model.save_pretrained(tmp_path / "saved")
    example, inputs = make_inputs(model, [6, 4], 5), make_inputs(model, [9, 4, 2], 7)
    torch.save([example, inputs], tmp_path / "inputs.pt")
    result = without_trivium(
        """
from transformers import AutoModelForSequenceClassification
from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter
model = AutoModelForSequenceClassification.from_pretrained("saved", trust_remote_code=True).eval()
example, inputs = torch.load("inputs.pt")
OnnxExporter().export(model, example, OnnxConfig(dynamic=True)).save_pretrained("onnx")
exported = ExportedModel.from_pretrained("onnx", trust_remote_code=True)
torch.save(exported(**inputs).logits, "result.pt")
"""
    )
    with torch.no_grad():
        torch.testing.assert_close(result, model(**inputs).logits, rtol=1e-4, atol=1e-5)


# --- Generation with a cache -----------------------------------------------------------------------------------------

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": -1, "use_cache": True}


def export_for_generation(backend: str, model: PreTrainedModel, example: dict[str, torch.Tensor]) -> Any:
    model.config.use_cache = model.generation_config.use_cache = True
    config = getattr(exporters, f"{backend}Config")(dynamic=True)
    return getattr(exporters, f"{backend}Exporter")().export_for_generation(model, example, config)


def likeliest(outputs: Any) -> torch.Tensor:
    """Return the (batch, 1) argmax of the last logits."""
    return outputs.logits[:, -1:].argmax(dim=-1)


@pytest.mark.slow(reason=LONG)
@pytest.mark.parametrize("backend", ["Dynamo", "Onnx"])
def test_decoder_export_generates_with_cache(backend: str) -> None:
    model = make_model(TriviumForCausalLM, position_embedding_type="rotary")
    example = {"input_ids": random_ids(2, 5), "attention_mask": mask_of([5, 3], "left")}
    exported = export_for_generation(backend, model, example)
    prefill, decode = exported.runners["prefill"], exported.runners["decode"]

    mask = mask_of([7, 4, 2], "left")
    prompt = random_ids(3, 7).masked_fill(mask == 0, 0)
    expected = model.generate(prompt, attention_mask=mask, **GREEDY)

    def positions() -> torch.Tensor:
        return (mask.cumsum(dim=-1) - 1).clamp(min=0)

    empty = DynamicCache(config=model.config)
    outputs = prefill(input_ids=prompt, attention_mask=mask, position_ids=positions(), cache=empty)
    written = [prompt, likeliest(outputs)]
    while len(written) < 6:
        mask = torch.cat((mask, mask.new_ones(3, 1)), dim=1)
        outputs = decode(
            input_ids=written[-1],
            attention_mask=mask,
            position_ids=positions()[:, -1:],
            cache=outputs.cache,
        )
        written.append(likeliest(outputs))
    assert torch.equal(torch.cat(written, dim=1), expected)


@pytest.mark.slow(reason=LONG)
@pytest.mark.parametrize("backend", ["Dynamo", "Onnx"])
def test_encoder_decoder_export_generates_with_cache(backend: str) -> None:
    """Export the encoder separately; a decoder example of a single token would fix the length to 1."""
    model = make_model(TriviumForConditionalGeneration)
    example = {"input_ids": random_ids(2, 5), "attention_mask": mask_of([5, 3])}
    exported = export_for_generation(backend, model, {**example, "decoder_input_ids": random_ids(2, 3)})
    prefill, decode = exported.runners["prefill"], exported.runners["decode"]

    mask = mask_of([7, 4, 2])
    source = random_ids(3, 7).masked_fill(mask == 0, 0)
    expected = model.generate(source, attention_mask=mask, decoder_input_ids=random_ids(3, 2), **GREEDY)

    with torch.no_grad():
        common = {
            "encoder_outputs": model.get_encoder()(input_ids=source, attention_mask=mask),
            "attention_mask": mask,
        }
    empty = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    written = [expected[:, :3]]  # The decoder input: the start token and two generated tokens.
    outputs = prefill(decoder_input_ids=written[0], cache=empty, **common)
    written.append(likeliest(outputs))
    while len(written) < 6:
        outputs = decode(decoder_input_ids=written[-1], cache=outputs.cache, **common)
        written.append(likeliest(outputs))
    assert torch.equal(torch.cat(written, dim=1), expected)
