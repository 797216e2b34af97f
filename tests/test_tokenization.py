import copy
import inspect
import itertools
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
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import tiny_config
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerFast, pipeline

from trivium import TriviumForCausalLM, TriviumForMaskedLM
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


@pytest.mark.parametrize("special", ["extra", "named", "add_tokens"])
def test_added_special_tokens_are_tokens_in_texts(special: str, tmp_path: Path) -> None:
    """Only the reserved ones are guarded; here, when loaded, and without the package."""
    tokenizer = train_tokenizer(SOURCE, vocab_size=400)
    if special == "extra":
        tokenizer.add_special_tokens({"extra_special_tokens": ["<ent>"]})
    elif special == "named":
        tokenizer.add_special_tokens({"sep_token": "<ent>"})
    else:
        tokenizer.add_tokens(["<ent>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    loaded, stock = TriviumTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    new = len(tokenizer) - 1
    everyone = [tokenizer, loaded, stock, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))]
    if special == "named":
        everyone.remove(stock)  # which guards them
    for each in everyone:
        ids = each.encode("a <ent> fox</s>", add_special_tokens=False)
        assert new in ids
        assert 2 not in ids
        assert each.decode(ids) == "a <ent> fox</s>"
        if each is not stock:
            assert each.decode(ids, skip_special_tokens=True) == "a  fox</s>"
    assert "<ent>" in loaded.all_special_tokens
    new_tokenizer = loaded.train_new_from_iterator(TARGET, vocab_size=300)
    ids = new_tokenizer.encode("<ent>", add_special_tokens=False)
    assert ids == [new_tokenizer.convert_tokens_to_ids("<ent>")]
    assert new_tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_special_tokens_added_to_the_target(two: TriviumTokenizer, tmp_path: Path) -> None:
    size = len(two)
    two.target.add_special_tokens({"extra_special_tokens": ["<neu>"]})
    two.save_pretrained(tmp_path)
    for tokenizer in (two, TriviumTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == size
        new = tokenizer.target_vocab_size - 1
        ids = tokenizer(text_target="ein<neu></s>")["input_ids"]
        assert ids.count(new) == 1
        assert ids.count(2) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == "ein</s>"


def test_tokenizers_of_before_recognize_added_special_tokens(tmp_path: Path) -> None:
    """Version 0.1.0 saved them as tokens that are guarded."""
    tokenizer = train_tokenizer(SOURCE, vocab_size=400)
    tokenizer._tokenizer.add_special_tokens(["<ent>"])
    tokenizer.save_pretrained(tmp_path)
    assert '"<ent>"' not in (tmp_path / "tokenizer_config.json").read_text()
    loaded = TriviumTokenizer.from_pretrained(tmp_path)
    ids = loaded.encode("<ent></s>", add_special_tokens=False)
    assert ids[0] == len(loaded) - 1
    assert 2 not in ids


# --- Words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1), min_size=1))
def test_split_words_have_the_tokens_of_the_text(tokenizer: TriviumTokenizer, words: list[str]) -> None:
    """A model that learned labels of words reads texts in a pipeline."""
    words = [word for word in words if word.split() == [word]]
    assume(words)
    split = tokenizer([words, words], is_split_into_words=True, return_offsets_mapping=True)
    assert split["input_ids"] == tokenizer([" ".join(words)] * 2)["input_ids"]
    for word, (start, end) in zip(split.word_ids(1), split["offset_mapping"][1], strict=True):
        assert word is None or 0 <= start <= end <= len(words[word])


def test_prefix_space_is_honoured_and_saved(two: TriviumTokenizer, tmp_path: Path) -> None:
    two.save_pretrained(tmp_path / "without")
    prefixed = TriviumTokenizer.from_pretrained(tmp_path / "without", add_prefix_space=True)
    prefixed.save_pretrained(tmp_path / "with")
    loaded = TriviumTokenizer.from_pretrained(tmp_path / "with")
    for tokenizer in (prefixed, loaded, loaded.target):
        assert tokenizer.add_prefix_space
        assert tokenizer("fox")["input_ids"] == tokenizer(" fox")["input_ids"]
        assert tokenizer(["fox", "dog"], is_split_into_words=True)["input_ids"] == tokenizer("fox dog")["input_ids"]
        assert tokenizer("the", return_offsets_mapping=True)["offset_mapping"][0][0] == 0
        assert tokenizer.encode("<mask>", add_special_tokens=False) == [4]
        assert tokenizer("  fox")["input_ids"] != tokenizer("fox")["input_ids"]
    assert prefixed("fox")["input_ids"] == two(" fox")["input_ids"] != two("fox")["input_ids"]
    assert prefixed.target("ein")["input_ids"] == two.target(" ein")["input_ids"]
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "with")("fox")["input_ids"] == two(" fox")["input_ids"]
    again = TriviumTokenizer.from_pretrained(tmp_path / "with", add_prefix_space=False)
    assert not again.add_prefix_space
    assert again("fox")["input_ids"] == two("fox")["input_ids"]


