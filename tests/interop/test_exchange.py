"""Convert native transformers models to Trivium and back, and compare outputs in float64.

The tests load both models from the folders that `convert` wrote, and compare logits, hidden states, attentions,
gradients and generated sequences. test_families and test_parity contain independent, hand-written weight mappings.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from matrices import slow_unless
from native import (
    IDS,
    OURS,
    PAIRS,
    ROUND_TRIPS,
    THEIRS,
    Pair,
    conversion_error,
    every_pair,
    exact,
    files_of,
    load_float64,
    native_model,
    saved_native,
    trivium_model,
)
from safetensors.torch import load_file
from tiny import BOS, EOS, EXACT, PAD, Tensors, mask_of, random_ids
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from trivium.interop import conversion, convert
from trivium.interop.exchange import Exchange
from trivium.interop.families import FAMILIES
from trivium.interop.families.marian import alternating
from trivium.tokenization import train_tokenizer
from trivium_cli import app

# --- Outputs and gradients -------------------------------------------------------------------------------------------


def batch(pair: Pair, lengths: list[int], target_lengths: list[int]) -> Tensors:
    """Return random tokens padded with the padding id, from which RoBERTa derives its positions."""
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
    """Return all output tensors of both models at real tokens, with dimensions in Trivium's order."""
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
    """Compare all outputs, and the gradients of a randomly weighted sum of them."""
    if hasattr(pair.native, "final_logits_bias"):
        pair.native.final_logits_bias.requires_grad_().grad = None  # a buffer, whose gradient is compared too
    native, converted = outputs_of(pair, inputs)
    assert set(native) == set(converted)
    assert {key.split(".")[0] for key in converted} >= {
        "decoder_attentions" if pair.ours.config.is_encoder_decoder else "attentions"
    }
    weights = {key: torch.randn_like(tensor) for key, tensor in native.items()}
    for tensors in (native, converted):
        torch.stack([(tensors[key] * weights[key]).sum() for key in weights]).sum().backward()
    for key, expected in native.items():
        torch.testing.assert_close(converted[key], expected, **EXACT, msg=partial("{}: {}".format, key))
    assert_same_gradients(pair)


def assert_same_gradients(pair: Pair) -> None:
    """Compare the gradients with the converted gradients of the native model; skip tensors without a counterpart."""
    exchange = Exchange(FAMILIES[pair.family], pair.native, pair.ours)
    native, converted = gradients_of(pair.native), gradients_of(pair.ours)
    unused = {name for name in pair.native.state_dict() if name not in native}
    native |= {name: torch.zeros_like(pair.native.state_dict()[name]) for name in unused}
    for link in exchange.links:
        if not link.trivium:
            native[exchange.native.full_names[link.native]].zero_()
    native = {
        name: native[name]
        for name in exchange.native.full_names.values()
        if "embed_positions" not in name or pair.family != "marian"
    }
    mapped = {name: step() for name, step in exchange.to_trivium(native).items()}
    alone = {
        exchange.trivium.full_names[name] for link in exchange.links if link.native is None for name in link.trivium
    }
    assert set(converted) == set(mapped)
    for name in set(converted) - alone:
        torch.testing.assert_close(converted[name], mapped[name], **EXACT, msg=partial("{}: {}".format, name))


@exact
@every_pair
def test_outputs_and_gradients_match_native(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name](tmp_path)
    for lengths, target_lengths in [([5], [4]), ([6, 3, 1], [4, 7, 2])]:
        assert_same(pair, batch(pair, lengths, target_lengths))


@exact
@pytest.mark.parametrize("name", ["in-llama", "in-marian", "in-bert-masked-lm", "in-gpt2", "out-bart", "out-mistral"])
def test_fused_attention_matches_native(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name](tmp_path, "sdpa")
    inputs = batch(pair, [6, 3, 1], [4, 7, 2])
    native, converted = (model(**inputs).logits for model in pair[:2])
    real = inputs["decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask"].bool()
    torch.testing.assert_close(converted[real], native[real], **EXACT)


