"""Export models to ONNX graphs; the module `onnx` documents their inputs and outputs, and runs them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    ModelOutput,
    QuestionAnsweringModelOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from trivium.configuration import TriviumConfig
from trivium.storage.atomic import check_free, whole_folder
from trivium.storage.saved_model import check_model_files, read_model_class

# Exportable model classes and their output types.
OUTPUTS: dict[str, type[ModelOutput]] = {
    "TriviumForConditionalGeneration": Seq2SeqLMOutput,
    "TriviumForCausalLM": CausalLMOutputWithPast,
    "TriviumEncoderModel": BaseModelOutput,
    "TriviumForMaskedLM": MaskedLMOutput,
    "TriviumForSequenceClassification": SequenceClassifierOutput,
    "TriviumDecoderForSequenceClassification": SequenceClassifierOutput,
    "TriviumForTokenClassification": TokenClassifierOutput,
    "TriviumForQuestionAnswering": QuestionAnsweringModelOutput,
}
MODEL, ENCODER, DECODER = "model.onnx", "encoder.onnx", "decoder.onnx"
INT8 = "int8"
Tensors = dict[str, torch.Tensor]
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def require_onnx(name: str) -> ModuleType:
    """Import a package that the ONNX export needs."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError("This needs ONNX: `pip install onnx onnxscript onnxruntime`.") from error


def to_onnx(source: str | Path, output: str | Path, quantization: str | None = None) -> None:
    """Export a saved model to ONNX, with its configuration, generation settings and tokenizer.

    Args:
        source: Folder of a saved model with a head, or of an encoder-only model without one.
        output: A new or empty folder.
        quantization: "int8" for weights of 8 bits; None for float32.

    Raises:
        FileNotFoundError: The model or its tokenizer does not exist.
        ImportError: onnx or onnxscript is not installed, or onnxruntime for int8.
        ValueError: The model class is not in `OUTPUTS`, `output` is not empty, or `quantization` is unknown.
    """
    if quantization not in (None, INT8):
        raise ValueError(
            f"quantization is {quantization!r}, but must be {INT8!r} for ONNX. Drop it to keep the weights in float32."
        )
    for package in ("onnx", "onnxscript", *(["onnxruntime"] if quantization else [])):
        require_onnx(package)
    output = Path(output)
    check_free(output)
    model, tokenizer = load_for_export(Path(source))
    with whole_folder(output) as partial, silence_exporter():
        if model.can_generate():
            if model.config.is_encoder_decoder:
                _export_encoder(model, partial / ENCODER)
            _export_decoder(model, partial / DECODER)
            model.generation_config.save_pretrained(partial)
        else:
            export_model(model, partial / MODEL)
        if quantization:
            for path in sorted(partial.glob("*.onnx")):
                quantize_graph(path, path.with_suffix(".int8"))
                path.with_suffix(".int8").replace(path)
        tokenizer.save_pretrained(partial)
        for name in ("auto_map", "custom_pipelines"):  # these entries refer to modeling code, which is not exported
            vars(model.config).pop(name, None)
        model.config.to_json_file(partial / "config.json")


def quantize_graph(path: Path, output: Path) -> None:
    """Write a copy of a graph whose weights are quantized to 8 bits; activations are quantized while it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, output, weight_type=QuantType.QInt8)


def load_for_export(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a saved model in float32, and its tokenizer; refuse models that cannot be exported."""
    check_model_files(folder, with_tokenizer=True)
    config, model_class = read_model_class(folder, OUTPUTS)
    if config.rope_type in ("dynamic", "longrope"):
        raise ValueError(
            f"rope_type is {config.rope_type!r}, but must be 'default', 'linear', 'yarn' or 'llama3' for ONNX: "
            "frequencies that change with the length of the input cannot be exported."
        )
    if config.qk_norm and config.is_encoder_decoder:
        raise ValueError(
            f"qk_norm is {config.qk_norm}, but must be False for an encoder-decoder in ONNX: normalized keys of the "
            "memory are not exported."
        )
    # Eager attention handles fully masked queries explicitly; fused attention would leave them to the engine.
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = model_class.from_pretrained(folder, config=config, **options)
    return model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


