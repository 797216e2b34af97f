"""Cut an encoder-decoder into an encoder-only and a decoder-only model, and join two such models into one.

A decoder-only model has no cross-attention, so splitting yields three parts: encoder, decoder and cross-attention
weights. Joining all three restores the original model; without the third, cross-attention is newly initialized ("warm
start").
"""

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from trivium.modeling import (
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumModel,
)
from trivium.storage.atomic import check_free, whole_folder
from trivium.storage.saved_model import check_model_files, read_model_class
from trivium.tokenization import TriviumTokenizer

Weights = Mapping[str, torch.Tensor]

CROSS_ATTENTION_FILE = "cross_attention.safetensors"

# One configuration describes both stacks, so a join requires that these fields are equal.
COMMON_FIELDS = (
    "d_model",
    "num_attention_heads",
    "num_key_value_heads",
    "ffn_dim",
    "gated_ffn",
    "activation_function",
    "position_embedding_type",
    "max_position_embeddings",
    "rope_parameters",
    "sliding_window",
    "norm_type",
    "norm_position",
    "norm_eps",
    "attention_bias",
    "qk_norm",
    "ffn_bias",
    "scale_embedding",
    "normalize_embedding",
    "pad_token_id",
)


class Parts(NamedTuple):
    """Result of `split`, in the order of the arguments of `join`."""

    encoder: TriviumEncoderModel
    decoder: TriviumForCausalLM | TriviumDecoderModel
    cross_attention: dict[str, torch.Tensor]


class Joined(NamedTuple):
    """Result of `join`: the model and the names of its newly initialized parameters."""

    model: TriviumForConditionalGeneration | TriviumModel
    new_parameters: list[str]


def split(model: TriviumForConditionalGeneration | TriviumModel) -> Parts:
    """Split an encoder-decoder into its parts; `join(*split(model))` restores it bit for bit.

    Args:
        model: The encoder-decoder; it is not modified and shares no memory with the parts.

    Returns:
        `encoder`: the encoder without a head. `decoder`: the decoder with its head, if the model has one, and with the
        generation config. `cross_attention`: the decoder parameters that neither part contains, keyed by their names
        in a `TriviumModel`. Both parts are in eval mode, with the dtype and device of the model.

    Raises:
        ValueError: The model is not a Trivium encoder-decoder.
    """
    _check_kind(model, "model", "an encoder-decoder", encoder=True, decoder=True)
    weights = model.base_model.state_dict()
    head = getattr(model, "lm_head", None)
    encoder, _ = _assemble(TriviumEncoderModel, model.config.encoder_only(), weights)
    decoder, _ = _assemble(
        TriviumDecoderModel if head is None else TriviumForCausalLM, model.config.decoder_only(), weights, head
    )
    _adopt_generation_config(decoder, model)
    halves = encoder.base_model.state_dict().keys() | decoder.base_model.state_dict().keys()
    return Parts(
        encoder=encoder,
        decoder=decoder,
        cross_attention={name: weight.clone() for name, weight in weights.items() if name not in halves},
    )


def join(
    encoder: PreTrainedModel,
    decoder: TriviumForCausalLM | TriviumDecoderModel,
    cross_attention: Weights | None = None,
) -> Joined:
    """Join an encoder-only and a decoder-only model into an encoder-decoder.

    The two may differ in their number of layers and their vocabulary; all of `COMMON_FIELDS` must be equal. Other
    fields are taken from the decoder (dropout, label smoothing, start and end tokens, weight tying, generation
    config), except for encoder-only fields: token types and pooling. If both models tie their embeddings and the
    embeddings are equal, the joined model has one tied vocabulary, like the model before `split`; otherwise it has
    two.

    Args:
        encoder: An encoder-only model; its head, if any, is dropped.
        decoder: A decoder-only model; with an LM head the result is a `TriviumForConditionalGeneration`, without one a
            `TriviumModel`.
        cross_attention: Cross-attention weights from `split`. None initializes cross-attention as in a new model, with
            torch's global random generator.

    Returns:
        `model`: the encoder-decoder, in eval mode; it shares no memory with its parts, which are not modified.
        `new_parameters`: the sorted names of its newly initialized parameters.

    Raises:
        ValueError: A model is of the wrong kind, the models do not match, or the cross-attention does not match them;
            the message names the first mismatched field or parameter.
    """
    _check_kind(encoder, "encoder", "an encoder-only model", encoder=True, decoder=False)
    _check_kind(decoder, "decoder", "a decoder-only model", encoder=False, decoder=True)
    for place in ("dtype", "device"):
        _check_same(place, getattr(encoder, place), getattr(decoder, place))
    for field in COMMON_FIELDS:
        _check_same(field, getattr(encoder.config, field), getattr(decoder.config, field))

    weights = {**encoder.base_model.state_dict(), **decoder.base_model.state_dict()}
    head = getattr(decoder, "lm_head", None)
    model_class = TriviumModel if head is None else TriviumForConditionalGeneration
    config = _joined_config(encoder, decoder)
    if cross_attention is not None:
        with torch.device("meta"):
            needed = TriviumModel(config).state_dict()
        _check_cross_attention(cross_attention, {name: needed[name] for name in needed if name not in weights})
        weights |= {name: weight.to(decoder.device, decoder.dtype) for name, weight in cross_attention.items()}
    model, new_parameters = _assemble(model_class, config, weights, head)
    _adopt_generation_config(model, decoder)
    return Joined(model, new_parameters)


