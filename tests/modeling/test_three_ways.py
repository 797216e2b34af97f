"""Test that the three architectures share a configuration and checkpoint format, and work with all Auto classes."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from matrices import slow_unless
from model_classes import BOTH, CLASSES, DECODER_ONLY, ENCODER_ONLY, LAYERS, WAYS
from safetensors import safe_open
from tiny import NORM_POSITIONS, SAME_WEIGHTS, random_ids, tiny_config, tiny_model
from transformers import AutoConfig, PreTrainedModel

from trivium import (
    TriviumConfig,
    TriviumDecoderForSequenceClassification,
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumModel,
)

Tensors = dict[str, torch.Tensor]
TYING: dict[str, dict[str, Any]] = {
    "one-vocabulary-tied": {},
    "one-vocabulary-untied": {"tie_word_embeddings": False},
    "two-vocabularies-tied": {"decoder_vocab_size": 23},
    "two-vocabularies-untied": {"decoder_vocab_size": 23, "tie_word_embeddings": False},
}
tying_modes = pytest.mark.parametrize(
    "tying",
    slow_unless(TYING.values(), [TYING["one-vocabulary-tied"], TYING["two-vocabularies-untied"]]),
    ids=TYING,
)


def by_name(argument: str, classes: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(argument, classes, ids=lambda model_class: model_class.__name__)


def inputs_for(model: PreTrainedModel, rows: int = 2, vocab_size: int = 23) -> Tensors:
    inputs = {"input_ids": random_ids(rows, 6, vocab_size=vocab_size)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = random_ids(rows, 5, vocab_size=vocab_size)
    return inputs


def names_in(folder: Path) -> set[str]:
    """Return the tensor names in the saved files, sharded or not."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def head_parameters(model: PreTrainedModel) -> set[str]:
    """Return the parameters that are neither in the base model nor tied to it."""
    if model.base_model is model:
        return set()
    return {name for name, _ in model.named_parameters() if not name.startswith("model.")}