class _Encoder(nn.Module):
    """Map the source to the cross-attention keys and values of all decoder layers, computed once per sequence."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.encoder, self.head_dim = model.model.encoder, model.config.head_dim
        attentions = [layer.cross_attn for layer in model.model.decoder.layers]
        self.k_projs = nn.ModuleList(attention.k_proj for attention in attentions)
        self.v_projs = nn.ModuleList(attention.v_proj for attention in attentions)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Pairs:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        projections = zip(self.k_projs, self.v_projs, strict=True)
        return [
            (self._split_heads(k_proj(states)), self._split_heads(v_proj(states))) for k_proj, v_proj in projections
        ]

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, h_kv, S, d_k)


class _Decoder(nn.Module):
    """Run a decoding step with the KV cache passed as plain tensors."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.config, self.decoder, self.head = model.config, model.model.decoder, model.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: torch.Tensor,
        past: Pairs,
        encoder_attention_mask: torch.Tensor | None,
        memory: Pairs,
    ) -> tuple[torch.Tensor, Pairs]:
        cache = self._cache(past)
        options: dict[str, Any] = {"cache": cache}
        if encoder_attention_mask is not None:
            options = {
                "cache": EncoderDecoderCache(cache, self._cache(memory)),
                "encoder_attention_mask": encoder_attention_mask,
                # the decoder uses only its length, as the memory is cached
                "encoder_hidden_states": encoder_attention_mask[..., None].float(),
            }
        states = self.decoder(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
        return self.head(states[:, logits_to_keep]), [(layer.keys, layer.values) for layer in cache.layers]

    def _cache(self, pairs: Pairs) -> DynamicCache:
        cache = DynamicCache()  # the mask applies the sliding window, if any
        for index, (key, value) in enumerate(pairs):
            cache.update(key, value, index)
        return cache


# Sizes of the example inputs. They are distinct and not 1, because the exporter specializes on sizes of 1.
BATCH, SOURCE, PAST, LENGTH, KEPT = 2, 7, 5, 3, 2


def export_model(model: PreTrainedModel, path: Path) -> None:
    """Export a model without generation, under the usual names of its inputs and outputs."""
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.config.type_vocab_size else [])]
    example: dict[str, Any] = {name: torch.ones(BATCH, LENGTH, dtype=torch.long) for name in names}
    shapes: dict[str, Any] = {name: {0: "batch", 1: "length"} for name in names}
    if model.config.decoder_layers:
        example["use_cache"], shapes["use_cache"] = False, None
    with torch.no_grad():
        outputs = list(model(**example))
    export_graph(model, path, example, names, outputs, shapes)


def _export_encoder(model: PreTrainedModel, path: Path) -> None:
    example = {name: torch.ones(BATCH, SOURCE, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    shapes = {name: {0: "batch", 1: "source_length"} for name in example}
    export_graph(_Encoder(model), path, example, list(example), cache_names("memory", model.config), shapes)


def _export_decoder(model: PreTrainedModel, path: Path) -> None:
    config = model.config
    names = ["input_ids", "attention_mask", "logits_to_keep", *cache_names("past_key_values", config)]
    example: dict[str, Any] = {
        "input_ids": torch.ones(BATCH, LENGTH, dtype=torch.long),
        "attention_mask": torch.ones(BATCH, PAST + LENGTH, dtype=torch.long),
        "logits_to_keep": torch.arange(KEPT),
        "past": zero_pairs(config, BATCH, PAST),
        "encoder_attention_mask": None,
        "memory": [],
    }
    shapes: dict[str, Any] = {
        "input_ids": {0: "batch", 1: "length"},
        "attention_mask": {0: "batch", 1: "past_and_length"},
        "logits_to_keep": {0: "kept"},
        "past": [({0: "batch", 2: "past_length"},) * 2] * config.decoder_layers,
        "encoder_attention_mask": None,
        "memory": [],
    }
    if config.is_encoder_decoder:
        names += ["encoder_attention_mask", *cache_names("memory", config)]
        example["encoder_attention_mask"] = torch.ones(BATCH, SOURCE, dtype=torch.long)
        example["memory"] = zero_pairs(config, BATCH, SOURCE)
        shapes["encoder_attention_mask"] = {0: "batch", 1: "source_length"}
        shapes["memory"] = [({0: "batch", 2: "source_length"},) * 2] * config.decoder_layers
    export_graph(_Decoder(model), path, example, names, ["logits", *cache_names("present", config)], shapes)


def export_graph(
    module: nn.Module, path: Path, example: dict[str, Any], inputs: list[str], outputs: list[str], shapes: Any
) -> None:
    """Export a module to a file.

    Args:
        module: Module in evaluation mode.
        path: The file.
        example: Keyword arguments of `forward`.
        inputs: Names of the tensors in `example`.
        outputs: Names of the tensors that `forward` returns.
        shapes: Names of the dynamic dimensions, nested like `example`.
    """
    program = torch.onnx.export(
        module,
        kwargs=example,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def cache_names(prefix: str, config: TriviumConfig) -> list[str]:
    """Return the names of the cached keys and values of each layer."""
    return [f"{prefix}.{layer}.{kind}" for layer in range(config.decoder_layers) for kind in ("key", "value")]


def zero_pairs(config: TriviumConfig, batch: int, length: int) -> Pairs:
    """Return zero keys and values for each layer, as distinct tensors: the exporter would merge shared inputs."""
    assert config.num_key_value_heads is not None
    shape = batch, config.num_key_value_heads, length, config.head_dim
    return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.decoder_layers)]


@contextmanager
def silence_exporter() -> Iterator[None]:
    """Silence the exporter's log messages and warnings, such as those on packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
