"""ONNX export, and generation with the exported graphs in ONNX Runtime.

    to_onnx("runs/numbers", "numbers-onnx")
    model = OnnxModel.from_pretrained("numbers-onnx")
    translations = translate(model, model.tokenizer, ["twenty-one"], num_beams=5)

`torch.onnx.export` traces the graphs in float32, with dynamic batch and sequence dimensions:

    model.onnx      encoder-only: maps the model's inputs to logits or hidden states
    encoder.onnx    encoder-decoder: maps the source to the cross-attention keys and values, `memory.*`
    decoder.onnx    one decoding step of one or more tokens: takes the KV cache, `past_key_values.*`, of length 0 in
                    the first step, and returns the extended one, `present.*`; `logits_to_keep` are the positions to
                    compute logits for

The folder also holds the configuration, generation settings and tokenizer.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
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
from transformers.utils.deprecation import deprecate_kwarg

from trivium import modeling
from trivium.configuration import TriviumConfig
from trivium.modeling.cache import self_attention_cache
from trivium.storage.atomic import check_free, whole_folder

# Exportable model classes and their output types.
OUTPUTS: dict[str, type[ModelOutput]] = {
    "TriviumForConditionalGeneration": Seq2SeqLMOutput,
    "TriviumForCausalLM": CausalLMOutputWithPast,
    "TriviumEncoderModel": BaseModelOutput,
    "TriviumForMaskedLM": MaskedLMOutput,
    "TriviumForSequenceClassification": SequenceClassifierOutput,
    "TriviumForTokenClassification": TokenClassifierOutput,
    "TriviumForQuestionAnswering": QuestionAnsweringModelOutput,
}
MODEL, ENCODER, DECODER = "model.onnx", "encoder.onnx", "decoder.onnx"
Tensors = dict[str, torch.Tensor]
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def _require(name: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError("This needs ONNX: `pip install onnx onnxscript onnxruntime`.") from error


# --- Export ----------------------------------------------------------------------------------------------------------


def to_onnx(source: str | Path, output: str | Path) -> None:
    """Export a saved model to ONNX, with its configuration, generation settings and tokenizer.

    Args:
        source: Folder of a saved model with a head, or of an encoder-only model without one.
        output: A new or empty folder.

    Raises:
        FileNotFoundError: The model or its tokenizer does not exist.
        ImportError: onnx or onnxscript is not installed.
        ValueError: The model class is not in `OUTPUTS`, or `output` is not empty.
    """
    _require("onnx")
    _require("onnxscript")
    output = Path(output)
    check_free(output)
    model, tokenizer = _load(Path(source))
    with whole_folder(output) as partial, _silence_exporter():
        if model.config.decoder_layers:
            if model.config.is_encoder_decoder:
                _export_encoder(model, partial / ENCODER)
            _export_decoder(model, partial / DECODER)
            model.generation_config.save_pretrained(partial)
        else:
            _export_model(model, partial / MODEL)
        tokenizer.save_pretrained(partial)
        for name in ("auto_map", "custom_pipelines"):  # these entries refer to modeling code, which is not exported
            vars(model.config).pop(name, None)
        model.config.to_json_file(partial / "config.json")


def _load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    for name, what in {"config.json": "saved model", "tokenizer_config.json": "model with its tokenizer"}.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a {what}: it has no {name}.")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = (config.architectures or [""])[0]
    if config.model_type != "trivium" or name not in OUTPUTS:
        raise ValueError(
            f"{folder} holds a model of model_type {config.model_type!r} and architectures {config.architectures}, "
            f"but must hold one of {', '.join(OUTPUTS)}."
        )
    if config.rope_type in ("dynamic", "longrope"):
        raise ValueError(
            f"rope_type is {config.rope_type!r}, but must be 'default', 'linear', 'yarn' or 'llama3' for ONNX: "
            "frequencies that change with the length of the input cannot be exported."
        )
    # Eager attention handles fully masked queries explicitly; fused attention would leave them to the engine.
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = getattr(modeling, name).from_pretrained(folder, config=config, **options)
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
        cache = DynamicCache(config=self.config)
        for index, (key, value) in enumerate(pairs):
            cache.update(key, value, index)
        return cache


# Sizes of the example inputs. They are distinct and not 1, because the exporter specializes on sizes of 1.
BATCH, SOURCE, PAST, LENGTH, KEPT = 2, 7, 5, 3, 2


def _export_model(model: PreTrainedModel, path: Path) -> None:
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.config.type_vocab_size else [])]
    example = {name: torch.ones(BATCH, LENGTH, dtype=torch.long) for name in names}
    with torch.no_grad():
        outputs = list(model(**example))
    _export(model, path, example, names, outputs, {name: {0: "batch", 1: "length"} for name in names})


def _export_encoder(model: PreTrainedModel, path: Path) -> None:
    example = {name: torch.ones(BATCH, SOURCE, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    shapes = {name: {0: "batch", 1: "source_length"} for name in example}
    _export(_Encoder(model), path, example, list(example), _names("memory", model.config), shapes)


def _export_decoder(model: PreTrainedModel, path: Path) -> None:
    config = model.config
    names = ["input_ids", "attention_mask", "logits_to_keep", *_names("past_key_values", config)]
    example: dict[str, Any] = {
        "input_ids": torch.ones(BATCH, LENGTH, dtype=torch.long),
        "attention_mask": torch.ones(BATCH, PAST + LENGTH, dtype=torch.long),
        "logits_to_keep": torch.arange(KEPT),
        "past": _pairs(config, BATCH, PAST),
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
        names += ["encoder_attention_mask", *_names("memory", config)]
        example["encoder_attention_mask"] = torch.ones(BATCH, SOURCE, dtype=torch.long)
        example["memory"] = _pairs(config, BATCH, SOURCE)
        shapes["encoder_attention_mask"] = {0: "batch", 1: "source_length"}
        shapes["memory"] = [({0: "batch", 2: "source_length"},) * 2] * config.decoder_layers
    _export(_Decoder(model), path, example, names, ["logits", *_names("present", config)], shapes)


def _export(
    module: nn.Module, path: Path, example: dict[str, Any], inputs: list[str], outputs: list[str], shapes: Any
) -> None:
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


def _names(prefix: str, config: TriviumConfig) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in range(config.decoder_layers) for kind in ("key", "value")]


def _pairs(config: TriviumConfig, batch: int, length: int) -> Pairs:
    """Return zero keys and values for each layer, as distinct tensors: the exporter would merge shared inputs."""
    assert config.num_key_value_heads is not None
    shape = batch, config.num_key_value_heads, length, config.head_dim
    return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.decoder_layers)]


@contextmanager
def _silence_exporter() -> Iterator[None]:
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


# --- Inference -------------------------------------------------------------------------------------------------------


class OnnxModel(PreTrainedModel):
    """Exported model, run by ONNX Runtime on the CPU with torch's number of threads; inference only.

    `OnnxModel.from_pretrained` returns an `OnnxForConditionalGeneration`, an `OnnxForCausalLM` or an `OnnxEncoder`.
    It is a drop-in replacement for the exported model in `forward`, `generate`, `trivium.translation.translate`,
    pipelines and commands.

    Args:
        folder: Output folder of `to_onnx`.

    Attributes:
        tokenizer: Tokenizer of the model.

    Raises:
        FileNotFoundError: `folder` is not an exported model of this class.
        ImportError: onnxruntime is not installed.
    """

    config_class = TriviumConfig
    device, dtype = torch.device("cpu"), torch.float32
    graphs: tuple[str, ...]

    def __init__(self, folder: str | Path) -> None:
        runtime, folder = _require("onnxruntime"), Path(folder)
        for name in ("config.json", *self.graphs):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is not a model exported to ONNX: it has no {name}.")
        super().__init__(TriviumConfig.from_json_file(folder / "config.json"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=self.config, trust_remote_code=False)
        if self.can_generate():
            self.generation_config = GenerationConfig.from_pretrained(folder)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        self.sessions = {name: runtime.InferenceSession(folder / name, options, providers) for name in self.graphs}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "OnnxModel":
        """Load an exported model, or a saved Trivium model, which is exported to a temporary folder first.

        Args:
            folder: Folder of an exported or a saved model.
        """
        folder = Path(folder)
        if not any(folder.glob("*.onnx")):
            with TemporaryDirectory() as temporary:  # the engine does not read the files after loading
                to_onnx(folder, Path(temporary) / "exported")
                return cls.from_pretrained(Path(temporary) / "exported")
        kind: type[OnnxModel] = OnnxEncoder if (folder / MODEL).is_file() else OnnxForCausalLM
        return (OnnxForConditionalGeneration if (folder / ENCODER).is_file() else kind)(folder)

    def _run(self, graph: str, inputs: Tensors) -> Tensors:
        session = self.sessions[graph]
        arrays = session.run(None, {name: tensor.numpy(force=True) for name, tensor in inputs.items()})
        names = [output.name for output in session.get_outputs()]
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    def _step(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        logits_to_keep: int | torch.Tensor,
        source: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the logits of the new tokens, and append their keys and values to the cache."""
        own: Any = self_attention_cache(cache)
        batch, length = input_ids.shape
        past_length = 0 if own is None else own.get_seq_length()
        self._check_length(past_length + length)
        pairs = [(layer.keys, layer.values) for layer in own.layers] if past_length else _pairs(self.config, batch, 0)
        past = zip(_names("past_key_values", self.config), chain.from_iterable(pairs), strict=True)
        if isinstance(logits_to_keep, int):
            logits_to_keep = torch.arange(length)[-logits_to_keep:]
        mask = _or_ones(attention_mask, (batch, past_length + length))
        inputs = {"input_ids": input_ids, "attention_mask": mask, "logits_to_keep": logits_to_keep}
        outputs = self._run(DECODER, {**inputs, **dict(past), **source})
        for index in range(0 if own is None else self.config.decoder_layers):
            key, value = (outputs[f"present.{index}.{kind}"] for kind in ("key", "value"))
            if past_length:  # the outputs include the cached keys and values
                own.layers[index].keys, own.layers[index].values = key, value
            else:
                own.update(key, value, index)
        return outputs["logits"]

    def _new_cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        if cache is None:
            return DynamicCache(config=self.config) if use_cache in (None, True) else None
        own: Any = self_attention_cache(cache)
        for kind in {type(layer) for layer in own.layers} - {DynamicLayer}:
            raise ValueError(
                f"cache has layers of class {kind.__name__}, but must be a DynamicCache: do not set "
                "cache_implementation."
            )
        return cache

    def _check_length(self, length: int) -> None:
        limit = self.config.max_position_embeddings
        if self.config.position_embedding_type == "learned" and length > limit:
            raise ValueError(
                f"The sequence has {length} tokens, but learned positions end at max_position_embeddings={limit}. "
                "Truncate it."
            )


