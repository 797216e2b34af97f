"""Test CTranslate2 export: scores, logits and generated texts match those of the exported model."""

import json
import sys
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import torch
from matrices import slow_unless
from tiny import EOS, VARIANTS, all_variants, mask_of, random_ids, shake, tiny_config, tiny_model, train_to_copy
from transformers import AutoTokenizer, PreTrainedModel

from trivium import (
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumModel,
    TriviumTokenizer,
)
from trivium.interop.ctranslate2 import CTranslate2Model, to_ctranslate2
from trivium.interop.ctranslate2_export import ACTIVATIONS
from trivium.tokenization import train_tokenizer
from trivium.translation import translate

ctranslate2 = pytest.importorskip("ctranslate2", reason="a test extra")

LENGTHS = [7, 3, 5]
ROTARY = {"position_embedding_type": "rotary"}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}  # Both implementations compute in float32.

# Options that VARIANTS does not cover.
OTHERS: list[dict[str, Any]] = [
    {"attention_bias": True, "num_key_value_heads": 2},
    {"attention_bias": True, "num_key_value_heads": 1, **ROTARY},
    {"ffn_bias": False},
    {"scale_embedding": False},
    {"normalize_embedding": True},
    {"normalize_embedding": True, "norm_type": "rmsnorm", **ROTARY},
    {"tie_word_embeddings": False},
    {"lm_head_bias": True},
    {"norm_eps": 0.1},
    {"norm_eps": 0.1, "norm_type": "rmsnorm"},
    {"rope_theta": 10.0, **ROTARY},
    {"decoder_vocab_size": 37, "tie_word_embeddings": False},
    {"decoder_vocab_size": 37, "norm_position": "pre"},
]
all_others = pytest.mark.parametrize("other", OTHERS, ids=str)


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    """Return a tokenizer of letters, with the 31 tokens of `tiny_config`, five of them special."""
    return train_tokenizer([ascii_lowercase], algorithm="char")


@pytest.fixture(scope="module")
def two_tokenizers() -> TriviumTokenizer:
    """Return a source tokenizer of the same letters, and a target tokenizer of 32 capitals and digits."""
    target = ascii_lowercase.upper() + "012345"
    return train_tokenizer([ascii_lowercase], target_texts=[target], shared=False, algorithm="char")


@pytest.fixture(scope="module")
def copier() -> TriviumForConditionalGeneration:
    """Return a model that was trained briefly to copy five letters, so that its beams and output lengths differ."""
    torch.manual_seed(0)
    shape = {"d_model": 32, "ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 1, "label_smoothing": 0.0}
    model = TriviumForConditionalGeneration(tiny_config(norm_position="pre", **ROTARY, **shape))
    return train_to_copy(model, steps=150, learning_rate=1e-2, sentences=32, longest=5)


def converted(model: PreTrainedModel, tokenizer: TriviumTokenizer, folder: Path, **options: Any) -> Path:
    to_ctranslate2(model, folder / "converted", tokenizer=tokenizer, **options)
    return folder / "converted"


def until_end(ids: torch.Tensor) -> list[list[int]]:
    """Truncate rows after EOS: transformers pads beams with EOS if the padding id is 0."""
    rows: list[list[int]] = ids.tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


def real(ids: torch.Tensor) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(ids, LENGTHS, strict=True)]


# --- Scores, logits and states ---------------------------------------------------------------------------------------


def assert_same_scores(model: PreTrainedModel, tokenizer: TriviumTokenizer, folder: Path) -> None:
    """Compare the log-probabilities of random targets of an encoder-decoder."""
    ids, mask = random_ids(3, 7), mask_of(LENGTHS)
    targets = random_ids(3, 8, vocab_size=model.config.target_vocab_size)
    lengths = [6, 8, 2]
    labels = targets.masked_fill(mask_of(lengths) == 0, -100)
    for row, length in zip(labels, lengths, strict=True):
        row[length - 1] = EOS
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
    expected = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    source = [tokenizer.source.convert_ids_to_tokens(row) for row in real(ids)]
    target = [
        tokenizer.target.convert_ids_to_tokens(row[: length - 1]) for row, length in zip(labels, lengths, strict=True)
    ]
    scores = ctranslate2.Translator(str(converted(model, tokenizer, folder))).score_batch(source, target)
    for score, row, length in zip(scores, expected, lengths, strict=True):
        torch.testing.assert_close(torch.tensor(score.log_probs), row[:length].float(), **CLOSE)


@all_variants
def test_encoder_decoder_scores_match(variant, tokenizer, tmp_path):
    assert_same_scores(tiny_model(std=0.2, **variant), tokenizer, tmp_path)


