"""Export models to CTranslate2; the module `ctranslate2` documents the folder, and generates with it."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trivium.configuration import TriviumConfig
from trivium.modeling import TriviumEncoderModel, TriviumForCausalLM, TriviumForConditionalGeneration
from trivium.modeling.attention import MultiHeadAttention
from trivium.modeling.feed_forward import FeedForward
from trivium.modeling.layers import Residual
from trivium.modeling.positions import sinusoidal_encoding
from trivium.modeling.stacks import TriviumDecoder, TriviumEncoder, TriviumStack
from trivium.storage.atomic import check_free, whole_folder
from trivium.storage.saved_model import check_model_files, read_model_class

CONFIG_FILE = "trivium_config.json"  # config.json is CTranslate2's
CONVERTIBLE = (TriviumForConditionalGeneration, TriviumForCausalLM, TriviumEncoderModel)
MIN_SINUSOIDAL_POSITIONS = 1024  # minimum length of the exported position table; CTranslate2 needs a fixed one

# Maps names in transformers' ACT2FN to the names of the same functions in ctranslate2.specs.Activation.
ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_python": "GELU",
    **dict.fromkeys(("gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh"), "GELUTanh"),
    "quick_gelu": "GELUSigmoid",
    "silu": "SWISH",
    "swish": "SWISH",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
}
# Fields of `TriviumConfig` of which only one value can be exported, with that value and the reason.
UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "rope_type": ("default", "scaled rotary positions are not"),
    "sliding_window": (None, "sliding-window attention is not"),
    "qk_norm": (False, "normalized queries and keys are not"),
}


def require_ctranslate2() -> ModuleType:
    """Import CTranslate2, or raise an ImportError that states how to install it."""
    try:
        import ctranslate2
    except ImportError as error:
        raise ImportError("This needs CTranslate2: `pip install ctranslate2`.") from error
    return ctranslate2


def to_ctranslate2(
    source: PreTrainedModel | str | Path,
    output: str | Path,
    quantization: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Export a model and its tokenizer to a folder for CTranslate2.

    Args:
        source: An encoder-decoder or decoder-only model with a head, an encoder-only model without one, or the folder
            of a saved one.
        output: A new or empty folder.
        quantization: Storage type of the weights: "float32" (same as None), "float16", "bfloat16", "int8", "int16",
            "int8_float32", "int8_float16" or "int8_bfloat16".
        tokenizer: Tokenizer; None loads it from `source`, which then must be a folder.

    Raises:
        FileNotFoundError: There is no saved model.
        ImportError: CTranslate2 is not installed.
        ValueError: CTranslate2 does not support the model, in which case the message names the field; or `output` is
            not empty.
    """
    ctranslate2, output = require_ctranslate2(), Path(output)
    model, tokenizer = _load(source, tokenizer)
    allowed = ctranslate2.specs.model_spec.ACCEPTED_MODEL_TYPES
    if quantization not in (None, *allowed):
        raise ValueError(f"quantization is {quantization!r}, but must be None or one of {', '.join(allowed)}.")
    check_free(output)
    spec = _SpecBuilder(ctranslate2, model, tokenizer).build()
    spec.validate()
    spec.optimize(quantization or "float32")
    with whole_folder(output) as partial:
        tokenizer.save_pretrained(partial)
        model.config.to_json_file(partial / CONFIG_FILE)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        spec.save(str(partial))