class OnnxEncoder(OnnxModel):
    """Encoder-only model, with or without a head."""

    graphs = (MODEL,)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> ModelOutput:
        """Return the output of the head, or the hidden states without one; inputs are of shape (batch, length)."""
        self._check_length(input_ids.shape[1])
        inputs = {"input_ids": input_ids, "attention_mask": _or_ones(attention_mask, input_ids.shape)}
        if self.config.type_vocab_size:
            inputs["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return OUTPUTS[self.config.architectures[0]](**self._run(MODEL, inputs))


class OnnxForCausalLM(OnnxModel, GenerationMixin):
    """Decoder-only model."""

    graphs = (DECODER,)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Return next-token logits for ids of shape (batch, length); see `TriviumForCausalLM.forward`."""
        cache = self._new_cache(cache, use_cache)
        logits = self._step(input_ids, attention_mask, cache, logits_to_keep, {})
        return CausalLMOutputWithPast(logits=logits, cache=cache)


class OnnxForConditionalGeneration(OnnxModel, GenerationMixin):
    """Encoder-decoder model."""

    graphs = (ENCODER, DECODER)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoder, which `generate()` calls once per sequence."""
        return _EncoderSession(self)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        decoder_input_ids: torch.Tensor,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool = True,
    ) -> Seq2SeqLMOutput:
        """Return next-token logits for ids of shape (batch, target_len).

        See `TriviumForConditionalGeneration.forward`.
        """
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids, attention_mask)
        cache = self._new_cache(cache, use_cache)
        source = next(iter(encoder_outputs.values()))  # (batch, heads, source_len, head_dim)
        memory = {"encoder_attention_mask": _or_ones(attention_mask, source.shape[::2]), **encoder_outputs}
        logits = self._step(decoder_input_ids, decoder_attention_mask, cache, logits_to_keep, memory)
        return Seq2SeqLMOutput(logits=logits, cache=cache)


class _EncoderSession(nn.Module):
    def __init__(self, model: OnnxForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> ModelOutput:
        """Map ids of shape (batch, source_len) to cross-attention keys and values, which beam search expands."""
        self.model._check_length(input_ids.shape[1])
        inputs = {"input_ids": input_ids, "attention_mask": _or_ones(attention_mask, input_ids.shape)}
        return ModelOutput(self.model._run(ENCODER, inputs))


def _or_ones(mask: torch.Tensor | None, shape: Iterable[int]) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.long) if mask is None else mask.long()