def load(model_class: type[Any], folder: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    return model_class.from_pretrained(folder, attn_implementation="eager", output_loading_info=True, **options)


def shape_of(config: TriviumConfig) -> dict[str, Any]:
    """Return all configuration fields except for folder and class names."""
    names = ("_name_or_path", "architectures", "auto_map")
    return {name: value for name, value in config.to_dict().items() if name not in names}


# --- The configuration ---


def test_encoder_and_decoder_configurations() -> None:
    config = tiny_config(decoder_vocab_size=23, type_vocab_size=2)
    before = copy.deepcopy(config.to_dict())
    encoder, decoder = config.encoder_only(), config.decoder_only()
    assert config.to_dict() == before
    assert (encoder.encoder_layers, encoder.decoder_layers, encoder.vocab_size) == (2, 0, 31)
    assert (decoder.encoder_layers, decoder.decoder_layers, decoder.vocab_size) == (0, 3, 23)
    assert (encoder.type_vocab_size, decoder.type_vocab_size) == (2, 0)
    for part in (encoder, decoder):
        assert part.is_encoder_decoder is False
        assert part.decoder_vocab_size is None
        assert part._attn_implementation == "eager"
        part.validate()
    assert encoder.encoder_only() is encoder
    assert decoder.decoder_only() is decoder
    with pytest.raises(ValueError, match=r"decoder_layers.*0.*has.*decoder"):
        encoder.decoder_only()
    with pytest.raises(ValueError, match=r"encoder_layers.*0.*has.*encoder"):
        decoder.encoder_only()


@by_name("model_class", CLASSES)
def test_model_does_not_mutate_its_configuration(model_class: type[Any], tmp_path: Path) -> None:
    config = tiny_config()
    before = copy.deepcopy(config.to_dict())
    model = model_class(config)
    model.save_pretrained(tmp_path)
    assert config.to_dict() == before
    if model_class not in BOTH:
        model.resize_token_embeddings(37)
        assert model.config.vocab_size == 37
        assert config.to_dict() == before


@pytest.mark.parametrize(("way", "layers"), [("both", 2), ("encoder", 2), ("decoder", 3)])
def test_num_hidden_layers_alias(way: str, layers: int) -> None:
    config = tiny_config(**WAYS[way])
    assert config.num_hidden_layers == layers
    config.num_hidden_layers = 5
    changed = tiny_config(**WAYS[way], num_hidden_layers=5)
    for any_config in (config, changed):
        assert any_config.num_hidden_layers == 5
        assert (any_config.encoder_layers, any_config.decoder_layers) == {
            "both": (5, 3),
            "encoder": (5, 0),
            "decoder": (0, 5),
        }[way]


@pytest.mark.parametrize("way", WAYS)
def test_saved_configuration_keeps_architecture(way: str, tmp_path: Path) -> None:
    config = tiny_config(**WAYS[way])
    config.save_pretrained(tmp_path)
    for loaded in (TriviumConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert loaded.to_diff_dict() == config.to_diff_dict()
        assert loaded.is_encoder_decoder == (way == "both")
        assert (loaded.encoder_layers, loaded.decoder_layers) == (config.encoder_layers, config.decoder_layers)


# --- Loading the encoder or decoder of an encoder-decoder checkpoint ---


def build_decoder(model: PreTrainedModel) -> TriviumForCausalLM:
    """Return a decoder-only model with the weights of an encoder-decoder, without cross-attention."""
    alone = TriviumForCausalLM(model.config.decoder_only()).double().eval()
    weights = {
        name: weight
        for name, weight in model.state_dict().items()
        if "cross_attn" not in name and not name.startswith("model.encoder.")
    }
    alone.load_state_dict(weights)
    return alone


@by_name("target", [*ENCODER_ONLY, *DECODER_ONLY])
@pytest.mark.parametrize(
    ("source", "max_shard_size"),
    [
        (TriviumForConditionalGeneration, "1GB"),
        pytest.param(TriviumForConditionalGeneration, "20KB", marks=pytest.mark.slow),
        (TriviumModel, "20KB"),
    ],
    ids=["one-file", "sharded", "without-head"],
)
@tying_modes
@torch.no_grad()
def test_encoder_decoder_loads_as_half(
    tying: dict[str, Any], source: type[Any], target: type[Any], max_shard_size: str, tmp_path: Path
) -> None:
    whole = tiny_model(TriviumForConditionalGeneration, **tying, type_vocab_size=2)
    saved = whole if source is TriviumForConditionalGeneration else whole.model
    saved.save_pretrained(tmp_path / "whole", max_shard_size=max_shard_size)
    assert (len(list((tmp_path / "whole").glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    half, report = load(target, tmp_path / "whole")

    new = head_parameters(half) - names_in(tmp_path / "whole")  # the checkpoint may include the LM head
    assert set(report["missing_keys"]) == new
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert half.dtype == torch.float64

    ids = random_ids(2, 6, vocab_size=23)
    hidden = half.base_model(ids).last_hidden_state
    if target in ENCODER_ONLY:
        assert hidden.equal(whole.get_encoder()(ids).last_hidden_state)
    else:
        alone = build_decoder(whole)
        assert hidden.equal(alone.model(ids).last_hidden_state)
        if target is TriviumForCausalLM and not new:
            assert half(ids).logits.equal(alone(ids).logits)

    half.save_pretrained(tmp_path / "half")
    target(half.config).save_pretrained(tmp_path / "scratch")
    assert names_in(tmp_path / "half") == names_in(tmp_path / "scratch")
    again, report = load(target, tmp_path / "half")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert shape_of(again.config) == shape_of(half.config)
    assert again(ids)[0].equal(half(ids)[0])


@torch.no_grad()
def test_decoder_matches_whole_with_zero_cross_attention(tmp_path: Path) -> None:
    """With pre-norm, zeroed cross-attention is the identity, so the decoder alone must match the whole model."""
    whole = tiny_model(norm_position="pre")
    for layer in whole.get_decoder().layers:
        layer.cross_attn.o_proj.weight.zero_()
    whole.save_pretrained(tmp_path)
    ids = random_ids(2, 6)
    logits = load(TriviumForCausalLM, tmp_path)[0](ids).logits
    torch.testing.assert_close(logits, whole(random_ids(2, 3), decoder_input_ids=ids).logits, rtol=1e-12, atol=1e-12)


@by_name("target", [TriviumForMaskedLM, TriviumForCausalLM])
@tying_modes
@torch.no_grad()
def test_halves_load_by_path_config_or_state_dict(tying: dict[str, Any], target: type[Any], tmp_path: Path) -> None:
    whole = tiny_model(TriviumForConditionalGeneration, **tying)
    whole.save_pretrained(tmp_path)
    ids = random_ids(2, 6, vocab_size=23)
    expected = target.from_pretrained(tmp_path, attn_implementation="eager").base_model(ids)[0]
    config = whole.config
    part = config.encoder_only() if target is TriviumForMaskedLM else config.decoder_only()
    options: list[tuple[Any, dict[str, Any]]] = [
        (str(tmp_path), {}),
        (tmp_path, {"config": config}),
        (tmp_path, {"config": part}),
        (tmp_path, {"config": str(tmp_path)}),
        (tmp_path, {"config": tmp_path / "config.json"}),
        (None, {"config": config, "state_dict": whole.state_dict()}),
    ]
    for folder, kwargs in options:
        before = copy.deepcopy(vars(config))
        loaded, report = load(target, folder, **kwargs)
        assert not [name for name in report["missing_keys"] if name.startswith("model.")], kwargs
        assert loaded.base_model(ids)[0].equal(expected), kwargs
        assert vars(config) == before
    halved = target.from_pretrained(tmp_path, dtype=torch.float16)
    assert halved.dtype == halved.base_model(ids)[0].dtype == torch.float16


@torch.no_grad()
def test_configuration_of_another_class_object(tmp_path: Path) -> None:
    """Load with model and configuration classes from separate copies of the modules, as with code from the Hub."""
    whole = tiny_model(TriviumForConditionalGeneration)
    whole.save_pretrained(tmp_path)
    spec = importlib.util.spec_from_file_location("loaded_apart", tmp_path / "configuration_trivium.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.TriviumConfig.from_pretrained(tmp_path)
    assert not isinstance(config, TriviumConfig)
    ids = random_ids(2, 6)
    for model_class in (TriviumEncoderModel, TriviumForCausalLM):
        assert load(model_class, tmp_path, config=config)[0](ids)[0].equal(load(model_class, tmp_path)[0](ids)[0])


def test_load_folder_without_configuration(tmp_path: Path) -> None:
    model = tiny_model(TriviumForCausalLM, encoder_layers=0)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    loaded, report = load(TriviumForCausalLM, tmp_path, config=model.config)
    assert not report["missing_keys"]
    assert loaded.lm_head.weight.equal(model.lm_head.weight)


# --- Loading with another head ---


@by_name("target", ENCODER_ONLY)
@by_name("source", ENCODER_ONLY)
@torch.no_grad()
def test_encoder_loads_with_another_head(source: type[Any], target: type[Any], tmp_path: Path) -> None:
    model = tiny_model(source, decoder_layers=0, num_labels=3)
    model.save_pretrained(tmp_path)
    loaded, report = load(target, tmp_path)
    same = source is target
    assert set(report["missing_keys"]) == (set() if same else head_parameters(loaded))
    assert set(report["unexpected_keys"]) == (set() if same else head_parameters(model))
    # The heads of sequence and token classification have the same names, but different shapes.
    assert not report["mismatched_keys"]
    ids = random_ids(2, 6)
    torch.testing.assert_close(loaded.base_model(ids)[0], model.base_model(ids)[0], **SAME_WEIGHTS)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_decoder_loads_with_another_head(tied: bool, tmp_path: Path) -> None:
    model, ids = tiny_model(TriviumForCausalLM, encoder_layers=0, tie_word_embeddings=tied), random_ids(2, 6)
    model.save_pretrained(tmp_path / "head")
    bare, report = load(TriviumDecoderModel, tmp_path / "head")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(bare(ids)[0], model.model(ids)[0], **SAME_WEIGHTS)
    bare.save_pretrained(tmp_path / "bare")
    headed, report = load(TriviumForCausalLM, tmp_path / "bare")
    assert set(report["missing_keys"]) == (set() if tied else {"lm_head.weight"})
    torch.testing.assert_close(headed.model(ids)[0], model.model(ids)[0], **SAME_WEIGHTS)
    assert torch.allclose(headed(ids).logits, model(ids).logits, **SAME_WEIGHTS) == tied


@pytest.mark.parametrize(
    ("way", "classes", "message"),
    [
        ("decoder", ENCODER_ONLY, "encoder_layers is 0.*no encoder"),
        ("encoder", DECODER_ONLY, "decoder_layers is 0.*no decoder"),
        ("decoder", BOTH, "encoder_layers=0 and decoder_layers=3 make no encoder-decoder"),
        ("encoder", BOTH, "encoder_layers=2 and decoder_layers=0 make no encoder-decoder"),
    ],
)
def test_missing_half_cannot_be_loaded(way: str, classes: list[Any], message: str, tmp_path: Path) -> None:
    model = tiny_model(TriviumForCausalLM if way == "decoder" else TriviumForMaskedLM, **WAYS[way])
    model.save_pretrained(tmp_path)
    for model_class in classes:
        with pytest.raises(ValueError, match=message):
            model_class.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match=message):
            model_class(model.config)


# --- The Auto classes ---

ENCODERS_AUTO = {
    "AutoModelForTextEncoding": TriviumEncoderModel,
    "AutoModelForMaskedLM": TriviumForMaskedLM,
    "AutoModelForSequenceClassification": TriviumForSequenceClassification,
    "AutoModelForTokenClassification": TriviumForTokenClassification,
    "AutoModelForQuestionAnswering": TriviumForQuestionAnswering,
}
AUTO: dict[str, dict[str, type[Any]]] = {
    "both": {
        "AutoModel": TriviumModel,
        "AutoModelForPreTraining": TriviumForConditionalGeneration,
        "AutoModelForSeq2SeqLM": TriviumForConditionalGeneration,
        "AutoModelForCausalLM": TriviumForCausalLM,
        **ENCODERS_AUTO,
    },
    "encoder": {
        "AutoModel": TriviumEncoderModel,
        "AutoModelForPreTraining": TriviumForMaskedLM,
        **ENCODERS_AUTO,
    },
    "decoder": {
        "AutoModel": TriviumDecoderModel,
        "AutoModelForPreTraining": TriviumForCausalLM,
        "AutoModelForCausalLM": TriviumForCausalLM,
        "AutoModelForSequenceClassification": TriviumDecoderForSequenceClassification,
    },
}
PRETRAINED = {"both": TriviumForConditionalGeneration, "encoder": TriviumForMaskedLM, "decoder": TriviumForCausalLM}
FITTING = [(way, name, model_class) for way, classes in AUTO.items() for name, model_class in classes.items()]
UNFITTING = [(way, name) for way in WAYS for name in AUTO["both"] if name not in AUTO[way]]


@pytest.mark.parametrize(("way", "auto", "model_class"), FITTING, ids=[f"{way}-{name}" for way, name, _ in FITTING])
def test_auto_class_returns_model_class(way: str, auto: str, model_class: type[Any], tmp_path: Path) -> None:
    saved = tiny_model(PRETRAINED[way], **WAYS[way])
    saved.save_pretrained(tmp_path)
    auto_class = getattr(transformers, auto)
    built = auto_class.from_config(saved.config, attn_implementation="sdpa", dtype=torch.float16)
    assert type(built) is model_class
    assert (built.config._attn_implementation, built.dtype) == ("sdpa", torch.float16)
    loaded, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class
    assert not [name for name in report["missing_keys"] if name not in head_parameters(loaded)]
    weights = saved.base_model.state_dict()
    assert all(weight.equal(weights[name]) for name, weight in loaded.base_model.state_dict().items())
    assert type(auto_class.from_pretrained(tmp_path, config=saved.config)) is model_class


@pytest.mark.parametrize(("way", "auto"), UNFITTING, ids=[f"{way}-{name}" for way, name in UNFITTING])
def test_auto_class_refuses_missing_half(way: str, auto: str, tmp_path: Path) -> None:
    saved = tiny_model(PRETRAINED[way], **WAYS[way])
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"(encoder|decoder)_layers"):
        getattr(transformers, auto).from_pretrained(tmp_path)


# --- Features of all classes ---


@pytest.mark.parametrize("tied", [True, False])
@by_name("model_class", CLASSES)
@torch.no_grad()
def test_save_and_load_keep_everything(model_class: type[Any], tied: bool, tmp_path: Path) -> None:
    model = tiny_model(model_class, **LAYERS[model_class], tie_word_embeddings=tied, num_labels=3)
    model.save_pretrained(tmp_path)
    loaded, report = load(model_class, tmp_path)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    parameters = dict(model.named_parameters())
    assert names_in(tmp_path) == set(parameters) == {name for name, _ in loaded.named_parameters()}
    assert all(parameter.equal(parameters[name]) for name, parameter in loaded.named_parameters())
    inputs = inputs_for(model)
    torch.testing.assert_close(loaded(**inputs)[0], model(**inputs)[0], **SAME_WEIGHTS)
    assert loaded.config.num_labels == 3


@pytest.mark.parametrize("new_size", [37, pytest.param(26, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tied", [True, False])
@by_name("model_class", CLASSES)
def test_embeddings_are_tied_set_and_resized(
    model_class: type[Any], tied: bool, new_size: int, tmp_path: Path
) -> None:
    """Tie, get, set and resize embeddings; the bias of the masked LM head is resized too."""
    model = tiny_model(model_class, **LAYERS[model_class], tie_word_embeddings=tied)
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    has_head = model_class in PRETRAINED.values()
    assert (head is not None) == has_head
    assert source.weight.shape == (31, 24)
    if has_head:
        assert (head.weight is source.weight) == tied
    old = source.weight.detach().clone()
    bias = head.bias.detach().clone() if model_class is TriviumForMaskedLM else None

    model.resize_token_embeddings(new_size)
    assert model.config.vocab_size == new_size
    resized = model.get_input_embeddings().weight
    kept = min(new_size, 31)
    assert resized.shape == (new_size, 24)
    assert resized[:kept].equal(old[:kept])
    inputs = inputs_for(model)
    inputs["input_ids"][0, 0] = new_size - 1
    output = model(**inputs)[0]
    if has_head:
        assert output.shape[-1] == new_size
        assert (model.get_output_embeddings().weight is resized) == tied
    if bias is not None:
        assert model.get_output_embeddings().bias.shape == (new_size,)
        assert model.get_output_embeddings().bias[:kept].equal(bias[:kept])
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(load(model_class, tmp_path)[0](**inputs)[0], output, **SAME_WEIGHTS)

    other = type(source)(new_size, model.config).double()
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    model.tie_weights()
    if has_head:
        assert (model.get_output_embeddings().weight is other.weight) == tied
        replaced = torch.nn.Linear(24, new_size).double()
        model.set_output_embeddings(replaced)
        assert model.get_output_embeddings() is replaced
        assert model(**inputs)[0].shape[-1] == new_size


@pytest.mark.parametrize("norm_position", NORM_POSITIONS)
@by_name("model_class", CLASSES)
def test_gradient_checkpointing_matches_gradients_all(model_class: type[Any], norm_position: str) -> None:
    """Test with dropout, whose masks recomputation must repeat, and without labels, so that the cache is on."""
    rates = {"dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2}
    model = tiny_model(model_class, **LAYERS[model_class], **rates, norm_position=norm_position).train()
    inputs, gradients = inputs_for(model), []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(3)
        output = model(**inputs)[0]
        (output * torch.arange(output.shape[-1])).sum().backward()
        gradients.append([parameter.grad for parameter in model.base_model.parameters()])
        model.activation_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.ne(0).any()
        torch.testing.assert_close(checkpointed, plain, rtol=1e-10, atol=1e-10)


@by_name("model_class", CLASSES)
@torch.no_grad()
def test_return_dict_false_returns_tuples(model_class: type[Any]) -> None:
    model = tiny_model(model_class, **LAYERS[model_class])
    inputs = inputs_for(model)
    as_tuple = model(**inputs, return_dict=False, output_hidden_states=True)
    assert isinstance(as_tuple, tuple)
    assert as_tuple[0].equal(model(**inputs)[0])