# --- generate() with the saved settings ------------------------------------------------------------------------------

GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beam": {"num_beams": 4},
    "beam-forced": {"num_beams": 3, "forced_eos_token_id": 7, "bad_words_ids": [[4], [5, 6]], "length_penalty": 0.2},
}
GENERATING = ["llama", "mistral-window", "qwen2-tied-window", "gpt2", "marian", "marian-untied", "bart"]


@exact
@pytest.mark.parametrize("search", slow_unless(GENERATION, ["beam-forced"]))
@pytest.mark.parametrize("name", GENERATING)
def test_generation_matches_native(name: str, search: str, tmp_path: Path) -> None:
    """Use several EOS tokens and ban repetitions, because random models rarely end a text and often loop."""
    native = native_model(name)
    native.generation_config = GenerationConfig(
        **{**IDS, "eos_token_id": [EOS, 7], "decoder_start_token_id": BOS},
        max_new_tokens=12,
        no_repeat_ngram_size=1,
        **GENERATION[search],
    )
    native.save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", native.config.model_type)
    models = [load_float64(tmp_path / folder) for folder in ("native", "ours", "back")]
    mask = mask_of([6, 3, 1, 5, 4, 2], "right" if native.config.is_encoder_decoder else "left")
    inputs = {"input_ids": random_ids(*mask.shape).where(mask.bool(), PAD), "attention_mask": mask}
    expected, *converted_outputs = (model.generate(**inputs) for model in models)
    for found in converted_outputs:
        assert torch.equal(found, expected)
    assert len(expected[:, -5:].unique()) > 4, "all texts are alike: the test would not see a difference"
    saved = [json.loads((tmp_path / folder / "generation_config.json").read_text()) for folder in ("native", "ours")]
    assert saved[0] == saved[1]


# --- Round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_unless(THEIRS, ROUND_TRIPS))
def test_conversion_round_trips(name: str, tmp_path: Path) -> None:
    """Compare the Trivium folder, and the native model's weights and configuration, bit by bit."""
    native_model(name, dtype="float64").save_pretrained(tmp_path / "native")
    family = convert(tmp_path / "native", tmp_path / "ours").family
    convert(tmp_path / "ours", tmp_path / "back", family)
    convert(tmp_path / "back", tmp_path / "ours-again")
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "ours-again")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("native", "back"))
    for name, tensor in before.items():
        if "position" in name and family in ("bart", "roberta"):  # The first two rows are reserved for padding.
            assert torch.equal(after[name][2:], tensor[2:]), name
        elif name in after:
            assert torch.equal(after[name], tensor), name
    unused = ("pooler", "cls.predictions.bias", "embed_positions")
    assert not {name for name in set(before) ^ set(after) if not any(part in name for part in unused)}
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("native", "back")]
    unlike = {name for name in {*configs[0], *configs[1]} if configs[0].get(name) != configs[1].get(name)}
    assert unlike <= {
        "classifier_dropout",
        "n_ctx",
        "n_inner",
        "sliding_window",
        "forced_eos_token_id",
    }  # fields that are equivalent, but written differently


def test_native_folder_needs_no_trivium_code(tmp_path: Path) -> None:
    for name, (_, _, family, _) in OURS.items():
        trivium_model(name).save_pretrained(tmp_path / name)
        made = convert(tmp_path / name, tmp_path / f"{name}-native", family)
        assert type(made.model).__module__.startswith("transformers.models.")
        folder = tmp_path / f"{name}-native"
        assert not list(folder.rglob("*.py"))
        assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_training_only_fields_are_dropped_with_a_note(tmp_path: Path) -> None:
    trivium_model("llama-biased-dropout", label_smoothing=0.2).save_pretrained(tmp_path / "ours")
    notes = convert(tmp_path / "ours", tmp_path / "native").notes
    assert [note.split(" ")[0] for note in notes[:2]] == ["label_smoothing=0.2", "dropout=0.1"]


