"""Test transformers' pipelines with Trivium models, and the translation pipeline, which transformers has removed.

With Trivium installed, pipelines are compared with direct calls of the model. Pipelines in a process without Trivium
are compared with those in this process, for single texts and for batches.
"""

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clean import run_without_trivium
from datasets import Dataset
from tiny import EXACT, tiny_config, tiny_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    pipeline,
    set_seed,
)
from transformers.pipelines.pt_utils import KeyDataset

from trivium import (
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumModel,
    TriviumTokenizer,
)
from trivium.modeling.pipeline_translation import EXTRA_LENGTH, TranslationPipeline
from trivium.tokenization import train_tokenizer
from trivium.translation import translate

pytestmark = pytest.mark.usefixtures("seeded")

TEXTS = ["birds fly", "the cat sat on the mat", "two dogs ran across the road and came back"]
GERMAN = ["Vögel fliegen", "die Katze saß auf der Matte", "zwei Hunde liefen über die Straße und kamen zurück"]
MASKED = ["birds <mask>", "the <mask> sat on the mat", "two dogs ran across the <mask> and came back"]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]
CHAT_TEMPLATE = "<s>{% for message in messages %}{{ message['content'] }}: {% endfor %}"
DECIDED = {"max_new_tokens": 12, "num_beams": 3}  # Short texts.

# Task, inputs and pipeline arguments for each folder.
QUESTIONS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "translator": ("translation", TEXTS, DECIDED),
    "filler": ("fill-mask", MASKED, {"top_k": 3}),
    "writer": ("text-generation", TEXTS, {"max_new_tokens": 6, "do_sample": False}),
    "chatter": ("text-generation", CHATS, {"max_new_tokens": 6, "do_sample": False}),
    "classifier": ("text-classification", TEXTS, {"top_k": 3}),
    "tagger": ("token-classification", TEXTS, {"aggregation_strategy": "simple"}),
    "encoder": ("feature-extraction", TEXTS, {}),
    "half": ("feature-extraction", TEXTS, {}),
}

# This code is appended to the function `ask`, and runs without Trivium.
CLEAN = """
from transformers import AutoModelForTextEncoding, AutoTokenizer, pipeline
place, questions = Path(arguments[0]), arguments[1]
trust = {"trust_remote_code": True, "device": "cpu"}
answers = {name: ask(pipeline(question[0], str(place / name), **trust), *question[1:])
           for name, question in questions.items()}
translator = pipeline(model=str(place / "translator"), **trust)  # The task follows from the model.
print(translator.model.config)
answers["of itself"] = ask(translator, *questions["translator"][1:])
translator.save_pretrained(place / "again")
answers["again"] = ask(pipeline("translation", str(place / "again"), **trust), *questions["translator"][1:])
half = AutoModelForTextEncoding.from_pretrained(place / "translator", trust_remote_code=True, dtype="auto")
half.save_pretrained(place / "half again")
tokenizer = AutoTokenizer.from_pretrained(place / "translator", trust_remote_code=True)
answers["half again"] = ask(pipeline("feature-extraction", half, tokenizer=tokenizer, device="cpu"),
                            *questions["half"][1:])
answers["marian"] = ask(pipeline("translation", str(place / "marian"), **trust), *questions["translator"][1:])
(place / "answers.json").write_text(json.dumps(answers))
"""


