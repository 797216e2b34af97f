"""Test tokenizers: lossless decoding, labels, two vocabularies, saved folders, and retraining."""

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clean import put_into_cache, run_without_trivium
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from trained_tokenizers import KINDS, SOURCE, TARGET, TRAINED, USER, assert_same
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trivium.tokenization import TriviumTokenizer, train_tokenizer

# --- Lossless decoding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
@settings(max_examples=100)
@given(text=st.text(max_size=60).filter(lambda text: "<mask>" not in text.lower()))
def test_decoding_is_lossless(tokenizer: TriviumTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == tokenizer.backend_tokenizer.normalizer.normalize_str(
        text
    )
    assert 3 not in ids


@pytest.mark.parametrize("kind", [{}, {"byte_fallback": True}, {"algorithm": "wordpiece"}, {"algorithm": "unigram"}])
def test_decoding_is_lossless_for_edge_cases(kind: dict) -> None:
    tokenizer = train_tokenizer(SOURCE, vocab_size=560, normalization=None, **kind)
    texts = [
        "",
        " ",
        "  two  before,   three\n\n\tand a tab after \r\n ",
        "👩‍👩‍👧‍👦 🇩🇪 日本語 한국어 שלום مرحبا",
        "e\u0301 = é, \u2581 and \x00\x01\x7f\ufeff\u200b",
        "##a #### <0x41> <0x0A> Ġ Ċ ▁the </s><pad>",
        "n't . , ' s 've do n't",  # clean_up_tokenization_spaces would change these texts.
        "x" * 500 + "語" * 500,
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"], skip_special_tokens=True) == texts


@pytest.mark.parametrize("texts", ["a\ud800", ["fine", "a\ud800"], [("fine", "a\ud800")]], ids=repr)
def test_lone_surrogates_are_refused(two: TriviumTokenizer, texts: str | list) -> None:
    for argument in ("text", "text_target"):
        with pytest.raises(ValueError, match=r"lone surrogates.*'a\\ud800'"):
            two(**{argument: texts})


# --- Labels -----------------------------------------------------------------------------------------------------


def list_of_arrays(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row) for row in rows]


@pytest.mark.parametrize("as_batch", [list, np.array, torch.tensor, list_of_arrays])
@pytest.mark.parametrize("name", ["shared", "two"])
def test_decode_drops_ignored_labels(name: str, as_batch: Callable, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    one = tokenizer(text_target="ein Hund")["input_ids"]
    batch = as_batch([[*one, -100, -100], [-100, *one, -100]])
    assert tokenizer.batch_decode(batch, skip_special_tokens=True) == ["ein Hund"] * 2
    assert tokenizer.decode(batch[0]) == "ein Hund</s>"
    assert tokenizer.decode(-100) == ""


# --- Two vocabularies -------------------------------------------------------------------------------------------


def test_two_vocabularies_encode_both_and_decode_target(two: TriviumTokenizer) -> None:
    text, target = "the quick brown fox", "der schnelle braune Fuchs"
    both = two(text, text_target=target)
    assert both["input_ids"] == two(text)["input_ids"] == two.source(text)["input_ids"]
    assert both["labels"] == two(text_target=target)["input_ids"] == two.target(target)["input_ids"]
    assert both["labels"] != two(target)["input_ids"]
    assert two.decode(both["labels"], skip_special_tokens=True) == target
    assert two.source.decode(both["input_ids"], skip_special_tokens=True) == text
    assert two.decode(both["input_ids"], skip_special_tokens=True) != text
    assert two.convert_ids_to_tokens(both["input_ids"]) == [*two.tokenize(text), "</s>"]


def test_sizes(shared: TriviumTokenizer, two: TriviumTokenizer) -> None:
    assert shared.target_vocab_size == shared.vocab_size == len(shared)
    assert shared.source is shared
    assert shared.target is shared
    assert len(two) == two.vocab_size == len(two.source)
    assert two.target_vocab_size == len(two.target) != len(two)
    two.add_tokens(["<new>"])
    two.target.add_tokens(["<neu>", "<auch neu>"])
    assert len(two) == two.vocab_size + 1
    assert two.target_vocab_size == two.target.vocab_size + 2


def test_sides_follow_settings(two: TriviumTokenizer) -> None:
    two.truncation_side = "left"
    options = {"truncation": True, "max_length": 9, "max_target_length": 4}
    both = two("the quick brown fox jumps", text_target="der schnelle braune Fuchs", **options)
    assert len(both["input_ids"]) == 9
    assert len(both["labels"]) == 4
    assert two.decode(both["labels"], skip_special_tokens=True).endswith("s")


def test_special_tokens_must_agree(two: TriviumTokenizer) -> None:
    other = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1}, unk_token="<unk>"))
    with pytest.raises(ValueError, match=r"one id.*vocabularies"):
        TriviumTokenizer(tokenizer_object=two.backend_tokenizer, target_tokenizer_object=other)


