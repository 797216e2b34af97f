"""Cut an encoder-decoder into an encoder-only and a decoder-only model, and join two such models into one.

A decoder-only model has no attention to an encoder, so a cut gives three parts: cross-attention is the third. Joined
again they give the model that was cut; without the third, cross-attention starts anew ("warm start").
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
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from trivium import modeling
from trivium.modeling import (
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumModel,
)
from trivium.storage.atomic import check_free, whole_folder
from trivium.tokenization import TriviumTokenizer

Weights = Mapping[str, torch.Tensor]

CROSS_ATTENTION_FILE = "cross_attention.safetensors"

# One configuration describes both stacks, so these fields must be alike for them to be joined.
COMMON_FIELDS = (
    "d_model",
    "num_attention_heads",
    "num_key_value_heads",
    "ffn_dim",
    "gated_ffn",
    "activation_function",
    "position_embedding_type",
    "max_position_embeddings",
    "rope_theta",
    "norm_type",
    "norm_position",
    "norm_eps",
    "attention_bias",
    "ffn_bias",
    "scale_embedding",
    "normalize_embedding",
    "pad_token_id",
)


class Parts(NamedTuple):
    """What `split` gives and `join` takes."""

    encoder: TriviumEncoderModel
    decoder: TriviumForCausalLM | TriviumDecoderModel
    cross_attention: dict[str, torch.Tensor]


class Joined(NamedTuple):
    """What `join` gives."""

    model: TriviumForConditionalGeneration | TriviumModel
    new_parameters: list[str]


def split(model: TriviumForConditionalGeneration | TriviumModel) -> Parts:
    """Cut an encoder-decoder in two; `join(*split(model))` gives it back, to the bit.

    Args:
        model: It stays as it is, and shares no memory with the parts.

    Returns:
        `encoder`: without a head. `decoder`: with its head, if the model has one, and its settings for generation.
        `cross_attention`: the decoder's parameters that neither half has, by their names in a `TriviumModel`. Both
        halves are in evaluation mode, and have the type of numbers and the device of the model.

    Raises:
        ValueError: The model is no Trivium encoder-decoder.
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
    """Make an encoder-decoder of an encoder-only and a decoder-only model.

    The two may differ in the number of layers and in vocabulary, else they must be of one shape and kind. What they
    need not agree on comes from the decoder (dropout, label smoothing, start and end tokens, tying, generation
    settings), except for what only encoders have: token types and pooling. If both tie their embeddings and these
    are equal, the model has one vocabulary, tied, as it had if it was cut; otherwise it has two.

    Args:
        encoder: Any encoder-only model; a head is left behind.
        decoder: A decoder-only model; with its head it becomes a `TriviumForConditionalGeneration`, without one a
            `TriviumModel`.
        cross_attention: What `split` gave. None: cross-attention is initialised as in a new model, from torch's
            global random numbers.

    Returns:
        `model`: the encoder-decoder, in evaluation mode; it shares no memory with its parts, which stay as they are.
        `new_parameters`: the sorted names of its parameters that neither came from the parts.

    Raises:
        ValueError: The models are not of those kinds, do not fit together, or the cross-attention does not fit them;
            the message names the first field or parameter that is wrong.
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
    config.auto_map = {}  # of the decoder; saving writes the model's own
    if config.decoder_start_token_id is None:
        config.decoder_start_token_id = config.bos_token_id
    embeddings = [half.get_input_embeddings().weight for half in (encoder, decoder)]
    if not decoder.config.tie_word_embeddings:
        # Every matrix stands alone, whether or not there is one vocabulary; of equal sizes, that is what was cut.
        one_vocabulary = embeddings[0].shape == embeddings[1].shape
    else:
        one_vocabulary = encoder.config.tie_word_embeddings and torch.equal(*embeddings)
    config.decoder_vocab_size = None if one_vocabulary else decoder.config.vocab_size
    return config


def _assemble(
    model_class: type[PreTrainedModel], config: Any, weights: Weights, head: nn.Linear | None = None
) -> tuple[Any, list[str]]:
    """A model with copies of those of the `weights` that it has, and the names of its parameters that are new."""
    with torch.device("meta"):  # takes neither memory nor random numbers
        model = model_class(config)
    names = model.base_model.state_dict().keys() & weights.keys()
    copies = {name: weights[name].detach().clone() for name in names}
    model.base_model.load_state_dict(copies, strict=False, assign=True)
    if head is not None:
        copies = {name: weight.detach().clone() for name, weight in head.state_dict().items()}
        model.lm_head.load_state_dict(copies, assign=True)
    model.tie_weights()
    new_parameters = sorted(name for name, parameter in model.named_parameters() if parameter.is_meta)
    known = next(iter(weights.values()))
    for module in model.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.to(known.dtype).to_empty(device=known.device, recurse=False)
            model._init_weights(module)
        module._is_hf_initialized = True  # as after from_pretrained: a model around this one will not start it anew
    return model.eval(), new_parameters


def _adopt_generation_config(model: PreTrainedModel, source: PreTrainedModel) -> None:
    if model.can_generate():
        model.generation_config = copy.deepcopy(source.generation_config)
        if model.generation_config.decoder_start_token_id is None:
            model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id


def _check_kind(model: PreTrainedModel, argument: str, wanted: str, *, encoder: bool, decoder: bool) -> None:
    config = model.config
    if config.model_type != "trivium":
        raise ValueError(
            f"{argument} is a {type(model).__name__} (model_type={config.model_type!r}), but must be {wanted} of "
            "model_type 'trivium'."
        )
    if (config.encoder_layers > 0, config.decoder_layers > 0) != (encoder, decoder):
        raise ValueError(
            f"{argument} is a {type(model).__name__} with encoder_layers={config.encoder_layers} and "
            f"decoder_layers={config.decoder_layers}, but must be {wanted}."
        )


def _check_same(name: str, encoders: Any, decoders: Any) -> None:
    if encoders != decoders:
        raise ValueError(f"{name} is {encoders!r} in the encoder, but {decoders!r} in the decoder: they must agree.")


def _check_cross_attention(given: Weights, needed: Weights) -> None:
    for name in sorted({*given, *needed}, key=_natural_order):
        if name not in given:
            raise ValueError(f"cross_attention lacks {name}, of shape {tuple(needed[name].shape)}.")
        if name not in needed:
            raise ValueError(f"cross_attention has {name}, which the decoder has no place for.")
        if given[name].shape != needed[name].shape:
            raise ValueError(
                f"cross_attention has {name} of shape {tuple(given[name].shape)}, but it must be "
                f"{tuple(needed[name].shape)}."
            )


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# --- Folders ---------------------------------------------------------------------------------------------------------


def split_folder(folder: str | Path, output: str | Path) -> list[Path]:
    """Cut the encoder-decoder saved in `folder`, with its tokenizer.

    Args:
        folder: A saved model, which stays as it is.
        output: What is to hold `encoder`, `decoder`, both complete, and `cross_attention.safetensors`. The decoder's
            texts begin with `<s>` and do not end with `</s>`: prompts, as it learned to read them.

    Returns:
        The three paths.

    Raises:
        FileNotFoundError: `folder` lacks a model or a tokenizer.
        ValueError: The model is no encoder-decoder, its tokenizer no `TriviumTokenizer`, or `output` is there already
            and not empty.
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
    """Join the models saved in the folders `encoder` and `decoder`, with their tokenizers.

    Args:
        encoder: A saved encoder-only model.
        decoder: A saved decoder-only model.
        output: The folder that is to hold the encoder-decoder and its tokenizer: with one vocabulary, if both
            tokenizers are the same, else with two.
        cross_attention: The file that `split_folder` wrote. None: cross-attention is initialised anew.

    Returns:
        The sorted names of the parameters that are new.

    Raises:
        FileNotFoundError: A model, a tokenizer or the file is not there.
        ValueError: The parts do not fit together, a tokenizer is no `TriviumTokenizer`, or `output` is there already
            and not empty.
    """
    output = Path(output)
    check_free(output)
    weights = None if cross_attention is None else _load_weights(Path(cross_attention))
    (encoder_model, encoder_tokenizer), (decoder_model, decoder_tokenizer) = _load(Path(encoder)), _load(Path(decoder))
    model, new_parameters = join(encoder_model, decoder_model, weights)
    tokenizer = _joined_tokenizer(encoder_tokenizer, decoder_tokenizer)
    if not tokenizer.shared_vocabulary and not model.config.tie_word_embeddings:
        model.config.decoder_vocab_size = model.config.target_vocab_size  # two vocabularies may have one size
    with whole_folder(output) as partial:
        _save(partial, model, tokenizer)
    return new_parameters


