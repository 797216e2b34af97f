"""Models of transformers' own classes become Trivium models and the other way round, and compute the same, in float64.

What is compared is read from folders that `convert` wrote: logits, hidden states, attentions, gradients, and what
`generate()` makes of them. The maps themselves are stated a second time, by hand, in test_families and test_parity.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tiny import BOS, EOS, EXACT, PAD, Tensors, mask_of, random_ids, shake
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

import trivium
from trivium import preset_config
from trivium.interop import conversion, convert
from trivium.interop.exchange import Exchange
from trivium.interop.families import FAMILIES
from trivium.interop.families.marian import alternating
from trivium.tokenization import train_tokenizer
from trivium_cli import app

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
LABELS = {"id2label": {0: "no", 1: "so", 2: "yes"}, "label2id": {"no": 0, "so": 1, "yes": 2}}

# Native models: their class and the fields of their configuration.
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
    "mistral-wide-window": ("MistralForCausalLM", {**GROUPED, "num_key_value_heads": 1, "sliding_window": 29}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen2-tied": ("Qwen2ForCausalLM", {**GROUPED, "tie_word_embeddings": True, "num_key_value_heads": 4}),
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

# Trivium models that a family has, too: preset, class, family, and fields that its native models never give.
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
    "mistral": ("llama-135m", "TriviumForCausalLM", "mistral", {**LLAMA, "tie_word_embeddings": False}),
    "qwen2": ("llama-135m", "TriviumForCausalLM", "qwen2", LLAMA),
}


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some of their norms, angles, softmaxes and losses are in float32 whatever the model's type: not so here."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(usual)


exact = pytest.mark.usefixtures("in_float64")


class Pair(NamedTuple):
    """A native model and ours, of which one was made of the other, and the family."""

    native: PreTrainedModel
    ours: PreTrainedModel
    family: str


def loaded(folder: Path, attention: str = "eager") -> PreTrainedModel:
    """The model in a folder, as the class that it says, in float64."""
    name = AutoConfig.from_pretrained(folder).architectures[0]
    model_class = getattr(trivium, name, None) or getattr(transformers, name)
    model = model_class.from_pretrained(folder, attn_implementation=attention).eval()
    assert model.dtype == torch.float64
    return with_exact_sinusoids(model)


def with_exact_sinusoids(model: PreTrainedModel) -> PreTrainedModel:
    """Marian's own table is rounded to float32."""
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
        parameter.data = table  # sinusoids
    if hasattr(model, "final_logits_bias") and model.config.model_type == "marian":
        model.final_logits_bias.normal_()
    return model


def our_model(name: str, **options: Any) -> PreTrainedModel:
    preset, class_name, _, fields = OURS[name]
    model_class = getattr(trivium, class_name)
    return shake(model_class(preset_config(preset, **{**fields, **options})).double().eval(), std=0.3)


def incoming(name: str, folder: Path, attention: str = "eager") -> Pair:
    native_model(name).save_pretrained(folder / "native")
    made = convert(folder / "native", folder / "ours")
    return Pair(loaded(folder / "native", attention), loaded(folder / "ours", attention), made.family)


def outgoing(name: str, folder: Path, attention: str = "eager") -> Pair:
    our_model(name).save_pretrained(folder / "ours")
    made = convert(folder / "ours", folder / "native", OURS[name][2])
    return Pair(loaded(folder / "native", attention), loaded(folder / "ours", attention), made.family)


PAIRS: dict[str, Callable[..., Pair]] = {
    **{f"in-{name}": partial(incoming, name) for name in THEIRS},
    **{f"out-{name}": partial(outgoing, name) for name in OURS},
}
every_pair = pytest.mark.parametrize("name", PAIRS)


# --- They compute the same -------------------------------------------------------------------------------------------


def batch(pair: Pair, lengths: list[int], target_lengths: list[int]) -> Tensors:
    """Random tokens, and padding where the lengths leave room; RoBERTa looks for it in the ids."""
    config = pair.ours.config
    mask = mask_of(lengths)
    inputs = {"input_ids": random_ids(*mask.shape).where(mask.bool(), config.pad_token_id), "attention_mask": mask}
    if config.type_vocab_size:
        inputs["token_type_ids"] = torch.randint(config.type_vocab_size, mask.shape)
    if config.is_encoder_decoder:
        target_mask = mask_of(target_lengths)
        inputs["decoder_input_ids"] = random_ids(*target_mask.shape)
        inputs["decoder_attention_mask"] = target_mask
    return inputs


