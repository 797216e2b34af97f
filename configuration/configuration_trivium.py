"""Trivium model configuration: the hyperparameters of the paper's Table 3 and the design choices of later families.

The number of layers selects the architecture: with layers in both stacks the model is an encoder-decoder, with
`decoder_layers=0` it is encoder-only, with `encoder_layers=0` decoder-only.

This file is saved to the Hub with every model, so it imports transformers but nothing from Trivium.
"""

import copy
import math
from typing import Any, Literal

from transformers.utils.versions import require_version

# Loading always imports this file first. An older transformers would fail later, in the model code, with an obscure
# error.
require_version("transformers>=5.24", "Upgrade it: pip install --upgrade transformers")

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers import PreTrainedConfig  # noqa: E402
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging  # noqa: E402

logger = logging.get_logger(__name__)

# Keys of `rope_parameters` that each `rope_type` of transformers needs and allows, besides `rope_theta`.
ROPE_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "yarn": (
        {"factor", "original_max_position_embeddings"},
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
    "longrope": ({"short_factor", "long_factor", "original_max_position_embeddings"}, {"factor", "attention_factor"}),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
}
# Types that depend on the trained context length.
NEEDS_TRAINED_LENGTH = [name for name, (keys, _) in ROPE_KEYS.items() if "original_max_position_embeddings" in keys]

# Field names of other model families, and the Trivium fields to use instead. transformers stores unknown names as
# attributes that no Trivium model reads, so each of these raises a warning.
UNSUPPORTED_ALIASES = {
    **dict.fromkeys(("hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "embd_pdrop", "dropout_rate"), "dropout"),
    **dict.fromkeys(("attention_probs_dropout_prob", "attn_pdrop"), "attention_dropout"),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "d_ff"), "ffn_dim"),
    **dict.fromkeys(("hidden_act", "hidden_activation", "feed_forward_proj"), "activation_function"),
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps"), "norm_eps"),
    **dict.fromkeys(("n_positions", "n_ctx"), "max_position_embeddings"),
    **dict.fromkeys(("n_head", "num_heads"), "num_attention_heads"),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), "num_attention_heads"),
    **dict.fromkeys(("n_layer", "num_layers"), "encoder_layers and decoder_layers"),
    **{"n_embd": "d_model", "num_kv_heads": "num_key_value_heads", "mlp_bias": "ffn_bias"},
    **{"qkv_bias": "attention_bias", "num_decoder_layers": "decoder_layers", "num_encoder_layers": "encoder_layers"},
}


def _is_positive(value: Any) -> bool:
    """Return True for a positive finite number; JSON can represent neither infinity nor NaN."""
    return isinstance(value, int | float) and 0 < value < math.inf


