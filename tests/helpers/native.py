"""Pairs of a native transformers model and the equivalent Trivium model."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from matrices import slow_unless
from safetensors.torch import load_file, save_file
from tiny import BOS, EOS, EXACT, PAD, random_ids, shake
from transformers import AutoConfig, PreTrainedModel

import trivium
from trivium import preset_config
from trivium.interop import convert
from trivium.interop.families import FAMILIES

IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
SIZES = {**IDS, "vocab_size": 31, "num_attention_heads": 4, "max_position_embeddings": 29}
NATIVE = {**SIZES, "hidden_size": 24, "num_hidden_layers": 3, "intermediate_size": 40}
SEQ2SEQ = {
    **IDS,
    "vocab_size": 31,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 29,
    "decoder_start_token_id": BOS,
    "forced_eos_token_id": None,
}
GPT2 = {**IDS, "vocab_size": 31, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 29}
GROUPED = {**NATIVE, "num_key_value_heads": 2}
QWEN2_WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}
LABELS = {"id2label": {0: "no", 1: "so", 2: "yes"}, "label2id": {"no": 0, "so": 1, "yes": 2}}

# Native models by name: their class and configuration fields.
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", GROUPED),
    "llama-base": ("LlamaModel", GROUPED),
    "llama-biased": (
        "LlamaForCausalLM",
        {**NATIVE, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "eos_token_id": [EOS, 7]},
    ),
    "llama-tied-theta": (
        "LlamaForCausalLM",
        {
            **GROUPED,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
            "rms_norm_eps": 1e-3,
        },
    ),
    "mistral": ("MistralForCausalLM", {**GROUPED, "sliding_window": None}),
    "mistral-window": ("MistralForCausalLM", {**GROUPED, "num_key_value_heads": 1, "sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen2-tied-window": (
        "Qwen2ForCausalLM",
        {**GROUPED, "tie_word_embeddings": True, "num_key_value_heads": 4, **QWEN2_WINDOW},
    ),
    "qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 6, "rms_norm_eps": 1e-3}),
    "qwen3-biased-window": (
        "Qwen3ForCausalLM",
        {**GROUPED, "head_dim": 6, "attention_bias": True, "tie_word_embeddings": True, **QWEN2_WINDOW},
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-inner-untied": (
        "GPT2LMHeadModel",
        {
            **GPT2,
            "n_inner": 40,
            "tie_word_embeddings": False,
            "activation_function": "relu",
            "layer_norm_epsilon": 0.1,
        },
    ),
    "gpt2-base": ("GPT2Model", GPT2),
    "bert": ("BertModel", NATIVE),
    "bert-masked-lm": ("BertForMaskedLM", NATIVE),
    "bert-masked-lm-untied": ("BertForMaskedLM", {**NATIVE, "tie_word_embeddings": False, "hidden_act": "relu"}),
    "bert-sequence": ("BertForSequenceClassification", {**NATIVE, **LABELS, "type_vocab_size": 1}),
    "bert-tokens": ("BertForTokenClassification", {**NATIVE, **LABELS, "layer_norm_eps": 1e-3}),
    "bert-answers": ("BertForQuestionAnswering", {**NATIVE, "type_vocab_size": 3}),
    "roberta": ("RobertaModel", NATIVE),
    "roberta-masked-lm": ("RobertaForMaskedLM", {**NATIVE, "pad_token_id": 1, "bos_token_id": 0}),
    "roberta-sequence": ("RobertaForSequenceClassification", {**NATIVE, **LABELS, "type_vocab_size": 1}),
    "roberta-tokens": ("RobertaForTokenClassification", {**NATIVE, **LABELS}),
    "roberta-answers": ("RobertaForQuestionAnswering", NATIVE),
    "marian": ("MarianMTModel", {**SEQ2SEQ, "scale_embedding": True}),
    "marian-base": ("MarianModel", SEQ2SEQ),
    "marian-two-vocabularies": (
        "MarianMTModel",
        {
            **SEQ2SEQ,
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": 37,
            "activation_function": "swish",
        },
    ),
    "marian-untied": (
        "MarianMTModel",
        {**SEQ2SEQ, "share_encoder_decoder_embeddings": False, "tie_word_embeddings": False, "encoder_layers": 4},
    ),
    "bart": ("BartForConditionalGeneration", SEQ2SEQ),
    "bart-base": ("BartModel", {**SEQ2SEQ, "scale_embedding": True}),
    "bart-relu": ("BartForConditionalGeneration", {**SEQ2SEQ, "activation_function": "relu", "decoder_layers": 1}),
}

# Trivium models that a family can represent: preset, class, family, and fields that converted native models never
# have.
OUR_SIZES = {**SIZES, "d_model": 24, "ffn_dim": 40}
BERT, GPT, LLAMA = (
    {**OUR_SIZES, "encoder_layers": 3},
    {**OUR_SIZES, "decoder_layers": 3},
    {**OUR_SIZES, "decoder_layers": 3, "num_key_value_heads": 2},
)
PAPER = {**OUR_SIZES, "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.0}
BARTISH = {**PAPER, "position_embedding_type": "learned", "normalize_embedding": True}
BIASLESS = {"attention_bias": False, "ffn_bias": False}
OURS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "paper-marian": ("transformer-base", "TriviumForConditionalGeneration", "marian", PAPER),
    "paper-marian-head-bias": (
        "transformer-base",
        "TriviumForConditionalGeneration",
        "marian",
        {**PAPER, "lm_head_bias": True, "attention_bias": True},
    ),
    "paper-marian-two-vocabularies": (
        "transformer-base",
        "TriviumForConditionalGeneration",
        "marian",
        {**PAPER, "decoder_vocab_size": 37, "ffn_bias": False},
    ),
    "paper-marian-untied": (
        "transformer-base",
        "TriviumForConditionalGeneration",
        "marian",
        {**PAPER, "tie_word_embeddings": False},
    ),
    "paper-marian-base": ("transformer-base", "TriviumModel", "marian", PAPER),
    "bart": ("transformer-base", "TriviumForConditionalGeneration", "bart", BARTISH),
    "bart-base-biasless": ("transformer-base", "TriviumModel", "bart", {**BARTISH, **BIASLESS}),
    "bert-masked-lm": ("bert-base", "TriviumForMaskedLM", "bert", BERT),
    "bert-biasless-typeless": ("bert-base", "TriviumEncoderModel", "bert", {**BERT, **BIASLESS, "type_vocab_size": 0}),
    "bert-sequence": ("bert-base", "TriviumForSequenceClassification", "bert", {**BERT, **LABELS}),
    "bert-tokens": ("bert-base", "TriviumForTokenClassification", "bert", {**BERT, **LABELS}),
    "bert-answers": ("bert-base", "TriviumForQuestionAnswering", "bert", BERT),
    "roberta-masked-lm": (
        "bert-base",
        "TriviumForMaskedLM",
        "roberta",
        {**BERT, "pad_token_id": 1, "bos_token_id": 0},
    ),
    "roberta-sequence": ("bert-base", "TriviumForSequenceClassification", "roberta", {**BERT, **LABELS}),
    "gpt2": ("gpt2", "TriviumForCausalLM", "gpt2", GPT),
    "gpt2-biasless": ("gpt2", "TriviumForCausalLM", "gpt2", {**GPT, **BIASLESS}),
    "gpt2-base": ("gpt2", "TriviumDecoderModel", "gpt2", GPT),
    "llama": ("llama-135m", "TriviumForCausalLM", "llama", LLAMA),
    "llama-biased-dropout": (
        "llama-135m",
        "TriviumForCausalLM",
        "llama",
        {**LLAMA, "attention_bias": True, "ffn_bias": True, "dropout": 0.1, "rope_theta": 300.0},
    ),
    "mistral": (
        "llama-135m",
        "TriviumForCausalLM",
        "mistral",
        {**LLAMA, "tie_word_embeddings": False, "sliding_window": 5},
    ),
    "qwen2": ("llama-135m", "TriviumForCausalLM", "qwen2", LLAMA),
    "qwen3": ("llama-135m", "TriviumForCausalLM", "qwen3", {**LLAMA, "qk_norm": True, "sliding_window": 5}),
}


exact = pytest.mark.usefixtures("in_float64")


class Pair(NamedTuple):
    """A native model, the equivalent Trivium model, and their family; either was converted from the other."""

    native: PreTrainedModel
    ours: PreTrainedModel
    family: str


def load_float64(folder: Path, attention: str = "eager") -> PreTrainedModel:
    """Load a saved float64 model with the class that its configuration names."""
    name = AutoConfig.from_pretrained(folder).architectures[0]
    model_class = getattr(trivium, name, None) or getattr(transformers, name)
    model = model_class.from_pretrained(folder, attn_implementation=attention).eval()
    assert model.dtype == torch.float64
    return with_exact_sinusoids(model)


def with_exact_sinusoids(model: PreTrainedModel) -> PreTrainedModel:
    """Recompute Marian's sinusoidal position table in float64; transformers rounds it to float32."""
    if model.config.model_type == "marian":
        for stack in (model.base_model.encoder, model.base_model.decoder):
            expected = FAMILIES["marian"].computed["encoder.embed_positions.weight"](
                stack.embed_positions.weight.shape
            )
            torch.testing.assert_close(stack.embed_positions.weight.data, expected, rtol=0, atol=1e-6)
            stack.embed_positions.weight.data = expected
    return model