@all_others
def test_encoder_decoder_scores_match_other_options(other, tokenizer, two_tokenizers, tmp_path):
    tokenizer = two_tokenizers if "decoder_vocab_size" in other else tokenizer
    assert_same_scores(tiny_model(std=0.2, **other), tokenizer, tmp_path)


@pytest.mark.parametrize("gated_ffn", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_match(activation, gated_ffn, tokenizer, tmp_path):
    model = tiny_model(std=0.3, activation_function=activation, gated_ffn=gated_ffn)
    assert_same_scores(model, tokenizer, tmp_path)


def assert_same_logits(model: TriviumForCausalLM, tokenizer: TriviumTokenizer, folder: Path) -> None:
    ids = random_ids(3, 7)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask_of(LENGTHS)).logits.float()
    logits = np.array(ctranslate2.Generator(str(converted(model, tokenizer, folder))).forward_batch(real(ids)))
    for row, wanted, length in zip(torch.tensor(logits), expected, LENGTHS, strict=True):
        torch.testing.assert_close(row[:length], wanted[:length], **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS[::5], ids=str)
def test_language_model_logits_match(variant, tokenizer, tmp_path):
    assert_same_logits(tiny_model(TriviumForCausalLM, std=0.2, encoder_layers=0, **variant), tokenizer, tmp_path)


@all_others
def test_language_model_logits_match_other_options(other, tokenizer, tmp_path):
    other = {name: value for name, value in other.items() if name != "decoder_vocab_size"}
    assert_same_logits(tiny_model(TriviumForCausalLM, std=0.2, encoder_layers=0, **other), tokenizer, tmp_path)


def assert_same_states(model: TriviumEncoderModel, tokenizer: TriviumTokenizer, folder: Path) -> None:
    ids, types = random_ids(3, 7), None
    if model.config.type_vocab_size:
        types = torch.randint(0, model.config.type_vocab_size, (3, 7))
    with torch.no_grad():
        expected = model(ids, mask_of(LENGTHS), types).last_hidden_state.float()
    encoder = ctranslate2.Encoder(str(converted(model, tokenizer, folder)))
    states = encoder.forward_batch(real(ids), token_type_ids=None if types is None else real(types)).last_hidden_state
    for row, wanted, length in zip(torch.tensor(np.array(states)), expected, LENGTHS, strict=True):
        torch.testing.assert_close(row[:length], wanted[:length], **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS[::5], ids=str)
def test_encoder_states_match(variant, tokenizer, tmp_path):
    assert_same_states(tiny_model(TriviumEncoderModel, std=0.2, decoder_layers=0, **variant), tokenizer, tmp_path)


@pytest.mark.parametrize("scale_embedding", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_encoder_token_types_match(positions, scale_embedding, tokenizer, tmp_path):
    choices = {"position_embedding_type": positions, "scale_embedding": scale_embedding, "normalize_embedding": True}
    model = tiny_model(TriviumEncoderModel, std=0.2, decoder_layers=0, type_vocab_size=3, **choices)
    assert_same_states(model, tokenizer, tmp_path)


# --- Generated texts -------------------------------------------------------------------------------------------------

# Search settings with the same stopping rule in transformers and CTranslate2.
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 1},
    *(
        {"num_beams": beams, "early_stopping": stopping, "length_penalty": penalty}
        for beams in (2, 5)
        for stopping, penalty in ((True, 1.0), (True, 0.6), (False, 0.0), ("never", 0.0), ("never", 2.0))
    ),
]
# Greedy search, and beam search with every stopping rule.
DEFAULT_SEARCHES = [SEARCHES[index] for index in (0, 2, 8, 10)]
all_searches = pytest.mark.parametrize("search", slow_unless(SEARCHES, DEFAULT_SEARCHES), ids=str)


@all_searches
def test_translations_of_trained_model_match(search, copier, tokenizer, tmp_path):
    engine = CTranslate2Model(converted(copier, tokenizer, tmp_path))
    ids, mask = random_ids(12, 6), mask_of([6, 2, 4, 6, 5, 1, 3, 5, 3, 2, 2, 4])
    for longest in (4, 12):  # a limit that truncates texts before EOS, and one that does not
        expected = copier.generate(ids, attention_mask=mask, max_length=longest, **search)
        assert until_end(engine.generate(ids, mask, max_length=longest, **search)) == until_end(expected)