def ask(pipe: Any, inputs: list[Any], options: dict[str, Any]) -> list[list[Any]]:
    """Return the outputs of a pipeline for single inputs and for a batch, with NumPy scalars as Python numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.item() if hasattr(value, "item") else value

    alone, together = (plain(pipe(inputs, batch_size=size, **options)) for size in (1, len(inputs)))
    if pipe.task == "feature-extraction":  # The output includes padding.
        together = [[together[i][0][: len(alone[i][0])]] for i in range(len(inputs))]
    return [alone, together]


def assert_alike(actual: Any, expected: Any) -> None:
    """Compare scores up to float32 rounding, and everything else exactly."""
    if isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-9)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(actual[key], value)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_alike(one, other)
    else:
        assert actual == expected


def custom_pipelines(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text()).get("custom_pipelines")


def train_model(model: PreTrainedModel, tokenizer: TriviumTokenizer) -> PreTrainedModel:
    """Train a model to translate TEXTS into GERMAN."""
    batch = tokenizer(TEXTS, text_target=GERMAN, padding=True, return_tensors="pt")
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == tokenizer.pad_token_id, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model of every architecture; only the translation model has two vocabularies."""
    place = tmp_path_factory.mktemp("folders")
    one = train_tokenizer(TEXTS * 2, vocab_size=300, add_bos_token=True)
    two = train_tokenizer(TEXTS * 2, target_texts=GERMAN * 2, shared=False, vocab_size=310)
    open_ended = copy.deepcopy(one)
    open_ended.add_eos_token, open_ended.padding_side = False, "left"
    open_ended.chat_template = CHAT_TEMPLATE

    def save(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)

    def model_of(model_class: type[PreTrainedModel], tokenizer: TriviumTokenizer, **config: Any) -> PreTrainedModel:
        return tiny_model(model_class, std=0.4, vocab_size=len(tokenizer), **config)

    config = tiny_config(vocab_size=len(two), decoder_vocab_size=two.target_vocab_size)
    translator = train_model(TriviumForConditionalGeneration(config).double().eval(), two)
    save("translator", translator, two)
    save("half", TriviumEncoderModel.from_pretrained(place / "translator", dtype=torch.float64), two)
    save("filler", model_of(TriviumForMaskedLM, one, decoder_layers=0), one)
    for name in ("writer", "chatter"):
        writer = model_of(TriviumForCausalLM, one, encoder_layers=0, position_embedding_type="rotary")
        save(name, writer, open_ended)
    save("classifier", model_of(TriviumForSequenceClassification, one, decoder_layers=0, num_labels=4), one)
    labels = {0: "O", 1: "B-ANIMAL", 2: "I-ANIMAL", 3: "B-PLACE"}
    save("tagger", model_of(TriviumForTokenClassification, one, decoder_layers=0, id2label=labels), one)
    save("encoder", model_of(TriviumEncoderModel, one, decoder_layers=0), one)
    return place


def pipe_of(folders: Path, name: str, **kwargs: Any) -> Any:
    return pipeline(QUESTIONS[name][0], str(folders / name), device="cpu", **kwargs)


@pytest.mark.parametrize("name", ["writer", "classifier", "tagger"])
def test_pipeline_does_not_report_the_model_as_unsupported(
    folders: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    pipe_of(folders, name)
    assert "not supported" not in caplog.text


@pytest.fixture(scope="module")
def translator(folders: Path) -> TranslationPipeline:
    pipe: TranslationPipeline = pipe_of(folders, "translator")
    return pipe


@pytest.fixture(scope="module")
def marian(folders: Path) -> TranslationPipeline:
    """Save a Marian model of transformers together with Trivium's translation pipeline."""
    tokenizer = train_tokenizer(TEXTS * 2, vocab_size=300)
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=40
    )
    config = MarianConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, forced_eos_token_id=None, init_std=0.5,
    )  # fmt: skip
    model = MarianMTModel(config).double().eval()
    model.generation_config = GenerationConfig(
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, suppress_tokens=[0]
    )
    pipe: TranslationPipeline = pipeline("translation", model, tokenizer=plain, device="cpu")
    pipe.save_pretrained(folders / "marian")
    return pipe


# --- Translation -----------------------------------------------------------------------------------------------------


def translated(pipe: TranslationPipeline, text: str, **options: Any) -> list[str]:
    """Translate one text by calling `generate()` directly."""
    inputs = pipe.tokenizer(text, return_tensors="pt")
    return pipe.tokenizer.batch_decode(pipe.model.generate(**inputs, **options), skip_special_tokens=True)


def lengths(pipe: TranslationPipeline, texts: list[str], **options: Any) -> list[int]:
    """Return the lengths of translations when EOS is suppressed."""
    results = pipe(texts, return_tensors=True, batch_size=len(texts), suppress_tokens=[0, 2], **options)
    return [len(result["translation_token_ids"]) for result in results]


def test_translation_matches_model_in_any_batch(translator: TranslationPipeline) -> None:
    expected = [{"translation_text": text} for text in GERMAN]
    for size in (1, 2, 3, 8):
        assert translator(TEXTS, batch_size=size) == expected
    for text, result in zip(TEXTS, expected, strict=True):
        assert translator(text) == [result]
        assert translator([text]) == [result]
    assert translator([]) == []


def test_pipeline_matches_translate(translator: TranslationPipeline) -> None:
    for options in ({"suppress_tokens": [0, 2]}, {"num_beams": 3, "max_length": 4}):
        expected = list(translate(translator.model, translator.tokenizer, TEXTS, batch_size=3, **options))
        found = translator(TEXTS, batch_size=3, **options)
        assert [result["translation_text"] for result in found] == expected != GERMAN