def outputs_of(pair: Pair, inputs: Tensors) -> tuple[Tensors, Tensors]:
    """All tensors of both models' outputs, in our order of dimensions, of real tokens only."""
    found = []
    for model in pair[:2]:
        model.zero_grad()
        tensors = {}
        for key, value in model(**inputs, output_hidden_states=True, output_attentions=True).items():
            for i, tensor in enumerate(value if isinstance(value, tuple) else [value]):
                if not isinstance(tensor, torch.Tensor) or key == "pooler_output":
                    continue
                if "hidden_state" in key and pair.family == "marian" and model is pair.native:
                    tensor = tensor[..., alternating(tensor.shape[-1])]
                of_target = "decoder_input_ids" in inputs and not key.startswith("encoder")
                mask = inputs["decoder_attention_mask" if of_target else "attention_mask"].bool()
                if "attentions" in key:  # (batch, heads, queries, keys)
                    tensor = tensor.transpose(1, 2)
                tensors[f"{key}.{i}"] = tensor[mask] if tensor.shape[:2] == mask.shape else tensor
        found.append(tensors)
    return found[0], found[1]


def gradients_of(model: PreTrainedModel) -> Tensors:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}


def assert_same(pair: Pair, inputs: Tensors) -> None:
    """Compare all outputs, and all gradients of a random weighting of them."""
    if hasattr(pair.native, "final_logits_bias"):
        pair.native.final_logits_bias.requires_grad_().grad = None  # a buffer
    native, ours = outputs_of(pair, inputs)
    assert set(native) == set(ours)
    assert {key.split(".")[0] for key in ours} >= {
        "decoder_attentions" if pair.ours.config.is_encoder_decoder else "attentions"
    }
    weights = {key: torch.randn_like(tensor) for key, tensor in native.items()}
    for tensors in (native, ours):
        torch.stack([(tensors[key] * weights[key]).sum() for key in weights]).sum().backward()
    for key, expected in native.items():
        torch.testing.assert_close(ours[key], expected, **EXACT, msg=partial("{}: {}".format, key))
    assert_same_gradients(pair)


def assert_same_gradients(pair: Pair) -> None:
    """Those of the native model, mapped as its weights are; what we have no tensor for counts for nothing."""
    exchange = Exchange(FAMILIES[pair.family], pair.native, pair.ours)
    native, ours = gradients_of(pair.native), gradients_of(pair.ours)
    unused = {name for name in pair.native.state_dict() if name not in native}
    native |= {name: torch.zeros_like(pair.native.state_dict()[name]) for name in unused}
    for link in exchange.links:
        if not link.ours:
            native[exchange.native.full_names[link.native]].zero_()
    native = {
        name: native[name]
        for name in exchange.native.full_names.values()
        if "embed_positions" not in name or pair.family != "marian"
    }
    mapped = {name: step() for name, step in exchange.inward(native).items()}
    alone = {exchange.ours.full_names[name] for link in exchange.links if link.native is None for name in link.ours}
    assert set(ours) == set(mapped)
    for name in set(ours) - alone:
        torch.testing.assert_close(ours[name], mapped[name], **EXACT, msg=partial("{}: {}".format, name))


@exact
@every_pair
def test_computes_the_same(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name](tmp_path)
    for lengths, target_lengths in [([5], [4]), ([6, 3, 1], [4, 7, 2])]:
        assert_same(pair, batch(pair, lengths, target_lengths))


@exact
@pytest.mark.parametrize("name", ["in-llama", "in-marian", "in-bert-masked-lm", "in-gpt2", "out-bart", "out-qwen2"])
def test_computes_the_same_with_fused_attention(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name](tmp_path, "sdpa")
    inputs = batch(pair, [6, 3, 1], [4, 7, 2])
    native, ours = (model(**inputs).logits for model in pair[:2])
    real = inputs["decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask"].bool()
    torch.testing.assert_close(ours[real], native[real], **EXACT)


# --- generate(), as the folders say ----------------------------------------------------------------------------------

GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beam": {"num_beams": 4},
    "beam-forced": {"num_beams": 3, "forced_eos_token_id": 7, "bad_words_ids": [[4], [5, 6]], "length_penalty": 0.2},
}
GENERATING = ["llama", "mistral", "qwen2-tied", "gpt2", "marian", "marian-untied", "bart"]