@all_searches
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_translations_of_random_model_match(positions, search, two_tokenizers, tmp_path):
    model = tiny_model(std=0.25, position_embedding_type=positions, decoder_vocab_size=37).float()
    engine = CTranslate2Model(converted(model, two_tokenizers, tmp_path))
    ids, mask = random_ids(8, 9), mask_of([9, 2, 4, 6, 5, 1, 8, 7], side="left")
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=12, **search)
    assert until_end(engine.generate(ids, mask, max_new_tokens=12, **search)) == until_end(expected)


@all_searches
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_continuations_of_prompts_of_any_length_match(positions, search, tokenizer, tmp_path):
    model = tiny_model(TriviumForCausalLM, std=0.25, encoder_layers=0, position_embedding_type=positions).float()
    engine = CTranslate2Model(converted(model, tokenizer, tmp_path))
    ids, mask = random_ids(8, 9), mask_of([9, 2, 4, 6, 5, 1, 4, 2], side="left")
    ids = ids.where(mask.bool(), 0)
    expected = model.generate(ids, attention_mask=mask, max_length=20, **search)
    assert until_end(engine.generate(ids, mask, max_length=20, **search)) == until_end(expected)


def test_early_stopping_false_matches_nearly_always(copier, tokenizer, tmp_path):
    engine = CTranslate2Model(converted(copier, tokenizer, tmp_path))
    texts = ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in random_ids(60, 5)]
    both = [list(translate(model, tokenizer, texts, num_beams=5)) for model in (copier, engine)]
    assert sum(expected_row == row for expected_row, row in zip(*both, strict=True)) >= 57


def test_translations_keep_order_and_saved_settings(copier, tokenizer, tmp_path):
    copier.generation_config.num_beams, copier.generation_config.early_stopping = 3, True
    try:
        engine = CTranslate2Model(converted(copier, tokenizer, tmp_path))
        texts = ["abc", "", "hgfedcb", "zy", " "]
        expected = list(translate(copier, tokenizer, texts, batch_size=2))
    finally:
        copier.generation_config.num_beams = copier.generation_config.early_stopping = None
    assert list(translate(engine, engine.tokenizer, texts, batch_size=2)) == expected
    assert expected[0] != ""
    assert expected[1] == expected[4] == ""


def test_num_return_sequences_match(copier, tokenizer, tmp_path):
    engine = CTranslate2Model(converted(copier, tokenizer, tmp_path))
    options = {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True, "max_length": 12}
    ids = random_ids(3, 6)
    assert until_end(engine.generate(ids, **options)) == until_end(copier.generate(ids, **options))