def _load(folder: Path) -> tuple[Any, TriviumTokenizer]:
    for name, what in {"config.json": "saved model", "tokenizer_config.json": "model with its tokenizer"}.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a {what}: it has no {name}.")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model_class = getattr(modeling, (config.architectures or [""])[0], None)
    if config.model_type != "trivium" or model_class is None:
        raise ValueError(
            f"{folder} holds a model of model_type {config.model_type!r} and architectures {config.architectures}, "
            "but must hold a Trivium model."
        )
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
        raise ValueError(f"cross_attention is {path}, but that is not a file of safetensors: {error}.") from error


def _save(folder: Path, model: PreTrainedModel, tokenizer: TriviumTokenizer) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _joined_tokenizer(encoder: TriviumTokenizer, decoder: TriviumTokenizer) -> TriviumTokenizer:
    source, target = encoder.standard_backend, decoder.standard_backend
    return TriviumTokenizer(
        tokenizer_object=source,
        target_tokenizer_object=None if _reading(source) == _reading(target) else target,
        add_bos_token=False,
        add_eos_token=True,
        model_max_length=min(encoder.model_max_length, decoder.model_max_length),
    )


def _reading(backend: Tokenizer) -> dict[str, Any]:
    """How a tokenizer reads a text, but for what it puts around it and where it cuts it off."""
    return {**json.loads(backend.to_str()), "post_processor": None, "padding": None, "truncation": None}
