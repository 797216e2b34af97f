import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from trivium.tokenization import TriviumTokenizer, train_tokenizer

SOURCE = ["the quick brown fox jumps over the lazy dog", "a small house & a big garden", "## ##a </s> <0x41>"] * 5
TARGET = ["der schnelle braune Fuchs springt über den faulen Hund", "ein kleines Haus"] * 5
KINDS = [
    {},
    {"byte_fallback": True},
    {"algorithm": "wordpiece"},
    {"algorithm": "unigram"},
    {"normalization": None},
    {"normalization": "NFKC", "lowercase": True},
]
TRAINED = [train_tokenizer(SOURCE, vocab_size=560, **kind) for kind in KINDS]
PLAIN = TRAINED[KINDS.index({"normalization": None})]


@pytest.fixture
def shared() -> TriviumTokenizer:
    return train_tokenizer(SOURCE, target_texts=TARGET, vocab_size=400)


@pytest.fixture
def two() -> TriviumTokenizer:
    return train_tokenizer(SOURCE, target_texts=TARGET, shared=False, vocab_size=310, model_max_length=64)


def assert_same(a: TriviumTokenizer, b: PreTrainedTokenizerFast) -> None:
    assert type(a).__name__ == type(b).__name__
    assert a.shared_vocabulary == b.shared_vocabulary
    assert a.special_tokens_map == b.special_tokens_map
    assert a.model_max_length == b.model_max_length
    assert a._tokenizer.to_str() == b._tokenizer.to_str()
    assert a.target._tokenizer.to_str() == b.target._tokenizer.to_str()
    text, target = "a quick </s> <mask>日", "ein <s> Hund"
    assert a(text, text_target=target) == b(text, text_target=target)


# --- Special tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_special_tokens_have_their_ids(tokenizer: TriviumTokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert [*ids, tokenizer.unk_token_id, tokenizer.mask_token_id] == [0, 1, 2, 3, 4]
    assert sorted(tokenizer.added_tokens_decoder) == [0, 1, 2, 3, 4]


def test_a_text_and_a_pair_end_with_eos(shared: TriviumTokenizer) -> None:
    first, second = (shared.encode(text, add_special_tokens=False) for text in ("the fox", "a dog"))
    assert shared("the fox") == {"input_ids": [*first, 2], "attention_mask": [1] * (len(first) + 1)}
    pair = shared("the fox", "a dog", return_token_type_ids=True)
    assert pair["input_ids"] == [*first, 2, *second, 2]
    assert pair["token_type_ids"] == [0] * (len(first) + 1) + [1] * (len(second) + 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_on_either_side(two: TriviumTokenizer, side: str) -> None:
    two.padding_side = side
    batch = two(["fox", "the quick fox"], text_target=["Hund", "ein kleiner Hund"], padding=True, return_tensors="pt")
    pad_at = 0 if side == "left" else -1
    for name in ("input_ids", "attention_mask", "labels"):
        assert batch[name][0, pad_at] == 0
        assert batch[name][1, pad_at] != 0


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_special_tokens_in_a_text_are_text_unless_asked(tokenizer: TriviumTokenizer) -> None:
    text = "a</s> <pad>b<s><unk>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert not set(ids) & {0, 1, 2, 3}
    assert tokenizer.decode(ids) == text
    assert set(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)) >= {0, 1, 2, 3}


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_mask_is_recognised_and_takes_in_the_space_before_it(tokenizer: TriviumTokenizer) -> None:
    ids = tokenizer.encode("the <mask>, <mask>!<mask>", add_special_tokens=False)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert ids.count(4) == 3
    assert tokens[tokens.index("<mask>") - 1].endswith("e")