def _joined_config(encoder: PreTrainedModel, decoder: PreTrainedModel) -> Any:
    config = copy.deepcopy(decoder.config)
    for field in ("vocab_size", "encoder_layers", "type_vocab_size", "classifier_pooling"):
        setattr(config, field, getattr(encoder.config, field))
    config.is_encoder_decoder = True
    config.auto_map = {}  # save_pretrained writes the entry of the joined class
    if config.decoder_start_token_id is None:
        config.decoder_start_token_id = config.bos_token_id
    embeddings = [half.get_input_embeddings().weight for half in (encoder, decoder)]
    if not decoder.config.tie_word_embeddings:
        # Untied embeddings are separate matrices in any case; equal sizes mean that one vocabulary was split.
        one_vocabulary = embeddings[0].shape == embeddings[1].shape
    else:
        one_vocabulary = encoder.config.tie_word_embeddings and torch.equal(*embeddings)
    config.decoder_vocab_size = None if one_vocabulary else decoder.config.vocab_size
    return config


def _assemble(
    model_class: type[PreTrainedModel], config: Any, weights: Weights, head: nn.Linear | None = None
) -> tuple[Any, list[str]]:
    """Build a model from copies of the matching `weights`; return it and the names of newly initialized parameters."""
    with torch.device("meta"):  # allocates no memory and consumes no random numbers
        model = model_class(config)
    names = model.base_model.state_dict().keys() & weights.keys()
    copies = {name: weights[name].detach().clone() for name in names}
    model.base_model.load_state_dict(copies, strict=False, assign=True)
    if head is not None:
        copies = {name: weight.detach().clone() for name, weight in head.state_dict().items()}
        model.lm_head.load_state_dict(copies, assign=True)
    model.tie_weights()
    new_parameters = sorted(name for name, parameter in model.named_parameters() if parameter.is_meta)
    reference = next(iter(weights.values()))
    for module in model.modules():
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(tensor.is_meta for tensor in tensors):
            module.to(reference.dtype).to_empty(device=reference.device, recurse=False)
            model._init_weights(module)
        module._is_hf_initialized = True  # as after from_pretrained: an enclosing model must not reinitialize it
    return model.eval(), new_parameters


def _adopt_generation_config(model: PreTrainedModel, source: PreTrainedModel) -> None:
    if model.can_generate():
        model.generation_config = copy.deepcopy(source.generation_config)
        if model.generation_config.decoder_start_token_id is None:
            model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id


def _check_kind(model: PreTrainedModel, argument: str, expected: str, *, encoder: bool, decoder: bool) -> None:
    config = model.config
    if config.model_type != "trivium":
        raise ValueError(
            f"{argument} is a {type(model).__name__} (model_type={config.model_type!r}), but must be {expected} of "
            "model_type 'trivium'."
        )
    if (config.encoder_layers > 0, config.decoder_layers > 0) != (encoder, decoder):
        raise ValueError(
            f"{argument} is a {type(model).__name__} with encoder_layers={config.encoder_layers} and "
            f"decoder_layers={config.decoder_layers}, but must be {expected}."
        )


def _check_same(name: str, encoder_value: Any, decoder_value: Any) -> None:
    if encoder_value != decoder_value:
        raise ValueError(
            f"{name} is {encoder_value!r} in the encoder, but {decoder_value!r} in the decoder: they must be equal."
        )


def _check_cross_attention(weights: Weights, expected: Weights) -> None:
    for name in sorted({*weights, *expected}, key=_natural_order):
        if name not in weights:
            raise ValueError(f"cross_attention lacks {name}, of shape {tuple(expected[name].shape)}.")
        if name not in expected:
            raise ValueError(f"cross_attention has {name}, which the decoder does not have: remove it.")
        if weights[name].shape != expected[name].shape:
            raise ValueError(
                f"cross_attention has {name} of shape {tuple(weights[name].shape)}, but it must be "
                f"{tuple(expected[name].shape)}."
            )


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key for parameter names that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# --- Folders ---------------------------------------------------------------------------------------------------------