# --- Around a text ----------------------------------------------------------------------------------------------

AROUND = list(itertools.product((False, True), repeat=2))
around = pytest.mark.parametrize(("bos", "eos"), AROUND)


def ids_around(bos: bool, eos: bool, *texts: list[int]) -> list[int]:
    return [1] * bos + list(itertools.chain.from_iterable([*text, *[2] * eos] for text in texts))


def two_vocabularies(bos: bool, eos: bool) -> TriviumTokenizer:
    options = {"add_bos_token": bos, "add_eos_token": eos}
    return train_tokenizer(SOURCE, target_texts=TARGET, shared=False, vocab_size=310, **options)


@around
def test_bos_and_eos_are_put_around_texts_and_pairs(bos: bool, eos: bool) -> None:
    tokenizer = two_vocabularies(bos, eos)
    assert (tokenizer.add_bos_token, tokenizer.add_eos_token) == (bos, eos)
    for side, pair in ((tokenizer.source, ("the fox", "a dog")), (tokenizer.target, ("ein Hund", "ein Haus"))):
        first, second = (side.encode(text, add_special_tokens=False) for text in pair)
        assert side(pair[0])["input_ids"] == ids_around(bos, eos, first)
        both = side(*pair, return_token_type_ids=True, return_special_tokens_mask=True)
        assert both["input_ids"] == ids_around(bos, eos, first, second)
        assert both["token_type_ids"] == [0] * (bos + len(first) + eos) + [1] * (len(second) + eos)
        assert both["special_tokens_mask"] == [int(each in (1, 2)) for each in both["input_ids"]]
        mask = side.get_special_tokens_mask(both["input_ids"], already_has_special_tokens=True)
        assert both["special_tokens_mask"] == mask
        assert side.num_special_tokens_to_add() == bos + eos
        assert side.num_special_tokens_to_add(pair=True) == bos + 2 * eos
    assert tokenizer("the", text_target="ein")["labels"] == tokenizer.target("ein")["input_ids"]


@around
def test_truncation_leaves_room_for_bos_and_eos(bos: bool, eos: bool) -> None:
    tokenizer = two_vocabularies(bos, eos)
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in ("the quick brown", "fox jumps"))
    ids = tokenizer("the quick brown", truncation=True, max_length=5)["input_ids"]
    assert ids == ids_around(bos, eos, first[: 5 - bos - eos])
    ids = tokenizer("the quick brown", "fox jumps", truncation="only_second", max_length=len(first) + 5)["input_ids"]
    assert ids == ids_around(bos, eos, first, second[: 5 - bos - 2 * eos])
    batch = tokenizer(["the", "the fox"], padding="max_length", max_length=16, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 16)


@around
@pytest.mark.parametrize("copied", ["save", "pickle", "deepcopy", "set later", "override"])
def test_bos_and_eos_survive(copied: str, bos: bool, eos: bool, tmp_path: Path) -> None:
    tokenizer = two_vocabularies(bos, eos)
    if copied == "pickle":
        again = pickle.loads(pickle.dumps(tokenizer))
    elif copied == "deepcopy":
        again = copy.deepcopy(tokenizer)
    elif copied == "set later":
        again = two_vocabularies(not bos, not eos)
        again.add_bos_token, again.add_eos_token = bos, eos
    else:
        saved = two_vocabularies(not bos, not eos) if copied == "override" else tokenizer
        options = {"add_bos_token": bos, "add_eos_token": eos} if copied == "override" else {}
        saved.save_pretrained(tmp_path)
        again = AutoTokenizer.from_pretrained(tmp_path, **options)
    assert (again.add_bos_token, again.add_eos_token) == (bos, eos)
    assert_same(tokenizer, again)
    assert again("a", "b") == tokenizer("a", "b")