def test_num_return_sequences(translator: TranslationPipeline) -> None:
    options = {**DECIDED, "num_return_sequences": 3}
    expected = [[{"translation_text": each} for each in translated(translator, text, **options)] for text in TEXTS]
    assert len({each["translation_text"] for several in expected for each in several}) == 9
    assert translator(TEXTS, batch_size=2, **options) == expected
    assert translator(TEXTS[0], **options) == expected[0]


def test_generation_arguments_at_init_or_call(folders: Path, translator: TranslationPipeline) -> None:
    expected = translator(TEXTS, **DECIDED)
    early = pipe_of(folders, "translator", batch_size=2, **DECIDED)
    assert early(TEXTS) == expected
    assert early(TEXTS, max_new_tokens=4) == translator(TEXTS, max_new_tokens=4, num_beams=3) != expected
    whole = GenerationConfig(**DECIDED)
    assert translator(TEXTS, generation_config=whole) == expected
    assert pipe_of(folders, "translator", generation_config=whole)(TEXTS) == expected
    assert translator(TEXTS, generation_config=whole, max_new_tokens=4) == early(TEXTS, max_new_tokens=4)
    assert whole == GenerationConfig(**DECIDED)


def test_length_limits_of_translations(folders: Path, translator: TranslationPipeline) -> None:
    longest = max(len(ids) for ids in translator.tokenizer(TEXTS)["input_ids"])
    assert lengths(translator, TEXTS) == [longest + EXTRA_LENGTH] * 3
    assert lengths(translator, TEXTS, max_length=7) == [7] * 3
    assert lengths(translator, TEXTS, max_new_tokens=7) == [1 + 7] * 3
    assert lengths(translator, TEXTS, generation_config=GenerationConfig(max_length=9)) == [9] * 3
    assert (
        lengths(translator, TEXTS, generation_config=GenerationConfig(use_cache=False)) == [longest + EXTRA_LENGTH] * 3
    )
    model = copy.deepcopy(translator.model)
    model.generation_config.max_new_tokens = 5
    saved = TranslationPipeline(model, translator.tokenizer, device="cpu")
    assert lengths(saved, TEXTS) == [1 + 5] * 3


def test_learned_positions_limit_the_length(translator: TranslationPipeline) -> None:
    tokenizer = translator.tokenizer
    config = {"decoder_vocab_size": tokenizer.target_vocab_size, "position_embedding_type": "learned"}
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=10, **config)
    pipe = TranslationPipeline(model, tokenizer, device="cpu")
    assert lengths(pipe, TEXTS[:1]) == [10]
    long = " ".join(TEXTS)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        pipe(long)
    cut = tokenizer(long, truncation=True, max_length=10, return_tensors="pt")
    expected = tokenizer.batch_decode(model.generate(**cut, max_length=10), skip_special_tokens=True)
    assert pipe(long, truncation=True) == [{"translation_text": expected[0]}]


def test_blank_texts_stay_blank(translator: TranslationPipeline) -> None:
    expected = translator(TEXTS[0], **DECIDED)[0]["translation_text"]
    results = translator(["", TEXTS[0], " \t"], batch_size=3, **DECIDED)
    assert [result["translation_text"] for result in results] == ["", expected, ""]
    assert translator("", num_beams=2, num_return_sequences=2) == [{"translation_text": ""}] * 2
    no_end = copy.deepcopy(translator.tokenizer)
    no_end.add_eos_token = False
    assert no_end("")["input_ids"] == []
    assert TranslationPipeline(translator.model, no_end, device="cpu")("") == [{"translation_text": ""}]


def test_sampling_is_reproducible_with_seed(translator: TranslationPipeline) -> None:
    def sampled(seed: int, **options: Any) -> Any:
        set_seed(seed)
        return translator(TEXTS, batch_size=2, do_sample=True, **options)

    assert sampled(1, temperature=3.0) == sampled(1, temperature=3.0) != sampled(2, temperature=3.0)
    assert sampled(1, temperature=3.0, top_k=1) == sampled(2, temperature=1e-4) == translator(TEXTS)


def test_generators_are_consumed_lazily(translator: TranslationPipeline) -> None:
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        for text in TEXTS * 3:
            read += 1
            yield text

    results = iter(translator(lines(), batch_size=2, **DECIDED))
    found = []
    for expected in (2, 2, 4, 4, 6):
        found.append(next(results))
        assert read == expected
    assert [*found, *results] == [translator(text, **DECIDED) for text in TEXTS * 3]


def test_dataset_column(translator: TranslationPipeline) -> None:
    rows = Dataset.from_dict({"english": TEXTS, "number": [1, 2, 3]})
    results = translator(KeyDataset(rows, "english"), batch_size=2, **DECIDED)
    assert list(results) == [translator(text, **DECIDED) for text in TEXTS]