# --- The Hub ---------------------------------------------------------------------------------------------------------


def test_hub_model_is_read_from_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_pickles_are_not_requested_from_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = dict[str, Any]()

    def download(name: str, **options: Any) -> str:
        request.update(options)
        return str(saved_native(tmp_path))

    monkeypatch.setattr(conversion, "snapshot_download", download)
    convert("someone/llama", tmp_path / "ours")
    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.txt", "source.spm"]
    unwanted = ["pytorch_model.bin", "model.py", "consolidated.safetensors", "onnx/config.json", "model.h5"]
    wanted = filter_repo_objects(files + unwanted, **request)
    assert list(wanted) == files


# --- Tokenizers, and Trivium's commands on converted folders ---------------------------------------------------------

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
    assert made.notes == ["the tokenizer has no padding token, so <|endoftext|> is used as padding"]
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
def test_tokenizer_is_converted_and_restored(folder: str, request: pytest.FixtureRequest) -> None:
    converted = request.getfixturevalue(folder)
    family = folder.removesuffix("_folder")
    convert(converted, converted.parent / "back", family)
    convert(converted.parent / "back", converted.parent / "ours-again")
    assert files_of(converted) == files_of(converted.parent / "ours-again")
    native, *round_tripped = (
        AutoTokenizer.from_pretrained(converted.parent / name) for name in ("native", "ours", "back")
    )
    for tokenizer in round_tripped:
        assert type(tokenizer) is type(native)
        ids = native(TEXTS)["input_ids"]
        assert tokenizer(TEXTS)["input_ids"] == ids
        assert tokenizer(text_target=TEXTS)["input_ids"] == native(text_target=TEXTS)["input_ids"]
        assert tokenizer.batch_decode(ids, skip_special_tokens=True) == native.batch_decode(
            ids, skip_special_tokens=True
        )