@strict
class TriviumConfig(PreTrainedConfig):
    """Configuration of a Trivium model. The defaults are the base model of *Attention Is All You Need* (Table 3).

    Args:
        vocab_size: Vocabulary size; with two vocabularies, the size of the source vocabulary.
        decoder_vocab_size: Size of the target vocabulary. None if source and target share one vocabulary.
        d_model: Width of embeddings and hidden states.
        encoder_layers: Number of encoder layers, the paper's N. 0 makes the model decoder-only.
        decoder_layers: Number of decoder layers, the paper's N. 0 makes the model encoder-only.
        num_attention_heads: Number of attention heads, the paper's h, each of width `d_model / num_attention_heads`.
        num_key_value_heads: Number of key and value heads. Fewer than `num_attention_heads` is grouped-query
            attention, 1 is multi-query attention. None for `num_attention_heads`.
        ffn_dim: Inner width of the feed-forward network, the paper's d_ff.
        gated_ffn: Whether the feed-forward network is gated (SwiGLU if the activation is "silu").
        activation_function: Key of transformers' `ACT2FN`.
        dropout: Dropout rate on the output of every sub-layer and on the embedded input (section 5.4).
        attention_dropout: Dropout rate on the attention weights.
        activation_dropout: Dropout rate on the inner activations of the feed-forward network.
        position_embedding_type: "sinusoidal" (section 3.5), "learned", or "rotary" (in self-attention only).
        max_position_embeddings: Maximum sequence length with learned positions. Sinusoidal and rotary positions have
            no limit; for them it is the length that the model is intended for.
        rope_parameters: Wavelengths of rotary positions, as in transformers: their base `rope_theta` (default 10000),
            and a `rope_type`. Types other than "default" extend the trained context length: "linear", "dynamic",
            "yarn", "longrope" or "llama3", each with its own keys (`factor`, ...). `rope_theta` may be passed alone.
        sliding_window: Window size of local self-attention. In the decoder, a token attends to this many tokens,
            itself and preceding ones, as in Mistral; in the encoder, to this many tokens on either side. None for full
            attention. Cross-attention always sees the whole source.
        norm_type: "layernorm" or "rmsnorm".
        norm_position: "post" as in the paper, LayerNorm(x + Sublayer(x)), or "pre", x + Sublayer(LayerNorm(x)).
        norm_eps: Epsilon added to the variance.
        attention_bias: Whether the four attention projections have biases; there are none in the paper.
        qk_norm: Whether the queries and keys of every head are normalized by RMSNorm before the rotation, as in Qwen3.
        ffn_bias: Whether the projections of the feed-forward network have biases, as in equation 2.
        scale_embedding: Whether embeddings are multiplied by sqrt(d_model) (section 3.4).
        normalize_embedding: Whether the sum of all embeddings is normalized before the first layer, as in BERT.
        type_vocab_size: Number of token types that the encoder embeds (`token_type_ids`), as in BERT; 0 for none.
        tie_word_embeddings: Whether all embeddings of one vocabulary and the output projection share one matrix
            (section 3.4); otherwise each has its own.
        lm_head_bias: Whether the output projection has a bias, as in Marian; there is none in the paper.
        label_smoothing: Epsilon of label smoothing, in training only (section 5.4).
        classifier_pooling: Pooling of the sequence classifier: the "mean" or "max" of the encoded tokens, or the first
            ("cls").
        seq2seq_task: Task for which an encoder-decoder was trained, "translation" or "summarization"; selects the
            pipeline that is saved with the model.
        is_encoder_decoder: Derived from the number of layers; an explicit value must agree with them.

    Raises:
        StrictDataclassError: A field has the wrong type, or fields are inconsistent; the message names the field, the
            value and the allowed values.
    """

    model_type = "trivium"
    keys_to_ignore_at_inference = ["cache"]
    attribute_map = {"hidden_size": "d_model"}

    vocab_size: int = 37000
    decoder_vocab_size: int | None = None
    d_model: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    ffn_dim: int = 2048
    gated_ffn: bool = False
    activation_function: str = "relu"
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    position_embedding_type: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    max_position_embeddings: int = 1024
    rope_parameters: dict[str, Any] | None = None
    sliding_window: int | None = None
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-5
    attention_bias: bool = False
    qk_norm: bool = False
    ffn_bias: bool = True
    scale_embedding: bool = True
    normalize_embedding: bool = False
    type_vocab_size: int = 0
    tie_word_embeddings: bool = True
    lm_head_bias: bool = False
    label_smoothing: float | int = 0.1
    classifier_pooling: Literal["mean", "max", "cls"] = "mean"
    seq2seq_task: Literal["translation", "summarization"] = "translation"
    use_cache: bool = True
    is_encoder_decoder: bool | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        """Derive defaults from other fields, and check keyword arguments that are not fields.

        Raises:
            ValueError: The configuration belongs to another model family, or `head_dim` disagrees with the fields.
        """
        model_type, head_dim = kwargs.pop("model_type", self.model_type), kwargs.pop("head_dim", None)
        # A subclass with its own model_type also accepts the configuration of the model that it extends.
        allowed = dict.fromkeys(each.model_type for each in type(self).__mro__ if issubclass(each, TriviumConfig))
        if model_type not in allowed:
            raise ValueError(
                f"model_type is {model_type!r}, but must be {' or '.join(map(repr, allowed))}: load other models with "
                "transformers' Auto classes, or convert them with `trivium convert`."
            )
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.is_encoder_decoder is None:
            self.is_encoder_decoder = self.encoder_layers > 0 and self.decoder_layers > 0
        if not type(self).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # Only needed where Trivium is not installed. With these entries, transformers would require
            # trust_remote_code here.
            kwargs.pop("custom_pipelines", None)
        for name in UNSUPPORTED_ALIASES.keys() & kwargs.keys() - type(self).__dataclass_fields__.keys():
            logger.warning_once(f"{name} has no effect on a Trivium model: set {UNSUPPORTED_ALIASES[name]}.")
        if "num_hidden_layers" in kwargs and self.is_encoder_decoder:
            logger.warning_once(
                "num_hidden_layers sets the number of encoder layers only: set encoder_layers and decoder_layers."
            )
        self.rope_parameters = dict(kwargs.pop("rope_scaling", None) or self.rope_parameters or {})
        super().__post_init__(**kwargs)  # moves `rope_theta` into `rope_parameters`
        self.rope_parameters.pop("type", None)  # former name of `rope_type`
        if head_dim is not None and head_dim * self.num_attention_heads != self.d_model:
            raise ValueError(
                f"head_dim is {head_dim}, but must be d_model / num_attention_heads ({self.d_model} / "
                f"{self.num_attention_heads}): leave it out."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field by its name or alias; `@strict` checks the type by the field's own name only.

        New `rope_parameters` inherit `rope_theta` and the trained context length unless they set these. The length is
        taken from the previous parameters, or else from the current `max_position_embeddings`.
        """
        if name in self.attribute_map:
            setattr(self, self.attribute_map[name], value)
            return
        former = self.rope_parameters or {}
        if name == "rope_parameters" and isinstance(value, dict) and "rope_theta" in former:
            value = {"rope_type": "default", "rope_theta": self.rope_theta, **value}
            if value["rope_type"] in NEEDS_TRAINED_LENGTH:
                key = "original_max_position_embeddings"
                value = {key: former.get(key, self.max_position_embeddings), **value}
        super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Create from a dictionary as in transformers; fields are overridden by `kwargs`, which are checked as well.

        Raises:
            ValueError: A value is out of range, or fields are inconsistent.
        """
        if "rope_parameters" in kwargs:  # set first, while `max_position_embeddings` is still the trained length
            kwargs = {"rope_parameters": kwargs["rope_parameters"], **kwargs}
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate_architecture()
        return loaded

    @property
    def rope_theta(self) -> Any:
        """Return the base of the wavelengths of rotary positions."""
        return (self.rope_parameters or {}).get("rope_theta", self.default_theta)

    @rope_theta.setter
    def rope_theta(self, value: float) -> None:
        self.rope_parameters = {**(self.rope_parameters or {}), "rope_theta": value}

    @property
    def rope_type(self) -> Any:
        """Return the scaling type of rotary positions; "default" if they are not scaled."""
        return (self.rope_parameters or {}).get("rope_type", "default")

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head, the paper's d_k = d_v."""
        return self.d_model // self.num_attention_heads

    @property
    def num_hidden_layers(self) -> int:
        """Return the number of encoder layers, or of decoder layers if the model is decoder-only."""
        return self.encoder_layers or self.decoder_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        if self.encoder_layers:
            self.encoder_layers = value
        else:
            self.decoder_layers = value

    @property
    def target_vocab_size(self) -> int:
        """Return the size of the decoder's vocabulary."""
        return self.vocab_size if self.decoder_vocab_size is None else self.decoder_vocab_size

    def encoder_only(self) -> "TriviumConfig":
        """Return the configuration of the encoder-only model: this one if it is encoder-only, otherwise a copy.

        Raises:
            ValueError: The model has no encoder.
        """
        if not self.encoder_layers:
            raise ValueError("encoder_layers is 0, but must be at least 1: a decoder-only model has no encoder.")
        if not self.decoder_layers:
            return self
        return self._extract(decoder_layers=0, decoder_vocab_size=None, lm_head_bias=False)

    def decoder_only(self) -> "TriviumConfig":
        """Return the configuration of the decoder-only model: this one if it is decoder-only, otherwise a copy.

        Raises:
            ValueError: The model has no decoder.
        """
        if not self.decoder_layers:
            raise ValueError("decoder_layers is 0, but must be at least 1: an encoder-only model has no decoder.")
        if not self.encoder_layers:
            return self
        return self._extract(
            encoder_layers=0, vocab_size=self.target_vocab_size, decoder_vocab_size=None, type_vocab_size=0
        )

    def _extract(self, **overrides: Any) -> "TriviumConfig":
        """Copy the configuration of an encoder-decoder, reduced to one of its stacks."""
        config = copy.deepcopy(self)
        for name, value in overrides.items():
            setattr(config, name, value)
        config.is_encoder_decoder = False
        config.architectures, config.auto_map = None, {}  # these describe the encoder-decoder; saving sets them again
        config.__dict__.pop("custom_pipelines", None)
        return config

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the text configuration as in transformers, with the `vocab_size` of the requested stack.

        If neither stack is requested and the vocabularies differ, `vocab_size` is the decoder's: generation calls this
        method without arguments to look up the size of the output vocabulary.

        transformers builds both caches of an encoder-decoder from the decoder's text configuration, in which
        `sliding_window` is therefore None: cross-attention needs all keys and values. The mask still applies the
        window.
        """
        builds_caches = decoder and not encoder
        if decoder is None and encoder is None and self.decoder_vocab_size is not None:
            decoder = True
        if not decoder or encoder or not self.is_encoder_decoder:
            return super().get_text_config(decoder=decoder, encoder=encoder)
        config = copy.deepcopy(self)
        config.decoder_vocab_size = self.target_vocab_size
        if builds_caches:
            config.sliding_window = None
        return super(TriviumConfig, config).get_text_config(decoder=decoder, encoder=encoder)

    def validate_architecture(self) -> None:
        """Check all values; `@strict` calls this at the end of construction.

        Raises:
            ValueError: A value is out of range, or fields are inconsistent.
        """
        from transformers.activations import ACT2FN  # a slow import, not needed by Auto classes alone

        counts = ["vocab_size", "d_model", "num_attention_heads", "num_key_value_heads", "ffn_dim"]
        for name in [*counts, "decoder_vocab_size", "max_position_embeddings"]:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1.")
        for name in ("encoder_layers", "decoder_layers", "type_vocab_size"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} is {value}, but must be at least 0.")
        if self.sliding_window is not None and self.sliding_window < 2:
            raise ValueError(
                f"sliding_window is {self.sliding_window}, but must be at least 2 tokens, or None for full attention."
            )
        self._validate_variant()
        for name in ("dropout", "attention_dropout", "activation_dropout", "label_smoothing"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}, but must be in [0, 1).")
        if not _is_positive(self.norm_eps):
            raise ValueError(f"norm_eps is {self.norm_eps}, but must be above 0 and finite.")
        if self.d_model % self.num_attention_heads:
            raise ValueError(
                f"d_model is {self.d_model}, but must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}, but must divide num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.position_embedding_type == "sinusoidal" and self.d_model % 2:
            raise ValueError(
                f"d_model is {self.d_model}, but must be even with sinusoidal positions: "
                "sines and cosines come in pairs."
            )
        if self.position_embedding_type == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"d_model / num_attention_heads is {self.head_dim}, but must be even with rotary positions: "
                "dimensions are rotated in pairs."
            )
        if self.activation_function not in ACT2FN:
            raise ValueError(
                f"activation_function is {self.activation_function!r}, but must be one of {', '.join(sorted(ACT2FN))}."
            )
        self._validate_rope_parameters()
        self._validate_special_tokens()

    def _validate_variant(self) -> None:
        layers = f"encoder_layers={self.encoder_layers} and decoder_layers={self.decoder_layers}"
        if not (self.encoder_layers or self.decoder_layers):
            raise ValueError("encoder_layers and decoder_layers are 0, but at least one of them must be above 0.")
        if self.is_encoder_decoder != (self.encoder_layers > 0 and self.decoder_layers > 0):
            raise ValueError(
                f"is_encoder_decoder is {self.is_encoder_decoder}, which contradicts {layers}: an encoder-only model "
                "has decoder_layers=0, a decoder-only model has encoder_layers=0, an encoder-decoder has both above 0."
            )
        if self.decoder_vocab_size is not None and not self.is_encoder_decoder:
            raise ValueError(
                f"decoder_vocab_size is {self.decoder_vocab_size}, but must be None with {layers}: only an "
                "encoder-decoder has two vocabularies. Set vocab_size."
            )
        if self.type_vocab_size and not self.encoder_layers:
            raise ValueError(
                f"type_vocab_size is {self.type_vocab_size}, but must be 0 with {layers}: only the encoder embeds "
                "token types."
            )

    def _validate_rope_parameters(self) -> None:
        parameters, rope_type, pairs = dict(self.rope_parameters or {}), self.rope_type, self.head_dim // 2
        if rope_type not in ROPE_KEYS:
            raise ValueError(f"rope_type is {rope_type!r}, but must be one of {', '.join(map(repr, ROPE_KEYS))}.")
        if rope_type != "default" and self.position_embedding_type != "rotary":
            raise ValueError(
                f"rope_type is {rope_type!r}, but must be 'default' with position_embedding_type="
                f"{self.position_embedding_type!r}: only rotary positions can be scaled."
            )
        if (share := parameters.pop("partial_rotary_factor", 1.0)) != 1.0:
            raise ValueError(f"partial_rotary_factor is {share!r}, but must be 1.0: heads are rotated as a whole.")
        required, optional = ROPE_KEYS[rope_type]
        allowed = {"rope_type", "rope_theta", "original_max_position_embeddings", *required, *optional}
        for keys, problem in ((required - parameters.keys(), "lacks"), (parameters.keys() - allowed, "has")):
            if keys:
                raise ValueError(
                    f"rope_parameters {problem} {', '.join(sorted(keys))}; rope_type={rope_type!r} needs "
                    f"{', '.join(sorted(required)) or 'no other key'} and allows {', '.join(sorted(allowed))}."
                )
        for name, value in parameters.items():
            if name in ("short_factor", "long_factor"):
                if not isinstance(value, list) or len(value) != pairs or not all(map(_is_positive, value)):
                    raise ValueError(
                        f"{name} is {value!r}, but must be a list of {pairs} numbers above 0, one for each pair of "
                        "dimensions of a head."
                    )
            elif name == "factor" and not (_is_positive(value) and value >= 1):
                raise ValueError(f"factor is {value!r}, but must be a finite number of at least 1.")
            elif name not in ("rope_type", "truncate") and not _is_positive(value):
                raise ValueError(f"{name} is {value!r}, but must be a number above 0 and finite.")
        if rope_type == "llama3" and not (low := parameters["low_freq_factor"]) < parameters["high_freq_factor"]:
            raise ValueError(f"low_freq_factor is {low}, but must be below high_freq_factor.")

    def _validate_special_tokens(self) -> None:
        shared_size = min(self.vocab_size, self.target_vocab_size)
        for name, size in {
            "pad_token_id": shared_size,
            "bos_token_id": self.target_vocab_size,
            "eos_token_id": self.target_vocab_size,
            "decoder_start_token_id": self.target_vocab_size,
        }.items():
            value = getattr(self, name)
            if value == []:
                raise ValueError(f"{name} is [], but must be an id, a non-empty list of ids, or None.")
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None and not 0 <= token_id < size:
                    raise ValueError(f"{name} is {value}, but must be in [0, {size}), the range of the vocabulary.")


__all__ = ["TriviumConfig"]