@pytest.mark.parametrize("wrong", [3, None, ("a", "b"), ["a", 3], [{"role": "user", "content": "a"}]])
def test_non_texts_are_refused(translator: TranslationPipeline, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"text.*list, generator.*dataset.*texts"):
        translator(wrong)


def test_invalid_arguments_are_refused(folders: Path, translator: TranslationPipeline) -> None:
    with pytest.raises(ValueError, match="num_beam"):
        translator(TEXTS, num_beam=4)
    with pytest.raises(ValueError, match="num_return_sequences"):
        translator(TEXTS, num_return_sequences=2)
    with pytest.raises(ValueError, match="batch_size"):
        translator(TEXTS, batch_size=0)
    with pytest.raises(ValueError, match=r"tokenizer.*None"):
        TranslationPipeline(translator.model)
    for model in (tiny_model(TriviumForCausalLM, encoder_layers=0), TriviumModel(tiny_config())):
        with pytest.raises(ValueError, match=rf"{type(model).__name__}.*translation.*encoder-decoder"):
            pipeline("translation", model, tokenizer=translator.tokenizer)
    with pytest.raises(ValueError, match="AutoModelForSeq2SeqLM"):
        pipeline("translation", str(folders / "writer"))


def test_pipeline_translates_with_other_models(marian: TranslationPipeline) -> None:
    options = {**DECIDED, "suppress_tokens": [0]}
    expected = [{"translation_text": translated(marian, text, **options)[0]} for text in TEXTS]
    assert all(result["translation_text"] for result in expected)
    assert marian(TEXTS, batch_size=3, **options) == expected
    longest = max(len(ids) for ids in marian.tokenizer(TEXTS)["input_ids"])
    assert lengths(marian, TEXTS) == [min(longest + EXTRA_LENGTH, 40)] * 3


# --- Saved folders ---------------------------------------------------------------------------------------------------


def test_encoder_decoder_is_saved_with_its_pipeline(folders: Path, tmp_path: Path) -> None:
    expected = {
        "translation": {
            "impl": "pipeline_translation.TranslationPipeline", "pt": ["AutoModelForSeq2SeqLM"], "type": "text",
        }
    }  # fmt: skip
    assert {name: custom_pipelines(folders / name) for name in QUESTIONS if custom_pipelines(folders / name)} == {
        "translator": expected
    }
    pipe = pipe_of(folders, "translator")
    pipe.save_pretrained(tmp_path / "pipeline")
    model = AutoModelForSeq2SeqLM.from_pretrained(folders / "translator")
    assert not hasattr(model.config, "custom_pipelines")
    model.save_pretrained(tmp_path / "model")
    for folder in (tmp_path / "pipeline", tmp_path / "model"):
        assert custom_pipelines(folder) == expected
        names = {file.name for file in folder.glob("*.py")}
        names |= {"tokenization_backends.py", "tokenization_trivium.py"}
        assert names == {file.name for file in (folders / "translator").glob("*.py")}
    for trust in (None, False, True):  # The result is the same with the package installed.
        again = pipeline("translation", str(tmp_path / "pipeline"), device="cpu", trust_remote_code=trust)
        assert type(again) is TranslationPipeline
        assert again(TEXTS) == pipe(TEXTS)


def test_other_model_is_saved_with_the_pipeline_only(folders: Path, marian: TranslationPipeline) -> None:
    assert [file.name for file in (folders / "marian").glob("*.py")] == ["pipeline_translation.py"]


def test_pipelines_without_package(folders: Path, marian: TranslationPipeline) -> None:
    answers = {name: ask(pipe_of(folders, name), *QUESTIONS[name][1:]) for name in QUESTIONS}
    answers["marian"] = ask(marian, *QUESTIONS["translator"][1:])
    answers["of itself"] = answers["again"] = answers["translator"]
    answers["half again"] = answers["half"]
    for alone, together in answers.values():
        assert_alike(together, alone)
    run_without_trivium(CLEAN, str(folders), QUESTIONS, folder=folders, functions=[ask])
    found = json.loads((folders / "answers.json").read_text())
    for entities, text in zip([*found["tagger"][0], *found["tagger"][1]], TEXTS * 2, strict=True):
        # Without Trivium's tokenizer class, the offsets of a word include the preceding space.
        for entity in entities:
            entity["start"] += text[entity["start"]] == " "
    assert_alike(found, answers)
    assert custom_pipelines(folders / "again") == custom_pipelines(folders / "translator")
    assert custom_pipelines(folders / "half again") is None
    for name in ("again", "half again"):
        code = {file.name: file.read_text() for file in (folders / name).glob("*.py")}
        for file in (folders / "translator").glob("*.py"):
            if name == "again" or not file.name.startswith("tokenization"):
                assert code[file.name] == file.read_text()