@exact
@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION)
@pytest.mark.parametrize("name", GENERATING)
def test_generates_the_same(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The weights know no language: several tokens end a text, and no token may come twice, lest one come always."""
    native = native_model(name)
    native.generation_config = GenerationConfig(
        **{**IDS, "eos_token_id": [EOS, 7], "decoder_start_token_id": BOS},
        max_new_tokens=12,
        no_repeat_ngram_size=1,
        **options,
    )
    native.save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", native.config.model_type)
    models = [loaded(tmp_path / folder) for folder in ("native", "ours", "back")]
    mask = mask_of([6, 3, 1, 5, 4, 2], "right" if native.config.is_encoder_decoder else "left")
    inputs = {"input_ids": random_ids(*mask.shape).where(mask.bool(), PAD), "attention_mask": mask}
    expected, *others = (model.generate(**inputs) for model in models)
    for found in others:
        assert torch.equal(found, expected)
    assert len(expected[:, -5:].unique()) > 4, "all texts are alike: the test would not see a difference"
    saved = [json.loads((tmp_path / folder / "generation_config.json").read_text()) for folder in ("native", "ours")]
    assert saved[0] == saved[1]


# --- There and back --------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", THEIRS)
def test_there_and_back_again(name: str, tmp_path: Path) -> None:
    """Bit by bit: our folder, and the weights and the configuration of theirs."""
    native_model(name, dtype="float64").save_pretrained(tmp_path / "native")
    family = convert(tmp_path / "native", tmp_path / "ours").family
    convert(tmp_path / "ours", tmp_path / "back", family)
    convert(tmp_path / "back", tmp_path / "ours-again")
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "ours-again")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("native", "back"))
    for name, tensor in before.items():
        if "position" in name and family in ("bart", "roberta"):  # the rows that stand for no position
            assert torch.equal(after[name][2:], tensor[2:]), name
        elif name in after:
            assert torch.equal(after[name], tensor), name
    nobody_reads = ("pooler", "cls.predictions.bias", "embed_positions")
    assert not {name for name in set(before) ^ set(after) if not any(part in name for part in nobody_reads)}
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("native", "back")]
    unlike = {name for name in {*configs[0], *configs[1]} if configs[0].get(name) != configs[1].get(name)}
    assert unlike <= {"classifier_dropout", "n_inner", "sliding_window", "forced_eos_token_id"}  # said in another way


def test_nothing_native_needs_our_code(tmp_path: Path) -> None:
    for name, (_, _, family, _) in OURS.items():
        our_model(name).save_pretrained(tmp_path / name)
        made = convert(tmp_path / name, tmp_path / f"{name}-native", family)
        assert type(made.model).__module__.startswith("transformers.models.")
        folder = tmp_path / f"{name}-native"
        assert not list(folder.rglob("*.py"))
        assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_what_only_training_reads_is_left_behind_with_a_note(tmp_path: Path) -> None:
    our_model("llama-biased-dropout", label_smoothing=0.2).save_pretrained(tmp_path / "ours")
    notes = convert(tmp_path / "ours", tmp_path / "native").notes
    assert [note.split(" ")[0] for note in notes[:2]] == ["label_smoothing=0.2", "dropout=0.1"]


# --- Checkpoints as they are found -----------------------------------------------------------------------------------


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


def assert_ours_equals(folder: Path, native: PreTrainedModel, expected_class: str | None = None) -> None:
    ours = loaded(folder)
    assert expected_class in (None, type(ours).__name__)
    inputs = {"input_ids": random_ids(2, 5)}
    if ours.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = random_ids(2, 4)
    torch.testing.assert_close(ours(**inputs)[0], with_exact_sinusoids(native)(**inputs)[0], **EXACT)


@exact
def test_sharded_there_and_back(tmp_path: Path) -> None:
    native = native_model("gpt2")
    native.save_pretrained(tmp_path / "native", max_shard_size="20KB")
    assert len(list((tmp_path / "native").glob("*.safetensors"))) > 2
    convert(tmp_path / "native", tmp_path / "ours", max_shard_size=15_000)
    shards = list((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        tensors = load_file(shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 15_000
    assert_ours_equals(tmp_path / "ours", native)
    convert(tmp_path / "ours", tmp_path / "back")
    one_file = load_file(tmp_path / "back" / "model.safetensors")
    for name, tensor in native.state_dict().items():
        assert name == "lm_head.weight" or torch.equal(one_file[name], tensor)


def test_never_reads_more_than_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two files of the output only what goes into the next is read."""
    from trivium.interop import checkpoint

    our_model("bert-masked-lm").save_pretrained(tmp_path / "ours")
    read, read_per_file = list[int](), list[int]()
    get = checkpoint.Checkpoint.__getitem__

    def reading(self: checkpoint.Checkpoint, name: str) -> torch.Tensor:
        tensor = get(self, name)
        read.append(tensor.nbytes)
        return tensor

    def writing(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        read_per_file.append(sum(read))
        read.clear()
        save_file(tensors, *args, **kwargs)

    monkeypatch.setattr(checkpoint.Checkpoint, "__getitem__", reading)
    monkeypatch.setattr(checkpoint, "save_file", writing)
    convert(tmp_path / "ours", tmp_path / "native", "bert", max_shard_size=20_000)
    assert len(read_per_file) > 4
    assert max(read_per_file) <= 40_000  # the first has looked at one tensor for its type


@pytest.mark.parametrize("name", ["marian", "roberta-masked-lm", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_are_kept(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    native_model(name).to(dtype).save_pretrained(tmp_path / "native")
    family = convert(tmp_path / "native", tmp_path / "ours").family
    convert(tmp_path / "ours", tmp_path / "back", family)
    for folder in ("ours", "back"):
        assert {t.dtype for t in load_file(tmp_path / folder / "model.safetensors").values()} == {dtype}
        assert json.loads((tmp_path / folder / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]


@exact
@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertForMaskedLM"])  # the second is what it says
def test_bert_as_it_was_pretrained(architecture: str, tmp_path: Path) -> None:
    """The commonest file: with a head for the next sentence, and old names of the norms."""
    native = native_model("bert-masked-lm")
    whole = transformers.BertForPreTraining(native.config).double().eval()
    whole.load_state_dict(native.state_dict(), strict=False)
    whole.save_pretrained(tmp_path / "native")

    def age(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "LayerNorm" in name]:
            weights[name.replace("weight", "gamma").replace("bias", "beta")] = weights.pop(name)
        weights["bert.embeddings.position_ids"] = torch.arange(29)[None]

    edit_weights(tmp_path / "native", age)
    edit_config(tmp_path / "native", architectures=[architecture])
    made = convert(tmp_path / "native", tmp_path / "ours")
    assert made.notes[:2] == [
        f"{x} is left behind: Trivium has none" for x in ("cls.seq_relationship", "pooler.dense")
    ]
    assert_ours_equals(tmp_path / "ours", native, "TriviumForMaskedLM")


@exact
def test_roberta_as_it_was_published(tmp_path: Path) -> None:
    """With a pooler that filling masks does not need, and the positions."""
    native = native_model("roberta-masked-lm")
    native.save_pretrained(tmp_path / "native")

    def age(weights: dict[str, torch.Tensor]) -> None:
        weights |= {
            f"roberta.pooler.dense.{x}": torch.ones(24, 24)[:, i].contiguous()
            for i, x in enumerate(("weight", "bias"))
        }
        weights["roberta.embeddings.position_ids"] = torch.arange(29)[None]

    edit_weights(tmp_path / "native", age)
    assert convert(tmp_path / "native", tmp_path / "ours").notes[0] == "pooler.dense is left behind: Trivium has none"
    assert_ours_equals(tmp_path / "ours", native)


@exact
def test_gpt2_as_it_was_published(tmp_path: Path) -> None:
    """Without the prefix, with the masks of old, and the output matrix a second time."""
    native = native_model("gpt2")
    native.save_pretrained(tmp_path / "native")

    def age(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        for i in range(3):
            weights[f"h.{i}.attn.bias"] = torch.ones(1, 1, 29, 29).tril()
            weights[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        weights["lm_head.weight"] = weights["wte.weight"].clone()

    edit_weights(tmp_path / "native", age)
    convert(tmp_path / "native", tmp_path / "ours")
    assert_ours_equals(tmp_path / "ours", native)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_marian_with_a_table_of_positions(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = saved_native(tmp_path, "marian")
    table = FAMILIES["marian"].computed["encoder.embed_positions.weight"]((29, 24)).to(dtype)
    edit_weights(folder, lambda weights: weights.update({"model.encoder.embed_positions.weight": table}))
    convert(folder, tmp_path / "ours")
    edit_weights(folder, lambda weights: weights.update({"model.encoder.embed_positions.weight": table * 1.1}))
    with pytest.raises(ValueError, match=r"encoder\.embed_positions\.weight.*table.*sinusoids"):
        convert(folder, tmp_path / "other")


@exact
@pytest.mark.parametrize("name", ["marian", "bart"])
@pytest.mark.parametrize("bias", ["absent", "zeros", "numbers"])
def test_the_bias_of_the_head_is_there_if_it_says_something(name: str, bias: str, tmp_path: Path) -> None:
    native = native_model(name)
    native.final_logits_bias.zero_()
    if bias == "numbers":
        native.final_logits_bias.normal_()
    native.save_pretrained(tmp_path / "native")
    if bias == "absent":
        edit_weights(tmp_path / "native", lambda weights: weights.pop("final_logits_bias"))
    convert(tmp_path / "native", tmp_path / "ours")
    assert loaded(tmp_path / "ours").config.lm_head_bias == (bias == "numbers")
    assert_ours_equals(tmp_path / "ours", native)
    convert(tmp_path / "ours", tmp_path / "back", name)
    assert torch.equal(loaded(tmp_path / "back").final_logits_bias, native.final_logits_bias)


@exact
def test_old_spellings_of_a_configuration(tmp_path: Path) -> None:
    folder = saved_native(tmp_path, "llama-tied-theta")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["dtype"], config["head_dim"]
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 300.0, "torch_dtype": "float64"}))
    convert(folder, tmp_path / "ours")
    assert loaded(tmp_path / "ours").config.rope_theta == 300.0


# --- Refusals: one sentence, and nothing is written ------------------------------------------------------------------


def refused(source: Path, output: Path, to: str | None = None) -> str:
    before = {path.name for path in output.parent.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        convert(source, output, to)
    assert {path.name for path in output.parent.iterdir()} == before
    message = str(caught.value)
    assert "\n" not in message
    return message


WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None}
ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"rope_parameters": ROPE}, "rope_parameters.rope_type is 'linear', but must be 'default'"),
        ("llama", {"head_dim": 8}, "head_dim is 8, but must be 6"),
        ("llama", {"hidden_act": "softsquare"}, "config.json cannot be: activation_function is 'softsquare', but"),
        ("llama", {"vocab_size": "many"}, "config.json cannot be: Field 'vocab_size'"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ("llama", {"architectures": None}, "None"),
        ("llama", {"model_type": "mamba"}, "'mamba', but must be one of trivium, bart, bert, gpt2, llama, marian"),
        ("llama", {"model_type": None}, "model_type None"),
        ("mistral", {"sliding_window": 28}, "sliding_window is 28, but must be None"),
        ("qwen2", WINDOW, "sliding_window is 8, but must be None"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gpt2", {"embd_pdrop": 0.2}, "resid_pdrop is 0.1 and embd_pdrop is 0.2, but must be the same"),
        ("bert", {"is_decoder": True}, "is_decoder is True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert-tokens", {"classifier_dropout": 0.3}, "hidden_dropout_prob is 0.1 and classifier_dropout is 0.3"),
        ("roberta-masked-lm", {"hidden_act": "relu"}, "activation_function is 'relu', but must be 'gelu'"),
        ("roberta", {"pad_token_id": None}, "pad_token_id is None"),
        ("marian", {"decoder_attention_heads": 2}, "encoder_attention_heads is 4 and decoder_attention_heads is 2"),
        ("marian", {"decoder_ffn_dim": 48}, "encoder_ffn_dim is 40 and decoder_ffn_dim is 48"),
        ("bart", {"encoder_layerdrop": 0.1}, "encoder_layerdrop is 0.1"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ],
)
def test_refuses_what_is_not_ours(name: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = saved_native(tmp_path, name)
    edit_config(folder, **changes)
    assert said in refused(folder, tmp_path / "ours")


def test_names_all_that_stands_in_the_way(tmp_path: Path) -> None:
    folder = saved_native(tmp_path, "gpt2")
    edit_config(folder, scale_attn_weights=False, embd_pdrop=0.2)
    message = refused(folder, tmp_path / "ours")
    assert "scale_attn_weights" in message
    assert "embd_pdrop" in message


UNTIED = {"tie_word_embeddings": False}
VARIANTS: list[tuple[str, dict[str, Any], str | None, str]] = [
    (
        "gpt2",
        {"position_embedding_type": "rotary"},
        None,
        "the nearest is gpt2, but: position_embedding_type is 'rotary'",
    ),
    ("gpt2", {"num_key_value_heads": 2}, "gpt2", "num_attention_heads is 4 and num_key_value_heads is 2"),
    ("llama", {"attention_bias": True}, "mistral", "attention_bias is True, but must be False"),
    ("llama", {"ffn_bias": True}, "qwen2", "ffn_bias is True, but must be False"),
    (
        "llama",
        {"attention_bias": True},
        "qwen2",
        "self_attn.o_proj.bias is not zero, but a Qwen2ForCausalLM has no such",
    ),
    ("llama", {}, None, "say `to`, one of llama, mistral, qwen2"),
    ("llama", {"lm_head_bias": True}, "llama", "lm_head_bias is True, but must be False"),
    ("llama", {}, "marian", "there is nothing like TriviumForCausalLM"),
    ("llama", {}, "t5", "'t5', but must be one of bart, bert"),
    ("bert-sequence", {"classifier_pooling": "mean"}, None, "classifier_pooling is 'mean', but must be 'cls'"),
    ("bert-masked-lm", {}, None, "one of bert, roberta"),
    ("bert-masked-lm", {"norm_position": "pre"}, None, "norm_position is 'pre', but must be 'post'"),
    ("bert-masked-lm", {"pad_token_id": None}, "roberta", "pad_token_id is None, but must be 1"),
    ("bert-masked-lm", {"activation_function": "relu"}, "roberta", "activation_function is 'relu'"),
    ("bart", UNTIED, "bart", "tie_word_embeddings is False"),
    ("paper-marian", {"norm_eps": 1e-6}, None, "the nearest is marian, but: norm_eps is 1e-06, but must be 1e-05"),
    ("paper-marian", {"type_vocab_size": 2}, "marian", "type_vocab_size is 2, but must be 0"),
]


@pytest.mark.parametrize(("name", "changes", "to", "said"), VARIANTS)
def test_refuses_what_is_not_theirs(
    name: str, changes: dict[str, Any], to: str | None, said: str, tmp_path: Path
) -> None:
    our_model(name, **changes).save_pretrained(tmp_path / "ours")
    assert said in refused(tmp_path / "ours", tmp_path / "native", to)


def test_takes_the_only_family_that_fits(tmp_path: Path) -> None:
    our_model("gpt2").save_pretrained(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "native").family == "gpt2"


def _rename(weights: dict[str, torch.Tensor], old: str, new: str) -> None:
    weights[new] = weights.pop(old)


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda weights: weights.pop(Q_PROJ), f"{Q_PROJ} is missing"),
        (
            lambda weights: weights.update({"model.layers.1.self_attn.q_norm.weight": torch.ones(6)}),
            "q_norm.weight has no place",
        ),
        (
            lambda weights: weights.update({Q_PROJ: torch.ones(24, 12)}),
            "has the shape (24, 12), but must have (24, 24)",
        ),
        (lambda weights: _rename(weights, Q_PROJ, "x.weight"), f"{Q_PROJ} is missing; x.weight has no place"),
        (dict.clear, "is missing; "),
    ],
)
def test_refuses_other_weights(edit: Callable[[dict[str, torch.Tensor]], Any], said: str, tmp_path: Path) -> None:
    folder = saved_native(tmp_path)
    edit_weights(folder, edit)
    message = refused(folder, tmp_path / "ours")
    assert said in message
    assert message.startswith("The weights are not those of the LlamaForCausalLM that the configuration describes: ")


def test_refuses_tied_weights_that_differ(tmp_path: Path) -> None:
    folder = saved_native(tmp_path, "gpt2")
    edit_weights(folder, lambda weights: weights.update({"lm_head.weight": torch.ones(31, 24).double()}))
    assert "are tied, but differ" in refused(folder, tmp_path / "ours")


@pytest.mark.parametrize(("config", "weights"), [("llama", "gpt2"), ("gpt2", "bert-masked-lm"), ("bart", "marian")])
def test_refuses_the_weights_of_another_family(config: str, weights: str, tmp_path: Path) -> None:
    folder = saved_native(tmp_path / "a", config)
    shutil.copy(saved_native(tmp_path / "b", weights) / "model.safetensors", folder)
    assert "that the configuration describes: " in refused(folder, tmp_path / "ours")


def test_refuses_our_weights_of_another_shape(tmp_path: Path) -> None:
    our_model("gpt2").save_pretrained(tmp_path / "ours")
    edit_config(tmp_path / "ours", ffn_dim=44)
    message = refused(tmp_path / "ours", tmp_path / "native")
    assert "has the shape (40, 24), but must have (44, 24)" in message


def _truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _index(content: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return write


NO_FILE = "is no whole file of safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (_truncate, NO_FILE),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), NO_FILE),
    "pickled": (_pickle, "Pickled weights (pytorch_model.bin) are not read"),
    "lost": (
        _index('{"weight_map": {"a": "model-1.safetensors"}}'),
        "names model-1.safetensors, but there is no such",
    ),
    "elsewhere": (_index('{"weight_map": {"a": "../../config.json"}}'), NO_FILE),
    "number": (_index('{"weight_map": {"a": 3}}'), "is no index"),
    "mapless": (_index('{"metadata": {}}'), "is no index"),
    "half": (_index("{"), "is no index"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "half-config": (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
    "list-config": (lambda folder: (folder / "config.json").write_text("[]"), "is no configuration"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_refuses_broken_files(damage: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    folder = saved_native(tmp_path)
    damage(folder)
    assert said in refused(folder, tmp_path / "ours")


def test_refuses_a_folder_that_is_there(tmp_path: Path) -> None:
    folder = saved_native(tmp_path)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine.txt").write_text("mine")
    assert "is there already" in refused(folder, tmp_path / "ours")
    assert files_of(tmp_path / "ours") == {"mine.txt": b"mine"}


def test_refuses_what_is_nowhere(tmp_path: Path) -> None:
    assert "is no folder" in refused(Path("someone/nothing"), tmp_path / "ours")
    assert "is no folder" in refused(tmp_path / "nothing", tmp_path / "ours")


def test_what_is_native_does_not_become_another_native(tmp_path: Path) -> None:
    assert "to is 'mistral', but" in refused(saved_native(tmp_path), tmp_path / "ours", "mistral")


# --- The Hub ---------------------------------------------------------------------------------------------------------


def test_takes_a_model_of_the_hub_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, revision = tmp_path / "cache" / "models--someone--llama", "a" * 40
    snapshot = repository / "snapshots" / revision
    saved_native(tmp_path).rename(tmp_path / "saved")
    shutil.copytree(tmp_path / "saved", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    download = partial(conversion.snapshot_download, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(conversion, "snapshot_download", download)
    convert("someone/llama", tmp_path / "ours")
    assert files_of(tmp_path / "ours")["model.safetensors"]


def test_asks_the_hub_for_nothing_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dict[str, Any]()

    def download(name: str, **options: Any) -> str:
        asked.update(options)
        return str(saved_native(tmp_path))

    monkeypatch.setattr(conversion, "snapshot_download", download)
    convert("someone/llama", tmp_path / "ours")
    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.txt", "source.spm"]
    unwanted = ["pytorch_model.bin", "model.py", "consolidated.safetensors", "onnx/config.json", "model.h5"]
    wanted = filter_repo_objects(files + unwanted, **asked)
    assert list(wanted) == files


# --- Tokenizers, and the workshop with such folders ------------------------------------------------------------------

TEXTS = [
    "the cat sat on the mat .",
    "two dogs ran across the road .",
    "birds fly south in winter .",
    "eine katze sitzt auf der matte .",
    "zwei hunde laufen über die strasse .",
]


def bert_tokenizer() -> PreTrainedTokenizerBase:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": alphabet, "show_progress": False}
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=280, **options))
    model = json.loads(backend.to_str())["model"]
    return transformers.GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def marian_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    pieces = dict[str, int]()
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 4),
            model_prefix=str(folder / side),
            vocab_size=50,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        (folder / f"{side}.vocab").unlink()
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        pieces |= dict.fromkeys(processor.id_to_piece(list(range(3, processor.get_piece_size()))), 0)
    vocabulary = {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return transformers.MarianTokenizer(
        **{f"{side}_spm": str(folder / f"{side}.spm") for side in ("source", "target")},
        vocab=str(folder / "vocab.json"),
        source_lang="en",
        target_lang="de",
        model_max_length=29,
    )


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    tokenizer = bert_tokenizer()
    native_model("bert-masked-lm", vocab_size=len(tokenizer)).to(torch.float32).save_pretrained(tmp_path / "native")
    tokenizer.save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    tokenizer = gpt2_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    model = native_model("gpt2", vocab_size=len(tokenizer), **ids)
    model.to(torch.float32).save_pretrained(tmp_path / "native")
    tokenizer.save_pretrained(tmp_path / "native")
    made = convert(tmp_path / "native", tmp_path / "ours")
    assert made.notes == ["the tokenizer has no padding token, so <|endoftext|> is used to pad"]
    return tmp_path / "ours"


@pytest.fixture
def marian_folder(tmp_path: Path) -> Path:
    (tmp_path / "native").mkdir()
    tokenizer = marian_tokenizer(tmp_path / "native")
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = native_model("marian", vocab_size=len(tokenizer), decoder_start_token_id=tokenizer.pad_token_id, **ids).to(
        torch.float32
    )
    model.generation_config.bad_words_ids = [[tokenizer.pad_token_id]]
    model.save_pretrained(tmp_path / "native")
    tokenizer.save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours")
    return tmp_path / "ours"


FOLDERS = ["bert_folder", "gpt2_folder", pytest.param("marian_folder", marks=pytest.mark.filterwarnings("ignore"))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_tokenizer_comes_along_and_goes_back(folder: str, request: pytest.FixtureRequest) -> None:
    ours = request.getfixturevalue(folder)
    family = folder.removesuffix("_folder")
    convert(ours, ours.parent / "back", family)
    convert(ours.parent / "back", ours.parent / "ours-again")
    assert files_of(ours) == files_of(ours.parent / "ours-again")
    native, *others = (AutoTokenizer.from_pretrained(ours.parent / name) for name in ("native", "ours", "back"))
    for tokenizer in others:
        assert type(tokenizer) is type(native)
        ids = native(TEXTS)["input_ids"]
        assert tokenizer(TEXTS)["input_ids"] == ids
        assert tokenizer(text_target=TEXTS)["input_ids"] == native(text_target=TEXTS)["input_ids"]
        assert tokenizer.batch_decode(ids, skip_special_tokens=True) == native.batch_decode(
            ids, skip_special_tokens=True
        )


def test_a_tokenizer_that_cannot_be_read_is_a_refusal(gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise ImportError("\nMarianTokenizer requires the SentencePiece library.\nInstall it.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    said = refused(gpt2_folder, gpt2_folder.parent / "back", "gpt2")
    assert said.endswith("needs a package that is not installed: MarianTokenizer requires the SentencePiece library.")


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_trivium_fills_masks_with_bert(bert_folder: Path) -> None:
    said = run("fill-mask", bert_folder, "the cat [MASK] on the mat .", "--top-k", "3")
    pipe = transformers.pipeline("fill-mask", str(bert_folder.parent / "native"))
    expected = pipe("the cat [MASK] on the mat .", top_k=3)
    assert said.rstrip("\n").split("\t") == [
        x for each in expected for x in (each["token_str"], f"{each['score']:.4f}")
    ]


def test_trivium_continues_texts_with_gpt2(gpt2_folder: Path) -> None:
    said = run("generate", gpt2_folder, TEXTS[0], "--max-new-tokens", "5")
    native = transformers.GPT2LMHeadModel.from_pretrained(gpt2_folder.parent / "native")
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    output = native.generate(**tokenizer(TEXTS[:1], return_tensors="pt"), max_new_tokens=5)
    assert said == tokenizer.decode(output[0], skip_special_tokens=True) + "\n"
    assert len(run("generate", gpt2_folder, *TEXTS[:3], "--max-new-tokens", "5").splitlines()) >= 3  # padded


@pytest.mark.filterwarnings("ignore")  # of sacremoses, which normalises punctuation, and is not needed
def test_trivium_translates_with_opus(marian_folder: Path) -> None:
    said = run("translate", marian_folder, *TEXTS[:3], "--beams", "2", "--max-length", "12")
    native = transformers.MarianMTModel.from_pretrained(marian_folder.parent / "native")
    tokenizer = AutoTokenizer.from_pretrained(marian_folder.parent / "native")
    inputs = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)
    output = native.generate(**inputs, num_beams=2, max_length=12)
    assert said.splitlines() == tokenizer.batch_decode(output, skip_special_tokens=True)


RECIPES = {
    "bert_folder": {"task": "classification", "rows": [{"text": text, "label": text[0]} for text in TEXTS]},
    "gpt2_folder": {"task": "causal-lm", "rows": [{"text": text} for text in TEXTS]},
    "marian_folder": {"task": "translation", "rows": [{"en": text, "de": text} for text in TEXTS]},
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_trivium_trains_on(folder: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    start, recipe = request.getfixturevalue(folder), RECIPES[folder]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recipe["rows"]))
    (tmp_path / "recipe.yaml").write_text(
        f"""
task: {recipe["task"]}
data: {{train: {tmp_path}/rows.jsonl}}
init_from: {start}
training:
  output_dir: {tmp_path}/run
  max_steps: 2
  per_device_train_batch_size: 3
  eval_strategy: "no"
  report_to: none
  use_cpu: true
"""
    )
    run("train", tmp_path / "recipe.yaml")
    before, after = (load_file(path / "model.safetensors") for path in (start, tmp_path / "run"))
    name = next(name for name in before if name.endswith("up_proj.weight"))
    assert not torch.equal(before[name], after[name])
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (start, tmp_path / "run")]
    assert tokenizers[0](TEXTS)["input_ids"] == tokenizers[1](TEXTS)["input_ids"]


def test_our_tokenizer_goes_out_as_one_of_transformers(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, add_bos_token=True, add_eos_token=False)
    our_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "native").notes == []
    stock = AutoTokenizer.from_pretrained(tmp_path / "native")
    config = json.loads((tmp_path / "native" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] in ("PreTrainedTokenizerFast", "TokenizersBackend")  # the newer name of the same
    assert "auto_map" not in config
    texts = [*TEXTS, "a <mask> </s> 🙂\n"]
    ids = tokenizer(texts)["input_ids"]
    assert stock(texts)["input_ids"] == ids
    assert stock.batch_decode(ids) == tokenizer.batch_decode(ids)
    assert stock.special_tokens_map == tokenizer.special_tokens_map
    assert stock.pad(tokenizer(texts))["attention_mask"] == tokenizer.pad(tokenizer(texts))["attention_mask"]


def test_two_vocabularies_go_out_as_two_tokenizers(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS[:3], target_texts=TEXTS[3:], vocab_size=290, shared=False)
    sizes = {"vocab_size": len(tokenizer), "decoder_vocab_size": tokenizer.target_vocab_size}
    our_model("paper-marian-two-vocabularies", **sizes).save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    made = convert(tmp_path / "ours", tmp_path / "native")
    assert made.notes[-1].endswith("that of the target language is in target_tokenizer")
    source = AutoTokenizer.from_pretrained(tmp_path / "native")
    target = AutoTokenizer.from_pretrained(tmp_path / "native" / "target_tokenizer")
    assert source(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    ids = tokenizer(text_target=TEXTS)["input_ids"]
    assert target(TEXTS)["input_ids"] == ids
    assert target.batch_decode(ids, skip_special_tokens=True) == tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    folder = saved_native(tmp_path, "bert-sequence")
    said = run("convert", folder, tmp_path / "ours")
    parameters = native_model("bert-sequence").num_parameters()
    assert f"a TriviumForSequenceClassification with {parameters:,} parameters, is in {tmp_path}/ours" in said
    assert f"`TriviumForSequenceClassification.from_pretrained('{tmp_path}/ours')`" in said
    said = run("convert", tmp_path / "ours", tmp_path / "native-again", "--to", "bert")
    assert "from transformers import BertForSequenceClassification" in said
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "ours"), str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "say `to`, one of bert, roberta" in " ".join(result.stderr.split())