@pytest.mark.parametrize("length_penalty", [1.0, 0.6])
def test_n_best_scores_match(copier, tokenizer, tmp_path, length_penalty):
    engine = CTranslate2Model(converted(copier, tokenizer, tmp_path))
    texts = ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in random_ids(3, 5)]
    options = {"n_best": 3, "num_beams": 4, "early_stopping": True, "length_penalty": length_penalty}
    expected, found = (list(translate(model, tokenizer, [*texts, ""], **options)) for model in (copier, engine))
    assert [[each.text for each in best] for best in found] == [[each.text for each in best] for best in expected]
    scores = [[each.score for best in both for each in best] for both in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert found[-1] == []


def test_any_of_several_eos_tokens_ends_generation(copier, tokenizer, tmp_path):
    engine = CTranslate2Model(converted(copier, tokenizer, tmp_path))
    ids = random_ids(12, 5)
    ends = [EOS, *ids[:4, 2].tolist()]  # Use a token that occurs in the middle of some outputs as EOS.
    expected = copier.generate(ids, max_length=12, eos_token_id=ends)
    assert expected.tolist() != copier.generate(ids, max_length=12).tolist()
    torch.testing.assert_close(engine.generate(ids, max_length=12, eos_token_id=ends), expected)


def test_sampling_follows_seed_and_top_k(copier, tokenizer, tmp_path):
    folder, ids = converted(copier, tokenizer, tmp_path), random_ids(8, 6)

    def sample(seed: int, **options: Any) -> list[list[int]]:
        torch.manual_seed(seed)
        return CTranslate2Model(folder).generate(ids, do_sample=True, max_length=12, **options).tolist()

    greedy = CTranslate2Model(folder).generate(ids, max_length=12).tolist()
    bold = {"temperature": 5.0, "top_k": 0}
    assert sample(1, **bold) == sample(1, **bold) != sample(2, **bold)
    assert sample(1, top_k=1) == sample(1, top_k=0, top_p=1e-6) == greedy != sample(1, **bold)


def test_translation_stops_at_learned_positions(tokenizer, tmp_path):
    model = tiny_model(std=0.25, position_embedding_type="learned", max_position_embeddings=10).float()
    engine = CTranslate2Model(converted(model, tokenizer, tmp_path))
    ids = random_ids(4, 10)
    expected = model.generate(ids, max_length=11)
    assert expected.shape[1] == 11
    torch.testing.assert_close(engine.generate(ids, max_length=50), expected)
    with pytest.raises(ValueError, match=r"A text.*11 tokens.*converted model.*10 positions"):
        engine.generate(random_ids(1, 11), max_length=5)


def test_sinusoids_extend_beyond_max_positions(tokenizer, tmp_path):
    model = tiny_model(std=0.25, max_position_embeddings=4).float()
    engine = CTranslate2Model(converted(model, tokenizer, tmp_path))
    ids = random_ids(4, 30)
    torch.testing.assert_close(engine.generate(ids, max_length=40), model.generate(ids, max_length=40))


def test_long_source_is_not_truncated(tokenizer, tmp_path):
    model = tiny_model(std=0.25, **ROTARY).float()
    engine = CTranslate2Model(converted(model, tokenizer, tmp_path))
    # The rows differ only after 1,024 identical tokens.
    ids = torch.cat((torch.full((4, 1024), 7), random_ids(4, 400)), dim=1)
    expected = model.generate(ids, max_length=12)
    assert len({*map(tuple, expected.tolist())}) > 1
    torch.testing.assert_close(engine.generate(ids, max_length=12), expected)


# --- Folders ---------------------------------------------------------------------------------------------------------


def test_folder_is_converted_or_opened_directly(copier, two_tokenizers, tokenizer, tmp_path):
    copier.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    to_ctranslate2(tmp_path / "saved", tmp_path / "converted")
    ids = random_ids(4, 6)
    expected = copier.generate(ids, max_length=12)
    for folder in ("saved", "converted"):
        engine = CTranslate2Model.from_pretrained(tmp_path / folder)
        torch.testing.assert_close(engine.generate(ids, max_length=12), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted", "saved"]


def test_converted_folder_has_vocabularies_and_tokenizer(two_tokenizers, tmp_path):
    folder = converted(tiny_model(decoder_vocab_size=40), two_tokenizers, tmp_path)
    source, target = (json.loads((folder / f"{side}_vocabulary.json").read_text()) for side in ("source", "target"))
    assert source == ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *ascii_lowercase]
    assert target[5:37] == sorted(ascii_lowercase.upper() + "012345")
    assert target[37:] == ["<unused_37>", "<unused_38>", "<unused_39>"]
    config = json.loads((folder / "config.json").read_text())
    expected = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "decoder_start_token": "<s>"}
    assert expected.items() <= config.items()
    assert not config["add_source_bos"] | config["add_source_eos"]  # The tokenizer adds BOS and EOS.
    assert AutoTokenizer.from_pretrained(folder, config=tiny_config())("ab")["input_ids"] == [5, 6, EOS]


@pytest.mark.parametrize("quantization", ["float32", "float16", "bfloat16", "int8", "int8_float16", "int16"])
def test_quantized_model_is_close_smaller_and_a_copy(quantization, copier, tokenizer, tmp_path):
    before = {name: weight.clone() for name, weight in copier.state_dict().items()}
    folder = converted(copier, tokenizer, tmp_path, quantization=quantization)
    for name, weight in copier.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
    to_ctranslate2(copier, tmp_path / "plain", tokenizer=tokenizer)
    sizes = [(each / "model.bin").stat().st_size for each in (folder, tmp_path / "plain")]
    assert sizes[0] == sizes[1] if quantization == "float32" else sizes[0] < 0.85 * sizes[1]
    ids = random_ids(40, 4)
    both = (until_end(any_model.generate(ids, max_length=9)) for any_model in (copier, CTranslate2Model(folder)))
    # Integer quantization is coarse for such a narrow model, and coarser on CPUs without AVX-512, where 18 rows
    # agreed. Those of an untrained model agree in none.
    coarse = 20 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 12
    least = coarse if "int" in quantization else 38
    assert sum(expected_row == row for expected_row, row in zip(*both, strict=True)) >= least


