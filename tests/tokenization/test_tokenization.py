import copy
import inspect
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import tiny_config
from tokenizers.processors import TemplateProcessing
from trained_tokenizers import ASSISTANT, KINDS, SOURCE, TARGET, TRAINED, USER, assert_same
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerFast, pipeline

from trivium import TriviumForCausalLM, TriviumForMaskedLM
from trivium.tokenization import TriviumTokenizer, train_tokenizer

# --- Special tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_special_tokens_have_fixed_ids(tokenizer: TriviumTokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert [*ids, tokenizer.unk_token_id, tokenizer.mask_token_id] == [0, 1, 2, 3, 4]
    assert sorted(tokenizer.added_tokens_decoder) == [0, 1, 2, 3, 4]


def test_texts_and_pairs_end_with_eos(shared: TriviumTokenizer) -> None:
    first, second = (shared.encode(text, add_special_tokens=False) for text in ("the fox", "a dog"))
    assert shared("the fox") == {"input_ids": [*first, 2], "attention_mask": [1] * (len(first) + 1)}
    pair = shared("the fox", "a dog", return_token_type_ids=True)
    assert pair["input_ids"] == [*first, 2, *second, 2]
    assert pair["token_type_ids"] == [0] * (len(first) + 1) + [1] * (len(second) + 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(two: TriviumTokenizer, side: str) -> None:
    two.padding_side = side
    batch = two(["fox", "the quick fox"], text_target=["Hund", "ein kleiner Hund"], padding=True, return_tensors="pt")
    pad_at = 0 if side == "left" else -1
    for name in ("input_ids", "attention_mask", "labels"):
        assert batch[name][0, pad_at] == 0
        assert batch[name][1, pad_at] != 0


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_special_tokens_in_texts_are_split_by_default(tokenizer: TriviumTokenizer) -> None:
    text = "a</s> <pad>b<s><unk>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert not set(ids) & {0, 1, 2, 3}
    assert tokenizer.decode(ids) == text
    assert set(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)) >= {0, 1, 2, 3}


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_mask_token_includes_preceding_space(tokenizer: TriviumTokenizer) -> None:
    ids = tokenizer.encode("the <mask>, <mask>!<mask>", add_special_tokens=False)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert ids.count(4) == 3
    assert tokens[tokens.index("<mask>") - 1].endswith("e")


@pytest.mark.parametrize("special", ["extra", "named", "add_tokens"])
def test_added_special_tokens_are_recognized_in_texts(special: str, tmp_path: Path) -> None:
    """Added special tokens are recognized here, after loading, and without Trivium; only reserved tokens are split."""
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
    tokenizers = [tokenizer, loaded, stock, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))]
    if special == "named":
        tokenizers.remove(stock)  # This tokenizer splits reserved tokens in texts.
    for any_tokenizer in tokenizers:
        ids = any_tokenizer.encode("a <ent> fox</s>", add_special_tokens=False)
        assert new in ids
        assert 2 not in ids
        assert any_tokenizer.decode(ids) == "a <ent> fox</s>"
        if any_tokenizer is not stock:
            assert any_tokenizer.decode(ids, skip_special_tokens=True) == "a  fox</s>"
    assert "<ent>" in loaded.all_special_tokens
    new_tokenizer = loaded.train_new_from_iterator(TARGET, vocab_size=300)
    ids = new_tokenizer.encode("<ent>", add_special_tokens=False)
    assert ids == [new_tokenizer.convert_tokens_to_ids("<ent>")]
    assert new_tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_special_tokens_added_to_target(two: TriviumTokenizer, tmp_path: Path) -> None:
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


def test_old_tokenizers_recognize_added_special_tokens(tmp_path: Path) -> None:
    """Load a tokenizer of version 0.1.0, which saved added special tokens as tokens to split."""
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
def test_split_words_match_tokens_of_text(tokenizer: TriviumTokenizer, words: list[str]) -> None:
    """Words must be encoded as in the text: taggers are trained on words, but read texts in a pipeline."""
    words = [word for word in words if word.split() == [word]]
    assume(words)
    split = tokenizer([words, words], is_split_into_words=True, return_offsets_mapping=True)
    assert split["input_ids"] == tokenizer([" ".join(words)] * 2)["input_ids"]
    for word, (start, end) in zip(split.word_ids(1), split["offset_mapping"][1], strict=True):
        assert word is None or 0 <= start <= end <= len(words[word])


def test_add_prefix_space_is_applied_and_saved(two: TriviumTokenizer, tmp_path: Path) -> None:
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


# --- BOS and EOS ------------------------------------------------------------------------------------------------

AROUND = list(itertools.product((False, True), repeat=2))
around = pytest.mark.parametrize(("bos", "eos"), AROUND)


def ids_around(bos: bool, eos: bool, *texts: list[int]) -> list[int]:
    return [1] * bos + list(itertools.chain.from_iterable([*text, *[2] * eos] for text in texts))


def two_vocabularies(bos: bool, eos: bool) -> TriviumTokenizer:
    options = {"add_bos_token": bos, "add_eos_token": eos}
    return train_tokenizer(SOURCE, target_texts=TARGET, shared=False, vocab_size=310, **options)


@around
def test_bos_and_eos_surround_texts_and_pairs(bos: bool, eos: bool) -> None:
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
def test_bos_and_eos_settings_round_trip(copied: str, bos: bool, eos: bool, tmp_path: Path) -> None:
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


def test_bos_and_eos_can_be_overridden_separately(shared: TriviumTokenizer, tmp_path: Path) -> None:
    shared.add_bos_token = True
    shared.save_pretrained(tmp_path)
    assert TriviumTokenizer.from_pretrained(tmp_path, add_eos_token=False)("a")["input_ids"][0] == 1
    assert TriviumTokenizer.from_pretrained(tmp_path, add_bos_token=False)("a")["input_ids"][-1] == 2