def test_one_of_bos_and_eos_is_overridden_alone(shared: TriviumTokenizer, tmp_path: Path) -> None:
    shared.add_bos_token = True
    shared.save_pretrained(tmp_path)
    assert TriviumTokenizer.from_pretrained(tmp_path, add_eos_token=False)("a")["input_ids"][0] == 1
    assert TriviumTokenizer.from_pretrained(tmp_path, add_bos_token=False)("a")["input_ids"][-1] == 2


def test_a_backend_keeps_its_own_post_processor_unless_told(shared: TriviumTokenizer) -> None:
    """As a folder from before there was a choice: only its `tokenizer.json` says what is around a text."""
    backend = shared.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="$A </s> </s>", special_tokens=[("</s>", 2)])
    kept = TriviumTokenizer(tokenizer_object=backend)
    assert (kept.add_bos_token, kept.add_eos_token) == (False, True)
    assert kept("a")["input_ids"][-2:] == [2, 2]
    told = TriviumTokenizer(tokenizer_object=backend, add_eos_token=True)
    assert told("a")["input_ids"].count(2) == 1


@around
def test_the_stock_class_puts_the_same_around(bos: bool, eos: bool, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(SOURCE, vocab_size=310, add_bos_token=bos, add_eos_token=eos)
    tokenizer.save_pretrained(tmp_path)
    stock = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for texts in (["the fox"], ["the fox", "a dog"], [""]):
        assert stock(*texts, return_token_type_ids=True) == tokenizer(*texts, return_token_type_ids=True)


# --- Whole words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_offsets_leave_out_the_space_before_a_word(tokenizer: TriviumTokenizer) -> None:
    text = " the  quick\nfox\t<mask>, the <mask>"
    encoding = tokenizer(text, return_offsets_mapping=True)
    spans = encoding["offset_mapping"]
    assert "".join(text[start:end] for start, end in spans) == "thequickfox<mask>,the<mask>"
    assert all(start <= end <= following for (start, end), (following, _) in itertools.pairwise(spans[:-1]))
    for index in range(len(text)):  # every character has its token, the spaces too, but one that a mask takes in
        token = encoding.char_to_token(index)
        assert token is not None or text[index:].startswith(" <mask>")
    assert encoding.char_to_token(text.index("<mask>")) == encoding["input_ids"].index(4)
    words = encoding.word_ids()
    assert words[-1] is None
    assert words[:-1] == sorted(words[:-1])
    assert words[encoding.char_to_token(text.index("q"))] == words[encoding.char_to_token(text.index("k"))]
    assert words[encoding.char_to_token(text.index("k"))] < words[encoding.char_to_token(text.index("f"))]


def test_offsets_begin_anew_in_a_second_text_and_in_each_given_word() -> None:
    tokenizer = train_tokenizer(SOURCE, vocab_size=310, add_eos_token=False)
    spans = tokenizer("日", "日b", return_offsets_mapping=True)["offset_mapping"]
    assert spans == [(0, 1), (1, 1), (1, 1), (0, 1), (1, 1), (1, 1), (1, 2)]
    words = tokenizer(["ab", "the", "fox"], is_split_into_words=True, return_offsets_mapping=True)
    spans = zip(words.word_ids(), words["offset_mapping"], strict=True)
    assert sorted({(word, start) for word, (start, end) in spans if end > start}) == [
        *((0, 0), (0, 1), (1, 0), (2, 0)),
    ]


@pytest.mark.filterwarnings("ignore:Random token replacement is not supported")
@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_whole_words_are_masked(tokenizer: TriviumTokenizer) -> None:
    collate = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True, mlm_probability=0.5, seed=0)
    texts = ["two greenish foxes jumped,  happily over yesterday's dogs\nthey barked", "übermorgen quixotically"]
    batch = tokenizer(texts, padding=True, return_offsets_mapping=True, return_special_tokens_mask=True)
    seen = set()
    for _ in range(20):
        masked = collate([{name: batch[name][row] for name in batch} for row in (0, 1)])["labels"] != -100
        for row, text in enumerate(texts):
            for word in text.split():
                start = text.index(word)
                tokens = {batch.char_to_token(row, start + index) for index in range(len(word))}
                assert len({masked[row, token].item() for token in tokens}) == 1
                seen.add((word, masked[row, batch.char_to_token(row, start)].item(), len(tokens) > 1))
        assert not masked[torch.tensor(batch["special_tokens_mask"]).bool()].any()
    assert {(word, True) for word in " ".join(texts).split()} <= {(word, masked) for word, masked, _ in seen}
    assert {(word, False) for word in " ".join(texts).split()} <= {(word, masked) for word, masked, _ in seen}
    assert sum(several for _, masked, several in seen if masked) > 5  # or there is nothing to keep together


