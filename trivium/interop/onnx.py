"""Trivium in ONNX: graphs that onnxruntime and other engines run without torch, and generation with them.

    to_onnx("runs/numbers", "numbers-onnx")
    model = OnnxModel.from_pretrained("numbers-onnx")
    translations = translate(model, model.tokenizer, ["twenty-one"], num_beams=5)

torch's own exporter draws the graphs, in float32, for batches and texts of any size:

    model.onnx      encoder-only: what the model takes, and its logits or states
    encoder.onnx    encoder-decoder: the source to the keys and values that every decoder layer looks at, `memory.*`
    decoder.onnx    one step, of one token or of many: it takes the cache, `past_key_values.*`, which at first has
                    length 0, and gives it back longer, `present.*`; `logits_to_keep` are places that want logits

Beside them lie configuration, settings for generation and tokenizer.
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

# Every class that can be exported, and what it answers.
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
    """Write a saved model as graphs of ONNX, with configuration, settings for generation and tokenizer.

    Args:
        source: A saved model that has a head, or an encoder without one.
        output: A new or an empty folder.

    Raises:
        FileNotFoundError: There is no saved model, or no tokenizer.
        ImportError: onnx or onnxscript are not installed.
        ValueError: The model is of a class that is not in `OUTPUTS`, or `output` is there already.
    """
    _require("onnx")
    _require("onnxscript")
    output = Path(output)
    check_free(output)
    model, tokenizer = _load(Path(source))
    with whole_folder(output) as partial, _quietly():
        if model.config.decoder_layers:
            if model.config.is_encoder_decoder:
                _export_encoder(model, partial / ENCODER)
            _export_decoder(model, partial / DECODER)
            model.generation_config.save_pretrained(partial)
        else:
            _export_model(model, partial / MODEL)
        tokenizer.save_pretrained(partial)
        for name in ("auto_map", "custom_pipelines"):  # they name the model's code, which does not go along
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
    # Eager attention spells out what becomes of a query that may see nothing; a fused one leaves it to the engine.
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = getattr(modeling, name).from_pretrained(folder, config=config, **options)
    return model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


class _Encoder(nn.Module):
    """Map the source to the keys and values that the decoder layers attend to, computed once for all steps."""

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
    """A step of the decoder, whose cache comes and goes as plain tensors."""

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
                "encoder_hidden_states": encoder_attention_mask[..., None].float(),  # only their length matters here
            }
        states = self.decoder(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
        return self.head(states[:, logits_to_keep]), [(layer.keys, layer.values) for layer in cache.layers]

    def _cache(self, pairs: Pairs) -> DynamicCache:
        cache = DynamicCache(config=self.config)
        for index, (key, value) in enumerate(pairs):
            cache.update(key, value, index)
        return cache


# What the graphs are drawn from. Sizes differ, and none is 1, which would be taken for 1 for ever.
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
    """Zeros for keys and values of each layer; no tensor twice, for the exporter would take two inputs for one."""
    assert config.num_key_value_heads is not None
    shape = batch, config.num_key_value_heads, length, config.head_dim
    return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.decoder_layers)]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporter says of itself and of packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


# --- Running ---------------------------------------------------------------------------------------------------------


class OnnxModel(PreTrainedModel):
    """What `to_onnx` wrote, run by onnxruntime on the CPU with torch's number of threads; in evaluation only.

    `OnnxModel.from_pretrained` gives an `OnnxForConditionalGeneration`, an `OnnxForCausalLM` or an `OnnxEncoder`.
    It is called as the model that it was made from, generates as that does, and `trivium.translation.translate`,
    pipelines and the commands take it in place of that.

    Args:
        folder: What `to_onnx` wrote.

    Attributes:
        tokenizer: The tokenizer that belongs to it.

    Raises:
        FileNotFoundError: `folder` is no exported model of this class.
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
        """Open an exported model, or a saved one of Trivium, which is exported for this once.

        Args:
            folder: Either of them.
        """
        folder = Path(folder)
        if not any(folder.glob("*.onnx")):
            with TemporaryDirectory() as temporary:  # once opened, nothing is read from it
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
        """The logits of new tokens, whose keys and values go into the cache."""
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
            if past_length:  # what came out is the whole of it
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
                f"cache has layers of the class {kind.__name__}, but here must be a DynamicCache: leave out "
                "cache_implementation."
            )
        return cache

    def _check_length(self, length: int) -> None:
        limit = self.config.max_position_embeddings
        if self.config.position_embedding_type == "learned" and length > limit:
            raise ValueError(
                f"The sequence has {length} tokens, but learned positions end at max_position_embeddings={limit}: "
                "truncate it."
            )


class OnnxEncoder(OnnxModel):
    """An encoder-only model, with or without a head."""

    graphs = (MODEL,)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> ModelOutput:
        """Encode, and what the head says of it; inputs are (batch, length)."""
        self._check_length(input_ids.shape[1])
        inputs = {"input_ids": input_ids, "attention_mask": _or_ones(attention_mask, input_ids.shape)}
        if self.config.type_vocab_size:
            inputs["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return OUTPUTS[self.config.architectures[0]](**self._run(MODEL, inputs))


class OnnxForCausalLM(OnnxModel, GenerationMixin):
    """A decoder-only model."""

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
        """Predict every next token of (batch, length) ids; see `TriviumForCausalLM.forward`."""
        cache = self._new_cache(cache, use_cache)
        logits = self._step(input_ids, attention_mask, cache, logits_to_keep, {})
        return CausalLMOutputWithPast(logits=logits, cache=cache)


class OnnxForConditionalGeneration(OnnxModel, GenerationMixin):
    """An encoder-decoder."""

    graphs = (ENCODER, DECODER)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """What `generate()` calls, once for all steps."""
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
        """Predict every next token of (batch, target_len) ids; see `TriviumForConditionalGeneration.forward`."""
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids, attention_mask)
        cache = self._new_cache(cache, use_cache)
        source = next(iter(encoder_outputs.values()))  # (batch, heads, source_len, head_dim)
        seen = {"encoder_attention_mask": _or_ones(attention_mask, source.shape[::2]), **encoder_outputs}
        logits = self._step(decoder_input_ids, decoder_attention_mask, cache, logits_to_keep, seen)
        return Seq2SeqLMOutput(logits=logits, cache=cache)


class _EncoderSession(nn.Module):
    def __init__(self, model: OnnxForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> ModelOutput:
        """Map (batch, source_len) ids to keys and values for the layers of the decoder; of each, beams get a copy."""
        self.model._check_length(input_ids.shape[1])
        inputs = {"input_ids": input_ids, "attention_mask": _or_ones(attention_mask, input_ids.shape)}
        return ModelOutput(self.model._run(ENCODER, inputs))


def _or_ones(mask: torch.Tensor | None, shape: Iterable[int]) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.long) if mask is None else mask.long()
