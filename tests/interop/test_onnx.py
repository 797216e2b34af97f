"""Test ONNX export: outputs and generation with ONNX Runtime match those of the exported model."""

import sys
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from tiny import mask_of, random_ids, tiny_model
from transformers import PreTrainedModel, pipeline

from trivium import (
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
    TriviumTokenizer,
)
from trivium.interop.onnx import OnnxForCausalLM, OnnxForConditionalGeneration, OnnxModel, to_onnx
from trivium.tokenization import train_tokenizer
from trivium.translation import translate

pytest.importorskip("onnxscript", reason="a test extra")
pytest.importorskip("onnxruntime", reason="a test extra")

LONG = "exporting a graph takes 3 to 10 seconds"
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # Both implementations compute in float32.
ENCODER_ONLY, DECODER_ONLY = {"decoder_layers": 0}, {"encoder_layers": 0}
SMALL = {"encoder_layers": 1, "decoder_layers": 1, "num_key_value_heads": 2}

# Configurations that differ in positions, norms, grouped queries, windows, vocabularies and biases.
SHAPES: list[dict[str, Any]] = [
    {"norm_position": "pre", "decoder_vocab_size": 37, "tie_word_embeddings": False},
    {"position_embedding_type": "learned", "norm_type": "rmsnorm", "num_key_value_heads": 1},
    {"position_embedding_type": "rotary", "norm_position": "pre", "gated_ffn": True, "attention_bias": True},
    {"position_embedding_type": "rotary", "norm_type": "rmsnorm", "sliding_window": 3, "lm_head_bias": True},
]
HEADS = [
    TriviumEncoderModel,
    TriviumForMaskedLM,
    TriviumForTokenClassification,
    TriviumForQuestionAnswering,
]
# Batch sizes and lengths that the export has not traced, including a single text and a single token.
BATCHES = [[9, 4, 2, 5, 7], [6], [1], [1, 3]]
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 1},
    {"num_beams": 5},
    {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True, "length_penalty": 0.6},
    {"do_sample": True, "temperature": 2.0},
]


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    """Return a tokenizer of letters, with the 31 tokens of `tiny_config`, five of them special."""
    return train_tokenizer([ascii_lowercase], algorithm="char")


def make_model(model_class: type[PreTrainedModel], **options: Any) -> PreTrainedModel:
    return tiny_model(model_class, std=0.3, **{**SMALL, **options}).float()


def saved(model: PreTrainedModel, tokenizer: TriviumTokenizer, folder: Path) -> Path:
    model.save_pretrained(folder / "saved")
    tokenizer.save_pretrained(folder / "saved")
    return folder / "saved"


def exported(model: PreTrainedModel, tokenizer: TriviumTokenizer, folder: Path) -> OnnxModel:
    to_onnx(saved(model, tokenizer, folder), folder / "exported")
    return OnnxModel.from_pretrained(folder / "exported")