def test_unreadable_tokenizer_is_refused(gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise ImportError("\nMarianTokenizer requires the SentencePiece library.\nInstall it.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    error = conversion_error(gpt2_folder, gpt2_folder.parent / "back", "gpt2")
    assert error.endswith("needs a package that is not installed: MarianTokenizer requires the SentencePiece library.")


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_fill_mask_with_bert(bert_folder: Path) -> None:
    output_text = run("fill-mask", bert_folder, "the cat [MASK] on the mat .", "--top-k", "3")
    pipe = transformers.pipeline("fill-mask", str(bert_folder.parent / "native"))
    expected = pipe("the cat [MASK] on the mat .", top_k=3)
    assert output_text.rstrip("\n").split("\t") == [
        x for prediction in expected for x in (prediction["token_str"], f"{prediction['score']:.4f}")
    ]


def test_generate_with_gpt2(gpt2_folder: Path) -> None:
    output_text = run("generate", gpt2_folder, TEXTS[0], "--max-new-tokens", "5")
    native = transformers.GPT2LMHeadModel.from_pretrained(gpt2_folder.parent / "native")
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    output = native.generate(**tokenizer(TEXTS[:1], return_tensors="pt"), max_new_tokens=5)
    assert output_text == tokenizer.decode(output[0], skip_special_tokens=True) + "\n"
    assert len(run("generate", gpt2_folder, *TEXTS[:3], "--max-new-tokens", "5").splitlines()) >= 3  # a padded batch


@pytest.mark.filterwarnings("ignore")  # sacremoses, which normalizes punctuation, is not needed
def test_translate_with_opus(marian_folder: Path) -> None:
    output_text = run("translate", marian_folder, *TEXTS[:3], "--beams", "2", "--max-length", "12")
    native = transformers.MarianMTModel.from_pretrained(marian_folder.parent / "native")
    tokenizer = AutoTokenizer.from_pretrained(marian_folder.parent / "native")
    inputs = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)
    output = native.generate(**inputs, num_beams=2, max_length=12)
    assert output_text.splitlines() == tokenizer.batch_decode(output, skip_special_tokens=True)


RECIPES = {
    "bert_folder": {"task": "classification", "rows": [{"text": text, "label": text[0]} for text in TEXTS]},
    "gpt2_folder": {"task": "causal-lm", "rows": [{"text": text} for text in TEXTS]},
    "marian_folder": {"task": "translation", "rows": [{"en": text, "de": text} for text in TEXTS]},
}


@pytest.mark.parametrize("folder", [FOLDERS[0], pytest.param("gpt2_folder", marks=pytest.mark.slow), FOLDERS[2]])
def test_train_converted_model(folder: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
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


def test_trivium_tokenizer_converts_to_native(tmp_path: Path) -> None:
    """The native tokenizer must recognize special tokens in texts, because clients tokenize rendered chats."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, add_bos_token=True, add_eos_token=False)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>"]})
    trivium_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "native").notes == []
    model_config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert model_config["n_ctx"] == model_config["n_positions"]  # llama.cpp's converter reads the old class name
    stock = AutoTokenizer.from_pretrained(tmp_path / "native")
    config = json.loads((tmp_path / "native" / "tokenizer_config.json").read_text())
    # transformers has renamed the class to this.
    assert config["tokenizer_class"] in ("PreTrainedTokenizerFast", "TokenizersBackend")
    assert "auto_map" not in config
    texts = [*TEXTS, "a <mask> 🙂<|user|>\n", "<mask>", " <mask>"]
    ids = tokenizer(texts)["input_ids"]
    assert stock(texts)["input_ids"] == ids
    assert stock.batch_decode(ids) == tokenizer.batch_decode(ids)
    assert stock.special_tokens_map == tokenizer.special_tokens_map
    assert stock.encode("<s><|user|></s>", add_special_tokens=False) == [1, len(tokenizer) - 1, 2]
    assert stock.decode([1, len(tokenizer) - 1, 2], skip_special_tokens=True) == ""
    assert stock.pad(tokenizer(texts))["attention_mask"] == tokenizer.pad(tokenizer(texts))["attention_mask"]


def test_two_vocabularies_convert_to_two_tokenizers(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS[:3], target_texts=TEXTS[3:], vocab_size=290, shared=False)
    sizes = {"vocab_size": len(tokenizer), "decoder_vocab_size": tokenizer.target_vocab_size}
    trivium_model("paper-marian-two-vocabularies", **sizes).save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    made = convert(tmp_path / "ours", tmp_path / "native")
    assert made.notes[-1].endswith("that of the target language is in target_tokenizer")
    source = AutoTokenizer.from_pretrained(tmp_path / "native")
    target = AutoTokenizer.from_pretrained(tmp_path / "native" / "target_tokenizer")
    assert source(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    ids = tokenizer(text_target=TEXTS)["input_ids"]
    assert target(TEXTS)["input_ids"] == ids
    assert target.batch_decode(ids, skip_special_tokens=True) == tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_command_reports_its_output(tmp_path: Path) -> None:
    folder = saved_native(tmp_path, "bert-sequence")
    output_text = run("convert", folder, tmp_path / "ours")
    parameters = native_model("bert-sequence").num_parameters()
    assert f"a TriviumForSequenceClassification with {parameters:,} parameters, is in {tmp_path}/ours" in output_text
    assert f"`TriviumForSequenceClassification.from_pretrained('{tmp_path}/ours')`" in output_text
    output_text = run("convert", tmp_path / "ours", tmp_path / "native-again", "--to", "bert")
    assert "from transformers import BertForSequenceClassification" in output_text
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "ours"), str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "Set `to` to one of bert, roberta" in " ".join(result.stderr.split())