def _load(
    source: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not isinstance(source, (str, Path)):
        if tokenizer is None:
            raise ValueError("tokenizer is None, but must be set if source is a model and not a folder.")
        model = source
    else:
        check_model_files(Path(source))
        config, model_class = read_model_class(Path(source))
        model = model_class.from_pretrained(source, config=config)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if type(model).__name__ not in {model_class.__name__ for model_class in CONVERTIBLE}:
        raise ValueError(
            f"The model is a {type(model).__name__}, but CTranslate2 supports only "
            f"{', '.join(model_class.__name__ for model_class in CONVERTIBLE)}. To export only the encoder of a model "
            "with another head, pass TriviumEncoderModel.from_pretrained(folder) and the tokenizer."
        )
    return model, tokenizer


class _SpecBuilder:
    """Builder of a model's `ctranslate2.specs` specification."""

    def __init__(self, ctranslate2: ModuleType, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.specs = ctranslate2.specs
        self.model = model
        self.tokenizer = tokenizer
        self.config: TriviumConfig = model.config

    def build(self) -> Any:
        """Return the specification of the whole model; raise a ValueError if it is unsupported."""
        config, specs = self.config, self.specs
        self._check()
        if config.is_encoder_decoder:
            model = self.model.model
            spec = specs.TransformerSpec(self.encoder(model.encoder), self.decoder(model.decoder, self.model.lm_head))
            spec.register_source_vocabulary(vocabulary_of(self.tokenizer, "source", config.vocab_size))
            target = vocabulary_of(self.tokenizer, "target", config.target_vocab_size)
            spec.register_target_vocabulary(target)
            spec.config.decoder_start_token = target[start_id(self.model.generation_config)]
        elif config.decoder_layers:
            decoder = self.decoder(self.model.model.decoder, self.model.lm_head)
            spec = specs.transformer_spec.TransformerDecoderModelSpec(decoder)
            spec.register_vocabulary(vocabulary_of(self.tokenizer, "source", config.vocab_size))
        else:
            spec = specs.transformer_spec.TransformerEncoderModelSpec(self.encoder(self.model.encoder))
            spec.register_vocabulary(vocabulary_of(self.tokenizer, "source", config.vocab_size))
        spec.config.layer_norm_epsilon = config.norm_eps
        for name in ("bos_token", "eos_token", "unk_token"):
            setattr(spec.config, name, getattr(self.tokenizer, name) or "")
        return spec

    def _check(self) -> None:
        config = self.config
        if config.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"activation_function is {config.activation_function!r}, but CTranslate2 supports only "
                f"{', '.join(ACTIVATIONS)}."
            )
        for name, (required, reason) in UNSUPPORTED.items():
            if (value := getattr(config, name)) != required:
                raise ValueError(f"{name} is {value!r}, but must be {required!r}: {reason} exported to CTranslate2.")
        if config.type_vocab_size and config.is_encoder_decoder:
            raise ValueError(
                f"type_vocab_size is {config.type_vocab_size}, but must be 0: in CTranslate2, only "
                "encoder-only models have token types."
            )

    def encoder(self, encoder: TriviumEncoder) -> Any:
        """Return the specification of the encoder."""
        config, specs = self.config, self.specs
        spec = specs.transformer_spec.TransformerEncoderSpec(
            config.encoder_layers,
            num_source_embeddings=2 if config.type_vocab_size else 1,
            embeddings_merge=specs.EmbeddingsMerge.ADD,
            **self._shape(),
        )
        self._stack(spec, spec.embeddings[0], encoder)
        if config.type_vocab_size:  # undo embed_scale, which CTranslate2 applies to token types too
            spec.embeddings[1].weight = _floats(encoder.embed_token_types.weight / encoder.embed_tokens.embed_scale)
        return spec

    def decoder(self, decoder: TriviumDecoder, head: nn.Linear) -> Any:
        """Return the specification of the decoder, with cross-attention if there is an encoder, and of the LM head."""
        spec = self.specs.transformer_spec.TransformerDecoderSpec(
            self.config.decoder_layers, with_encoder_attention=self.config.is_encoder_decoder, **self._shape()
        )
        self._stack(spec, spec.embeddings, decoder)
        if self.config.is_encoder_decoder:
            layers: Iterable[Any] = decoder.layers
            for layer_spec, layer in zip(spec.layer, layers, strict=True):
                self._attention(layer_spec.attention, layer.cross_attn, layer.cross_attn_residual)
        self._linear(spec.projection, head)
        return spec

    def _shape(self) -> dict[str, Any]:
        config = self.config
        shape: dict[str, Any] = {
            "num_heads": config.num_attention_heads,
            "pre_norm": config.norm_position == "pre",
            "activation": self.specs.Activation[ACTIVATIONS[config.activation_function]],
            "layernorm_embedding": config.normalize_embedding,
            "ffn_glu": config.gated_ffn,
            "rms_norm": config.norm_type == "rmsnorm",
        }
        if config.num_key_value_heads != config.num_attention_heads:
            shape["num_heads_kv"] = config.num_key_value_heads
        if config.position_embedding_type == "rotary":
            # rotary_dim 0 rotates all dimensions; non-interleaved pairs are (i, i + head_dim/2).
            shape |= {"rotary_dim": 0, "rotary_interleave": False, "rotary_base": config.rope_theta}
        return shape

    def _stack(self, spec: Any, embeddings: Any, stack: TriviumStack) -> None:
        """Set the weights that encoder and decoder have in common."""
        embeddings.weight = _floats(stack.embed_tokens.weight)
        spec.scale_embeddings = float(stack.embed_tokens.embed_scale)
        if self.config.position_embedding_type == "learned":
            positions: Any = stack.embed_positions
            spec.position_encodings.encodings = _floats(positions.embedding.weight)
        elif (length := max_positions_of(self.config)) is not None:  # CTranslate2's sinusoids differ from the paper's
            spec.position_encodings.encodings = sinusoidal_encoding(torch.arange(length), self.config.d_model)
        if self.config.normalize_embedding:
            self._norm(spec.layernorm_embedding, stack.embedding_norm)
        layers: Iterable[Any] = stack.layers
        for layer_spec, layer in zip(spec.layer, layers, strict=True):
            self._attention(layer_spec.self_attention, layer.self_attn, layer.self_attn_residual)
            self._feed_forward(layer_spec.ffn, layer.feed_forward, layer.feed_forward_residual)
        if self.config.norm_position == "pre":
            self._norm(spec.layer_norm, stack.norm)

    def _attention(self, spec: Any, attention: MultiHeadAttention, residual: Residual) -> None:
        query, memory = [attention.q_proj], [attention.k_proj, attention.v_proj]
        # these projections share their input, so they are fused into one matrix
        fused = [query + memory] if len(spec.linear) == 2 else [query, memory]
        for linear_spec, layers in zip(spec.linear, [*fused, [attention.o_proj]], strict=True):
            self._linear(linear_spec, *layers)
        self._norm(spec.layer_norm, residual.norm)

    def _feed_forward(self, spec: Any, feed_forward: FeedForward, residual: Residual) -> None:
        if feed_forward.gate_proj is None:
            self._linear(spec.linear_0, feed_forward.up_proj)
        else:
            self._linear(spec.linear_0, feed_forward.gate_proj)
            self._linear(spec.linear_0_noact, feed_forward.up_proj)
        self._linear(spec.linear_1, feed_forward.down_proj)
        self._norm(spec.layer_norm, residual.norm)

    def _linear(self, spec: Any, *layers: nn.Linear) -> None:
        """Set the weight and bias of a linear layer, or of several fused along the output dimension."""
        spec.weight = torch.cat([_floats(layer.weight) for layer in layers])
        if layers[0].bias is not None:
            spec.bias = torch.cat([_floats(layer.bias) for layer in layers])

    def _norm(self, spec: Any, norm: Any) -> None:
        spec.gamma = _floats(norm.weight)
        if hasattr(spec, "beta"):
            spec.beta = _floats(norm.bias)


def _floats(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to("cpu", torch.float32, copy=True)  # copied, because CTranslate2 quantizes in place


def max_positions_of(config: TriviumConfig) -> int | None:
    """Return the maximum length of a converted model; None if unlimited."""
    if config.position_embedding_type == "rotary":
        return None
    learned = config.position_embedding_type == "learned"
    return config.max_position_embeddings if learned else max(config.max_position_embeddings, MIN_SINUSOIDAL_POSITIONS)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, side: str, size: int) -> list[str]:
    """Return the source or target vocabulary ordered by id, with placeholders for unused ids."""
    tokens = {token_id: token for token, token_id in getattr(tokenizer, side, tokenizer).get_vocab().items()}
    if max(tokens) >= size:
        raise ValueError(f"The {side} tokenizer has token id {max(tokens)}, but the model has only {size} tokens.")
    return [tokens.get(token_id, f"<unused_{token_id}>") for token_id in range(size)]


def start_id(settings: GenerationConfig) -> int:
    """Return the decoder start token, or raise a ValueError if there is none."""
    start = settings.bos_token_id if settings.decoder_start_token_id is None else settings.decoder_start_token_id
    if start is None:
        raise ValueError("decoder_start_token_id is None, but must be the first token of every translation.")
    return start