def padded(lengths: list[int], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    mask = mask_of(lengths, side)
    return random_ids(*mask.shape).masked_fill(mask == 0, 0), mask


# --- Outputs and generated texts -------------------------------------------------------------------------------------


def assert_same_texts(model: PreTrainedModel, engine: OnnxModel, side: str) -> None:
    for lengths in BATCHES:
        ids, mask = padded(lengths, side)
        for search in SEARCHES:
            texts = []
            for either in (model, engine):
                torch.manual_seed(0)
                texts.append(either.generate(ids, attention_mask=mask, max_new_tokens=8, **search))
            assert texts[0].tolist() == texts[1].tolist(), search


def check_translator(model: PreTrainedModel, engine: OnnxModel) -> None:
    assert isinstance(engine, OnnxForConditionalGeneration)
    for lengths in BATCHES:
        ids, mask = padded(lengths)
        targets = random_ids(len(lengths), 4)
        with torch.no_grad():
            expected = model(ids, mask, decoder_input_ids=targets).logits
        outputs = engine(ids, mask, decoder_input_ids=targets[:, :1])
        rest = engine(ids, mask, decoder_input_ids=targets[:, 1:], cache=outputs.cache)
        torch.testing.assert_close(torch.cat((outputs.logits, rest.logits), dim=1), expected, **CLOSE)
    assert_same_texts(model, engine, "right")
    assert_same_texts(model, engine, "left")
    ids, (begun, mask) = random_ids(3, 5), padded([4, 1, 2], "left")
    prompt = {"decoder_input_ids": begun, "decoder_attention_mask": mask, "max_new_tokens": 6, "num_beams": 2}
    assert torch.equal(engine.generate(ids, **prompt), model.generate(ids, **prompt))


def check_writer(model: PreTrainedModel, engine: OnnxModel) -> None:
    assert isinstance(engine, OnnxForCausalLM)
    for lengths in BATCHES:
        ids, mask = padded(lengths, "left")
        whole = torch.cat((mask, mask.new_ones(len(mask), 2)), dim=1)
        following = random_ids(len(mask), 2)
        with torch.no_grad():
            expected = model(torch.cat((ids, following), dim=1), attention_mask=whole).logits
        outputs = engine(ids, mask)
        rest = engine(following, whole, outputs.cache)
        logits = torch.cat((outputs.logits, rest.logits), dim=1)
        torch.testing.assert_close(logits[whole == 1], expected[whole == 1], **CLOSE)
        assert engine(ids, mask, logits_to_keep=1).logits.shape[1] == 1
    assert_same_texts(model, engine, "left")


def check_head(model: PreTrainedModel, engine: OnnxModel) -> None:
    for lengths in BATCHES:
        ids, mask = padded(lengths)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if model.config.type_vocab_size:
            inputs["token_type_ids"] = torch.randint(model.config.type_vocab_size, ids.shape)
        with torch.no_grad():
            expected = model(**inputs)
        found = engine(**inputs)
        assert found.keys() == expected.keys() - {"cache"}
        for name, values in found.items():
            torch.testing.assert_close(values, getattr(expected, name), **CLOSE)


@pytest.mark.slow
def test_encoder_decoder_matches(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    options = {"position_embedding_type": "rotary", "decoder_layers": 2, "tie_word_embeddings": False}
    model = make_model(TriviumForConditionalGeneration, **options)
    engine = exported(model, tokenizer, tmp_path)
    check_translator(model, engine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "saved"]
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {
        "config.json",
        "decoder.onnx",
        "encoder.onnx",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    texts = ["abc", "", "hgfedcb", "zy", " "]
    both = [list(translate(each, tokenizer, texts, batch_size=2, num_beams=4)) for each in (model, engine)]
    assert both[0] == both[1] == list(translate(engine, engine.tokenizer, texts, batch_size=2, num_beams=4))
    assert both[0][0] != ""
    expected_best, best = (list(translate(each, tokenizer, texts, n_best=2, num_beams=4)) for each in (model, engine))
    assert [[each.text for each in row] for row in best] == [[each.text for each in row] for row in expected_best]
    assert best[0][1].score == pytest.approx(expected_best[0][1].score, abs=1e-4)
    ids = random_ids(2, 3)
    expected = model.generate(ids, max_new_tokens=4)
    assert torch.equal(engine.generate(ids, max_new_tokens=4, use_cache=False), expected)
    with pytest.raises(ValueError, match=r"StaticLayer.*DynamicCache.*cache_implementation"):
        engine.generate(ids, max_new_tokens=2, cache_implementation="static")


@pytest.mark.slow
def test_decoder_matches(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    options = {"position_embedding_type": "learned", "max_position_embeddings": 20, "norm_position": "pre"}
    model = make_model(TriviumForCausalLM, **DECODER_ONLY, **options)
    model.generation_config.num_beams = 3
    engine = exported(model, tokenizer, tmp_path)
    assert engine.generation_config.num_beams == 3
    check_writer(model, engine)
    with pytest.raises(ValueError, match=r"21 tokens.*learned positions end.*max_position_embeddings=20"):
        engine.generate(random_ids(1, 15), max_new_tokens=7)
    assert engine.generate(random_ids(1, 15), max_new_tokens=6, eos_token_id=None).shape == (1, 21)


@pytest.mark.slow
def test_classifier_matches(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = make_model(TriviumForSequenceClassification, type_vocab_size=2, num_labels=5, **ENCODER_ONLY)
    folder = saved(model.bfloat16(), tokenizer, tmp_path)
    engine = OnnxModel.from_pretrained(folder)  # The pipeline exports the model on the fly.
    assert list(tmp_path.iterdir()) == [folder]
    check_head(model.float(), engine)
    texts = ["abc", "hgfedcb"]
    pipes = [pipeline("text-classification", model=each, tokenizer=tokenizer) for each in (model, engine)]
    expected, found = (pipe(texts, batch_size=2, top_k=None) for pipe in pipes)
    assert [[each["label"] for each in row] for row in found] == [[each["label"] for each in row] for row in expected]
    assert found[0][0]["score"] == pytest.approx(expected[0][0]["score"], abs=1e-5)


@pytest.mark.slow(reason=LONG)
def test_decoder_classifier_matches(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = make_model(TriviumDecoderForSequenceClassification, num_labels=3, **DECODER_ONLY)
    engine = exported(model, tokenizer, tmp_path)
    check_head(model, engine)
    for lengths in BATCHES:
        ids, mask = padded(lengths, "left")
        with torch.no_grad():
            torch.testing.assert_close(engine(ids, mask).logits, model(ids, mask).logits, **CLOSE)


@pytest.mark.slow(reason=LONG)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_encoder_decoder_matches(shape: dict[str, Any], tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = make_model(TriviumForConditionalGeneration, encoder_layers=2, decoder_layers=3, **shape)
    check_translator(model, exported(model, tokenizer, tmp_path))


@pytest.mark.slow(reason=LONG)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_every_decoder_matches(shape: dict[str, Any], tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = make_model(TriviumForCausalLM, decoder_layers=3, **DECODER_ONLY, **shape)
    check_writer(model, exported(model, tokenizer, tmp_path))


@pytest.mark.slow(reason=LONG)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("model_class", HEADS)
def test_every_head_matches(
    model_class: type[PreTrainedModel], shape: dict[str, Any], tokenizer: TriviumTokenizer, tmp_path: Path
) -> None:
    model = make_model(model_class, **ENCODER_ONLY, **shape)
    check_head(model, exported(model, tokenizer, tmp_path))


@pytest.mark.slow
def test_scaled_decoder_matches(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 5}
    model = make_model(TriviumForCausalLM, **DECODER_ONLY, position_embedding_type="rotary", rope_parameters=rope)
    check_writer(model, exported(model, tokenizer, tmp_path))


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [TriviumModel, TriviumDecoderModel])
def test_decoder_without_head_is_refused(
    model_class: type[PreTrainedModel], tokenizer: TriviumTokenizer, tmp_path: Path
) -> None:
    model = make_model(model_class, **(DECODER_ONLY if model_class is TriviumDecoderModel else {}))
    folder = saved(model, tokenizer, tmp_path)
    with pytest.raises(ValueError, match=rf"{model_class.__name__}.*one.*TriviumForConditionalGen"):
        to_onnx(folder, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == [folder]


def test_qk_norm_of_encoder_decoder_is_refused(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    folder = saved(make_model(TriviumForConditionalGeneration, qk_norm=True), tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"qk_norm is True, but must be False.*ONNX"):
        to_onnx(folder, tmp_path / "exported")


def test_changing_frequencies_are_refused(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0}
    model = make_model(TriviumForCausalLM, **DECODER_ONLY, position_embedding_type="rotary", rope_parameters=rope)
    folder = saved(model, tokenizer, tmp_path)
    with pytest.raises(
        ValueError, match="rope_type is 'dynamic', but must be 'default', 'linear', 'yarn' or 'llama3'"
    ):
        to_onnx(folder, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == [folder]


def test_invalid_folders_are_refused(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    output = tmp_path / "exported"
    with pytest.raises(FileNotFoundError, match=r"saved model.*config.json"):
        to_onnx(tmp_path, output)
    with pytest.raises(FileNotFoundError, match=r"saved model.*config.json"):
        OnnxModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model exported.*ONNX.*config.json"):
        OnnxForCausalLM(tmp_path)
    folder = saved(make_model(TriviumForCausalLM, **DECODER_ONLY), tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"new.*empty folder"):
        to_onnx(folder, folder)
    with pytest.raises(FileNotFoundError, match=r"model exported.*ONNX.*decoder.onnx"):
        OnnxForCausalLM(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.*tokenizer.*tokenizer_config.json"):
        to_onnx(folder, output)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model_type 'bert'.*architectures .*one"):
        to_onnx(tmp_path, output)
    assert not output.exists()


@pytest.mark.slow(reason=LONG)
def test_failed_write_leaves_nothing_behind(
    tokenizer: TriviumTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: Any, folder: Path, **kwargs: Any) -> None:
        assert any(folder.iterdir())  # The failure occurred after the graph had been written.
        raise OSError("No space left on device")

    folder = saved(make_model(TriviumEncoderModel, **ENCODER_ONLY), tokenizer, tmp_path)
    monkeypatch.setattr(TriviumTokenizer, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        to_onnx(folder, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.slow(reason=LONG)
def test_logits_with_8_bit_weights_are_close(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = make_model(TriviumForConditionalGeneration)
    to_onnx(saved(model, tokenizer, tmp_path), tmp_path / "exported", quantization="int8")
    engine = OnnxModel.from_pretrained(tmp_path / "exported")
    ids, mask = padded([9, 4])
    targets = random_ids(2, 4)
    with torch.no_grad():
        expected = model(ids, mask, decoder_input_ids=targets).logits
    logits = engine(ids, mask, decoder_input_ids=targets).logits
    assert not torch.allclose(logits, expected, **CLOSE)  # the weights are not those of float32
    assert torch.cosine_similarity(logits, expected, dim=-1).min() > 0.98
    assert {path.suffix for path in (tmp_path / "exported").glob("*coder*")} == {".onnx"}


def test_unknown_quantization_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantization is 'int4', but must be 'int8'"):
        to_onnx(tmp_path, tmp_path / "exported", quantization="int4")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_error_says_what_to_install(
    package: str, tokenizer: TriviumTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript onnxruntime"):
        OnnxForCausalLM(tmp_path) if package == "onnxruntime" else to_onnx(tmp_path, tmp_path / "exported")
    assert not any(tmp_path.iterdir())