def test_backend_keeps_its_post_processor_by_default(shared: TriviumTokenizer) -> None:
    """Simulate an old folder, where only the post-processor in `tokenizer.json` adds BOS and EOS."""
    backend = shared.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="$A </s> </s>", special_tokens=[("</s>", 2)])
    kept = TriviumTokenizer(tokenizer_object=backend)
    assert (kept.add_bos_token, kept.add_eos_token) == (False, True)
    assert kept("a")["input_ids"][-2:] == [2, 2]
    overridden = TriviumTokenizer(tokenizer_object=backend, add_eos_token=True)
    assert overridden("a")["input_ids"].count(2) == 1


@around
def test_stock_class_adds_same_bos_and_eos(bos: bool, eos: bool, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(SOURCE, vocab_size=310, add_bos_token=bos, add_eos_token=eos)
    tokenizer.save_pretrained(tmp_path)
    stock = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for texts in (["the fox"], ["the fox", "a dog"], [""]):
        assert stock(*texts, return_token_type_ids=True) == tokenizer(*texts, return_token_type_ids=True)


# --- Whole words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TRAINED, ids=map(str, KINDS))
def test_offsets_exclude_space_before_word(tokenizer: TriviumTokenizer) -> None:
    text = " the  quick\nfox\t<mask>, the <mask>"
    encoding = tokenizer(text, return_offsets_mapping=True)
    spans = encoding["offset_mapping"]
    assert "".join(text[start:end] for start, end in spans) == "thequickfox<mask>,the<mask>"
    assert all(start <= end <= following for (start, end), (following, _) in itertools.pairwise(spans[:-1]))
    # Every character belongs to a token, except for spaces next to a mask token, which absorbs them.
    for index in range(len(text)):
        token = encoding.char_to_token(index)
        assert token is not None or text[index:].startswith(" <mask>")
    assert encoding.char_to_token(text.index("<mask>")) == encoding["input_ids"].index(4)
    words = encoding.word_ids()
    assert words[-1] is None
    assert words[:-1] == sorted(words[:-1])
    assert words[encoding.char_to_token(text.index("q"))] == words[encoding.char_to_token(text.index("k"))]
    assert words[encoding.char_to_token(text.index("k"))] < words[encoding.char_to_token(text.index("f"))]


def test_offsets_restart_in_second_text_and_each_word() -> None:
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
def test_whole_word_masking(tokenizer: TriviumTokenizer) -> None:
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
    # The test is meaningful only if words consist of several tokens.
    assert sum(several for _, masked, several in seen if masked) > 5


# --- Chat -------------------------------------------------------------------------------------------------------


def chat_ids(chat: TriviumTokenizer, *parts: str | int) -> list[int]:
    """Return the ids of plain texts, separated by the ids of special tokens."""
    ids = ([part] if isinstance(part, int) else chat.encode(part, add_special_tokens=False) for part in parts)
    return list(itertools.chain.from_iterable(ids))


@pytest.mark.parametrize("saved", [False, True])
def test_chat_template_emits_special_tokens(chat: TriviumTokenizer, saved: bool, tmp_path: Path) -> None:
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
    # Special tokens in plain text are split until the tokenizer is saved.
    assert (chat.encode("</s>", add_special_tokens=False) == [2]) == saved
    if saved:  # Some clients tokenize the rendered text themselves.
        assert chat.encode(text, add_special_tokens=False) == expected
        stock = PreTrainedTokenizerFast.from_pretrained(tmp_path)
        assert stock.encode(text, add_special_tokens=False) == expected
        assert stock.decode(expected, skip_special_tokens=True) == "the fox a dog "
    opened = chat.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert opened == chat_ids(chat, 1, user, "the fox", assistant)
    continued = chat.apply_chat_template([USER, ASSISTANT], continue_final_message=True, return_dict=False)
    assert continued == chat_ids(chat, 1, user, "the fox", assistant, " a dog")


def test_batch_of_chats_is_padded(chat: TriviumTokenizer) -> None:
    chat.padding_side = "left"
    chats = [[USER], [USER, ASSISTANT, USER]]
    batch = chat.apply_chat_template(chats, padding=True, return_tensors="pt", add_generation_prompt=True)
    lengths = [len(chat.apply_chat_template(messages, return_dict=False)) + 1 for messages in chats]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["input_ids"].shape == (2, max(lengths))
    assert batch["input_ids"][0, 0] == 0
    assert (batch["input_ids"][:, -1] == len(chat) - 1).all()


def test_assistant_tokens_mask(chat: TriviumTokenizer) -> None:
    """Test messages with and without a space at either end."""
    found = chat.apply_chat_template([USER, ASSISTANT, USER, ASSISTANT], return_assistant_tokens_mask=True)
    assistant_ids = [i for i, mask in zip(found["input_ids"], found["assistant_masks"], strict=True) if mask]
    assert assistant_ids == chat_ids(chat, " a dog ", 2) * 2


def test_special_tokens_in_message_are_split(chat: TriviumTokenizer) -> None:
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


def test_chat_with_model_of_resized_vocabulary(chat: TriviumTokenizer) -> None:
    torch.manual_seed(0)
    model = TriviumForCausalLM(tiny_config(vocab_size=len(chat) - 2, encoder_layers=0)).eval()
    model.resize_token_embeddings(len(chat))
    prompt = chat.apply_chat_template([USER], add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        row = model.get_input_embeddings().weight
        row[len(chat) - 1] = row[5] * 3  # The embedding of a new token affects the output.
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