# --- Files ------------------------------------------------------------------------------------------------------


def test_negative_ids_are_refused(shared: TriviumTokenizer) -> None:
    for decode in (shared.decode, lambda ids: shared.batch_decode([ids])):
        with pytest.raises(ValueError, match=r"token_ids.*-1,.*at least 0, or -100"):
            decode([5, -1])


@pytest.mark.parametrize("name", ["shared", "two"])
@pytest.mark.parametrize("copied", ["save", "pickle", "deepcopy"])
def test_round_trip(name: str, copied: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    if copied == "pickle":
        again = pickle.loads(pickle.dumps(tokenizer))
    elif copied == "deepcopy":
        again = copy.deepcopy(tokenizer)
    else:
        tokenizer.save_pretrained(tmp_path)
        again = TriviumTokenizer.from_pretrained(tmp_path)
    assert_same(tokenizer, again)


def test_tokens_added_to_one_side_are_saved(two: TriviumTokenizer, tmp_path: Path) -> None:
    two.add_special_tokens({"sep_token": "<sep>", "extra_special_tokens": ["<de>"]})
    two.target.add_tokens(["<neu>"])
    two.save_pretrained(tmp_path)
    again = TriviumTokenizer.from_pretrained(tmp_path)
    assert_same(two, again)
    assert again.target.convert_tokens_to_ids("<neu>") == again.target_vocab_size - 1


def test_saved_files_do_not_depend_on_last_call(two: TriviumTokenizer, tmp_path: Path) -> None:
    two.save_pretrained(tmp_path / "a")
    two(SOURCE, text_target=TARGET[:1] * len(SOURCE), padding="max_length", truncation=True, max_length=5)
    two.save_pretrained(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.suffix != ".py")
    assert names == ["target_tokenizer.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_failed_save_keeps_the_old_files(
    two: TriviumTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.save_pretrained(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    two.add_tokens(["<new>"])
    with pytest.raises(OSError, match="disk full"):
        two.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_saving_over_another_tokenizer(shared: TriviumTokenizer, two: TriviumTokenizer, tmp_path: Path) -> None:
    two.save_pretrained(tmp_path)
    left_over = (tmp_path / "target_tokenizer.json").read_bytes()
    shared.save_pretrained(tmp_path)
    assert not (tmp_path / "target_tokenizer.json").exists()
    # Keep the old files in the folder, as in a Hub repository, where a push deletes nothing.
    (tmp_path / "target_tokenizer.json").write_bytes(left_over)
    assert_same(shared, TriviumTokenizer.from_pretrained(tmp_path))


def test_missing_target_vocabulary_is_detected(two: TriviumTokenizer, tmp_path: Path) -> None:
    two.save_pretrained(tmp_path)
    (tmp_path / "target_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"'target_tokenizer.json'.*missing"):
        TriviumTokenizer.from_pretrained(tmp_path)


def test_one_side_is_saved_alone(two: TriviumTokenizer, tmp_path: Path) -> None:
    two.target.save_pretrained(tmp_path)
    again = TriviumTokenizer.from_pretrained(tmp_path)
    assert again.shared_vocabulary
    assert again("ein Hund") == two(text_target="ein Hund")
    assert again.model_max_length == 64


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_stock_class_loads_and_matches(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    stock = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert type(stock) is PreTrainedTokenizerFast
    texts = ["the Quick  fox </s> ##a", "日本 <0x41> é", "the <mask> fox", ""]
    encoded, expected = (any_tokenizer(texts, padding=True) for any_tokenizer in (tokenizer, stock))
    assert encoded["input_ids"] == expected["input_ids"]
    assert encoded["attention_mask"] == expected["attention_mask"]
    for skip in (True, False):
        options = {"skip_special_tokens": skip}
        assert tokenizer.batch_decode(encoded["input_ids"], **options) == stock.batch_decode(
            encoded["input_ids"], **options
        )


def common_behavior(tokenizer: Any) -> Any:
    """Return as JSON all behavior in which transformers' tokenizer class must match Trivium's."""
    texts = ["the Quick  fox </s> ##a", "日本 <0x41> é", "the <mask> fox, <mask>", "", " <s> <pad><unk>"]
    options: list[dict[str, Any]] = [
        {"padding": True},
        {"padding": "max_length", "max_length": 80},
        {"truncation": True},
        {"truncation": True, "max_length": 4},
        {"split_special_tokens": False},
        {"add_special_tokens": False},
        {"return_special_tokens_mask": True, "return_token_type_ids": True},
    ]
    behavior: list[Any] = [
        tokenizer.model_max_length,
        tokenizer.special_tokens_map,
        len(tokenizer),
        tokenizer.padding_side,
    ]
    for chosen in options:
        behavior += [dict(tokenizer(texts, **chosen)), dict(tokenizer(texts, texts[::-1], **chosen))]
    behavior += [dict(tokenizer(texts, text_target=texts[::-1])), dict(tokenizer(text_target="der Fuchs"))]
    rows = tokenizer(texts, padding=True)["input_ids"]
    for skip in (True, False):
        behavior += [tokenizer.batch_decode(rows, skip_special_tokens=skip), tokenizer.decode(rows[1][:3])]
    return behavior


# This code is appended to the function `common_behavior`.
LOAD = """
said = {}
for name, ours in arguments[0].items():
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=ours)
    assert type(tokenizer).__module__.startswith("transformers_modules" if ours else "transformers.")
    said[name] = common_behavior(tokenizer)
    if ours is None:
        assert AutoTokenizer.from_pretrained(name, trust_remote_code=True)("the fox") == tokenizer("the fox")
        assert tokenizer("the fox")["input_ids"][-1] == 2
        assert AutoTokenizer.from_pretrained(name, add_eos_token=False)("the fox")["input_ids"][-1] != 2
        both = AutoTokenizer.from_pretrained(name, add_bos_token=True, add_eos_token=True)
        assert both("the fox")["input_ids"] == [1, *tokenizer("the fox")["input_ids"]]
    elif tokenizer.chat_template:
        messages = [{"role": "user", "content": "the fox"}]
        said[name].append(tokenizer.apply_chat_template(messages)["input_ids"])
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert text.startswith("<s>")
        assert tokenizer.encode(text, add_special_tokens=False) == said[name][-1]
        assert tokenizer.encode("<s>", add_special_tokens=False) == [tokenizer.bos_token_id]
    tokenizer.save_pretrained("again-" + name.replace("/", "-"))
json.dump(said, open("said.json", "w"))
"""


def test_loads_without_package_from_folder_and_hub(
    two: TriviumTokenizer, chat: TriviumTokenizer, tmp_path: Path
) -> None:
    """Load without Trivium, as transformers' own class if possible; then load what that class saves with Trivium."""
    char = train_tokenizer(SOURCE, algorithm="char", vocab_size=100)
    tokenizers = dict(zip("abcdef", TRAINED, strict=True)) | {"char": char, "two": two, "chat": chat}
    trusted: dict[str, bool | None] = {}
    expected: dict[str, Any] = {}
    for key, tokenizer in tokenizers.items():
        folder = tmp_path / key
        tokenizer.save_pretrained(folder)
        trust = True if key in ("two", "chat") else None
        assert ("auto_map" in json.loads((folder / "tokenizer_config.json").read_text())) == bool(trust)
        assert (folder / "tokenization_trivium.py").exists() == bool(trust)
        # The folder also contains a model, whose code must not run without consent.
        config = {"model_type": "trivium", "auto_map": {"AutoConfig": "configuration_trivium.TriviumConfig"}}
        (folder / "config.json").write_text(json.dumps({"model_type": "trivium"} if trust else config))
        put_into_cache(tmp_path / "home", f"org/{key}", {"a" * 40: folder}, main="a" * 40)
        if key == "chat":  # The saved tokenizer no longer splits special tokens.
            tokenizer = TriviumTokenizer.from_pretrained(folder)
        behavior = json.loads(json.dumps(common_behavior(tokenizer)))
        if key == "chat":
            behavior.append(tokenizer.apply_chat_template([USER])["input_ids"])
        for address in (key, f"org/{key}"):
            trusted[address], expected[address] = trust, behavior
    run_without_trivium(LOAD, trusted, folder=tmp_path, functions=[common_behavior])
    actual = json.loads((tmp_path / "said.json").read_text())
    for address, behavior in expected.items():
        assert actual[address] == behavior, address
        again = AutoTokenizer.from_pretrained(tmp_path / f"again-{address.replace('/', '-')}")
        assert isinstance(again, TriviumTokenizer) == bool(trusted[address])
        said_again = json.loads(json.dumps(common_behavior(again)))
        assert said_again == behavior[: len(said_again)]


def test_code_is_saved_only_while_needed(two: TriviumTokenizer, tmp_path: Path) -> None:
    """Code is saved for two vocabularies only, even if the tokenizer was loaded with the code of its folder."""
    two.save_pretrained(tmp_path / "two")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "two")
    for name, tokenizer, needed in (("two", loaded, True), ("source", loaded.source, False)):
        tokenizer.save_pretrained(tmp_path / f"{name} again")
        config = json.loads((tmp_path / f"{name} again" / "tokenizer_config.json").read_text())
        code = {"AutoTokenizer": ["tokenization_trivium.TriviumTokenizer", None]}
        assert config.get("auto_map") == (code if needed else None)
        assert config["tokenizer_class"] == "TriviumTokenizer"
        assert isinstance(AutoTokenizer.from_pretrained(tmp_path / f"{name} again"), TriviumTokenizer)


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_tokenizers_library_gives_same_ids(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    alone.encode_special_tokens = True
    for text in ("the Quick  fox </s> ##a", "日本 <0x41> é", "the <mask> fox", ""):
        assert alone.encode(text).ids == tokenizer(text)["input_ids"]
        assert alone.decode(alone.encode(text).ids) == tokenizer.decode(
            tokenizer.encode(text), skip_special_tokens=True
        )


# --- Retraining -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_train_new_from_iterator_keeps_special_ids(tokenizer: TriviumTokenizer) -> None:
    before = tokenizer.get_vocab()
    new = tokenizer.train_new_from_iterator([["ein kleines Haus"], ["ein großes Haus"]] * 5, vocab_size=580)
    assert isinstance(new, TriviumTokenizer)
    assert new.get_vocab() != before
    assert new.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    assert sorted(new.added_tokens_decoder) == [0, 1, 2, 3, 4]
    assert new.encode("ein Haus", "das Haus").count(2) == 2
    text = "ein haus: 日本 ##a </s>"
    assert new.decode(new.encode(text), skip_special_tokens=True) == text
    assert tokenizer.get_vocab() == before


def test_train_new_from_iterator_keeps_added_tokens(two: TriviumTokenizer) -> None:
    with pytest.raises(ValueError, match=r"tokenizer.source"):
        two.train_new_from_iterator(SOURCE, vocab_size=300)
    two.target.add_tokens(["<neu>"])
    two.add_bos_token, two.add_eos_token = True, False
    new = two.target.train_new_from_iterator(TARGET, vocab_size=300)
    assert (new.add_bos_token, new.add_eos_token) == (True, False)
    assert new("ein Haus")["input_ids"] == [1, *new.encode("ein Haus", add_special_tokens=False)]
    assert new.convert_tokens_to_ids("<neu>") == len(new) - 1
    assert new.model_max_length == 64
