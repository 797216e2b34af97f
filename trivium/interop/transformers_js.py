"""Export to transformers.js, which runs ONNX graphs in browsers and in Node.

    to_transformers_js("runs/numbers", "numbers-web")

    const translate = await pipeline("translation", "numbers-web")

The graphs have the names, inputs and outputs that transformers.js expects, and are written in float32 and quantized
to 8 bits (`_quantized`, its default in browsers):

    onnx/model.onnx                   encoder-only, decoder-only with the KV cache
    onnx/encoder_model.onnx           encoder-decoder: maps the source to hidden states
    onnx/decoder_model_merged.onnx    encoder-decoder: one decoding step, the first or a later one

transformers.js does not know Trivium, but reads only the model class and the cache sizes from the configuration. The
exported config.json therefore names a class with the same inputs and outputs; see `STAND_INS`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from trivium.configuration import TriviumConfig
from trivium.interop.conversion import to_fast_tokenizer
from trivium.interop.onnx_export import (
    BATCH,
    LENGTH,
    PAST,
    SOURCE,
    Pairs,
    export_graph,
    export_model,
    load_for_export,
    quantize_graph,
    require_onnx,
    silence_exporter,
    zero_pairs,
)
from trivium.storage.atomic import check_free, whole_folder, write_whole
from trivium.storage.json_object import read_json_object
from trivium.tokenization import TriviumTokenizer

# Classes known to transformers.js that have the same inputs and outputs as Trivium's classes.
STAND_INS = {
    "TriviumForConditionalGeneration": ("marian", "MarianMTModel"),
    "TriviumForCausalLM": ("llama", "LlamaForCausalLM"),
    "TriviumEncoderModel": ("bert", "BertModel"),
    "TriviumForMaskedLM": ("bert", "BertForMaskedLM"),
    "TriviumForSequenceClassification": ("bert", "BertForSequenceClassification"),
    "TriviumDecoderForSequenceClassification": ("bert", "BertForSequenceClassification"),
    "TriviumForTokenClassification": ("bert", "BertForTokenClassification"),
    "TriviumForQuestionAnswering": ("bert", "BertForQuestionAnswering"),
}
GRAPHS = "onnx"
QUANTIZED = "_quantized"
SHARED_FIELDS = (
    "vocab_size",
    "max_position_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "is_encoder_decoder",
    "id2label",
    "label2id",
)


def to_transformers_js(source: str | Path, output: str | Path) -> list[str]:
    """Export a saved model for transformers.js, in float32 and in 8 bits, with its tokenizer.

    Args:
        source: Folder of a saved model with a head, or of an encoder-only model without one.
        output: A new or empty folder.

    Returns:
        Notes on differences from the original, one clause each.

    Raises:
        FileNotFoundError: The model or its tokenizer does not exist.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: The model cannot be exported, has two vocabularies, or `output` is not empty.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_onnx(package)
    output = Path(output)
    check_free(output)
    model, tokenizer = load_for_export(Path(source))
    if model.config.decoder_vocab_size is not None:
        raise ValueError(
            f"decoder_vocab_size is {model.config.decoder_vocab_size}, but must be None: transformers.js decodes with "
            "the tokenizer of the source. Train a model with one vocabulary."
        )
    notes = list[str]()
    if model.can_generate() and (beams := model.generation_config.num_beams or 1) > 1:
        notes = [f"num_beams={beams} is dropped: transformers.js has no beam search"]
        model.generation_config.update(num_beams=1, early_stopping=False, length_penalty=1.0)
    with whole_folder(output) as partial, silence_exporter():
        (partial / GRAPHS).mkdir()
        if not model.can_generate():
            export_model(model, partial / GRAPHS / "model.onnx")
        elif model.config.is_encoder_decoder:
            _export_encoder(model, partial / GRAPHS / "encoder_model.onnx")
            _export_decoder(model, partial / GRAPHS / "decoder_model_merged.onnx")
        else:
            _export_decoder(model, partial / GRAPHS / "model.onnx")
        for path in sorted((partial / GRAPHS).iterdir()):
            quantize_graph(path, path.with_stem(path.stem + QUANTIZED))
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        _save_tokenizer(tokenizer, partial)
        write_whole(partial / "config.json", json.dumps(_stand_in_config(model), indent=2) + "\n")
    return notes


def _stand_in_config(model: PreTrainedModel) -> dict[str, Any]:
    config: TriviumConfig = model.config
    model_type, architecture = STAND_INS[type(model).__name__]
    fields = {name: value for name, value in config.to_dict().items() if name in SHARED_FIELDS}
    sizes: dict[str, Any] = {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.decoder_layers or config.encoder_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
    }
    if config.is_encoder_decoder:
        sizes = {
            "d_model": config.d_model,
            "encoder_layers": config.encoder_layers,
            "decoder_layers": config.decoder_layers,
            "encoder_attention_heads": config.num_attention_heads,
            "decoder_attention_heads": config.num_attention_heads,
        }
    return {"architectures": [architecture], "model_type": model_type, **fields, **sizes}


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the tokenizer under a class that does not need Trivium's code."""
    if not isinstance(tokenizer, TriviumTokenizer):
        tokenizer.save_pretrained(folder)
        return
    to_fast_tokenizer(tokenizer).save_pretrained(folder)
    # transformers.js generates without BOS unless the tokenizer's configuration also says that BOS is added.
    path = folder / "tokenizer_config.json"
    added = {"add_bos_token": tokenizer.add_bos_token, "add_eos_token": tokenizer.add_eos_token}
    write_whole(path, json.dumps({**read_json_object(path), **added}, indent=2) + "\n")


