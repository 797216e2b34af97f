"""Export language models to GGUF, the file format of llama.cpp and of programs built on it.

    to_gguf("runs/shakespeare", "shakespeare.gguf", quantization="q8_0")

The weights are converted to a family of transformers that llama.cpp also implements, GPT-2 or LLaMA, and named by the
tensor map of the `gguf` package. The file holds the tokenizer as well; see `gguf_tokenizer`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, GenerationConfig

from trivium.configuration import TriviumConfig
from trivium.interop.checkpoint import Checkpoint
from trivium.interop.exchange import Exchange, Steps
from trivium.interop.families.gpt2 import GPT2
from trivium.interop.families.llama import LLAMA
from trivium.interop.gguf_tokenizer import Vocabulary, read_vocabulary
from trivium.interop.mapping import Family, Shape
from trivium.modeling import TriviumForCausalLM
from trivium.modeling.positions import RotaryEmbedding
from trivium.storage.atomic import whole_files
from trivium.storage.saved_model import check_model_files

QUANTIZATIONS = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}  # names in gguf.LlamaFileType
ROPE_TYPES = ("default", "linear", "llama3")  # only types with constant frequencies and unscaled attention
TANH_GELU = ("gelu_new", "gelu_accurate", "gelu_fast", "gelu_python_tanh", "gelu_pytorch_tanh")


def _one_of(name: str, allowed: tuple[str, ...]) -> Callable[[TriviumConfig], str]:
    """Return a requirement that accepts any of several values for a field."""
    return lambda config: value if (value := getattr(config, name)) in allowed else allowed[0]


# llama.cpp fixes the activation of each architecture.
ARCHITECTURES = tuple(
    replace(
        family,
        classes={native: name for native, name in family.classes.items() if name == "TriviumForCausalLM"},
        requirements={**family.requirements, "activation_function": _one_of("activation_function", activations)},
    )
    for family, activations in ((GPT2, TANH_GELU), (LLAMA, ("silu", "swish")))
)


def to_gguf(source: str | Path, output: str | Path, quantization: str | None = None) -> list[str]:
    """Convert a saved language model, with its tokenizer, to a GGUF file.

    Weights are streamed: one tensor is in memory at a time.

    Args:
        source: Folder of a saved `TriviumForCausalLM`, which is not modified.
        output: Path of a new file, which must end in ".gguf".
        quantization: Type of the matrices: "f32" (default), "f16", or "q8_0", which quantizes blocks of 32 weights to
            8 bits. Vectors and learned positions stay in float32, and matrices whose rows are not a multiple of 32 are
            stored as "f16" instead of "q8_0".

    Returns:
        Notes on differences from the original, one clause each.

    Raises:
        FileNotFoundError: The model or its tokenizer does not exist.
        ImportError: gguf is not installed.
        ValueError: llama.cpp cannot represent the model or its tokenizer, or `output` exists. Nothing is written then.
    """
    gguf = _require_gguf()
    source, output = Path(source), Path(output)
    if output.suffix != ".gguf" or output.exists():
        raise ValueError(f"output is {output}, but must be the name of a new file that ends in '.gguf'.")
    if quantization not in (None, *QUANTIZATIONS):
        raise ValueError(f"quantization is {quantization!r}, but must be one of {', '.join(QUANTIZATIONS)} for GGUF.")
    check_model_files(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    family = _select_architecture(source, config)
    vocabulary = read_vocabulary(source, config.vocab_size)
    with torch.device("meta"):
        trivium = TriviumForCausalLM(config)
        native = getattr(transformers, next(iter(family.classes)))(family.to_native(config))
    file_type = QUANTIZATIONS[quantization or "f32"]
    writer = gguf.GGUFWriter(None, family.model_type)
    writer.add_name(source.resolve().name)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_config(writer, config)
    notes = vocabulary.notes + _add_vocabulary(gguf, writer, vocabulary, _end_ids(source, config))
    with Checkpoint(source) as weights:
        steps = Exchange(family, native, trivium).to_native(weights, weights.shapes)
        shapes = {name: tuple(tensor.shape) for name, tensor in native.state_dict().items()}
        tensors = _name_tensors(gguf, family.model_type, config, steps, shapes)
        types = {name: _tensor_type(gguf, name, shape, quantization or "f32") for name, (shape, _) in tensors.items()}
        for name, (shape, _) in tensors.items():
            stored = gguf.quant_shape_to_byte_shape(shape, types[name])
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), types[name])
        with whole_files(output.parent) as folder:
            writer.write_header_to_file(folder / output.name)
            try:
                writer.write_kv_data_to_file()
                writer.write_ti_data_to_file()
                for name, (_, compute) in tensors.items():
                    array = np.ascontiguousarray(compute().float().numpy())
                    writer.write_tensor_data(gguf.quantize(array, types[name]).view(np.uint8))
            finally:
                writer.close()
    return notes


def _require_gguf() -> ModuleType:
    try:
        return import_module("gguf")
    except ImportError as error:
        raise ImportError("This needs GGUF: `pip install gguf`.") from error


def _select_architecture(folder: Path, config: Any) -> Family:
    """Return the family that represents the model in llama.cpp.

    Raises:
        ValueError: No family fits; the message lists the fields that the closest family does not support.
    """
    name = (config.architectures or [""])[0]
    if config.model_type != "trivium" or name != "TriviumForCausalLM":
        raise ValueError(
            f"{folder} holds a {name or 'model of unknown type'}, but must hold a TriviumForCausalLM for GGUF. "
            "Convert a model of transformers to Trivium first."
        )
    mismatches = [(family, family.mismatches(config, name)) for family in ARCHITECTURES]
    family, reasons = min(mismatches, key=lambda item: len(item[1]))
    if not reasons and config.rope_type not in ROPE_TYPES:
        reasons = [f"rope_type is {config.rope_type!r}, but must be one of {', '.join(ROPE_TYPES)}"]
    if config.head_dim % 2 and not reasons and family.model_type == "llama":
        reasons = [f"head_dim is {config.head_dim}, but must be even"]
    if reasons:
        raise ValueError(
            f"llama.cpp cannot represent this {name}; its closest architecture is {family.model_type}, but "
            f"{'; '.join(reasons)}."
        )
    return family


# --- Metadata --------------------------------------------------------------------------------------------------------


def _add_config(writer: Any, config: TriviumConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.decoder_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if config.norm_type == "rmsnorm":
        writer.add_layer_norm_rms_eps(config.norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if config.position_embedding_type == "rotary":
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)


def _add_vocabulary(gguf: ModuleType, writer: Any, vocabulary: Vocabulary, end_ids: list[int]) -> list[str]:
    """Write the tokenizer and its end-of-text tokens to the file; return notes on differences."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([gguf.TokenType[name] for name in vocabulary.types])
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.model == "t5":
        writer.add_token_scores([0.0] * len(vocabulary.tokens))
        writer.add_remove_extra_whitespaces(False)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    # Without BOS and EOS ids in the file, llama.cpp would assume its own defaults.
    writer.add_bos_token_id(end_ids[0] if vocabulary.bos_id is None else vocabulary.bos_id)
    writer.add_eos_token_id(end_ids[0])
    if len(end_ids) > 1:
        writer.add_eot_token_id(end_ids[1])
    if vocabulary.unk_id is not None:
        writer.add_unk_token_id(vocabulary.unk_id)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
    return [f"token {id} does not end a text: a GGUF file has two such tokens" for id in end_ids[2:]]


