"""Export to CTranslate2, a fast inference engine for Transformers on CPU and GPU, and generate with it.

    to_ctranslate2("runs/numbers", "numbers-int8", quantization="int8")
    model = CTranslate2Model("numbers-int8")
    translations = translate(model, model.tokenizer, ["twenty-one"], num_beams=5)

A converted folder is self-contained: it holds the CTranslate2 model (`model.bin`, `config.json` and the vocabularies),
the tokenizer, and Trivium's configuration and generation settings. The tokenizer adds `<s>` and `</s>`, so CTranslate2
is configured to add no special tokens: its input is `tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])`.

CTranslate2 does not support classification heads, token types in models with a decoder, or activations other than
`ACTIVATIONS`. It supports all other options of `TriviumConfig`.
"""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import GenerateBeamEncoderDecoderOutput

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
# CTranslate2's `patience` for each `early_stopping` of transformers: beam search stops once `patience * num_beams`
# hypotheses are finished. True and "never" are equivalent; the heuristic of False has no equivalent in CTranslate2, so
# 2.0 approximates it. With `length_penalty=0`, CTranslate2 always searches until no hypothesis can improve, as
# transformers does for False.
PATIENCE: dict[bool | str, float] = {True: 1.0, False: 2.0, "never": 1e6}

# Supported generation settings, and their defaults if neither the call nor the saved model sets them.
SETTINGS: dict[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "eos_token_id": None,
    "length_penalty": 1.0,
    "max_length": None,
    "max_new_tokens": None,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
# Unsupported generation settings that would change the output: a saved model must have these neutral values.
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p", "guidance_scale"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff"), 0),
    **dict.fromkeys(("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "sequence_bias"), None),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "stop_strings"), None),
}


def _ctranslate2() -> ModuleType:
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
    ctranslate2, output = _ctranslate2(), Path(output)
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
            spec.register_source_vocabulary(_vocabulary(self.tokenizer, "source", config.vocab_size))
            target = _vocabulary(self.tokenizer, "target", config.target_vocab_size)
            spec.register_target_vocabulary(target)
            spec.config.decoder_start_token = target[_start_id(self.model.generation_config)]
        elif config.decoder_layers:
            decoder = self.decoder(self.model.model.decoder, self.model.lm_head)
            spec = specs.transformer_spec.TransformerDecoderModelSpec(decoder)
            spec.register_vocabulary(_vocabulary(self.tokenizer, "source", config.vocab_size))
        else:
            spec = specs.transformer_spec.TransformerEncoderModelSpec(self.encoder(self.model.encoder))
            spec.register_vocabulary(_vocabulary(self.tokenizer, "source", config.vocab_size))
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
        if config.rope_type != "default":
            raise ValueError(
                f"rope_type is {config.rope_type!r}, but must be 'default': scaled rotary positions are not exported "
                "to CTranslate2."
            )
        if config.sliding_window is not None:
            raise ValueError(
                f"sliding_window is {config.sliding_window}, but must be None: sliding-window attention is not "
                "exported to CTranslate2."
            )
        if config.qk_norm:
            raise ValueError(
                f"qk_norm is {config.qk_norm}, but must be False: normalized queries and keys are not exported to "
                "CTranslate2."
            )
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
        elif (length := _positions(self.config)) is not None:  # CTranslate2's sinusoids differ from the paper's
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


def _positions(config: TriviumConfig) -> int | None:
    """Return the maximum length of a converted model; None if unlimited."""
    if config.position_embedding_type == "rotary":
        return None
    learned = config.position_embedding_type == "learned"
    return config.max_position_embeddings if learned else max(config.max_position_embeddings, MIN_SINUSOIDAL_POSITIONS)


def _vocabulary(tokenizer: PreTrainedTokenizerBase, side: str, size: int) -> list[str]:
    """Return the source or target vocabulary ordered by id, with placeholders for unused ids."""
    tokens = {token_id: token for token, token_id in getattr(tokenizer, side, tokenizer).get_vocab().items()}
    if max(tokens) >= size:
        raise ValueError(f"The {side} tokenizer has token id {max(tokens)}, but the model has only {size} tokens.")
    return [tokens.get(token_id, f"<unused_{token_id}>") for token_id in range(size)]


class CTranslate2Model:
    """Encoder-decoder or decoder-only model converted to CTranslate2, with the `generate()` of transformers.

    It is a drop-in replacement for a model in `trivium.translation.translate` and the commands.

    Args:
        folder: Output folder of `to_ctranslate2`.
        device: "cpu", "cuda" or "auto".
        **options: Options of `ctranslate2.Translator`: `compute_type`, `intra_threads`, ...

    Raises:
        FileNotFoundError: `folder` is not a converted model.
        ImportError: CTranslate2 is not installed.
        ValueError: The model cannot generate text.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", **options: Any) -> None:
        ctranslate2, folder = _ctranslate2(), Path(folder)
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{folder} is not a converted model: it has no {CONFIG_FILE}.")
        self.config = TriviumConfig.from_json_file(folder / CONFIG_FILE)
        if not self.config.decoder_layers:
            raise ValueError(f"{folder} holds an encoder, which cannot generate. Load it with ctranslate2.Encoder.")
        self.generation_config = GenerationConfig.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=self.config, trust_remote_code=False)
        engine = ctranslate2.Translator if self.config.is_encoder_decoder else ctranslate2.Generator
        self.engine = engine(str(folder), device=device, **options)
        self.device = torch.device("cpu")  # device of inputs and outputs, regardless of the engine's device
        self.source_tokens = _vocabulary(self.tokenizer, "source", self.config.vocab_size)
        self.target_tokens = _vocabulary(self.tokenizer, "target", self.config.target_vocab_size)
        self.target_ids = {token: token_id for token_id, token in enumerate(self.target_tokens)}

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Load a converted model, or a saved Trivium model, which is converted to a temporary folder first.

        Args:
            folder: Folder of a converted or a saved model.
            **options: Options of the constructor; `compute_type="int8"` quantizes in both cases.
        """
        if (Path(folder) / CONFIG_FILE).is_file():
            return cls(folder, **options)
        with TemporaryDirectory() as temporary:  # the engine does not read the files after loading
            to_ctranslate2(folder, Path(temporary) / "converted")
            return cls(Path(temporary) / "converted", **options)

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        return_dict_in_generate: bool = False,
        **generation: Any,
    ) -> torch.Tensor | GenerateBeamEncoderDecoderOutput:
        """Translate or continue a batch of token ids, with the same results as the model's own `generate()`.

        Up to rounding, results are identical for greedy search, and for beam search if `early_stopping` is True or
        "never". If it is False, nearly all results are identical; see `PATIENCE`.

        Args:
            input_ids: Token ids of shape (batch, length).
            attention_mask: Mask of shape (batch, length), 1 for tokens and 0 for padding, on either side.
            return_dict_in_generate: Whether to return an object with `sequences` and `sequences_scores`.
            **generation: Any of `SETTINGS`; the saved settings are the defaults. Sampling is seeded by torch's seed
                when the model first samples; later seeds have no effect.

        Returns:
            Token ids of shape (batch * `num_return_sequences`, longest), padded on the right. As in transformers, each
            row starts with the decoder start token, or with the row of `input_ids` including its padding. The scores
            equal the scores of transformers' beam search.

        Raises:
            ValueError: A setting is not in `SETTINGS`, a text has more tokens than the model has positions, or no
                maximum length is set.
        """
        settings, is_seq2seq = self._settings(generation), self.config.is_encoder_decoder
        prefixes = input_ids
        if is_seq2seq:
            prefixes = input_ids.new_full((len(input_ids), 1), _start_id(self.generation_config))
        max_new_tokens = self._max_new_tokens(settings, prefixes.shape[1])
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        texts = [ids[keep].tolist() for ids, keep in zip(input_ids, mask.bool(), strict=True)]
        self._check_lengths(texts)
        options: dict[str, Any] = {
            "beam_size": settings["num_beams"],
            "patience": PATIENCE[settings["early_stopping"]],
            "num_hypotheses": settings["num_return_sequences"],
            "length_penalty": settings["length_penalty"],
            "end_token": _as_list(settings["eos_token_id"]),
            "return_end_token": True,
            "return_scores": return_dict_in_generate,
        }
        if settings["do_sample"]:
            options |= {f"sampling_{name.replace('_', '')}": settings[name] for name in ("top_k", "top_p")}
            options["sampling_temperature"] = settings["temperature"]
            _ctranslate2().set_random_seed(int(torch.randint(2**31, ())))
        generated, scores = (self._translate if is_seq2seq else self._continue)(texts, max_new_tokens, options)
        prefixes = prefixes.repeat_interleave(settings["num_return_sequences"], dim=0)
        rows = [torch.cat((prefix, prefix.new_tensor(ids))) for prefix, ids in zip(prefixes, generated, strict=True)]
        sequences = pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id or 0)
        if not return_dict_in_generate:
            return sequences
        return GenerateBeamEncoderDecoderOutput(sequences=sequences, sequences_scores=torch.tensor(scores))

    def _translate(
        self, texts: list[list[int]], max_new_tokens: int, options: dict[str, Any]
    ) -> tuple[list[list[int]], list[float]]:
        sources = [[self.source_tokens[token_id] for token_id in ids] for ids in texts]
        results = self.engine.translate_batch(
            sources, max_input_length=0, min_decoding_length=0, max_decoding_length=max_new_tokens, **options
        )
        ids = [[self.target_ids[token] for token in tokens] for result in results for tokens in result.hypotheses]
        return ids, [score for result in results for score in result.scores]

    def _continue(
        self, texts: list[list[int]], max_new_tokens: int, options: dict[str, Any]
    ) -> tuple[list[list[int]], list[float]]:
        """Batch texts of equal length: in batches of mixed lengths, CTranslate2 generates different tokens."""
        found: list[Any] = [None] * len(texts)
        for length in {len(ids) for ids in texts}:
            indices = [index for index, ids in enumerate(texts) if len(ids) == length]
            prompts = [[self.target_tokens[token_id] for token_id in texts[index]] for index in indices]
            results = self.engine.generate_batch(
                prompts, include_prompt_in_result=False, max_length=max_new_tokens, **options
            )
            for index, result in zip(indices, results, strict=True):
                found[index] = result
        ids = [ids for result in found for ids in result.sequences_ids]
        return ids, [score for result in found for score in result.scores]

    def _settings(self, generation: dict[str, Any]) -> dict[str, Any]:
        """Return the saved generation settings, overridden by the arguments of the call."""
        for name in generation:
            if name not in SETTINGS:
                raise ValueError(
                    f"{name} is {generation[name]!r}, but CTranslate2 supports only {', '.join(SETTINGS)}."
                )
        saved = vars(self.generation_config)
        for name, neutral in NEUTRAL.items():
            if saved.get(name) not in (None, neutral):
                raise ValueError(f"{name} is {saved[name]!r} in the saved settings, but must be {neutral!r}.")
        merged = {**saved, **generation}
        settings = {name: default if merged.get(name) is None else merged[name] for name, default in SETTINGS.items()}
        if settings["early_stopping"] not in PATIENCE:
            raise ValueError(f"early_stopping is {settings['early_stopping']!r}, but must be True, False or 'never'.")
        return settings

    def _max_new_tokens(self, settings: dict[str, Any], prefix_length: int) -> int:
        """Return the maximum number of new tokens, limited by the model's positions."""
        if settings["max_new_tokens"] is settings["max_length"] is None:
            raise ValueError("Neither max_length nor max_new_tokens is set. Set one of them to limit the output.")
        limit = settings["max_new_tokens"] or settings["max_length"] - prefix_length
        positions = _positions(self.config)
        # The last token is not fed back, so it needs no position.
        return limit if positions is None else min(limit, positions + 1 - prefix_length)

    def _check_lengths(self, texts: list[list[int]]) -> None:
        longest, positions = max(map(len, texts)), _positions(self.config)
        if positions is not None and longest > positions:
            raise ValueError(f"A text has {longest} tokens, but the converted model has only {positions} positions.")


def _start_id(settings: GenerationConfig) -> int:
    start = settings.bos_token_id if settings.decoder_start_token_id is None else settings.decoder_start_token_id
    if start is None:
        raise ValueError("decoder_start_token_id is None, but must be the first token of every translation.")
    return start


def _as_list(token_ids: int | list[int] | None) -> list[int]:
    if token_ids is None:
        return []
    return token_ids if isinstance(token_ids, list) else [token_ids]