# --- Graphs ----------------------------------------------------------------------------------------------------------


class _Encoder(nn.Module):
    """Encode the source; return the hidden states in a tuple, because the exporter names the tuple's elements."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state,)


class _Decoder(nn.Module):
    """Run a decoding step of a decoder-only model with the KV cache passed as plain tensors."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.decoder, self.head = model.model.decoder, model.lm_head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: Pairs
    ) -> tuple[torch.Tensor, Pairs]:
        cache = _cache(past)
        states = self.decoder(input_ids=input_ids, attention_mask=attention_mask, cache=cache).last_hidden_state
        return self.head(states), _tensors(cache)


class _CrossDecoder(nn.Module):
    """Run a decoding step of an encoder-decoder, which projects the memory if it is not cached yet."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.decoder, self.head, self.head_dim = model.model.decoder, model.lm_head, model.config.head_dim
        attentions = [layer.cross_attn for layer in self.decoder.layers]
        self.k_projs = nn.ModuleList(attention.k_proj for attention in attentions)
        self.v_projs = nn.ModuleList(attention.v_proj for attention in attentions)

    def forward(
        self,
        input_ids: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        past: Pairs,
        memory: Pairs,
    ) -> tuple[torch.Tensor, Pairs, Pairs]:
        # The cached length is 0 in the first step, and the source length in later steps.
        positions = torch.arange(encoder_hidden_states.shape[1])
        new = encoder_hidden_states[:, positions >= memory[0][0].shape[2]]
        extended = [
            (self._extend(key, k_proj(new), positions), self._extend(value, v_proj(new), positions))
            for (key, value), k_proj, v_proj in zip(memory, self.k_projs, self.v_projs, strict=True)
        ]
        cache = _cache(past)
        states = self.decoder(
            input_ids=input_ids,
            cache=EncoderDecoderCache(cache, _cache(extended)),
            encoder_attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,  # only its length is used, because the memory is cached
        ).last_hidden_state
        return self.head(states), _tensors(cache), extended

    def _extend(self, cached: torch.Tensor, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        split = states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, h_kv, new, d_k)
        # Selecting all positions tells the exporter that the length equals the source length.
        return torch.cat((cached, split), dim=2).index_select(2, positions)


def _cache(pairs: Pairs) -> DynamicCache:
    cache = DynamicCache()
    for index, (key, value) in enumerate(pairs):
        cache.update(key, value, index)
    return cache


def _tensors(cache: DynamicCache) -> Pairs:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _export_encoder(model: PreTrainedModel, path: Path) -> None:
    example = {name: torch.ones(BATCH, SOURCE, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    shapes = {name: {0: "batch_size", 1: "source_length"} for name in example}
    export_graph(_Encoder(model), path, example, list(example), ["last_hidden_state"], shapes)


def _export_decoder(model: PreTrainedModel, path: Path) -> None:
    config: TriviumConfig = model.config
    layers = config.decoder_layers
    example: dict[str, Any] = {"input_ids": torch.ones(BATCH, LENGTH, dtype=torch.long)}
    # When transformers.js creates an empty cache, it fills in the batch size for the dimension "batch_size", and 0 for
    # all other dynamic dimensions.
    shapes: dict[str, Any] = {"input_ids": {0: "batch_size", 1: "length"}}
    past = [({0: "batch_size", 2: "past_length"},) * 2] * layers
    if not config.is_encoder_decoder:
        example |= {
            "attention_mask": torch.ones(BATCH, PAST + LENGTH, dtype=torch.long),
            "past": zero_pairs(config, BATCH, PAST),
        }
        shapes |= {"attention_mask": {0: "batch_size", 1: "past_and_length"}, "past": past}
        inputs = ["input_ids", "attention_mask", *_cache_names("past_key_values.{}", layers)]
        outputs = ["logits", *_cache_names("present.{}", layers)]
        export_graph(_Decoder(model), path, example, inputs, outputs, shapes)
        return
    example |= {
        "encoder_hidden_states": torch.zeros(BATCH, SOURCE, config.d_model),
        "encoder_attention_mask": torch.ones(BATCH, SOURCE, dtype=torch.long),
        "past": zero_pairs(config, BATCH, PAST),
        "memory": zero_pairs(config, BATCH, SOURCE),
    }
    shapes |= {
        "encoder_hidden_states": {0: "batch_size", 1: "source_length"},
        "encoder_attention_mask": {0: "batch_size", 1: "source_length"},
        "past": past,
        "memory": [({0: "batch_size", 2: "memory_length"},) * 2] * layers,
    }
    caches = [
        _cache_names(f"{prefix}.{{}}.decoder", layers) + _cache_names(f"{prefix}.{{}}.encoder", layers)
        for prefix in ("past_key_values", "present")
    ]
    inputs = ["input_ids", "encoder_hidden_states", "encoder_attention_mask", *caches[0]]
    outputs = ["logits", *caches[1]]
    export_graph(_CrossDecoder(model), path, example, inputs, outputs, shapes)


def _cache_names(template: str, layers: int) -> list[str]:
    return [f"{template.format(layer)}.{kind}" for layer in range(layers) for kind in ("key", "value")]