def _end_ids(folder: Path, config: TriviumConfig) -> list[int]:
    """Return the ids of the end-of-text tokens, at least one."""
    saved = (folder / "generation_config.json").is_file()
    ids = GenerationConfig.from_pretrained(folder).eos_token_id if saved else config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    if None in ids or not ids:
        raise ValueError("eos_token_id is None, but must be the id of a token for GGUF. Set it in the configuration.")
    return ids


# --- Tensors ---------------------------------------------------------------------------------------------------------

Layout = Callable[[torch.Tensor], torch.Tensor]
Tensors = dict[str, tuple[Shape, Callable[[], torch.Tensor]]]


def _name_tensors(
    gguf: ModuleType, model_type: str, config: TriviumConfig, steps: Steps, shapes: Mapping[str, Shape]
) -> Tensors:
    """Map llama.cpp's tensor names to shapes and to functions that compute the tensors in llama.cpp's layout."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[model_type.upper()], config.decoder_layers)
    assert config.num_key_value_heads is not None
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors: Tensors = {}
    for native, step in steps.items():
        name, shape = names.get_name(native, try_suffixes=(".weight", ".bias")), shapes[native]
        layout: Layout = _keep
        assert name is not None, native
        part = name.split(".")[-2]
        if model_type == "gpt2" and name.startswith("blk.") and len(shape) == 2:
            shape, layout = shape[::-1], _transpose
        elif model_type == "llama" and part in heads:
            layout = partial(_interleave, heads=heads[part])
        tensors[name] = shape, partial(_compute, layout, step)
    if config.rope_type != "default":
        factors = _frequency_factors(config)
        tensors["rope_freqs.weight"] = tuple(factors.shape), lambda: factors
    return tensors


def _compute(layout: Layout, step: Callable[[], torch.Tensor]) -> torch.Tensor:
    return layout(step())


def _keep(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _transpose(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t()


def _interleave(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder (heads * d_k, ...) weights so that the rotated pairs (i, i + d_k/2) of each head are adjacent."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _frequency_factors(config: TriviumConfig) -> torch.Tensor:
    """Return the divisors of the default frequencies, of shape (head_dim / 2,)."""
    default = TriviumConfig.from_dict(config.to_dict() | {"rope_parameters": {"rope_theta": config.rope_theta}})
    return RotaryEmbedding(default).inv_freq / RotaryEmbedding(config).inv_freq


def _tensor_type(gguf: ModuleType, name: str, shape: Shape, quantization: str) -> Any:
    types = gguf.GGMLQuantizationType
    if len(shape) == 1 or name == "position_embd.weight":
        return types.F32
    is_divisible = shape[-1] % gguf.GGML_QUANT_SIZES[types.Q8_0][0] == 0
    return types[quantization.upper()] if quantization != "q8_0" or is_divisible else types.F16