def split_folder(folder: str | Path, output: str | Path) -> list[Path]:
    """Split the encoder-decoder saved in `folder`, together with its tokenizer.

    Args:
        folder: A saved model; it is not modified.
        output: A new or empty folder, which receives two complete models, `encoder` and `decoder`, and
            `cross_attention.safetensors`. The decoder's tokenizer adds `<s>` but no `</s>`, since its inputs are
            prompts.

    Returns:
        The three paths.

    Raises:
        FileNotFoundError: `folder` lacks a model or a tokenizer.
        ValueError: The model is not an encoder-decoder, its tokenizer is not a `TriviumTokenizer`, or `output` exists
            and is not empty.
    """
    folder, output = Path(folder), Path(output)
    check_free(output)
    model, tokenizer = _load(folder)
    parts = split(model)
    with whole_folder(output) as partial:
        _save(partial / "encoder", parts.encoder, tokenizer.source)
        prompts = tokenizer.target
        prompts.add_bos_token, prompts.add_eos_token = True, False
        _save(partial / "decoder", parts.decoder, prompts)
        save_file(parts.cross_attention, partial / CROSS_ATTENTION_FILE, metadata={"format": "pt"})
    return [output / "encoder", output / "decoder", output / CROSS_ATTENTION_FILE]


def join_folders(
    encoder: str | Path, decoder: str | Path, output: str | Path, cross_attention: str | Path | None = None
) -> list[str]:
    """Join the models saved in the folders `encoder` and `decoder`, together with their tokenizers.

    Args:
        encoder: A saved encoder-only model.
        decoder: A saved decoder-only model.
        output: A new or empty folder, which receives the encoder-decoder and its tokenizer: with one vocabulary if
            both tokenizers are equal, otherwise with two.
        cross_attention: A file written by `split_folder`. None initializes cross-attention as in a new model.

    Returns:
        The sorted names of the newly initialized parameters.

    Raises:
        FileNotFoundError: A model, a tokenizer or the file does not exist.
        ValueError: The parts do not match, a tokenizer is not a `TriviumTokenizer`, or `output` exists and is not
            empty.
    """
    output = Path(output)
    check_free(output)
    weights = None if cross_attention is None else _load_weights(Path(cross_attention))
    (encoder_model, encoder_tokenizer), (decoder_model, decoder_tokenizer) = _load(Path(encoder)), _load(Path(decoder))
    model, new_parameters = join(encoder_model, decoder_model, weights)
    tokenizer = _joined_tokenizer(encoder_tokenizer, decoder_tokenizer)
    if not tokenizer.shared_vocabulary and not model.config.tie_word_embeddings:
        model.config.decoder_vocab_size = model.config.target_vocab_size  # two vocabularies may have the same size
    with whole_folder(output) as partial:
        _save(partial, model, tokenizer)
    return new_parameters


def _load(folder: Path) -> tuple[Any, TriviumTokenizer]:
    check_model_files(folder, with_tokenizer=True)
    config, model_class = read_model_class(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(tokenizer, TriviumTokenizer):
        raise ValueError(
            f"The tokenizer in {folder} is a {type(tokenizer).__name__}, but must be a TriviumTokenizer. In Python, "
            "trivium.split and trivium.join take models without a tokenizer."
        )
    return model_class.from_pretrained(folder, config=config), tokenizer


def _load_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"cross_attention is {path}, but there is no such file.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"cross_attention is {path}, but that is not a valid safetensors file: {error}.") from error


def _save(folder: Path, model: PreTrainedModel, tokenizer: TriviumTokenizer) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _joined_tokenizer(encoder: TriviumTokenizer, decoder: TriviumTokenizer) -> TriviumTokenizer:
    source, target = encoder.standard_backend, decoder.standard_backend
    return TriviumTokenizer(
        tokenizer_object=source,
        target_tokenizer_object=None if _tokenization_of(source) == _tokenization_of(target) else target,
        add_bos_token=False,
        add_eos_token=True,
        model_max_length=min(encoder.model_max_length, decoder.model_max_length),
    )


def _tokenization_of(backend: Tokenizer) -> dict[str, Any]:
    """Return the serialized tokenizer without post-processor, padding and truncation, for comparison."""
    return {**json.loads(backend.to_str()), "post_processor": None, "padding": None, "truncation": None}