# --- Transformers' own pipelines -------------------------------------------------------------------------------------


@torch.no_grad()
def test_fill_mask_returns_most_probable_token(folders: Path) -> None:
    pipe = pipe_of(folders, "filler")
    for text, fillings in zip(MASKED, pipe(MASKED, batch_size=3, top_k=2), strict=True):
        inputs = pipe.tokenizer(text, return_tensors="pt")
        place = inputs["input_ids"][0].tolist().index(pipe.tokenizer.mask_token_id)
        best = pipe.model(**inputs).logits[0, place].softmax(dim=-1).topk(2)
        assert [filling["token"] for filling in fillings] == best.indices.tolist()
        assert [filling["score"] for filling in fillings] == pytest.approx(best.values.tolist())


@pytest.mark.parametrize("name", ["writer", "chatter"])
def test_text_generation_continues_texts_and_chats(folders: Path, name: str) -> None:
    pipe = pipe_of(folders, name)
    _, prompts, options = QUESTIONS[name]
    for prompt, found in zip(prompts, pipe(prompts, batch_size=3, return_full_text=False, **options), strict=True):
        if name == "writer":
            inputs = pipe.tokenizer(prompt, return_tensors="pt")
        else:
            inputs = pipe.tokenizer.apply_chat_template(prompt, return_tensors="pt", return_dict=True)
            assert pipe.tokenizer.decode(inputs["input_ids"][0]) == f"<s>{prompt[0]['content']}: "
        new = pipe.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        assert found[0]["generated_text"] == pipe.tokenizer.decode(new, skip_special_tokens=True) != ""


@torch.no_grad()
def test_text_classification_matches_model(folders: Path) -> None:
    pipe = pipe_of(folders, "classifier")
    for text, found in zip(TEXTS, pipe(TEXTS, batch_size=3, top_k=None), strict=True):
        expected = pipe.model(**pipe.tokenizer(text, return_tensors="pt")).logits[0].softmax(dim=-1).tolist()
        names = [pipe.model.config.id2label[i] for i in range(4)]
        assert {each["label"]: each["score"] for each in found} == pytest.approx(
            dict(zip(names, expected, strict=True))
        )


@torch.no_grad()
def test_token_classification_finds_words(folders: Path) -> None:
    """Neighboring words with the same label must form one entity, with its text and character offsets."""
    pipe = pipe_of(folders, "tagger")
    found_any = False
    for text, tokens, groups in zip(
        TEXTS, pipe(TEXTS, batch_size=3), pipe(TEXTS, batch_size=3, aggregation_strategy="simple"), strict=True
    ):
        inputs = pipe.tokenizer(text, return_tensors="pt")
        labels = [pipe.model.config.id2label[i] for i in pipe.model(**inputs).logits[0].argmax(dim=-1).tolist()]
        special = pipe.tokenizer(text, return_special_tokens_mask=True)["special_tokens_mask"]
        expected = [
            (i, label) for i, (label, no) in enumerate(zip(labels, special, strict=True)) if label != "O" and not no
        ]
        assert [(token["index"], token["entity"]) for token in tokens] == expected
        for group in groups:
            found_any = True
            assert group["word"].strip() == text[group["start"] : group["end"]]
            inside = [token for token in tokens if group["start"] <= token["start"] < group["end"]]
            assert {token["entity"][2:] for token in inside} == {group["entity_group"]}
    assert found_any


@torch.no_grad()
@pytest.mark.parametrize("name", ["encoder", "half"])
def test_feature_extraction_matches_encoder(folders: Path, name: str) -> None:
    pipe = pipe_of(folders, name)
    encoder = pipe.model
    if name == "half":  # The limit is the same as in the encoder-decoder.
        encoder = AutoModelForSeq2SeqLM.from_pretrained(folders / "translator", dtype="auto").get_encoder()
        cut = AutoModelForTextEncoding.from_pretrained(folders / "translator", dtype="auto")
        assert isinstance(cut, TriviumEncoderModel)
    for text, found in zip(TEXTS, pipe(TEXTS, batch_size=3, return_tensors=True), strict=True):
        inputs = AutoTokenizer.from_pretrained(folders / name)(text, return_tensors="pt")
        expected = encoder(**inputs).last_hidden_state
        torch.testing.assert_close(found[:, : expected.shape[1]], expected, **EXACT)
