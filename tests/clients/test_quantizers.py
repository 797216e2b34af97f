"""Test that bitsandbytes, quanto and torchao quantize all projections, and that models are saved if supported.

The packages are not part of `make install`; `make quantization` runs these tests in a separate environment.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_ids, tiny_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    QuantoConfig,
    TorchAoConfig,
)
from transformers.cache_utils import QuantizedCache

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
)
from trivium.modeling.cache import self_attention_cache

pytestmark = pytest.mark.slow

# Use sizes divisible by the quantization block size of 64.
SIZES = {"d_model": 64, "ffn_dim": 128, "vocab_size": 31}
MODELS: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any], set[str]]] = {
    "encoder-decoder": (TriviumForConditionalGeneration, AutoModelForSeq2SeqLM, {}, {"lm_head"}),
    "decoder": (TriviumForCausalLM, AutoModelForCausalLM, {"encoder_layers": 0, "gated_ffn": True}, {"lm_head"}),
    "masked": (TriviumForMaskedLM, AutoModelForMaskedLM, {"decoder_layers": 0}, {"mlm_head.decoder"}),
    "classifier": (
        TriviumForSequenceClassification,
        AutoModelForSequenceClassification,
        {"decoder_layers": 0, "num_labels": 3},
        set(),
    ),
}
# Each method: package, type of the quantized modules or weights, maximum relative error of the logits, and whether the
# quantized model can be saved.
METHODS: dict[str, tuple[str, str, float, bool]] = {
    "bitsandbytes-8": ("bitsandbytes", "Linear8bitLt", 0.1, True),
    "bitsandbytes-4": ("bitsandbytes", "Linear4bit", 0.5, True),
    "quanto-8": ("optimum.quanto", "QLinear", 0.1, False),
    "quanto-4": ("optimum.quanto", "QLinear", 0.5, False),
    "torchao-weights": ("torchao", "Int8Tensor", 0.1, True),
    "torchao-dynamic": ("torchao", "Int8Tensor", 0.1, True),
}


def quantization(method: str) -> Any:
    if method == "bitsandbytes-8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if method == "bitsandbytes-4":
        # The CPU kernel does not support layers with as few outputs as most classifiers have.
        options = {"llm_int8_skip_modules": ["lm_head", "mlm_head.decoder", "out_proj"]}
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
    if method.startswith("quanto"):
        return QuantoConfig(weights=f"int{method[-1]}")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    return TorchAoConfig(
        Int8WeightOnlyConfig() if method == "torchao-weights" else Int8DynamicActivationInt8WeightConfig()
    )


def quantized_modules(model: nn.Module, kind: str) -> set[str]:
    return {
        name
        for name, module in model.named_modules()
        if kind in (type(module).__name__, type(getattr(module, "weight", None)).__name__)
    }


REMOTE = """
from pathlib import Path
from typing import Any
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig
{functions}
model = AutoModelForCausalLM.from_pretrained(
    "float", quantization_config=quantization({method!r}), trust_remote_code=True
)
assert len(quantized_modules(model, {kind!r})) == {count}
torch.save(model(torch.tensor({ids})).logits.detach().float(), "result.pt")
"""


# These warnings originate in the packages themselves.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", MODELS)
@torch.no_grad()
def test_every_projection_is_quantized(tmp_path: Path, way: str, method: str) -> None:
    package, kind, tolerance, can_be_saved = METHODS[method]
    pytest.importorskip(package, reason=f"{package} is not installed: see `make quantization`")
    model_class, auto_class, options, kept = MODELS[way]
    model = tiny_model(model_class, std=0.02, **SIZES, **options).float()
    model.save_pretrained(tmp_path / "float")
    inputs = {"input_ids": random_ids(8, 5)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = random_ids(8, 4)
    expected = model(**inputs).logits

    quantized = auto_class.from_pretrained(tmp_path / "float", quantization_config=quantization(method))
    if method == "bitsandbytes-4" and way == "classifier":
        kept = {"classifier.out_proj"}
    projections = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert quantized_modules(quantized, kind) == projections - kept
    if can_be_saved:  # after the first forward pass, bitsandbytes cannot restore 4-bit weights exactly
        quantized.save_pretrained(tmp_path / "quantized")
    logits = quantized(**inputs).logits.float()
    assert 0 < (logits - expected).norm() < tolerance * expected.norm()
    if model.can_generate():
        assert quantized.generate(inputs["input_ids"], max_new_tokens=3, num_beams=2).shape[0] == 8
    if can_be_saved:
        again = auto_class.from_pretrained(tmp_path / "quantized")
        assert quantized_modules(again, kind) == projections - kept
        torch.testing.assert_close(again(**inputs).logits.float(), logits)
        weights = sum(path.stat().st_size for path in (tmp_path / "quantized").glob("*.safetensors"))
        assert weights < 0.5 * sum(path.stat().st_size for path in (tmp_path / "float").glob("*.safetensors"))
    else:
        with pytest.raises(ValueError, match="not serializable"):
            quantized.save_pretrained(tmp_path / "quantized")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_docs_page(tmp_path: Path, run_page: Callable[[str], dict[str, Any]]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: see `make quantization`")
    tiny_model(TriviumForCausalLM, encoder_layers=0).save_pretrained(tmp_path / "runs" / "shakespeare")
    assert quantized_modules(run_page("Quantization")["model"], "Linear8bitLt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", ["bitsandbytes-8", "quanto-8", "torchao-weights"])
def test_folder_is_quantized_without_package(
    tmp_path: Path, method: str, without_trivium: Callable[[str], torch.Tensor]
) -> None:
    package, kind, tolerance, _ = METHODS[method]
    pytest.importorskip(package, reason=f"{package} is not installed: see `make quantization`")
    model = tiny_model(TriviumForCausalLM, std=0.02, **SIZES, encoder_layers=0).float()
    model.save_pretrained(tmp_path / "float")
    ids = random_ids(8, 5)
    count = sum(isinstance(module, nn.Linear) for module in model.modules()) - 1  # without the language model head
    functions = "\n".join(map(inspect.getsource, (quantization, quantized_modules)))
    result = without_trivium(
        REMOTE.format(functions=functions, method=method, kind=kind, count=count, ids=ids.tolist())
    )
    expected = model(ids).logits
    assert 0 < (result - expected).norm() < tolerance * expected.norm()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("way", ["encoder-decoder", "decoder"])
def test_quantized_cache_of_quanto(way: str) -> None:
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed: see `make quantization`")
    model_class, _, options, _ = MODELS[way]
    model = tiny_model(model_class, std=0.3, **SIZES, **options).float()
    caches: list[Any] = []
    model.model.decoder.register_forward_hook(lambda module, args, output: caches.append(output.cache))
    ids = random_ids(2, 6)
    search: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 2, "do_sample": False}
    config = {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 2}
    generated = model.generate(ids, cache_implementation="quantized", cache_config=config, **search)
    assert generated.shape == model.generate(ids, **search).shape
    cache = self_attention_cache(caches[0])
    assert isinstance(cache, QuantizedCache)
    assert cache.layers[0]._quantized_keys is not None