# --- Chat -------------------------------------------------------------------------------------------------------

CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{% generation %} {{ message['content'] }} {{ eos_token }}"
    "{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
USER: dict[str, str] = {"role": "user", "content": "the fox"}
ASSISTANT: dict[str, str] = {"role": "assistant", "content": "a dog"}


@pytest.fixture
def chat() -> TriviumTokenizer:
    tokenizer = train_tokenizer(SOURCE, vocab_size=400, add_bos_token=True)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def chat_ids(chat: TriviumTokenizer, *parts: str | int) -> list[int]:
    """The ids of plain texts, with special tokens, as ids, between them."""
    ids = ([part] if isinstance(part, int) else chat.encode(part, add_special_tokens=False) for part in parts)
    return list(itertools.chain.from_iterable(ids))


@pytest.mark.parametrize("saved", [False, True])
def test_a_chat_template_writes_special_tokens(chat: TriviumTokenizer, saved: bool, tmp_path: Path) -> None:
    if saved:
        chat.save_pretrained(tmp_path)
        chat = AutoTokenizer.from_pretrained(tmp_path)
    user, assistant = chat.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    assert (user, assistant) == (len(chat) - 2, len(chat) - 1)
    expected = chat_ids(chat, 1, user, "the fox", assistant, " a dog ", 2)
    assert chat.apply_chat_template([USER, ASSISTANT])["input_ids"] == expected
    assert chat.apply_chat_template([USER, ASSISTANT], return_dict=False) == expected
    text = chat.apply_chat_template([USER, ASSISTANT], tokenize=False)
    assert text == "<s><|user|>the fox<|assistant|> a dog </s>" == chat.decode(expected)
    # Plain text is guarded until it is saved.
    assert (chat.encode("</s>", add_special_tokens=False) == [2]) == saved
    if saved:  # as clients do it that tokenize later
        assert chat.encode(text, add_special_tokens=False) == expected
        stock = PreTrainedTokenizerFast.from_pretrained(tmp_path)
        assert stock.encode(text, add_special_tokens=False) == expected
        assert stock.decode(expected, skip_special_tokens=True) == "the fox a dog "
    opened = chat.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert opened == chat_ids(chat, 1, user, "the fox", assistant)
    continued = chat.apply_chat_template([USER, ASSISTANT], continue_final_message=True, return_dict=False)
    assert continued == chat_ids(chat, 1, user, "the fox", assistant, " a dog")


def test_a_batch_of_chats_is_padded(chat: TriviumTokenizer) -> None:
    chat.padding_side = "left"
    chats = [[USER], [USER, ASSISTANT, USER]]
    batch = chat.apply_chat_template(chats, padding=True, return_tensors="pt", add_generation_prompt=True)
    lengths = [len(chat.apply_chat_template(each, return_dict=False)) + 1 for each in chats]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["input_ids"].shape == (2, max(lengths))
    assert batch["input_ids"][0, 0] == 0
    assert (batch["input_ids"][:, -1] == len(chat) - 1).all()