# --- Nothing is lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60).filter(lambda text: "<mask>" not in text.lower()))
def test_decoding_gives_back_any_text(tokenizer: TriviumTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == tokenizer.backend_tokenizer.normalizer.normalize_str(
        text
    )
    assert 3 not in ids


@pytest.mark.parametrize("kind", [{}, {"byte_fallback": True}, {"algorithm": "wordpiece"}, {"algorithm": "unigram"}])
def test_decoding_gives_back_hard_texts_exactly(kind: dict) -> None:
    tokenizer = train_tokenizer(SOURCE, vocab_size=560, normalization=None, **kind)
    texts = [
        "",
        " ",
        "  two  before,   three\n\n\tand a tab after \r\n ",
        "👩‍👩‍👧‍👦 🇩🇪 日本語 한국어 שלום مرحبا",
        "e\u0301 = é, \u2581 and \x00\x01\x7f\ufeff\u200b",
        "##a #### <0x41> <0x0A> Ġ Ċ ▁the </s><pad>",
        "n't . , ' s 've do n't",  # what cleaning up spaces would change
        "x" * 500 + "語" * 500,
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"], skip_special_tokens=True) == texts


@pytest.mark.parametrize("texts", ["a\ud800", ["fine", "a\ud800"], [("fine", "a\ud800")]], ids=repr)
def test_lone_surrogates_are_refused(two: TriviumTokenizer, texts: str | list) -> None:
    for argument in ("text", "text_target"):
        with pytest.raises(ValueError, match=r"lone surrogates, got 'a\\ud800'"):
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


def test_two_vocabularies_encode_each_its_language_and_decode_the_target(two: TriviumTokenizer) -> None:
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


def test_sides_follow_the_settings(two: TriviumTokenizer) -> None:
    two.truncation_side = "left"
    options = {"truncation": True, "max_length": 9, "max_target_length": 4}
    both = two("the quick brown fox jumps", text_target="der schnelle braune Fuchs", **options)
    assert len(both["input_ids"]) == 9
    assert len(both["labels"]) == 4
    assert two.decode(both["labels"], skip_special_tokens=True).endswith("s")


def test_special_tokens_must_agree(two: TriviumTokenizer) -> None:
    other = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1}, unk_token="<unk>"))
    with pytest.raises(ValueError, match="must have one id in both vocabularies"):
        TriviumTokenizer(tokenizer_object=two.backend_tokenizer, target_tokenizer_object=other)


# --- Files ------------------------------------------------------------------------------------------------------


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


def test_saved_files_do_not_depend_on_the_last_call(two: TriviumTokenizer, tmp_path: Path) -> None:
    two.save_pretrained(tmp_path / "a")
    two(SOURCE, text_target=TARGET[:1] * len(SOURCE), padding="max_length", truncation=True, max_length=5)
    two.save_pretrained(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.suffix != ".py")
    assert names == ["target_tokenizer.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_failed_save_leaves_the_old_files(
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
    (tmp_path / "target_tokenizer.json").write_bytes(left_over)  # as on the Hub, where a push deletes nothing
    assert_same(shared, TriviumTokenizer.from_pretrained(tmp_path))


def test_a_missing_target_vocabulary_is_noticed(two: TriviumTokenizer, tmp_path: Path) -> None:
    two.save_pretrained(tmp_path)
    (tmp_path / "target_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"'target_tokenizer.json' is missing"):
        TriviumTokenizer.from_pretrained(tmp_path)


def test_one_side_is_saved_alone(two: TriviumTokenizer, tmp_path: Path) -> None:
    two.target.save_pretrained(tmp_path)
    again = TriviumTokenizer.from_pretrained(tmp_path)
    assert again.shared_vocabulary
    assert again("ein Hund") == two(text_target="ein Hund")
    assert again.model_max_length == 64


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_the_stock_class_loads_it_and_agrees(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    stock = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert type(stock) is PreTrainedTokenizerFast
    texts = ["the Quick  fox </s> ##a", "日本 <0x41> é", "the <mask> fox", ""]
    ours, theirs = (each(texts, padding=True) for each in (tokenizer, stock))
    assert ours["input_ids"] == theirs["input_ids"]
    assert ours["attention_mask"] == theirs["attention_mask"]
    for skip in (True, False):
        options = {"skip_special_tokens": skip}
        assert tokenizer.batch_decode(ours["input_ids"], **options) == stock.batch_decode(ours["input_ids"], **options)


LOAD = """
import importlib.util, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
assert importlib.util.find_spec("trivium") is None
from transformers import AutoTokenizer
for name in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    assert type(tokenizer).__module__.startswith("transformers_modules"), type(tokenizer)
    print(tokenizer("the fox", text_target="der Fuchs")["labels"], tokenizer.target_vocab_size)
"""


def test_loads_without_the_package_from_a_folder_and_from_the_hub(
    shared: TriviumTokenizer, two: TriviumTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TriviumTokenizer, "_auto_class", "AutoTokenizer")
    names, expected = [], []
    for name, tokenizer in {"shared": shared, "two": two}.items():
        folder = tmp_path / name
        tokenizer.save_pretrained(folder)
        assert json.loads((folder / "tokenizer_config.json").read_text())["auto_map"]
        (folder / "config.json").write_text(
            '{"model_type": "trivium"}'
        )  # there is a model wherever there is a tokenizer
        repository = tmp_path / "hf" / "hub" / f"models--org--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("a" * 40)
        shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
        names += [str(folder), f"org/{name}"]
        line = f"{tokenizer('the fox', text_target='der Fuchs')['labels']} {tokenizer.target_vocab_size}"
        expected += [line, line]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", LOAD, *names]
    done = subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == expected


# --- Training anew ----------------------------------------------------------------------------------------------


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
    new = two.target.train_new_from_iterator(TARGET, vocab_size=300)
    assert new.convert_tokens_to_ids("<neu>") == len(new) - 1
    assert new.model_max_length == 64