def native_model(name: str, **options: Any) -> PreTrainedModel:
    class_name, fields = THEIRS[name]
    model_class = getattr(transformers, class_name)
    model = model_class(model_class.config_class(**{**fields, **options})).double().eval()
    tables = [parameter.clone() for parameter in model.parameters() if not parameter.requires_grad]
    shake(model, std=0.3)
    for parameter, table in zip((p for p in model.parameters() if not p.requires_grad), tables, strict=True):
        parameter.data = table  # Recompute the table of sinusoids.
    if hasattr(model, "final_logits_bias") and model.config.model_type == "marian":
        model.final_logits_bias.normal_()
    return model


def trivium_model(name: str, **options: Any) -> PreTrainedModel:
    preset, class_name, _, fields = OURS[name]
    model_class = getattr(trivium, class_name)
    return shake(model_class(preset_config(preset, **{**fields, **options})).double().eval(), std=0.3)


def import_pair(name: str, folder: Path, attention: str = "eager") -> Pair:
    native_model(name).save_pretrained(folder / "native")
    made = convert(folder / "native", folder / "ours")
    return Pair(load_float64(folder / "native", attention), load_float64(folder / "ours", attention), made.family)


def export_pair(name: str, folder: Path, attention: str = "eager") -> Pair:
    trivium_model(name).save_pretrained(folder / "ours")
    made = convert(folder / "ours", folder / "native", OURS[name][2])
    return Pair(load_float64(folder / "native", attention), load_float64(folder / "ours", attention), made.family)