def test_the_assistants_tokens_are_found(chat: TriviumTokenizer) -> None:
    """Also when what it says begins and ends with a space."""
    found = chat.apply_chat_template([USER, ASSISTANT, USER, ASSISTANT], return_assistant_tokens_mask=True)
    said = [i for i, mask in zip(found["input_ids"], found["assistant_masks"], strict=True) if mask]
    assert said == chat_ids(chat, " a dog ", 2) * 2


def test_special_tokens_in_a_message(chat: TriviumTokenizer) -> None:
    message = {"role": "user", "content": "a</s><|user|><s> b"}
    user = chat.convert_tokens_to_ids("<|user|>")
    ids = chat.apply_chat_template([message], return_dict=False)
    assert ids == chat_ids(chat, 1, user, "a", 2, user, 1, " b")
    if "sanitize_control_tokens" not in inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters:
        pytest.skip("this release of transformers has no sanitize_control_tokens")
    ids = chat.apply_chat_template([message], return_dict=False, sanitize_control_tokens=True)
    assert ids[:2] == [1, user]
    assert not {0, 1, 2, 3, user} & set(ids[2:])
    assert chat.decode(ids[2:]) == message["content"]


def test_chatting_with_a_model_that_learned_the_new_tokens(chat: TriviumTokenizer) -> None:
    torch.manual_seed(0)
    model = TriviumForCausalLM(tiny_config(vocab_size=len(chat) - 2, encoder_layers=0)).eval()
    model.resize_token_embeddings(len(chat))
    prompt = chat.apply_chat_template([USER], add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        row = model.get_input_embeddings().weight
        row[len(chat) - 1] = row[5] * 3  # a new token's embedding reaches the output
        assert model(**prompt).logits.shape[-1] == len(chat)
    out = model.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert out.shape == (1, prompt["input_ids"].shape[1] + 5)
    answer = pipeline("text-generation", model=model, tokenizer=chat)([USER], max_new_tokens=3, do_sample=False)
    assert answer[0]["generated_text"][0] == USER
    assert answer[0]["generated_text"][1]["role"] == "assistant"


# --- Pipelines --------------------------------------------------------------------------------------------------


def test_fill_mask() -> None:
    tokenizer = train_tokenizer(SOURCE, vocab_size=400, add_bos_token=True)
    model = TriviumForMaskedLM(tiny_config(vocab_size=len(tokenizer), decoder_layers=0)).eval()
    filled = pipeline("fill-mask", model=model, tokenizer=tokenizer)("the quick <mask> fox", top_k=3)
    assert len(filled) == 3
    for guess in filled:
        assert guess["sequence"] == f"the quick{tokenizer.decode(guess['token'])} fox"


def test_text_generation_continues_the_prompt() -> None:
    tokenizer = train_tokenizer(SOURCE, vocab_size=400, add_bos_token=True, add_eos_token=False)
    torch.manual_seed(0)
    model = TriviumForCausalLM(tiny_config(vocab_size=len(tokenizer), encoder_layers=0)).eval()
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    prompt = tokenizer("the quick", return_tensors="pt")
    assert prompt["input_ids"][0].tolist() == [1, *tokenizer.encode("the quick", add_special_tokens=False)]
    ids = model.generate(**prompt, **options)[0, prompt["input_ids"].shape[1] :]
    continuation = tokenizer.decode(ids, skip_special_tokens=True)
    assert continuation
    assert generate("the quick", **options)[0]["generated_text"] == "the quick" + continuation
    assert generate("the quick", return_full_text=False, **options)[0]["generated_text"] == continuation


# --- Nothing is lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
@settings(max_examples=100)
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
    with pytest.raises(ValueError, match=r"one id.*vocabularies"):
        TriviumTokenizer(tokenizer_object=two.backend_tokenizer, target_tokenizer_object=other)


# --- Files ------------------------------------------------------------------------------------------------------


def test_negative_ids_are_refused(shared: TriviumTokenizer) -> None:
    for decode in (shared.decode, lambda ids: shared.batch_decode([ids])):
        with pytest.raises(ValueError, match="token_ids must be at least 0, or -100 to be left out; got -1"):
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
    with pytest.raises(ValueError, match=r"'target_tokenizer.json'.*missing"):
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


def what_any_class_says(tokenizer: Any) -> Any:
    """Everything that transformers' own class must have in common with ours, as JSON."""
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
    said: list[Any] = [
        tokenizer.model_max_length,
        tokenizer.special_tokens_map,
        len(tokenizer),
        tokenizer.padding_side,
    ]
    for chosen in options:
        said += [dict(tokenizer(texts, **chosen)), dict(tokenizer(texts, texts[::-1], **chosen))]
    said += [dict(tokenizer(texts, text_target=texts[::-1])), dict(tokenizer(text_target="der Fuchs"))]
    rows = tokenizer(texts, padding=True)["input_ids"]
    for skip in (True, False):
        said += [tokenizer.batch_decode(rows, skip_special_tokens=skip), tokenizer.decode(rows[1][:3])]
    return said


# After `what_any_class_says`.
LOAD = """
said = {}
for name, ours in arguments[0].items():
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=ours)
    assert type(tokenizer).__module__.startswith("transformers_modules" if ours else "transformers.")
    said[name] = what_any_class_says(tokenizer)
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


def test_loads_without_the_package_from_a_folder_and_from_the_hub(
    two: TriviumTokenizer, chat: TriviumTokenizer, tmp_path: Path
) -> None:
    """As transformers' own class where that will do, and what was saved from there loads here, again."""
    char = train_tokenizer(SOURCE, algorithm="char", vocab_size=100)
    tokenizers = dict(zip("abcdef", TRAINED, strict=True)) | {"char": char, "two": two, "chat": chat}
    trusted: dict[str, bool | None] = {}
    expected: dict[str, Any] = {}
    for key, tokenizer in tokenizers.items():
        folder = tmp_path / key
        tokenizer.save_pretrained(folder)
        ours = True if key in ("two", "chat") else None
        assert ("auto_map" in json.loads((folder / "tokenizer_config.json").read_text())) == bool(ours)
        assert (folder / "tokenization_trivium.py").exists() == bool(ours)
        # There is a model wherever there is a tokenizer, and its code is not to be run unasked.
        config = {"model_type": "trivium", "auto_map": {"AutoConfig": "configuration_trivium.TriviumConfig"}}
        (folder / "config.json").write_text(json.dumps({"model_type": "trivium"} if ours else config))
        put_into_cache(tmp_path / "home", f"org/{key}", {"a" * 40: folder}, main="a" * 40)
        if key == "chat":  # which does not guard special tokens from then on
            tokenizer = TriviumTokenizer.from_pretrained(folder)
        says = json.loads(json.dumps(what_any_class_says(tokenizer)))
        if key == "chat":
            says.append(tokenizer.apply_chat_template([USER])["input_ids"])
        for address in (key, f"org/{key}"):
            trusted[address], expected[address] = ours, says
    run_without_trivium(LOAD, trusted, folder=tmp_path, functions=[what_any_class_says])
    said = json.loads((tmp_path / "said.json").read_text())
    for address, says in expected.items():
        assert said[address] == says, address
        again = AutoTokenizer.from_pretrained(tmp_path / f"again-{address.replace('/', '-')}")
        assert isinstance(again, TriviumTokenizer) == bool(trusted[address])
        said_again = json.loads(json.dumps(what_any_class_says(again)))
        assert said_again == says[: len(said_again)]


def test_code_goes_along_only_while_it_is_needed(two: TriviumTokenizer, tmp_path: Path) -> None:
    """Also of a tokenizer that was loaded with it."""
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
def test_the_tokenizers_library_alone_gives_the_same_ids(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    alone.encode_special_tokens = True
    for text in ("the Quick  fox </s> ##a", "日本 <0x41> é", "the <mask> fox", ""):
        assert alone.encode(text).ids == tokenizer(text)["input_ids"]
        assert alone.decode(alone.encode(text).ids) == tokenizer.decode(
            tokenizer.encode(text), skip_special_tokens=True
        )


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
    two.add_bos_token, two.add_eos_token = True, False
    new = two.target.train_new_from_iterator(TARGET, vocab_size=300)
    assert (new.add_bos_token, new.add_eos_token) == (True, False)
    assert new("ein Haus")["input_ids"] == [1, *new.encode("ein Haus", add_special_tokens=False)]
    assert new.convert_tokens_to_ids("<neu>") == len(new) - 1
    assert new.model_max_length == 64