def test_tied_weights_are_written_once(tokenizer, tmp_path):
    sizes = [
        (converted(tiny_model(tie_word_embeddings=tied), tokenizer, tmp_path / str(tied)) / "model.bin").stat().st_size
        for tied in (True, False)
    ]
    # The untied model has two more matrices, and does not store the names of two aliases.
    assert abs(sizes[1] - sizes[0] - 2 * 31 * 24 * 4) < 200


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny_model(activation_function="mish"), "activation_function is 'mish', but .* only relu, gelu, "),
        (lambda: tiny_model(sliding_window=4), "sliding_window is 4, but must be None"),
        (lambda: tiny_model(qk_norm=True), "qk_norm is True, but must be False"),
        (lambda: tiny_model(type_vocab_size=2), "type_vocab_size is 2, but must be 0: in CTranslate2"),
        (
            lambda: tiny_model(
                position_embedding_type="rotary", rope_parameters={"rope_type": "linear", "factor": 2.0}
            ),
            "rope_type is 'linear', but must be 'default'",
        ),
        (lambda: tiny_model(vocab_size=30), "source tokenizer has token id 30, but .* only 30"),
        (lambda: tiny_model(vocab_size=31, decoder_vocab_size=30), "target tokenizer has token id 30"),
        (lambda: tiny_model(TriviumModel), "The model is a TriviumModel, but CTranslate2 supports only"),
        (lambda: tiny_model(TriviumDecoderModel, encoder_layers=0), "The model is a TriviumDecoderModel"),
        (lambda: tiny_model(TriviumForMaskedLM, decoder_layers=0), "TriviumForMaskedLM.*TriviumEncoderModel.from_pre"),
        (lambda: tiny_model(TriviumForSequenceClassification, decoder_layers=0), "TriviumForSequenceClassification"),
        (lambda: without_start(tiny_model()), "decoder_start_token_id is None"),
    ],
)
def test_unsupported_options_are_refused_by_name(model, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        converted(model(), tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def without_start(model: PreTrainedModel) -> PreTrainedModel:
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = None
    return model


def test_invalid_arguments_are_refused(copier, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"quantization.*'int4'.*None.*one.*int8"):
        converted(copier, tokenizer, tmp_path, quantization="int4")
    with pytest.raises(ValueError, match=r"tokenizer.*None"):
        to_ctranslate2(copier, tmp_path / "converted")
    with pytest.raises(FileNotFoundError, match=r"saved model.*config.json"):
        to_ctranslate2(tmp_path, tmp_path / "converted")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match=r"model_type 'bert'.*architectures .*Trivium model"):
        to_ctranslate2(tmp_path, tmp_path / "converted")
    with pytest.raises(ValueError, match="which already exists"):
        to_ctranslate2(copier, tmp_path, tokenizer=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(FileNotFoundError, match=r"converted model.*trivium_config.json"):
        CTranslate2Model(tmp_path)


def test_failed_write_leaves_nothing_behind(copier, tokenizer, tmp_path, monkeypatch):
    def full_disk(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(ctranslate2.specs.TransformerSpec, "_serialize", full_disk)
    with pytest.raises(OSError, match="No space left"):
        converted(copier, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_encoder_does_not_generate(tokenizer, tmp_path):
    folder = converted(tiny_model(TriviumEncoderModel, decoder_layers=0), tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"encoder.*generate"):
        CTranslate2Model(folder)


def test_ignored_generation_settings_are_refused(copier, tokenizer, tmp_path):
    engine = CTranslate2Model(converted(copier, tokenizer, tmp_path))
    ids = random_ids(1, 3)
    with pytest.raises(ValueError, match=r"repetition_penalty.*1.2.*CTranslate2.*do_sample"):
        engine.generate(ids, max_length=5, repetition_penalty=1.2)
    with pytest.raises(ValueError, match=r"early_stopping.*'soon'.*True, False.*'never'"):
        engine.generate(ids, max_length=5, early_stopping="soon")
    with pytest.raises(ValueError, match=r"Neither max_length.*max_new_tokens"):
        engine.generate(ids)
    engine.generation_config.no_repeat_ngram_size = 2
    with pytest.raises(ValueError, match=r"no_repeat_ngram_size.*2.*saved settings.*0"):
        engine.generate(ids, max_length=5)
    engine.generation_config.no_repeat_ngram_size = 0
    assert engine.generate(ids, max_length=5).shape[1] <= 5


def test_missing_ctranslate2_error_says_what_to_install(copier, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(ImportError, match="pip install ctranslate2"):
        converted(copier, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_test_models_distinguish_gelu_approximations() -> None:
    """Check that the test models tell the GELU variants apart; otherwise, equal outputs would prove nothing."""
    models = [
        shake(TriviumForCausalLM(tiny_config(encoder_layers=0, activation_function=name)).eval(), 0.3)
        for name in ("gelu", "gelu_new")
    ]
    models[1].load_state_dict(models[0].state_dict())
    ids = random_ids(1, 5)
    with torch.no_grad():
        assert (models[0](ids).logits - models[1](ids).logits).abs().max() > 2e-4