PAIRS: dict[str, Callable[..., Pair]] = {
    **{f"in-{name}": partial(import_pair, name) for name in THEIRS},
    **{f"out-{name}": partial(export_pair, name) for name in OURS},
}
# Models for round trips through Trivium in the default suite: one of every family and way to tie embeddings.
ROUND_TRIPS = (
    *("llama-tied-theta", "mistral-window", "qwen2-tied-window", "gpt2-inner-untied", "bert-masked-lm-untied"),
    *("roberta-answers", "marian-two-vocabularies", "marian-untied", "bart-relu"),
)
# At least one pair of every family, class and kind of parameter; the other pairs combine them differently.
DEFAULT_PAIRS = (
    "in-llama-biased", "in-llama-tied-theta", "in-mistral-window", "in-qwen2-tied-window", "in-gpt2-inner-untied",
    "in-bert-masked-lm", "in-bert-sequence", "in-roberta-masked-lm", "in-roberta-answers", "in-marian",
    "in-marian-two-vocabularies", "in-bart", "out-paper-marian-head-bias", "out-bart-base-biasless",
    "out-bert-biasless-typeless", "out-bert-tokens", "out-roberta-sequence", "out-gpt2", "out-llama-biased-dropout",
    "out-mistral",
)  # fmt: skip
every_pair = pytest.mark.parametrize("name", slow_unless(PAIRS, DEFAULT_PAIRS))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved_native(folder: Path, name: str = "llama", **options: Any) -> Path:
    native_model(name).save_pretrained(folder / "native", **options)
    return folder / "native"


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def assert_matches_native(folder: Path, native: PreTrainedModel, expected_class: str | None = None) -> None:
    ours = load_float64(folder)
    assert expected_class in (None, type(ours).__name__)
    inputs = {"input_ids": random_ids(2, 5)}
    if ours.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = random_ids(2, 4)
    torch.testing.assert_close(ours(**inputs)[0], with_exact_sinusoids(native)(**inputs)[0], **EXACT)


def conversion_error(source: Path, output: Path, to: str | None = None) -> str:
    before = {path.name for path in output.parent.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        convert(source, output, to)
    assert {path.name for path in output.parent.iterdir()} == before
    message = str(caught.value)
    assert "\n" not in message
    return message
